"""What each peer may have, say and cost, at this moment: protocol.crossing and protocol.quota, asked of what is kept.

Everything here answers at once and fails closed: whoever is not known has, says and costs nothing.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from mesh.clock import Clock
from mesh.store import Store
from nodes.peers.tables import Peer, Tables
from protocol.acts import Act
from protocol.crossing import may_send, may_take, sent_basins
from protocol.keys import MeshId
from protocol.link import State
from protocol.quota import MINUTE_MS, Quota, Spent
from protocol.statement import STATEMENTS, Trust, own_basin

STATEMENTS_A_MINUTE: Final = 120  # what a peer may say of the relationship itself, whatever its quota
NOTES: Final = 20  # newest words of peers' nodes that are kept for the person

log = structlog.get_logger(__name__)


class PeerGates:
    """The gates of mesh.links.session, and the quotas of nodes.runtime, over all peers of a node."""

    def __init__(self, me: MeshId, store: Store, clock: Clock, changed: Callable[[], None]) -> None:
        """`changed` is called when a peer has kept more of what was said about the relationship."""
        self.tables = Tables(store)
        self.peers: dict[MeshId, Peer] = {peer.mesh: peer for peer in self.tables.peers()}
        self.notes: deque[tuple[MeshId, str]] = deque(maxlen=NOTES)
        self._me, self._store, self._clock, self._changed = me, store, clock, changed
        self._stated: dict[MeshId, Spent] = {}

    # Out

    def sent(self, peer: MeshId) -> Sequence[tuple[str, int]]:
        """The own basin first: what was agreed on is told before what is said under it."""
        known = self.peers.get(peer)
        return [(self._own(peer), 0), *sent_basins(known.relationship).items()] if known else []

    def may_have(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> bool:
        """Whether an act may go to a peer; of a relationship, only what we say ourselves."""
        known = self.peers.get(peer)
        if known is None or (basin == self._own(peer) and origin != self._me):
            return False
        return may_send(known.relationship, basin, act, self._clock()) is None

    def kept(self, peer: MeshId, basin: str) -> None:
        """A peer that has heard a farewell need not be reached any more."""
        if basin == self._own(peer):
            self._changed()

    # In

    def takes(self, peer: MeshId, basin: str) -> bool:
        """Whether anything in a basin is taken from a peer."""
        known = self.peers.get(peer)
        return known is not None and (basin == self._own(peer) or basin in sent_basins(known.relationship.mirrored()))

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
        with self._store.transaction():
            known.spent = spent.add(now, acts=acts)
            self.tables.put_spent(known)
            self.tables.count(peer, now, acts=acts)
        return 0.0

    def told(self, peer: MeshId, text: str) -> None:
        """A peer's node has said something to the person here."""
        known = self.peers.get(peer)
        log.info("a peer's node says", peer=known.petname if known else peer[:8], text=text)
        self.notes.append((peer, text))

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
            return f"the quota of {peer.petname}, who began this talk, is used up: {reason}"
        with self._store.transaction():
            peer.spent = peer.spent.add(now, roots=roots, tokens=tokens)
            self.tables.put_spent(peer)
        return None

    def settle(self, mesh: MeshId, reserved: int, used: int) -> None:
        """A reply in a peer's chain has cost this much; what was reserved beyond it is given back."""
        peer = self.peers.get(mesh)
        if peer is None:
            return
        now = self._clock()
        with self._store.transaction():
            peer.spent = peer.spent.add(now, tokens=used - reserved)
            self.tables.put_spent(peer)
            self.tables.count(mesh, now, replies=int(used > 0))

    def _allowed(self, peer: Peer) -> Quota:
        return peer.relationship.mine.terms.allowance

    def _own(self, peer: MeshId) -> str:
        return own_basin(self._me, peer)
