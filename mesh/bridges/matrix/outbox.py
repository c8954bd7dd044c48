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
from mesh.bridges.matrix.errors import MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.rows import Outcome, Outgoing, Rows
from mesh.clock import Clock
from mesh.store import Store
from mesh.words import plain

PRIMARY: Final = ""  # the account that speaks for everybody who has none of their own
ROOMS_AT_ONCE: Final = 16  # requests of an account on their way: one a room; more only queue inside the homeserver
SOON_S: Final = 10.0  # an account that is told to wait so long at most is waited for by the others of its rooms
BACKOFF_S: Final = (0.5, 15.0)  # first and longest wait after a failure, doubling between: people wait when it is back
MAX_RETRY_AFTER_S: Final = 600.0  # the longest that a homeserver's `retry_after_ms` is believed

TAKEN_BACK: Final = "it was taken back before it was sent"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pending:
    """An event that waits. `in_flight`: the homeserver may have it already, so that only a redaction takes it back."""

    speaker: str
    key: str
    room: str
    in_flight: bool


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
        self._store, self._rows, self._on_done = store, Rows(store, clock), on_done
        self._senders = dict[str, _Sender]()
        self.serve(PRIMARY, deliver)
        self._wake = asyncio.Event()
        self._busy = set[tuple[str, str]]()  # accounts in rooms
        self._moves = dict[str, asyncio.Event]()  # of rooms where somebody waits for another account
        self._ended: dict[tuple[str, str], asyncio.Event] = {}
        self._tried = self._rows.heads()  # what the homeserver may have: an earlier run could have sent these

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
        return self._rows.put(account, speaker, room, kind, content, key)

    def wake(self) -> None:
        """Say that a transaction with `put` in it has committed."""
        self._wake.set()

    def waiting(self, account: str | None = None) -> int:
        """How many events are neither sent nor given up; of all accounts, or of one."""
        return self._rows.waiting(account)

    def is_busy(self, room: str) -> bool:
        """Whether anything waits to be sent in a room."""
        return self._rows.is_busy(room)

    def pending(self, prefix: str) -> list[Pending]:
        """What waits under keys that begin with `prefix`, of any speaker, in order."""
        rows = self._rows.beginning(prefix)
        return [Pending(row.speaker, row.key, row.room, row.n in self._tried) for row in rows]

    def cancel(self, speaker: str, key: str) -> bool:
        """Take back an event that waits, within a transaction; returns whether it is certain that nobody ever sees it.

        False: it is not waiting, or the homeserver may have it already. Then put a redaction of `later(speaker, key)`,
        which goes after it. What is taken back is not reported to `on_done`; what refers to it is as if it was refused.
        """
        row = self._rows.find(speaker, key)
        return row is not None and self._cancel(row)

    def cancel_prefix(self, prefix: str) -> list[Pending]:
        """`cancel` all that waits under keys that begin with `prefix`; returns what the homeserver may have already."""
        rows = self._rows.beginning(prefix)
        return [Pending(row.speaker, row.key, row.room, in_flight=True) for row in rows if not self._cancel(row)]

    def _cancel(self, row: Outgoing) -> bool:
        if row.n in self._tried:
            return False
        self._rows.end(row, None, TAKEN_BACK)
        self._tell(row)  # whoever is told looks after the transaction, and then at what it left
        return True

    def outcome(self, speaker: str, key: str) -> Outcome | None:
        """How an event ended; None while it waits, or when it was never put."""
        return self._rows.outcome(speaker, key)

    async def wait(self, speaker: str, key: str) -> Outcome:
        """Wait until an event that was put is sent or given up. Cancelling it changes nothing.

        Raises MatrixLoggedOut when the login of its account is void: it is kept, and sent after a new login.
        """
        while (outcome := self.outcome(speaker, key)) is None:
            waiting = self._rows.find(speaker, key)
            sender = self._senders.get(waiting.account) if waiting else None
            if sender and sender.rests:
                raise MatrixLoggedOut("the account that this is for is logged out; log in again (mesh matrix)")
            await self._ended.setdefault((speaker, key), asyncio.Event()).wait()
        return outcome

    async def run(self) -> None:
        """Send for ever. Raises MatrixLoggedOut (within an ExceptionGroup): nothing is lost."""
        self._busy.clear()
        await self._give_up_strays()
        async with asyncio.TaskGroup() as group:
            while True:
                self._wake.clear()
                for account, room in self._rows.lanes():
                    if (account, room) not in self._busy and not self._rests(account):
                        self._busy.add((account, room))
                        group.create_task(self._drain(account, room), name=f"matrix room {room}")
                await self._wake.wait()

    async def _give_up_strays(self) -> None:
        """Give up what waits for accounts that are not used any more."""
        reason = "the account of its own that would have said it is not used any more"
        for account in self._rows.accounts():
            while account not in self._senders and (rows := self._rows.some_of(account)):
                with self._store.transaction():
                    for row in rows:
                        self._note(row, Outcome(row.speaker, row.key, None, reason))
                for row in rows:
                    self._tell(row)
                await asyncio.sleep(0)  # others have their turn between two pages

    async def _drain(self, account: str, room: str) -> None:
        """Send what waits for one account in one room, one after the other."""
        while not self._rests(account) and (row := self._rows.first(account, room)):
            while self._must_wait(row):
                await self._moves.setdefault(room, asyncio.Event()).wait()
            if outcome := await self._send(row):
                self._record(row, outcome)
        self._busy.discard((account, room))

    def _rests(self, account: str) -> bool:
        sender = self._senders.get(account)
        return sender is None or sender.rests

    def _must_wait(self, row: Outgoing) -> bool:
        """Whether another account is to send before: what stands before in the room, or what the row refers to."""
        if len(self._senders) == 1 or self._senders[row.account].rests:
            return False
        before = self._rows.others_before(row)
        others = [self._senders[account] for account in before if account in self._senders]
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
            other = self._rows.find(speaker, key)
            awaited = awaited or (other is not None and other.n < row.n and not self._rests(other.account))
            return None

        return resolve(json.loads(row.content), lookup) is None and awaited

    async def _send(self, row: Outgoing) -> Outcome | None:
        """Try until it is sent or refused for good.

        None when it was taken back meanwhile, or when the account's login is void, and others go on.
        """
        sender, wait_s, told = self._senders[row.account], BACKOFF_S[0], ""
        while not sender.rests:
            try:
                async with sender.slots:
                    if not self._rows.is_waiting(row.n):
                        return None
                    event_id = await self._try(sender, row)
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
                if (reason := plain(str(error))) != told:
                    log.info("an event for Matrix waits, and is sent when it can be", reason=reason)
                told = reason
            if not 0 < asked <= SOON_S and not sender.stuck:
                sender.stuck = True
                self._stir()
            await asyncio.sleep(
                asked or wait_s * random.uniform(0.75, 1.0)
            )  # apart, so that rooms do not return at once
            wait_s = min(2 * wait_s, BACKOFF_S[1])
        return None

    async def _try(self, sender: _Sender, row: Outgoing) -> str:
        """One attempt, which notes whether the homeserver may have the event from now on."""
        before = row.n in self._tried
        self._tried.add(row.n)
        try:
            return await sender.deliver(row)
        except MatrixUnavailable as error:
            if error.unsent and not before:
                self._tried.discard(row.n)
            raise

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
            self._note(row, outcome)
        self._tell(row)

    def _note(self, row: Outgoing, outcome: Outcome) -> None:
        """Note how a row ended, and report it, within a transaction."""
        self._rows.end(row, outcome.event_id, outcome.reason)
        if self._on_done:
            self._on_done(outcome)

    def _tell(self, row: Outgoing) -> None:
        """Have everybody look again who waits for a row's end."""
        self._tried.discard(row.n)
        self._move(row.room)
        if ended := self._ended.pop((row.speaker, row.key), None):
            ended.set()
