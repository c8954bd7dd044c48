"""Out: what a peer may have, in the order in which it was heard here.

A cursor a basin, moved when the peer says that it has kept what was sent, makes a link go on where it stopped, after an
hour or a week. What the peer lacks of a node's count is looked for, and sent again where it may be had.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Final, NamedTuple

from mesh.links.ground import Ground, Sent
from mesh.links.messages import MAX_FRAMES, Frames, Gone, Kept, Missing, Note, Papers, Said
from mesh.links.papers import paper, revocations
from mesh.links.wire import MAX_MESSAGE
from protocol.errors import ProtocolError
from protocol.frame import Frame, decode_frame, encode_frame, reread_frame, sequence_of
from protocol.keys import MeshId
from protocol.vocabulary import BODIES

WINDOW: Final = 8  # messages with frames that are on their way unacknowledged
MAX_BYTES: Final = MAX_MESSAGE // 2  # of frames in one message: the next ones wait for it
MAX_ASKED: Final = 64  # requests for missing frames that wait; a node asks again for what was not answered
PASSED: Final = 64  # frames that are not for a peer, until the cursor is moved over them: looking again costs less
SPAN: Final = 16_384  # frames of others between them that are passed over at once: some milliseconds
PAGE: Final = 128  # frames that are looked through at once for missing ones: about a millisecond

Say = Callable[[Said], Awaitable[None]]
Read = Callable[[bytes], Frame]


class _OnTheWay(NamedTuple):
    """A message on its way: its number, and where the basin's cursor is once it is kept; None: that stays."""

    number: int
    basin: str
    n: int | None
    since_ms: int


class _Found(NamedTuple):
    """A frame that a peer may have."""

    data: bytes
    mesh: str
    node: str


