"""Listening for other nodes over WebSockets, and, as a hub, for those who meet others here."""

import asyncio
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from mesh.door import Door, unheard
from mesh.links.hub import PIECE, Hub
from mesh.links.websocket.wires import CLOSE_S, MEET, PATH, SocketWire, received
from mesh.links.wire import MAX_SEALED, WireBroken

if TYPE_CHECKING:
    from aiohttp import web

MAX_CONNECTIONS: Final = 1_024  # at a time; more are turned away
SHUTDOWN_S: Final = 1.0
_SLOT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_ENDS: Final = {"call": True, "answer": False}

log = structlog.get_logger(__name__)

Taken = Callable[[SocketWire], Awaitable[None]]
Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


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
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, logger=unheard())
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
        except Exception as error:
            if not isinstance(error, ConnectionError):  # somebody has hung up
                log.exception("a connection could not be served")
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
        return await received(self._socket, idle_s)

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
