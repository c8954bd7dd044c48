"""Disputes as a person reads them: names instead of keys, and the acts that they are about."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from mesh.entries import find
from mesh.store import Store
from nodes.disputes.disputes import Offered
from nodes.peers.peers import Peers
from protocol.acts import ActId
from protocol.dispute import Commitment, Dispute, Standing, Word, short
from protocol.keys import MeshId, fingerprint

# The bus takes a mebibyte in one message, and a character of the other side's may take six bytes of JSON.
MAX_TOLD: Final = 420_000  # bytes of words, the newest, or of disputes in one answer; one word of any length fits
MAX_WORDS: Final = 300
MAX_WISH: Final = 16_384  # characters
MAX_SHORT: Final = 4_096  # characters of what it is about, which is among the words as well
MAX_PROMISE: Final = 200  # characters of a commitment, of which there are many; what it says is among the words as well
MAX_LINE: Final = 300  # characters of a text in a list, or of an act that is quoted


def fitting(told: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first of these, as many as fit into MAX_TOLD bytes."""
    found, room = list[dict[str, Any]](), MAX_TOLD
    for one in told:
        room -= len(msgspec.json.encode(one))
        if room < 0:
            break
        found.append(one)
    return found


class Telling:
    """Puts disputes into what scripts and commands read. `name` is what this mesh calls itself."""

    def __init__(self, peers: Peers, name: str, store: Store) -> None:
        self._peers, self._name, self._store = peers, name, store

    def whole(self, dispute: Dispute) -> dict[str, Any]:
        """All of a dispute."""
        told = fitting(self._word(word) for word in reversed(dispute.words[-MAX_WORDS:]))
        return self.short(dispute) | {
            "text": dispute.text[:MAX_SHORT],
            "wish": dispute.wish[:MAX_WISH],
            "about": [self._act(identity) for identity in dispute.about],
            "words": told[::-1],
            "left_out": len(dispute.words) - len(told),
            "commitments": [self._commitment(one) for one in dispute.commitments],
            "named": [{**self._who(mesh), "by": [self._who(by) for by in bys]} for mesh, bys in dispute.named.items()],
        }

    def short(self, dispute: Dispute) -> dict[str, Any]:
        """A dispute in short."""
        raiser, other = dispute.parties
        standings = [one.standing for one in dispute.commitments]
        return {
            "id": dispute.id,
            "basin": dispute.basin,
            "state": dispute.state.value,
            "raised_by": self._who(raiser),
            "with": self._who(other),
            "link": self._link(dispute),
            "at_ms": dispute.at_ms,
            "line": dispute.text[:MAX_LINE],
            "willing": [self._who(mesh) for mesh in dispute.willing],
            "mediators": [self._who(mesh) for mesh in dispute.mediators],
            "counts": {standing.value: standings.count(standing) for standing in Standing if standing in standings},
        }

    def offered(self, one: Offered) -> dict[str, Any]:
        """A dispute that a peer shares and that is not heard."""
        return {"basin": one.basin, "id": one.basin.partition("-")[2][:8], "by": self._who(one.peer.mesh)} | {
            "mediate": not one.ours
        }

    def knows(self, identity: ActId) -> bool:
        """Whether an act is kept here."""
        return find(self._store, identity) is not None

    def _link(self, dispute: Dispute) -> str | None:
        """How we stand with the other side; None where we are not a party."""
        me, (raiser, other) = self._peers.me, dispute.parties
        if me not in dispute.parties:
            return None
        return self._peers.relationship(other if me == raiser else raiser).state.value

    def _word(self, word: Word) -> dict[str, Any]:
        about = [short(ref) for ref in word.refs] if word.kind in {"report", "settle"} else []
        return {
            "id": word.id.hex(),
            "short": short(word.id),
            "who": self._who(word.mesh),
            "author": word.author,
            "at_ms": word.at_ms,
            "kind": word.kind,
            "text": word.text,
            "taken_back": word.taken_back,
            "about": about,
        }

    def _commitment(self, one: Commitment) -> dict[str, Any]:
        return {
            "id": short(one.id),
            "act": one.id.hex(),
            "who": self._who(one.mesh),
            "text": one.text[:MAX_PROMISE],
            "at_ms": one.at_ms,
            "due_ms": one.due_ms,
            "standing": one.standing.value,
        }

    def _act(self, identity: ActId) -> dict[str, Any]:
        """An act that a dispute is about, as far as it is known here."""
        entry = find(self._store, identity)
        if entry is None:
            return {"id": identity.hex(), "known": False}
        act = entry.act
        quoted = {"author": act.author, "basin": entry.basin, "at_ms": act.at_ms, "text": act.text[:MAX_LINE]}
        return {"id": identity.hex(), "known": True, "who": self._who(entry.mesh), **quoted}

    def _who(self, mesh: MeshId) -> dict[str, Any]:
        known = self._peers.peers.get(mesh)
        is_me = mesh == self._peers.me
        name = self._name if is_me else known.petname if known else f"~{fingerprint(mesh)}"
        return {"mesh": mesh, "name": name, "fingerprint": fingerprint(mesh), "me": is_me}
