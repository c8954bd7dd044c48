"""What the owner's commands may ask about peers of a running node."""

import base64
import hashlib
from typing import Any, Final

from nodes.control import Nothing, Operations
from nodes.errors import NodeError
from nodes.peers.guests import Wish
from nodes.peers.peers import Peers
from nodes.peers.requests import (
    Accept,
    Address,
    Basins,
    Invite,
    Look,
    MeetIn,
    Of,
    OfBasin,
    OfWish,
    Rename,
    SetQuota,
    SetTrust,
)
from nodes.peers.statements import terms
from nodes.peers.tables import Peer
from protocol.address import check_name
from protocol.invitation import read_address, read_invitation, write_code, write_link
from protocol.keys import fingerprint
from protocol.link import Share, State
from protocol.quota import Quota
from protocol.statement import Changes, May, check_shareable

SETTLE_S: Final = 10.0  # that accepting waits for the link itself


def operations(peers: Peers) -> Operations:
    """The operations by their names. They raise NodeError, MeshError, ProtocolError, ValueError."""
    asked = _Asked(peers)
    return {
        "peer_invite": (Invite, asked.invite),
        "peer_look": (Look, asked.look),
        "peer_accept": (Accept, asked.accept),
        "peer_list": (Nothing, asked.list),
        "peer_show": (Of, asked.show),
        "peer_room": (MeetIn, asked.room),
        "peer_rename": (Rename, asked.rename),
        "peer_address": (Address, asked.address),
        "peer_wishes": (Nothing, asked.wishes),
        "peer_dismiss": (OfWish, asked.dismiss),
        "peer_share": (OfBasin, asked.share),
        "peer_unshare": (OfBasin, asked.unshare),
        "peer_take": (OfBasin, asked.take),
        "peer_pause": (Of, asked.pause),
        "peer_resume": (Of, asked.resume),
        "peer_leave": (Of, asked.leave),
        "peer_trust": (SetTrust, asked.trust),
        "peer_quota": (SetQuota, asked.quota),
    }


