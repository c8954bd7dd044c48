"""Mistakes in settings, told as one plain sentence each: where, which key, what is wrong, what may have been meant."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_SHOWN_CHARS: Final = 40  # of a person's value in our sentence

_SECRET_KEY: Final = re.compile(r"(?:^|[_-])(?:key|secret|token|password|credentials)(?:[_-]|$)", re.IGNORECASE)

Loc = tuple[str | int, ...]
"""Where a value stands in the whole: keys and positions, from the top."""


class Place(NamedTuple):
    """Where a value stands in its file: the line, from 1, and the path of keys as the person wrote them."""

    line: int
    written: str


class Problem(NamedTuple):
    """One mistake. `text` names the key."""

    line: int
    text: str


def problems_of(error: ValidationError, places: Mapping[Loc, Place]) -> Iterator[Problem]:
    """What pydantic found, each put where its value stands (or where the mapping begins that lacks it)."""
    for detail in error.errors(include_url=False):
        loc = tuple(part for part in detail["loc"] if part != "[key]")
        kind = detail["type"]
        if kind == "default_factory_not_called" or (kind == "missing" and loc in places):
            continue  # follows from a problem that is told already
        known = loc
        while known not in places:
            known = known[:-1]
        place = places[known]
        rest = [str(part) for part in loc[len(known) :]] if kind == "missing" else []
        written = ".".join(part for part in (place.written, *rest) if part)
        reason = _reason(detail, written)
        yield Problem(place.line, f"{written}: {reason}" if written else reason)


_KINDS: Final[dict[str, str]] = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list, such as [a, b]",
    "list_type": "a list, such as [a, b]",
    "dict_type": "`key: value` lines below it",
    "model_type": "`key: value` lines below it",
}
_BOUNDS: Final[dict[str, str]] = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "finite_number": "must be a finite number",
    "missing": "is needed and not given",
}


def _reason(detail: ErrorDetails, written: str) -> str:
    """One plain phrase for what pydantic found."""
    kind, given = detail["type"], cast("object", detail["input"])
    context = detail.get("ctx", {})
    if context.get("min_length") == 1:
        return "must not be empty"
    if kind in _BOUNDS:
        return _BOUNDS[kind].format_map(context)
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        close = suggest(given, allowed) if isinstance(given, str) else ""
        return f"must be one of {', '.join(allowed)}{close}"
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    if kind not in _KINDS:
        return detail["msg"]
    if given is None:
        return f"has no value; it must be {_KINDS[kind]}, or remove the line to have the default"
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return f"must be text, and YAML reads it as {value_shown(written, given)}; put it in quotes"
    return f"must be {_KINDS[kind]}, not {value_shown(written, given)}"


def value_shown(written: str, value: object) -> str:
    """A person's value for a sentence; never one whose key may hold a secret."""
    if _SECRET_KEY.search(written.rpartition(".")[2]):
        return "what is given"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (dict, list)):
        return "`key: value` lines" if isinstance(value, dict) else "a list"
    return shown(value)


def shown(value: object) -> str:
    """A value for a sentence: quoted, escaped and short."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 2] + "…'"


def plain_key(key: str) -> str:
    """A key for a sentence, without anything that a terminal might act upon."""
    safe = "".join(char if char.isprintable() else "?" for char in key)
    return safe if len(safe) <= MAX_SHOWN_CHARS else safe[: MAX_SHOWN_CHARS - 1] + "…"


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(snake(word[:MAX_SHOWN_CHARS]).lower(), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def sentence(path: Path, line: int, text: str) -> str:
    """One problem as a person reads it. Nothing in it can move a cursor or begin a new line."""
    return "".join(char if char.isprintable() else "?" for char in f"{path}:{line}: {text}")


def snake(key: str) -> str:
    """A key in the one spelling that fields have."""
    return key.replace("-", "_")
