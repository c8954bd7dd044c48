"""Values and the interface of the Matrix bridge: what comes in, what goes out, what a way can do."""

from collections.abc import Mapping
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
    e2ee: bool = False


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

    async def join(self, speaker: str, room: str) -> str:
        """Join a room by id or alias; returns its id."""
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
