"""Values and the interface of the Matrix bridge: what comes in, what goes out, what a way can do."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mesh.bridges.matrix.inbox import Inbox
from mesh.bridges.matrix.outbox import Outbox

MESSAGE = "m.room.message"
REACTION = "m.reaction"
REDACTION = "m.room.redaction"
MEMBER = "m.room.member"
ENCRYPTION = "m.room.encryption"
ENCRYPTED = "m.room.encrypted"


@dataclass(frozen=True, slots=True)
class Caps:
    """What a way in can do. `separate_identities`: every speaker is a Matrix user of its own."""

    way: Literal["appservice", "account"]
    separate_identities: bool


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks through the bridge. `key` is stable and made of a-z, 0-9, `_` and `-`; `name` is shown.

    `avatar` is an `mxc://` address, None to leave it as it is.
    """

    key: str
    name: str
    avatar: str | None = None


class MatrixPort(Protocol):
    """One way into Matrix. Everything that speaks goes through `outbox`; all that is heard waits in `inbox`.

    The direct calls raise MatrixUnavailable (try again), MatrixRefused or MatrixLoggedOut. Typing and receipts are
    worth no retry.
    """

    @property
    def caps(self) -> Caps:
        """What it can do."""
        ...

    @property
    def ready(self) -> asyncio.Event:
        """Set while it can hear."""
        ...

    @property
    def missed(self) -> asyncio.Event:
        """Set when something may not have reached us: clear it, and `look_back` in the rooms."""
        ...

    @property
    def reached(self) -> bool:
        """Whether the homeserver was there, and reached us, when that was tried last."""
        ...

    @property
    def inbox(self) -> Inbox:
        """What was heard, once each, until it is handled."""
        ...

    @property
    def outbox(self) -> Outbox:
        """What is to be said."""
        ...

    async def run(self) -> None:
        """Receive and send until cancelled. Raises MatrixLoggedOut (in an ExceptionGroup) when the token is void."""
        ...

    async def ensure(self, speaker: Speaker) -> str:
        """Make the speaker exist, with its name and avatar; returns its Matrix user id. Idempotent."""
        ...

    def user_id(self, speaker: str) -> str:
        """The Matrix user that speaks for a speaker's key."""
        ...

    def owns(self, user_id: str) -> bool:
        """Whether a Matrix user is one of ours, whose events are never heard."""
        ...

    def put(self, speaker: Speaker, room: str, kind: str, content: Mapping[str, Any], key: str) -> bool:
        """Keep one event for sending, within the caller's transaction; call `outbox.wake()` after the commit.

        `key` is unique per speaker: the same one again is the same event, and False is returned. Redactions are of
        kind REDACTION, their content holds `redacts`. What an event refers to may wait to be sent itself: see
        `content.later`. Raises BadContent, MatrixFull.
        """
        ...

    async def send(self, speaker: Speaker, room: str, kind: str, content: Mapping[str, Any], key: str) -> str:
        """`put` in a transaction of its own, and wait until it is sent; returns the event's id.

        Raises MatrixRefused when it was given up. Cancelling stops the waiting, not the sending.
        """
        ...

    async def join(self, speaker: str, room: str, via: str | None = None) -> str:
        """Join a room by id or alias; returns its id. `via` is a server that knows it, for rooms of other servers."""
        ...

    async def leave(self, speaker: str, room: str) -> None:
        """Leave a room, or decline its invitation."""
        ...

    async def invite(self, speaker: str, room: str, user_id: str) -> None:
        """Invite a user."""
        ...

    async def typing(self, speaker: str, room: str, timeout_ms: int) -> None:
        """Show as typing for so long; 0 stops it."""
        ...

    async def read(self, speaker: str, room: str, event_id: str) -> None:
        """Say that everything up to an event was read."""
        ...

    async def upload(self, speaker: str, data: bytes, mime: str, name: str) -> str:
        """Store a file with the homeserver; returns its `mxc://` address."""
        ...

    async def download(self, mxc: str, limit: int) -> tuple[bytes, str]:
        """A file of at most `limit` bytes and its claimed type; MatrixRefused with code TOO_LARGE when it is longer."""
        ...

    async def state(self, speaker: str, room: str, kind: str, key: str = "") -> dict[str, Any] | None:
        """The content of a state of a room; None when there is none."""
        ...

    async def set_state(self, speaker: str, room: str, kind: str, content: Mapping[str, Any], key: str = "") -> str:
        """Set a state of a room, at once; returns the event's id."""
        ...

    async def members(self, speaker: str, room: str) -> list[str]:
        """The users that are in a room, sorted, not without end."""
        ...

    async def equip(self, speaker: str, room: str) -> None:
        """See that a speaker who sits in a room can read what is said there, as far as that can be had now."""
        ...

    async def look_back(self, speaker: str, room: str) -> int:
        """Hear what a room said lately and nobody brought us; returns how many events. `speaker` sits there."""
        ...

    async def joined(self, speaker: str) -> list[str]:
        """The rooms that a speaker's user is in."""
        ...

    async def create_space(self, speaker: str, name: str, invite: Sequence[str] = ()) -> str:
        """Make a private space, with the speaker in it, where only its keepers list rooms; returns its id."""
        ...

    async def space_child(self, speaker: str, space: str, room: str, *, order: str = "", listed: bool = True) -> str:
        """List a room in a space, or list it no more; returns the event's id."""
        ...

    async def resolve(self, alias: str) -> str | None:
        """The id of the room that an alias leads to; None when it leads nowhere."""
        ...
