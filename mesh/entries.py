"""What the ledger has kept, read back: acts in their places."""

from typing import Final, NamedTuple

from mesh.store import Store
from protocol.acts import Act
from protocol.frame import MAX_ACTS, reread_frame
from protocol.keys import MeshId, NodeId


class Entry(NamedTuple):
    """A verified act in its place. `n` counts up over all basins of this node."""

    n: int
    basin: str
    mesh: MeshId
    node: NodeId
    act: Act


def recent(store: Store, basin: str, limit: int, before: int | None = None) -> list[Entry]:
    """The newest `limit` acts of a basin, oldest first; only those with n < `before` where that is given."""
    found: list[Entry] = []
    frame_n = 2**62 if before is None else before // MAX_ACTS + 1
    while len(found) < limit:
        rows = store.rows(f"{_FRAMES} WHERE basin = ? AND n < ? ORDER BY n DESC LIMIT ?", (basin, frame_n, limit))
        if not rows:
            break
        for row in rows:
            entries = [entry for entry in _entries(row) if before is None or entry.n < before]
            found.extend(reversed(entries))
        frame_n = rows[-1][0]
    return found[:limit][::-1]


def find(store: Store, identity: bytes) -> Entry | None:
    """The act with this id, if it is kept."""
    row = store.one("SELECT place FROM acts WHERE id = ?", (identity,))
    if row is None:
        return None
    frame = store.one(f"{_FRAMES} WHERE n = ?", (row[0] // MAX_ACTS,))
    return next((entry for entry in _entries(frame) if entry.n == row[0]), None)


def count(store: Store) -> int:
    """How many acts are kept."""
    return store.one("SELECT count(*) FROM acts")[0]


def missing(store: Store) -> int:
    """How many frames are known to be missing."""
    return store.one("SELECT coalesce(sum(last - first + 1), 0) FROM gaps")[0]


def _entries(row: tuple[int, str, str, int, bytes]) -> list[Entry]:
    n, mesh, node, left_out, data = row
    frame = reread_frame(data)
    return [
        Entry(n * MAX_ACTS + position, frame.basin, MeshId(mesh), NodeId(node), act)
        for position, act in enumerate(frame.acts)
        if not left_out >> position & 1
    ]


_FRAMES: Final = "SELECT n, mesh, node, left_out, frame FROM frames JOIN origins USING (origin)"
