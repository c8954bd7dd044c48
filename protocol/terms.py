"""Terms, and what an act says about one: that it is put forward, taken into use, read otherwise, given up. Pure.

A word may have any number of readings: terms of one name, each known by its digest, whatever the case of its letters.
`protocol.lexicon` is what all that was said comes to.
"""

import re
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from protocol.acts import Act
from protocol.errors import BadTerm
from protocol.keys import MeshId
from protocol.vocabulary import BODIES, Digest, Term, digest

MAX_TERM: Final = 4_096  # bytes of a term's canonical form; some thousand of them are kept for every peer
MAX_HELD: Final = 512  # readings that one mesh uses; their digests fit into one message between nodes

TERM_ACTS: Final = frozenset({"propose", "adopt", "contest", "retire"})

_DIGEST: Final = re.compile(r"b2:[0-9a-f]{64}")
_ACT_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_FORBIDDEN: Final = frozenset(':<>"/\\')  # what ends a word where people and ems write `word: definition`


class Slot(StrEnum):
    """What is said about a term. Of each, an author's newest counts."""

    PROPOSE = "propose"
    USE = "use"  # adopt or retire
    CONTEST = "contest"


class Said(msgspec.Struct, frozen=True, array_like=True):
    """One author's word about one term. `person`: the mesh's own person said it, which alone says what the mesh uses.

    `uses` matters for USE alone: whether the term is taken into use, or out of it. `basin` is where it was said.
    """

    mesh: MeshId
    author: str
    person: bool
    digest: Digest
    slot: Slot
    uses: bool
    at_ms: int
    id: bytes
    basin: str

    @property
    def order(self) -> tuple[int, bytes]:
        """What was said later is greater."""
        return self.at_ms, self.id

    @property
    def key(self) -> "Key":
        """Where only the newest is kept."""
        return Key(self.mesh, "" if self.person else self.author, self.digest, self.slot)


class Key(NamedTuple):
    """Whose word about which term; the author is empty for the mesh's person."""

    mesh: MeshId
    author: str
    digest: Digest
    slot: Slot


# Terms by themselves


def fold(name: str) -> str:
    """A word's name as names are compared: in any case."""
    return name.casefold()


def check_term(term: Term) -> Digest:
    """A term's digest, when the term keeps the rules for those that people make. Raises BadTerm."""
    name = term.name
    if name != unicodedata.normalize("NFC", " ".join(name.split())) or not name.isprintable():
        raise BadTerm("a word is printable, with single spaces within it at most")
    if not name[0].isalnum() or _FORBIDDEN.intersection(name):
        raise BadTerm('a word begins with a letter or a digit and has none of : < > " / \\ in it')
    if term.kind == "act" and (not _ACT_NAME.fullmatch(name) or name in BODIES):
        raise BadTerm(f"{name!a} cannot name an act: use a-z, 0-9, _ and -, and no name of the core acts")
    if term.kind == "word" and term.schema is not None:
        raise BadTerm("a word has no schema; acts have one")
    if not all(text.isprintable() for text in (term.definition, term.obliges, term.example)):
        raise BadTerm("a definition, what it obliges to, and an example are one printable line each")
    if not term.definition.strip():
        raise BadTerm("a definition says something")
    try:
        data = write_term(term)
        same = len(data) <= MAX_TERM and msgspec.json.decode(data, type=Term) == term
    except (msgspec.MsgspecError, RecursionError, TypeError, UnicodeEncodeError):
        same = False
    if not same:
        raise BadTerm(f"a term has at most {MAX_TERM} bytes as JSON and holds nothing that JSON cannot say")
    return digest(term)


def new_term(name: str, definition: str, kind: str = "word", obliges: str = "", example: str = "") -> Term:
    """A term of these words, each made one line. Raises BadTerm."""
    given = {
        "name": one_line(name),
        "kind": kind,
        "definition": one_line(definition),
        "schema": None,
        "obliges": one_line(obliges),
        "example": one_line(example),
    }
    try:
        term = msgspec.convert(given, Term)
    except msgspec.ValidationError as error:
        what = str(error).rpartition("$.")[2].rstrip("`")
        if what not in {"name", "definition", "obliges", "example"}:
            raise BadTerm(f"that is no term: {error}") from None
        raise BadTerm(f"that is no term: its {what} is {'too long' if given[what] else 'missing'}") from None
    check_term(term)
    return term


def write_term(term: Term) -> bytes:
    """The canonical form, over which the digest is."""
    return msgspec.json.encode(term, order="deterministic")


def read_term(data: bytes) -> Term:
    """A term from JSON. Raises BadTerm."""
    if len(data) > MAX_TERM:
        raise BadTerm(f"a term has at most {MAX_TERM} bytes")
    try:
        term = msgspec.json.decode(data, type=Term)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadTerm("the term cannot be read") from None
    check_term(term)
    return term


def check_digest(text: str) -> Digest:
    """The digest of some term. Raises BadTerm for a text that can be none."""
    if not _DIGEST.fullmatch(text):
        raise BadTerm("that is no digest of a term: b2: and 64 hex digits")
    return Digest(text)


def one_line(text: str) -> str:
    """A text as one line, in one form: what looks the same is the same."""
    return unicodedata.normalize("NFC", " ".join("".join(c if c.isprintable() else " " for c in text).split()))


# Acts about terms


def read_said(mesh: MeshId, basin: str, act: Act, is_em: Callable[[str], bool]) -> tuple[list[Said], Term | None]:
    """What an act says about terms, and the term that it carries. Raises BadTerm for one that does not count.

    A person's word begins a chain and comes through no bridge; all else is an em's, who has opinions and decides
    nothing for the mesh. `contest` may carry another reading in `term`: who says so uses that one.
    """
    if act.kind not in TERM_ACTS:
        raise BadTerm(f"{act.kind} says nothing about a term")
    if act.author.startswith("@"):
        raise BadTerm(f"{act.author} speaks through a bridge; only a mesh's person and its ems speak of its words")
    term = _carried(act)
    named = None if term is None else check_term(term)
    person = act.is_root and not is_em(act.author)

    def said(about: Digest, slot: Slot, *, uses: bool = False) -> Said:
        return Said(mesh, act.author, person, about, slot, uses, act.at_ms, act.id, basin)

    if named is not None and act.kind == "propose":
        return [said(named, Slot.PROPOSE)], term
    about = check_digest(str(act.body.get("digest")))
    if act.kind != "contest":
        return [said(about, Slot.USE, uses=act.kind == "adopt")], None
    if named is None:
        return [said(about, Slot.CONTEST)], None
    if named == about:
        raise BadTerm("a reading cannot be contested by itself")
    return [said(about, Slot.CONTEST), said(named, Slot.PROPOSE), said(named, Slot.USE, uses=True)], term


def _carried(act: Act) -> Term | None:
    given: Any = act.body.get("term") if act.kind in ("propose", "contest") else None
    if given is None:
        return None
    try:
        return msgspec.convert(given, Term)
    except msgspec.ValidationError as error:
        raise BadTerm(f"the {act.kind} carries no term: {error}") from None
