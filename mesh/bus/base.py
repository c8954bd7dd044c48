"""What the rest of the house may ask of a bus."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

from mesh.errors import BusRefused

MAX_BATCH = 500  # messages a consumer gives at once: one transaction of the reader, some ten milliseconds of work
MAX_UNACKED = 2_000  # messages a consumer gives before it waits for an ack: what a crash makes it read again
MAX_READ = 5_000  # messages one `read` gives: at most a few megabytes of ordinary frames
MAX_MESSAGE = 1024 * 1024 - 4096  # bytes of data: the server's 1 MiB counts headers, and it hangs up on more
MAX_SUBJECT = 255  # characters: far above any address, far below the server's line limit
MAX_MSG_ID = 128  # characters: `b2:` and 64 hex digits are 67
DURABLE = "b."  # what is stored begins so

Handler = Callable[["Message"], Awaitable[None]]


class Message(NamedTuple):
    """One message that is not stored. `reply` is where an answer is awaited, or None."""

    subject: str
    data: bytes
    reply: str | None


class Stored(NamedTuple):
    """One message of the durable stream. `seq` is its place in the stream, from 1, without order between streams."""

    seq: int
    subject: str
    data: bytes


class Subscription(Protocol):
    """A live interest in a subject."""

    async def close(self) -> None:
        """End it. What was already handed to the handler is finished first."""
        ...


class Consumer(Protocol):
    """A durable reader of the stream. One task reads it, and nobody else reads one of the same name meanwhile."""

    async def batch(self) -> Sequence[Stored]:
        """Wait until at least one message is there; give all that are, in stream order, at most `MAX_BATCH`.

        Survives a server that goes away and comes back: it waits. Cancelling loses nothing: what was not returned is
        returned by the next call. Messages may come twice after a reconnection; the caller keeps its own cursor.
        After MAX_UNACKED messages without an ack it gives no more. Raises BusUnavailable once the consumer is closed.
        """
        ...

    async def ack(self, seq: int) -> None:
        """Say that everything up to and including `seq` is safely handled. Lost acks only mean redelivery."""
        ...

    async def close(self) -> None:
        """Stop reading. The durable cursor stays on the server."""
        ...


class Bus(Protocol):
    """A message bus with one durable stream (subjects `b.>`) and ephemeral subjects (all others)."""

    async def publish(self, subject: str, data: bytes, msg_id: str) -> int:
        """Store a message durably; returns its stream sequence once the server has acknowledged it.

        The same `msg_id` within the deduplication window is stored once (the first sequence is returned again).
        Raises BusUnavailable (try again with the same id), BusFull, BusRefused.
        """
        ...

    async def send(self, subject: str, data: bytes) -> None:
        """Send without storing. Lost when nobody listens or the server is away; never raises for that."""
        ...

    async def request(self, subject: str, data: bytes, timeout_s: float) -> bytes:
        """Send and wait for one answer. Raises BusUnavailable on timeout, BusRefused when nobody serves the subject."""
        ...

    async def subscribe(self, pattern: str, handler: Handler) -> Subscription:
        """Call `handler` for each live message (stored ones too) whose subject matches (`*` one token, `>` the rest).

        One at a time, in order. A handler that raises is logged and the subscription goes on. Flushed: when this
        returns, the server knows of the interest.
        """
        ...

    async def consume(self, name: str, after: int) -> Consumer:
        """Open the durable consumer `name` over the whole stream, made at first use to begin behind sequence `after`.

        What it gave earlier and was never acked is given again, at once. When the stream ends before `after`, it is
        not the one that the caller knew, and reading begins at its start.
        """
        ...

    async def read(self, first: int, last: int) -> Sequence[Stored]:
        """Stored messages with first <= seq <= last, in order; those that are gone are left out. At most MAX_READ."""
        ...

    async def last(self, subject: str) -> Stored | None:
        """The newest stored message on exactly this subject, or None."""
        ...

    async def last_seq(self) -> int:
        """The stream's newest sequence; 0 when it is empty."""
        ...

    async def erase(self, seq: int) -> None:
        """Take one message out of the stream for good: its bytes are overwritten where the server keeps them.

        It is gone for everybody, also for consumers that have not read it yet; its sequence is not given again. A
        message that is gone already is no error. Raises BusUnavailable (try again), BusRefused.
        """
        ...

    async def close(self) -> None:
        """Flush, drain and disconnect. Idempotent."""
        ...


def check_subject(subject: str, *, pattern: bool = False) -> None:
    """Refuse what is not a subject: empty tokens, blanks, control characters, wildcards (unless `pattern`).

    Raises BusRefused. Whoever composed a subject from words of others learns of it here, before it is on a wire.
    """
    tokens = subject.split(".")
    good = len(subject) <= MAX_SUBJECT and all(
        token and token.isprintable() and not any(c.isspace() for c in token) for token in tokens
    )
    wild = any("*" in token or ">" in token for token in tokens)
    if pattern and wild:
        wild = ">" in tokens[:-1] or any(len(token) > 1 and ("*" in token or ">" in token) for token in tokens)
    if not good or wild:
        raise BusRefused(f"{subject[:MAX_SUBJECT]!r} is not a {'pattern' if pattern else 'subject'} of the bus.")


def check_durable(subject: str, data: bytes, msg_id: str) -> None:
    """Refuse what cannot be stored. Raises BusRefused."""
    check_subject(subject)
    check_size(subject, data)
    if not subject.startswith(DURABLE):
        raise BusRefused(f"Only subjects under {DURABLE} are stored, and {subject!r} is not.")
    if not 0 < len(msg_id) <= MAX_MSG_ID or not (msg_id.isascii() and msg_id.isprintable()) or " " in msg_id:
        raise BusRefused(f"{msg_id[:MAX_MSG_ID]!r} is not a message id: 1 to {MAX_MSG_ID} visible ASCII characters.")


def check_size(subject: str, data: bytes) -> None:
    """Refuse what is too large for one message. Raises BusRefused."""
    if len(data) > MAX_MESSAGE:
        raise BusRefused(f"A message for {subject!r} has {len(data)} bytes; the bus takes {MAX_MESSAGE}.")
