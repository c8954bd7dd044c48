"""What each peer may have, say and cost, at this moment: protocol.crossing and protocol.quota, asked of what is kept.

Everything here answers at once and fails closed: whoever is not known has, says and costs nothing.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

import structlog

from mesh.clock import Clock
from mesh.links.ground import Sent
from mesh.store import Store
from nodes.peers.parts import Part
from nodes.peers.tables import Peer, Tables
from protocol.acts import Act
from protocol.crossing import may_send, may_take, sent_basins
from protocol.dispute import is_dispute
from protocol.keys import MeshId
from protocol.link import Relationship, State
from protocol.quota import DAY_MS, MINUTE_MS, Quota, Spent
from protocol.statement import STATEMENTS, Trust, own_basin

SAVED_MS: Final = 1_000  # what a crash makes us forget of acts that were counted against a peer's quota
STATEMENTS_A_MINUTE: Final = 120  # what a peer may say of the relationship itself, whatever its quota
EARLY_MATTERS: Final = 32  # for parts, from a peer who knows before us that the two are linked; of 60,000 bytes each

Within = Callable[[MeshId, MeshId, str, Act], str | None]
"""Why an act, which the second mesh said in a dispute's basin, does not pass between us and the first; or None."""

Stage = Literal["statements", "talk"]

log = structlog.get_logger(__name__)


class _Flows(NamedTuple):
    """The basins that are sent to a peer and taken from it, each with the time from which on, as they `seen` stand."""

    seen: Relationship
    out: dict[str, int]
    into: dict[str, int]


