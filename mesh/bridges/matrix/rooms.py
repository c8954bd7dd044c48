"""Reading the state of rooms. Pure and total: any JSON gives a value or None, and never an error.

After the Matrix specification: "Room events" of the client-server API, room versions up to 12.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard, get_args

from mesh.bridges.matrix.inbox import MAX_ID, Inbound
from mesh.bridges.matrix.port import MEMBER
from mesh.bridges.matrix.shape import as_dict
from mesh.words import plain

TOMBSTONE: Final = "m.room.tombstone"
CREATE: Final = "m.room.create"
NAME: Final = "m.room.name"
ALIAS: Final = "m.room.canonical_alias"

MAX_NAME: Final = 100  # characters of a room's or user's name that are shown
ROOM: Final = re.compile(r"![^\s:]+(:\S+)?")  # since version 12 a room's id names no server

State = Literal["invite", "join", "knock", "leave", "ban"]
Change = Literal[
    "invited",
    "joined",
    "left",
    "declined",
    "kicked",
    "uninvited",
    "refused",
    "banned",
    "unbanned",
    "knocked",
    "renamed",
]
STATES: Final = frozenset[str](get_args(State))


@dataclass(frozen=True, slots=True)
class Membership:
    """Who came or went. `by` did it, `user` it happened to; `ours`: `user` is one of us.

    `before` is None when the homeserver did not say. `change` is both in one word: "renamed" stands for any change
    that leaves everybody where they are, "refused" for a knock that was not answered by an invitation.
    """

    user: str
    by: str
    before: State | None
    after: State
    change: Change
    ours: bool
    name: str
    reason: str


def read_membership(event: Inbound, ours: Callable[[str], bool]) -> Membership | None:
    """Who came or went, None for what is no such event. Total."""
    after, user = event.content.get("membership"), event.state_key
    if event.kind != MEMBER or not user or not _is_state(after):
        return None
    before = (event.previous or {}).get("membership")
    before = before if _is_state(before) else None
    change = _change(before, after, by_self=event.sender == user)
    name, reason = (_line(event.content.get(key), MAX_NAME) for key in ("displayname", "reason"))
    return Membership(user, event.sender, before, after, change, ours(user), name, reason)


def _change(before: State | None, after: State, *, by_self: bool) -> Change:
    if before == after:
        return "renamed"
    if after == "leave":
        if before == "ban":
            return "unbanned"
        if before == "invite":
            return "declined" if by_self else "uninvited"
        if by_self:
            return "left"
        return "refused" if before == "knock" else "kicked"
    arrivals: dict[State, Change] = {"invite": "invited", "join": "joined", "knock": "knocked", "ban": "banned"}
    return arrivals[after]


def since_joining(raw: list[dict[str, Any]], user: str) -> tuple[list[dict[str, Any]], bool]:
    """What is after a user's last joining among events, oldest first, and whether there was one. Total."""
    for number in range(len(raw) - 1, -1, -1):
        event = raw[number]
        if event.get("type") == MEMBER and event.get("state_key") == user and _is_joining(event):
            return raw[number + 1 :], True
    return raw, False


def _is_joining(event: Mapping[str, Any]) -> bool:
    """Whether a membership event is a joining, and not a change of name or picture."""
    before = as_dict(as_dict(event.get("unsigned")).get("prev_content"))
    return as_dict(event.get("content")).get("membership") == "join" and before.get("membership") != "join"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A room's end. `replacement` is the new room's id: believe it when `is_successor` says so too.

    `via` is a server that should know the new room.
    """

    room: str
    replacement: str
    via: str


def read_tombstone(event: Inbound) -> Tombstone | None:
    """Where a room has gone, None for what is no such event or names no other room. Total."""
    replacement: object = event.content.get("replacement_room")
    if event.kind != TOMBSTONE or event.state_key != "" or replacement == event.room:
        return None
    if not is_room(replacement):
        return None
    via = event.sender.partition(":")[2]
    return Tombstone(event.room, replacement, via)


def is_successor(create: Mapping[str, Any] | None, old: str) -> bool:
    """Whether a room's CREATE content says that it replaces the room `old`: whoever wrote a tombstone may lie."""
    return as_dict((create or {}).get("predecessor")).get("room_id") == old


def read_name(content: Mapping[str, Any]) -> str:
    """A room's name from the content of NAME: one clean line, empty when there is none. Total."""
    return _line(content.get("name"), MAX_NAME)


def read_alias(content: Mapping[str, Any]) -> str:
    """A room's address from the content of ALIAS: one clean line, empty when there is none. Total."""
    return _line(content.get("alias"), MAX_NAME)


def is_room(value: object) -> TypeGuard[str]:
    """Whether it could be the id of a room. Total."""
    if not isinstance(value, str) or not value.isprintable() or not ROOM.fullmatch(value):
        return False
    return len(value.encode()) <= MAX_ID


def _is_state(value: object) -> TypeGuard[State]:
    return isinstance(value, str) and value in STATES


def _line(value: object, limit: int) -> str:
    return plain(value, limit) if isinstance(value, str) else ""
