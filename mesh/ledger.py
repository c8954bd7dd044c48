"""The ledger: everything that was said, verified once, in order, each act once.

One durable consumer reads the stream for the whole node. A batch is verified, and then, in one transaction with
whatever the handler records, its acts are kept and the cursor moves; only then is the batch acknowledged. A crash at
any point repeats the batch, and ids make the repetition invisible.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import structlog

from mesh.bus.base import Bus, Stored
from mesh.clock import Clock
from mesh.store import Store
from mesh.trust import Trust
from protocol.acts import Act, ActId
from protocol.address import Subject, parse_subject
from protocol.budget import Budget, check_child
from protocol.errors import BudgetRaised, ProtocolError
from protocol.frame import Frame, decode_frame
from protocol.keys import MeshId, NodeId

SLICE: Final = 32  # frames a transaction: at most 2,048 acts, about 15 ms, so that the loop stays responsive
MAX_GAP: Final = 10_000  # missing sequences that are noted singly; a larger leap notes the newest of them
BUDGETS: Final = 16_384  # recent acts whose budgets are kept in memory for checking what answers them

log = structlog.get_logger(__name__)


class Entry(NamedTuple):
    """A verified act in its place. `n` counts up over all basins of this node."""

    n: int
    basin: str
    mesh: MeshId
    node: NodeId
    act: Act


Handler = Callable[[Sequence[Entry]], None]


class Ledger:
    """Reads the stream into the store and hands every new act on, once."""

    def __init__(self, bus: Bus, store: Store, trust: Trust, clock: Clock, handler: Handler) -> None:
        """`handler` is called within the transaction, with new acts only, in order; it must not wait."""
        self._bus, self._store, self._trust, self._clock, self._handler = bus, store, trust, clock, handler
        self._origins: dict[tuple[str, str], int] = {
            (mesh, node): origin for origin, mesh, node in store.rows("SELECT origin, mesh, node FROM origins")
        }
        self._marks: dict[tuple[int, str], int] = {
            (origin, basin): sequence
            for origin, basin, sequence in store.rows("SELECT origin, basin, sequence FROM marks")
        }
        self._budgets: OrderedDict[bytes, Budget] = OrderedDict()

    @property
    def cursor(self) -> int:
        """The stream sequence up to which everything is kept."""
        return self._store.one("SELECT seq FROM cursor")[0]

    def marks_of(self, mesh: MeshId, node: NodeId) -> dict[str, int]:
        """The highest frame sequence heard from a node, by basin."""
        origin = self._origins.get((mesh, node))
        return {basin: mark for (one, basin), mark in self._marks.items() if one == origin}

    async def run(self, name: str, caught_up: Callable[[], None], after: Callable[[], None]) -> None:
        """Read for ever. `caught_up` is called once, when all that was stored at the start is kept; `after` after
        every commit.
        """  # noqa: D205 - one thought, two lines
        newest = await self._bus.last_seq()
        cursor = self.cursor
        if cursor > newest:
            log.warning("the stream is older than this node's memory; reading it from its beginning", cursor=cursor)
            cursor = 0
        consumer = await self._bus.consume(name, cursor)
        try:
            waiting = True
            while True:
                if waiting and cursor >= newest:
                    waiting = False
                    caught_up()
                batch = [stored for stored in await consumer.batch() if stored.seq > cursor]
                for start in range(0, len(batch), SLICE):
                    part = batch[start : start + SLICE]
                    self.keep(part)
                    cursor = part[-1].seq
                    after()
                    await consumer.ack(cursor)
        finally:
            await consumer.close()

    def keep(self, batch: Sequence[Stored]) -> None:
        """Verify and store one batch, and move the cursor behind it. What is refused is counted, never stored."""
        frames = [(stored, *checked) for stored in batch if (checked := self._check(stored)) is not None]
        with self._store.transaction():
            entries = [entry for _, subject, frame in frames for entry in self._insert(subject, frame)]
            if entries:
                self._handler(entries)
            self._store.execute("UPDATE cursor SET seq = ?", (batch[-1].seq,))

    def _check(self, stored: Stored) -> tuple[Subject, Frame] | None:
        mesh = "unknown"
        try:
            subject = parse_subject(stored.subject)
            mesh = subject.mesh
            frame = decode_frame(stored.data)
            self._trust.check(subject, frame, self._clock())
        except ProtocolError as error:
            self._refuse(mesh, error)
            return None
        return subject, frame

    def _insert(self, subject: Subject, frame: Frame) -> list[Entry]:
        origin = self._origin(subject)
        self._note(origin, frame)
        entries: list[Entry] = []
        for act in frame.acts:
            try:
                self._check_budget(act)
            except BudgetRaised as error:
                self._refuse(subject.mesh, error)
                continue
            n = self._store.insert(_INSERT, (act.id, frame.basin, origin, _encode(act)))
            if n is not None:
                entries.append(Entry(n, frame.basin, subject.mesh, frame.node, act))
        return entries

    def _check_budget(self, act: Act) -> None:
        if not act.is_root and (parent := self._budget(act.refs[0])) is not None:
            check_child(parent, act.budget)
        self._budgets[act.id] = act.budget
        if len(self._budgets) > BUDGETS:
            self._budgets.popitem(last=False)

    def _budget(self, identity: bytes) -> Budget | None:
        known = self._budgets.get(identity)
        if known is None and (row := self._store.one("SELECT act FROM acts WHERE id = ?", (identity,))):
            return decode_act(row[0]).budget
        return known

    def _origin(self, subject: Subject) -> int:
        key = (subject.mesh, subject.node)
        if key not in self._origins:
            self._store.execute("INSERT OR IGNORE INTO origins (mesh, node) VALUES (?, ?)", key)
            self._origins[key] = self._store.one("SELECT origin FROM origins WHERE mesh = ? AND node = ?", key)[0]
        return self._origins[key]

    def _note(self, origin: int, frame: Frame) -> None:
        """Follow the sequence of a node in a basin: note what is missing, and what has come after all."""
        mark = self._marks.get((origin, frame.basin), 0)
        if frame.sequence <= mark:
            self._store.execute(
                "DELETE FROM gaps WHERE (origin, basin, sequence) = (?, ?, ?)", (origin, frame.basin, frame.sequence)
            )
            return
        missing = range(max(mark + 1, frame.sequence - MAX_GAP), frame.sequence)
        if missing:
            log.warning(
                "frames are missing", node=frame.node[:8], basin=frame.basin, first=missing[0], last=missing[-1]
            )
            self._store.many(
                "INSERT OR IGNORE INTO gaps VALUES (?, ?, ?)", [(origin, frame.basin, one) for one in missing]
            )
        self._marks[origin, frame.basin] = frame.sequence
        self._store.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (origin, frame.basin, frame.sequence))

    def _refuse(self, mesh: str, error: ProtocolError) -> None:
        reason = type(error).__name__
        log.warning("refused what a node said", mesh=mesh[:8], reason=str(error)[:200])
        self._store.execute(
            "INSERT INTO refusals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (mesh, reason)
        )


def recent(store: Store, basin: str, limit: int, before: int | None = None) -> list[Entry]:
    """The newest `limit` acts of a basin, oldest first; only those with n < `before` where that is given."""
    rows = store.rows(
        "SELECT n, basin, mesh, node, act FROM acts JOIN origins USING (origin)"
        " WHERE basin = ? AND n < ? ORDER BY n DESC LIMIT ?",
        (basin, before or 2**62, limit),
    )
    return [_entry(row) for row in reversed(rows)]


def find(store: Store, identity: ActId | bytes) -> Entry | None:
    """The act with this id, if it is kept."""
    row = store.one("SELECT n, basin, mesh, node, act FROM acts JOIN origins USING (origin) WHERE id = ?", (identity,))
    return None if row is None else _entry(row)


def decode_act(data: bytes) -> Act:
    """An act as the store holds it: already verified when it came."""
    return _decode(data)


def encode_act(act: Act) -> bytes:
    """An act for the store."""
    return _encode(act)


def _entry(row: tuple[int, str, str, str, bytes]) -> Entry:
    return Entry(row[0], row[1], MeshId(row[2]), NodeId(row[3]), _decode(row[4]))


_INSERT: Final = "INSERT OR IGNORE INTO acts (id, basin, origin, act) VALUES (?, ?, ?, ?)"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Act).decode