class PeerGates:
    """The gates of mesh.links, and the quotas of nodes.purse, over all peers of a node."""

    def __init__(self, me: MeshId, store: Store, clock: Clock, days: int, changed: Callable[[MeshId], None]) -> None:
        """What was said more than so many `days` ago is not sent any more.

        `changed` is called with a peer when a link with it is up, and when it has kept more of what was said about the
        relationship.
        """
        self.tables = Tables(store)
        self.peers: dict[MeshId, Peer] = {peer.mesh: peer for peer in self.tables.peers()}
        self.parts: dict[str, Part] = {}
        self.recovering: dict[MeshId, Stage] = {}  # peers of whom the past is lost here; see nodes.peers.recovery
        self.on_recovered: Callable[[MeshId], object] = self.recovering.pop
        self.reading: Callable[[MeshId, Act], Act] = _as_it_is  # how an act of ours is said to a peer
        self.disputes: Within = _nobody  # asked of every act in a dispute's basin
        self._me, self._store, self._clock, self._changed = me, store, clock, changed
        self._days_ms = days * DAY_MS
        self.early: dict[MeshId, list[tuple[str, bytes]]] = {}  # matters that came before we knew of the link
        self._stated: dict[MeshId, Spent] = {}
        self._flowing: dict[MeshId, _Flows] = {}
        self._taken: dict[MeshId, int] = {}  # acts that are counted, and not in the tables yet
        self._saved_ms = 0

    # Out

    def met(self, peer: MeshId) -> None:
        """The parts of the node may have something to say."""
        self._changed(peer)

    def sent(self, peer: MeshId) -> Sequence[Sent]:
        """The own basin first: what was agreed on is told before what is said under it, however old it is."""
        known = self.peers.get(peer)
        if known is None:
            return []
        oldest_ms = self._clock() - self._days_ms
        shared = self._flows(known).out.items()
        others = [Sent(basin, since_ms, 0 if is_dispute(basin) else oldest_ms) for basin, since_ms in shared]
        return [Sent(self._own(peer)), *others]

    def as_read(self, peer: MeshId, act: Act) -> Act:
        """An act of ours in words that the peer knows."""
        return self.reading(peer, act)

    def may_have(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> bool:
        """Whether an act may go to a peer; of a relationship, only what we say ourselves."""
        known = self.peers.get(peer)
        if known is None or (basin == self._own(peer) and origin != self._me):
            return False
        if is_dispute(basin) and self.disputes(peer, origin, basin, act):
            return False
        return may_send(known.relationship, basin, act, self._clock()) is None

    def kept(self, peer: MeshId, basin: str) -> None:
        """A peer that has heard a farewell need not be reached any more."""
        if basin == self._own(peer):
            self._changed(peer)

    # In

    def takes(self, peer: MeshId, basin: str) -> bool:
        """Whether anything in a basin is taken from a peer."""
        known = self.peers.get(peer)
        return known is not None and (basin == self._own(peer) or basin in self._flows(known).into)

    def refuses(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> str | None:
        """Why an act is not taken. What a third mesh said comes only with words, and not from one that is unheard."""
        known = self.peers.get(peer)
        if known is None:
            return "there is no such peer"
        if origin != peer:
            if act.kind in STATEMENTS or basin == self._own(peer):
                return "a relationship is spoken of by the two alone"
            other = self.peers.get(origin)
            if other is not None and other.relationship.mine.terms.trust == Trust.SILENT:
                return f"{other.petname}, who said it, is not listened to"
        if reason := may_take(known.relationship, basin, act, self._clock()):
            return reason
        if is_dispute(basin) and (reason := self.disputes(peer, origin, basin, act)):
            return reason
        is_stated = basin == self._own(peer)
        return None if is_stated or self._allowed(known).acts_a_minute else "its quota lets it say nothing"

    def pace_s(self, peer: MeshId, basin: str, acts: int) -> float:
        """Seconds until a peer may say so much more; 0 counts it. More than a whole minute's goes as one minute's."""
        known = self.peers.get(peer)
        if known is None:
            return 0.0  # `refuses` has refused it
        now = self._clock()
        is_stated = basin == self._own(peer)
        spent = self._stated.get(peer, Spent()) if is_stated else known.spent
        limit = STATEMENTS_A_MINUTE if is_stated else max(1, self._allowed(known).acts_a_minute)
        if spent.refusal(Quota(limit, 0, 0), now, acts=min(acts, limit)):
            return (MINUTE_MS - now % MINUTE_MS) / 1000
        if is_stated:
            self._stated[peer] = spent.add(now, acts=acts)
            return 0.0
        known.spent = spent.add(now, acts=acts)
        self._taken[peer] = self._taken.get(peer, 0) + acts
        return 0.0

    def save(self) -> None:
        """Write down what `pace_s` let in, once a second: an act takes 0.04 ms less. Within a transaction."""
        if self._clock() - self._saved_ms >= SAVED_MS:
            self.save_all()

    def save_all(self) -> None:
        """Write down all that `pace_s` let in. Within a transaction."""
        self._saved_ms = self._clock()
        while self._taken:
            peer, acts = self._taken.popitem()
            if known := self.peers.get(peer):
                self.tables.put_spent(known)
                self.tables.count(peer, self._clock(), acts)

    # Past

    def recovers(self, peer: MeshId) -> Sequence[str]:
        """First what the two have said of their relationship; once that is known, what it shares."""
        known, stage = self.peers.get(peer), self.recovering.get(peer)
        if known is None or stage is None:
            return ()
        if stage == "statements":
            return (self._own(peer),)
        seen = known.relationship
        return sorted({*sent_basins(seen), *sent_basins(seen.mirrored())})

    def recovered(self, peer: MeshId) -> None:
        """Go on to the next stage."""
        if peer in self.recovering:
            self.on_recovered(peer)

    def told(self, peer: MeshId, text: str) -> None:
        """A peer's node has said something to the person here."""
        known = self.peers.get(peer)
        log.info("a peer's node says", peer=known.petname if known else peer[:8], text=text)
        if known is not None:
            with self._store.transaction():
                self.tables.note(peer, self._clock(), text)

    def matter(self, peer: MeshId, topic: str, data: bytes) -> None:
        """Hand it to the part that it is for, when the two are linked and we listen to the peer."""
        known, part = self.peers.get(peer), self.parts.get(topic)
        if known is None or part is None:
            return
        if is_heard(known):
            part.told(peer, data)
        elif known.relationship.mine.terms.trust != Trust.SILENT:
            self.early[peer] = [*self.early.get(peer, []), (topic, data)][:EARLY_MATTERS]

    # Cost

    def reserve(self, mesh: MeshId, tokens: int, *, begins: bool) -> str | None:
        """Why a peer's chain may not cost so many tokens more, or None when they are reserved; `begins`: a new chain.

        Ask before the model is called. What is not used is given back by `settle`.
        """
        peer = self.peers.get(mesh)
        if peer is None:
            return "nobody here is linked with the mesh that began this talk"
        if peer.relationship.state != State.LINKED:
            return f"the link with {peer.petname}, who began this talk, is {peer.relationship.state.value}"
        now, roots = self._clock(), int(begins)
        if reason := peer.spent.refusal(self._allowed(peer), now, roots=roots, tokens=tokens):
            with self._store.transaction():
                self.tables.count_barred(mesh, now)
            return f"the quota of {peer.petname}, who began this talk, is used up: {reason}"
        with self._store.transaction():
            peer.spent = peer.spent.add(now, roots=roots, tokens=tokens)
            self.tables.put_spent(peer)
        return None

    def sharers(self, basin: str) -> int:
        """How many other meshes may speak in a basin."""
        return sum(basin in self._flows(peer).into for peer in self.peers.values())

    def settle(self, mesh: MeshId, reserved: int, used: int, price: float | None) -> None:
        """A reply in a peer's chain has cost so many tokens, and money; what was reserved beyond it is given back."""
        peer = self.peers.get(mesh)
        if peer is None:
            return
        now = self._clock()
        with self._store.transaction():
            peer.spent = peer.spent.add(now, tokens=used - reserved)
            self.tables.put_spent(peer)
            if used:
                self.tables.count_reply(mesh, now, price)

    def _flows(self, peer: Peer) -> "_Flows":
        """What flows between us and a peer; worked out anew when the relationship has changed."""
        held = self._flowing.get(peer.mesh)
        if held is None or held.seen is not peer.relationship:
            seen = peer.relationship
            held = self._flowing[peer.mesh] = _Flows(seen, sent_basins(seen), sent_basins(seen.mirrored()))
        return held

    def _allowed(self, peer: Peer) -> Quota:
        return peer.relationship.mine.terms.allowance

    def _own(self, peer: MeshId) -> str:
        return own_basin(self._me, peer)


def is_heard(peer: Peer) -> bool:
    """Whether the parts of the two nodes talk: they are linked, and we listen."""
    seen = peer.relationship
    return seen.state == State.LINKED and seen.mine.terms.trust != Trust.SILENT


def _as_it_is(peer: MeshId, act: Act) -> Act:  # noqa: ARG001 - a reading's
    return act


def _nobody(peer: MeshId, origin: MeshId, basin: str, act: Act) -> str | None:  # noqa: ARG001 - a Within's
    return "no disputes are kept here"
