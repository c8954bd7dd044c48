"""What is to be sent, in the node's database: rows that wait, and how the others ended.

A row belongs to the account that sends it. Rows of one account in one room are a lane: they go one after the other, so
that only the first of a lane can have been tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.bridges.matrix.errors import MatrixFull
from mesh.bridges.matrix.payload import encode, transaction_id
from mesh.clock import Clock
from mesh.store import Store

MAX_WAITING: Final = 20_000  # events of an account; more are refused, so that a dead homeserver cannot fill the disk
MAX_LANE: Final = 2_000  # of these, in one room: who makes us talk there faster than we may silences no other room
PAGE: Final = 500  # rows that are read at once: 30 MB of words at worst
KEPT: Final = 50_000  # done rows that are remembered, so that the same key stays the same event
PRUNE_EVERY: Final = 1_000  # done rows between two prunings

MATRIX_OUTBOX: Final = """
    CREATE TABLE matrix_outbox (
        n INTEGER PRIMARY KEY, account TEXT NOT NULL, speaker TEXT NOT NULL, key TEXT NOT NULL, txn TEXT NOT NULL,
        room TEXT NOT NULL, kind TEXT NOT NULL, content TEXT, done_ms INTEGER, event_id TEXT, reason TEXT,
        UNIQUE (speaker, key)
    );
    CREATE INDEX matrix_waiting ON matrix_outbox (account, room, n) WHERE done_ms IS NULL;
    CREATE INDEX matrix_order ON matrix_outbox (room, n) WHERE done_ms IS NULL;
"""

ROW: Final = "SELECT n, account, speaker, key, txn, room, kind, content FROM matrix_outbox WHERE done_ms IS NULL"


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


class Rows:
    """The table of the outbox. What changes it belongs into the caller's transaction."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._since_pruning = 0

    def put(self, account: str, speaker: str, room: str, kind: str, content: Mapping[str, Any], key: str) -> bool:  # noqa: PLR0913, PLR0917 - an event has these parts
        """Keep an event; False: this key of this speaker is here already. Raises BadContent, MatrixFull."""
        if self.waiting(account) >= MAX_WAITING:
            raise MatrixFull(f"{MAX_WAITING} events wait for a homeserver that is away; nothing more is taken")
        if self._in_lane(account, room) >= MAX_LANE:
            raise MatrixFull(f"{MAX_LANE} events wait to be sent in one room; nothing more is taken for it")
        row = (account, speaker, key, transaction_id(speaker, key), room, kind, encode(content))
        put = self._store.insert(
            "INSERT OR IGNORE INTO matrix_outbox (account, speaker, key, txn, room, kind, content) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            row,
        )
        return put is not None

    def waiting(self, account: str | None = None) -> int:
        """How many rows wait; of all accounts, or of one."""
        whose, values = ("", ()) if account is None else (" AND account = ?", (account,))
        found = self._store.one(f"SELECT count(*) FROM matrix_outbox WHERE done_ms IS NULL{whose}", values)  # noqa: S608 - our words
        return int(found[0])

    def _in_lane(self, account: str, room: str) -> int:
        sql = "SELECT count(*) FROM matrix_outbox WHERE account = ? AND room = ? AND done_ms IS NULL"
        return int(self._store.one(sql, (account, room))[0])

    def is_waiting(self, n: int) -> bool:
        """Whether a row waits still."""
        return self._store.one("SELECT 1 FROM matrix_outbox WHERE n = ? AND done_ms IS NULL", (n,)) is not None

    def is_busy(self, room: str) -> bool:
        """Whether anything waits in a room."""
        return self._store.one("SELECT 1 FROM matrix_outbox WHERE room = ? AND done_ms IS NULL", (room,)) is not None

    def outcome(self, speaker: str, key: str) -> Outcome | None:
        """How an event ended; None while it waits, or when it was never put."""
        row = self._store.one(
            "SELECT event_id, reason FROM matrix_outbox WHERE speaker = ? AND key = ? AND done_ms IS NOT NULL",
            (speaker, key),
        )
        return Outcome(speaker, key, *row) if row else None

    def accounts(self) -> list[str]:
        """Whose rows wait."""
        return [
            account
            for (account,) in self._store.rows("SELECT DISTINCT account FROM matrix_outbox WHERE done_ms IS NULL")
        ]

    def lanes(self) -> list[tuple[str, str]]:
        """The accounts and rooms where rows wait."""
        return self._store.rows("SELECT DISTINCT account, room FROM matrix_outbox WHERE done_ms IS NULL")

    def heads(self) -> set[int]:
        """The numbers of the first rows of all lanes."""
        heads = "SELECT min(n) FROM matrix_outbox WHERE done_ms IS NULL GROUP BY account, room"
        return {n for (n,) in self._store.rows(heads)}

    def first(self, account: str, room: str) -> Outgoing | None:
        """The first row of a lane."""
        row = self._store.one(f"{ROW} AND account = ? AND room = ? ORDER BY n LIMIT 1", (account, room))
        return Outgoing(*row) if row else None

    def find(self, speaker: str, key: str) -> Outgoing | None:
        """An event that waits."""
        row = self._store.one(f"{ROW} AND speaker = ? AND key = ?", (speaker, key))
        return Outgoing(*row) if row else None

    def some_of(self, account: str) -> list[Outgoing]:
        """The first PAGE rows that wait for an account."""
        rows = self._store.rows(f"{ROW} AND account = ? ORDER BY n LIMIT ?", (account, PAGE))
        return [Outgoing(*row) for row in rows]

    def beginning(self, prefix: str) -> list[Outgoing]:
        """All that waits under keys that begin so, of any speaker, in order."""
        where = f"{ROW} AND substr(key, 1, ?) = ? ORDER BY n"
        return [Outgoing(*row) for row in self._store.rows(where, (len(prefix), prefix))]

    def others_before(self, row: Outgoing) -> list[str]:
        """The other accounts that have something to send in a row's room before it."""
        found = self._store.rows(
            "SELECT DISTINCT account FROM matrix_outbox WHERE room = ? AND n < ? AND done_ms IS NULL AND account <> ?",
            (row.room, row.n, row.account),
        )
        return [account for (account,) in found]

    def end(self, row: Outgoing, event_id: str | None, reason: str | None) -> None:
        """Note how a row ended, and forget what it said."""
        self._store.execute(
            "UPDATE matrix_outbox SET done_ms = ?, content = NULL, event_id = ?, reason = ? WHERE n = ?",
            (self._clock(), event_id, reason, row.n),
        )
        self._since_pruning += 1
        if self._since_pruning >= PRUNE_EVERY:
            self._since_pruning = 0
            self._store.execute(
                "DELETE FROM matrix_outbox WHERE done_ms IS NOT NULL AND n <= (SELECT max(n) FROM matrix_outbox) - ?",
                (KEPT,),
            )
