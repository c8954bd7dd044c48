"""Questions to a peer's memory, and from peers to ours. A part of the node (nodes.peers.parts).

What may be asked about is granted by a person, basin by basin. An answer is what was said, as it was signed by whoever
said it, and a receipt of the node that answered: the asker need not believe it, and both keep that it was asked.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import structlog

from mesh.entries import Entry
from mesh.errors import MeshError, StoreFailed
from mesh.links.messages import BadMessage
from nodes.errors import NodeError
from nodes.node import Node
from nodes.peers.gates import is_heard
from nodes.peers.peers import Peers
from nodes.peers.tables import Peer
from nodes.recalls.messages import MAX_PROOF, MAX_QUESTION, Ask, Cite, Done, No, decode, encode
from nodes.recalls.search import Cited, search
from nodes.recalls.tables import Recall, Tables
from protocol.acts import Act, ActId
from protocol.certificate import read_certificate
from protocol.errors import BadDocument, BadProof
from protocol.husk import is_husk
from protocol.keys import MeshId
from protocol.proof import check_proof, read_proof, write_proof
from protocol.quota import MINUTE_MS
from protocol.receipt import MAX_CITED, Recalled, digest_of_question, read_recalled, sign_recalled
from protocol.statement import check_shareable

MAX_GRANTED: Final = 64  # basins that one peer may ask about: as many as a receipt names
MAX_WAITING: Final = 16  # questions that wait to be answered, of all peers; each costs some tenths of a second
A_MINUTE: Final = 6  # questions of one peer
COST: Final = 50  # acts of a peer's quota that a question counts for
ANSWER_S: Final = 20.0  # that a question waits for its answer
_NO: Final = {
    "grant": "{name} has not granted you that; they would with: mesh peer grant YOU recall BASIN",
    "quota": "{name} has answered enough for now; ask again in some minutes",
    "busy": "{name}'s node is busy; ask again",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """An act out of somebody's memory, verified: a node of `mesh` signed it."""

    act: Act
    mesh: MeshId
    basin: str


@dataclass(slots=True)
class _Asked:
    """A question of ours that waits for its answer."""

    peer: MeshId
    question: str
    basin: str | None
    found: dict[bytes, Found] = field(default_factory=dict[bytes, Found])
    receipt: bytes | None = None
    acts: Sequence[ActId] = ()
    problem: str | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class _Task:
    """A question that waits to be answered here."""

    peer: MeshId
    ask: Ask
    basins: Sequence[str]


