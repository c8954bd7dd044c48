"""Peers as a companion of the node: it hears statements, says its person's, and keeps links to those who are linked.

What both sides have said is the relationship, whoever heard it first (protocol.link). It is kept in the transaction
that hears a statement, so that what may cross follows from it at once.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import structlog

from mesh.entries import Entry, recent
from mesh.errors import MeshError
from mesh.links.channel import Proved, Self
from mesh.links.ground import Ground
from mesh.links.hub import Hub
from mesh.links.links import Links
from mesh.links.messages import BadMessage, Papers
from mesh.links.papers import learn_papers
from mesh.words import plain
from nodes.companion import Alone
from nodes.errors import NodeError
from nodes.node import Node
from nodes.peers.gates import PeerGates, is_heard
from nodes.peers.guests import Guests, Here
from nodes.peers.parts import Part
from nodes.peers.statements import Statements
from nodes.peers.tables import Peer
from nodes.peers.ways import Ways
from protocol.acts import time_of
from protocol.certificate import read_certificate
from protocol.document import Document, node_of
from protocol.errors import BadLink, ProtocolError
from protocol.keys import MeshId, fingerprint
from protocol.link import Relationship, Standing, State, declare, next_body
from protocol.reach import believed
from protocol.statement import STATEMENTS, Changes, own_basin
from protocol.vocabulary import core_terms, digest, digest_of_all

HEARD_S: Final = 20.0  # until the node has heard its own statement; the bus is away if it takes longer
REREAD: Final = 1_000  # newest statements of a relationship that are looked at again at the start
FAREWELL_MS: Final = 30 * 86_400_000  # whoever has not heard a farewell by then is not told any more
AGAIN_S: Final = 1.0  # until what could not be said is said again

log = structlog.get_logger(__name__)


class Peers(Alone):
    """All peers of one node."""

    def __init__(self, node: Node, who: Self, papers: Papers) -> None:
        """`who` and `papers` are how this node proves itself; see nodes.keyring."""
        ground = node.ground
        self._node, self._clock, self._store = node, ground.clock, ground.store
        self.me, self.who, self.papers = node.identity.mesh, who, papers
        learn_papers(ground.store, node.identity.trust)
        self._changed = asyncio.Event()
        self._stirred: set[MeshId] = set()  # peers with whom something has changed
        days = node.config.links.days
        self.gates = PeerGates(self.me, ground.store, ground.clock, days, self._stir)
        self.peers = self.gates.peers
        vocabulary = digest_of_all(digest(term) for term in core_terms())
        self.ways = Ways(self.me, who, node.config.links, ground.store)
        self.guests = Guests(Here(who, node.config.name, vocabulary, ground.clock), self.gates.tables, self, self.ways)
        self.links = Links(
            who,
            Ground(
                self.me,
                who.signer,
                ground.store,
                ground.bus,
                node.identity.trust,
                ground.clock,
                self.gates,
                papers,
                vocabulary,
                node.ledger,
            ),
            self.admit,
            self.guests.greet,
        )
        if node.config.links.hub:
            self.links.hub = Hub(allow=self._may_meet, clock=ground.clock)
        self._heard = asyncio.Event()
        self._news = set[str]()  # basins of what was heard in a transaction that commits now
        self._saying = asyncio.Lock()
        self._statements = Statements(self.me, self.gates, ground.clock, self._is_em)
        self._works: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {}
        node.runtime.purse.quotas = self.gates

    def join(self, part: Part, work: Callable[[], Coroutine[Any, Any, None]] | None = None) -> None:
        """Have a part of the node talk with the same part of linked peers' nodes. Call it before the node runs.

        `work` is what the part does beside, for as long as the node runs; what it raises ends the node.
        """
        self.gates.parts[part.topic] = part
        if work is not None:
            self._works[part.topic] = work

    def tell(self, peer: MeshId, topic: str, data: bytes) -> bool:
        """Say something to a part of a linked peer's node, if it is there now; returns whether it will be said.

        What must arrive is said again by `Part.begin`.
        """
        known, session = self.peers.get(peer), self.links.sessions.get(peer)
        return known is not None and session is not None and is_heard(known) and session.tell(topic, data)

    def is_by(self, peer: MeshId, document: Document) -> bool:
        """Whether a document that was read is a peer's own, of a node that its mesh has not revoked."""
        return document.mesh == peer and not self._node.identity.trust.revoked(peer, node_of(document))

    # A companion's part

    def hear(self, entries: Sequence[Entry]) -> None:
        """Take in statements."""
        self.gates.save()
        self._news.update(entry.basin for entry in entries)
        for entry in entries:
            if entry.act.kind in STATEMENTS:
                self._state(entry)
        for part in self.gates.parts.values():
            part.hear(entries)

    def proceed(self) -> None:
        """Send what is new; go on where a statement was waited for."""
        if self._news:
            news, self._news = self._news, set[str]()
            self.links.proceed(news)
        self._heard.set()
        for part in self.gates.parts.values():
            part.proceed()

    async def run(self) -> None:
        """Keep links until cancelled. Raises MeshError when links cannot be taken where the settings say."""
        for peer in self.peers.values():
            with self._store.transaction():
                for entry in recent(self._store, own_basin(self.me, peer.mesh), REREAD):
                    self._state(entry)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.links.run(self._node.config.links.place), name="links")
            group.create_task(self._tend(), name="peers")
            for topic, work in self._works.items():
                group.create_task(work(), name=topic)

    # What the person does

    def now_ms(self) -> int:
        """The node's clock."""
        return self._clock()

    async def addresses(self) -> tuple[str, ...]:
        """Where others can dial this node. Raises NodeError when they cannot."""
        settings = self._node.config.links
        if told := await self.known_addresses():
            return told
        missing = "links.listen, such as 0.0.0.0:7417, and " if settings.place is None else ""
        raise NodeError(
            f"nobody could reach this node: set {missing}links.addresses in mesh.yaml, such as [mesh.example.org:7417],"
            " or links.hubs, and start the node again; or let the other side invite"
        )

    async def known_addresses(self) -> tuple[str, ...]:
        """Where others can dial this node, or meet it; perhaps nowhere."""
        settings = self._node.config.links
        if settings.place is not None:
            await self.links.ready.wait()
        return settings.told(self.links.port)

    def find(self, name: str) -> Peer:
        """A peer by its name here, or by the id of its mesh. Raises NodeError."""
        for peer in self.peers.values():
            if name in (peer.petname, peer.mesh):
                return peer
        known = ", ".join(sorted(peer.petname for peer in self.peers.values()))
        raise NodeError(
            f"there is no peer {plain(name, 80)!a}; {f'there are: {known}' if known else 'there is none yet'}"
        )

    def petname(self, wished: str, mesh: MeshId) -> str:
        """A name for a peer that nobody else has here; one that is known keeps its own."""
        if mesh in self.peers:
            return self.peers[mesh].petname
        taken = {peer.petname for peer in self.peers.values()} | {self._node.config.name}
        names = itertools.chain([wished], (f"{wished[:58]}-{number}" for number in itertools.count(2)))
        return next(name for name in names if name not in taken)

    def rename(self, peer: Peer, name: str) -> None:
        """Call a peer something else. Raises NodeError for a name that is taken."""
        taken = {other.petname for other in self.peers.values() if other is not peer} | {self._node.config.name}
        if name in taken:
            raise NodeError(f"there is a {name} already; choose another name")
        peer.petname = name
        self.meet(peer)

    def move(self, peer: Peer, addresses: tuple[str, ...]) -> None:
        """A peer is to be dialled elsewhere from now on; nowhere: it dials us."""
        peer.addresses = addresses
        self.links.restart(peer.mesh)
        self.meet(peer)

    def believed(self, peer: Peer, addresses: Iterable[str]) -> tuple[str, ...]:
        """Those of the addresses that a peer has said of itself, or of others, which we dial because it says so."""
        return believed(addresses, (*peer.addresses, *self._node.config.links.told(self.links.port)))

    def meet(self, peer: Peer) -> None:
        """Keep a new peer, or what has changed about one."""
        with self._store.transaction():
            self.gates.tables.put(peer)
        self.peers[peer.mesh] = peer
        self._stir(peer.mesh)
        self._heard.set()

    def _stir(self, mesh: MeshId) -> None:
        """Something has changed with a peer."""
        self._stirred.add(mesh)
        self._changed.set()

    def room_moved(self, old: str, new: str) -> None:
        """A Matrix room in which peers are met has a successor; within a transaction."""
        self.ways.room_moved(old, new)
        self.stir()

    def stir(self) -> None:
        """Look again at which links are to be kept, and where guests are waited for."""
        self._changed.set()

    def transaction(self) -> AbstractContextManager[None]:
        """One of the node's store."""
        return self._store.transaction()

    def relationship(self, mesh: MeshId) -> Relationship:
        """How the two stand; strangers, where nothing was said yet."""
        return self.peers[mesh].relationship if mesh in self.peers else Relationship(self.me, mesh)

    async def say(self, peer: Peer, kind: str, changes: Changes) -> None:
        """Say the person's next statement; returns when it holds here. Raises BadLink (unlawful), MeshError."""
        async with self._saying:
            body = next_body(peer.relationship, kind, changes)
            act = self._node.root(own_basin(self.me, peer.mesh), self._node.config.human, [], kind, body)
            declare(peer.relationship, act, self._clock(), self._is_em)
            await self._node.outbox.say(own_basin(self.me, peer.mesh), act)
            try:
                async with asyncio.timeout(HEARD_S):
                    while peer.relationship.mine.turn < body["turn"]:
                        self._heard.clear()
                        await self._heard.wait()
            except TimeoutError:
                raise MeshError("the node does not hear itself; what was said holds when it does") from None

    async def until_settled(self, peer: Peer, timeout_s: float) -> State:
        """Wait until an accepted invitation has come to a link, or for so long; gives how the two stand then."""
        try:
            async with asyncio.timeout(timeout_s):
                while peer.accepted is not None or peer.relationship.state in (State.STRANGER, State.INVITED):
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            pass
        return peer.relationship.state

    # Who may come, and whom we go to

    def admit(self, proved: Proved) -> str | None:
        """Why a node that has proved who it is is not let in, or None."""
        try:
            read_certificate(proved.certificate).check(self._clock())
        except ProtocolError as error:
            return str(error)
        if self._node.identity.trust.revoked(proved.mesh, proved.node):
            return "its mesh has revoked that node"
        if proved.mesh == self.me:
            return "that is a node of this mesh"
        if proved.secret:
            return self.guests.admit(proved)
        peer = self.peers.get(proved.mesh)
        if peer is None:
            return f"the mesh {fingerprint(proved.mesh)} was not invited"
        return None if self._is_welcome(peer) else f"the link with {peer.petname} has ended"

    def _is_welcome(self, peer: Peer) -> bool:
        """Whether there is anything left to say to each other; after a farewell, until it has been heard."""
        seen = peer.relationship
        if peer.accepted is not None or seen.state != State.LEFT:
            return True
        if seen.mine.standing != Standing.LEFT or seen.theirs.standing == Standing.LEFT:
            return False
        is_late = self._clock() - time_of(seen.mine.last) > FAREWELL_MS
        return not is_late and self.gates.tables.untold(self.me, peer.mesh, own_basin(self.me, peer.mesh))

    def _may_meet(self, mesh: MeshId) -> bool:
        """Whether a mesh may use this node as its hub."""
        peer = self.peers.get(mesh)
        return peer is not None and is_heard(peer)

    def _may_come_again(self, mesh: MeshId) -> bool:
        """Whether whoever has used an invitation may not know it yet."""
        return self.relationship(mesh).state not in (State.LINKED, State.PAUSED)

    async def _tend(self) -> None:
        """Whenever a relationship has changed, keep the links that it asks for, and no others."""
        while True:
            self._changed.clear()
            stirred, self._stirred = self._stirred, set[MeshId]()
            welcome = {peer.mesh: peer for peer in self.peers.values() if self._is_welcome(peer)}
            self.links.dial({mesh: self.ways.to(peer) for mesh, peer in welcome.items()})
            self.links.host(self.ways.for_guests(self._clock() // 1000, self._may_come_again))
            for mesh in [mesh for mesh in self.links.sessions if mesh not in welcome]:
                self.links.drop(mesh)
            self._begin()
            self.links.look(stirred)
            if await self._answer():
                await self._changed.wait()
            else:
                await asyncio.sleep(AGAIN_S)

    def _begin(self) -> None:
        """Have the parts of the node say what they say first, once a link and whenever two become linked."""
        for mesh, session in self.links.sessions.items():
            known = self.peers.get(mesh)
            heard = known is not None and is_heard(known)
            if heard and not session.begun:
                for part in self.gates.parts.values():
                    for data in part.begin(mesh):
                        session.tell(part.topic, data)
                self._hear_early(mesh)
            session.begun = heard
        for mesh in [mesh for mesh in self.gates.early if mesh not in self.links.sessions]:
            del self.gates.early[mesh]

    def _hear_early(self, mesh: MeshId) -> None:
        """Hand on what a peer said who knew sooner than we that the two are linked."""
        for topic, data in self.gates.early.pop(mesh, ()):
            try:
                self.gates.matter(mesh, topic, data)
            except MeshError as error:
                if not isinstance(error, BadMessage):
                    raise
                self._refuse(mesh, error)
            except Exception as error:  # a slip of ours with a peer's words must not end the node
                log.exception("a part of this node cannot deal with what a peer said", topic=topic)
                self._refuse(mesh, error)

    def _refuse(self, mesh: MeshId, error: Exception) -> None:
        with self._store.transaction():
            self.gates.tables.refuse(mesh, type(error).__name__)

    async def _answer(self) -> bool:
        """Say `link` to those whose invitation the person has accepted; returns False to be called again."""
        for peer in list(self.peers.values()):
            seen, accepted = peer.relationship, peer.accepted
            if accepted is None or seen.theirs.standing != Standing.INVITED or seen.mine.standing != Standing.NOTHING:
                continue
            try:
                await self.say(peer, "link", accepted)
            except BadLink as error:
                log.warning("an accepted invitation came to nothing", peer=peer.petname, reason=str(error))
            except MeshError as error:
                log.info("an accepted invitation waits", peer=peer.petname, reason=plain(str(error)))
                return False
            peer.accepted = None
            self.meet(peer)
        return True

    def _state(self, entry: Entry) -> None:
        """Take in a statement; within a transaction."""
        if mesh := self._statements.hear(entry):
            self._stir(mesh)

    def _is_em(self, author: str) -> bool:
        return author in self._node.runtime.ems
