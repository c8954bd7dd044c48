"""A bus in memory: the same contract without a server, for tests and for nodes that need no durability.

Bounded like the real one: the oldest messages make room when `MAX_STORED` are there, a subscriber that lets more than
`MAX_WAITING` messages pile up misses the newest, and both say so in the log.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Self

import structlog

from mesh.bus.base import (
    MAX_BATCH,
    MAX_READ,
    MAX_UNACKED,
    Handler,
    Message,
    Stored,
    check_durable,
    check_size,
    check_subject,
)
from mesh.errors import BusRefused, BusUnavailable

MAX_STORED = 100_000  # messages: some tens of megabytes
MAX_IDS = 200_000  # message ids remembered for de-duplication: twice what is stored
MAX_WAITING = 65_536  # messages for one subscription

_log = structlog.get_logger()


def matches(pattern: str, subject: str) -> bool:
    """Whether `subject` falls under `pattern`: `*` is one token, a final `>` is one token or more."""
    want, have = pattern.split("."), subject.split(".")
    if want[-1] == ">":
        want, have = want[:-1], have[: len(want) - 1] if len(have) >= len(want) else []
        if not have and want:
            return False
    return len(want) == len(have) and all(w in ("*", h) for w, h in zip(want, have, strict=True))


class MemoryBroker:
    """What several `MemoryBus` connections share. Use it with `async with`: it owns the tasks that call handlers."""

    def __init__(self, max_stored: int = MAX_STORED) -> None:
        self.stored: OrderedDict[int, Stored] = OrderedDict()
        self.newest_seq = 0
        self.cursors: dict[str, int] = {}
        self.consumers: set[MemoryConsumer] = set()
        self.subscriptions: dict[MemorySubscription, None] = {}
        self.awaited: dict[str, asyncio.Future[bytes]] = {}
        self._max_stored = max_stored
        self._ids: OrderedDict[str, int] = OrderedDict()
        self._tasks = asyncio.TaskGroup()
        self._inboxes = 0

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for subscription in list(self.subscriptions):
            subscription.end()
        await self._tasks.__aexit__(None, None, None)

    def connect(self) -> "MemoryBus":
        """Another connection."""
        return MemoryBus(self)

    def store(self, subject: str, data: bytes, msg_id: str) -> int:
        """Store once by `msg_id`; returns the sequence. Oldest messages make room."""
        known = self._ids.get(msg_id)
        if known is not None:
            return known
        self.newest_seq += 1
        self._ids[msg_id] = self.newest_seq
        if len(self._ids) > MAX_IDS:
            self._ids.popitem(last=False)
        self.stored[self.newest_seq] = Stored(self.newest_seq, subject, data)
        if len(self.stored) > self._max_stored:
            self.stored.popitem(last=False)
        self.deliver(Message(subject, data, None))
        for consumer in self.consumers:
            consumer.wake()
        return self.newest_seq

    def forget(self, seq: int) -> None:
        """Remove one stored message, as a redaction does."""
        self.stored.pop(seq, None)

    def deliver(self, message: Message) -> bool:
        """Hand a live message to whoever listens; returns whether anybody does."""
        waiter = self.awaited.get(message.subject)
        if waiter is not None and not waiter.done():
            waiter.set_result(message.data)
        heard = [s for s in self.subscriptions if matches(s.pattern, message.subject)]
        for subscription in heard:
            subscription.put(message)
        return bool(heard)

    def listen(self, subscription: "MemorySubscription") -> None:
        """Begin to serve a subscription, in a task that this broker owns."""
        self.subscriptions[subscription] = None
        subscription.task = self._tasks.create_task(subscription.run(), name=f"memory bus {subscription.pattern}")

    def inbox(self) -> str:
        """A subject that nobody else uses."""
        self._inboxes += 1
        return f"_INBOX.memory.{self._inboxes}"


class MemorySubscription:
    """A live interest; its handler runs one message at a time."""

    def __init__(self, owner: "MemoryBus", broker: MemoryBroker, pattern: str, handler: Handler) -> None:
        self.owner = owner
        self.pattern = pattern
        self.task: asyncio.Task[None] | None = None
        self._broker = broker
        self._handler = handler
        self._waiting: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def put(self, message: Message) -> None:
        """Queue a message, or drop it when too many wait already."""
        if self._ended:
            return
        if len(self._waiting) >= MAX_WAITING:
            _log.warning("a subscriber is too slow and misses a message", pattern=self.pattern)
            return
        self._waiting.append(message)
        self._wake.set()

    async def run(self) -> None:
        """Call the handler for what comes, until the subscription ends."""
        while not self._ended:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            message = self._waiting.popleft()
            try:
                await self._handler(message)
            except Exception as error:  # noqa: BLE001 - a handler's fault must not end the subscription
                _log.error("a handler failed", pattern=self.pattern, error=repr(error))

    def end(self) -> None:
        """Stop before the next message."""
        self._ended = True
        self._broker.subscriptions.pop(self, None)
        self._wake.set()

    async def close(self) -> None:
        """End it, after the message in hand. A handler may close its own subscription."""
        self.end()
        if self.task is not None and self.task is not asyncio.current_task():
            await asyncio.wait([self.task])


class MemoryConsumer:
    """A durable reader; its cursor lives in the broker."""

    def __init__(self, owner: "MemoryBus", broker: MemoryBroker, name: str, after: int) -> None:
        self.owner = owner
        self._broker = broker
        self._name = name
        self._seen = broker.cursors.setdefault(name, after if after <= broker.newest_seq else 0)
        self._unacked: deque[int] = deque()
        self._wake = asyncio.Event()
        self._closed = False
        broker.consumers.add(self)

    def wake(self) -> None:
        """Something was stored."""
        self._wake.set()

    async def batch(self) -> Sequence[Stored]:
        """See Consumer."""
        while True:
            if self._closed:
                raise BusUnavailable(f"The consumer {self._name} is closed.")
            room = min(MAX_BATCH, MAX_UNACKED - len(self._unacked))
            found = _between(self._broker.stored, self._seen + 1, self._broker.newest_seq, room)
            if found:
                self._seen = found[-1].seq
                self._unacked.extend(message.seq for message in found)
                return found
            self._wake.clear()
            await self._wake.wait()

    async def ack(self, seq: int) -> None:
        """See Consumer."""
        while self._unacked and self._unacked[0] <= seq:
            self._broker.cursors[self._name] = self._unacked.popleft()
        self._wake.set()

    async def close(self) -> None:
        """See Consumer."""
        self._closed = True
        self._broker.consumers.discard(self)
        self._wake.set()


def _between(stored: OrderedDict[int, Stored], first: int, last: int, most: int) -> list[Stored]:
    oldest = next(iter(stored), last + 1)
    found: list[Stored] = []
    for seq in range(max(first, oldest), last + 1):
        if len(found) >= most:
            break
        if seq in stored:
            found.append(stored[seq])
    return found


class MemoryBus:
    """One connection to a MemoryBroker. See Bus."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise BusUnavailable("This connection to the bus is closed.")

    async def publish(self, subject: str, data: bytes, msg_id: str) -> int:
        """See Bus."""
        check_durable(subject, data, msg_id)
        self._check_open()
        return self._broker.store(subject, data, msg_id)

    async def send(self, subject: str, data: bytes) -> None:
        """See Bus."""
        check_subject(subject)
        check_size(subject, data)
        if not self._closed:
            self._broker.deliver(Message(subject, data, None))

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """See Bus."""
        check_subject(subject)
        check_size(subject, data)
        self._check_open()
        inbox = self._broker.inbox()
        answer = self._broker.awaited[inbox] = asyncio.get_running_loop().create_future()
        try:
            if not self._broker.deliver(Message(subject, data, inbox)):
                raise BusRefused(f"Nobody answers on {subject}.")
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise BusUnavailable(f"No answer on {subject} within {timeout_s:g} s.") from error
        finally:
            del self._broker.awaited[inbox]

    async def subscribe(self, pattern: str, handler: Handler) -> MemorySubscription:
        """See Bus."""
        check_subject(pattern, pattern=True)
        self._check_open()
        subscription = MemorySubscription(self, self._broker, pattern, handler)
        self._broker.listen(subscription)
        return subscription

    async def consume(self, name: str, after: int) -> MemoryConsumer:
        """See Bus."""
        self._check_open()
        return MemoryConsumer(self, self._broker, name, after)

    async def read(self, first: int, last: int) -> Sequence[Stored]:
        """See Bus."""
        self._check_open()
        return _between(self._broker.stored, first, min(last, self._broker.newest_seq), MAX_READ)

    async def last(self, subject: str) -> Stored | None:
        """See Bus."""
        check_subject(subject)
        self._check_open()
        return next((m for m in reversed(self._broker.stored.values()) if m.subject == subject), None)

    async def last_seq(self) -> int:
        """See Bus."""
        self._check_open()
        return self._broker.newest_seq

    async def erase(self, seq: int) -> None:
        """See Bus."""
        self._check_open()
        self._broker.forget(seq)

    async def close(self) -> None:
        """See Bus."""
        self._closed = True
        for opened in [*self._broker.consumers, *self._broker.subscriptions]:
            if opened.owner is self:
                await opened.close()
