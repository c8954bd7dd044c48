"""The sessions of a node: one a peer, by the best wire that there is."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from mesh.errors import MeshError
from mesh.links.channel import NotAdmitted, Proved, Sealed
from mesh.links.ground import Ground, refuse
from mesh.links.messages import BadMessage
from mesh.links.papers import prove
from mesh.links.session import Session
from mesh.links.wire import TooLong, WireBroken
from mesh.words import plain
from protocol.keys import MeshId

SAME_S: Final = 2.0  # two wires of one rank that came so soon after each other: both nodes dialled at once

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Running:
    """A session at work. `calls`: we began it; `since_s` is of the loop's clock."""

    task: "asyncio.Task[None]"
    rank: int
    calls: bool
    since_s: float


@dataclass(frozen=True, slots=True)
class Shaken:
    """A sealed wire to somebody who has proved who they are."""

    sealed: Sealed
    proved: Proved
    rank: int
    calls: bool


class Sessions:
    """All sessions, by peer. They run in `group`, which is there while the links run."""

    def __init__(self, ground: Ground) -> None:
        self.by_peer: dict[MeshId, Session] = {}
        self.group: asyncio.TaskGroup | None = None
        self._ground = ground
        self._running: dict[MeshId, _Running] = {}
        self._turn = asyncio.Event()

    def drop(self, peer: MeshId) -> None:
        """End the session with a peer when what it sent is acknowledged."""
        running, session = self._running.get(peer), self.by_peer.get(peer)
        if running is not None and (session is None or session.finish()):
            running.task.cancel()

    def is_up(self, peer: MeshId, rank: int) -> bool:
        """Whether there is a session by a way of that rank, or a better one."""
        running = self._running.get(peer)
        return running is not None and running.rank <= rank

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; asked anew whenever a session begins or ends."""
        while not holds():
            await self._turn.wait()

    def _turned(self) -> None:
        self._turn.set()
        self._turn = asyncio.Event()

    def _gives_way(self, before: _Running, new: Shaken) -> bool:
        """Whether a session makes room for a new wire.

        The better way wins, and of two alike the newer: the older may be dead already. When both nodes dialled at once,
        both keep what the lower mesh began.
        """
        if before.rank != new.rank:
            return new.rank < before.rank
        is_young = asyncio.get_running_loop().time() - before.since_s < SAME_S
        if not is_young or before.calls == new.calls:
            return True
        return new.calls == (self._ground.mesh < new.proved.mesh)

    async def talk(self, new: Shaken) -> bool:
        """One session, to its end; or none, when there is a better one. Returns False where the peer said nothing.

        Whoever does not let us in proves who they are before they hang up.
        """
        peer = new.proved.mesh
        while before := self._running.get(peer):
            if not self._gives_way(before, new):
                await new.sealed.close()
                return True
            before.task.cancel()
            await asyncio.wait([before.task])
            if self._running.get(peer) is before:
                self._ended(peer)
        if self.group is None:
            return False
        prove(self._ground, new.proved.certificate)
        session = Session(peer, new.sealed, self._ground)
        session.node = new.proved.node
        task = self.group.create_task(self._run(session), name=f"link {peer[:8]}")
        running = _Running(task, new.rank, new.calls, asyncio.get_running_loop().time())
        self._running[peer], self.by_peer[peer] = running, session
        self._turned()
        log.info("a link is up", peer=peer[:8], by=("its address", "a hub", "a room")[new.rank])
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            if self._running.get(peer) is running:
                self._ended(peer)
            await new.sealed.close()
        log.info("a link is down", peer=peer[:8])
        return session.vocabulary is not None

    def _ended(self, peer: MeshId) -> None:
        del self._running[peer], self.by_peer[peer]
        self._turned()

    async def _run(self, session: Session) -> None:
        try:
            await session.run()
        except* (BadMessage, TooLong) as errors:
            refuse(self._ground.store, session.peer, BadMessage.__name__)
            log.warning("a peer speaks nonsense", peer=session.peer[:8], reason=plain(str(errors.exceptions[0])))
        except* (WireBroken, NotAdmitted) as errors:
            log.debug("a link broke", peer=session.peer[:8], reason=plain(str(errors.exceptions[0])))
        except* MeshError:
            raise
        except* Exception:  # a slip of ours with a peer's words must not end the node
            log.exception("this node cannot deal with what a peer said", peer=session.peer[:8])
