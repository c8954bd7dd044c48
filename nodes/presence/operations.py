"""What the owner's commands may ask about who is there, and about introductions."""

from typing import Any

import msgspec

from nodes.control import Nothing, Operations
from nodes.peers.guests import Wish
from nodes.peers.peers import Peers
from nodes.presence.introductions import Introductions
from nodes.presence.presence import Presence
from protocol.address import check_name
from protocol.keys import fingerprint
from protocol.statement import May, Trust


class Introduce(msgspec.Struct, forbid_unknown_fields=True):
    """Tell two peers of each other."""

    one: str
    other: str
    text: str = ""


class Meet(msgspec.Struct, forbid_unknown_fields=True):
    """Agree to an introduction. `called`: what to call them; None: as the introducer does."""

    name: str
    gives: dict[str, May] = {}
    takes: dict[str, May] = {}
    trust: Trust = Trust.GUEST
    called: str | None = None


class Of(msgspec.Struct, forbid_unknown_fields=True):
    """About whom a peer has introduced: by name, key, or the key's first letters."""

    name: str


def operations(peers: Peers, presence: Presence, introductions: Introductions) -> Operations:
    """The operations by their names. They raise NodeError, MeshError, ProtocolError."""

    async def who(_: Nothing) -> dict[str, Any]:
        return presence.who() | {"introduced": introductions.open()}

    async def introduced(_: Nothing) -> dict[str, Any]:
        return {"introduced": introductions.open()}

    async def introduce(request: Introduce) -> dict[str, Any]:
        one, other = peers.find(request.one), peers.find(request.other)
        introductions.introduce(one, other, request.text.strip())
        return {"introduced": [one.petname, other.petname]}

    async def meet(request: Meet) -> dict[str, Any]:
        if request.called is not None:
            check_name(request.called)
        wish = Wish(request.gives, request.takes, request.trust, request.called)
        peer = await introductions.meet(request.name, wish)
        state = peer.relationship.state.value
        return {"name": peer.petname, "mesh": peer.mesh, "fingerprint": fingerprint(peer.mesh), "state": state}

    async def decline(request: Of) -> dict[str, Any]:
        return {"declined": introductions.decline(request.name)}

    return {
        "who": (Nothing, who),
        "peer_introduced": (Nothing, introduced),
        "peer_introduce": (Introduce, introduce),
        "peer_meet": (Meet, meet),
        "peer_decline": (Of, decline),
    }
