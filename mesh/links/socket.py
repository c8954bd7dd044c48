"""Wires over WebSockets: one node listens, the other dials; or both dial a hub, which joins them.

The seal of a link is ours and does not need TLS; where there is a certificate it is used.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mesh.links.channel import Self
from mesh.links.door import Door
from mesh.links.hub import CHALLENGE, MET, PIECE, PROVE, Hub
from mesh.links.pieces import Joining, cut
from mesh.links.proof import proof
from mesh.links.wire import BEAT_S, MAX_SEALED, TooLong, WireBroken
from protocol.reach import Reach, reach_of

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse, web
    from aiohttp.abc import AbstractResolver

PATH: Final = "/link"
MEET: Final = "/meet/{slot}/{end}"
CONNECT_S: Final = 10.0
PING_S: Final = 30.0  # between pings to a hub where one waits; routers forget a silent connection in minutes
MAX_CONNECTIONS: Final = 1_024  # at a time; more are turned away
SHUTDOWN_S: Final = 1.0
CLOSE_S: Final = 1.0  # for the other side to take leave
_SLOT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PROVE: Final = re.compile(rf"{PROVE}[0-9a-f]{{{2 * CHALLENGE}}}", re.ASCII)
_ENDS: Final = {"call": True, "answer": False}

Taken = Callable[["SocketWire"], Awaitable[None]]


class SocketWire:
    """One end of a WebSocket."""

    beat_s: float = BEAT_S

    def __init__(
        self,
        socket: "ClientWebSocketResponse | web.WebSocketResponse",
        session: "ClientSession | None",
        cut: Callable[[], None],
    ) -> None:
        """`cut` ends the connection whatever waits to be sent: whoever reads nothing would hold it open for ever."""
        self._socket, self._session, self._cut = socket, session, cut

    async def send(self, data: bytes) -> None:
        """Send one message; waits while the other end is slow. Raises WireBroken."""
        try:
            await self._socket.send_bytes(data)
        except (ConnectionError, RuntimeError) as error:
            raise WireBroken("the connection is gone") from error

    async def receive(self) -> bytes:
        """The next message. Raises WireBroken."""
        return await _received(self._socket, None)

    async def word(self) -> str:
        """What a hub says itself. Raises WireBroken."""
        from aiohttp import WSMsgType

        try:
            message: Any = await self._socket.receive()
        except (ConnectionError, RuntimeError) as error:
            raise WireBroken("the connection is gone") from error
        if message.type is not WSMsgType.TEXT:
            raise WireBroken("the hub has hung up, or is none")
        return str(message.data)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._socket.close()
        except asyncio.CancelledError:  # aiohttp says it to all who wait to send when one of them was cancelled
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise
        finally:
            self._cut()
            if self._session is not None:
                await self._session.close()


class MetWire:
    """A wire through a hub, which takes short pieces only."""

    beat_s: float = BEAT_S

    def __init__(self, socket: SocketWire) -> None:
        self._socket, self._joining, self._sending = socket, Joining(), asyncio.Lock()

    async def send(self, data: bytes) -> None:
        """Send one message; waits while the other end is slow. Raises WireBroken."""
        async with self._sending:  # no other message's pieces come between
            for piece in cut(data, PIECE):
                await self._socket.send(piece)

    async def receive(self) -> bytes:
        """The next message. Raises WireBroken."""
        while (whole := self._joining.add(await self._socket.receive())) is None:
            pass
        return whole

    async def close(self) -> None:
        """Hang up. Idempotent."""
        await self._socket.close()


class _HubEnd:
    """A connection to our hub."""

    def __init__(self, socket: "web.WebSocketResponse", request: "web.Request") -> None:
        self._socket, self._request = socket, request

    async def send(self, data: bytes) -> None:
        await self._said(self._socket.send_bytes(data))

    async def say(self, text: str) -> None:
        await self._said(self._socket.send_str(text))

    async def _said(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (ConnectionError, RuntimeError) as error:
            raise WireBroken("the connection is gone") from error

    async def receive(self, idle_s: float) -> bytes:
        return await _received(self._socket, idle_s)

    async def close(self) -> None:
        """Whoever does not take what waits for it does not take the farewell either."""
        transport = self._request.transport
        if transport is None:
            return
        if transport.get_write_buffer_size() == 0:
            with suppress(TimeoutError, ConnectionError, RuntimeError):
                async with asyncio.timeout(CLOSE_S):
                    await self._socket.close()
        _abort(self._request)


def _abort(request: "web.Request") -> None:
    if request.transport is not None:
        request.transport.abort()


async def _received(socket: "ClientWebSocketResponse | web.WebSocketResponse", idle_s: float | None) -> bytes:
    from aiohttp import WSCloseCode, WSMsgType

    try:
        message: Any = await socket.receive(idle_s)
    except TimeoutError:
        raise WireBroken("the other end has shown no sign of life") from None
    except (ConnectionError, RuntimeError) as error:
        raise WireBroken("the connection is gone") from error
    if message.type is WSMsgType.ERROR and getattr(message.data, "code", None) == WSCloseCode.MESSAGE_TOO_BIG:
        raise TooLong("the other end says more at once than any node does")
    if message.type is not WSMsgType.BINARY:
        raise WireBroken("the other end has hung up")
    return message.data


async def dial(url: str, trusted: ssl.SSLContext | None = None) -> SocketWire:
    """Connect to `ws://…` or `wss://…`; there a certificate must hold for the name, by the system's own authorities.

    `trusted` takes the place of these. Raises WireBroken.
    """
    return await _dial(url.rstrip("/") + PATH, MAX_SEALED, None, trusted)


async def meet(url: str, slot: str, who: Self, *, calls: bool, trusted: ssl.SSLContext | None = None) -> MetWire:
    """Dial a hub, and wait in a slot until the other end has come. Raises WireBroken.

    `who` is shown to a hub that asks; `calls`: we are the end that begins. Whether it is the other one who came, or
    anybody, is not known yet.
    """
    path = MEET.format(slot=slot, end="call" if calls else "answer")
    wire = await _dial(url.rstrip("/") + path, PIECE + 1, PING_S, trusted)
    try:
        await _met(wire, who, slot)
    except BaseException:
        await wire.close()
        raise
    return MetWire(wire)


async def _met(wire: SocketWire, who: Self, slot: str) -> None:
    """Wait until the other end has come; prove who we are where the hub asks, once. Raises WireBroken."""
    word = await wire.word()
    if _PROVE.fullmatch(word):
        await wire.send(proof(who, bytes.fromhex(word.removeprefix(PROVE)), slot))
        word = await wire.word()
    if word != MET:
        raise WireBroken("the hub says what no hub says")


def _why_not(error: Exception) -> str:
    """Why a connection was not made, for a person; what the other end says in its error is not passed on."""
    import aiohttp

    match error:
        case TimeoutError():
            return "no answer came in time"
        case aiohttp.ClientConnectorDNSError():
            return "that name is not known here"
        case aiohttp.ClientSSLError() | aiohttp.ClientConnectorCertificateError():
            return "its TLS certificate does not hold for that name, or it speaks no TLS"
        case aiohttp.WSServerHandshakeError():
            return "what answers there is no node or hub"
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, ConnectionRefusedError):
            return "nothing listens there"
        case _:
            return type(error).__name__


async def _dial(url: str, max_bytes: int, ping_s: float | None, trusted: ssl.SSLContext | None) -> SocketWire:
    import aiohttp

    sockets = list[socket.socket]()

    def opened(where: Any) -> socket.socket:  # noqa: ANN401 - as getaddrinfo gives it
        sockets.append(socket.socket(*where[:3]))
        return sockets[-1]

    connector = aiohttp.TCPConnector(resolver=_resolver(), socket_factory=opened)
    elsewhere = aiohttp.TraceConfig()
    elsewhere.on_request_redirect.append(_stay)
    session = aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, trace_configs=[elsewhere]
    )
    try:
        async with asyncio.timeout(CONNECT_S):
            connected = await session.ws_connect(
                url,
                max_msg_size=max_bytes,
                compress=0,
                heartbeat=ping_s,
                ssl=trusted or True,
            )
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        await session.close()
        raise WireBroken(f"nobody can be reached at {urlsplit(url).netloc}: {_why_not(error)}") from error
    except BaseException:
        await session.close()
        raise
    return SocketWire(connected, session, lambda: _shut(sockets))


async def _stay(*_: object) -> None:
    """Go nowhere else than where we dialled: whoever is there must not choose what of ours it is."""
    raise WireBroken("whoever is there sends us elsewhere")


def _shut(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        with suppress(OSError):  # it is closed already
            one.shutdown(socket.SHUT_RDWR)


def _resolver() -> "AbstractResolver":
    """Looks up names. One that leads anywhere must not lead to this machine: its owner would say what is dialled."""
    import aiohttp

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:  # noqa: ANN401 - aiohttp's
            found = await super().resolve(host, port, family)
            if reach_of(host) == Reach.FAR:
                found = [one for one in found if reach_of(one["host"]) != Reach.HOST]
            if not found:
                raise OSError(None, "the name leads to this machine")
            return found

    return Resolver()


@dataclass(frozen=True, slots=True)
class Desk:
    """What a listener does: have links `taken`, be a hub for others, show a certificate; None: it does not."""

    taken: Taken | None = None
    hub: Hub | None = None
    tls: ssl.SSLContext | None = None


@asynccontextmanager
async def listening(host: str, port: int, desk: Desk) -> AsyncGenerator[int]:
    """Take connections while the block runs; gives the port. Raises OSError when the address cannot be had."""
    from aiohttp import web

    door = Door(desk.tls)
    app = web.Application(client_max_size=1024, middlewares=[_pass_by()])
    if desk.taken is not None:
        app.router.add_get(PATH, _linking(desk.taken, door))
    if desk.hub is not None:
        app.router.add_get(MEET, _meeting(desk.hub, door))
        app.on_shutdown.append(lambda _app, hub=desk.hub: hub.close())
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        made: Any = runner.server
        async with door.open():
            server = await asyncio.get_running_loop().create_server(lambda: door.enter(made), host, port)
            try:
                yield int(server.sockets[0].getsockname()[1])
            finally:
                server.close()
    finally:
        await runner.cleanup()


Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


def _pass_by() -> Any:  # noqa: ANN401 - a middleware of aiohttp's
    """Whoever got an answer instead of a WebSocket is done: a connection that is kept for more would cost nothing."""
    from aiohttp import web

    @web.middleware
    async def pass_by(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            answer = await handler(request)
        except web.HTTPException as error:
            error.force_close()
            raise
        answer.force_close()
        return answer

    return pass_by


def _linking(taken: Taken, door: Door) -> Handler:
    from aiohttp import web

    places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def take(request: web.Request) -> web.StreamResponse:
        if places.locked():
            return web.Response(status=503)
        async with places:
            socket = web.WebSocketResponse(max_msg_size=MAX_SEALED, compress=False, timeout=CLOSE_S)
            await socket.prepare(request)
            door.passed(request.protocol)
            await taken(SocketWire(socket, None, lambda: _abort(request)))
        return socket

    return take


def _meeting(hub: Hub, door: Door) -> Handler:
    from aiohttp import web

    async def take(request: web.Request) -> web.StreamResponse:
        slot, calls = request.match_info["slot"], _ENDS.get(request.match_info["end"])
        if not _SLOT.fullmatch(slot) or calls is None:
            return web.Response(status=404)
        address = request.remote or ""
        if not hub.has_room(address):
            return web.Response(status=503)
        socket = web.WebSocketResponse(max_msg_size=PIECE + 1, compress=False, timeout=CLOSE_S)
        await socket.prepare(request)
        door.passed(request.protocol)
        await hub.serve(_HubEnd(socket, request), address, slot, calls)
        return socket

    return take
