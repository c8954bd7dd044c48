"""One mesh of a simulation: the rules of a node, without a disk, a loop or a socket around them.

What a node does in its ledger, runtime and links is done here at once, by the same parts: certificates and signatures
(mesh.trust, protocol.frame), gates and quotas (nodes.peers.gates), budgets (nodes.chains, protocol.budget).
"""

import hashlib
import random
from collections.abc import Sequence
from typing import Final, Protocol

from mesh.entries import Entry
from mesh.trust import Trust
from nodes.chains import Chains
from nodes.peers.gates import PeerGates
from nodes.peers.tables import Peer
from nodes.sim.clockwork import START_MS, Clockwork
from nodes.sim.nowhere import nowhere
from nodes.sim.oracle import Oracle
from nodes.sim.scenario import Scenario
from nodes.sim.session import Carried, Session
from protocol.acts import RANDOM_BYTES, Act, new_id, reply_id, reply_key
from protocol.address import Subject
from protocol.budget import Budget, check_child
from protocol.certificate import Certificate, issue, read_certificate
from protocol.errors import BadAct, BudgetRaised, ProtocolError
from protocol.frame import Frame, decode_frame, encode_frame
from protocol.keys import KEY_BYTES, KeyKind, MeshId, NodeId, Signer
from protocol.link import Relationship

CHAIN_TOKENS: Final = 50_000  # of a chain: what a node's settings give unless they say otherwise
CHAIN_MS: Final = 600_000  # how long a chain lasts: the same
THINK_MS: Final = 2_000  # until an em begins to write, at most
WRITE_MS: Final = 4_000  # how long a model writes
COST: Final = 1_000  # tokens that are reserved for a reply
USED: Final = (400, 900)  # tokens that it then takes
DAYS: Final = 366  # what was said longer ago is not sent: links.days of the settings
YEAR_MS: Final = 31_536_000_000
PERSON: Final = "me"


class World(Protocol):
    """What a mesh knows of the simulation."""

    plan: Scenario
    clockwork: Clockwork
    oracle: Oracle
    numbers: dict[MeshId, int]
    certificates: dict[MeshId, Certificate]
    linked_ms: int  # when all are linked; what was said before is history

    def refused(self, reason: str) -> None:
        """Something was refused, by a gate."""
        ...

    def silent(self, reason: str) -> None:
        """An em did not answer what it would have answered."""
        ...


