"""What an event is sent as: JSON that every homeserver takes, and a transaction id that every attempt shares."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from mesh.bridges.matrix.errors import BadContent
from mesh.words import plain

DIGEST_BYTES: Final = 16
MAX_INT: Final = 2**53 - 1  # Matrix's JSON has no larger integers, and no fractions


def transaction_id(speaker: str, key: str) -> str:
    """The transaction id of a speaker's key: the same for every attempt, another for every speaker.

    Homeservers keep one list of transaction ids for all users of an appservice: without the speaker in it, two ems
    with the same key would overwrite each other.
    """
    whole = hashlib.blake2b(f"{speaker}\0{key}".encode(), digest_size=DIGEST_BYTES).hexdigest()
    return f"{speaker}-{whole}"


def encode(content: Mapping[str, Any]) -> str:
    """Content as JSON text that a homeserver takes. Raises BadContent: fractions, long integers, half characters."""
    _check(content)
    try:
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise BadContent(f"this cannot be the content of a Matrix event: {plain(str(error))}") from error
    return text


def _check(content: Mapping[str, Any]) -> None:
    """Refuse numbers that Matrix's canonical JSON does not have."""
    left: list[Any] = [content]
    while left:
        value = left.pop()
        if isinstance(value, float) or (isinstance(value, int) and abs(value) > MAX_INT):
            raise BadContent("Matrix has neither fractions nor integers beyond 2^53 in the content of events")
        if isinstance(value, Mapping):
            left.extend(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] - any JSON
        elif isinstance(value, list | tuple):
            left.extend(value)  # pyright: ignore[reportUnknownArgumentType] - any JSON
