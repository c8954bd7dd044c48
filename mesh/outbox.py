"""The outbox: what this node is about to say, kept until the stream has it.

Group commit: what waits for a basin goes in one frame; when nothing waits, one act goes at once. A frame is heard here
as soon as it is signed; that the server has not acknowledged is sent again, byte for byte, until it has.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import structlog

from mesh.bus.base import Bus
from mesh.clock import Clock
from mesh.errors import BusFull, BusUnavailable
from mesh.ledger import Checked
from mesh.store import Store
from protocol.acts import Act, check_act
from protocol.address import Subject
from protocol.certificate import Certificate
from protocol.errors import BadAct, BadCertificate
from protocol.frame import FLUSH_BYTES, MAX_ACTS, MAX_FRAME, Frame, encode_frame, frame_id, reread_frame
from protocol.keys import Signer

WINDOW: Final = 4  # frames of a basin on their way at once: one is signed while the server syncs another
RETRY_S: Final = 0.2  # between attempts while the server is away; the client reconnects by itself
BARRED_S: Final = 1.0  # between two looks whether the certificate is valid
MAX_ACT: Final = MAX_FRAME - 256  # bytes: a frame has its head and a basin's name besides
MAX_WAITING: Final = 100_000  # acts; beyond it new ones are refused, so that a dead server cannot fill the disk

T = TypeVar("T")
Hear = Callable[[Sequence[Checked]], None]


class Waiting(NamedTuple):
    """An act in the outbox's table, at place `n`, of `size` bytes on the wire."""

    n: int
    basin: str
    act: Act
    size: int


class _Unsent(NamedTuple):
    """A frame that was heard here, perhaps by peers too, and did not reach the stream; the acts in it."""

    basin: str
    data: bytes
    ids: Sequence[bytes]


log = structlog.get_logger(__name__)


def _nobody(_: Sequence[Checked]) -> None:
    """The bus alone tells what was said."""


