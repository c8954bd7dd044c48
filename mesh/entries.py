"""What the ledger has kept, read back: acts in their places.

An id belongs to whoever said it: two meshes may each have an act under the same one, and both are kept. Asked for an id
alone, the act that was heard first is meant.
"""

from collections.abc import Collection, Mapping, Sequence
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


def find(store: Store, identity: bytes, mesh: MeshId | None = None) -> Entry | None:
    """The act with this id, if it is kept: that of `mesh`, or the one that was heard first."""
    row = store.one("SELECT place FROM acts WHERE id = ?", (identity,))
    entry = row and at(store, row[0])
    if entry is None or mesh is None or entry.mesh == mesh:
        return entry
    row = store.one("SELECT place FROM twins WHERE id = ? AND mesh = ?", (identity, mesh))
    return row and at(store, row[0])


def every(store: Store, identity: bytes) -> list[Entry]:
    """The acts of all meshes with this id, in the order they were heard."""
    sql = "SELECT place FROM acts WHERE id = ? UNION ALL SELECT place FROM twins WHERE id = ? ORDER BY place"
    found = (at(store, place) for (place,) in store.rows(sql, (identity, identity)))
    return [entry for entry in found if entry is not None]


def at(store: Store, n: int) -> Entry | None:
    """The act at this place."""
    frame = store.one(f"{_FRAMES} WHERE n = ?", (n // MAX_ACTS,))
    return next((entry for entry in _entries(frame) if entry.n == n), None) if frame else None


def is_twin(store: Store, identity: bytes, mesh: MeshId) -> bool:
    """Whether another mesh was heard under this id before this one was."""
    return store.one("SELECT 1 FROM twins WHERE id = ? AND mesh = ?", (identity, mesh)) is not None


def places(store: Store, mesh: MeshId, identities: Sequence[bytes]) -> tuple[Mapping[bytes, int], Mapping[bytes, int]]:
    """Which of these ids are known, each with the place of the act that was heard first; and those of `mesh` alone."""
    sql = f"SELECT id, place FROM acts WHERE id IN ({_slots(identities)})"  # noqa: S608 - question marks only
    first = dict[bytes, int](store.rows(sql, identities))
    if not first:
        return first, first
    frames = {place // MAX_ACTS for place in first.values()}
    sql = f"SELECT n FROM frames JOIN origins USING (origin) WHERE mesh = ? AND n IN ({_slots(frames)})"  # noqa: S608 - same
    its_own = {n for (n,) in store.rows(sql, [mesh, *frames])}
    own = {identity: place for identity, place in first.items() if place // MAX_ACTS in its_own}
    if len(own) == len(first):
        return first, own
    sql = f"SELECT id, place FROM twins WHERE mesh = ? AND id IN ({_slots(identities)})"  # noqa: S608 - same
    return first, {**own, **dict[bytes, int](store.rows(sql, [mesh, *identities]))}


def count(store: Store) -> int:
    """How many acts are kept, those of several meshes under one id each for itself."""
    (acts,) = store.one("SELECT count(*) FROM acts")
    return acts + (store.one("SELECT count(*) FROM twins")[0] if has_twins(store) else 0)


def has_twins(store: Store) -> bool:
    """Whether the database has a place for acts under ids that others used: one that is only read may be older."""
    return store.one("SELECT 1 FROM sqlite_master WHERE name = 'twins'") is not None


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


def _slots(values: Collection[object]) -> str:
    return ",".join("?" * len(values))


_FRAMES: Final = "SELECT n, mesh, node, left_out, frame FROM frames JOIN origins USING (origin)"
