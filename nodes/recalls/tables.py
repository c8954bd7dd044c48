"""What a node remembers of questions to memories: who may ask here, and what was asked, by whom and of whom."""

from collections.abc import Collection
from typing import Final, NamedTuple

from mesh.store import Store
from protocol.keys import MeshId

KEPT: Final = 500  # newest questions of each peer, and as many to each

RECALLS_SCHEMA: Final = (
    """
    CREATE TABLE recall_grants (
        mesh TEXT NOT NULL, basin TEXT NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (mesh, basin)
    ) WITHOUT ROWID;
    CREATE TABLE recalls (
        n INTEGER PRIMARY KEY, mesh TEXT NOT NULL, here INTEGER NOT NULL, question TEXT NOT NULL, basins TEXT NOT NULL,
        at_ms INTEGER NOT NULL, outcome TEXT NOT NULL, acts INTEGER NOT NULL, receipt BLOB
    );
    CREATE INDEX recalls_of ON recalls (mesh, here, n);
    """,
)


class Recall(NamedTuple):
    """A question. `here`: it was asked of this memory by `mesh`; else it was asked of theirs.

    `outcome` is `answered`, or why it was not; `acts` is how many acts were cited; `receipt` is as signed, if there is
    one.
    """

    mesh: MeshId
    here: bool
    question: str
    basins: str
    at_ms: int
    outcome: str
    acts: int = 0
    receipt: bytes | None = None


class Tables:
    """Reads and writes them; writes belong within a transaction of the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def grant(self, mesh: MeshId, basins: Collection[str], at_ms: int) -> None:
        """A peer may ask about these basins as well."""
        self._store.many(
            "INSERT OR REPLACE INTO recall_grants VALUES (?, ?, ?)", ((mesh, one, at_ms) for one in basins)
        )

    def ungrant(self, mesh: MeshId, basins: Collection[str]) -> None:
        """A peer may not ask about these basins any more."""
        self._store.many("DELETE FROM recall_grants WHERE mesh = ? AND basin = ?", ((mesh, one) for one in basins))

    def granted(self, mesh: MeshId, since_ms: int = 0) -> list[str]:
        """What a peer may ask about, by grants of `since_ms` (Unix milliseconds) or later."""
        sql = "SELECT basin FROM recall_grants WHERE mesh = ? AND at_ms >= ? ORDER BY basin"
        return [basin for (basin,) in self._store.rows(sql, (mesh, since_ms))]

    def put(self, recall: Recall) -> None:
        """Keep a question; the oldest makes room."""
        sql = (
            "INSERT INTO recalls (mesh, here, question, basins, at_ms, outcome, acts, receipt)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        )
        self._store.execute(sql, recall)
        sql = (
            "DELETE FROM recalls WHERE mesh = ? AND here = ? AND n <="
            " (SELECT n FROM recalls WHERE mesh = ? AND here = ? ORDER BY n DESC LIMIT 1 OFFSET ?)"
        )
        self._store.execute(sql, (recall.mesh, recall.here, recall.mesh, recall.here, KEPT))

    def recalls(self, limit: int) -> list[Recall]:
        """The newest questions, oldest first."""
        sql = "SELECT mesh, here, question, basins, at_ms, outcome, acts, receipt FROM recalls ORDER BY n DESC LIMIT ?"
        found = [Recall(mesh, bool(here), *rest) for mesh, here, *rest in self._store.rows(sql, (limit,))]
        return found[::-1]