class Sending:
    """One peer's share of what is said here."""

    def __init__(self, peer: MeshId, ground: Ground, say: Say) -> None:
        self._peer, self._ground, self._say = peer, ground, say
        self._moved = asyncio.Event()
        self._on_the_way: deque[_OnTheWay] = deque()
        self._number = 0
        self._ahead: dict[str, int] = {}  # basins: up to where frames were sent over this wire
        self._since: dict[str, int] = {}  # and from which time on
        self._noted: dict[str, int] = {}  # and where the cursor in the table is, as far as this wire moved it
        self._shown: set[tuple[str, str]] = set()  # nodes whose certificates the peer was sent
        self._asked: deque[Missing] = deque()
        self._missed: dict[str, int] = {}  # basins: acts beyond the limit that were passed over just now
        self._looked: dict[str, int] = {}  # basins that were looked through, and from which time on
        self._news: set[str] = set()  # basins in which something new was said since

    def news(self, basins: Collection[str] | None) -> None:
        """Something new was said in these basins; None: look at all again, whatever is known of them."""
        if basins is None:
            self._looked.clear()
        else:
            self._news.update(basins)

    def concerns(self, basins: Collection[str]) -> bool:
        """Whether any of these basins was sent when last looked at; what the peer is sent changes in their own one."""
        return not self._looked or not self._looked.keys().isdisjoint(basins)

    async def send(self) -> None:
        """Send all that there is now. Raises WireBroken."""
        news, self._news = self._news, set[str]()
        basins = self._ground.gates.sent(self._peer)
        looked, self._looked = self._looked, {sent.basin: sent.since_ms for sent in basins}
        for sent in basins:
            if sent.basin in news or looked.get(sent.basin) != sent.since_ms:
                while await self._send_some(sent):  # noqa: ASYNC110 - it polls nothing
                    await asyncio.sleep(0)  # what is not for the peer is passed over without a word: others go on
                await self._tell_missed(sent)
        while self._asked:
            await self._send_again(self._asked.popleft())

    def missing(self, message: Missing) -> None:
        """The peer lacks frames."""
        if len(self._asked) < MAX_ASKED:
            self._asked.append(message)

    def kept(self, message: Kept) -> None:
        """The peer has kept what was sent up to a number."""
        done: dict[str, _OnTheWay] = {}
        while self._on_the_way and self._on_the_way[0].number <= message.number:
            sent = self._on_the_way.popleft()
            if sent.n is not None:
                done[sent.basin] = sent
        for sent in done.values():
            self._keep(sent.basin, sent.n or 0, sent.since_ms)
        self._moved.set()
        for basin in done:
            self._ground.gates.kept(self._peer, basin)

    async def _send_some(self, sent: Sent) -> bool:
        """Send one message of a basin's frames; returns whether there may be more."""
        place = self._place(sent)
        found, last, full = self._next(sent, place)
        if last == place:
            return False
        self._ahead[sent.basin] = last
        if found:
            await self._frames(found, sent.basin, last)
        elif not self._on_the_way and last - self._noted.get(sent.basin, -PASSED) >= PASSED:
            self._keep(sent.basin, last, sent.since_ms)
        return full

    def _place(self, sent: Sent) -> int:
        """Up to where a basin was sent; its beginning, when the peer may see more of it than before."""
        basin = sent.basin
        if basin not in self._ahead:
            sql = "SELECT n, since_ms FROM link_cursors WHERE peer = ? AND basin = ?"
            self._ahead[basin], self._since[basin] = self._ground.store.one(sql, (self._peer, basin)) or (
                0,
                sent.since_ms,
            )
        if sent.since_ms < self._since[basin]:
            self._ahead[basin] = 0
        self._since[basin] = sent.since_ms
        return self._ahead[basin]

    async def _frames(self, found: Sequence[_Found], basin: str, n: int | None) -> None:
        """Send one message with frames when there is room for it on the way."""
        while len(self._on_the_way) >= WINDOW:
            self._moved.clear()
            await self._moved.wait()
        await self._vouch(found)
        self._number += 1
        self._on_the_way.append(_OnTheWay(self._number, basin, n, self._since.get(basin, 0)))
        await self._say(Frames(self._number, [one.data for one in found]))

    def _next(self, sent: Sent, after: int) -> tuple[list[_Found], int, bool]:
        """Frames behind a place that the peer may have; the place behind them; whether there may be more."""
        rows = self._ground.store.rows(
            "SELECT n, mesh, node, frame, n IN emptied FROM frames JOIN origins USING (origin)"
            " WHERE basin = ? AND n > ? ORDER BY n LIMIT ?",
            (sent.basin, after, MAX_FRAMES),
        )
        found, size, last = list[_Found](), 0, after
        for n, mesh, node, data, is_emptied in rows:
            if found and size + len(data) > MAX_BYTES:
                return found, last, True
            last = n
            read = decode_frame if is_emptied else reread_frame  # it was verified when it was kept
            may_have = self._may_have(sent, MeshId(mesh), data, read) if mesh != self._peer else None
            if may_have is not None:
                found.append(_Found(may_have, mesh, node))
                size += len(may_have)
        return found, last, len(rows) == MAX_FRAMES

    def _may_have(self, sent: Sent, mesh: MeshId, data: bytes, read: Read = decode_frame) -> bytes | None:
        """A frame for the peer if it verifies still, and holds only what the peer may see; else None."""
        try:
            frame = read(data)
        except ProtocolError:
            return None  # somebody else's, with words that were taken back: it proves nothing any more
        gates = self._ground.gates
        if frame.sent_at_ms < sent.since_ms:
            return None
        if not all(gates.may_have(self._peer, mesh, sent.basin, act) for act in frame.acts):
            return None
        if frame.sent_at_ms < sent.oldest_ms:
            self._missed[sent.basin] = self._missed.get(sent.basin, 0) + len(frame.acts)
            return None
        return self._readable(frame, data)

    def _readable(self, frame: Frame, data: bytes) -> bytes:
        """A frame in words that the peer knows; what others signed goes as it is."""
        signer = self._ground.signer
        if frame.node != signer.public or all(act.kind in BODIES for act in frame.acts):
            return data
        acts = [self._ground.gates.as_read(self._peer, act) for act in frame.acts]
        if acts == list(frame.acts):
            return data
        return encode_frame(signer, frame.sequence, frame.sent_at_ms, frame.basin, acts)

    async def _tell_missed(self, sent: Sent) -> None:
        """Tell the peer's person what was too old to be sent."""
        if missed := self._missed.pop(sent.basin, 0):
            acts = f"{missed} act{'s' if missed != 1 else ''}"
            await self._say(Note(f"{acts} in {sent.basin} were too old to be sent when you came back"))

    async def _send_again(self, asked: Missing) -> None:
        """Answer a request for missing frames with those that the peer may have, and then that there are no more."""
        sent = next((one for one in self._ground.gates.sent(self._peer) if one.basin == asked.basin), None)
        if asked.mesh == self._peer:
            sent = Sent(asked.basin)  # its own words: a node of its mesh may always have them back
        if sent is not None:
            after = 0
            while (page := self._page(asked, after)) is not None:
                found, after = page
                missing = [self._again(sent, asked, data) for data in found]
                frames = [one for one in missing if one is not None]
                for few in _parted(frames):
                    await self._frames(few, asked.basin, None)
                await asyncio.sleep(0)
            self._missed.pop(sent.basin, None)  # told when it was passed over first
        await self._say(Gone(asked.mesh, asked.node, asked.basin, asked.first, asked.last))

    def _page(self, asked: Missing, after: int) -> tuple[list[bytes], int] | None:
        """Some frames of a node in a basin, and the place behind them; None when there are no more."""
        (newest,) = self._ground.store.one("SELECT max(n) FROM frames WHERE basin = ?", (asked.basin,))
        if newest is None or after >= newest:
            return None
        sql = (
            "SELECT n, frame FROM frames JOIN origins USING (origin)"
            " WHERE basin = ? AND n > ? AND n <= ? AND mesh = ? AND node = ? ORDER BY n LIMIT ?"
        )
        where = (asked.basin, after, after + SPAN, asked.mesh, asked.node, PAGE)
        rows = self._ground.store.rows(sql, where)
        return [data for _, data in rows], rows[-1][0] if len(rows) == PAGE else after + SPAN

    def _again(self, sent: Sent, asked: Missing, data: bytes) -> _Found | None:
        """A frame, if it is one of those that were asked for and the peer may have it."""
        sequence = sequence_of(data)
        if sequence is None or not asked.first <= sequence <= asked.last:
            return None
        if asked.mesh == self._peer:
            return _Found(data, asked.mesh, asked.node) if _verifies(data) else None
        may_have = self._may_have(sent, MeshId(asked.mesh), data)
        return None if may_have is None else _Found(may_have, asked.mesh, asked.node)

    async def _vouch(self, found: Sequence[_Found]) -> None:
        """Send the certificates of nodes that the peer has not seen yet over this wire."""
        new = {(one.mesh, one.node) for one in found if one.mesh != self._ground.mesh} - self._shown
        if not new:
            return
        papers = [paper(self._ground, mesh, node) for mesh, node in sorted(new)]
        lists = revocations(self._ground, {mesh for mesh, _ in new} - {mesh for mesh, _ in self._shown})
        await self._say(Papers([one for one in papers if one], lists))
        self._shown |= new

    def _keep(self, basin: str, n: int, since_ms: int) -> None:
        self._noted[basin] = n
        row = (self._peer, basin, n, since_ms)
        with self._ground.store.transaction():
            self._ground.store.execute("INSERT OR REPLACE INTO link_cursors VALUES (?, ?, ?, ?)", row)


def _verifies(data: bytes) -> bool:
    """Whether a frame still proves who said it: what was taken back is not given back."""
    try:
        decode_frame(data)
    except ProtocolError:
        return False
    return True


def _parted(frames: Sequence[_Found]) -> Iterator[list[_Found]]:
    """Frames in lists that fit a message each."""
    part, size = list[_Found](), 0
    for frame in frames:
        if part and (len(part) == MAX_FRAMES or size + len(frame.data) > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(frame)
        size += len(frame.data)
    if part:
        yield part
