"""The outbox: what is to be said in rooms, kept until the homeserver has it, in order per room, once each.

A row's transaction id and content are fixed when it is put and never change, so every attempt is the same request and
the homeserver recognises it. What cannot be sent now is tried again for ever; what can never be sent is given up, with
the reason.

A row belongs to the account that sends it. In a room all accounts keep one order as long as each can send: nobody
waits for an account whose homeserver is away or whose login is void.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from mesh.bridges.matrix.content import LATER, resolve
from mesh.bridges.matrix.errors import MatrixFull, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.payload import encode, transaction_id
from mesh.clock import Clock
from mesh.store import Store
from mesh.words import plain

PRIMARY: Final = ""  # the account that speaks for everybody who has none of their own
MAX_WAITING: Final = 20_000  # events of an account; more are refused, so that a dead homeserver cannot fill the disk
KEPT: Final = 50_000  # done rows that are remembered, so that the same key stays the same event
PRUNE_EVERY: Final = 1_000  # done rows between two prunings
ROOMS_AT_ONCE: Final = 16  # requests of an account on their way: one a room; more only queue inside the homeserver
SOON_S: Final = 10.0  # an account that is told to wait so long at most is waited for by the others of its rooms
BACKOFF_S: Final = (0.5, 60.0)  # first and longest wait after a failure, doubling between
MAX_RETRY_AFTER_S: Final = 600.0  # the longest that a homeserver's `retry_after_ms` is believed

MATRIX_OUTBOX: Final = """
    CREATE TABLE matrix_outbox (
        n INTEGER PRIMARY KEY, account TEXT NOT NULL, speaker TEXT NOT NULL, key TEXT NOT NULL, txn TEXT NOT NULL,
        room TEXT NOT NULL, kind TEXT NOT NULL, content TEXT, done_ms INTEGER, event_id TEXT, reason TEXT,
        UNIQUE (speaker, key)
    );
    CREATE INDEX matrix_waiting ON matrix_outbox (account, room, n) WHERE done_ms IS NULL;
    CREATE INDEX matrix_order ON matrix_outbox (room, n) WHERE done_ms IS NULL;
"""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One event to send. `content` is JSON text; `txn` is the transaction id of every attempt."""

    n: int
    account: str
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


@dataclass(slots=True)
class _Sender:
    """How an account sends. `stuck`: its homeserver is away; `rests`: its login is void, and its rows are left."""

    deliver: Deliver
    slots: asyncio.Semaphore
    on_void: Callable[[str], None] | None
    stuck: bool = False
    rests: bool = False


