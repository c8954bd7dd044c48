"""The ledger: everything that was said, verified once, in order, each act once.

One durable consumer reads the stream for the whole node. A batch is verified, and then, in one transaction with
whatever the handler records, its frames are kept and the cursor moves; only then is the batch acknowledged. A crash at
any point repeats the batch, and ids make the repetition invisible.

Frames also arrive directly, before the server has them on its disk: from the bus, and from this process, which has made
or verified them itself. That is faster, and as safe, since whoever brings a frame keeps it until the stream has it. The
stream stays the source of truth: it alone moves the cursor.

Frames are kept as they were signed, so that everything can be proved later; an index leads from acts to their place.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import structlog

from mesh.bus.base import Bus, Consumer, Message, Stored
from mesh.clock import Clock
from mesh.entries import Entry, find, places
from mesh.erasing import Eraser
from mesh.forgetting import Forgetting
from mesh.lineage import Lineage
from mesh.marks import Marks
from mesh.store import Store
from mesh.trust import Trust
from protocol.acts import Act
from protocol.address import Subject, parse_subject
from protocol.errors import ProtocolError
from protocol.frame import HEADER_BYTES, MAX_ACTS, Frame, decode_frame
from protocol.husk import husk
from protocol.keys import MeshId, NodeId

SLICE: Final = 32  # frames a transaction: at most 2,048 acts, about 15 ms, so that the loop stays responsive
AMENDING: Final = frozenset({"edit", "redact"})
RECENT: Final = 8_192  # frames that arrived directly and are expected from the stream as well

log = structlog.get_logger(__name__)


Handler = Callable[[Sequence[Entry]], None]


class Checked(NamedTuple):
    """A frame that verifies, as read and as signed, under the subject of its basin and origin."""

    subject: Subject
    frame: Frame
    data: bytes


class _Kept(NamedTuple):
    """What became of a frame: its acts' ids if it is ours, the kept frames that hold them, and what was new in it."""

    ids: Sequence[bytes]
    frames: set[int]
    entries: list[Entry]


