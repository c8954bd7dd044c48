"""The inbox: every event once, whatever way and however often it comes, until it is handled.

Keyed by event id: homeservers repeat events, restart their transaction ids at 1, and serve gaps twice. What is read is
marked by the consumer, in the consumer's own transaction if it likes; a crash before that repeats the event. An event
that came sealed (encrypted, and nobody had the key) comes a second time when somebody brings it opened.
"""

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Self, TypeGuard, cast

from mesh.bridges.matrix.errors import MatrixFull
from mesh.clock import Clock
from mesh.store import Store

MAX_NEW: Final = 20_000  # events that wait; beyond it the homeserver is asked to wait, so that nothing is dropped
KEPT: Final = 100_000  # ids of handled events that are remembered, about 10 MB; what they said is forgotten at once
PRUNE_EVERY: Final = 1_000  # handled events between two prunings
PAGE: Final = 64  # events read from the database at once
MAX_ID: Final = 255  # bytes of an event, room or user id (Matrix specification, appendix "identifiers")
USER: Final = re.compile(r"@[^:]+:.+")  # nobody is taken for an em, whose names have no such form
MAX_AGE_MS: Final = 2**53  # timestamps are integers that JSON carries exactly
MAX_DEPTH: Final = 128  # objects in objects: Synapse takes no more, and others' could break whoever copies them
MAX_EVENT: Final = 512 * 1024  # characters of an event's content: 64 KiB by specification, escaped at worst

MATRIX_INBOX: Final = """
    CREATE TABLE matrix_inbox (
        n INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, way TEXT NOT NULL, event TEXT, handled_ms INTEGER,
        sealed INTEGER NOT NULL
    );
    CREATE INDEX matrix_new ON matrix_inbox (n) WHERE handled_ms IS NULL;
    CREATE TABLE matrix_cursors (account TEXT PRIMARY KEY, token TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE matrix_encrypted (room TEXT PRIMARY KEY) WITHOUT ROWID;
"""

SEALED: Final = "m.room.encrypted"  # the kind of an event that nobody opened yet
REDACTION: Final = "m.room.redaction"
SHUT: Final = 2  # as `sealed`, which is else 0 or 1: it came sealed, and is never taken opened

Way = Literal["appservice", "account"]


@dataclass(frozen=True, slots=True)
class Inbound:
    """An event as it came. `content` is any JSON object: read it with `reading`. `at_ms` is the sender's claim.

    `state_key` is None for what is no state; `redacts` is the event that a redaction takes back; `previous` is the
    content that a state had before, None when the homeserver did not say. `late`: it was kept sealed before, and is
    opened only now.
    """

    event_id: str
    room: str
    sender: str
    kind: str
    content: Mapping[str, Any]
    at_ms: int
    way: Way
    state_key: str | None = None
    redacts: str | None = None
    previous: Mapping[str, Any] | None = None
    late: bool = False