class _Asked:
    """Answers them."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def invite(self, request: Invite) -> dict[str, Any]:
        peers = self._peers
        room = await peers.ways.enter(request.room) if request.room else None
        addresses = await peers.addresses() if room is None else await peers.known_addresses()
        if request.name is not None and peers.petname(check_name(request.name), peers.me) != request.name:
            raise NodeError(f"there is a {request.name} already; choose another name")
        wish = Wish(request.gives, request.takes, request.trust, request.name)
        expires_s = peers.now_ms() // 1000 + request.expires_s
        invitation = peers.guests.invite(wish, addresses, expires_s, room)
        return {
            "code": write_code(invitation),
            "link": write_link(invitation),
            "expires_s": expires_s,
            "addresses": list(addresses),
            "room": room,
            "gives": request.gives,
            "takes": request.takes,
        }

    async def look(self, request: Look) -> dict[str, Any]:
        peers = self._peers
        room = await peers.ways.enter(request.room) if request.room else None
        offer, told = await peers.guests.look(read_invitation(request.code), room)
        return {
            "mesh": offer.mesh,
            "fingerprint": fingerprint(offer.mesh),
            "name": offer.name,
            "own": peers.me,
            "own_fingerprint": fingerprint(peers.me),
            "gives": offer.gives,
            "takes": offer.takes,
            "expires_s": offer.expires_s,
            "offer": _digest(told),
        }

    async def accept(self, request: Accept) -> dict[str, Any]:
        peers = self._peers
        invitation = read_invitation(request.code)
        if request.name is not None:
            check_name(request.name)
        room = await peers.ways.enter(request.room) if request.room else None
        offer, told = await peers.guests.seen(invitation, room)
        if _digest(told) != request.offer:
            raise NodeError("they offer something else by now; look at it again")
        wish = Wish(offer.takes, offer.gives, request.trust, request.name)  # what they take is given, and so on
        peer = await peers.guests.accept(invitation, told, wish, room)
        await peers.until_settled(peer, SETTLE_S)
        return self._told(peer)

    async def list(self, _: Nothing) -> dict[str, Any]:
        return {"peers": [self._told(peer) for peer in self._peers.peers.values()]}

    async def show(self, request: Of) -> dict[str, Any]:
        peers = self._peers
        peer = peers.find(request.peer)
        seen, now = peer.relationship, peers.now_ms()
        with peers.transaction():
            peers.gates.save_all()
        day = peers.gates.tables.day(peer.mesh, now)
        spent, allowed = peer.spent.add(now), seen.mine.terms.allowance
        return self._told(peer) | {
            "addresses": list(peer.addresses),
            "room": peers.ways.room_of(peer.mesh),
            "gives": _basins(seen.mine.terms.gives),
            "takes": _basins(seen.mine.terms.takes),
            "their_gives": _basins(seen.theirs.terms.gives),
            "their_takes": _basins(seen.theirs.terms.takes),
            "their_trust": seen.theirs.terms.trust.value,
            "paused": {"here": seen.mine.terms.paused, "there": seen.theirs.terms.paused},
            "quota": {
                "acts_a_minute": allowed.acts_a_minute,
                "chains_a_day": allowed.roots_a_day,
                "tokens_a_day": allowed.tokens_a_day,
            },
            "today": day._asdict() | {"chains": spent.roots, "tokens": spent.tokens},
            "refused": peers.gates.tables.refusals(peer.mesh),
            "notes": [{"at_ms": at_ms, "text": text} for at_ms, text in peers.gates.tables.notes(peer.mesh)],
        }

    async def room(self, request: MeetIn) -> dict[str, Any]:
        peers = self._peers
        peer = peers.find(request.peer)
        room = await peers.ways.enter(request.room) if request.room else None
        with peers.transaction():
            peers.ways.set_room(peer.mesh, room)
        peers.stir()
        return self._told(peer) | {"room": room}

    async def rename(self, request: Rename) -> dict[str, Any]:
        peer = self._peers.find(request.peer)
        self._peers.rename(peer, check_name(request.name))
        return self._told(peer)

    async def address(self, request: Address) -> dict[str, Any]:
        """Dial a peer elsewhere."""
        peer = self._peers.find(request.peer)
        self._peers.move(peer, tuple(read_address(address) for address in request.addresses))
        return self._told(peer) | {"addresses": list(peer.addresses)}

    async def wishes(self, _: Nothing) -> dict[str, Any]:
        """What ems ask for; a person does it, or lets it be."""
        wishes = self._peers.gates.tables.wishes()
        return {"wishes": [wish._asdict() | {"id": wish.id.hex()} for wish in wishes]}

    async def dismiss(self, request: OfWish) -> dict[str, Any]:
        tables = self._peers.gates.tables
        meant = [wish for wish in tables.wishes() if wish.id.hex().startswith(request.wish)]
        if len(meant) != 1:
            raise NodeError("that is not the beginning of one wish's id; see: mesh peer wishes")
        with self._peers.transaction():
            tables.granted(meant[0].id)
        return {"dismissed": meant[0].id.hex()}

    async def share(self, request: OfBasin) -> dict[str, Any]:
        may = _may(request)
        basin = check_shareable(request.basin)
        text = f"You may {'read and write' if request.write else 'read'} {basin}."
        return await self._say(request.peer, "share", Changes(text=text, basin=basin, may=may))

    async def unshare(self, request: OfBasin) -> dict[str, Any]:
        """Neither give nor take a basin any more."""
        peer, basin = self._peers.find(request.peer), check_shareable(request.basin)
        held = peer.relationship.mine.terms
        if basin not in held.gives and basin not in held.takes:
            raise NodeError(f"{basin} is neither given to {peer.petname} nor taken")
        if basin in held.gives:
            await self._peers.say(peer, "unshare", Changes(text=f"{basin} is no longer yours to read.", basin=basin))
        if basin in held.takes:
            await self._peers.say(peer, "link", terms(f"I no longer take {basin}.", takes={basin: None}))
        return self._told(peer)

    async def take(self, request: OfBasin) -> dict[str, Any]:
        may, basin = _may(request), check_shareable(request.basin)
        text = f"I {'listen and speak' if request.write else 'listen'} in {basin}."
        return await self._say(request.peer, "link", terms(text, takes={basin: may}))

    async def pause(self, request: Of) -> dict[str, Any]:
        return await self._say(request.peer, "link", Changes(text="Let us pause.", paused=True))

    async def resume(self, request: Of) -> dict[str, Any]:
        return await self._say(request.peer, "link", Changes(text="Let us go on.", paused=False))

    async def leave(self, request: Of) -> dict[str, Any]:
        """End it. An invitation that was accepted and not answered yet is let go: it would link the two later."""
        peer = self._peers.find(request.peer)
        if peer.accepted is not None:
            peer.accepted = None
            self._peers.meet(peer)
            if peer.relationship.state in (State.STRANGER, State.LEFT):
                return self._told(peer)
        return await self._say(request.peer, "leave", Changes(text="I leave."))

    async def trust(self, request: SetTrust) -> dict[str, Any]:
        text = f"To me you are {request.trust.value} now."
        return await self._say(request.peer, "link", Changes(text=text, trust=request.trust))

    async def quota(self, request: SetQuota) -> dict[str, Any]:
        held = self._peers.find(request.peer).relationship.mine.terms.allowance
        quota = Quota(
            held.acts_a_minute if request.acts is None else request.acts,
            held.roots_a_day if request.chains is None else request.chains,
            held.tokens_a_day if request.tokens is None else request.tokens,
        )
        return await self._say(request.peer, "link", Changes(text="What you may use here has changed.", quota=quota))

    async def _say(self, name: str, kind: str, changes: Changes) -> dict[str, Any]:
        peer = self._peers.find(name)
        await self._peers.say(peer, kind, changes)
        return self._told(peer)

    def _told(self, peer: Peer) -> dict[str, Any]:
        """A peer in short."""
        seen = peer.relationship
        return {
            "name": peer.petname,
            "mesh": peer.mesh,
            "fingerprint": fingerprint(peer.mesh),
            "state": "accepted" if peer.accepted is not None else seen.state.value,
            "trust": seen.mine.terms.trust.value,
            "connected": peer.mesh in self._peers.links.sessions,
            "basins": sorted({*seen.mine.terms.gives, *seen.mine.terms.takes}),
        }


def _may(request: OfBasin) -> May:
    return "write" if request.write else "read"


def _basins(shares: dict[str, Share]) -> Basins:
    return {basin: share.may for basin, share in sorted(shares.items())}


def _digest(offer: bytes) -> str:
    return base64.b32encode(hashlib.blake2b(offer, digest_size=20).digest()).decode()
