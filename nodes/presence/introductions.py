"""Introductions at work: a peer tells two of its peers of each other, and each of these decides alone.

Whoever agrees says `invite` to the other; when both have, the two are linked. Until then a node that calls is not let
in, as any stranger, and nobody is told who agreed and who did not.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

import structlog

from mesh.entries import Entry
from mesh.errors import MeshError
from mesh.links.messages import BadMessage
from mesh.words import plain
from nodes.errors import NodeError
from nodes.node import Node
from nodes.peers.guests import Wish
from nodes.peers.peers import Peers
from nodes.peers.tables import Peer
from nodes.presence.presence import Presence
from nodes.presence.tables import Tables, Told
from protocol.card import INTRODUCTION_MS, MAX_WORDS, Introduction, read_introduction, sign_introduction
from protocol.errors import BadDocument, ProtocolError
from protocol.invitation import MAX_ADDRESSES
from protocol.keys import MeshId, fingerprint
from protocol.link import Standing, State
from protocol.statement import Changes, May, check_shareable

MAX_TOLD: Final = 16  # introductions by one peer that are kept at a time; more are not read
LOOK_S: Final = 60.0  # between two looks for those that have lapsed

log = structlog.get_logger(__name__)


class Introductions:
    """All introductions of one node, by it and to it. A part (nodes.peers.parts)."""

    topic = "intro"

    def __init__(self, node: Node, peers: Peers, presence: Presence) -> None:
        self._node, self._peers, self._presence = node, peers, presence
        self._tables = Tables(node.ground.store)
        peers.join(self, self.run)

    # A part's

    def begin(self, peer: MeshId) -> Iterable[bytes]:
        """Say again what holds still: whether it arrived is not known."""
        with self._peers.transaction():
            return self._tables.own(peer, self._peers.now_ms())

    def told(self, peer: MeshId, data: bytes) -> None:
        """A peer introduces somebody. Raises BadMessage."""
        now = self._peers.now_ms()
        try:
            found = read_introduction(data, self._peers.me, now)
        except BadDocument as error:
            raise BadMessage(f"an introduction does not count: {error}") from None
        if not self._peers.is_by(peer, found):
            raise BadMessage("an introduction is not the peer's own, or of a node that its mesh has revoked")
        told = self._tables.told(peer)
        before = next((one for one in told if one.other == found.other), None)
        if before is not None and (before.state != "open" or before.data == data):
            return  # decided on already, or said again
        if before is None and len(told) >= MAX_TOLD:
            raise BadMessage("a peer introduces more than anybody reads")
        if self._peers.relationship(found.other).state in (State.LINKED, State.PAUSED):
            return
        with self._peers.transaction():
            self._tables.put_told(Told(peer, found.other, data, found.expires_ms, "open"))
        log.info("a peer introduces somebody", by=self._peers.peers[peer].petname, other=fingerprint(found.other))

    def hear(self, entries: Sequence[Entry]) -> None:
        """Nothing."""

    def proceed(self) -> None:
        """Nothing."""

    async def run(self) -> None:
        """Let go of what has lapsed, until cancelled."""
        while True:
            for told in self._tables.told():
                if told.expires_ms <= self._peers.now_ms():
                    await self._lapse(told)
            await asyncio.sleep(LOOK_S)

    async def _lapse(self, told: Told) -> None:
        """An introduction has expired: whoever agreed and was not answered is dialled no more, and not let in."""
        peer = self._peers.peers.get(told.other)
        if told.state == "met" and peer is not None and _is_waiting(peer):
            peer.addresses = ()
            self._peers.meet(peer)
            try:
                await self._peers.say(peer, "leave", Changes(text="We have not met."))
            except (ProtocolError, MeshError) as error:
                log.info("an introduction has lapsed and waits", peer=peer.petname, reason=plain(str(error)))
                return
        with self._peers.transaction():
            self._tables.forget_told(told)

    # What the person does

    def introduce(self, one: Peer, other: Peer, text: str) -> None:
        """Tell two peers of each other. Raises NodeError where one does not want that, or neither could call."""
        if one is other:
            raise NodeError("these are one and the same; name two peers")
        if len(text) > MAX_WORDS:
            raise NodeError(f"what you say has {len(text)} characters; at most {MAX_WORDS} go with an introduction")
        calls = self._reached(one), self._reached(other)
        if not any(calls):
            reason = "neither of the two can be dialled from elsewhere, so they could not meet"
            raise NodeError(f"{reason}; one of them must set links.listen or links.addresses first")
        with self._peers.transaction():
            for reader, about, addresses in ((one, other, calls[1]), (other, one, calls[0])):
                made = self._made(reader, about, addresses, text)
                self._tables.put_own(reader.mesh, about.mesh, made, self._peers.now_ms() + INTRODUCTION_MS)
        for peer in (one, other):
            for data in self.begin(peer.mesh):
                self._peers.tell(peer.mesh, self.topic, data)

    def _reached(self, peer: Peer) -> tuple[str, ...]:
        """Where a peer says that it is dialled. Raises NodeError unless it says that it may be introduced."""
        card = self._presence.card(peer.mesh)
        if peer.relationship.state != State.LINKED or card is None:
            raise NodeError(f"{peer.petname} is not here now; introduce them when they are: mesh who")
        if not card.introducible:
            raise NodeError(f"{peer.petname} does not want to be introduced (links.introductions in their settings)")
        return card.addresses

    def _made(self, reader: Peer, about: Peer, addresses: tuple[str, ...], text: str) -> bytes:
        now = self._peers.now_ms()
        made = Introduction(
            mesh=self._peers.me,
            certificate=self._peers.who.certificate,
            to=reader.mesh,
            made_ms=now,
            other=about.mesh,
            name=about.petname,
            addresses=addresses,
            text=text,
            expires_ms=now + INTRODUCTION_MS,
        )
        return sign_introduction(self._peers.who.signer, made)

    def open(self) -> list[dict[str, Any]]:
        """Those on which the person has not decided yet."""
        return [
            {
                "name": found.name,
                "mesh": found.other,
                "fingerprint": fingerprint(found.other),
                "by": self._peers.peers[told.by].petname,
                "text": found.text,
                "reachable": bool(found.addresses),
                "expires_ms": found.expires_ms,
            }
            for told, found in self._open()
        ]

    async def meet(self, name: str, wish: Wish) -> Peer:
        """Agree to an introduction. Raises NodeError, BadLink, MeshError, BadAddress."""
        for basin in (*wish.gives, *wish.takes):
            check_shareable(basin)
        meant = self._meant(name)
        found = meant[0][1]
        by = {told.by: self._peers.peers[told.by] for told, _ in meant}
        told_of = (self._peers.believed(by[told.by], one.addresses) for told, one in meant)
        addresses = dict.fromkeys(address for some in told_of for address in some)
        seen = self._peers.relationship(found.other)
        if seen.state in (State.LINKED, State.PAUSED):
            raise NodeError("you are linked with that mesh already; see: mesh peer list")
        petname = self._peers.petname(wish.petname or found.name, found.other)
        peer = self._peers.peers.get(found.other) or Peer(found.other, petname, (), seen)
        peer.addresses = tuple(addresses)[:MAX_ADDRESSES] or peer.addresses
        self._peers.meet(peer)
        if seen.mine.standing != Standing.INVITED or seen.state != State.INVITED:
            await self._invite(peer, wish, max(one.expires_ms for _, one in meant))
        with self._peers.transaction():
            for told, _ in meant:
                self._tables.put_told(told._replace(state="met"))
        return peer

    async def _invite(self, peer: Peer, wish: Wish, until_ms: int) -> None:
        """Say what makes a link when the other side has said it as well."""
        seen = peer.relationship
        agrees = seen.state == State.INVITED and seen.theirs.standing == Standing.INVITED
        kind, text = ("link", "We are linked.") if agrees else ("invite", "I would like to link our meshes.")
        takes = dict[str, May | None](wish.takes)
        until = None if agrees else until_ms
        changes = Changes(text=text, gives=dict(wish.gives), takes=takes, trust=wish.trust, until_ms=until)
        await self._peers.say(peer, kind, changes)

    def decline(self, name: str) -> str:
        """Do not; gives the name of who was introduced. Nobody is told. Raises NodeError."""
        meant = self._meant(name)
        with self._peers.transaction():
            for told, _ in meant:
                self._tables.put_told(told._replace(state="declined"))
        return meant[0][1].name

    def _open(self) -> list[tuple[Told, Introduction]]:
        """What is open, read; what cannot be read any more (a clock that was set back) is left out."""
        found = list[tuple[Told, Introduction]]()
        for told in self._tables.told():
            if told.state == "open" and told.by in self._peers.peers:
                try:
                    found.append((told, read_introduction(told.data, self._peers.me, self._peers.now_ms())))
                except BadDocument:
                    continue
        return found

    def _meant(self, name: str) -> list[tuple[Told, Introduction]]:
        """The introductions of whom the person names, by name, key, or the key's first letters. Raises NodeError."""
        meant = [pair for pair in self._open() if name in (pair[1].name, pair[0].other, fingerprint(pair[0].other))]
        if not meant:
            raise NodeError(f"nobody has introduced {plain(name, 80)!a}; see: mesh peer list")
        if len({told.other for told, _ in meant}) > 1:
            keys = ", ".join(sorted(fingerprint(told.other) for told, _ in meant))
            raise NodeError(f"more than one was introduced as {name}; say which, by the key: {keys}")
        return meant


def _is_waiting(peer: Peer) -> bool:
    """Whether we have agreed, and they have said nothing."""
    seen = peer.relationship
    return (
        seen.state == State.INVITED
        and seen.mine.standing == Standing.INVITED
        and seen.theirs.standing == Standing.NOTHING
    )
