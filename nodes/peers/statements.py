"""Statements as they are heard: each changes the relationship that it is about, in the transaction that hears it."""

from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from mesh.clock import Clock
from mesh.entries import Entry
from mesh.words import plain
from nodes.peers.gates import PeerGates
from nodes.peers.tables import Peer, Wished
from protocol.acts import Act
from protocol.errors import BadLink, LinkFault
from protocol.keys import MeshId
from protocol.link import apply
from protocol.statement import Changes, Trust, own_basin

EARLY: Final = 64  # statements of a peer that wait for those before them; more are no honest mistake

log = structlog.get_logger(__name__)


class Statements:
    """Takes them in. `is_em` tells whether an author is an em of ours: what an em says is a wish."""

    def __init__(self, me: MeshId, gates: PeerGates, clock: Clock, is_em: Callable[[str], bool]) -> None:
        self._me, self._gates, self._clock, self._is_em = me, gates, clock, is_em
        self._early: dict[MeshId, list[tuple[MeshId, Act]]] = {}

    def hear(self, entry: Entry) -> MeshId | None:
        """Take in a statement; within a transaction. Returns the peer with whom things are otherwise now, if any."""
        act = entry.act
        if entry.mesh == self._me and self._is_em(act.author):
            self._gates.tables.wish(Wished(act.id, act.author, act.kind, plain(act.text), act.at_ms))
            log.info("an em asks for a change", em=act.author, kind=act.kind)
            return None
        mesh = MeshId(str(act.body.get("mesh"))) if entry.mesh == self._me else entry.mesh
        peer = self._gates.peers.get(mesh)
        if peer is None or entry.basin != own_basin(self._me, mesh):
            return None
        if self._gates.recovering.get(mesh) == "statements":
            return None  # read together when all of them are here again
        before = peer.relationship
        self._apply_in_turn(peer, entry.mesh, act)
        if peer.relationship == before:
            return None
        self._gates.tables.put(peer)
        if peer.relationship.state != before.state:
            log.info("a relationship has changed", peer=peer.petname, state=peer.relationship.state.value)
        return mesh

    def _apply_in_turn(self, peer: Peer, by: MeshId, act: Act) -> None:
        """Apply a statement, and those that waited for it; one that comes too early waits."""
        waiting = [*self._early.pop(peer.mesh, []), (by, act)]
        while waiting:
            later = [one for one in waiting if not self._apply(peer, *one)]
            if len(later) == len(waiting):
                self._early[peer.mesh] = later[-EARLY:]
                return
            waiting = later

    def _apply(self, peer: Peer, by: MeshId, act: Act) -> bool:
        """Apply one statement, or refuse it for good; returns False when it came before those that it follows."""
        is_em = self._is_em if by == self._me else _is_none
        try:
            peer.relationship = apply(peer.relationship, by, act, self._clock(), is_em)
        except BadLink as error:
            if error.fault == LinkFault.EARLY:
                return False
            log.warning("a statement does not count", peer=peer.petname, reason=plain(str(error)))
            self._gates.tables.refuse(by, type(error).__name__)
        return True


def _is_none(author: str) -> bool:  # noqa: ARG001 - their node vouches for who is whom there
    return False


def terms(
    text: str,
    gives: dict[str, str] | None = None,
    takes: dict[str, str | None] | None = None,
    trust: Trust | None = None,
) -> Changes:
    """Terms of a statement. Raises ValueError for what none can say."""
    given = {"text": text, "gives": gives or {}, "takes": takes or {}, "trust": trust}
    try:
        return msgspec.convert(given, Changes)
    except msgspec.ValidationError as error:
        raise ValueError(f"that cannot be agreed on: {error}") from None
