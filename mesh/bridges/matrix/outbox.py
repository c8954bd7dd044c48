"""The outbox: what is to be said in rooms, kept until the homeserver has it, in order per room, once each.

A row's transaction id and content are fixed when it is put and never change, so every attempt is the same request and
the homeserver recognises it. What cannot be sent now is tried again for ever; what can never be sent is given up, with
the reason.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from mesh.bridges.matrix.errors import BadContent, MatrixFull, MatrixRefused, MatrixUnavailable
from mesh.clock import Clock
from mesh.store import Store
from mesh.words import plain

MAX_WAITING: Final = 20_000  # events; beyond it new ones are refused, so that a dead homeserver cannot fill the disk
KEPT: Final = 50_000  # done rows that are remembered, so that the same key stays the same event
PRUNE_EVERY: Final = 1_000  # done rows between two prunings
ROOMS_AT_ONCE: Final = 16  # requests on their way: one a room; more would only queue inside the homeserver
BACKOFF_S: Final = (0.5, 60.0)  # first and longest wait after a failure, doubling between
MAX_RETRY_AFTER_S: Final = 600.0  # the longest that a homeserver's `retry_after_ms` is believed
DIGEST_BYTES: Final = 16
MAX_INT: Final = 2**53 - 1  # Matrix's JSON has no larger integers, and no fractions

MATRIX_OUTBOX: Final = """
    CREATE TABLE matrix_outbox (
        n INTEGER PRIMARY KEY, speaker TEXT NOT NULL, key TEXT NOT NULL, txn TEXT NOT NULL, room TEXT NOT NULL,
        kind TEXT NOT NULL, content TEXT, done_ms INTEGER, event_id TEXT, reason TEXT, UNIQUE (speaker, key)
    );
    CREATE INDEX matrix_waiting ON matrix_outbox (room, n) WHERE done_ms IS NULL;
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One event to send. `content` is JSON text; `txn` is the transaction id of every attempt."""

    n: int
    speaker: str
    key: str
    txn: str
    room: str
    kind: str
    content: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: the event's id, or why it was given up."""

    speaker: str
    key: str
    event_id: str | None
    reason: str | None


Deliver = Callable[[Outgoing], Awaitable[str]]
Done = Callable[[Outcome], None]


