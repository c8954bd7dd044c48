"""Cards at work: peers are told who is here, and theirs are kept. A part of the node (nodes.peers.parts)."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import structlog

from mesh.entries import Entry
from mesh.links.messages import BadMessage
from nodes.node import Node
from nodes.peers.gates import is_heard
from nodes.peers.peers import Peers
from nodes.peers.tables import Peer
from nodes.presence.tables import Kept, Tables
from protocol.card import CARD_MS, MAX_BASINS, MAX_EMS, Card, CardEm, read_card, sign_card
from protocol.crossing import sent_basins
from protocol.errors import BadDocument
from protocol.keys import MeshId, fingerprint
from protocol.statement import STATEMENTS

LOOK_S: Final = 2.0  # between two looks at the ems here and at who is gone; as often as the em folders are watched
AGAIN_MS: Final = CARD_MS // 2  # a card is said again this long after it was said: one that is lost does no harm

log = structlog.get_logger(__name__)


class Presence:
    """All cards of one node."""

    topic = "card"

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node, self._peers = node, peers
        self._tables = Tables(node.ground.store)
        self._said: dict[MeshId, Card] = {}
        self._here: set[MeshId] = set()
        self._stale = False
        self._look = asyncio.Event()
        peers.join(self, self.run)

    # A part's

    def begin(self, peer: MeshId) -> Iterable[bytes]:
        """Show the card."""
        self._here.add(peer)
        card = self._card(self._peers.peers[peer])
        data = self._signed(card)
        if data is None:
            return []
        self._said[peer] = card
        return [data]

    def told(self, peer: MeshId, data: bytes) -> None:
        """A peer shows its card; the newest counts. Raises BadMessage."""
        now = self._peers.now_ms()
        try:
            card = read_card(data, self._peers.me, now)
        except BadDocument as error:
            raise BadMessage(f"a peer's card does not count: {error}") from None
        if not self._peers.is_by(peer, card):
            raise BadMessage("a peer shows a card that is not its own, or of a node that its mesh has revoked")
        held = self._tables.card(peer)
        if card.made_ms <= held.made_ms and now < held.expires_ms:
            return
        with self._peers.transaction():
            self._tables.put_card(peer, Kept(data, card.made_ms, card.expires_ms, now))
        known = self._peers.peers[peer]
        addresses = self._peers.believed(known, card.addresses)
        if addresses and addresses != known.addresses:
            log.info("a peer is found elsewhere", peer=known.petname, addresses=addresses)
            known.addresses = addresses
            self._peers.meet(known)

    def hear(self, entries: Sequence[Entry]) -> None:
        """What is shared may have changed."""
        self._stale |= any(entry.act.kind in STATEMENTS for entry in entries)

    def proceed(self) -> None:
        """Look at once where it has."""
        if self._stale:
            self._stale = False
            self._look.set()

    async def run(self) -> None:
        """Say cards again when they change or grow old, and note who goes; until cancelled."""
        try:
            while True:
                self._look.clear()
                self._note_who_left()
                self._say_again()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._look.wait()
        finally:
            self._note(self._here)

    def _note_who_left(self) -> None:
        here = {mesh for mesh in self._peers.links.sessions if self._is_here(mesh)}
        gone, self._here = self._here - here, here
        self._note(gone)

    def _is_here(self, mesh: MeshId) -> bool:
        """Whether a peer's node talks with ours: one that does not let us in hangs up without a word."""
        session = self._peers.links.sessions.get(mesh)
        return session is not None and session.vocabulary is not None

    def _note(self, gone: Iterable[MeshId]) -> None:
        now = self._peers.now_ms()
        with self._peers.transaction():
            for mesh in gone:
                self._tables.seen(mesh, now)

    def _say_again(self) -> None:
        now = self._peers.now_ms()
        for mesh, session in list(self._peers.links.sessions.items()):
            peer = self._peers.peers.get(mesh)
            if peer is None or not session.begun or not is_heard(peer):
                continue
            said, card = self._said.get(mesh), self._card(peer)
            if said is not None and _timeless(said) == _timeless(card) and now < said.made_ms + AGAIN_MS:
                continue
            data = self._signed(card)
            if data is not None and self._peers.tell(mesh, self.topic, data):
                self._said[mesh] = card

    def _card(self, peer: Peer) -> Card:
        """Our card for a peer, as of now."""
        node, links, now = self._node, self._node.config.links, self._peers.now_ms()
        basins = shared_basins(peer)
        return Card(
            mesh=self._peers.me,
            certificate=self._peers.who.certificate,
            to=peer.mesh,
            made_ms=now,
            name=node.config.name,
            addresses=links.told(self._peers.links.port),
            ems=[CardEm(name, awake) for name, awake in sorted(self._ems(basins).items())][:MAX_EMS],
            basins=basins[:MAX_BASINS],
            introducible=links.introductions,
            expires_ms=now + CARD_MS,
        )

    def _signed(self, card: Card) -> bytes | None:
        try:
            return sign_card(self._peers.who.signer, card)
        except ValueError as error:
            log.warning("peers are shown no card", reason=str(error))
            return None

    def _ems(self, basins: Iterable[str]) -> dict[str, bool]:
        """The ems that listen in any of these basins, and whether they are awake."""
        rooms = (self._node.runtime.rooms.get(basin) for basin in basins)
        return {name: not em.settings.mute for room in rooms if room for name, em in room.roster.ems.items()}

    # What the person asks

    def card(self, mesh: MeshId) -> Card | None:
        """The newest card of a peer, if it holds still."""
        held, now = self._tables.card(mesh), self._peers.now_ms()
        if held.data is None or now >= held.expires_ms:
            return None
        try:
            return read_card(held.data, self._peers.me, now)
        except BadDocument:  # this machine's clock was set back
            return None

    def who(self) -> dict[str, Any]:
        """This mesh's ems and every peer, for `mesh who`."""
        node, me = self._node, self._peers.me
        basins = [basin for basin, room in node.runtime.rooms.items() if room.roster.ems]
        ems = [
            {
                "name": name,
                "awake": not em.settings.mute,
                "basins": sorted(basin for basin in basins if name in node.runtime.rooms[basin].roster.ems),
            }
            for name, em in sorted(node.runtime.ems.items())
        ]
        peers = [self._who(peer) for peer in sorted(self._peers.peers.values(), key=lambda one: one.petname)]
        return {"name": node.config.name, "mesh": me, "fingerprint": fingerprint(me), "ems": ems, "peers": peers}

    def _who(self, peer: Peer) -> dict[str, Any]:
        card, here = self.card(peer.mesh), self._is_here(peer.mesh)
        return {
            "name": peer.petname,
            "mesh": peer.mesh,
            "fingerprint": fingerprint(peer.mesh),
            "calls_itself": card.name if card else None,
            "state": "accepted" if peer.accepted is not None else peer.relationship.state.value,
            "here": here,
            "seen_ms": self._tables.card(peer.mesh).seen_ms,
            "ems": [{"name": em.name, "awake": em.awake and here} for em in card.ems] if card else [],
            "basins": shared_basins(peer),
            "introducible": card is not None and card.introducible,
        }


def shared_basins(peer: Peer) -> list[str]:
    """The basins in which something goes to a peer or comes from it, now."""
    seen = peer.relationship
    return sorted({*sent_basins(seen), *sent_basins(seen.mirrored())})


def _timeless(card: Card) -> tuple[object, ...]:
    """What a card says, whenever it was made."""
    return (card.name, card.addresses, card.ems, card.basins, card.introducible, card.certificate)
