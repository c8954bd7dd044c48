"""A durable consumer read by pipelined pulls: about seven times as fast as asking and waiting in turn.

Two requests for messages are always with the server, so it never waits for us; when one is used up the next is sent.
Every message tells its place in the stream and in the consumer. A hole in the second, silence, or a new connection
mean that something got lost on the way: then the consumer is set back behind the last acknowledgement and read anew,
and what this process has already seen is skipped.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog

from mesh.bus.base import MAX_BATCH, Stored
from mesh.bus.nats.jetstream import Answer, JetStream, Wire
from mesh.errors import BusUnavailable

PULL_S = 30.0  # a request for messages stays with the server so long
HEARTBEAT_S = 5.0  # an idle server says so often that it is still there
SILENCE_S = 12.0  # two heartbeats missed, and a little: ask anew
MAX_WAITING = 3 * MAX_BATCH  # messages that are here or on their way and not yet handed out
REOPEN_S = 0.2  # at least so long between two attempts to begin anew
ACK_FIELDS = 9  # $JS.ACK.<stream>.<consumer>.<times>.<stream seq>.<consumer seq>.<time>.<pending>
STATUS_HEARTBEAT = "100"

_log = structlog.get_logger()


class PullWire(Wire, Protocol):
    """What pulling needs of a connection, more than asking."""

    async def post(self, subject: str, data: bytes, reply: str = "") -> None:
        """Send and forget; dropped when the server is away."""
        ...

    async def listen(self, pattern: str, handler: Callable[[Answer], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Subscribe; returns what ends it."""
        ...

    async def connected(self) -> None:
        """Return once there is a connection. Raises BusUnavailable when there never will be."""
        ...

    def inbox(self) -> str:
        """A subject that nobody else uses."""
        ...


class _Feed:
    """One uninterrupted delivery: its inbox, the last place in the consumer, and how many messages are still owed."""

    def __init__(self) -> None:
        self.place = 0
        self.owed = 0
        self.end: Callable[[], Awaitable[None]] | None = None


class Pull:
    """The durable consumer `name`. See Consumer. Call `open` first."""

    def __init__(self, wire: PullWire, stream: JetStream, name: str, after: int) -> None:
        self._wire = wire
        self._stream = stream
        self._name = name
        self._after = after
        self._inbox = ""
        self._born = ""
        self._acked = 0
        self._seen = 0
        self._buffer: deque[Stored] = deque()
        self._receipts: deque[tuple[int, str]] = deque()  # (stream seq, where to acknowledge it)
        self._feed = _Feed()
        self._wake = asyncio.Event()
        self._heard = False
        self._broken = True
        self._closed = False
        self._opened_at = float("-inf")

    async def open(self) -> None:
        """Begin behind the last acknowledgement. Raises BusUnavailable, BusRefused."""
        await self._drop_feed()
        self._opened_at = asyncio.get_running_loop().time()
        born, newest = await self._stream.life()
        if self._born not in ("", born):  # another stream under the same name: what we knew is void
            self._acked = self._seen = self._after = 0
        self._born = born
        behind = await self._stream.rewind(self._name, self._acked, self._after if self._after <= newest else 0)
        self._acked = behind
        self._seen = max(self._seen, behind)
        self._receipts.clear()
        feed = self._feed = _Feed()
        self._inbox = self._wire.inbox()

        async def take(answer: Answer) -> None:
            if feed is self._feed:
                await self._take(feed, answer)

        feed.end = await self._wire.listen(self._inbox, take)
        self._broken = False
        await self._ask(0)

    async def batch(self) -> Sequence[Stored]:
        """See Consumer."""
        while not self._buffer:
            if self._closed:
                raise BusUnavailable(f"The consumer {self._name} is closed.")
            if self._broken:
                await self._reopen()
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(SILENCE_S):
                    await self._wake.wait()
            except TimeoutError:
                self._broken, self._heard = not self._heard, False
        count = min(len(self._buffer), MAX_BATCH)
        await self._ask(count)
        # Nothing is awaited from here on: a cancelled call has taken nothing.
        return [self._buffer.popleft() for _ in range(count)]

    async def ack(self, seq: int) -> None:
        """See Consumer."""
        self._acked = max(self._acked, min(seq, self._seen))
        receipt = ""
        while self._receipts and self._receipts[0][0] <= seq:
            receipt = self._receipts.popleft()[1]
        if receipt:
            await self._wire.post(receipt, b"+ACK")

    async def close(self) -> None:
        """See Consumer."""
        if not self._closed:
            self._closed = True
            self.interrupt()
            await self._drop_feed()

    def interrupt(self) -> None:
        """The connection was lost, or we are closing: what is on its way will not come."""
        self._broken = True
        self._wake.set()

    async def _reopen(self) -> None:
        pause = self._opened_at + REOPEN_S - asyncio.get_running_loop().time()
        if pause > 0:
            await asyncio.sleep(pause)
        await self._wire.connected()
        try:
            await self.open()
        except BusUnavailable as error:
            _log.debug("the consumer cannot be read yet", consumer=self._name, why=str(error))

    async def _drop_feed(self) -> None:
        feed, self._feed = self._feed, _Feed()
        if feed.end is not None:
            with contextlib.suppress(BusUnavailable):
                await feed.end()

    async def _take(self, feed: _Feed, answer: Answer) -> None:
        self._heard = True
        if answer.status:
            await self._note(feed, answer)
            return
        fields = answer.reply.split(".")
        if len(fields) != ACK_FIELDS or int(fields[6]) != feed.place + 1:
            self.interrupt()  # something was lost on the way
            return
        seq = int(fields[5])
        feed.place += 1
        feed.owed -= 1
        self._receipts.append((seq, answer.reply))
        if seq > self._seen:
            self._seen = seq
            self._buffer.append(Stored(seq, answer.subject, answer.data))
            self._wake.set()
        await self._ask(0)

    async def _note(self, feed: _Feed, answer: Answer) -> None:
        """A word of the server about one of our requests: it goes on, has ended, or cannot be served."""
        if answer.status == STATUS_HEARTBEAT:
            return
        unserved = answer.headers.get("Nats-Pending-Messages", "")
        if unserved.isdigit():
            feed.owed -= int(unserved)
            await self._ask(0)
        else:
            self.interrupt()

    async def _ask(self, taking: int) -> None:
        """Keep the server owing us between one and two batches, unless too much lies here unread."""
        feed = self._feed
        while feed.owed <= MAX_BATCH and len(self._buffer) - taking + feed.owed + MAX_BATCH <= MAX_WAITING:
            feed.owed += MAX_BATCH
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{self._name}"
            await self._wire.post(subject, self._stream.pull(PULL_S, HEARTBEAT_S), self._inbox)
