"""What a node remembers of disputes beside what was said in them."""

from typing import Final

from mesh.store import Store
from protocol.dispute import Parties
from protocol.keys import MeshId

DISPUTES_SCHEMA: Final = (
    # Parties are kept since the `raise` that names them may be taken back. `steps` are what the node did by itself, in
    # which round of the relationship: once, so that a person may undo it.
    """
    CREATE TABLE disputes (basin TEXT PRIMARY KEY, raiser TEXT NOT NULL, other TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE dispute_steps (
        basin TEXT NOT NULL, peer TEXT NOT NULL, round INTEGER NOT NULL, PRIMARY KEY (basin, peer, round)
    ) WITHOUT ROWID;
    """,
)


class Tables:
    """Reads and writes them; writes belong within a transaction of the caller's."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self) -> dict[str, Parties]:
        """The disputes that are known here, by their basins."""
        rows = self._store.rows("SELECT basin, raiser, other FROM disputes")
        return {basin: Parties(MeshId(raiser), MeshId(other)) for basin, raiser, other in rows}

    def put(self, basin: str, parties: Parties) -> None:
        """Keep a dispute that has been raised."""
        self._store.execute("INSERT OR IGNORE INTO disputes VALUES (?, ?, ?)", (basin, *parties))

    def took(self, basin: str, peer: MeshId, number: int) -> bool:
        """Whether the node has taken or shared a basin by itself in this round."""
        sql = "SELECT 1 FROM dispute_steps WHERE basin = ? AND peer = ? AND round = ?"
        return self._store.one(sql, (basin, peer, number)) is not None

    def take(self, basin: str, peer: MeshId, number: int) -> None:
        """Remember that it has."""
        self._store.execute("INSERT OR IGNORE INTO dispute_steps VALUES (?, ?, ?)", (basin, peer, number))

    def forget(self, basin: str, peer: MeshId) -> None:
        """Forget it, since what it was done for is over."""
        self._store.execute("DELETE FROM dispute_steps WHERE basin = ? AND peer = ?", (basin, peer))

    def taken(self, peer: MeshId) -> list[str]:
        """The basins that the node has taken from a peer, or shared with it, by itself."""
        sql = "SELECT DISTINCT basin FROM dispute_steps WHERE peer = ? ORDER BY basin"
        return [row[0] for row in self._store.rows(sql, (peer,))]