class Outbox:
    """Rows in, requests out. `on_done` is called within the transaction that notes an outcome."""

    def __init__(self, store: Store, clock: Clock, deliver: Deliver, on_done: Done | None = None) -> None:
        self._store, self._clock, self._deliver, self._on_done = store, clock, deliver, on_done
        self._wake = asyncio.Event()
        self._busy: set[str] = set()
        self._slots = asyncio.Semaphore(ROOMS_AT_ONCE)
        self._ended: dict[tuple[str, str], asyncio.Event] = {}
        self._since_pruning = 0

    def put(self, speaker: str, room: str, kind: str, content: Mapping[str, Any], key: str) -> bool:
        """Keep an event, within a transaction; call `wake` after it. False: this key of this speaker is here already.

        Raises BadContent for what a homeserver would call no JSON, MatrixFull when too much waits.
        """
        if self.waiting() >= MAX_WAITING:
            raise MatrixFull(f"{MAX_WAITING} events wait for a homeserver that is away; nothing more is taken")
        row = (speaker, key, transaction_id(speaker, key), room, kind, encode(content))
        put = self._store.insert(
            "INSERT OR IGNORE INTO matrix_outbox (speaker, key, txn, room, kind, content) VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
        return put is not None

    def wake(self) -> None:
        """Say that a transaction with `put` in it has committed."""
        self._wake.set()

    def waiting(self) -> int:
        """How many events are neither sent nor given up."""
        return int(self._store.one("SELECT count(*) FROM matrix_outbox WHERE done_ms IS NULL")[0])

    def outcome(self, speaker: str, key: str) -> Outcome | None:
        """How an event ended; None while it waits, or when it was never put."""
        row = self._store.one(
            "SELECT event_id, reason FROM matrix_outbox WHERE speaker = ? AND key = ? AND done_ms IS NOT NULL",
            (speaker, key),
        )
        return Outcome(speaker, key, *row) if row else None

    async def wait(self, speaker: str, key: str) -> Outcome:
        """Wait until an event that was put is sent or given up. Cancelling it changes nothing."""
        ended = self._ended.setdefault((speaker, key), asyncio.Event())
        while (outcome := self.outcome(speaker, key)) is None:
            await ended.wait()
        return outcome

    async def run(self) -> None:
        """Send for ever. Raises MatrixLoggedOut (within an ExceptionGroup): nothing is lost."""
        self._busy.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for (room,) in self._store.rows("SELECT DISTINCT room FROM matrix_outbox WHERE done_ms IS NULL"):
                    if room not in self._busy:
                        self._busy.add(room)
                        group.create_task(self._drain(room), name=f"matrix room {room}")
                await self._wake.wait()

    async def _drain(self, room: str) -> None:
        """Send what waits for one room, one after the other."""
        while row := self._first(room):
            self._record(row, await self._send(row))
        self._busy.discard(room)

    def _first(self, room: str) -> Outgoing | None:
        row = self._store.one(
            "SELECT n, speaker, key, txn, room, kind, content FROM matrix_outbox "
            "WHERE room = ? AND done_ms IS NULL ORDER BY n LIMIT 1",
            (room,),
        )
        return Outgoing(*row) if row else None

    async def _send(self, row: Outgoing) -> Outcome:
        """Try until it is sent or refused for good."""
        wait_s = BACKOFF_S[0]
        while True:
            try:
                async with self._slots:
                    event_id = await self._deliver(row)
                return Outcome(row.speaker, row.key, event_id, None)
            except MatrixRefused as error:
                log.warning("an event for Matrix was refused and is given up", code=error.code, status=error.status)
                return Outcome(row.speaker, row.key, None, plain(str(error)))
            except MatrixUnavailable as error:
                asked = min(error.retry_after_s or 0.0, MAX_RETRY_AFTER_S)
                log.info("the homeserver is not available; what waits is kept", reason=plain(str(error)))
            await asyncio.sleep(
                asked or wait_s * random.uniform(0.75, 1.0)
            )  # apart, so that rooms do not return at once
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    def _record(self, row: Outgoing, outcome: Outcome) -> None:
        with self._store.transaction():
            self._store.execute(
                "UPDATE matrix_outbox SET done_ms = ?, content = NULL, event_id = ?, reason = ? WHERE n = ?",
                (self._clock(), outcome.event_id, outcome.reason, row.n),
            )
            if self._on_done:
                self._on_done(outcome)
            self._since_pruning += 1
            if self._since_pruning >= PRUNE_EVERY:
                self._prune()
        if ended := self._ended.pop((row.speaker, row.key), None):
            ended.set()

    def _prune(self) -> None:
        self._since_pruning = 0
        self._store.execute(
            "DELETE FROM matrix_outbox WHERE done_ms IS NOT NULL AND n <= (SELECT max(n) FROM matrix_outbox) - ?",
            (KEPT,),
        )


def transaction_id(speaker: str, key: str) -> str:
    """The transaction id of a speaker's key: the same for every attempt, another for every speaker.

    Homeservers keep one list of transaction ids for all users of an appservice: without the speaker in it, two ems
    with the same key would overwrite each other.
    """
    whole = hashlib.blake2b(f"{speaker}\0{key}".encode(), digest_size=DIGEST_BYTES).hexdigest()
    return f"{speaker}-{whole}"


def encode(content: Mapping[str, Any]) -> str:
    """Content as JSON text that a homeserver takes. Raises BadContent: fractions, long integers, half characters."""
    _check(content)
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadContent(f"this cannot be the content of a Matrix event: {plain(str(error))}") from error
    return text


def _check(content: Mapping[str, Any]) -> None:
    """Refuse numbers that Matrix's canonical JSON does not have."""
    left: list[Any] = [content]
    while left:
        value = left.pop()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) > MAX_INT):
            raise BadContent("Matrix has neither fractions nor integers beyond 2^53 in the content of events")
        if isinstance(value, Mapping):
            left.extend(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] - any JSON
        elif isinstance(value, list | tuple):
            left.extend(value)  # pyright: ignore[reportUnknownArgumentType] - any JSON
