"""What a node that lost its past asks its peers for: what its mesh and theirs said to each other, basin by basin.

A node's count begins anew with its key, so it cannot know what is missing. It asks for all that the earlier nodes of
its mesh, and the nodes of the peer, have said, in the basins that the gates name, and is told when there is no more.
"""

from collections.abc import Iterable
from typing import Final

from mesh.links.ground import Ground
from mesh.links.messages import Gone, Missing
from mesh.links.sending import Say
from protocol.frame import Frame
from protocol.keys import MeshId
from protocol.quota import MINUTE_MS

EVERYTHING: Final = 2**53 - 1  # the last sequence that is asked for
MAX_OTHERS: Final = 64  # nodes of third meshes that the peer passes on
A_MINUTE: Final = 24  # requests; a peer looks at 30 a minute, and drops more


class Recovering:
    """Over one wire; asks again for everything over the next, until all of it has come."""

    def __init__(self, peer: MeshId, ground: Ground, say: Say) -> None:
        self._peer, self._ground, self._say = peer, ground, say
        self._asked: set[Missing] = set()  # over this wire
        self._waiting: set[Missing] = set()  # and not answered yet
        self._others: set[tuple[str, str]] = set()  # nodes of third meshes whose frames were put off
        self._minute, self._count = 0, 0

    def wants(self, basin: str) -> bool:
        """Whether what earlier nodes of our mesh said in a basin is taken from the peer."""
        return basin in self._ground.gates.recovers(self._peer)

    def puts_off(self, mesh: str, frame: Frame) -> bool:
        """Whether a frame comes before it is known again what is shared: its node is then asked for it afterwards."""
        basins = self._ground.gates.recovers(self._peer)
        if not basins or frame.basin in basins or self._ground.gates.takes(self._peer, frame.basin):
            return False
        if mesh not in (self._ground.mesh, self._peer) and len(self._others) < MAX_OTHERS:
            self._others.add((mesh, frame.node))
        return True

    async def ask(self) -> None:
        """Ask for some of what is to be recovered now. Raises WireBroken."""
        for missing in self._left():
            minute = self._ground.clock() // MINUTE_MS
            self._count = self._count + 1 if minute == self._minute else 1
            self._minute = minute
            if self._count > A_MINUTE:
                return
            self._asked.add(missing)
            self._waiting.add(missing)
            await self._say(missing)

    def gone(self, message: Gone) -> bool:
        """The peer has no more of something; returns whether that had been asked for here."""
        asked = Missing(message.mesh, message.node, message.basin, message.first, message.last)
        if asked not in self._waiting:
            return False
        self._waiting.discard(asked)
        self._close(message)
        if not self._waiting and not self._left():
            self._ground.gates.recovered(self._peer)
        return True

    def _close(self, message: Gone) -> None:
        """What is missing still of what the two said was taken back, or was for others: it is no loss."""
        sql = "DELETE FROM gaps WHERE basin = ? AND origin = (SELECT origin FROM origins WHERE mesh = ? AND node = ?)"
        if message.mesh in (self._ground.mesh, self._peer):
            with self._ground.store.transaction():
                self._ground.store.execute(sql, (message.basin, message.mesh, message.node))

    def _left(self) -> list[Missing]:
        """What is to be asked for still."""
        basins = sorted(self._ground.gates.recovers(self._peer))
        nodes = list(self._nodes()) if basins else []
        wanted = (Missing(mesh, node, basin, 1, EVERYTHING) for basin in basins for mesh, node in nodes)
        return [missing for missing in wanted if missing not in self._asked]

    def _nodes(self) -> Iterable[tuple[str, str]]:
        """Our nodes before this one, and the peer's; those out of service are not believed, so not asked for."""
        ground = self._ground
        two = [(mesh, node) for mesh in (ground.mesh, self._peer) for node in ground.trust.nodes(mesh)]
        for mesh, node in (*two, *sorted(self._others)):
            if node != ground.signer.public and not ground.trust.revoked(mesh, node):
                yield mesh, node
