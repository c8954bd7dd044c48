"""What a node remembers of redactions: to whom it owes a receipt, and who has given it one."""

from typing import Final, NamedTuple

from mesh.store import Store
from protocol.keys import MeshId

MAX_OWED: Final = 1_000  # receipts that wait for one peer to take them; the oldest makes room: a peer may never come

RECEIPTS_SCHEMA: Final = (
    """
    CREATE TABLE receipts_owed (
        n INTEGER PRIMARY KEY, redaction BLOB NOT NULL UNIQUE, mesh TEXT NOT NULL, target BLOB NOT NULL,
        held INTEGER NOT NULL, data BLOB
    );
    CREATE INDEX receipts_owed_to ON receipts_owed (mesh, n);
    CREATE TABLE forgets (
        n INTEGER PRIMARY KEY, redaction BLOB NOT NULL UNIQUE, target BLOB NOT NULL, basin TEXT NOT NULL,
        author TEXT NOT NULL, at_ms INTEGER NOT NULL
    );
    CREATE TABLE forget_peers (
        redaction BLOB NOT NULL, mesh TEXT NOT NULL, sent INTEGER NOT NULL, held INTEGER, at_ms INTEGER, data BLOB,
        PRIMARY KEY (redaction, mesh)
    ) WITHOUT ROWID;
    """,
    # Two meshes may redact under one id, and each is owed its receipt.
    """
    CREATE TABLE receipts_owed_each (
        n INTEGER PRIMARY KEY, redaction BLOB NOT NULL, mesh TEXT NOT NULL, target BLOB NOT NULL,
        held INTEGER NOT NULL, data BLOB, UNIQUE (redaction, mesh)
    );
    INSERT INTO receipts_owed_each SELECT n, redaction, mesh, target, held, data FROM receipts_owed;
    DROP TABLE receipts_owed;
    ALTER TABLE receipts_owed_each RENAME TO receipts_owed;
    CREATE INDEX receipts_owed_to ON receipts_owed (mesh, n);
    """,
)


class Owed(NamedTuple):
    """A redaction by `mesh` that was honoured here; `held`: its target was here until then."""

    redaction: bytes
    mesh: MeshId
    target: bytes
    held: bool


class Forgot(NamedTuple):
    """A redaction of ours."""

    redaction: bytes
    target: bytes
    basin: str
    author: str
    at_ms: int


class Confirmed(NamedTuple):
    """What is known of one peer and one redaction. `sent`: the peer may have had the act.

    `held` and `at_ms` (Unix milliseconds) are from the peer's receipt; None: it has given none.
    """

    mesh: MeshId
    sent: bool
    held: bool | None
    at_ms: int | None


class Tables:
    """Reads and writes them; writes belong within a transaction of the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def is_there(self) -> bool:
        """Whether a node that knows of receipts has run here: a database that is only read is as it was left."""
        return self._store.one("SELECT 1 FROM sqlite_master WHERE name = 'forgets'") is not None

    # What we owe

    def owe(self, owed: Owed) -> None:
        """Note that a receipt is to be given; the peer's oldest makes room."""
        sql = "INSERT OR IGNORE INTO receipts_owed (redaction, mesh, target, held) VALUES (?, ?, ?, ?)"
        self._store.execute(sql, owed)
        sql = (
            "DELETE FROM receipts_owed WHERE mesh = ? AND n <="
            " (SELECT n FROM receipts_owed WHERE mesh = ? ORDER BY n DESC LIMIT 1 OFFSET ?)"
        )
        self._store.execute(sql, (owed.mesh, owed.mesh, MAX_OWED))

    def unsigned(self) -> list[Owed]:
        """Those whose words may still stand somewhere here."""
        sql = "SELECT redaction, mesh, target, held FROM receipts_owed WHERE data IS NULL ORDER BY n"
        rows = self._store.rows(sql)
        return [Owed(redaction, mesh, target, bool(held)) for redaction, mesh, target, held in rows]

    def sign(self, owed: Owed, data: bytes) -> None:
        """A receipt has been made."""
        sql = "UPDATE receipts_owed SET data = ? WHERE redaction = ? AND mesh = ?"
        self._store.execute(sql, (data, owed.redaction, owed.mesh))

    def made(self, mesh: MeshId) -> list[bytes]:
        """Receipts that a peer has not taken yet, oldest first."""
        sql = "SELECT data FROM receipts_owed WHERE mesh = ? AND data IS NOT NULL ORDER BY n"
        return [data for (data,) in self._store.rows(sql, (mesh,))]

    def taken(self, mesh: MeshId, redaction: bytes) -> None:
        """A peer has the receipt."""
        self._store.execute("DELETE FROM receipts_owed WHERE mesh = ? AND redaction = ?", (mesh, redaction))

    # What we are owed

    def put(self, forgot: Forgot) -> None:
        """Keep a redaction of ours."""
        sql = "INSERT OR IGNORE INTO forgets (redaction, target, basin, author, at_ms) VALUES (?, ?, ?, ?, ?)"
        self._store.execute(sql, forgot)

    def put_peer(self, redaction: bytes, mesh: MeshId, *, sent: bool) -> None:
        """A peer is concerned."""
        sql = "INSERT OR IGNORE INTO forget_peers (redaction, mesh, sent) VALUES (?, ?, ?)"
        self._store.execute(sql, (redaction, mesh, sent))

    def confirm(self, redaction: bytes, mesh: MeshId, data: bytes, *, held: bool, at_ms: int) -> None:
        """A peer has given its receipt; the first one counts."""
        self.put_peer(redaction, mesh, sent=held)
        sql = "UPDATE forget_peers SET held = ?, at_ms = ?, data = ? WHERE redaction = ? AND mesh = ? AND data IS NULL"
        self._store.execute(sql, (held, at_ms, data, redaction, mesh))

    def forgot(self, redaction: bytes) -> Forgot | None:
        """A redaction of ours."""
        sql = "SELECT redaction, target, basin, author, at_ms FROM forgets WHERE redaction = ?"
        row = self._store.one(sql, (redaction,))
        return Forgot(*row) if row else None

    def forgets(self, limit: int, target: bytes | None = None) -> list[Forgot]:
        """Our newest redactions, newest first; or those of one act."""
        sql = (
            "SELECT redaction, target, basin, author, at_ms FROM forgets WHERE ? IS NULL OR target = ? OR redaction = ?"
            " ORDER BY n DESC LIMIT ?"
        )
        return [Forgot(*row) for row in self._store.rows(sql, (target, target, target, limit))]

    def confirmed(self, redaction: bytes) -> list[Confirmed]:
        """What is known of each peer that is concerned."""
        sql = "SELECT mesh, sent, held, at_ms FROM forget_peers WHERE redaction = ? ORDER BY mesh"
        return [
            Confirmed(mesh, bool(sent), None if held is None else bool(held), at_ms)
            for mesh, sent, held, at_ms in self._store.rows(sql, (redaction,))
        ]

    def may_have(self, mesh: MeshId, basin: str, n: int, at_ms: int) -> bool | None:
        """Whether a frame, by its place, was sent to a peer as far as its cursor tells; None: nothing ever was."""
        row = self._store.one("SELECT n, since_ms FROM link_cursors WHERE peer = ? AND basin = ?", (mesh, basin))
        return None if row is None else row[0] >= n and row[1] <= at_ms