class Outbox:
    """Frames, signs and publishes acts, in order per basin."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is one independent part of a node
        self, bus: Bus, store: Store, signer: Signer, certificate: Certificate, clock: Clock, hear: Hear = _nobody
    ) -> None:
        """`certificate` is the mesh's for this node: while it is not valid, nothing is sent, and nothing lost.

        `hear` is told of every frame before the bus brings it back.
        """
        self._bus, self._store, self._signer, self._clock, self._hear = bus, store, signer, clock, hear
        self._certificate = certificate
        self._queues: dict[str, deque[Waiting]] = {}
        self._sequences: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._sent: dict[bytes, asyncio.Event] = {}
        self._unsent: deque[_Unsent] = deque()

    def put(self, basin: str, act: Act) -> Waiting:
        """Keep an act for sending. Call it within a transaction, and `send` with the result after that committed.

        Raises BadAct for what others would refuse: it would take the acts that share its frame with it.
        """
        data = _encode(act)
        try:
            act = _decode(data)  # as whoever reads the frame will have it
            check_act(act)
        except msgspec.ValidationError as error:
            raise BadAct(f"the act is not well formed: {error}") from None
        if len(data) > MAX_ACT:  # kept, it would end the node whenever it is to be signed
            raise BadAct(f"what is said has {len(data):,} bytes; an act has at most {MAX_ACT:,}")
        n = self._store.insert("INSERT INTO outbox (id, basin, act) VALUES (?, ?, ?)", (act.id, basin, data))
        return Waiting(n or 0, basin, act, len(data))

    def send(self, waiting: Waiting) -> None:
        """Send an act that the table holds."""
        self._queues.setdefault(waiting.basin, deque()).append(waiting)
        self._wake.set()

    def find(self, identity: bytes) -> Act | None:
        """An act that the table holds still: said, and not heard yet."""
        row = self._store.one("SELECT act FROM outbox WHERE id = ?", (identity,))
        return _decode(row[0]) if row else None

    def waiting(self) -> int:
        """How many acts the stream has not acknowledged yet."""
        return sum(map(len, self._queues.values())) + sum(len(one.ids) for one in self._unsent)

    def acts(self) -> list[Act]:
        """What was not heard before the last start and the stream has not acknowledged, in order within each basin."""
        return [waiting.act for queue in self._queues.values() for waiting in queue]

    async def say(self, basin: str, act: Act) -> None:
        """Put one act and wait until the stream has it.

        Raises BusFull when too much is waiting already, BadCertificate when this node may not speak now, BadAct.
        """
        self._certificate.check(self._clock())
        if self.waiting() >= MAX_WAITING:
            raise BusFull(f"{MAX_WAITING} acts wait for a server that is away; nothing more is taken")
        with self._store.transaction():
            waiting = self.put(basin, act)
        sent = self._sent.setdefault(act.id, asyncio.Event())
        try:
            self.send(waiting)
            await sent.wait()
        finally:
            self._sent.pop(act.id, None)

    def resume(self, sequences: Mapping[str, int]) -> None:
        """Take up what an earlier run left and the stream does not have.

        Call it once, when the ledger has caught up; `sequences` holds the last sequence this node used in each basin.
        """
        self._sequences = dict(sequences)
        self._queues.clear()
        heard = [(basin, data, reread_frame(data)) for basin, data in self._store.rows(_HEARD, (MAX_ACTS,))]
        ours = [one for one in heard if one[2].node == self._signer.public]
        self._unsent = deque(_Unsent(basin, data, [act.id for act in frame.acts]) for basin, data, frame in ours)
        framed = {identity for one in self._unsent for identity in one.ids}
        for n, identity, basin, data in self._store.rows("SELECT n, id, basin, act FROM outbox ORDER BY n"):
            if identity not in framed:
                self._queues.setdefault(basin, deque()).append(Waiting(n, basin, _decode(data), len(data)))

    async def run(self) -> None:
        """Publish for ever. Raises BusFull or BusRefused (within an ExceptionGroup): nothing is lost."""
        while self._unsent:
            unsent = self._unsent[0]
            await self._store_all(unsent.basin, [unsent.data])
            self._store.many("DELETE FROM outbox WHERE id = ?", ((identity,) for identity in unsent.ids))
            self._unsent.popleft()
        while True:
            self._wake.clear()
            await self._allowed()
            await _together([self._flush(basin) for basin in self._queues])
            if not self._queues:
                await self._wake.wait()

    async def _allowed(self) -> None:
        """Wait until the certificate is valid: whatever is sent before would be refused everywhere, and so lost."""
        told = False
        while True:
            try:
                self._certificate.check(self._clock())
            except BadCertificate as error:
                if not told:
                    log.warning("nothing is sent, and what is said is kept", reason=str(error))
                told = True
                await asyncio.sleep(BARRED_S)
            else:
                return

    async def _flush(self, basin: str) -> None:
        """Send what waits for a basin, at most WINDOW frames."""
        queue = self._queues[basin]
        frames = list(itertools.islice(_framed(queue), WINDOW))
        await self._publish(basin, [[waiting.act for waiting in frame] for frame in frames])
        last = frames[-1][-1]
        with self._store.transaction():
            self._store.execute("DELETE FROM outbox WHERE n <= ? AND basin = ?", (last.n, basin))
        for waiting in itertools.chain.from_iterable(frames):
            queue.popleft()
            if sent := self._sent.get(waiting.act.id):
                sent.set()
        if not queue:
            del self._queues[basin]

    async def _publish(self, basin: str, frames: Sequence[Sequence[Act]]) -> None:
        """Sign, hear and publish, in order."""
        subject = Subject(True, basin, self._certificate.mesh, self._certificate.node)
        first, now = self._sequences.get(basin, 0) + 1, self._clock()
        signed = [
            Checked(
                subject,
                Frame(subject.node, sequence, now, basin, acts),
                encode_frame(self._signer, sequence, now, basin, acts),
            )
            for sequence, acts in enumerate(frames, start=first)
        ]
        self._sequences[basin] = first + len(frames) - 1
        self._hear(signed)
        await asyncio.sleep(0)  # links send it now: somebody waits for that, and for the server nobody
        await self._store_all(basin, [one.data for one in signed])

    async def _store_all(self, basin: str, frames: Sequence[bytes]) -> None:
        """Publish frames of a basin; what is not acknowledged is sent again, byte for byte, until it is."""
        subject = str(Subject(True, basin, self._certificate.mesh, self._certificate.node))
        waiting: list[bytes] = list(frames)
        told = False
        while waiting:
            sent = await _together([self._try(subject, data) for data in waiting])  # begun in order, and so it stays
            waiting = [data for data, stored in zip(waiting, sent, strict=True) if not stored]
            if waiting:
                if not told:
                    log.warning("the bus is away; what was said is kept, and sent when it is back")
                told = True
                await asyncio.sleep(RETRY_S)

    async def _try(self, subject: str, data: bytes) -> bool:
        try:
            await self._bus.publish(subject, data, frame_id(data))
        except BusUnavailable:
            return False
        return True


async def _together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, which run at once; a single one runs right here, since a task of its own costs 0.05 ms."""
    if len(work) == 1:
        return [await work[0]]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one) for one in work]
    return [task.result() for task in tasks]


def _framed(queue: Iterable[Waiting]) -> Iterator[list[Waiting]]:
    """Cut what waits into frames: at most MAX_ACTS, and FLUSH_BYTES unless a single act is longer."""
    frame, size = list[Waiting](), 0
    for waiting in queue:
        if frame and (len(frame) == MAX_ACTS or size + waiting.size > FLUSH_BYTES):
            yield frame
            frame, size = [], 0
        frame.append(waiting)
        size += waiting.size
    if frame:
        yield frame


# What was heard here already and is kept, as it was signed: the same acts in another frame would leave a gap.
_HEARD: Final = (
    "SELECT frames.basin, frame FROM frames WHERE n IN (SELECT place / ?1 FROM acts JOIN outbox USING (id)"
    " UNION SELECT place / ?1 FROM twins JOIN outbox USING (id)) ORDER BY n"
)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Act).decode
