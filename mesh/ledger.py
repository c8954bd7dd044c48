"""The ledger: everything that was said, verified once, in order, each act once.

One durable consumer reads the stream for the whole node. A batch is verified, and then, in one transaction with
whatever the handler records, its frames are kept and the cursor moves; only then is the batch acknowledged. A crash at
any point repeats the batch, and ids make the repetition invisible.

Frames also arrive directly, before the server has them on its disk: that is faster, and as safe, since a frame is kept
by its author until the stream has it. The stream stays the source of truth: it alone moves the cursor.

Frames are kept as they were signed, so that everything can be proved later; an index leads from acts to their place.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple

import structlog

from mesh.bus.base import Bus, Consumer, Message, Stored
from mesh.clock import Clock
from mesh.store import Store
from mesh.trust import Trust
from protocol.acts import Act
from protocol.address import Subject, parse_subject
from protocol.budget import Budget, check_child
from protocol.errors import BadAct, BudgetRaised, ProtocolError
from protocol.frame import HEADER_BYTES, MAX_ACTS, Frame, decode_frame, reread_frame
from protocol.keys import MeshId, NodeId

SLICE: Final = 32  # frames a transaction: at most 2,048 acts, about 15 ms, so that the loop stays responsive
PARENTS: Final = 16_384  # recent acts whose budgets are kept in memory for checking what answers them
RECENT: Final = 8_192  # frames that arrived directly and are expected from the stream as well

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
        self._parents: dict[bytes, tuple[bytes, Budget]] = {}  # recent acts: their root and what they left
        self._early: OrderedDict[bytes, list[bytes]] = OrderedDict()  # seals of frames that came directly: their acts
        self._warned: Counter[str] = Counter()

    @property
    def cursor(self) -> int:
        """The stream sequence up to which everything is kept."""
        return self._store.one("SELECT seq FROM cursor")[0]

    def marks_of(self, mesh: MeshId, node: NodeId) -> dict[str, int]:
        """The highest frame sequence heard from a node, by basin."""
        origin = self._origins.get((mesh, node))
        return {basin: mark for (one, basin), mark in self._marks.items() if one == origin}

    async def run(self, name: str, caught_up: Callable[[], None], after: Callable[[], None]) -> None:
        """Read for ever.

        `caught_up` is called once, when all that was stored at the start is kept; `after` after every commit. Raises
        StoreFailed: what was in memory only is then worth nothing, and the node must start again.
        """
        cursor = await self._catch_up(after)
        consumer = await self._bus.consume(name, cursor)
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        direct = await self._bus.subscribe("b.>", self._listener(after, broken))
        try:
            caught_up()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(consumer, cursor, after), name="stream")
                await broken
        finally:
            await direct.close()
            await consumer.close()

    async def _follow(self, consumer: Consumer, cursor: int, after: Callable[[], None]) -> None:
        while True:
            batch = [stored for stored in await consumer.batch() if stored.seq > cursor]
            for start in range(0, len(batch), SLICE):
                part = batch[start : start + SLICE]
                self.keep(part)
                cursor = part[-1].seq
                after()
                await consumer.ack(cursor)

    async def _catch_up(self, after: Callable[[], None]) -> int:
        """Read what was stored since; gives the cursor.

        From the stream itself: the server's own cursor may be ahead of ours when a power cut took our last commits.
        """
        newest, cursor = await self._bus.last_seq(), self.cursor
        if cursor > newest:
            log.warning("the stream is older than this node's memory; reading it from its beginning", cursor=cursor)
            cursor = 0
        while cursor < newest:
            last = min(newest, cursor + SLICE)
            self.keep(await self._bus.read(cursor + 1, last), last)
            cursor = last
            after()
            await asyncio.sleep(0)
        return cursor

    def _listener(
        self, after: Callable[[], None], broken: "asyncio.Future[None]"
    ) -> Callable[[Message], Awaitable[None]]:
        async def take(message: Message) -> None:
            try:
                self.hear(message.subject, message.data)
                after()
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends the ledger, in `run`
                if not broken.done():
                    broken.set_exception(error)

        return take

    def hear(self, where: str, data: bytes) -> None:
        """Keep one frame that came directly, before the stream has it for certain."""
        checked = self._check(where, data)
        if checked is None or _seal(data) in self._early:
            return
        with self._store.transaction():
            self._keep([(*checked, data)])
        self._early[_seal(data)] = [act.id for act in checked[1].acts]
        if len(self._early) > RECENT:
            self._early.popitem(last=False)

    def keep(self, batch: Sequence[Stored], last: int | None = None) -> None:
        """Verify and store one batch of the stream, and move the cursor behind it, or to `last`.

        What is refused is counted, never stored. What the stream has need not wait in the outbox any more.
        """
        stored: list[bytes] = []
        checked: list[tuple[Subject, Frame, bytes]] = []
        for one in batch:
            early = self._early.pop(_seal(one.data), None)
            found = None if early else self._check(one.subject, one.data)
            if found:
                checked.append((*found, one.data))
            stored += early or ([act.id for act in found[1].acts] if found else [])
        with self._store.transaction():
            self._keep(checked)
            self._store.many("DELETE FROM outbox WHERE id = ?", ((identity,) for identity in stored))
            self._store.execute("UPDATE cursor SET seq = ?", (batch[-1].seq if last is None else last,))

    def _keep(self, frames: Iterable[tuple[Subject, Frame, bytes]]) -> None:
        entries = [entry for subject, frame, data in frames for entry in self._insert(subject, frame, data)]
        if entries:
            self._handler(entries)

    def _check(self, where: str, data: bytes) -> tuple[Subject, Frame] | None:
        mesh = "unknown"
        try:
            subject = parse_subject(where)
            mesh = subject.mesh
            frame = decode_frame(data)
            self._trust.check(subject, frame, self._clock())
        except ProtocolError as error:
            self._refuse(mesh, error)
            return None
        return subject, frame

    def _insert(self, subject: Subject, frame: Frame, data: bytes) -> list[Entry]:
        """Keep what is new in a frame; a frame without anything new is not kept again."""
        origin = self._origin(subject)
        self._note(origin, frame)
        marks = ",".join("?" * len(frame.acts))
        sql = f"SELECT id FROM acts WHERE id IN ({marks})"  # noqa: S608 - question marks only
        known = {row[0] for row in self._store.rows(sql, [act.id for act in frame.acts])}
        new: dict[bytes, int] = {}
        for position, act in enumerate(frame.acts):
            if act.id not in known and act.id not in new and self._lawful(subject, act):
                new[act.id] = position
        if not new:
            return []
        left_out = sum(1 << position for position in set(range(len(frame.acts))) - set(new.values()))
        n = self._store.insert(_INSERT_FRAME, (frame.basin, origin, _signed(left_out), data)) or 0
        first = n * MAX_ACTS
        self._store.many(_INSERT_ACT, [(identity, first + position) for identity, position in new.items()])
        return [Entry(first + at, frame.basin, subject.mesh, frame.node, frame.acts[at]) for at in new.values()]

    def _lawful(self, subject: Subject, act: Act) -> bool:
        """Whether an act stays in its parent's chain and leaves it no more than its parent did."""
        parent = None if act.is_root else self._parent(act.refs[0])
        if parent is not None:
            root, budget = parent
            if act.root != root:
                self._refuse(subject.mesh, BadAct("the act is of another chain than the one that it answers"))
                return False
            try:
                check_child(budget, act.budget)
            except BudgetRaised as error:
                self._refuse(subject.mesh, error)
                return False
        if len(self._parents) >= PARENTS:
            self._parents.clear()  # the store has them all
        self._parents[act.id] = (act.root, act.budget)
        return True

    def _parent(self, identity: bytes) -> tuple[bytes, Budget] | None:
        if known := self._parents.get(identity):
            return known
        entry = find(self._store, identity)
        return (entry.act.root, entry.act.budget) if entry else None

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
            self._close_gap(origin, frame.basin, frame.sequence)
            return
        if frame.sequence > mark + 1:
            missing = (mark + 1, frame.sequence - 1)
            log.warning("frames are missing", node=frame.node[:8], basin=frame.basin, first=missing[0], last=missing[1])
            self._store.execute("INSERT OR REPLACE INTO gaps VALUES (?, ?, ?, ?)", (origin, frame.basin, *missing))
        self._marks[origin, frame.basin] = frame.sequence
        self._store.execute("INSERT OR REPLACE INTO marks VALUES (?, ?, ?)", (origin, frame.basin, frame.sequence))

    def _close_gap(self, origin: int, basin: str, sequence: int) -> None:
        where = (origin, basin)
        sql = "SELECT first, last FROM gaps WHERE origin = ? AND basin = ? AND ? BETWEEN first AND last"
        if row := self._store.one(sql, (*where, sequence)):
            first, last = row
            self._store.execute("DELETE FROM gaps WHERE origin = ? AND basin = ? AND first = ?", (*where, first))
            rest = [(first, sequence - 1), (sequence + 1, last)]
            parts = [(*where, low, high) for low, high in rest if low <= high]
            self._store.many("INSERT INTO gaps VALUES (?, ?, ?, ?)", parts)

    def _refuse(self, mesh: str, error: ProtocolError) -> None:
        """Count a refusal; meshes that nobody vouches for share one row, or strangers would fill the table."""
        known = mesh if self._trust.knows(mesh) else "unknown"
        reason = type(error).__name__
        self._warned[known] += 1
        times = self._warned[known]
        if times & (times - 1) == 0:  # the 1st, 2nd, 4th, 8th: a flood is not answered with a flood
            log.warning("refused what a node said", mesh=known[:8], reason=str(error)[:200], times=times)
        self._store.execute(
            "INSERT INTO refusals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1", (known, reason)
        )


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


def _seal(data: bytes) -> bytes:
    """What no two frames of honest nodes share: key and signature. Cheaper than hashing all of it once more."""
    return data[:HEADER_BYTES]


def _signed(mask: int) -> int:
    """A mask of 64 bits as SQLite's signed integer."""
    return mask - (1 << MAX_ACTS) if mask >> (MAX_ACTS - 1) else mask


_FRAMES: Final = "SELECT n, mesh, node, left_out, frame FROM frames JOIN origins USING (origin)"
_INSERT_FRAME: Final = "INSERT INTO frames (basin, origin, left_out, frame) VALUES (?, ?, ?, ?)"
_INSERT_ACT: Final = "INSERT INTO acts (id, place) VALUES (?, ?)"
