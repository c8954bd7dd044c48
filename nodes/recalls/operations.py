"""What the owner's commands may ask about memories, theirs and others'."""

from typing import Annotated, Any, Final

import msgspec

from nodes.control import Nothing, Operations, shown_act
from nodes.peers.peers import Peers
from nodes.recalls.recalls import MAX_GRANTED, Found, Recalls
from protocol.keys import fingerprint

SHOWN: Final = 200  # newest questions in one list

Basins = Annotated[list[str], msgspec.Meta(max_length=MAX_GRANTED)]


class Ask(msgspec.Struct, forbid_unknown_fields=True):
    """Ask a peer's memory; `basin`: about that one alone."""

    peer: str
    question: str
    basin: str | None = None


class Grant(msgspec.Struct, forbid_unknown_fields=True):
    """About a peer and what it may ask about."""

    peer: str
    basins: Basins


def operations(peers: Peers, recalls: Recalls) -> Operations:
    """The operations by their names. They raise NodeError, MeshError, ProtocolError."""

    def shown(found: Found) -> dict[str, Any]:
        known = peers.peers.get(found.mesh)
        name = "you" if found.mesh == peers.me else known.petname if known else None
        return shown_act(found.act) | {
            "basin": found.basin,
            "mesh": found.mesh,
            "fingerprint": fingerprint(found.mesh),
            "petname": name,
        }

    async def ask(request: Ask) -> dict[str, Any]:
        peer = peers.find(request.peer)
        found = await recalls.ask(peer, request.question.strip(), request.basin)
        return {"peer": peer.petname, "found": [shown(one) for one in found]}

    async def grant(request: Grant) -> dict[str, Any]:
        peer = peers.find(request.peer)
        return {"peer": peer.petname, "granted": recalls.grant(peer, request.basins)}

    async def ungrant(request: Grant) -> dict[str, Any]:
        peer = peers.find(request.peer)
        return {"peer": peer.petname, "granted": recalls.ungrant(peer, request.basins)}

    async def receipts(_: Nothing) -> dict[str, Any]:
        told = [
            {
                "peer": peers.peers[one.mesh].petname if one.mesh in peers.peers else None,
                "mesh": one.mesh,
                "fingerprint": fingerprint(one.mesh),
                "here": one.here,
                "question": one.question,
                "basins": one.basins.split(),
                "at_ms": one.at_ms,
                "outcome": one.outcome,
                "acts": one.acts,
                "receipt": None if one.receipt is None else one.receipt.hex(),
            }
            for one in recalls.tables.recalls(SHOWN)
        ]
        granted = {peer.petname: recalls.granted(peer) for peer in peers.peers.values()}
        return {"questions": told, "granted": {name: basins for name, basins in granted.items() if basins}}

    return {
        "recall": (Ask, ask),
        "recall_grant": (Grant, grant),
        "recall_ungrant": (Grant, ungrant),
        "recall_receipts": (Nothing, receipts),
    }