class Outbox:
    """Rows in, requests out. `on_done` is called within the transaction that notes an outcome."""

    def __init__(self, store: Store, clock: Clock, deliver: Deliver, on_done: Done | None = None) -> None:
        self._store, self._clock, self._on_done = store, clock, on_done
        self._senders = dict[str, _Sender]()
        self.serve(PRIMARY, deliver)
        self._wake = asyncio.Event()
        self._busy = set[tuple[str, str]]()  # accounts in rooms
        self._moves = dict[str, asyncio.Event]()  # of rooms where somebody waits for another account
        self._ended: dict[tuple[str, str], asyncio.Event] = {}
        self._since_pruning = 0

    def serve(self, account: str, deliver: Deliver, on_void: Callable[[str], None] | None = None) -> None:
        """Have an account's rows sent by `deliver`; call it before `run`.

        When its login turns out void, `on_void` is called once with the reason, its rows are left, and the others go
        on. Without `on_void` a void login ends `run`.
        """
        self._senders[account] = _Sender(deliver, asyncio.Semaphore(ROOMS_AT_ONCE), on_void)

    def rest(self, account: str) -> None:
        """Leave an account's rows until the next start, since its login is void. Whoever waits for them is told."""
        self._senders[account].rests = True
        self._stir()
        ended, self._ended = self._ended, {}
        for one in ended.values():
            one.set()

    def put(  # noqa: PLR0913 - an event has these parts
        self, speaker: str, room: str, kind: str, content: Mapping[str, Any], key: str, *, account: str = PRIMARY
    ) -> bool:
        """Keep an event, within a transaction; call `wake` after it. False: this key of this speaker is here already.

        Raises BadContent for what a homeserver would call no JSON, MatrixFull when too much waits.
        """
        if self.waiting(account) >= MAX_WAITING:
            raise MatrixFull(f"{MAX_WAITING} events wait for a homeserver that is away; nothing more is taken")
        row = (account, speaker, key, transaction_id(speaker, key), room, kind, encode(content))
        put = self._store.insert(
            "INSERT OR IGNORE INTO matrix_outbox (account, speaker, key, txn, room, kind, content) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        return put is not None

    def wake(self) -> None:
        """Say that a transaction with `put` in it has committed."""
        self._wake.set()

    def waiting(self, account: str | None = None) -> int:
        """How many events are neither sent nor given up; of all accounts, or of one."""
        whose, values = ("", ()) if account is None else (" AND account = ?", (account,))
        found = self._store.one(f"SELECT count(*) FROM matrix_outbox WHERE done_ms IS NULL{whose}", values)  # noqa: S608
        return int(found[0])

    def is_busy(self, room: str) -> bool:
        """Whether anything waits to be sent in a room."""
        return self._store.one("SELECT 1 FROM matrix_outbox WHERE room = ? AND done_ms IS NULL", (room,)) is not None

    def outcome(self, speaker: str, key: str) -> Outcome | None:
        """How an event ended; None while it waits, or when it was never put."""
        row = self._store.one(
            "SELECT event_id, reason FROM matrix_outbox WHERE speaker = ? AND key = ? AND done_ms IS NOT NULL",
            (speaker, key),
        )
        return Outcome(speaker, key, *row) if row else None

    async def wait(self, speaker: str, key: str) -> Outcome:
        """Wait until an event that was put is sent or given up. Cancelling it changes nothing.

        Raises MatrixLoggedOut when the login of its account is void: it is kept, and sent after a new login.
        """
        while (outcome := self.outcome(speaker, key)) is None:
            waiting = self._waiting_row(speaker, key)
            sender = self._senders.get(waiting[1]) if waiting else None
            if sender and sender.rests:
                raise MatrixLoggedOut("the account that this is for is logged out; log in again (mesh matrix)")
            await self._ended.setdefault((speaker, key), asyncio.Event()).wait()
        return outcome

    async def run(self) -> None:
        """Send for ever. Raises MatrixLoggedOut (within an ExceptionGroup): nothing is lost."""
        self._busy.clear()
        self._give_up_strays()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                lanes = "SELECT DISTINCT account, room FROM matrix_outbox WHERE done_ms IS NULL"
                for account, room in self._store.rows(lanes):
                    if (account, room) not in self._busy and not self._rests(account):
                        self._busy.add((account, room))
                        group.create_task(self._drain(account, room), name=f"matrix room {room}")
                await self._wake.wait()

    def _give_up_strays(self) -> None:
        """Give up what waits for accounts that are not used any more."""
        for (account,) in self._store.rows("SELECT DISTINCT account FROM matrix_outbox WHERE done_ms IS NULL"):
            while account not in self._senders and (row := self._first(account)):
                reason = "the account of its own that would have said it is not used any more"
                self._record(row, Outcome(row.speaker, row.key, None, reason))

    async def _drain(self, account: str, room: str) -> None:
        """Send what waits for one account in one room, one after the other."""
        while not self._rests(account) and (row := self._first(account, room)):
            while self._must_wait(row):
                await self._moves.setdefault(room, asyncio.Event()).wait()
            if outcome := await self._send(row):
                self._record(row, outcome)
        self._busy.discard((account, room))

    def _first(self, account: str, room: str | None = None) -> Outgoing | None:
        where, values = (" AND room = ?", (account, room)) if room else ("", (account,))
        row = self._store.one(
            "SELECT n, account, speaker, key, txn, room, kind, content FROM matrix_outbox "  # noqa: S608 - our words
            f"WHERE account = ? AND done_ms IS NULL{where} ORDER BY n LIMIT 1",
            values,
        )
        return Outgoing(*row) if row else None

    def _rests(self, account: str) -> bool:
        sender = self._senders.get(account)
        return sender is None or sender.rests

    def _must_wait(self, row: Outgoing) -> bool:
        """Whether another account is to send before: what stands before in the room, or what the row refers to."""
        if len(self._senders) == 1 or self._senders[row.account].rests:
            return False
        before = self._store.rows(
            "SELECT DISTINCT account FROM matrix_outbox WHERE room = ? AND n < ? AND done_ms IS NULL AND account <> ?",
            (row.room, row.n, row.account),
        )
        others = [self._senders[account] for (account,) in before if account in self._senders]
        return any(not (one.stuck or one.rests) for one in others) or self._refers_to_what_waits(row)

    def _refers_to_what_waits(self, row: Outgoing) -> bool:
        """Whether a row is nothing without an event that is still to be sent. A reply goes without its relation."""
        if LATER not in row.content:
            return False
        awaited = False

        def lookup(speaker: str, key: str) -> str | None:
            nonlocal awaited
            if outcome := self.outcome(speaker, key):
                return outcome.event_id
            waiting = self._waiting_row(speaker, key)
            awaited = awaited or (waiting is not None and waiting[0] < row.n and not self._rests(waiting[1]))
            return None

        return resolve(json.loads(row.content), lookup) is None and awaited

    def _waiting_row(self, speaker: str, key: str) -> tuple[int, str] | None:
        """Number and account of an event that waits."""
        row = self._store.one(
            "SELECT n, account FROM matrix_outbox WHERE speaker = ? AND key = ? AND done_ms IS NULL", (speaker, key)
        )
        return (row[0], row[1]) if row else None

    async def _send(self, row: Outgoing) -> Outcome | None:
        """Try until it is sent or refused for good; None when the account's login is void, and others go on."""
        sender, wait_s = self._senders[row.account], BACKOFF_S[0]
        while not sender.rests:
            try:
                async with sender.slots:
                    event_id = await sender.deliver(row)
                sender.stuck = False
                return Outcome(row.speaker, row.key, event_id, None)
            except MatrixRefused as error:
                sender.stuck = False
                log.warning("an event for Matrix was refused and is given up", code=error.code, status=error.status)
                return Outcome(row.speaker, row.key, None, plain(str(error)))
            except MatrixLoggedOut as error:
                self._void(row.account, sender, error)
                return None
            except MatrixUnavailable as error:
                asked = min(error.retry_after_s or 0.0, MAX_RETRY_AFTER_S)
                log.info("the homeserver is not available; what waits is kept", reason=plain(str(error)))
            if not 0 < asked <= SOON_S and not sender.stuck:
                sender.stuck = True
                self._stir()
            await asyncio.sleep(
                asked or wait_s * random.uniform(0.75, 1.0)
            )  # apart, so that rooms do not return at once
            wait_s = min(2 * wait_s, BACKOFF_S[1])
        return None

    def _void(self, account: str, sender: _Sender, error: MatrixLoggedOut) -> None:
        """An account's login is void: the others go on, if it is not the one that all depend on."""
        if sender.on_void is None:
            raise error
        if not sender.rests:
            self.rest(account)
            sender.on_void(plain(str(error)))

    def _stir(self) -> None:
        """Have everybody who waits for another account look again."""
        for room in list(self._moves):
            self._move(room)

    def _move(self, room: str) -> None:
        if moved := self._moves.pop(room, None):
            moved.set()

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
        self._move(row.room)
        if ended := self._ended.pop((row.speaker, row.key), None):
            ended.set()

    def _prune(self) -> None:
        self._since_pruning = 0
        self._store.execute(
            "DELETE FROM matrix_outbox WHERE done_ms IS NOT NULL AND n <= (SELECT max(n) FROM matrix_outbox) - ?",
            (KEPT,),
        )
