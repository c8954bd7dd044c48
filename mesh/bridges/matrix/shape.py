"""Values from a homeserver, which may be any JSON, as what they should be. Pure and total but for `text_of`."""

import json
import re
from collections.abc import Mapping
from typing import Any, Final, cast

from mesh.bridges.matrix.errors import MatrixUnavailable

HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")  # of a character beyond the first 65,536, as JSON may write it


def from_json(data: bytes) -> object:
    """The JSON value in an answer or a push, None when there is none. Total.

    Half characters are replaced: no file, database or address can hold one, so that a single one could stop us.
    """
    try:
        text = data.decode("utf-8", "replace")
        value: object = json.loads(text)
        if HALF.search(text):
            whole = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
            value = json.loads(whole.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value


def as_dict(value: object) -> dict[str, Any]:
    """An object; an empty one for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """An array; an empty one for anything else."""
    return cast("list[object]", value) if isinstance(value, list) else []


def as_dicts(value: object) -> list[dict[str, Any]]:
    """The objects in an array."""
    return [cast("dict[str, Any]", one) for one in as_list(value) if isinstance(one, dict)]


def text_of(answer: Mapping[str, Any], name: str) -> str:
    """A text in an answer. Raises MatrixUnavailable when it is missing: whoever answered is no homeserver."""
    value = answer.get(name)
    if not isinstance(value, str):
        raise MatrixUnavailable(f"the homeserver's answer lacks {name}")
    return value
