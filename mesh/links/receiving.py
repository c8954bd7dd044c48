"""In: what a peer sends is verified, allowed by the gates, heard, stored in the stream, and only then acknowledged.

What is missing of a node's count is asked for: of the peer that is linked, be it the node itself or one who heard it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from mesh.errors import BusUnavailable
from mesh.ledger import Checked
from mesh.links.ground import Ground, refuse
from mesh.links.messages import BadMessage, Frames, Gone, Kept, Missing
from mesh.links.recovering import Recovering
from mesh.links.sending import Say
from mesh.links.wire import WireBroken
from mesh.words import plain
from protocol.address import Subject
from protocol.errors import ProtocolError
from protocol.frame import Frame, decode_frame, frame_id
from protocol.keys import MeshId

RETRY_S: Final = 0.2  # while our own bus is away
PART: Final = 8  # frames that are heard at once: at most 512 acts, some milliseconds
AHEAD: Final = 2  # messages that are heard and wait to be stored: the server syncs one while the next is verified
PAUSE_S: Final = 10.0  # at most, between two looks whether the peer's quota has room again
ASKED: Final = 4  # gaps that are asked for between two beats
LOOKED_AT: Final = 256  # gaps that are read for that, from where the last look ended: a peer can make any number

log = structlog.get_logger(__name__)


class Receiving:
    """What comes from one peer."""

    def __init__(self, peer: MeshId, ground: Ground, say: Say) -> None:
        self.refused = 0  # frames and other messages
        self.doubt = asyncio.Event()  # something is missing: it may be on its way, or be asked for in a moment
        self._peer, self._ground, self._say = peer, ground, say
        self._heard: asyncio.Queue[tuple[int, int, Sequence[Checked]]] = asyncio.Queue(AHEAD)
        self._unsaid = 0  # messages that were taken and not acknowledged yet
        self._is_last = False
        self._looks = True
        self._recovering = Recovering(peer, ground, say)
        self._asked: set[tuple[str, str, str, int]] = set()  # gaps: mesh, node, basin, first
        self._looked: tuple[int, str, int] = (0, "", 0)  # the gap that was looked at last: origin, basin, first

    # Frames

    async def take(self, message: Frames, alive: Callable[[], None]) -> None:
        """Verify, ask the gates, and have it heard; `store` does the rest. `alive` is called while the peer waits."""
        self._unsaid += 1
        allowed, refused = list[Checked](), 0
        for data in message.frames:
            one = self._allowed(data)
            if one is None:
                refused += 1
            elif not self._ground.ledger.holds(one.subject, one.frame):
                await self._pace(one.frame, alive)
                allowed.append(one)
        await self._hear(allowed)
        if allowed and self._ground.store.one("SELECT 1 FROM gaps LIMIT 1"):
            self.doubt.set()
        await self._heard.put((message.number, refused, allowed))

    def finish(self) -> bool:
        """End the link when all that was taken is acknowledged; returns whether it is already."""
        self._is_last = True
        return not self._unsaid

    async def _pace(self, frame: Frame, alive: Callable[[], None]) -> None:
        """Wait until the peer's quota has room: nothing more is read from it meanwhile, and nothing is lost."""
        while (wait_s := self._ground.gates.pace_s(self._peer, frame.basin, len(frame.acts))) > 0:
            await asyncio.sleep(min(wait_s, PAUSE_S))
            alive()

    def _allowed(self, data: bytes) -> Checked | None:
        """A frame that verifies and may come in, with its subject; None for any other, which is counted."""
        try:
            frame = decode_frame(data)
            mesh = self._ground.trust.mesh_of(frame.node) or MeshId("")
            subject = Subject(True, frame.basin, mesh, frame.node)
            self._ground.trust.check(subject, frame, self._ground.clock())
        except ProtocolError as error:
            self.refuse(error)
            return None
        if self._recovering.puts_off(mesh, frame):
            return None
        if reason := self._barred(mesh, frame):
            self.refuse(BadMessage(reason))
            return None
        return Checked(subject, frame, data)

    def _barred(self, mesh: MeshId, frame: Frame) -> str | None:
        gates = self._ground.gates
        if mesh == self._ground.mesh:
            is_past = frame.node != self._ground.signer.public and self._recovering.wants(frame.basin)
            return None if is_past else "it pretends to be ours"
        if not gates.takes(self._peer, frame.basin):
            return "the basin is not taken from this peer"
        reasons = (gates.refuses(self._peer, mesh, frame.basin, act) for act in frame.acts)
        return next((reason for reason in reasons if reason), None)

    async def _hear(self, frames: Sequence[Checked]) -> None:
        """Have frames heard here, at once, as far as the loop stays responsive."""
        for start in range(0, len(frames), PART):
            if start:
                await asyncio.sleep(0)
            self._ground.ledger.take(frames[start : start + PART])

    async def store(self) -> None:
        """Put into the stream what was heard, and only then say that it is kept; until cancelled. Raises WireBroken."""
        while True:
            message, refused, frames = await self._heard.get()
            if len(frames) == 1:  # a task of its own costs 0.05 ms
                await self._publish(frames[0])
            else:
                async with asyncio.TaskGroup() as group:
                    for one in frames:
                        group.create_task(self._publish(one))
            await self._say(Kept(message, refused))
            self._unsaid -= 1
            if self._is_last and not self._unsaid:
                raise WireBroken("all is said")

    async def _publish(self, one: Checked) -> None:
        while True:
            try:
                await self._ground.bus.publish(str(one.subject), one.data, frame_id(one.data))
            except BusUnavailable:
                await asyncio.sleep(RETRY_S)
            else:
                return

    def refuse(self, error: Exception) -> None:
        """Count what was refused against the peer, and tell the person now and then."""
        refuse(self._ground.store, self._peer, type(error).__name__)
        self.refused += 1
        if self.refused & (self.refused - 1) == 0:  # the 1st, 2nd, 4th, 8th
            log.warning("refused what a peer sent", peer=self._peer[:8], reason=plain(str(error)))

    # Gaps

    def look(self) -> None:
        """Have the next `ask` look for what is missing."""
        self._looks = True

    async def ask(self) -> None:
        """Ask the peer for some of what is missing in the basins that are taken from it. Raises WireBroken."""
        await self._recovering.ask()
        if not self._looks:
            return
        self._looks = False
        gaps = [gap for gap in self._gaps() if gap[:4] not in self._asked and self._wants(*gap[:3])]
        for mesh, node, basin, first, last in gaps[:ASKED]:
            self._asked.add((mesh, node, basin, first))
            await self._say(Missing(mesh, node, basin, first, last))

    def _gaps(self) -> list[tuple[str, str, str, int, int]]:
        """The next gaps, by mesh, node, basin, first and last number; from the beginning again after the last."""
        sql = (
            "SELECT origin, basin, first, last, mesh, node FROM gaps JOIN origins USING (origin)"
            " WHERE (origin, basin, first) > (?, ?, ?) ORDER BY origin, basin, first LIMIT ?"
        )
        rows = self._ground.store.rows(sql, (*self._looked, LOOKED_AT))
        self._looked = rows[-1][:3] if len(rows) == LOOKED_AT else (0, "", 0)
        return [(mesh, node, basin, first, last) for _, basin, first, last, mesh, node in rows]

    def _wants(self, mesh: str, node: str, basin: str) -> bool:
        is_revoked = self._ground.trust.revoked(mesh, node)
        return mesh != self._ground.mesh and not is_revoked and self._ground.gates.takes(self._peer, basin)

    def _may_close(self, message: Gone) -> bool:
        """Whether the peer's word is the last: of what it said itself, and of what somebody said before we came.

        The latter where we are not linked with them, so that only those who pass it on can tell.
        """
        is_before = message.first == 1 and not self._ground.gates.takes(MeshId(message.mesh), message.basin)
        return message.mesh == self._peer or is_before

    def gone(self, message: Gone) -> None:
        """The peer has no more of what was asked for. When its word is the last, nothing is missing any more."""
        if self._recovering.gone(message):
            return
        asked = (message.mesh, message.node, message.basin, message.first)
        if asked not in self._asked or not self._may_close(message):
            return
        sql = (
            "DELETE FROM gaps WHERE basin = ? AND first >= ? AND last <= ?"
            " AND origin = (SELECT origin FROM origins WHERE mesh = ? AND node = ?)"
        )
        where = (message.basin, message.first, message.last, message.mesh, message.node)
        with self._ground.store.transaction():
            closed = self._ground.store.execute(sql, where)
        if closed:
            log.info("a peer does not give what is missing of its own", peer=self._peer[:8], basin=message.basin)
