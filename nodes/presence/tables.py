"""What a node remembers of its peers' cards, and of introductions."""

from typing import Final, Literal, NamedTuple

from mesh.store import Store
from protocol.keys import MeshId

PRESENCE_SCHEMA: Final = (
    """
    CREATE TABLE cards (
        mesh TEXT PRIMARY KEY, data BLOB, made_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, seen_ms INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE introductions (
        by TEXT NOT NULL, other TEXT NOT NULL, data BLOB NOT NULL, expires_ms INTEGER NOT NULL, state TEXT NOT NULL,
        PRIMARY KEY (by, other)
    ) WITHOUT ROWID;
    CREATE TABLE introduced (
        reader TEXT NOT NULL, other TEXT NOT NULL, data BLOB NOT NULL, expires_ms INTEGER NOT NULL,
        PRIMARY KEY (reader, other)
    ) WITHOUT ROWID;
    """,
)

State = Literal["open", "met", "declined"]


class Kept(NamedTuple):
    """A peer's newest card, as signed (None: it never sent one), and when the peer was here last; Unix milliseconds."""

    data: bytes | None = None
    made_ms: int = 0
    expires_ms: int = 0
    seen_ms: int | None = None


class Told(NamedTuple):
    """An introduction by a peer, as signed, and what the person made of it."""

    by: MeshId
    other: MeshId
    data: bytes
    expires_ms: int
    state: State


class Tables:
    """Reads and writes them; writes belong within a transaction of the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def card(self, mesh: MeshId) -> Kept:
        """What is kept of a peer."""
        sql = "SELECT data, made_ms, expires_ms, seen_ms FROM cards WHERE mesh = ?"
        return Kept(*(self._store.one(sql, (mesh,)) or ()))

    def put_card(self, mesh: MeshId, card: Kept) -> None:
        """Keep a peer's card in place of the one before."""
        self._store.execute("INSERT OR REPLACE INTO cards VALUES (?, ?, ?, ?, ?)", (mesh, *card))

    def seen(self, mesh: MeshId, now_ms: int) -> None:
        """A peer was here until now."""
        sql = "INSERT INTO cards VALUES (?, NULL, 0, 0, ?) ON CONFLICT DO UPDATE SET seen_ms = excluded.seen_ms"
        self._store.execute(sql, (mesh, now_ms))

    def put_told(self, told: Told) -> None:
        """Keep an introduction."""
        self._store.execute("INSERT OR REPLACE INTO introductions VALUES (?, ?, ?, ?, ?)", told)

    def told(self, by: MeshId | None = None) -> list[Told]:
        """All introductions that are kept, or one peer's."""
        sql = "SELECT * FROM introductions WHERE ? IS NULL OR by = ? ORDER BY expires_ms, by, other"
        return [Told(*row) for row in self._store.rows(sql, (by, by))]

    def forget_told(self, told: Told) -> None:
        """Forget an introduction."""
        self._store.execute("DELETE FROM introductions WHERE by = ? AND other = ?", (told.by, told.other))

    def put_own(self, reader: MeshId, other: MeshId, data: bytes, expires_ms: int) -> None:
        """Keep an introduction of ours, to be said again until it expires."""
        self._store.execute("INSERT OR REPLACE INTO introduced VALUES (?, ?, ?, ?)", (reader, other, data, expires_ms))

    def own(self, reader: MeshId, now_ms: int) -> list[bytes]:
        """Our introductions to a peer that hold still; those that do not are forgotten."""
        self._store.execute("DELETE FROM introduced WHERE expires_ms <= ?", (now_ms,))
        sql = "SELECT data FROM introduced WHERE reader = ? ORDER BY expires_ms"
        return [data for (data,) in self._store.rows(sql, (reader,))]
