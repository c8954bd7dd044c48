"""Values from a homeserver, which may be any JSON, as what they should be. Pure and total but for `text_of`."""

from collections.abc import Mapping
from typing import Any, cast

from mesh.bridges.matrix.errors import MatrixUnavailable


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
