"""Reading the state of rooms. Pure and total: any JSON gives a value or None, and never an error.

After the Matrix specification: "Room events" and "Power levels" of the client-server API, room versions up to 12.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard, cast, get_args

from mesh.bridges.matrix.inbox import MAX_ID, Inbound
from mesh.bridges.matrix.port import MEMBER
from mesh.words import plain

TOMBSTONE: Final = "m.room.tombstone"
POWERS: Final = "m.room.power_levels"
CREATE: Final = "m.room.create"
NAME: Final = "m.room.name"
TOPIC: Final = "m.room.topic"
ALIAS: Final = "m.room.canonical_alias"

MAX_NAME: Final = 100  # characters of a room's or user's name that are shown
MAX_TOPIC: Final = 500
MAX_LEVEL: Final = 2**53 - 1  # the largest integer in Matrix's JSON
CREATOR: Final = MAX_LEVEL + 1  # above every level that can be written
ENDLESS_CREATORS: Final = 12  # the room version from which on creators may do everything
ADMIN: Final = 100  # what a creator has in older versions while no levels are set
MODERATOR: Final = 50  # the specification's default for changes of state, kicks, bans and redactions
ROOM: Final = re.compile(r"![^\s:]+(:\S+)?")  # since version 12 a room's id names no server
ROOM_ALIAS: Final = re.compile(r"#[^\s:]+:\S+")
LEVEL: Final = re.compile(r"\s*[+-]?[0-9]{1,16}\s*")  # early room versions have levels as texts too

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
    before = _dict(_dict(event.get("unsigned")).get("prev_content"))
    return _dict(event.get("content")).get("membership") == "join" and before.get("membership") != "join"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A room's end. `replacement` is the new room's id: believe it when `is_successor` says so too.

    `via` is a server that should know the new room; `text` is what the room's people were told.
    """

    room: str
    replacement: str
    via: str
    text: str


def read_tombstone(event: Inbound) -> Tombstone | None:
    """Where a room has gone, None for what is no such event or names no other room. Total."""
    replacement: object = event.content.get("replacement_room")
    if event.kind != TOMBSTONE or event.state_key != "" or replacement == event.room:
        return None
    if not is_room(replacement):
        return None
    via = event.sender.partition(":")[2]
    return Tombstone(event.room, replacement, via, _line(event.content.get("body"), MAX_TOPIC))


def is_successor(create: Mapping[str, Any] | None, old: str) -> bool:
    """Whether a room's CREATE content says that it replaces the room `old`: whoever wrote a tombstone may lie."""
    return _dict((create or {}).get("predecessor")).get("room_id") == old


@dataclass(frozen=True, slots=True)
class Powers:
    """Who may do what in a room."""

    users: Mapping[str, int]
    events: Mapping[str, int]
    users_default: int
    events_default: int
    state_default: int
    invite: int
    kick: int
    ban: int
    redact: int

    def of(self, user: str) -> int:
        """A user's level; CREATOR for those who may do everything."""
        return self.users.get(user, self.users_default)

    def may_send(self, user: str, kind: str, *, state: bool = False) -> bool:
        """Whether a joined user may send events of a kind; `state`: set state of this kind."""
        return self.of(user) >= self.events.get(kind, self.state_default if state else self.events_default)


def read_powers(levels: Mapping[str, Any] | None, create: Mapping[str, Any] | None = None) -> Powers:
    """A room's powers from the content of POWERS, None when it has none, and its whole CREATE event. Total.

    What is missing or no level is as the specification has it by default.
    """
    founders, endless = _founders(create)
    found = levels or {}
    users = _levels(found.get("users"))
    if endless:
        users |= dict.fromkeys(founders, CREATOR)
    elif levels is None:
        users |= dict.fromkeys(founders, ADMIN)
    return Powers(
        users=users,
        events=_levels(found.get("events")),
        users_default=_level(found.get("users_default"), 0),
        events_default=_level(found.get("events_default"), 0),
        state_default=_level(found.get("state_default"), 0 if levels is None else MODERATOR),
        invite=_level(found.get("invite"), 0),
        kick=_level(found.get("kick"), MODERATOR),
        ban=_level(found.get("ban"), MODERATOR),
        redact=_level(found.get("redact"), MODERATOR),
    )


def _founders(create: Mapping[str, Any] | None) -> tuple[list[str], bool]:
    """Who made a room, and whether that gives them endless power."""
    sender, content = (create or {}).get("sender"), _dict((create or {}).get("content"))
    version, more = content.get("room_version"), content.get("additional_creators")
    founders = [sender] if isinstance(sender, str) else []
    if not (isinstance(version, str) and re.fullmatch("[0-9]{1,4}", version) and int(version) >= ENDLESS_CREATORS):
        return founders, False
    others = cast("list[object]", more) if isinstance(more, list) else []
    return founders + [user for user in others if isinstance(user, str)], True


def _levels(value: object) -> dict[str, int]:
    return {name: level for name, raw in _dict(value).items() if (level := _number(raw)) is not None}


def _level(value: object, default: int) -> int:
    found = _number(value)
    return default if found is None else found


def _number(value: object) -> int | None:
    if isinstance(value, str) and LEVEL.fullmatch(value):
        value = int(value)
    return value if type(value) is int and -MAX_LEVEL <= value <= MAX_LEVEL else None


def read_name(content: Mapping[str, Any]) -> str:
    """A room's name from the content of NAME: one clean line, empty when there is none. Total."""
    return _line(content.get("name"), MAX_NAME)


def read_topic(content: Mapping[str, Any]) -> str:
    """A room's topic from the content of TOPIC: one clean line, empty when there is none. Total."""
    return _line(content.get("topic"), MAX_TOPIC)


def read_alias(content: Mapping[str, Any]) -> str | None:
    """A room's main alias, like `#tea:example.org`, from the content of ALIAS. Total."""
    alias = content.get("alias")
    return alias if _matches(ROOM_ALIAS, alias) else None


def is_room(value: object) -> TypeGuard[str]:
    """Whether it could be the id of a room. Total."""
    return _matches(ROOM, value)


def _matches(form: re.Pattern[str], value: object) -> TypeGuard[str]:
    if not isinstance(value, str) or not value.isprintable() or not form.fullmatch(value):
        return False
    return len(value.encode()) <= MAX_ID


def _is_state(value: object) -> TypeGuard[State]:
    return isinstance(value, str) and value in STATES


def _line(value: object, limit: int) -> str:
    return plain(value, limit) if isinstance(value, str) else ""


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
