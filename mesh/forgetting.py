"""Forgetting: what its author takes back loses its words, here and in the stream.

A `redact` counts for the act it refers to first, and for the edits of that act, when it is by the same author of the
same mesh. It is honoured in the transaction that hears it, so exactly once, and whatever the order: an act that
arrives after its redaction is a husk as it arrives. What is then still to be erased elsewhere is noted in the same
transaction; `mesh.erasing` does it.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from mesh.entries import Entry, find
from mesh.store import Store
from protocol.acts import Act
from protocol.frame import MAX_ACTS, Frame, reread_frame
from protocol.husk import hollow, husk, is_husk
from protocol.keys import MeshId, Signer

DATABASE: Final = 0  # among the messages that are to be erased, stands for the leftovers of our own database


class Own(NamedTuple):
    """Who signs here, and for which mesh."""

    mesh: MeshId
    signer: Signer


class Arrived(NamedTuple):
    """A frame as it is to be kept. `sifted`: some of its acts had been taken back before they came."""

    frame: Frame
    data: bytes
    sifted: bool


def forgotten_among(store: Store, identities: Collection[bytes], mesh: MeshId | None = None) -> bool:
    """Whether the words of any of these acts are gone: of those that `mesh` said, or anybody."""
    sql = f"SELECT 1 FROM forgotten WHERE id IN ({_marks(identities)}) AND mesh = coalesce(?, mesh) LIMIT 1"  # noqa: S608 - question marks only
    return store.one(sql, [*identities, mesh]) is not None


def is_unwanted(store: Store, target: bytes, mesh: MeshId, author: str) -> bool:
    """Whether an author of a mesh has taken an act back, maybe before it came."""
    sql = "SELECT 1 FROM redactions WHERE target = ? AND mesh = ? AND author = ?"
    return store.one(sql, (target, mesh, author)) is not None


class Forgetting:
    """The ledger's way to forget. All but `due` is called within its transaction."""

    def __init__(
        self, store: Store, own: Own | None = None, forgotten: Callable[[Sequence[Entry]], None] | None = None
    ) -> None:
        """`own` signs this node's frames anew.

        `forgotten` is given what is being forgotten, with its words for the last time, so that what was derived from it
        goes too; it is called within the transaction, after the handler, and must not wait.
        """
        self.own = own
        self.due = asyncio.Event()  # something is to be erased
        self._store, self._forgotten = store, forgotten
        self._gone: list[Entry] = []

    def sift(self, mesh: MeshId, frame: Frame, data: bytes) -> Arrived:
        """A frame without the words that were taken back before it came."""
        edited = [act.refs[0] for act in frame.acts if act.kind == "edit" and act.refs]
        ids = [*(act.id for act in frame.acts), *edited]
        sql = f"SELECT target, author FROM redactions WHERE mesh = ? AND target IN ({_marks(ids)})"  # noqa: S608 - same
        taken = {(target, author) for target, author in self._store.rows(sql, [mesh, *ids])}
        if not taken and not edited:
            return Arrived(frame, data, sifted=False)
        gone = {act.id for act in frame.acts if (act.id, act.author) in taken or self._is_late(mesh, act, taken)}
        if not gone:
            return Arrived(frame, data, sifted=False)
        self._store.many("INSERT OR IGNORE INTO forgotten VALUES (?, ?)", ((identity, mesh) for identity in gone))
        kept = hollow(data, lambda act: act.id in gone, self._signer)
        return Arrived(reread_frame(kept), kept, sifted=True)

    def _is_late(self, mesh: MeshId, act: Act, taken: set[tuple[bytes, str]]) -> bool:
        """Whether an act edits what its author has already taken back."""
        if act.kind != "edit" or not act.refs:
            return False
        if (act.refs[0], act.author) in taken:
            return True
        target = find(self._store, act.refs[0], mesh)
        return target is not None and target.act.author == act.author and is_husk(target.act)

    def hear(self, mesh: MeshId, basin: str, act: Act) -> None:
        """Note an edit, honour a redaction; other acts are let be. The act must be kept already."""
        if not act.refs:
            return
        if act.kind == "edit":
            self._store.execute("INSERT OR IGNORE INTO edits VALUES (?, ?)", (act.refs[0], act.id))
        elif act.kind == "redact":
            self._store.execute("INSERT OR IGNORE INTO redactions VALUES (?, ?, ?)", (act.refs[0], mesh, act.author))
            self._forget(act.refs[0], mesh, act.author, basin)

    def _forget(self, target: bytes, mesh: MeshId, author: str, basin: str) -> None:
        ids = self._with_edits(target)
        basins, frames = {basin}, set[int]()
        for identity in ids:
            entry = find(self._store, identity, mesh)
            if entry is None or entry.act.author != author:
                continue
            if self._store.execute("INSERT OR IGNORE INTO forgotten VALUES (?, ?)", (identity, mesh)):
                self._gone.append(entry)
                frames.add(entry.n // MAX_ACTS)
                basins.add(entry.basin)
        places = {"n": frames, "left_out != 0 AND basin": basins}  # after a crash an act may be in a second frame
        for where, values in places.items():
            rows = self._store.rows(f"{_FRAMES} WHERE mesh = ? AND {where} IN ({_marks(values)})", [mesh, *values])
            for n, data in rows:
                kept = hollow(data, lambda act: act.id in ids and act.author == author, self._signer)
                if kept is not data:
                    self._store.execute("UPDATE frames SET frame = ? WHERE n = ?", (kept, n))
                    frames.add(n)
        for n in frames:
            self.emptied(n)
        if self.is_ours(mesh):
            self._empty_outbox(ids, author)

    def is_ours(self, mesh: MeshId) -> bool:
        """Whether a mesh is the one whose outbox this is; any is, where nobody signs here."""
        return self.own is None or self.own.mesh == mesh

    def _with_edits(self, target: bytes) -> set[bytes]:
        """An act, its edits, and theirs."""
        found, new = {target}, [target]
        while new:
            edits = [row[0] for row in self._store.rows("SELECT id FROM edits WHERE target = ?", (new.pop(),))]
            new += [identity for identity in edits if identity not in found]
            found.update(edits)
        return found

    def _empty_outbox(self, ids: Iterable[bytes], author: str) -> None:
        """What waits to be sent again after a crash; what is on its way already is erased when the stream has it."""
        for identity in ids:
            for n, data in self._store.rows("SELECT n, act FROM outbox WHERE id = ?", (identity,)):
                act = msgspec.msgpack.decode(data, type=Act)
                if act.author == author:
                    kept = msgspec.msgpack.encode(husk(act))
                    self._store.execute("UPDATE outbox SET act = ? WHERE n = ?", (kept, n))

    def emptied(self, n: int) -> None:
        """A kept frame has lost words: whatever holds them yet, and ever will, is to be erased."""
        self._store.execute("INSERT OR IGNORE INTO emptied VALUES (?)", (n,))
        self._store.execute("INSERT OR IGNORE INTO erasures SELECT seq FROM sightings WHERE n = ?", (n,))
        self._store.execute("INSERT OR IGNORE INTO erasures VALUES (?)", (DATABASE,))
        self.due.set()

    def seen(self, sightings: Sequence[tuple[int, int]]) -> None:
        """Remember which message of the stream (`seq`) holds acts of which kept frame: (n, seq) each."""
        self._store.many("INSERT OR IGNORE INTO sightings VALUES (?, ?)", sightings)
        frames = {n for n, _ in sightings}
        sql = f"SELECT n FROM emptied WHERE n IN ({_marks(frames)})"  # noqa: S608 - question marks only
        if emptied := {n for (n,) in self._store.rows(sql, list(frames))}:
            due = [(seq,) for n, seq in sightings if n in emptied]
            self._store.many("INSERT OR IGNORE INTO erasures VALUES (?)", due)
            self.due.set()

    def another_stream(self) -> None:
        """The stream is not the one whose places were noted."""
        self._store.execute("DELETE FROM sightings")
        self._store.execute("DELETE FROM erasures WHERE seq != ?", (DATABASE,))

    def take(self) -> list[Entry]:
        """What this transaction forgot, with its words."""
        gone, self._gone = self._gone, []
        return gone

    def tell(self, gone: Sequence[Entry]) -> None:
        """Let what was derived from these acts be forgotten too."""
        if self._forgotten is not None:
            self._forgotten(gone)

    @property
    def _signer(self) -> Signer | None:
        return None if self.own is None else self.own.signer


def _marks(values: Collection[object]) -> str:
    return ",".join("?" * len(values))


_FRAMES: Final = "SELECT n, frame FROM frames JOIN origins USING (origin)"
