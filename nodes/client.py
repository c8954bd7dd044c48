"""For scripts and terminals: speak and listen through a running node.

async with connect() as mesh:            # nodes.commands.assembly
    async with mesh.listening("yappings") as inbox:
        await mesh.say("yappings", "hello, aporia")
        async for heard in inbox:
            print(heard.act.author, heard.act.text)
"""

import asyncio
import secrets
import string
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple, Self

import msgspec

from mesh.bus.base import Bus, Message
from mesh.clock import Clock
from mesh.errors import BusRefused, BusUnavailable
from mesh.trust import Trust
from nodes.errors import NodeError, NotRunning
from nodes.picture import Picture
from protocol.acts import ID_BYTES, Act
from protocol.address import Subject, check_name, parse_subject
from protocol.errors import ProtocolError
from protocol.frame import Frame, decode_frame
from protocol.husk import is_husk
from protocol.keys import MeshId, Signer
from protocol.request import NONCE_BYTES, encode_request
from protocol.vocabulary import MAX_TEXT

REQUEST_S: Final = 30.0  # how long the node may take: a full disk makes it slow, and then it says so
_HEX: Final = frozenset(string.hexdigits)
LEARN_MS: Final = 1_000  # between two looks at whom the node has met: they read its database
INBOX: Final = 4_096  # acts that wait for a slow reader; the oldest are dropped and counted


def is_id(text: str) -> bool:
    """Whether a text is an act's id in hex."""
    return len(text) == 2 * ID_BYTES and _HEX.issuperset(text)


class Heard(NamedTuple):
    """A verified act. `kept` is False for words so far (`attend`), which are replaced by the act with the same id."""

    basin: str
    mesh: MeshId
    act: Act
    kept: bool


class Inbox:
    """Acts as they come: `async for`, or `anext` with a timeout; a timed-out `anext` loses nothing."""

    def __init__(self) -> None:
        self.missed = 0
        self.refused = 0
        self._waiting: deque[Heard] = deque()
        self._arrived = asyncio.Event()

    def put(self, heard: Heard) -> None:
        """Add an act; the oldest makes room when the reader is too slow."""
        if len(self._waiting) >= INBOX:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(heard)
        self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Heard:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()


class Client:
    """One person's hands on their own node."""

    def __init__(  # noqa: PLR0913, PLR0917 - each is one independent part
        self,
        bus: Bus,
        mesh: MeshId,
        signer: Signer,
        trust: Trust,
        clock: Clock,
        learn: Callable[[], None] = lambda: None,
    ) -> None:
        """`signer` is the owner's client key, which the node knows.

        `learn` has `trust` take in what the node has learnt since: a peer that was linked meanwhile.
        """
        self._learn, self._learnt_ms = learn, clock()
        self._bus, self._mesh, self._signer, self._trust, self._clock = bus, mesh, signer, trust, clock

    async def say(
        self, basin: str, text: str, *, kind: str = "say", answers: str | None = None, media: Sequence[Picture] = ()
    ) -> dict[str, Any]:
        """Say something in the person's name; returns the act once it is stored. `answers` is an act's id in hex.

        `media` are pictures that the home's media folder holds (nodes.media).
        """
        if len(text) > MAX_TEXT:
            raise NodeError(f"that is {len(text)} characters; at most {MAX_TEXT} fit into one message")
        if answers is not None and not is_id(answers):
            raise NodeError(f"{answers[:40]!a} is no id of an act: give its {2 * ID_BYTES} hex digits")
        refs = [] if answers is None else [answers]
        said = {"basin": basin, "text": text, "kind": kind, "refs": refs}
        return await self.request("say", said | ({"media": list(media)} if media else {}))

    async def redact(self, act: str, reason: str = "") -> dict[str, Any]:
        """Take back an act (its id in hex) of the person or of one of the node's ems; its words are forgotten.

        Returns the act that does so. Raises NodeError for what others said.
        """
        if not is_id(act):
            raise NodeError(f"{act[:40]!a} is no id of an act: give its {2 * ID_BYTES} hex digits")
        return await self.request("redact", {"act": act, "reason": reason})

    async def stop(self, basin: str) -> None:
        """End every chain in a basin, and what is being written there."""
        await self.request("stop", {"basin": basin})

    async def status(self) -> dict[str, Any]:
        """How the node is."""
        return await self.request("status", {})

    async def history(self, basin: str, limit: int = 50) -> list[dict[str, Any]]:
        """The newest acts of a basin, oldest first."""
        return (await self.request("history", {"basin": basin, "limit": limit}))["acts"]

    async def request(self, operation: str, arguments: dict[str, Any], timeout_s: float = REQUEST_S) -> dict[str, Any]:
        """Ask the node for something. Raises NotRunning, or NodeError with the node's own sentence."""
        nonce, body = secrets.token_bytes(NONCE_BYTES), msgspec.json.encode(arguments)
        asked = encode_request(self._signer, operation, self._clock(), nonce, body)
        try:
            data = await self._bus.request(f"c.{self._mesh}.{operation}", asked, timeout_s)
        except BusRefused:
            raise NotRunning("the bus runs but no node answers on it; start it with: mesh up") from None
        except BusUnavailable as error:
            raise NotRunning(f"the node does not answer: {error}") from None
        reply: dict[str, Any] = msgspec.json.decode(data)
        if "error" in reply:
            raise NodeError(reply["error"])
        return reply

    def _check(self, subject: Subject, frame: Frame) -> None:
        """Raise BadCertificate unless a mesh vouches for a frame, also one that was met while we listened."""
        now = self._clock()
        if self._trust.certificate(subject.mesh, frame.node) is None and now - self._learnt_ms >= LEARN_MS:
            self._learnt_ms = now
            self._learn()
        self._trust.check(subject, frame, now)

    @asynccontextmanager
    async def listening(self, basin: str | None = None) -> AsyncGenerator[Inbox]:
        """Everything said in a basin (None: in all) from now on, verified here; what does not verify is counted."""
        inbox = Inbox()

        async def take(message: Message) -> None:
            try:
                subject = parse_subject(message.subject)
                frame = decode_frame(message.data)
                self._check(subject, frame)
            except ProtocolError:
                inbox.refused += 1
                return
            if any(map(is_husk, frame.acts)):
                return  # said again without what was taken back: whoever listens has heard all of it
            for act in frame.acts:
                inbox.put(Heard(frame.basin, subject.mesh, act, subject.stored))

        where = "*" if basin is None else check_name(basin)
        kept = await self._bus.subscribe(f"b.{where}.>", take)
        passing = await self._bus.subscribe(f"e.{where}.>", take)
        try:
            yield inbox
        finally:
            await kept.close()
            await passing.close()
