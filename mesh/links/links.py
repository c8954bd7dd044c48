"""All links of a node: who may be let in is, who can be reached is reached, and there is one session a peer.

A peer is reached by its own addresses in turn, and in hubs and rooms, where one waits for the other. What is quicker
takes the place of what is slower as soon as it is there; what was not acknowledged is sent again over it.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import structlog

from mesh.errors import MeshError
from mesh.links.channel import NotAdmitted, Proved, Sealed, Self, answer, call
from mesh.links.ground import Ground
from mesh.links.hub import Hub
from mesh.links.messages import BadMessage
from mesh.links.sessions import Sessions, Shaken
from mesh.links.tls import Tls
from mesh.links.ways import DIRECT, Direct, Way
from mesh.links.websocket.listening import Desk, listening
from mesh.links.websocket.wires import SocketWire
from mesh.links.wire import Wire, WireBroken
from mesh.words import plain
from protocol.keys import MeshId

MAX_STRANGERS: Final = 128  # who have not proved who they are; whoever has waited longest makes room for one more
AGAIN_S: Final = (0.5, 60.0)  # first and longest wait between two attempts to reach a peer, doubling between
HEAD_START_S: Final = 2.0  # of a peer's own addresses before hubs and rooms are tried, when it has any
STEADY_S: Final = 10.0  # a peer whose link ends sooner is not dialled again at once, as if it were not there
YOUNG_S: Final = 4.0  # longest wait after a link that ended at once: a node that is restarted, or two with one key

log = structlog.get_logger(__name__)

Admit = Callable[[Proved], str | None]
Greet = Callable[[Sealed, Proved], Awaitable[None]]


async def _nobody(wire: Sealed, proved: Proved) -> None:
    """Who shows a secret is not talked with."""


class Links:
    """Runs sessions with peers. `admit` says why somebody is not let in, or None.

    Whoever shows the secret of an invitation is no peer yet: `greet` talks with them, on its own time limit. `hub`,
    where there is one, joins others on the side.
    """

    def __init__(self, who: Self, ground: Ground, admit: Admit, greet: Greet = _nobody) -> None:
        self.port: int | None = None  # where we listen
        self.ready = asyncio.Event()
        self.hub: Hub | None = None
        self.tls: Tls | None = None
        self._who, self._admit, self._greet = who, admit, greet
        self._sessions = Sessions(ground)
        self.sessions = self._sessions.by_peer
        self._ways: dict[MeshId, Sequence[Way]] = {}
        self._hosted: Sequence[Way] = ()
        self._keeping: dict[tuple[MeshId | None, Way | None], asyncio.Task[None]] = {}
        self._strangers: list[asyncio.Timeout] = []  # whoever has waited longest first
        self._group: asyncio.TaskGroup | None = None

    def proceed(self, basins: Collection[str]) -> None:
        """Something was stored in these basins: have the sessions look that it concerns."""
        for session in self.sessions.values():
            if session.concerns(basins):
                session.wake(basins)

    def look(self, peers: Iterable[MeshId]) -> None:
        """What these peers may have has changed: have their sessions look at all of it."""
        for peer in peers:
            if session := self.sessions.get(peer):
                session.wake()

    def dial(self, peers: Mapping[MeshId, Sequence[Way | str]]) -> None:
        """Keep in touch with exactly these, by one of their ways each (a URL is a peer's own), and who dials us."""
        self._ways = {
            peer: [Direct(way) if isinstance(way, str) else way for way in ways] for peer, ways in peers.items()
        }
        self._attend()

    def host(self, ways: Sequence[Way]) -> None:
        """Wait in exactly these slots for whoever comes, as we do where we listen."""
        self._hosted = tuple(ways)
        self._attend()

    def _attend(self) -> None:
        """Have a task for a peer's own addresses, and one for each hub and room."""
        if self._group is None:
            return
        wanted: dict[tuple[MeshId | None, Way | None], Callable[[], Coroutine[Any, Any, None]]] = {
            (None, way): lambda way=way: self._wait_for_guests(way) for way in self._hosted
        }
        for peer, ways in self._ways.items():
            if any(way.rank == DIRECT for way in ways):
                wanted[peer, None] = lambda peer=peer: self._keep(peer, None)
            wanted |= {
                (peer, way): lambda peer=peer, way=way: self._keep(peer, way) for way in ways if way.rank != DIRECT
            }
        for key in [key for key in self._keeping if key not in wanted]:
            self._keeping.pop(key).cancel()
        for key, work in wanted.items():
            if key not in self._keeping:
                self._keeping[key] = self._group.create_task(work(), name=f"reach {(key[0] or 'guests')[:8]}")

    def restart(self, peer: MeshId) -> None:
        """Have the next `dial` try to reach a peer at once, and not after the wait that it has earned by now."""
        for key in [key for key in self._keeping if key[0] == peer]:
            self._keeping.pop(key).cancel()

    def drop(self, peer: MeshId) -> None:
        """End the session with a peer when what it sent is acknowledged; it may come back if it is admitted."""
        self._sessions.drop(peer)

    async def run(self, listen: tuple[str, int] | None) -> None:
        """Work until cancelled. Raises MeshError when the address where we are to listen cannot be had."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            self._group = self._sessions.group = group
            if listen is not None:
                desk = Desk(self._taken, self.hub, self.tls.context if self.tls else None)
                try:
                    self.port = await stack.enter_async_context(listening(*listen, desk))
                except OSError as error:
                    raise MeshError(
                        f"links cannot listen on {listen[0]}:{listen[1]}: {error.strerror}; choose another port"
                    ) from error
                if self.tls is not None:
                    group.create_task(self.tls.watch(), name="certificate")
            self._attend()
            self.ready.set()
            await asyncio.get_running_loop().create_future()

    # Others come to us

    async def _taken(self, wire: SocketWire) -> None:
        """Somebody dialled us."""
        await self._receive(wire, DIRECT)

    async def _receive(self, wire: Wire, rank: int) -> None:
        """Somebody begins on a wire."""
        try:
            async with self._place():
                sealed, proved = await answer(wire, self._who, self._admit)
                if proved.secret:
                    await self._greet(sealed, proved)
                    await wire.close()
                    return
        except (NotAdmitted, WireBroken, BadMessage, TimeoutError) as error:
            log.info("somebody is not let in", reason=plain(str(error)) or "others were waiting")
            await wire.close()
            return
        except MeshError:
            raise
        except Exception:  # a slip of ours with a stranger's words must not end the node
            log.exception("this node cannot deal with what a stranger said")
            await wire.close()
            return
        await self._sessions.talk(Shaken(sealed, proved, rank, calls=False))

    @asynccontextmanager
    async def _place(self) -> AsyncGenerator[None]:
        """A stranger's place, while the block runs. Raises TimeoutError in it when somebody else needs the place."""
        if len(self._strangers) >= MAX_STRANGERS:
            self._strangers.pop(0).reschedule(0)
        async with asyncio.timeout(None) as mine:
            self._strangers.append(mine)
            try:
                yield
            finally:
                if mine in self._strangers:
                    self._strangers.remove(mine)

    async def _wait_for_guests(self, way: Way) -> None:
        """Wait in a slot for ever, for one after another."""
        wait_s = AGAIN_S[0]
        while True:
            try:
                wire = await way.open()
            except WireBroken as error:
                log.debug("nobody can be waited for", reason=plain(str(error)))
                wait_s = min(2 * wait_s, AGAIN_S[1])
            else:
                wait_s = AGAIN_S[0]  # whoever comes again and again must wait a little as well
                if self._group is not None:
                    self._group.create_task(self._receive(wire, way.rank), name="guest")
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.0))

    # We go to others

    async def _keep(self, peer: MeshId, way: Way | None) -> None:
        """Reach a peer whenever there is no session with it that is as good; None: by its own addresses."""
        rank, wait_s = (DIRECT if way is None else way.rank), AGAIN_S[0]
        if way is not None and any(other.rank == DIRECT for other in self._ways[peer]):
            await asyncio.sleep(HEAD_START_S)
        loop = asyncio.get_running_loop()
        while True:
            await self._sessions.until(lambda: not self._sessions.is_up(peer, rank))
            ways = [way] if way else [one for one in self._ways.get(peer, ()) if one.rank == DIRECT]
            began_s = loop.time()
            reached = await self._reach(peer, ways)
            if reached and (loop.time() - began_s >= STEADY_S or self._sessions.is_up(peer, rank)):
                wait_s = AGAIN_S[0]
                continue
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.0))
            wait_s = min(2 * wait_s, YOUNG_S if reached else AGAIN_S[1])

    async def _reach(self, peer: MeshId, ways: Sequence[Way]) -> bool:
        """Try some ways in turn; returns whether there was a session, or there is one by now."""
        for way in ways:
            try:
                wire = await self._opened(peer, way)
                if wire is None:
                    return True
                shaken = await self._shake(wire, way, peer)
            except (NotAdmitted, WireBroken) as error:
                log.debug("a peer is not reached", peer=peer[:8], reason=plain(str(error)))
                continue
            if await self._sessions.talk(shaken):
                return True
        return False

    async def _opened(self, peer: MeshId, way: Way) -> Wire | None:
        """Open a way; None when the peer was reached by one as good meanwhile. Raises WireBroken."""
        wires, broken = list[Wire](), list[WireBroken]()

        async def opening() -> None:
            try:
                wires.append(await way.open())
            except WireBroken as error:
                broken.append(error)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(opening()),
                    group.create_task(self._sessions.until(lambda: self._sessions.is_up(peer, way.rank))),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        except BaseException:
            for wire in wires:  # it came in the very moment in which nobody wants it any more
                await wire.close()
            raise
        if broken:
            raise broken[0]
        return wires[0] if wires else None

    async def _shake(self, wire: Wire, way: Way, peer: MeshId) -> Shaken:
        """Prove to each other who is there. Raises NotAdmitted, WireBroken."""

        def admit(proved: Proved) -> str | None:
            if proved.mesh != peer:
                return "somebody else came to where a peer is waited for"
            return self._admit(proved)

        try:
            if not way.calls:
                return Shaken(*await answer(wire, self._who, admit), way.rank, calls=False)
            shaken = Shaken(*await call(wire, self._who, peer), way.rank, calls=True)
        except BaseException:
            await wire.close()
            raise
        if reason := admit(shaken.proved):
            await wire.close()
            raise NotAdmitted(reason)
        return shaken
