"""One link at work: what a peer may have is sent, and what it sends is verified, allowed, stored and acknowledged.

Both ends do the same, over whatever wire, whoever dialled. `mesh.links.sending` and `mesh.links.receiving` are the two
directions; here they share a wire.
"""

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Final

import structlog

from mesh.errors import MeshError
from mesh.links.ground import Ground
from mesh.links.messages import (
    VERSION,
    BadMessage,
    Beat,
    Frames,
    Gone,
    Hello,
    Kept,
    Matter,
    Missing,
    Note,
    Papers,
    Said,
    decode,
    encode,
)
from mesh.links.papers import learn
from mesh.links.receiving import Receiving
from mesh.links.sending import Sending
from mesh.links.wire import Wire, WireBroken
from mesh.words import plain
from protocol.keys import MeshId, NodeId
from protocol.quota import MINUTE_MS

SILENT_BEATS: Final = 3.5  # without any word for so many signs of life the wire is broken
DOUBT_S: Final = 1.0  # until what is missing is asked for: where several pass it on, the fastest is not always in order
MAX_MATTERS: Final = 256  # waiting to be said for our parts; what must arrive is said again over the next link
ASIDES_A_MINUTE: Final = 600  # matters, notes and papers that a peer may send: each costs us work and brings no act
MISSING_COSTS: Final = 20  # of these: to look for missing frames a whole basin is read
PAPERS_COST: Final = 8  # of them count as one of these: each is a signature to be checked
REFUSED_S: Final = 0.002  # that nothing is read from a peer for each thing refused: about twenty times its work

log = structlog.get_logger(__name__)


class Session:
    """Runs over one wire until that breaks."""

    def __init__(self, peer: MeshId, wire: Wire, ground: Ground) -> None:
        self.peer = peer
        self.node: NodeId | None = None  # which of the peer's is at the other end, once it is known
        self.vocabulary: str | None = None  # the digest that the peer told
        self._is_ending = False
        self.begun = False  # whether our parts have said what they say first; whoever lets them keeps it
        self._wire, self._ground = wire, ground
        self._sending = Sending(peer, ground, self._say)
        self._receiving = Receiving(peer, ground, self._say)
        self._matters: deque[Matter] = deque()
        self._wake = asyncio.Event()
        self._heard_s = 0.0
        self._minute, self._asides = 0, 0

    @property
    def refused(self) -> int:
        """How many frames and other messages of this peer's were refused over this wire."""
        return self._receiving.refused

    def wake(self, basins: Collection[str] | None = None) -> None:
        """Something new was stored in these basins, or the peer may have others: look again; None: at all of them."""
        self._sending.news(basins)
        self._wake.set()

    def concerns(self, basins: Collection[str]) -> bool:
        """Whether the peer may be sent anything of these basins."""
        return self._sending.concerns(basins)

    def tell(self, topic: str, data: bytes) -> bool:
        """Say something to a part of the peer's node; returns whether it will be said, if the wire holds."""
        if len(self._matters) >= MAX_MATTERS:
            return False
        self._matters.append(Matter(topic, data))
        self._wake.set()
        return True

    def finish(self) -> bool:
        """Take nothing more, and end when what was taken is acknowledged; returns whether it is already."""
        self._is_ending = True
        return self._receiving.finish()

    async def run(self) -> None:
        """Send and receive. Raises (in a group) WireBroken when the wire does, BadMessage for what is no node."""
        self._heard_s = asyncio.get_running_loop().time()
        try:
            await self._say(Hello(VERSION, self._ground.mesh, self._ground.vocabulary))
            await self._say(self._ground.papers)
            self._ground.gates.met(self.peer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(), name="link in")
                group.create_task(self._receiving.store(), name="link kept")
                group.create_task(self._send(), name="link out")
                group.create_task(self._beat(), name="link beat")
                group.create_task(self._doubt(), name="link gaps")
        finally:
            await self._wire.close()

    async def _say(self, message: Said) -> None:
        await self._wire.send(encode(message))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._wire.beat_s)
            if asyncio.get_running_loop().time() - self._heard_s > SILENT_BEATS * self._wire.beat_s:
                raise WireBroken("the peer has said nothing for too long")
            await self._say(Beat())
            self._receiving.look()  # what is missing still, and was asked for too early, is asked for again
            self.wake()

    async def _doubt(self) -> None:
        """Ask for what is missing, when it had time to come another way."""
        while True:
            await self._receiving.doubt.wait()
            await asyncio.sleep(DOUBT_S)
            self._receiving.doubt.clear()
            self._receiving.look()
            self._wake.set()

    async def _send(self) -> None:
        while True:
            self._wake.clear()
            if self.node is not None and self._ground.trust.revoked(self.peer, self.node):
                raise WireBroken("its mesh has revoked the node at the other end")
            while self._matters:
                await self._say(self._matters.popleft())
            await self._receiving.ask()
            await self._sending.send()
            await self._wake.wait()

    async def _receive(self) -> None:
        hello = decode(await self._wire.receive())
        if not isinstance(hello, Hello) or hello.version != VERSION or hello.mesh != self.peer:
            raise BadMessage("the peer does not begin as a node of that mesh does, or speaks another version")
        self.vocabulary = hello.vocabulary
        while True:
            refused = self.refused
            message = decode(await self._wire.receive())
            self._heard_s = asyncio.get_running_loop().time()
            await self._take(message)
            if self.refused > refused:
                await asyncio.sleep(REFUSED_S * (self.refused - refused))

    async def _take(self, message: Said) -> None:
        match message:
            case Frames() if self._is_ending:
                pass
            case Frames():
                await self._receiving.take(message, self._alive)
            case Kept():
                self._sending.kept(message)
            case Gone():
                self._receiving.gone(message)
                self._wake.set()
            case Missing() | Papers() | Note() | Matter():
                self._aside(message)
            case _:
                pass

    def _alive(self) -> None:
        """While we keep the peer waiting it cannot be blamed for its silence."""
        self._heard_s = asyncio.get_running_loop().time()

    def _aside(self, message: Missing | Papers | Note | Matter) -> None:
        """What is no act: a bounded number a minute, the rest is dropped and counted."""
        minute, cost = self._ground.clock() // MINUTE_MS, _cost(message)
        self._asides = self._asides + cost if minute == self._minute else cost
        self._minute = minute
        if self._asides > ASIDES_A_MINUTE:
            self._receiving.refuse(BadMessage("it says more beside its acts than anybody reads"))
            return
        match message:
            case Missing():
                self._sending.missing(message)
                self._wake.set()
            case Papers():
                self._receiving.refused += learn(self._ground, self.peer, message)
            case Note():
                self._ground.gates.told(self.peer, plain(message.text))
            case Matter():
                try:
                    self._ground.gates.matter(self.peer, message.topic, message.data)
                except BadMessage as error:
                    self._receiving.refuse(error)
                except MeshError:
                    raise
                except Exception as error:  # a slip of ours with a peer's words must not end the node
                    log.exception("a part of this node cannot deal with what a peer said", topic=message.topic)
                    self._receiving.refuse(error)


def _cost(message: Missing | Papers | Note | Matter) -> int:
    """How many of ASIDES_A_MINUTE a message is."""
    if isinstance(message, Papers):
        return 1 + (len(message.certificates) + len(message.revocations)) // PAPERS_COST
    return MISSING_COSTS if isinstance(message, Missing) else 1
