"""Regular expressions that a person writes and strangers' messages run: bounded before they are ever used.

Python's `re` backtracks, and some patterns take for ever on some messages. So a pattern's worst case is counted when
it is read. Where no repeat stands inside another, each way to match is a choice among alternatives plus, for every
open repeat, a place where it ends; those places never go back. With `k` open repeats over `n` characters that makes
at most C(n + k + 1, k + 1) times the number of choices. `n` is chosen so that this stays below MAX_STEPS, and only
the first `n` characters of a message are searched. What cannot be counted is refused with a sentence.
"""

import math
import re
import warnings
from dataclasses import dataclass
from typing import Final

MAX_PATTERN_CHARS: Final = 200  # a longer one is hardly read by anybody; use several ems or nicknames
MAX_TEXT_CHARS: Final = 4_000  # of a message, however cheap the pattern
MIN_TEXT_CHARS: Final = 80  # a pattern that may only see less than a line of chat is refused
MAX_STEPS: Final = 5_000_000  # of the matcher at worst
MAX_COUNT: Final = 100  # in {m,n}

_TOKEN: Final = re.compile(
    r"(?P<escape>\\[^1-9])|(?P<reference>\\[1-9])|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])"
    r"|(?P<open>\((?:\?:|\?P<\w+>)?(?!\?))|(?P<close>\))|(?P<or>\|)"
    r"|(?P<repeat>(?:[*+?]|\{\d+\}|\{\d*,\d*\})[?+]?)|(?P<flag>\(\?i\))|(?P<special>\(\?)|(?P<other>.)",
    re.DOTALL,
)
_COUNTS: Final = re.compile(r"\{(\d*)(,?)(\d*)\}")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that is safe to run on a stranger's text. Make one with `compile_pattern`."""

    source: str
    window: int
    _regex: re.Pattern[str]

    def search(self, text: str) -> bool:
        """Whether it matches anywhere in the first `window` characters."""
        return self._regex.search(text, 0, self.window) is not None


@dataclass(slots=True)
class _Group:
    alternatives: int = 1
    repeats: bool = False  # something in it is repeated
    chooses: bool = False  # there is more than one way through it


def compile_pattern(source: str) -> Pattern:
    """Compile a pattern after counting its worst case. Raises ValueError with a sentence for a person."""
    if len(source) > MAX_PATTERN_CHARS:
        raise ValueError(f"this pattern has more than {MAX_PATTERN_CHARS} characters; shorten it")
    open_repeats, ways = _count(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as [[a]: Python is about to change what it means
            regex = re.compile(source)
    except (re.error, RecursionError, OverflowError, Warning) as error:
        raise ValueError(f"this is not a regular expression: {error}") from error
    window = MAX_TEXT_CHARS
    while window >= MIN_TEXT_CHARS and ways * math.comb(window + open_repeats + 1, open_repeats + 1) > MAX_STEPS:
        window = window * 9 // 10
    if window < MIN_TEXT_CHARS:
        raise ValueError("this pattern may take very long on some messages; use fewer * + ? and |")
    return Pattern(source, window, regex)


def _count(source: str) -> tuple[int, int]:
    """How many open repeats a pattern has, and in how many ways its other choices can fall. Raises ValueError."""
    open_repeats, ways = 0, 1
    groups = [_Group()]
    last = _Group()  # what a repeat would repeat
    for token in _TOKEN.finditer(source):
        kind = token.lastgroup
        if kind in ("reference", "special"):
            raise ValueError(
                f"{token.group()!r} cannot be bounded; use no references, look-around or flags but (?i) here"
            )
        if kind == "open":
            groups.append(_Group())
        elif kind == "close" and len(groups) > 1:
            last = groups.pop()
            ways *= last.alternatives
            groups[-1].repeats |= last.repeats
            groups[-1].chooses |= last.chooses
        elif kind == "or":
            groups[-1].alternatives += 1
            groups[-1].chooses = True
        elif kind == "repeat":
            least, most = _bounds(token.group())
            if most != 1 and (last.repeats or last.chooses):
                raise ValueError("this pattern repeats a group that itself repeats or chooses; write it without that")
            open_repeats += most is None
            ways *= 1 if most is None else most - least + 1
            groups[-1].repeats |= most != 1
            groups[-1].chooses |= most != least
        else:
            last = _Group()
    return open_repeats, ways * groups[0].alternatives


def _bounds(repeat: str) -> tuple[int, int | None]:
    """The least and the most of a repeat; None is without end."""
    if repeat[0] in "*+?":
        return int(repeat[0] == "+"), (1 if repeat[0] == "?" else None)
    found = _COUNTS.match(repeat)
    low, comma, high = found.groups() if found else ("", "", "")
    least = int(low or 0) if len(low) <= len(str(MAX_COUNT)) else MAX_COUNT + 1
    most = (int(high) if high else None) if comma else least
    if max(least, most or 0) > MAX_COUNT:
        raise ValueError(f"this pattern repeats more than {MAX_COUNT} times; use + or *")
    return least, most
