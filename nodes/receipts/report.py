"""What became of what was taken back: who confirmed it, and who may hold it still. For a person, and for scripts."""

from collections.abc import Iterator
from typing import Any, Final

from mesh.store import Store
from nodes.layout import when
from nodes.peers.tables import Peer
from nodes.peers.tables import Tables as PeerTables
from nodes.receipts.tables import Confirmed, Tables
from protocol.keys import fingerprint
from protocol.link import State

REPORTED: Final = 100  # newest redactions in one report
PASSED_ON: Final = "Whom they passed it on to is not known here; a redaction goes the same way as the act did."

_WORDS: Final = {
    "forgotten": "confirmed {at}: its words are erased there",
    "never": "confirmed {at}: it never had it",
    "held": "was sent it and has not confirmed: it may hold it still",
    "unsent": "was not sent it, as far as is known here",
}


def report(store: Store, target: bytes | None = None) -> list[dict[str, Any]]:
    """Our newest redactions, or those of one act (its id, or the redaction's), with each peer that is concerned."""
    tables = Tables(store)
    if not tables.is_there():
        return []
    peers = {peer.mesh: peer for peer in PeerTables(store).peers()}
    return [
        {
            "act": forgot.target.hex(),
            "redaction": forgot.redaction.hex(),
            "basin": forgot.basin,
            "author": forgot.author,
            "at_ms": forgot.at_ms,
            "peers": [_peer(one, peers.get(one.mesh)) for one in tables.confirmed(forgot.redaction)],
        }
        for forgot in tables.forgets(REPORTED, target)
    ]


def _peer(one: Confirmed, peer: Peer | None) -> dict[str, Any]:
    return {
        "name": peer.petname if peer else None,
        "mesh": one.mesh,
        "fingerprint": fingerprint(one.mesh),
        "state": _state(one),
        "at_ms": one.at_ms,
        "left": peer is None or peer.relationship.state == State.LEFT,
    }


def _state(one: Confirmed) -> str:
    if one.held is not None:
        return "forgotten" if one.held else "never"
    return "held" if one.sent else "unsent"


def as_text(told: list[dict[str, Any]]) -> Iterator[str]:
    """The report in plain words."""
    for one in told:
        yield f"{one['act']}  by {one['author']} in {one['basin']}, taken back {when(one['at_ms'])}"
        for peer in one["peers"]:
            name = peer["name"] or "not known here any more"
            words = _WORDS[peer["state"]].format(at=when(peer["at_ms"]))
            ended = "; the link has ended, and nothing asks it any more" if peer["left"] and not peer["at_ms"] else ""
            yield f"  {name} ({peer['fingerprint']}) {words}{ended}"
        if not one["peers"]:
            yield "  nobody but this mesh had it"
    if any(one["peers"] for one in told):
        yield PASSED_ON
