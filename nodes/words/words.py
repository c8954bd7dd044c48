"""Words as a part of what linked nodes do together: each tells the other which it uses, and gives their meanings.

What a mesh uses is what its person adopted, in acts like any other. Where linked peers say so to each other directly,
both know which words they share, also when the acts were said in a basin that only one of them hears.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog

from mesh.entries import Entry
from mesh.errors import MeshError
from mesh.links.messages import BadMessage
from mesh.words import plain
from nodes.node import Node
from nodes.peers.gates import is_heard
from nodes.peers.peers import Peers
from nodes.words.glosses import WORDS, Glosses
from nodes.words.messages import ASKED, Ask, Terms, Use, decode, encode
from nodes.words.tables import Tables
from protocol.acts import Act
from protocol.crossing import plainly, sent_basins
from protocol.errors import BadTerm
from protocol.husk import is_husk
from protocol.keys import MeshId, fingerprint
from protocol.lexicon import Lexicon
from protocol.statement import STATEMENTS
from protocol.terms import (
    MAX_HELD,
    TERM_ACTS,
    Slot,
    read_said,
    read_term,
    write_term,
)
from protocol.vocabulary import BODIES, Digest, digest

ANSWER_BYTES: Final = 50_000  # of terms in one message: it holds 60,000, and one term takes up to 4,096
HEARD_S: Final = 20.0  # until the node has heard what it said; the bus is away if it takes longer


log = structlog.get_logger(__name__)


class Words:
    """All words of one node's mesh, and what its peers make of them. A part (nodes.peers.parts)."""

    topic = WORDS

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node, self._peers, self.me = node, peers, node.identity.mesh
        self._store = node.ground.store
        self._tables = Tables(self._store)
        self.lexicon = Lexicon(self.me, peers.peers.__contains__)
        self._tables.restore(self.lexicon)
        self._said: dict[MeshId, frozenset[Digest]] = {}  # to peers, over the links that are up
        self._asked: dict[MeshId, frozenset[Digest]] = {}
        self._stale = False  # what some peers were told may be out of date
        self._heard = asyncio.Event()
        peers.join(self)
        peers.gates.reading = self.as_read
        node.runtime.words = Glosses(self.me, self.lexicon)

    # What both sides share

    def own(self) -> Mapping[str, Digest]:
        """Our readings of the acts that people have made, by the name of the act."""
        terms = self.lexicon.terms
        return {name: one for name, one in self.lexicon.uses(self.me).items() if terms[one].kind == "act"}

    def shared(self, peer: MeshId) -> Collection[Digest]:
        """The readings that both use, as far as both nodes have said so."""
        return self.lexicon.told.get(peer, frozenset()) & self._shown_to(peer)

    def as_read(self, peer: MeshId, act: Act) -> Act:
        """One of our acts as a peer can read it."""
        return act if act.kind in BODIES else plainly(act, self.own(), self.shared(peer))

    def _shown_to(self, peer: MeshId) -> frozenset[Digest]:
        """What we use and a peer may know of: what was adopted in `words`, or in a basin that the peer may hear."""
        known = self._peers.peers.get(peer)
        heard = {WORDS, *(sent_basins(known.relationship) if known else ())}
        used = ((one, self.lexicon.of(self.me, one)) for one in self.lexicon.uses(self.me).values())
        return frozenset([one for one, said in used if said is not None and said.basin in heard][:MAX_HELD])

    # A part's

    def begin(self, peer: MeshId) -> Iterable[bytes]:
        """Tell what we use."""
        self._said[peer] = self._shown_to(peer)
        return [encode(Use(sorted(self._said[peer]), True))]

    def told(self, peer: MeshId, data: bytes) -> None:
        """A peer tells what it uses, asks for terms, or gives some. Raises BadMessage."""
        message = decode(data)
        match message:
            case Use(digests):
                with self._store.transaction():
                    self.lexicon.tell(peer, digests)
                    self._tables.keep_told(peer, self.lexicon.told[peer])
                    self._keep()
                self._ask(peer)
                if message.begins:
                    self._tell(peer)
            case Ask(digests):
                self._answer(peer, digests)
            case Terms():
                self._learn(peer, message.terms)

    def hear(self, entries: Sequence[Entry]) -> None:
        """Take in what is said about words, by whomever."""
        for entry in entries:
            if entry.act.kind in TERM_ACTS and not is_husk(entry.act):
                self._hear(entry)
            elif entry.act.kind == "redact" and entry.act.refs:
                self.lexicon.retract(entry.mesh, entry.act.author, entry.act.refs[0])
            elif entry.act.kind in STATEMENTS:
                self._stale = True  # another basin may be shared now
        self._keep()

    def proceed(self) -> None:
        """Tell peers what has changed."""
        self._heard.set()
        if not self._stale:
            return
        self._stale = False
        for mesh in list(self._peers.links.sessions):
            peer = self._peers.peers.get(mesh)
            if peer is None or not is_heard(peer) or self._said.get(mesh) == self._shown_to(mesh):
                continue
            self._stale = not self._tell(mesh) or self._stale

    # What the person says

    async def say(self, basin: str, kind: str, body: dict[str, Any], about: Digest) -> Act:
        """Say the person's word about a term; returns when it counts here. Raises MeshError, BadAct."""
        act = self._node.root(basin, self._node.config.human, [], kind, body)
        slots = {"propose": Slot.PROPOSE, "contest": Slot.CONTEST}
        slot = slots.get(kind, Slot.USE)
        before = self.lexicon.of(self.me, about, slot)
        if before is not None and before.at_ms >= act.at_ms:  # the clock stands, or was set back
            act = msgspec.structs.replace(act, at_ms=before.at_ms + 1)
        await self._node.outbox.say(basin, act)
        try:
            async with asyncio.timeout(HEARD_S):
                while (said := self.lexicon.of(self.me, about, slot)) is None or said.order < (act.at_ms, act.id):
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            raise MeshError("the node does not hear itself; what was said counts when it does") from None
        return act

    def called(self, mesh: MeshId) -> str:
        """What the person here calls a mesh."""
        if mesh == self.me:
            return self._node.config.name
        peer = self._peers.peers.get(mesh)
        return peer.petname if peer else f"~{fingerprint(mesh)}"

    # Within

    def _hear(self, entry: Entry) -> None:
        is_em = self._is_em if entry.mesh == self.me else _is_none
        try:
            said, term = read_said(entry.mesh, entry.basin, entry.act, is_em)
        except BadTerm as error:
            log.info("an act about a word does not count", mesh=entry.mesh[:8], reason=plain(str(error)))
            return
        news = [self.lexicon.hear(one) for one in said]
        if term is not None:
            self.lexicon.learn(term)
        self._stale = self._stale or (any(news) and entry.mesh == self.me)

    def _is_em(self, author: str) -> bool:
        return author in self._node.runtime.ems or author != self._node.config.human

    def _keep(self) -> None:
        changed = self.lexicon.take_changed()
        self._tables.keep(changed)

    def _tell(self, peer: MeshId) -> bool:
        """Tell a peer what we use; returns whether it will be said."""
        shown = self._shown_to(peer)
        is_said = self._peers.tell(peer, WORDS, encode(Use(sorted(shown), False)))
        if is_said:
            self._said[peer] = shown
        return is_said

    def _ask(self, peer: MeshId) -> None:
        missing = sorted(one for one in self.lexicon.told[peer] if one not in self.lexicon.terms)[:ASKED]
        self._asked[peer] = frozenset(missing)
        if missing:
            self._peers.tell(peer, WORDS, encode(Ask(missing)))

    def _answer(self, peer: MeshId, digests: Iterable[Digest]) -> None:
        shown, terms, size = self._shown_to(peer), list[bytes](), 0
        for one in digests:
            if one in shown:
                terms.append(write_term(self.lexicon.terms[one]))
                size += len(terms[-1])
                if size > ANSWER_BYTES:
                    break
        if terms:
            self._peers.tell(peer, WORDS, encode(Terms(terms)))

    def _learn(self, peer: MeshId, terms: Iterable[bytes]) -> None:
        """Know what we asked for, under the digest that it has; then ask for what is still missing."""
        asked, before = self._asked.get(peer, frozenset()), len(self.lexicon.terms)
        with self._store.transaction():
            for data in terms:
                try:
                    term = read_term(data)
                except BadTerm as error:
                    raise BadMessage(str(error)) from None
                if digest(term) in asked:
                    self.lexicon.learn(term)
            self._keep()
        if len(self.lexicon.terms) > before:
            self._ask(peer)


def _is_none(author: str) -> bool:  # noqa: ARG001 - who is an em there shows in that its acts begin nothing
    return False
