"""All links of a node: who may be let in is, who can be dialled is dialled, and there is one session a peer."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog

from mesh.errors import MeshError
from mesh.links.channel import NotAdmitted, Proved, Sealed, Self, answer, call
from mesh.links.ground import Ground
from mesh.links.messages import BadMessage
from mesh.links.papers import prove
from mesh.links.session import Session
from mesh.links.socket import SocketWire, dial, listening
from mesh.links.wire import Wire, WireBroken
from mesh.words import plain
from protocol.keys import MeshId

MAX_STRANGERS: Final = 32  # connections at a time that have not proved who they are; more are hung up on
AGAIN_S: Final = (0.5, 60.0)  # first and longest wait between two attempts to reach a peer, doubling between

log = structlog.get_logger(__name__)

Admit = Callable[[Proved], str | None]
Greet = Callable[[Sealed, Proved], Awaitable[None]]


async def _nobody(wire: Sealed, proved: Proved) -> None:
    """Who shows a secret is not talked with."""


class Links:
    """Runs sessions with peers. `admit` says why somebody is not let in, or None.

    Whoever shows the secret of an invitation is no peer yet: `greet` talks with them, on its own time limit.
    """

    def __init__(self, who: Self, ground: Ground, admit: Admit, greet: Greet = _nobody) -> None:
        self.sessions: dict[MeshId, Session] = {}
        self.port: int | None = None  # where we listen
        self.ready = asyncio.Event()
        self._who, self._ground, self._admit, self._greet = who, ground, admit, greet
        self._dialled: dict[MeshId, Sequence[str]] = {}
        self._dialling: dict[MeshId, asyncio.Task[None]] = {}
        self._running: dict[MeshId, asyncio.Task[None]] = {}
        self._strangers = 0
        self._group: asyncio.TaskGroup | None = None

    def proceed(self) -> None:
        """Something was stored, or what peers may have has changed: have every session look."""
        for session in self.sessions.values():
            session.wake()

    def dial(self, peers: Mapping[MeshId, Sequence[str]]) -> None:
        """Keep in touch with exactly these, at one of their addresses each, and with whoever dials us."""
        self._dialled = dict(peers)
        for peer in [one for one in self._dialling if one not in peers]:
            self._dialling.pop(peer).cancel()
        if self._group is None:
            return
        for peer in self._dialled:
            if peer not in self._dialling:
                self._dialling[peer] = self._group.create_task(self._keep(peer), name=f"dial {peer[:8]}")

    def drop(self, peer: MeshId) -> None:
        """End the session with a peer at once; it may come back if it is admitted."""
        if task := self._running.get(peer):
            task.cancel()

    async def run(self, listen: tuple[str, int] | None) -> None:
        """Work until cancelled. Raises MeshError when the address where we are to listen cannot be had."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            self._group = group
            if listen is not None:
                try:
                    self.port = await stack.enter_async_context(listening(*listen, self._taken))
                except OSError as error:
                    raise MeshError(
                        f"links cannot listen on {listen[0]}:{listen[1]}: {error.strerror}; choose another port"
                    ) from error
            self.dial(self._dialled)
            self.ready.set()
            await asyncio.get_running_loop().create_future()

    async def _taken(self, wire: SocketWire) -> None:
        """Somebody dialled us."""
        if self._strangers >= MAX_STRANGERS:
            await wire.close()
            return
        self._strangers += 1
        try:
            sealed, proved = await answer(wire, self._who, self._admit)
            if proved.secret:
                await self._greet(sealed, proved)
                await wire.close()
                return
        except (NotAdmitted, WireBroken, BadMessage) as error:
            log.info("somebody is not let in", reason=plain(str(error)))
            await wire.close()
            return
        finally:
            self._strangers -= 1
        await self._talk(sealed, proved)

    async def _keep(self, peer: MeshId) -> None:
        """Dial a peer whenever there is no session with it."""
        wait_s = AGAIN_S[0]
        while True:
            if peer in self._running:
                await asyncio.wait([self._running[peer]])
                wait_s = AGAIN_S[0]
            elif await self._reach(peer):
                wait_s = AGAIN_S[0]
            else:
                await asyncio.sleep(wait_s * random.uniform(0.75, 1.0))
                wait_s = min(2 * wait_s, AGAIN_S[1])

    async def _reach(self, peer: MeshId) -> bool:
        """Try the addresses of a peer in turn; returns whether there was a session, which is over then."""
        for address in self._dialled.get(peer, ()):
            try:
                sealed, proved = await self._called(address, peer)
            except (NotAdmitted, WireBroken) as error:
                log.debug("a peer is not reached", peer=peer[:8], reason=plain(str(error)))
                continue
            await self._talk(sealed, proved)
            return True
        return False

    async def _called(self, address: str, peer: MeshId) -> tuple[Sealed, Proved]:
        """Dial a peer. Raises NotAdmitted, WireBroken."""
        wire = await dial(address)
        try:
            sealed, proved = await call(wire, self._who, peer)
        except BaseException:
            await wire.close()
            raise
        if reason := self._admit(proved):
            await wire.close()
            raise NotAdmitted(reason)
        return sealed, proved

    async def _talk(self, wire: Wire | Sealed, proved: Proved) -> None:
        """One session, to its end. A newer one takes the place of an older one, whose wire may be dead already."""
        peer = proved.mesh
        if before := self._running.get(peer):
            before.cancel()
            await asyncio.wait([before])
        task = asyncio.current_task()
        if task is None or self._group is None:
            return
        prove(self._ground, proved.certificate)
        session = Session(peer, wire, self._ground)
        running = self._group.create_task(self._run(session), name=f"link {peer[:8]}")
        self._running[peer], self.sessions[peer] = running, session
        log.info("a link is up", peer=peer[:8])
        try:
            await asyncio.wait([running])
        finally:
            running.cancel()
            if self._running.get(peer) is running:
                del self._running[peer], self.sessions[peer]
            await wire.close()
        log.info("a link is down", peer=peer[:8])

    async def _run(self, session: Session) -> None:
        try:
            await session.run()
        except* (WireBroken, NotAdmitted) as errors:
            log.debug("a link broke", peer=session.peer[:8], reason=plain(str(errors.exceptions[0])))
        except* BadMessage as errors:
            log.warning("a peer speaks nonsense", peer=session.peer[:8], reason=plain(str(errors.exceptions[0])))


@asynccontextmanager
async def knocking(addresses: Sequence[str], who: Self, mesh: MeshId, secret: bytes) -> AsyncGenerator[Sealed]:
    """A wire to a node of `mesh` that was shown an invitation's secret. Raises WireBroken, NotAdmitted."""
    reason: MeshError = WireBroken("the invitation says no address to dial")
    for address in addresses:
        try:
            wire = await dial(address)
        except WireBroken as error:
            reason = error
            continue
        try:
            sealed, _ = await call(wire, who, mesh, secret)
            yield sealed
        finally:
            await wire.close()
        return
    raise reason