class Recalls:
    """All questions of one node's mesh to memories, and to its own."""

    topic = "recall"

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node, self._peers, self._store = node, peers, node.ground.store
        self.tables = Tables(self._store)
        self._numbers = itertools.count(1)
        self._asked: dict[int, _Asked] = {}
        self._tasks: deque[_Task] = deque()
        self._times: dict[MeshId, tuple[int, int]] = {}  # of peers: a minute, and what they asked in it
        self._wake = asyncio.Event()
        peers.join(self, self.run)

    # What the person does

    def grant(self, peer: Peer, basins: Collection[str]) -> list[str]:
        """Let a peer ask about basins; gives all that it may ask about. Raises NodeError, BadAddress."""
        for basin in basins:
            check_shareable(basin)
        if len({*self.granted(peer), *basins}) > MAX_GRANTED:
            raise NodeError(f"one peer may ask about {MAX_GRANTED} basins at most")
        with self._store.transaction():
            self.tables.ungrant(peer.mesh, self.tables.granted(peer.mesh, 0) if not self.granted(peer) else ())
            self.tables.grant(peer.mesh, basins, self._peers.now_ms())
        return self.granted(peer)

    def ungrant(self, peer: Peer, basins: Collection[str]) -> list[str]:
        """Let it no more ask about these basins, or about any where none is named; gives what it may ask about."""
        with self._store.transaction():
            self.tables.ungrant(peer.mesh, basins or self.tables.granted(peer.mesh))
        return self.granted(peer)

    def granted(self, peer: Peer) -> list[str]:
        """What a peer may ask about; what was granted before a link that has ended does not count for the next."""
        return self.tables.granted(peer.mesh, peer.relationship.mine.joined_ms)

    async def ask(self, peer: Peer, question: str, basin: str | None) -> list[Found]:
        """Ask a peer's memory; gives what it cites, best first. Raises NodeError in all other cases."""
        if not 0 < len(question) <= MAX_QUESTION:
            raise NodeError(f"a question has 1 to {MAX_QUESTION} characters; this has {len(question)}")
        number, asked = next(self._numbers), _Asked(peer.mesh, question, basin)
        self._asked[number] = asked
        try:
            if not self._peers.tell(peer.mesh, self.topic, encode(Ask(number, question, basin))):
                raise NodeError(f"{peer.petname} is not here now; see: mesh who")
            async with asyncio.timeout(ANSWER_S):
                await asked.ended.wait()
        except TimeoutError:
            asked.problem = f"{peer.petname}'s node did not answer"
        finally:
            del self._asked[number]
        self._record(peer.mesh, asked)
        if asked.problem is not None:
            raise NodeError(asked.problem)
        return [asked.found[act] for act in asked.acts]

    def _record(self, peer: MeshId, asked: _Asked) -> None:
        outcome, acts = asked.problem or "answered", len(asked.acts)
        basins, now = asked.basin or "", self._peers.now_ms()
        with self._store.transaction():
            self.tables.put(Recall(peer, False, asked.question, basins, now, outcome, acts, asked.receipt))

    # A part's

    def begin(self, peer: MeshId) -> Iterable[bytes]:  # noqa: ARG002 - a Part's
        """Nothing: whoever asked asks again."""
        return ()

    def hear(self, entries: Sequence[Entry]) -> None:
        """Nothing."""

    def proceed(self) -> None:
        """Nothing."""

    def told(self, peer: MeshId, data: bytes) -> None:
        """A peer asks, or answers. Raises BadMessage."""
        message = decode(data)
        if isinstance(message, Ask):
            self._take(peer, message)
            return
        asked = self._asked.get(message.number)
        if asked is None or asked.peer != peer or asked.ended.is_set():
            return  # too late
        match message:
            case Cite():
                self._cite(asked, message)
            case Done():
                self._done(asked, message)
            case No():
                asked.problem = _NO[message.reason].format(name=self._peers.peers[peer].petname)
                asked.ended.set()

    # Answers to us

    def _cite(self, asked: _Asked, message: Cite) -> None:
        """Verify a citation. Raises BadMessage."""
        if len(asked.found) + len(message.acts) > MAX_CITED:
            raise BadMessage("an answer cites more than any may")
        try:
            proof = read_proof(message.proof)
            proved = check_proof(proof)
        except BadProof as error:
            raise BadMessage(f"a citation does not hold: {error}") from None
        mesh, node, trust = proved.certificate.mesh, proved.frame.node, self._node.identity.trust
        if trust.revoked(mesh, node) or (trust.mesh_of(node) or mesh) != mesh:
            raise BadMessage("a citation is by a node that does not speak for the mesh it names")
        if asked.basin not in (None, proved.frame.basin):
            raise BadMessage("a citation is of another basin than was asked about")
        acts = {act.id: act for act in proved.frame.acts if not is_husk(act)}
        for identity in message.acts:
            if identity not in acts:
                raise BadMessage("a citation names an act that its frame does not hold")
            asked.found[identity] = Found(acts[identity], mesh, proved.frame.basin)

    def _done(self, asked: _Asked, message: Done) -> None:
        """Verify the receipt, which must be for exactly this answer. Raises BadMessage."""
        name = self._peers.peers[asked.peer].petname
        asked.problem = f"what {name}'s node answered does not hold; nothing of it is shown"
        asked.ended.set()
        try:
            receipt = read_recalled(message.receipt, self._peers.me, self._peers.now_ms())
        except BadDocument as error:
            raise BadMessage(f"the receipt for an answer does not count: {error}") from None
        is_it = self._peers.is_by(asked.peer, receipt) and receipt.question == digest_of_question(asked.question)
        if not is_it or set(receipt.acts) != set(asked.found):
            raise BadMessage("the receipt is for another answer")
        asked.problem, asked.receipt, asked.acts = None, message.receipt, receipt.acts

    # Questions to us

    def _take(self, peer: MeshId, ask: Ask) -> None:
        """A peer asks: let it wait for its turn, or say why not."""
        basins = self.granted(self._peers.peers[peer])
        if ask.basin is not None:
            basins = [basin for basin in basins if basin == ask.basin]
        if not basins:
            self._refuse(peer, ask, "grant")
        elif len(self._tasks) >= MAX_WAITING or any(task.peer == peer for task in self._tasks):
            self._refuse(peer, ask, "busy")
        elif self._is_too_often(peer) or self._peers.gates.pace_s(peer, basins[0], COST) > 0:
            self._refuse(peer, ask, "quota")
        else:
            self._tasks.append(_Task(peer, ask, basins))
            self._wake.set()

    def _is_too_often(self, peer: MeshId) -> bool:
        minute = self._peers.now_ms() // MINUTE_MS
        held, times = self._times.get(peer, (minute, 0))
        times = times + 1 if held == minute else 1
        self._times[peer] = minute, times
        return times > A_MINUTE

    def _refuse(self, peer: MeshId, ask: Ask, reason: Literal["grant", "quota", "busy"]) -> None:
        self._peers.tell(peer, self.topic, encode(No(ask.number, reason)))
        words = {"grant": "not granted", "quota": "too often", "busy": "the node was busy"}
        with self._store.transaction():
            asked = Recall(peer, True, ask.question, ask.basin or "", self._peers.now_ms(), words[reason])
            self.tables.put(asked)

    async def run(self) -> None:
        """Answer one question after the other, until cancelled."""
        while True:
            self._wake.clear()
            while self._tasks:
                task = self._tasks[0]  # stays in the line while it is worked on: a peer has one place there
                try:
                    await self._answer(task)
                except (MeshError, ValueError) as error:
                    log.warning("a question could not be answered", reason=str(error))
                except Exception:  # a slip of ours with a peer's words must not end the node
                    log.exception("this node cannot deal with what a peer asked")
                finally:
                    self._tasks.popleft()
            await self._wake.wait()

    async def _answer(self, task: _Task) -> None:
        """Search, cite, sign. Raises MeshError, ValueError."""
        found = await asyncio.to_thread(search, self._store.path, task.basins, task.ask.question)
        peer = self._peers.peers.get(task.peer)
        allowed = set(self.granted(peer)) if peer is not None and is_heard(peer) else set[str]()
        if not allowed.issuperset(task.basins):  # taken back meanwhile
            self._refuse(task.peer, task.ask, "grant")
            return
        cited = [(one, proof) for one in found if (proof := self._proof(one)) is not None]
        receipt = self._receipt(task, [ActId(act) for one, _ in cited for act in one.acts])
        for one, proof in cited:
            message = Cite(task.ask.number, proof, [ActId(act) for act in one.acts])
            self._peers.tell(task.peer, self.topic, encode(message))
        self._peers.tell(task.peer, self.topic, encode(Done(task.ask.number, receipt)))
        acts = sum(len(one.acts) for one, _ in cited)
        told = Recall(
            task.peer,
            True,
            task.ask.question,
            " ".join(task.basins),
            self._peers.now_ms(),
            "answered",
            acts,
            receipt,
        )
        with self._store.transaction():
            self.tables.put(told)

    def _receipt(self, task: _Task, acts: list[ActId]) -> bytes:
        receipt = Recalled(
            mesh=self._peers.me,
            certificate=self._peers.who.certificate,
            to=task.peer,
            made_ms=self._peers.now_ms(),
            question=digest_of_question(task.ask.question),
            basins=list(task.basins),
            acts=acts,
        )
        return sign_recalled(self._peers.who.signer, receipt)

    def _proof(self, cited: Cited) -> bytes | None:
        """A citation as it travels; None where nothing proves it, or it is too long."""
        paper = self._paper(cited)
        if paper is None or self._node.identity.trust.revoked(cited.mesh, cited.node):
            return None
        proof = write_proof(ActId(cited.acts[0]), cited.data, paper, None)
        return proof if len(proof) <= MAX_PROOF else None

    def _paper(self, cited: Cited) -> bytes | None:
        """The certificate of the node that signed a frame, as signed."""
        if cited.mesh == self._peers.me:
            for data in (self._peers.who.certificate, *self._peers.papers.certificates):
                if read_certificate(data).node == cited.node:
                    return data
        sql = "SELECT data FROM link_papers WHERE mesh = ? AND node = ?"
        try:
            row = self._store.one(sql, (cited.mesh, cited.node))
        except StoreFailed:
            return None
        return row[0] if row else None
