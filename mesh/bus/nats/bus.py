"""The bus over NATS."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
from nats.aio.msg import Msg

from mesh.bus.base import Handler, Message, Stored, check_durable, check_size, check_subject
from mesh.bus.nats.jetstream import NO_RESPONDERS, JetStream
from mesh.bus.nats.pull import Pull
from mesh.bus.nats.wire import INBOX, Interest, ServerWire
from mesh.errors import BusFull, BusRefused, BusUnavailable

SLOW_BYTES = 64 * 1024 * 1024  # waiting for one handler; beyond, live messages are dropped (stored ones can be read)

_log = structlog.get_logger()


class _Listener:
    """A handler and the subscription that feeds it."""

    def __init__(self, wire: ServerWire, pattern: str, handler: Handler) -> None:
        self._wire = wire
        self._pattern = pattern
        self._handler = handler
        self._interest: Interest | None = None
        self._busy = asyncio.Lock()
        self._task: asyncio.Task[object] | None = None
        self._closed = False

    async def open(self) -> None:
        self._interest = await self._wire.subscribe(self._pattern, self._take, limit=SLOW_BYTES)
        try:
            await self._wire.flush(self._pattern)
        except BaseException:
            await self._interest.end()
            raise

    async def _take(self, msg: Msg) -> None:
        if self._closed:
            return
        async with self._busy:
            self._task = asyncio.current_task()
            # The server lets anybody name any subject as the place for an answer, its own API included. Whoever answers
            # there does it with *our* permissions, so answers go to inboxes and nowhere else.
            reply = msg.reply if _is_inbox(msg.reply) else None
            try:
                await self._handler(Message(msg.subject, msg.data, reply))
            except Exception as error:  # noqa: BLE001 - a handler's fault must not end the subscription
                _log.error("a handler failed", pattern=self._pattern, error=repr(error))
        if self._closed and self._interest is not None:
            await self._interest.end()

    async def close(self) -> None:
        """End it, after the message in hand. A handler may close its own subscription."""
        if self._closed or self._interest is None:
            return
        self._closed = True
        if self._task is asyncio.current_task() and self._busy.locked():
            return
        async with self._busy:
            await self._interest.end()


def _is_inbox(subject: str) -> bool:
    """Whether an answer may go there: a place of somebody's own, and nothing with wildcards or empty tokens."""
    first, *rest = subject.split(".")
    return first == INBOX and bool(rest) and all(token and token not in {"*", ">"} for token in rest)


class NatsBus:
    """See Bus. Made by `connect`."""

    def __init__(self, wire: ServerWire, stream: JetStream, storage_full: Callable[[], bool] | None) -> None:
        self._wire = wire
        self._stream = stream
        self._storage_full = storage_full

    @classmethod
    async def connect(  # noqa: PLR0913 - each is one independent fact about the server
        cls,
        url: str,
        *,
        nkey_seed: str | None = None,
        credentials: Path | None = None,
        stream: str = "MESH",
        manage_stream: bool = True,
        name: str = "ampmesh",
        storage_full: Callable[[], bool] | None = None,
        echo: bool = True,
    ) -> "NatsBus":
        """Connect to the server(s) at `url` (several with commas), as the user of an nkey or a credentials file.

        With `manage_stream` the stream is made and kept as this project needs it, on a server of our own; else somebody
        else has made it. `storage_full` tells whether the server's disk is full, where we can know: a full
        nats-server does not answer at all. Without `echo` subscriptions bring only what others publish, and the stream
        everything. Raises BusUnavailable after CONNECT_S, BusRefused.
        """
        wire = ServerWire(url)
        try:
            await wire.open(name, nkey_seed, credentials, echo=echo)
            jetstream = JetStream(wire, stream, manage=manage_stream)
            await jetstream.ensure()
        except BaseException:
            await wire.close()
            raise
        return cls(wire, jetstream, storage_full)

    async def publish(self, subject: str, data: bytes, msg_id: str) -> int:
        """See Bus. Many may be under way at once; a cancelled one may have been stored."""
        check_durable(subject, data, msg_id)
        try:
            return await self._stream.store(subject, data, msg_id)
        except BusUnavailable as error:
            if self._storage_full is not None and self._storage_full():
                raise BusFull("The disk of the bus server is full; make room on it.") from error
            raise

    async def send(self, subject: str, data: bytes) -> None:
        """See Bus."""
        check_subject(subject)
        check_size(subject, data)
        await self._wire.post(subject, data)

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """See Bus."""
        check_subject(subject)
        check_size(subject, data)
        answer = await self._wire.ask(subject, data, timeout_s)
        if answer.status == NO_RESPONDERS:
            raise BusRefused(f"Nobody answers on {subject}.")
        return answer.data

    async def subscribe(self, pattern: str, handler: Handler) -> _Listener:
        """See Bus. `Message.reply` is None unless it is an inbox."""
        check_subject(pattern, pattern=True)
        await self._wire.connected()
        listener = _Listener(self._wire, pattern, handler)
        await listener.open()
        return listener

    async def consume(self, name: str, after: int) -> Pull:
        """See Bus."""
        check_subject(name.replace(".", " "))  # a name is one token
        await self._wire.connected()
        pull = Pull(self._wire, self._stream, name, after)
        await pull.open()
        self._wire.pulls.add(pull)
        return pull

    async def read(self, first: int, last: int) -> Sequence[Stored]:
        """See Bus."""
        return await self._stream.read(first, last)

    async def last(self, subject: str) -> Stored | None:
        """See Bus."""
        check_subject(subject)
        return await self._stream.last(subject)

    async def last_seq(self) -> int:
        """See Bus."""
        return await self._stream.last_seq()

    async def erase(self, seq: int) -> None:
        """See Bus."""
        await self._stream.erase(seq)

    async def close(self) -> None:
        """See Bus."""
        if not self._wire.closing:
            for pull in list(self._wire.pulls):
                await pull.close()
            await self._wire.close()
