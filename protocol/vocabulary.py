"""The words that acts are made of.

A term is `{name, kind, definition, schema, obliges, example}`; its digest is BLAKE2b-256 over its canonical JSON (keys
sorted, no spaces, UTF-8). A vocabulary is a set of digests; two meshes compare those.
"""

import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, NewType

import msgspec

Digest = NewType("Digest", str)

MAX_TEXT: Final = 65_536  # characters of one text; a Matrix event holds no more bytes than that either

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT)]
Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Reference = Annotated[str, msgspec.Meta(max_length=128)]
Millis = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Said(msgspec.Struct, frozen=True):
    """The body of every act: a text that a person can read. Further keys are allowed and kept."""

    text: Text


class Attend(Said, frozen=True):
    """`state`: what the author is doing. With `writing`, `text` is the reply so far (never stored)."""

    state: Literal["here", "away", "writing", "idle"] = "here"


class Task(Said, frozen=True):
    """A task offered, asked for, taken or refused. `due_ms`: when it should be done (Unix milliseconds)."""

    due_ms: Millis | None = None


class Progress(Said, frozen=True):
    """`done`: the share that is done, 0 to 1, where it can be told."""

    done: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Report(Said, frozen=True):
    """How a task ended."""

    outcome: Literal["done", "partly", "failed"] = "done"


class Term(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A word with its meaning. `obliges`: what the listener may now expect."""

    name: Word
    kind: Literal["act", "word"]
    definition: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
    schema: dict[str, Any] | None
    obliges: Annotated[str, msgspec.Meta(max_length=1024)]
    example: Annotated[str, msgspec.Meta(max_length=1024)]


class Propose(Said, frozen=True):
    """A term put forward for everybody's use."""

    term: Term


class AboutTerm(Said, frozen=True):
    """`digest`: the term that is adopted, contested or retired."""

    digest: Reference


class Remedy(Said, frozen=True):
    """What a party is ready to do. `due_ms`: by when."""

    due_ms: Millis | None = None


class Link(Said, frozen=True):
    """A step in a relationship. `mesh`: with whom; `basin`: about which basin; `may`: read or write."""

    mesh: Reference | None = None
    basin: Reference | None = None
    may: Literal["read", "write"] | None = None


class _Row(msgspec.Struct, frozen=True):
    body: type[Said]
    definition: str
    obliges: str
    example: str


_CORE: Final[dict[str, _Row]] = {
    "say": _Row(Said, "Says something to whoever listens.", "", "the tide is out"),
    "ask": _Row(
        Said, "Asks the listeners, or one of them, something.", "An answer may be expected.", "what is a basin?"
    ),
    "answer": _Row(Said, "Answers what was asked.", "", "a place that talk falls back to"),
    "edit": _Row(Said, "Replaces the text of one of the author's own acts.", "Show the new text.", "the tide is in"),
    "redact": _Row(Said, "Takes back an act; its text is the reason.", "Forget what the act said.", "said too much"),
    "react": _Row(Said, "Marks an act with a sign or a word.", "", "+1"),
    "attend": _Row(Attend, "Tells that somebody is here, away or writing.", "", "aporia is writing"),
    "offer": _Row(Task, "Offers to do something.", "Accepting it makes it a commitment.", "I can sort the logs"),
    "request": _Row(Task, "Asks somebody to do something.", "An accept or a decline.", "please sort the logs"),
    "accept": _Row(Task, "Takes an offer or a request.", "The work is under way.", "gladly"),
    "decline": _Row(Said, "Refuses an offer or a request.", "", "not today"),
    "commit": _Row(Task, "Promises to do something.", "A report when it is done.", "sorted by evening"),
    "progress": _Row(Progress, "Tells how far a task has come.", "", "half of them"),
    "report": _Row(Report, "Tells how a task ended.", "", "all sorted"),
    "cancel": _Row(Said, "Ends a task before its end.", "Work on it stops.", "no longer needed"),
    "propose": _Row(Propose, "Puts a term forward.", "Each mesh adopts it or not.", "a word for low tide"),
    "adopt": _Row(AboutTerm, "Takes a term into use.", "The term may be used towards the author.", "ebb it is"),
    "contest": _Row(AboutTerm, "Reads a term differently.", "Both readings stand side by side.", "ebb is a verb"),
    "retire": _Row(AboutTerm, "Takes a term out of use.", "It is sent as plain text.", "no longer said"),
    "raise": _Row(Said, "Opens a dispute about the acts it refers to.", "A response.", "that was private"),
    "respond": _Row(Said, "Answers a dispute.", "", "I did not know"),
    "remedy": _Row(Remedy, "Says what its author is ready to do about a dispute.", "It is followed.", "I take it back"),
    "settle": _Row(Said, "Agrees that a dispute is over.", "", "good"),
    "withdraw": _Row(Said, "Drops a dispute.", "", "never mind"),
    "invite": _Row(Link, "Invites another mesh to link.", "A human of that mesh decides.", "shall we link?"),
    "link": _Row(Link, "Agrees to a link.", "What was offered is given.", "yes"),
    "share": _Row(Link, "Gives a linked mesh a basin.", "Its acts are sent.", "yappings, to read and write"),
    "unshare": _Row(Link, "Takes a basin back.", "Its acts are no longer sent.", "yappings, no more"),
    "leave": _Row(Link, "Ends a link, at once and alone.", "Nothing more is sent either way.", "farewell"),
}

BODIES: Final[dict[str, type[Said]]] = {name: row.body for name, row in _CORE.items()}


def core_terms() -> list[Term]:
    """The terms that every mesh holds, in the order of the table above."""
    return [
        Term(name, "act", row.definition, msgspec.json.schema(row.body), row.obliges, row.example)
        for name, row in _CORE.items()
    ]


def digest(term: Term) -> Digest:
    """`b2:` and 64 hex digits that name this reading of this term."""
    canonical = msgspec.json.encode(term, order="deterministic")
    return Digest("b2:" + hashlib.blake2b(canonical, digest_size=32).hexdigest())


def digest_of_all(digests: Iterable[Digest]) -> Digest:
    """The digest of a vocabulary: over its terms' digests, sorted, without repeats, each with a line feed."""
    lines = "".join(f"{one}\n" for one in sorted(set(digests)))
    return Digest("b2:" + hashlib.blake2b(lines.encode(), digest_size=32).hexdigest())
