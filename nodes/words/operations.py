"""What the owner's commands may ask about words of a running node."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, Literal

import msgspec

from mesh.words import plain
from nodes.control import Nothing, Operations
from nodes.errors import NodeError
from nodes.peers.peers import Peers
from nodes.words.glosses import WORDS
from nodes.words.words import Words
from protocol.keys import MeshId
from protocol.statement import check_shareable, is_own
from protocol.terms import MAX_HELD, Slot, fold, new_term
from protocol.vocabulary import Digest, Term, core_terms, digest

MAX_ANSWER: Final = 800_000  # bytes of readings in one answer: the bus takes little more in one message
MAX_AUTHORS: Final = 50  # of each kind that are told of one reading: a flood of names must not hide other words
SHORT: Final = 15  # characters of a digest that tell readings of one word apart


class Of(msgspec.Struct, forbid_unknown_fields=True):
    """About a word, by its name or a reading's digest; `basin`: where it is said, None for where it was proposed."""

    word: str
    basin: str | None = None


class OfPeer(msgspec.Struct, forbid_unknown_fields=True):
    """About a peer, by its name here or its mesh's id."""

    peer: str


class Propose(msgspec.Struct, forbid_unknown_fields=True):
    """Put a word forward."""

    name: str
    definition: str
    kind: Literal["word", "act"] = "word"
    obliges: str = ""
    example: str = ""
    basin: str = WORDS


class Contest(msgspec.Struct, forbid_unknown_fields=True):
    """Read a word otherwise."""

    word: str
    definition: str
    basin: str | None = None


def operations(words: Words, peers: Peers) -> Operations:
    """The operations by their names. They raise NodeError, MeshError, ProtocolError."""
    asked = _Asked(words, peers)
    return {
        "vocab_list": (Nothing, asked.all),
        "vocab_show": (Of, asked.show),
        "vocab_propose": (Propose, asked.propose),
        "vocab_adopt": (Of, asked.adopt),
        "vocab_contest": (Contest, asked.contest),
        "vocab_retire": (Of, asked.retire),
        "vocab_diff": (OfPeer, asked.diff),
    }


