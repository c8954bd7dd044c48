"""An em's turn, as a pure function: does it notice, and does it answer?

Silence is an outcome like any other, with the rule that decided it.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from mesh.entries import Entry
from mesh.words import plain
from nodes.em import Em
from protocol.acts import Act
from protocol.vocabulary import BODIES

ANSWERABLE: Final = frozenset({"say", "ask", "answer"})
MATCHED: Final = 4_000  # characters of a message that names and patterns are looked for in
MAX_TO: Final = 50  # ems that one act addresses; a Matrix message mentions no more
REASON_CHARS: Final = 120  # of why an act is not to be answered

_HIDDEN = re.compile(r"[.,](?![.,])")  # ".aside" and ",aside" are hidden, "..." is speech
_WORDS = re.compile(r"\w+(?:-\w+)*")
_PARTS = re.compile(r"\w+")
_MENTIONS = re.compile(r"@(\w+(?:-\w+)*)")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an em answers, and the rule that says so, as words for a person."""

    answers: bool
    rule: str


_MUTED: Final = Decision(False, "muted")
_OWN: Final = Decision(False, "its own words")
_UNCALLED: Final = Decision(False, "nothing called for it")
_BOT: Final = Decision(False, "a machine said it, and did not mention it")


class Heard(NamedTuple):
    """One act as everybody in its basin hears it: worked out once, whatever the number of ems."""

    entry: Entry
    author: str | None  # the em here that said it, if one did: somebody of its name elsewhere is another
    named: frozenset[str]  # ems whose name or nickname occurs
    mentioned: frozenset[str]  # ems that occur as @name
    answered: str | None  # the em whose act it answers
    floor: str | None  # whose turn it is when nobody is addressed
    spent: str | None  # why the chain allows no answer
    unanswerable: Decision | None  # that nobody answers such an act, whoever they are


class Roster:
    """The ems of one basin by the names people call them."""

    def __init__(self, ems: Iterable[Em]) -> None:
        self.ems = {em.name: em for em in ems}
        self._words: dict[str, set[str]] = {}
        self._phrases: list[tuple[re.Pattern[str], str]] = []
        self._takers = sorted(
            name for name, em in self.ems.items() if em.settings.reply_on_floor and not em.settings.mute
        )
        for em in self.ems.values():
            for called in em.voice.names | {em.name}:
                if _WORDS.fullmatch(called):
                    self._words.setdefault(called, set()).add(em.name)
                else:
                    self._phrases.append((re.compile(rf"(?<!\w){re.escape(called)}(?!\w)", re.IGNORECASE), em.name))

    def hear(self, entry: Entry, answered: str | None, spent: str | None, *, is_ours: bool = True) -> Heard:
        """What this basin's ems make of an act. `answered` is the em that it answers; `is_ours`: it is of this mesh."""
        author = entry.act.author if is_ours else None
        text = entry.act.text[:MATCHED].lower()
        mentioned = {name for name in addressees(entry.act) if name in self.ems}
        if "@" in text:
            mentioned |= self._called(_MENTIONS.findall(text))
        named = self.named(text)
        if entry.act.body.get("thread") is True and mentioned | named:
            answered = None  # in a thread of one em's, another was called
        addressed = mentioned | named | {name for name in (answered,) if name in self.ems}
        unanswerable = _unanswerable(entry)
        floor = None if unanswerable or addressed - {author} else self._floor(entry, author)
        return Heard(entry, author, frozenset(named), frozenset(mentioned), answered, floor, spent, unanswerable)

    def named(self, text: str) -> set[str]:
        """The ems whose names or nicknames occur in a text of small letters."""
        found = self._called(_WORDS.findall(text) + (_PARTS.findall(text) if "-" in text else []))
        return found | {name for pattern, name in self._phrases if pattern.search(text)}

    def _called(self, words: Iterable[str]) -> set[str]:
        return {name for word in words for name in self._words.get(word, ())}

    def _floor(self, entry: Entry, author: str | None) -> str | None:
        """One em takes the turn: drawn by a hash of the act and the name, so that no two of them need to agree."""
        takers = [name for name in self._takers if name != author]
        return max(takers, key=lambda name: _draw(entry.act.id, name), default=None)


def addressees(act: Act) -> list[str]:
    """Whom an act says it is for: its `to`, a name or a list of them. Total."""
    to = act.body.get("to")
    if to is None:
        return []
    names: list[object] = to[:MAX_TO] if isinstance(to, list) else [to]  # pyright: ignore[reportUnknownVariableType] - any values
    return [name for name in names if isinstance(name, str)]


def decide(em: Em, heard: Heard) -> Decision:
    """Whether `em` answers. Depends on nothing but its arguments."""
    act, settings = heard.entry.act, em.settings
    if settings.mute:
        return _MUTED
    if heard.author == em.name:
        return _OWN
    if heard.unanswerable is not None:
        return heard.unanswerable
    if act.body.get("bot") is True and em.name not in heard.mentioned | heard.named:
        return _BOT
    rule = _reason(em, heard)
    if rule is None:
        return _UNCALLED
    return Decision(False, f"the chain is spent: {heard.spent}") if heard.spent else Decision(True, rule)


def _unanswerable(entry: Entry) -> Decision | None:
    if entry.act.kind not in ANSWERABLE and entry.act.kind in BODIES:  # kinds that people have made are talk
        return Decision(False, f"a {entry.act.kind} needs no answer")
    if reason := entry.act.body.get("quiet"):
        return Decision(False, plain(str(reason), REASON_CHARS))
    return Decision(False, "hidden by a leading dot") if _HIDDEN.match(entry.act.text) else None


def _reason(em: Em, heard: Heard) -> str | None:
    act, settings = heard.entry.act, em.settings
    if settings.reply_on_ping and heard.answered == em.name:
        return "it was answered"
    if settings.reply_on_ping and em.name in heard.mentioned:
        return "it was mentioned"
    if settings.reply_on_name and em.name in heard.named:
        return "its name was said"
    if em.pattern is not None and em.pattern.search(act.text[:MATCHED]):
        return "its pattern matched"
    if heard.floor == em.name:
        return "nobody was addressed, and it was its turn"
    if settings.reply_on_all:
        return "it answers everything"
    if settings.reply_on_random and _draw(act.id, em.name) % settings.reply_on_random == 0:
        return f"by chance, 1 in {settings.reply_on_random}"
    return None


def _draw(identity: bytes, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity + name.encode(), digest_size=8).digest(), "big")