class Inbox:
    """`async for event in inbox`, then `inbox.mark(event)`. One consumer."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._page: deque[tuple[int, Inbound]] = deque()
        self._place = 0  # up to where this run has read
        self._given = 0  # and up to where it has given
        self._arrived = asyncio.Event()
        self._marked = 0
        self._ours: Callable[[str], bool] = lambda _user: False

    def leave_out(self, ours: Callable[[str], bool]) -> None:
        """Never take what users say of whom `ours` is true: several accounts of one node hear one another."""
        self._ours = ours

    def take(self, events: Iterable[Inbound], cursor: tuple[str, str] | None = None) -> int:
        """Keep what is new, and with it an account's place `(account, token)`; returns how many were new.

        Raises MatrixFull when too much waits: then nothing was taken. Raises StoreFailed.
        """
        events = list(events)
        gone = {(event.room, event.redacts) for event in events if event.kind == REDACTION}
        if self.waiting() >= MAX_NEW:
            raise MatrixFull(f"{MAX_NEW} events from Matrix wait to be handled; no more are taken until some are")
        with self._store.transaction():
            new = sum(self._insert(event, gone=gone) for event in events)
            if cursor:
                self._store.execute("INSERT OR REPLACE INTO matrix_cursors VALUES (?, ?)", cursor)
        if new:
            self._arrived.set()
        return new

    def _insert(self, event: Inbound, *, gone: Collection[tuple[str, str | None]]) -> bool:
        if event.kind == "m.room.encryption" and event.state_key == "":
            self._store.execute("INSERT OR IGNORE INTO matrix_encrypted VALUES (?)", (event.room,))
        if self._ours(event.sender):
            return False
        sealed = event.kind == SEALED
        if not sealed and self._store.execute(
            "UPDATE matrix_inbox SET n = (SELECT max(n) + 1 FROM matrix_inbox), way = ?, event = ?, handled_ms = NULL, "
            "sealed = 0 WHERE event_id = ? AND sealed = 1",
            (event.way, _dump(replace(event, late=True)), event.event_id),
        ):
            return True
        sql = "INSERT OR IGNORE INTO matrix_inbox (event_id, way, event, sealed) VALUES (?, ?, ?, ?)"
        state = SHUT if sealed and (event.room, event.event_id) in gone else int(sealed)
        return self._store.insert(sql, (event.event_id, event.way, _dump(event), state)) is not None

    def shut(self, event_id: str) -> None:
        """Never take a sealed event opened: somebody took it back."""
        with self._store.transaction():
            self._store.execute(
                "UPDATE matrix_inbox SET sealed = ? WHERE event_id = ? AND sealed = 1", (SHUT, event_id)
            )

    def knows(self, event: Inbound) -> bool:
        """Whether an event came before, as far as is remembered."""
        return self._store.one("SELECT 1 FROM matrix_inbox WHERE event_id = ?", (event.event_id,)) is not None

    def cursor(self, account: str) -> str | None:
        """Where an account's sync goes on; None before the first."""
        row = self._store.one("SELECT token FROM matrix_cursors WHERE account = ?", (account,))
        return row[0] if row else None

    def forget_cursor(self, account: str) -> None:
        """Begin anew: the homeserver does not know the place any more."""
        with self._store.transaction():
            self._store.execute("DELETE FROM matrix_cursors WHERE account = ?", (account,))

    def note_encrypted(self, rooms: Iterable[str]) -> None:
        """Remember for ever that rooms are encrypted: there is no way back."""
        with self._store.transaction():
            self._store.many("INSERT OR IGNORE INTO matrix_encrypted VALUES (?)", [(room,) for room in rooms])

    def forget_encrypted(self, room: str) -> None:
        """Forget that a room is encrypted where none of us ever sat: strangers may invite us into any number."""
        with self._store.transaction():
            self._store.execute("DELETE FROM matrix_encrypted WHERE room = ?", (room,))

    def is_encrypted(self, room: str) -> bool:
        """Whether a room is known to be encrypted."""
        return self._store.one("SELECT 1 FROM matrix_encrypted WHERE room = ?", (room,)) is not None

    def mark(self, event: Inbound) -> None:
        """Note an event as handled, and forget what it said. Call it within a transaction, once an event."""
        changed = self._store.execute(
            "UPDATE matrix_inbox SET handled_ms = ?, event = NULL "
            "WHERE event_id = ? AND (sealed > 0) = ? AND handled_ms IS NULL",
            (self._clock(), event.event_id, event.kind == SEALED),
        )
        self._marked += changed
        if self._marked >= PRUNE_EVERY:
            self._marked = 0
            self._store.execute(
                "DELETE FROM matrix_inbox WHERE handled_ms IS NOT NULL AND n <= (SELECT max(n) FROM matrix_inbox) - ?",
                (KEPT,),
            )

    def handled(self, event: Inbound) -> None:
        """`mark` in a transaction of its own."""
        with self._store.transaction():
            self.mark(event)

    def rewind(self) -> None:
        """Read again what was read and not handled: for a consumer that begins anew."""
        self._place = self._given = 0
        self._page.clear()

    def again(self, room: str, most: int) -> list[Inbound]:
        """The first events of a room that were given to the consumer and are not handled."""
        found, after = list[Inbound](), 0
        while len(found) < most:
            rows = self._store.rows(
                "SELECT n, way, event FROM matrix_inbox WHERE handled_ms IS NULL AND n > ? AND n <= ?"
                " AND instr(event, ?) ORDER BY n LIMIT ?",  # no JSON to SQLite: it may hold numbers that are none
                (after, self._given, json.dumps(room), most),
            )
            if not rows:
                break
            after = rows[-1][0]
            found += [event for _, way, text in rows if (event := _load(text, way)).room == room]
        return found[:most]

    def waiting(self) -> int:
        """How many events are not handled yet."""
        return int(self._store.one("SELECT count(*) FROM matrix_inbox WHERE handled_ms IS NULL")[0])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Inbound:
        """The next event that this run has not read. Cancelling it loses nothing."""
        while not self._page:
            self._arrived.clear()
            self._read()
            if not self._page:
                await self._arrived.wait()
        self._given, event = self._page.popleft()
        return event

    def _read(self) -> None:
        rows = self._store.rows(
            "SELECT n, way, event FROM matrix_inbox WHERE handled_ms IS NULL AND n > ? ORDER BY n LIMIT ?",
            (self._place, PAGE),
        )
        for n, way, event in rows:
            self._place = n
            self._page.append((n, _load(event, way)))