class _Asked:
    """Answers them."""

    def __init__(self, words: Words, peers: Peers) -> None:
        self._words, self._peers, self._lexicon = words, peers, words.lexicon

    async def all(self, _: Nothing) -> dict[str, Any]:
        """Those in use here first: what others put forward in any number must not push them out of the answer."""
        lexicon = self._lexicon
        ours = set(lexicon.uses(self._words.me).values())
        found = sorted((one for name in lexicon.names() for one in lexicon.find(name)), key=lambda one: one not in ours)
        told = self._told(found)
        return {"readings": told, "left_out": len(found) - len(told)}

    async def show(self, request: Of) -> dict[str, Any]:
        found = self._lexicon.find(request.word)
        name = fold(request.word)
        if found:
            name = fold(self._lexicon.terms[found[0]].name)
            found = self._lexicon.find(name)
        core = next((term for term in core_terms() if term.name == name), None)
        if not found and core is None:
            raise NodeError(f"nobody has put forward {plain(request.word, 80)!a} here; mesh vocab list shows what is")
        contested = bool(found) and self._lexicon.contested(name)
        return {
            "name": name,
            "contested": contested,
            "core": _core(core) if core and not found else None,
            "readings": self._told(found),
        }

    async def propose(self, request: Propose) -> dict[str, Any]:
        term = new_term(request.name, request.definition, request.kind, request.obliges, request.example)
        return await self._say(check_shareable(request.basin), "propose", term, digest(term))

    async def adopt(self, request: Of) -> dict[str, Any]:
        about = self._one(request.word, self._lexicon.find(request.word))
        term = self._lexicon.terms[about]
        self._room_for(term.name)
        return await self._say(self._basin(request.basin, about), "adopt", term, about)

    async def contest(self, request: Contest) -> dict[str, Any]:
        about = self._one(request.word, self._lexicon.find(request.word))
        theirs = self._lexicon.terms[about]
        ours = new_term(theirs.name, request.definition, theirs.kind)
        if digest(ours) == about:
            raise NodeError(f"that is how {plain(theirs.name)} is read already; to use it: mesh vocab adopt")
        self._room_for(ours.name)
        basin = self._basin(request.basin, about)
        body = {"text": _text(ours), "digest": about, "term": msgspec.to_builtins(ours)}
        act = await self._words.say(basin, "contest", body, about)
        return {"id": act.id.hex(), "basin": basin, **self._reading(digest(ours))}

    async def retire(self, request: Of) -> dict[str, Any]:
        used = set(self._lexicon.uses(self._words.me).values())
        found = self._lexicon.find(request.word)
        if found and not used.intersection(found):
            raise NodeError(f"{plain(request.word, 80)} is not in use here, so it need not be retired")
        about = self._one(request.word, [one for one in found if one in used])
        said = self._lexicon.of(self._words.me, about)
        basin = request.basin or (said.basin if said else None)  # who heard of its use hears of its end
        return await self._say(self._basin(basin, about), "retire", self._lexicon.terms[about], about)

    async def diff(self, request: OfPeer) -> dict[str, Any]:
        peer, lexicon = self._peers.find(request.peer), self._lexicon
        ours, theirs = lexicon.held(self._words.me), lexicon.held(peer.mesh)
        names = [{fold(lexicon.terms[one].name) for one in side if one in lexicon.terms} for side in (ours, theirs)]
        both = ours & theirs
        differ = [name for name in sorted(names[0] & names[1]) if not both.intersection(lexicon.find(name))]
        return {
            "peer": peer.petname,
            "told": peer.mesh in lexicon.told,
            "only_here": self._told(self._sorted(ours - theirs)),
            "only_there": self._told(self._sorted(theirs - ours)),
            "both": self._told(self._sorted(both)),
            "contested": sorted({*differ, *(name for name in names[0] | names[1] if lexicon.contested(name))}),
        }

    def _one(self, wanted: str, found: list[Digest]) -> Digest:
        """The one reading that a person means. Raises NodeError with what to do where that is not clear."""
        shown = plain(wanted, 80)
        if not found:
            raise NodeError(f"no reading of {shown!a} is known here; mesh vocab list shows those that are")
        if len(found) > 1:
            told = "; ".join(f"{one[:SHORT]} {plain(self._lexicon.terms[one].definition, 60)}" for one in found[:8])
            raise NodeError(f"{shown} is read in {len(found)} ways; say which by its digest: {told}")
        return found[0]

    def _room_for(self, name: str) -> None:
        uses = self._lexicon.uses(self._words.me)
        if len(uses) >= MAX_HELD and fold(name) not in uses:
            raise NodeError(f"a mesh uses {MAX_HELD} words at most; retire one first: mesh vocab retire NAME")

    def _basin(self, named: str | None, about: Digest) -> str:
        """Where something is said about a reading: where it was put forward. Raises NodeError where that is not clear.

        Whoever hears of a reading may put it forward elsewhere, dated as they like: they do not decide who hears us.
        """
        if named is not None:
            return check_shareable(named)
        basins = sorted(one for one in self._lexicon.basins(about, Slot.PROPOSE) if not is_own(one))
        if len(basins) > 1:
            told = ", ".join(basins[:8])
            raise NodeError(f"it was put forward in {len(basins)} basins; say in which to speak, with --basin: {told}")
        return basins[0] if basins else WORDS

    async def _say(self, basin: str, kind: str, term: Term, about: Digest) -> dict[str, Any]:
        what = {"term": msgspec.to_builtins(term)} if kind == "propose" else {"digest": about}
        text = _text(term) if kind == "propose" else term.name
        act = await self._words.say(basin, kind, {"text": text, **what}, about)
        return {"id": act.id.hex(), "basin": basin, **self._reading(about)}

    def _sorted(self, digests: Iterable[Digest]) -> list[Digest]:
        terms = self._lexicon.terms
        return sorted(digests, key=lambda one: (one not in terms, fold(terms[one].name) if one in terms else "", one))

    def _told(self, digests: Iterable[Digest]) -> list[dict[str, Any]]:
        """Readings as scripts see them, as many as fit into one answer."""
        told, room = list[dict[str, Any]](), MAX_ANSWER
        for one in digests:
            told.append(self._reading(one))
            room -= len(msgspec.json.encode(told[-1]))
            if room < 0:
                return told[:-1]
        return told

    def _reading(self, about: Digest) -> dict[str, Any]:
        reading = self._lexicon.reading(about)
        term = reading.term
        return {
            "digest": about,
            "name": term.name if term else None,
            "kind": term.kind if term else None,
            "definition": term.definition if term else None,
            "obliges": term.obliges if term else None,
            "example": term.example if term else None,
            "here": self._words.me in reading.used,
            "used": self._meshes(reading.used),
            "contested": self._authors(reading.contested),
            "proposed": self._authors(reading.proposed),
            "ems": self._authors(reading.ems),
        }

    def _meshes(self, meshes: Iterable[MeshId]) -> list[dict[str, str]]:
        return [{"mesh": mesh, "called": self._words.called(mesh)} for mesh in islice(meshes, MAX_AUTHORS)]

    def _authors(self, authors: Iterable[tuple[MeshId, str]]) -> list[dict[str, str]]:
        told = islice(authors, MAX_AUTHORS)
        return [{"author": author, "mesh": mesh, "called": self._words.called(mesh)} for mesh, author in told]


def _text(term: Term) -> str:
    return f"{term.name}: {term.definition}"


def _core(term: Term) -> dict[str, Any]:
    """One of the acts that every mesh holds; its schema is left to docs/protocol.md."""
    told = msgspec.structs.asdict(term)
    return {key: told[key] for key in ("name", "kind", "definition", "obliges", "example")}
