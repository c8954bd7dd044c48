"""One link at work: what a peer may have is sent, and what it sends is verified, allowed, stored and acknowledged.

Both ends do the same, over whatever wire, whoever dialled. A cursor a basin, moved when the peer says that it has kept
what was sent, makes a link go on where it stopped, after an hour or a week. Ids make repetition invisible.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import structlog

from mesh.bus.base import Bus
from mesh.clock import Clock
from mesh.errors import BusUnavailable
from mesh.links.channel import Proved
from mesh.links.messages import (
    MAX_FRAMES,
    VERSION,
    BadMessage,
    Beat,
    Frames,
    Hello,
    Kept,
    Note,
    Papers,
    decode,
    encode,
)
from mesh.links.wire import MAX_MESSAGE, Wire, WireBroken
from mesh.store import Store
from mesh.trust import Trust
from mesh.words import plain
from protocol.acts import Act
from protocol.address import Subject
from protocol.certificate import Certificate, Revocation, read_certificate, read_revocation
from protocol.errors import ProtocolError
from protocol.frame import Frame, decode_frame, frame_id
from protocol.keys import MeshId

WINDOW: Final = 8  # messages with frames that are on their way unacknowledged
MAX_BYTES: Final = MAX_MESSAGE // 2  # of frames in one message: the next ones wait for it
BEAT_S: Final = 10.0  # between two signs of life
SILENT_S: Final = 35.0  # without any word the wire is broken
RETRY_S: Final = 0.2  # while our own bus is away

LINKS_SCHEMA: Final = (
    """
    CREATE TABLE link_cursors (
        peer TEXT NOT NULL, basin TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (peer, basin)
    ) WITHOUT ROWID;
    CREATE TABLE link_papers (
        mesh TEXT NOT NULL, node TEXT NOT NULL, data BLOB NOT NULL, proved INTEGER NOT NULL, PRIMARY KEY (mesh, node)
    ) WITHOUT ROWID;
    CREATE TABLE link_revocations (mesh TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
    """,
)

log = structlog.get_logger(__name__)


class Gates(Protocol):
    """What a person lets a peer have and say, at this moment. Nothing here may wait."""

    def sent(self, peer: MeshId) -> Sequence[tuple[str, int]]:
        """The basins of which the peer is sent what is said, each with the time from which on (Unix milliseconds)."""
        ...

    def may_have(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> bool:
        """Whether an act, which `origin` said, may go to the peer."""
        ...

    def kept(self, peer: MeshId, basin: str) -> None:
        """The peer has kept more of what it was sent of a basin."""
        ...

    def takes(self, peer: MeshId, basin: str) -> bool:
        """Whether anything in a basin is taken from the peer."""
        ...

    def refuses(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> str | None:
        """Why an act that came from the peer is not taken, or None."""
        ...

    def pace_s(self, peer: MeshId, basin: str, acts: int) -> float:
        """Seconds to wait before so many more acts are taken from the peer; 0 counts them against its quota."""
        ...

    def told(self, peer: MeshId, text: str) -> None:
        """The peer's node has said something to our person."""
        ...


@dataclass(frozen=True, slots=True)
class Ground:
    """What sessions stand on. `papers` are our own certificates and revocation lists, as signed."""

    mesh: MeshId
    store: Store
    bus: Bus
    trust: Trust
    clock: Clock
    gates: Gates
    papers: Papers
    vocabulary: str


def learn_papers(store: Store, trust: Trust) -> None:
    """Believe again what peers' nodes have shown: call it before anything of theirs is read from the stream."""
    for data, proved in store.rows("SELECT data, proved FROM link_papers ORDER BY proved DESC, mesh, node"):
        trust.learn(read_certificate(data), proved=bool(proved))
    for (data,) in store.rows("SELECT data FROM link_revocations ORDER BY mesh"):
        trust.revoke(read_revocation(data))


class _Sent(NamedTuple):
    """A message on its way: its number, and where the basin's cursor is once it is kept."""

    number: int
    basin: str
    n: int


class Session:
    """Runs over one wire until that breaks."""

    def __init__(self, peer: MeshId, wire: Wire, ground: Ground) -> None:
        self.peer = peer
        self.vocabulary: str | None = None  # the digest that the peer told
        self.refused = 0
        self._wire, self._ground = wire, ground
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._on_the_way: deque[_Sent] = deque()
        self._number = 0
        self._ahead: dict[str, int] = {}  # basins: up to where frames were sent over this wire
        self._shown: set[tuple[str, str]] = set()  # nodes whose certificates the peer was sent
        self._heard_s = 0.0

    def wake(self) -> None:
        """Something new was stored, or the peer may have more: look again."""
        self._wake.set()

    def prove(self, proved: Proved) -> None:
        """Take in the certificate that the peer's node has proved to hold."""
        certificate = read_certificate(proved.certificate)
        self._ground.trust.learn(certificate, proved=True)
        self._save(certificate, proved.certificate, proved=True)

    async def run(self) -> None:
        """Send and receive. Raises (in a group) WireBroken when the wire does, BadMessage for what is no node."""
        self._heard_s = asyncio.get_running_loop().time()
        try:
            await self._say(Hello(VERSION, self._ground.mesh, self._ground.vocabulary))
            await self._say(self._ground.papers)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(), name="link in")
                group.create_task(self._send(), name="link out")
                group.create_task(self._beat(), name="link beat")
        finally:
            await self._wire.close()

    async def _say(self, message: Hello | Papers | Frames | Kept | Note | Beat) -> None:
        await self._wire.send(encode(message))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            if asyncio.get_running_loop().time() - self._heard_s > SILENT_S:
                raise WireBroken("the peer has said nothing for too long")
            await self._say(Beat())

    # Out

    async def _send(self) -> None:
        while True:
            self._wake.clear()
            for basin, since_ms in self._ground.gates.sent(self.peer):
                while await self._send_some(basin, since_ms):
                    pass
            await self._wake.wait()

    async def _send_some(self, basin: str, since_ms: int) -> bool:
        """Send one message of a basin's frames; returns whether there may be more."""
        place = self._ahead.get(basin)
        if place is None:
            place = self._ahead[basin] = self._cursor(basin)
        found, last, full = self._next(basin, place, since_ms)
        if last == place:
            return False
        self._ahead[basin] = last
        if found:
            while len(self._on_the_way) >= WINDOW:
                self._moved.clear()
                await self._moved.wait()
            await self._vouch(found)
            self._number += 1
            self._on_the_way.append(_Sent(self._number, basin, last))
            await self._say(Frames(self._number, [data for data, _, _ in found]))
        elif not self._on_the_way:
            self._keep(basin, last)
        return full

    def _cursor(self, basin: str) -> int:
        row = self._ground.store.one("SELECT n FROM link_cursors WHERE peer = ? AND basin = ?", (self.peer, basin))
        return row[0] if row else 0

    def _next(self, basin: str, after: int, since_ms: int) -> tuple[list[tuple[bytes, str, str]], int, bool]:
        """Frames behind a place that the peer may have, with their meshes and nodes; the place behind them."""
        rows = self._ground.store.rows(
            "SELECT n, mesh, node, frame FROM frames JOIN origins USING (origin)"
            " WHERE basin = ? AND n > ? ORDER BY n LIMIT ?",
            (basin, after, MAX_FRAMES),
        )
        found, size, last = list[tuple[bytes, str, str]](), 0, after
        for n, mesh, node, data in rows:
            if found and size + len(data) > MAX_BYTES:
                return found, last, True
            last = n
            if mesh != self.peer and self._may_have(MeshId(mesh), basin, data, since_ms):
                found.append((data, mesh, node))
                size += len(data)
        return found, last, len(rows) == MAX_FRAMES

    def _may_have(self, mesh: MeshId, basin: str, data: bytes, since_ms: int) -> bool:
        """Whether a frame verifies still, and holds only what the peer may see."""
        try:
            frame = decode_frame(data)
        except ProtocolError:
            return False  # somebody else's, with words that were taken back: it proves nothing any more
        gates = self._ground.gates
        is_new = frame.sent_at_ms >= since_ms
        return is_new and all(gates.may_have(self.peer, mesh, basin, act) for act in frame.acts)

    async def _vouch(self, found: Sequence[tuple[bytes, str, str]]) -> None:
        """Send the certificates of nodes that the peer has not seen yet over this wire."""
        new = {(mesh, node) for _, mesh, node in found if mesh != self._ground.mesh} - self._shown
        if not new:
            return
        papers = [self._paper(mesh, node) for mesh, node in sorted(new)]
        await self._say(Papers([paper for paper in papers if paper], []))
        self._shown |= new

    def _paper(self, mesh: str, node: str) -> bytes | None:
        row = self._ground.store.one("SELECT data FROM link_papers WHERE mesh = ? AND node = ?", (mesh, node))
        return row[0] if row else None

    def _keep(self, basin: str, n: int) -> None:
        with self._ground.store.transaction():
            self._ground.store.execute("INSERT OR REPLACE INTO link_cursors VALUES (?, ?, ?)", (self.peer, basin, n))

    def _kept(self, message: Kept) -> None:
        """The peer has kept what was sent up to a number."""
        done: dict[str, int] = {}
        while self._on_the_way and self._on_the_way[0].number <= message.number:
            sent = self._on_the_way.popleft()
            done[sent.basin] = sent.n
        for basin, n in done.items():
            self._keep(basin, n)
        self._moved.set()
        for basin in done:
            self._ground.gates.kept(self.peer, basin)

    # In

    async def _receive(self) -> None:
        hello = decode(await self._wire.receive())
        if not isinstance(hello, Hello) or hello.version != VERSION or hello.mesh != self.peer:
            raise BadMessage("the peer does not begin as a node of that mesh does, or speaks another version")
        self.vocabulary = hello.vocabulary
        while True:
            message = decode(await self._wire.receive())
            self._heard_s = asyncio.get_running_loop().time()
            match message:
                case Frames():
                    await self._take(message)
                case Kept():
                    self._kept(message)
                case Papers():
                    self._learn(message)
                case Note():
                    self._ground.gates.told(self.peer, plain(message.text))
                case _:
                    pass

    async def _take(self, message: Frames) -> None:
        """Verify, ask the gates, store, and only then say that it is kept."""
        allowed = list[tuple[Subject, bytes]]()
        refused = 0
        for data in message.frames:
            taken = self._allowed(data)
            if taken is None:
                refused += 1
            elif not self._is_known(taken[1]):
                await self._pace(taken[1])
                allowed.append((taken[0], data))
        self.refused += refused
        for start in range(0, len(allowed), WINDOW):
            async with asyncio.TaskGroup() as group:
                for subject, data in allowed[start : start + WINDOW]:
                    group.create_task(self._store(subject, data))
        await self._say(Kept(message.number, refused))

    async def _pace(self, frame: Frame) -> None:
        """Wait until the peer's quota has room: nothing more is read from it meanwhile, and nothing is lost."""
        while (wait_s := self._ground.gates.pace_s(self.peer, frame.basin, len(frame.acts))) > 0:
            await asyncio.sleep(min(wait_s, BEAT_S))
            self._heard_s = asyncio.get_running_loop().time()

    def _allowed(self, data: bytes) -> tuple[Subject, Frame] | None:
        """A frame that verifies and may come in, with its subject; None for any other, which is counted."""
        try:
            frame = decode_frame(data)
            mesh = self._ground.trust.mesh_of(frame.node) or MeshId("")
            subject = Subject(True, frame.basin, mesh, frame.node)
            self._ground.trust.check(subject, frame, self._ground.clock())
        except ProtocolError as error:
            self._refuse(error)
            return None
        if reason := self._barred(mesh, frame):
            self._refuse(BadMessage(reason))
            return None
        return subject, frame

    def _barred(self, mesh: MeshId, frame: Frame) -> str | None:
        gates = self._ground.gates
        if mesh == self._ground.mesh:
            return "it pretends to be ours"
        if not gates.takes(self.peer, frame.basin):
            return "the basin is not taken from this peer"
        reasons = (gates.refuses(self.peer, mesh, frame.basin, act) for act in frame.acts)
        return next((reason for reason in reasons if reason), None)

    def _is_known(self, frame: Frame) -> bool:
        """Whether every act of a frame is here already: it came another way."""
        ids = [act.id for act in frame.acts]
        marks = ",".join("?" * len(ids))
        sql = f"SELECT count(*) FROM acts WHERE id IN ({marks})"  # noqa: S608 - question marks only
        return self._ground.store.one(sql, ids)[0] == len(set(ids))

    async def _store(self, subject: Subject, data: bytes) -> None:
        while True:
            try:
                await self._ground.bus.publish(str(subject), data, frame_id(data))
            except BusUnavailable:
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _refuse(self, error: Exception) -> None:
        reason = type(error).__name__
        with self._ground.store.transaction():
            self._ground.store.execute(
                "INSERT INTO refusals VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1",
                (self.peer, reason),
            )
        if self.refused & (self.refused + 1) == 0:  # the 1st, 2nd, 4th, 8th
            log.warning("refused what a peer sent", peer=self.peer[:8], reason=plain(str(error)))

    def _learn(self, papers: Papers) -> None:
        """Take in certificates and revocations; each proves itself by its mesh's signature."""
        for data in papers.certificates:
            try:
                self._note_certificate(read_certificate(data), data)
            except ProtocolError as error:
                self._refuse(error)
        for data in papers.revocations:
            try:
                self._note_revocation(read_revocation(data), data)
            except ProtocolError as error:
                self._refuse(error)

    def _note_certificate(self, certificate: Certificate, data: bytes) -> None:
        if certificate.mesh != self._ground.mesh and self._ground.trust.learn(certificate):
            self._save(certificate, data, proved=False)

    def _save(self, certificate: Certificate, data: bytes, *, proved: bool) -> None:
        sql = (
            "INSERT INTO link_papers VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
            " SET data = excluded.data, proved = max(proved, excluded.proved)"
        )
        with self._ground.store.transaction():
            self._ground.store.execute(sql, (certificate.mesh, certificate.node, data, proved))

    def _note_revocation(self, revocation: Revocation, data: bytes) -> None:
        if revocation.mesh == self._ground.mesh or not self._ground.trust.revoke(revocation):
            return
        with self._ground.store.transaction():
            self._ground.store.execute("INSERT OR REPLACE INTO link_revocations VALUES (?, ?)", (revocation.mesh, data))
