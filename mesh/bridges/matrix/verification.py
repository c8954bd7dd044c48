"""Verification: people compare emoji to see whose device they talk with. Here nobody does, and clients are told so.

That a device is its user's is what cross-signing shows. After the Matrix specification, "Key verification framework".
Pure and total: any JSON is read.
"""

from collections.abc import Mapping
from typing import Any, Final

from mesh.bridges.matrix.shape import as_dict

REQUEST: Final = "m.key.verification.request"  # the type of a message between devices, the msgtype of one in a room
CANCEL: Final = "m.key.verification.cancel"
FRESH_MS: Final = 600_000  # by the specification, nobody waits longer
MAX_ID: Final = 255  # characters of an identifier
WHY: Final = {"code": "m.unknown_method", "reason": "Nobody here can compare emoji."}


def asks(content: Mapping[str, Any]) -> bool:
    """Whether a message in a room asks for a verification, and is not meant to be read."""
    return content.get("msgtype") == REQUEST


def declined(event_id: str) -> dict[str, Any]:
    """The content of the CANCEL that answers a request in a room."""
    return {**WHY, "m.relates_to": {"rel_type": "m.reference", "event_id": event_id}}


def declined_device(raw: object) -> tuple[str, str, dict[str, Any]] | None:
    """Which user's device to send a CANCEL, and its content, for a message between devices; None if it asks nothing."""
    event = as_dict(raw)
    content = as_dict(event.get("content"))
    sender, device, name = event.get("sender"), content.get("from_device"), content.get("transaction_id")
    if event.get("type") != REQUEST or not (_is_id(sender) and _is_id(device) and _is_id(name)) or device == "*":
        return None
    return str(sender), str(device), {**WHY, "transaction_id": name}


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isascii() and value.isprintable()
