"""Wires over WebSockets: one node listens, the other dials. TLS is a proxy's, where there is some; the seal is ours."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from mesh.links.wire import MAX_MESSAGE, WireBroken

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse, web

PATH: Final = "/link"
CONNECT_S: Final = 10.0
MAX_SEALED: Final = MAX_MESSAGE + 1024  # bytes: the seal adds 17, a handshake its header
MAX_CONNECTIONS: Final = 1_024  # at a time; more are turned away
SHUTDOWN_S: Final = 1.0

Taken = Callable[["SocketWire"], Awaitable[None]]


class SocketWire:
    """One end of a WebSocket."""

    def __init__(
        self, socket: "ClientWebSocketResponse | web.WebSocketResponse", session: "ClientSession | None"
    ) -> None:
        self._socket, self._session = socket, session

    async def send(self, data: bytes) -> None:
        """Send one message; waits while the other end is slow. Raises WireBroken."""
        try:
            await self._socket.send_bytes(data)
        except (ConnectionError, RuntimeError) as error:
            raise WireBroken("the connection is gone") from error

    async def receive(self) -> bytes:
        """The next message. Raises WireBroken."""
        from aiohttp import WSMsgType

        try:
            message: Any = await self._socket.receive()
        except (ConnectionError, RuntimeError) as error:
            raise WireBroken("the connection is gone") from error
        if message.type is not WSMsgType.BINARY:
            raise WireBroken("the other end has hung up")
        return message.data

    async def close(self) -> None:
        """Hang up. Idempotent."""
        await self._socket.close()
        if self._session is not None:
            await self._session.close()


async def dial(url: str) -> SocketWire:
    """Connect to `ws://…` or `wss://…`. Raises WireBroken."""
    import aiohttp

    session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
    try:
        async with asyncio.timeout(CONNECT_S):
            socket = await session.ws_connect(url.rstrip("/") + PATH, max_msg_size=MAX_SEALED, compress=0)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        await session.close()
        raise WireBroken(f"nobody can be reached there: {type(error).__name__}") from error
    except BaseException:
        await session.close()
        raise
    return SocketWire(socket, session)


@asynccontextmanager
async def listening(host: str, port: int, taken: Taken) -> AsyncGenerator[int]:
    """Take connections while the block runs; gives the port. `taken` has a connection until it returns.

    Raises OSError when the address cannot be had.
    """
    from aiohttp import web

    places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def take(request: web.Request) -> web.StreamResponse:
        if places.locked():
            return web.Response(status=503)
        async with places:
            socket = web.WebSocketResponse(max_msg_size=MAX_SEALED, compress=False)
            await socket.prepare(request)
            await taken(SocketWire(socket, None))
        return socket

    app = web.Application(client_max_size=1024)
    app.router.add_get(PATH, take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
