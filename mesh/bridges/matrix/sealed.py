"""What is remembered of encrypted events: those that nobody could open yet, and the places that opened ones had.

It is in the node's database, for all ways in together: an event that one of them cannot open another one may.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Final

from mesh.bridges.matrix.inbox import Inbound
from mesh.store import Store

KEPT: Final = 10_000  # unopened events that are remembered; the oldest are forgotten
PAGE: Final = 100  # of these that are read at once
ASKED: Final = 100  # keys of a room that are asked for; whoever makes up more sessions makes us no work
REMEMBERED: Final = 100_000  # opened events whose place in their session is remembered, against repetition
PRUNE_EVERY: Final = 1_000  # opened events between two prunings

MATRIX_SEALED: Final = """
    CREATE TABLE matrix_sealed (
        n INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, room TEXT NOT NULL, session TEXT NOT NULL,
        event TEXT NOT NULL
    );
    CREATE INDEX matrix_sealed_session ON matrix_sealed (room, session);
    CREATE TABLE matrix_opened (
        n INTEGER PRIMARY KEY, session TEXT NOT NULL, number INTEGER NOT NULL, event_id TEXT NOT NULL,
        UNIQUE (session, number)
    );
"""


class Sealed:
    """The memory of encrypted events."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._opened = 0

    def is_wanted(self, room: str, session: str) -> bool:
        """Whether events wait for this key."""
        row = self._store.one("SELECT 1 FROM matrix_sealed WHERE room = ? AND session = ? LIMIT 1", (room, session))
        return row is not None

    def keep(self, event: Inbound, session: str) -> bool:
        """Remember an event that cannot be opened; returns whether its key should be asked for now."""
        room = event.room
        wanted = int(self._store.one("SELECT count(DISTINCT session) FROM matrix_sealed WHERE room = ?", (room,))[0])
        asked = self.is_wanted(room, session) or wanted >= ASKED
        row = (event.event_id, room, session, json.dumps({one.name: getattr(event, one.name) for one in fields(event)}))
        with self._store.transaction():
            new = self._store.insert(
                "INSERT OR IGNORE INTO matrix_sealed (event_id, room, session, event) VALUES (?, ?, ?, ?)", row
            )
            if new:
                self._prune("matrix_sealed", KEPT)
        return new is not None and not asked

    def sessions(self) -> list[tuple[str, str]]:
        """All keys that events wait for: rooms and sessions."""
        return self._store.rows("SELECT DISTINCT room, session FROM matrix_sealed")

    def waiting(self, room: str, session: str) -> Iterator[list[Inbound]]:
        """The events that wait for a key, oldest first, PAGE at a time; those that came may be forgotten meanwhile."""
        sql, after = "SELECT n, event FROM matrix_sealed WHERE room = ? AND session = ? AND n > ? ORDER BY n LIMIT ?", 0
        while rows := self._store.rows(sql, (room, session, after, PAGE)):
            after = rows[-1][0]
            yield [Inbound(**json.loads(text)) for _, text in rows]

    def holds(self, event_id: str, room: str) -> bool:
        """Whether an event of a room waits."""
        row = self._store.one("SELECT 1 FROM matrix_sealed WHERE event_id = ? AND room = ?", (event_id, room))
        return row is not None

    def forget(self, event_ids: Iterable[str]) -> None:
        """These events wait no more."""
        with self._store.transaction():
            self._store.many("DELETE FROM matrix_sealed WHERE event_id = ?", [(one,) for one in event_ids])

    def is_first(self, session: str, number: int, event_id: str) -> bool:
        """Whether no other event had this place in a session: a homeserver could serve old words as new ones."""
        with self._store.transaction():
            self._store.insert(
                "INSERT OR IGNORE INTO matrix_opened (session, number, event_id) VALUES (?, ?, ?)",
                (session, number, event_id),
            )
            self._opened += 1
            if self._opened % PRUNE_EVERY == 0:
                self._prune("matrix_opened", REMEMBERED)
        held = self._store.one("SELECT event_id FROM matrix_opened WHERE session = ? AND number = ?", (session, number))
        return held is None or held[0] == event_id

    def _prune(self, table: str, kept: int) -> None:
        self._store.execute(f"DELETE FROM {table} WHERE n <= (SELECT max(n) FROM {table}) - ?", (kept,))  # noqa: S608 - our words