class Mesh:
    """A person, a node, and ems."""

    def __init__(self, number: int, world: World, seed: str, skew_ms: int) -> None:
        self.number, self.skew_ms = number, skew_ms
        self.dice = random.Random(f"{seed}/{number}")
        key = Signer(self.dice.randbytes(KEY_BYTES), KeyKind.MESH)
        self.signer = Signer(self.dice.randbytes(KEY_BYTES), KeyKind.NODE)
        self.id, self.node = MeshId(key.public), NodeId(self.signer.public)
        service = Certificate(self.id, self.node, START_MS - YEAR_MS // 2, START_MS + YEAR_MS, ["speak"])
        self.certificate = read_certificate(issue(key, service))
        self.ems = [f"em{place}-{number}" for place in range(world.plan.ems)]
        self.sessions: dict[MeshId, Session] = {}
        self.frames: dict[str, list[Carried]] = {}  # basins: what was heard, in order
        self.gates = PeerGates(self.id, nowhere(), self.clock, DAYS, _nothing)
        self.chains = Chains(self.id, self.mint)
        self.trust = Trust([self.certificate])
        self.world = world
        self._known: dict[bytes, tuple[bytes, Budget]] = {}  # acts: their chain, and what they leave of it
        self._audience: dict[str, list[Session]] = {}
        self._sequences: dict[str, int] = {}
        self._busy_ms: dict[str, int] = {}  # ems: until when they write
        self._reply_key = reply_key(self.signer)
        self._n = 0

    def clock(self) -> int:
        """The time, as this mesh's machine has it."""
        return self.world.clockwork.now_ms + self.skew_ms

    def meet(self, other: MeshId, relationship: Relationship, session: Session) -> None:
        """Be linked with somebody."""
        self.gates.peers[other] = Peer(other, "a peer", (), relationship)
        self.trust.learn(self.world.certificates[other], proved=True)
        self.sessions[other] = session
        for sent in self.gates.sent(other):
            self._audience.setdefault(sent.basin, []).append(session)

    # Saying

    def mint(self, basin: str, now_ms: int) -> Budget:  # noqa: ARG002 - a Mint's
        """What a chain that begins here may spend, and what others' chains get here at most."""
        hops, acts = self.world.plan.budget
        return Budget(hops, acts, CHAIN_TOKENS, now_ms + CHAIN_MS)

    def root(self, basin: str, to: Sequence[str], text: str = "what do you think?") -> Act:
        """What the person here says next; it is not said yet."""
        now = self.clock()
        identity = new_id(now, self.dice.randbytes(RANDOM_BYTES))
        body = {"text": text, "to": list(to)} if to else {"text": text}
        return Act(identity, "say", PERSON, [], identity, self.mint(basin, now), now, body)

    def say(self, basin: str, acts: Sequence[Act]) -> None:
        """Say something: it is framed, kept, and goes to those who may have it."""
        now = self.world.clockwork.now_ms
        for act in acts:
            self.world.oracle.said(self.number, basin, act, now, is_history=now < self.world.linked_ms)
        self.keep(self.framed(basin, acts))

    def framed(self, basin: str, acts: Sequence[Act]) -> Carried:
        """The next frame."""
        sequence = self._sequences[basin] = self._sequences.get(basin, 0) + 1
        now = self.clock()
        is_signed = self.dice.random() < self.world.plan.sign
        data = encode_frame(self.signer, sequence, now, basin, acts) if is_signed else None
        return Carried(Frame(self.node, sequence, now, basin, acts), self.id, data)

    # Hearing

    def take(self, peer: MeshId, carried: Carried) -> float:
        """A frame that a peer sent; gives 0, or the seconds until the peer may say so much more."""
        frame = carried.frame
        if reason := self._barred(peer, carried):
            self.world.refused(reason.replace(frame.basin, "a basin"))
            return 0.0
        if all(act.id in self._known for act in frame.acts):
            return 0.0
        wait_s = self.gates.pace_s(peer, frame.basin, len(frame.acts))
        if wait_s <= 0:
            self.world.oracle.took(self.number, self.world.numbers[peer], len(frame.acts), self.clock())
            self.keep(carried)
        return wait_s

    def _barred(self, peer: MeshId, carried: Carried) -> str | None:
        """Why a frame is not let in: in the words of mesh.links.receiving."""
        try:
            frame = carried.frame if carried.data is None else decode_frame(carried.data)
            mesh = self.trust.mesh_of(frame.node) or MeshId("")
            self.trust.check(Subject(True, frame.basin, mesh, frame.node), frame, self.clock())
        except ProtocolError as error:
            return str(error)
        if mesh == self.id:
            return "it pretends to be ours"
        if not self.gates.takes(peer, frame.basin):
            return "the basin is not taken from this peer"
        reasons = (self.gates.refuses(peer, mesh, frame.basin, act) for act in frame.acts)
        return next((reason for reason in reasons if reason), None)

    def keep(self, carried: Carried) -> None:
        """Take in what is new in a frame, as the ledger does; it may go on to others now."""
        frame = carried.frame
        new = [act for act in frame.acts if self._is_new(act) and self._lawful(act)]
        if not new:
            return
        self.frames.setdefault(frame.basin, []).append(carried)
        for act in new:
            self._n += 1
            self._known[act.id] = (act.root, act.budget)
            self.world.oracle.heard(self.number, act, self.world.clockwork.now_ms)
            entry = Entry(self._n, frame.basin, carried.mesh, frame.node, act)
            self.chains.hear(entry)
            self._consider(entry)
        for session in self._audience.get(frame.basin, ()):
            session.look(frame.basin)

    def _is_new(self, act: Act) -> bool:
        return act.id not in self._known

    def _lawful(self, act: Act) -> bool:
        """Whether an act stays in its parent's chain and leaves it no more than its parent did."""
        parent = None if act.is_root else self._known.get(act.refs[0])
        if parent is None:
            return True
        try:
            if act.root != parent[0]:
                raise BadAct("the act is of another chain than the one that it answers")
            check_child(parent[1], act.budget)
        except BudgetRaised:
            self.world.refused("it leaves its chain more than its parent did")
            return False
        except ProtocolError as error:
            self.world.refused(str(error))
            return False
        return True

    # Ems

    def _consider(self, entry: Entry) -> None:
        """Who here answers an act: whom it names, and others by chance."""
        act, now = entry.act, self.world.clockwork.now_ms
        for em in self.ems:
            if (act.author == em and entry.mesh == self.id) or not self._answers(em, act):
                continue
            if reason := self.chains.spent(act, self.clock()):
                self.world.silent(f"the chain is spent: {reason}")
                continue
            begins = max(self._busy_ms.get(em, 0), now + _draw(act.id, em, "think") % THINK_MS)
            self._busy_ms[em] = begins + WRITE_MS
            self.world.clockwork.at(begins, self._begin, em, entry)

    def _answers(self, em: str, act: Act) -> bool:
        is_named = em in act.body.get("to", ())
        return is_named or _draw(act.id, em, "answer") / 2**64 < self.world.plan.chance

    def _begin(self, em: str, entry: Entry) -> None:
        """Reserve an answer in its chain, and with the mesh that began it, as the runtime does before a model call."""
        if reason := self.reserve(entry):
            self.world.silent(reason)
            return
        self.world.clockwork.after(WRITE_MS, self._finish, em, entry)

    def reserve(self, entry: Entry) -> str | None:
        """Why an answer may not be paid for, or None when it is reserved."""
        act, now = entry.act, self.clock()
        if reason := self.chains.reserve(act, COST, now):
            return f"the chain is spent: {reason}"
        if charge := self.chains.charge(entry):
            mesh, is_counted = charge
            if reason := self.gates.reserve(mesh, COST, begins=not is_counted):
                self.chains.settle(act, COST, 0)
                return reason
            self.chains.charged(act, mesh)
            payer = self.world.numbers[mesh]
            self.world.oracle.spent(self.number, payer, 0, now, begins=not is_counted)
        return None

    def _finish(self, em: str, entry: Entry) -> None:
        """The model has written."""
        act, now = entry.act, self.clock()
        used = USED[0] + _draw(act.id, em, "used") % (USED[1] - USED[0])
        if charge := self.chains.charge(entry):
            self.gates.settle(charge[0], COST, used, None)
            self.world.oracle.spent(self.number, self.world.numbers[charge[0]], used, now, begins=False)
        budget = self.chains.settle(act, COST, used)
        identity = reply_id(self._reply_key, em, entry.mesh, act, 0)
        answer = Act(identity, "say", em, [act.id], act.root, budget, now, {"text": "I think so too."})
        self.chains.promise(answer)
        self.say(entry.basin, [answer])


def _nothing(peer: MeshId) -> None:
    """Nothing is to be done when a relationship has changed: here nobody is dialled."""


def _draw(identity: bytes, name: str, what: str) -> int:
    """A number that depends on an act, a name and a purpose alone, whatever happened before."""
    return int.from_bytes(hashlib.blake2b(identity + name.encode() + what.encode(), digest_size=8).digest(), "big")


def home(number: int) -> str:
    """The own basin of a mesh."""
    return f"home-{number}"
