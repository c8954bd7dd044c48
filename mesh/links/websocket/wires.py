"""Wires over WebSockets, whoever dialled: a whole one between two nodes, and one through a hub."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from mesh.links.hub import PIECE
from mesh.links.pieces import Joining, cut
from mesh.links.wire import BEAT_S, TooLong, WireBroken

if TYPE_CHECKING:
    from aiohttp import ClientSession, ClientWebSocketResponse, web

PATH: Final = "/link"
MEET: Final = "/meet/{slot}/{end}"
CLOSE_S: Final = 1.0  # for the other side to take leave


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
        return await received(self._socket, None)

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


async def received(socket: "ClientWebSocketResponse | web.WebSocketResponse", idle_s: float | None) -> bytes:
    """The next message of a WebSocket, within so many seconds, or whenever it comes. Raises WireBroken, TooLong."""
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
