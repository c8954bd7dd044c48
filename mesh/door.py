"""The door of whatever listens for strangers: connections that have asked for nothing are few, and have little time.

With TLS this begins before the handshake: whoever does not go on with it would cost a quarter of a megabyte for a
minute, any number of times.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import structlog

from mesh.words import plain

MAX_WAITING: Final = 256  # connections that have not asked for a link; the one that has waited longest makes room
ASK_S: Final = 10.0  # until a connection has asked for one: whoever holds it open has it for no longer

log = structlog.get_logger(__name__)


class Comer(Protocol):
    """A connection, as the one who serves it. `transport` is None when it is gone, or not there yet."""

    transport: Any  # not told apart: uvloop's are of a kind of their own


class Door:
    """All connections of one listener that wait. `tls` is shown to whoever comes; None: it is not spoken."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._waiting: dict[Comer, asyncio.TimerHandle] = {}
        self._agreeing: dict[Comer, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Take connections within the block; what it raises goes through as it is."""
        raised: Exception | None = None
        async with asyncio.TaskGroup() as self._group:
            try:
                yield
            except Exception as error:  # noqa: BLE001 - raised again below, where no group wraps it
                raised = error
            for one in list(self._waiting):
                self._end(one)
        if raised is not None:
            raise raised

    def enter(self, made: Callable[[], Any]) -> Any:  # noqa: ANN401 - a protocol of asyncio's, whichever it is
        """Somebody has come: gives who serves the connection, as `made` makes them; with TLS, when it is spoken."""
        if self._tls is not None:
            return _Agreeing(lambda one: self._agree(one, made))
        served = made()
        self._wait(served)
        return served

    def passed(self, one: Comer) -> None:
        """A connection has what it came for."""
        if timer := self._waiting.pop(one, None):
            timer.cancel()

    def _wait(self, one: Comer) -> None:
        if len(self._waiting) >= MAX_WAITING:
            self._end(next(iter(self._waiting)))
        self._waiting[one] = asyncio.get_running_loop().call_later(ASK_S, self._end, one)

    def _end(self, one: Comer) -> None:
        self.passed(one)
        if task := self._agreeing.get(one):
            task.cancel()  # uvloop's would wait for ever for who is not there any more
        if one.transport is not None:
            one.transport.abort()

    def _agree(self, one: "_Agreeing", made: Callable[[], Any]) -> None:
        """A connection is there whose TLS is not."""
        if self._group is None or self._tls is None:
            one.transport.abort()
            return
        self._wait(one)
        task = self._agreeing[one] = self._group.create_task(self._agreed(one, self._tls, made), name="tls")
        task.add_done_callback(lambda _: self._agreeing.pop(one))

    async def _agreed(self, one: "_Agreeing", tls: ssl.SSLContext, made: Callable[[], Any]) -> None:
        """Shake hands, and hand the connection on to who serves it."""
        raw: asyncio.Transport = one.transport
        if raw.is_closing():
            return
        loop = asyncio.get_running_loop()
        try:
            sealed = await loop.start_tls(raw, one, tls, server_side=True, ssl_handshake_timeout=ASK_S)
        except Exception as error:  # noqa: BLE001 - whatever a stranger says must not end the listener
            log.debug("somebody does not speak TLS", reason=plain(str(error)))
            raw.abort()
            return
        finally:
            self.passed(one)
        if sealed is None or one.is_over:
            raw.abort()
            return
        served = made()
        self._wait(served)
        sealed.set_protocol(served)
        served.connection_made(sealed)
        if one.early:
            served.data_received(bytes(one.early))


def unheard() -> logging.Logger:
    """A log that nobody reads: an HTTP server tells it of all that is no request, in the words of strangers."""
    log = logging.getLogger(f"{__name__}.requests")
    log.disabled = True
    return log


class _Agreeing(asyncio.Protocol):
    """A connection until TLS is spoken. `early` is what came with the end of the handshake."""

    def __init__(self, begin: Callable[["_Agreeing"], None]) -> None:
        self.transport: Any = None
        self.early, self.is_over = bytearray(), False
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._begin(self)

    def data_received(self, data: bytes) -> None:
        self.early += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        self.is_over = True
