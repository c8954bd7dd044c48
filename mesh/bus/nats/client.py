"""nats-py's client, with what this project needs to be otherwise."""

import asyncio
from typing import cast

from nats import errors
from nats.aio.client import Client

RECONNECT_S = 0.2  # between two attempts; an embedded server is back within 0.1 s
PERMISSIONS = "permissions violation"
PING = b"PING\r\n"


class BusClient(Client):
    """nats-py's client with five habits changed; each is tested from outside. It types its futures loosely."""

    _ended = False

    async def end(self) -> None:
        """Close for good; nats-py's attempts to reconnect may swallow their cancellation and go on for ever."""
        self._ended = True
        if self._current_server is not None:  # else it never began to connect
            await self.close()
        while (task := self._reconnection_task) is not None and not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=RECONNECT_S)

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002 - as nats-py calls it
        """Close also when the server goes just then; nats-py gives up half way, with an error of the socket's."""
        try:
            await super()._close(status, do_cbs)
        except OSError:
            self._status = Client.DISCONNECTED  # what was to be written is gone, so the second time goes through
            await super()._close(status, do_cbs)

    async def _select_next_server(self) -> None:
        if self._ended:
            raise errors.NoServersError
        await super()._select_next_server()

    async def _process_err(self, err_msg: str) -> None:
        """Come back after any error of the server; nats-py closes itself for good after most of them."""
        error = errors.Error(f"nats: {err_msg}")
        await self._error_cb(error)
        if PERMISSIONS not in err_msg:
            await self._process_op_err(error)

    async def _process_pong(self) -> None:
        """Survive a flush that was cancelled; nats-py ends its reading task over it."""
        waiting = cast("list[asyncio.Future[bool]]", self._pongs)  # pyright: ignore[reportUnknownMemberType]
        if waiting:
            future = waiting.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            if not future.done():
                future.set_result(True)

    async def _send_ping(self, future: "asyncio.Future[bool] | None" = None) -> None:
        """Send PING behind what waits to be sent; nats-py overtakes it, so that its flush proves nothing."""
        waiting = cast("list[asyncio.Future[bool]]", self._pongs)  # pyright: ignore[reportUnknownMemberType]
        waiting.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(PING)
        await self._flush_pending()
