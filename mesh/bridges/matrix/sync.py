"""What a sync answers: rooms, their events, invitations. Pure and total: any JSON object is read.

After the Matrix specification, "Syncing" of the client-server API.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mesh.bridges.matrix.inbox import Inbound, parse_event
from mesh.bridges.matrix.port import ENCRYPTION, MEMBER
from mesh.bridges.matrix.rooms import is_room
from mesh.bridges.matrix.shape import as_dict, as_dicts

TIMELINE: Final = 50  # events a room and sync; more are fetched as a gap
FILTER: Final = json.dumps(
    {
        "presence": {"types": []},
        "account_data": {"types": []},
        "room": {
            "timeline": {"limit": TIMELINE},
            "state": {"lazy_load_members": True},
            "ephemeral": {"types": []},
            "account_data": {"types": []},
        },
    },
    separators=(",", ":"),
)


def rooms_of(answer: Mapping[str, Any], section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rooms in a section ("join", "leave", "invite"), and what is said of them."""
    for room, part in as_dict(as_dict(answer.get("rooms")).get(section)).items():
        if is_room(room) and isinstance(part, dict):
            yield room, as_dict(part)  # pyright: ignore[reportUnknownArgumentType] - any JSON


def events_of(part: Mapping[str, Any], section: str) -> list[dict[str, Any]]:
    """The events in a section of a room ("timeline", "state", "invite_state")."""
    return as_dicts(as_dict(part.get(section)).get("events"))


def encrypts(part: Mapping[str, Any], section: str) -> bool:
    """Whether a section of a room says that the room is encrypted."""
    return any(one.get("type") == ENCRYPTION for one in events_of(part, section))


def invitations(answer: Mapping[str, Any], me: str, since: str | None) -> Iterator[Inbound]:
    """The invitations of a user. What the homeserver gives no id gets one that a repetition has as well.

    What the inviting server says of the room comes first, and may hold anything; the invitation itself, which our
    homeserver has checked, it puts at the end.
    """
    for room, part in rooms_of(answer, "invite"):
        shown = events_of(part, "invite_state")
        last = [raw for raw in shown if raw.get("type") == MEMBER and raw.get("state_key") == me][-1:]
        for raw in last:
            whole = f"{me} {room} {since}".encode("utf-8", "replace")
            made_up = hashlib.blake2b(whole, digest_size=16).hexdigest()
            event = parse_event({"event_id": f"invite:{made_up}"} | raw | {"room_id": room}, "account")
            if event and event.content.get("membership") == "invite":
                yield event
