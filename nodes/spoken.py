"""What an em does beside its words: lines of its reply that are acts. Pure; and nothing but these kinds is possible.

    /propose WORD: what it means        /adopt WORD        /contest WORD: what else it means
    /share BASIN with PEER [to write]   /unshare BASIN with PEER   /invite PEER   /leave PEER

The first three are an em's word about words. The others ask the person for a change between meshes: a wish, which
changes nothing. A line that the em's settings do not let it say, or that cannot be read, stays a part of its words.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from protocol.errors import BadTerm
from protocol.terms import new_term
from protocol.vocabulary import Digest, Term

SpokenKind = Literal["propose", "adopt", "contest", "share", "unshare", "invite", "leave"]

WISHES: Final = "wishes"  # the basin where they are kept: they concern the person here, whoever hears the talk
MAX_SPOKEN: Final = 4  # acts beside the words of one reply; each counts in the chain's budget
HOW: Final[dict[str, str]] = {
    "propose": "/propose WORD: what it means",
    "adopt": "/adopt WORD",
    "contest": "/contest WORD: what else it means",
    "share": "/share BASIN with PEER",
    "unshare": "/unshare BASIN with PEER",
    "invite": "/invite PEER",
    "leave": "/leave PEER",
}

_NAME: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
_LINE: Final = re.compile(r"/([a-z]+) +(\S.*)")
_DEFINED: Final = re.compile(r"([^:]{1,64}):(.+)")
_WITH: Final = re.compile(rf"({_NAME}) with ({_NAME})( to write)?")

Meant = Callable[[str], Digest | None]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One act: its kind, its readable text, what else its body holds, and its basin, None for that of the talk."""

    kind: str
    text: str
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    basin: str | None = None

    @property
    def body(self) -> dict[str, Any]:
        """The act's body."""
        return {"text": self.text, **self.more}


def split(text: str, allowed: Collection[str], meant: Meant) -> tuple[str, list[Spoken]]:
    """An em's words without those lines that are acts, and the acts. `meant` finds the reading of a known word.

    A reply of wishes alone keeps its words, so that they are heard where they were said.
    """
    if not allowed:
        return text, []
    words, acts = list[str](), list[Spoken]()
    for line in text.split("\n"):
        act = _read(line.strip(), allowed, meant) if len(acts) < MAX_SPOKEN else None
        if act is None:
            words.append(line)
        else:
            acts.append(act)
    if not acts:
        return text, []
    left = "\n".join(words).strip()
    return left if left or any(act.basin is None for act in acts) else text, acts


def instruction(allowed: Collection[str]) -> str:
    """What an em is told about the lines that it may write; empty where it may write none."""
    known = list(_known(allowed))
    return f"On a line of its own you may also write: {'; '.join(known)}.\n\n" if known else ""


def _known(allowed: Collection[str]) -> Iterator[str]:
    return (how for kind, how in HOW.items() if kind in allowed)


def _read(line: str, allowed: Collection[str], meant: Meant) -> Spoken | None:
    match = _LINE.fullmatch(line)
    if match is None or match[1] not in allowed:
        return None
    kind, rest = match[1], match[2].strip()
    if kind in ("propose", "contest"):
        return _defined(kind, rest, meant)
    if kind == "adopt":
        about = meant(rest)
        return None if about is None else Spoken("adopt", rest, {"digest": about})
    return _wish(kind, rest)


def _defined(kind: str, rest: str, meant: Meant) -> Spoken | None:
    match = _DEFINED.fullmatch(rest)
    if match is None:
        return None
    try:
        term = new_term(match[1], match[2])
    except BadTerm:
        return None
    text, told = f"{term.name}: {term.definition}", {"term": _plain(term)}
    if kind == "propose":
        return Spoken(kind, text, told)
    about = meant(term.name)
    return None if about is None else Spoken(kind, text, {"digest": about, **told})


def _wish(kind: str, rest: str) -> Spoken | None:
    """A wish names a basin and a peer as the person here calls them; it carries nothing that a statement counts by."""
    if kind in ("share", "unshare"):
        match = _WITH.fullmatch(rest)
        if match is None or (match[3] and kind == "unshare"):
            return None
        may = {"may": "write" if match[3] else "read"} if kind == "share" else {}
        return Spoken(kind, f"/{kind} {rest}", {"basin": match[1], "peer": match[2], **may}, WISHES)
    if kind in ("invite", "leave") and re.fullmatch(_NAME, rest):
        return Spoken(kind, f"/{kind} {rest}", {"peer": rest}, WISHES)
    return None


def _plain(term: Term) -> dict[str, Any]:
    return msgspec.to_builtins(term)