def parse_event(raw: object, way: Way, room: str | None = None) -> Inbound | None:
    """A JSON value from a homeserver as an event; None when it is none. Total: takes any JSON value.

    `room` is where it was served, for events that do not say so.
    """
    if not isinstance(raw, dict):
        return None
    event = cast("dict[str, Any]", raw)
    identity, sender, kind = event.get("event_id"), event.get("sender"), event.get("type")
    place, content = event.get("room_id", room), event.get("content")
    at, state = event.get("origin_server_ts"), event.get("state_key")
    if not (_is_id(identity) and _is_id(sender) and USER.fullmatch(sender) and _is_id(place) and _is_id(kind)) or (
        room and place != room
    ):
        return None
    if not isinstance(content, dict) or not (state is None or (isinstance(state, str) and _fits(state))):
        return None
    at_ms = at if type(at) is int and 0 <= at < MAX_AGE_MS else 0
    inside = cast("dict[str, Any]", content)
    redacts = inside.get("redacts", event.get("redacts")) if kind == REDACTION else None
    before = _previous(event) if state is not None else None
    found = Inbound(
        identity, place, sender, kind, inside, at_ms, way, state, redacts if _is_id(redacts) else None, before
    )
    try:
        if len(_dump(found)) > MAX_EVENT and before:
            found = replace(found, previous=None)
        text = _dump(found)
    except RecursionError:
        return None
    is_deep = text.count("[") + text.count("{") > MAX_DEPTH and not _is_shallow(found.content, found.previous)
    return None if is_deep or len(text) > MAX_EVENT else found


def _is_shallow(*values: object) -> bool:
    """Whether values are nested no deeper than MAX_DEPTH."""
    level: list[object] = list(values)
    for _ in range(MAX_DEPTH):
        level = [inside for value in level for inside in _inside(value)]
        if not level:
            return True
    return False


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return cast("dict[str, object]", value).values()
    return cast("list[object]", value) if isinstance(value, list) else ()


def _previous(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a state was before, as the homeserver says beside the event."""
    unsigned = event.get("unsigned")
    before = cast("dict[str, Any]", unsigned).get("prev_content") if isinstance(unsigned, dict) else None
    return cast("dict[str, Any]", before) if isinstance(before, dict) else None


def is_user(value: object) -> TypeGuard[str]:
    """Whether it could be the id of a user, and can be shown. Total."""
    return _is_id(value) and value.isprintable() and USER.fullmatch(value) is not None


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value != "" and _fits(value)


def _fits(value: str) -> bool:
    """Whether it is an identifier's length, and can be written as UTF-8 at all."""
    return len(value) <= MAX_ID and len(value.encode("utf-8", "surrogatepass")) <= MAX_ID and _is_unicode(value)


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _dump(event: Inbound) -> str:
    """JSON in ASCII, so that even half a surrogate pair comes through as it was."""
    fields = (
        event.event_id,
        event.room,
        event.sender,
        event.kind,
        event.content,
        event.at_ms,
        event.state_key,
        event.redacts,
        event.previous,
        event.late,
    )
    return json.dumps(fields, separators=(",", ":"))


def _load(text: str, way: Way) -> Inbound:
    identity, room, sender, kind, content, at_ms, *more = json.loads(text)
    return Inbound(identity, room, sender, kind, content, at_ms, way, *more)
