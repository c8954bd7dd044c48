"""A settings file as a person first meets it: every key with what it is for and its default, commented out."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from nodes.settings import Settings

YAML_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null"})  # no text without quotes
COMMENT_WIDTH: Final = 110  # columns of the files that we write

_NO_EXAMPLES: Final[Mapping[str, str]] = MappingProxyType({})


def commented(
    what: str, settings: Settings, live: frozenset[str] = frozenset(), examples: Mapping[str, str] = _NO_EXAMPLES
) -> str:
    """The text of a file with all keys of `settings`; `what` names it, as in "Settings of a mesh node".

    `#key: value` is a setting that waits for its # to be removed; `# ` begins a sentence. Only the keys in `live` and
    the headings of sections are no comments. `examples` are shown below the descriptions of their keys.
    """
    head = f"{what}. Remove the # before a key to change it; a # and a space begin a sentence."
    return "\n".join([*_comment(head, ""), *_sections(settings, "", live, examples)]) + "\n"


def _sections(settings: Settings, indent: str, live: frozenset[str], examples: Mapping[str, str]) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = cast("object", getattr(settings, name))
        if not indent:
            yield ""
        yield from _comment(field.description or "", indent)
        yield from (f"{indent}# {line}" for line in examples.get(name, "").splitlines())
        yield from _entry(name, value, indent, live, examples)


def _entry(name: str, value: object, indent: str, live: frozenset[str], examples: Mapping[str, str]) -> Iterator[str]:
    deeper = indent + "  "
    nothing: frozenset[str] = frozenset()  # what is live is named at the top
    if isinstance(value, Settings):
        yield f"{indent}{name}:"
        yield from _sections(value, deeper, nothing, examples)
    elif isinstance(value, dict) and value:
        yield f"{indent}{name}:"
        for key, item in cast("dict[str, Any]", value).items():
            yield from _entry(key, item, deeper, nothing, examples)
    else:
        word = value if isinstance(value, str) and value.isalpha() and value.lower() not in YAML_WORDS else None
        shown = word or json.dumps(value, ensure_ascii=False)
        yield f"{indent}{'' if name in live else '#'}{name}: {shown}"


def _comment(text: str, indent: str) -> Iterator[str]:
    mark = f"{indent}# "
    yield from textwrap.wrap(text, COMMENT_WIDTH, initial_indent=mark, subsequent_indent=mark)