class Ledger:
    """Reads the stream into the store and hands every new act on, once."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is one independent part of a node
        self,
        bus: Bus,
        store: Store,
        trust: Trust,
        clock: Clock,
        handler: Handler,
        forgetting: Forgetting | None = None,
    ) -> None:
        """`handler` is called within the transaction, with new acts only, in order; it must not wait."""
        self._bus, self._store, self._trust, self._clock, self._handler = bus, store, trust, clock, handler
        self._forgetting = forgetting or Forgetting(store)
        self._eraser = Eraser(bus, store, clock, self._forgetting)
        self._marks = Marks(store)
        self._lineage = Lineage(store)
        self._early: OrderedDict[bytes, _Kept] = OrderedDict()  # by their seals, frames that came directly
        self._warned: Counter[str] = Counter()
        self._after: Callable[[], None] = _nothing

    @property
    def cursor(self) -> int:
        """The stream sequence up to which everything is kept."""
        return self._store.one("SELECT seq FROM cursor")[0]

    def erasing(self) -> int:
        """How many erasures are still under way after redactions."""
        return self._eraser.waiting()

    def marks_of(self, mesh: MeshId, node: NodeId) -> dict[str, int]:
        """The highest frame sequence heard from a node, by basin."""
        return self._marks.of(mesh, node)

    async def run(self, name: str, caught_up: Callable[[], None], after: Callable[[], None]) -> None:
        """Read for ever.

        `caught_up` is called once, when all that was stored at the start is kept; `after` after every commit. Raises
        StoreFailed: what was in memory only is then worth nothing, and the node must start again.
        """
        self._after = after
        cursor = await self._catch_up(after)
        consumer = await self._bus.consume(name, cursor)
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        direct = await self._bus.subscribe("b.>", self._listener(broken))
        try:
            caught_up()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(consumer, cursor, after), name="stream")
                group.create_task(self._eraser.run(), name="eraser")
                group.create_task(self._store.tend(), name="checkpoints")
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
            with self._store.transaction():
                self._forgetting.another_stream()
        while cursor < newest:
            last = min(newest, cursor + SLICE)
            self.keep(await self._bus.read(cursor + 1, last), last)
            cursor = last
            after()
            await asyncio.sleep(0)
        return cursor

    def _listener(self, broken: "asyncio.Future[None]") -> Callable[[Message], Awaitable[None]]:
        async def take(message: Message) -> None:
            try:
                self.hear(message.subject, message.data)
            except Exception as error:  # noqa: BLE001 - whatever it is, it ends the ledger, in `run`
                if not broken.done():
                    broken.set_exception(error)

        return take

    def hear(self, where: str, data: bytes) -> None:
        """Keep one frame that came directly, before the stream has it for certain."""
        if _seal(data) not in self._early and (checked := self._check(where, data)):
            self.take([checked])

    def take(self, frames: Sequence[Checked]) -> None:
        """Keep frames that this process has made or verified, at once. Whoever calls it has them put into the stream.

        Call it while `run` runs, and let whatever it raises end the node: memory is then ahead of the disk.
        """
        new = {_seal(one.data): one for one in frames if _seal(one.data) not in self._early and self._is_vouched(one)}
        if not new:
            return
        with self._store.transaction():
            kept = self._keep(new.values())
        for seal, one in zip(new, kept, strict=True):
            self._early[seal] = one._replace(entries=[])
        while len(self._early) > RECENT:
            self._early.popitem(last=False)
        self._after()

    def holds(self, subject: Subject, frame: Frame) -> bool:
        """Whether a verified frame is of no use any more: its acts and its number are here, and in the stream."""
        if self._marks.is_new(subject, frame):
            return False
        _, known = places(self._store, subject.mesh, [act.id for act in frame.acts])
        if len(known) < len({act.id for act in frame.acts}):
            return False
        kept = {place // MAX_ACTS for place in known.values()}
        sql = f"SELECT count(DISTINCT n) FROM sightings WHERE n IN ({_slots(kept)})"  # noqa: S608 - question marks only
        return self._store.one(sql, list(kept))[0] == len(kept)

    def keep(self, batch: Sequence[Stored], last: int | None = None) -> None:
        """Verify and store one batch of the stream, and move the cursor behind it, or to `last`.

        What is refused is counted, never stored. What the stream has need not wait in the outbox any more.
        """
        stored: list[tuple[int, _Kept]] = []
        seqs: list[int] = []
        checked: list[Checked] = []
        for one in batch:
            if early := self._early.pop(_seal(one.data), None):
                stored.append((one.seq, early))
            elif found := self._check(one.subject, one.data):
                checked.append(found)
                seqs.append(one.seq)
        with self._store.transaction():
            stored += zip(seqs, self._keep(checked), strict=True)
            ids = ((identity,) for _, kept in stored for identity in kept.ids)
            self._store.many("DELETE FROM outbox WHERE id = ?", ids)
            self._forgetting.seen([(n, seq) for seq, kept in stored for n in kept.frames])
            self._store.execute("UPDATE cursor SET seq = ?", (batch[-1].seq if last is None else last,))

    def _keep(self, frames: Iterable[Checked]) -> list[_Kept]:
        """Keep frames, and hand on what is new in them, without what was taken back meanwhile."""
        kept = [self._insert(subject, frame, data) for subject, frame, data in frames]
        entries = [entry for one in kept for entry in one.entries]
        gone = self._forgetting.take()
        if gone:
            ns = {entry.n for entry in gone}
            entries = [one._replace(act=husk(one.act)) if one.n in ns else one for one in entries]
        if entries:
            self._handler(entries)
        if gone:
            self._forgetting.tell(gone)
        return kept

    def _check(self, where: str, data: bytes) -> Checked | None:
        mesh = "unknown"
        try:
            subject = parse_subject(where)
            mesh = subject.mesh
            frame = decode_frame(data)
            self._trust.check(subject, frame, self._clock())
        except ProtocolError as error:
            self._refuse(mesh, error)
            return None
        return Checked(subject, frame, data)

    def _is_vouched(self, one: Checked) -> bool:
        """Whether a frame is of a node that is still in service; this node itself may no longer be."""
        try:
            self._trust.check(one.subject, one.frame, self._clock())
        except ProtocolError as error:
            self._refuse(one.subject.mesh, error)
            return False
        return True

    def _insert(self, subject: Subject, frame: Frame, data: bytes) -> _Kept:
        """Keep what is new in a frame; a frame without anything new is not kept again."""
        origin = self._marks.note(subject, frame)
        frame, data, sifted = self._forgetting.sift(subject.mesh, frame, data)
        ids = list[bytes](act.id for act in frame.acts)
        taken, known = places(self._store, subject.mesh, ids)
        new: dict[bytes, int] = {}
        for position, act in enumerate(frame.acts):
            if act.id not in known and act.id not in new and self._is_lawful(subject, act):
                new[act.id] = position
        frames = {place // MAX_ACTS for place in known.values()}
        entries: list[Entry] = []
        if new:
            left_out = sum(1 << position for position in set(range(len(frame.acts))) - set(new.values()))
            n = self._store.insert(_INSERT_FRAME, (frame.basin, origin, _signed(left_out), data)) or 0
            first = n * MAX_ACTS
            rows = [(identity, first + position) for identity, position in new.items() if identity not in taken]
            self._store.many(_INSERT_ACT, rows)
            if len(rows) < len(new):  # others have used these ids
                twins = [(one, subject.mesh, first + position) for one, position in new.items() if one in taken]
                self._store.many(_INSERT_TWIN, twins)
            entries = [Entry(first + at, frame.basin, subject.mesh, frame.node, frame.acts[at]) for at in new.values()]
            frames.add(n)
            if sifted:
                self._forgetting.emptied(n)
        self._amend(subject.mesh, frame, known, new)
        return _Kept(ids if self._forgetting.is_ours(subject.mesh) else (), frames, entries)

    def _amend(self, mesh: MeshId, frame: Frame, known: Mapping[bytes, int], new: Mapping[bytes, int]) -> None:
        """Honour the edits and redactions in a frame, also those that an earlier version of this node kept only."""
        for act in frame.acts:
            if act.kind in AMENDING and act.refs and (act.id in new or act.id in known):
                said = act if act.id in new else getattr(find(self._store, act.id, mesh), "act", act)
                self._forgetting.hear(mesh, frame.basin, said)

    def _is_lawful(self, subject: Subject, act: Act) -> bool:
        """Whether an act keeps to its chain; one that does not is refused."""
        if error := self._lineage.breach(act):
            self._refuse(subject.mesh, error)
        return error is None

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


def _seal(data: bytes) -> bytes:
    """What no two frames of honest nodes share: key and signature. Cheaper than hashing all of it once more."""
    return data[:HEADER_BYTES]


def _slots(values: Collection[object]) -> str:
    return ",".join("?" * len(values))


def _nothing() -> None:
    """Before `run`, nobody is told."""


def _signed(mask: int) -> int:
    """A mask of 64 bits as SQLite's signed integer."""
    return mask - (1 << MAX_ACTS) if mask >> (MAX_ACTS - 1) else mask


_INSERT_FRAME: Final = "INSERT INTO frames (basin, origin, left_out, frame) VALUES (?, ?, ?, ?)"
_INSERT_ACT: Final = "INSERT INTO acts (id, place) VALUES (?, ?)"
_INSERT_TWIN: Final = "INSERT INTO twins (id, mesh, place) VALUES (?, ?, ?)"
