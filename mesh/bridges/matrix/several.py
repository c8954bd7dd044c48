"""Several ways as one: a primary that speaks for everybody, and accounts of their own for chosen speakers.

They share one inbox, where an event that comes through several of them is one event, and one outbox, where each sends
what is its own. A login that turns out void silences its speaker and nobody else.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, cast

import structlog

from mesh.bridges.matrix.account import Account
from mesh.bridges.matrix.api import Api, As
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.calls import Calls
from mesh.bridges.matrix.errors import MatrixLoggedOut, MatrixRefused, MatrixSilenced, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbox
from mesh.bridges.matrix.outbox import Outbox, Outgoing
from mesh.bridges.matrix.port import Caps, Speaker
from mesh.words import plain

BACKOFF_S: Final = (1.0, 60.0)  # first and longest wait before an account that failed listens again, doubling between

log = structlog.get_logger(__name__)

Lost = Callable[[str, str], None]
"""Called once with a speaker's key and the reason, when the login of its account is void."""


class Several(Calls):
    """A MatrixPort that is made of others. `lost` tells whose login is void, and why; they are left until a restart."""

    def __init__(self, primary: AppService | Account, own: Mapping[str, Account], on_lost: Lost | None = None) -> None:
        """`own` has accounts by speakers' keys, each made with `own=Own(key, primary)`. Raises ValueError else."""
        for key, account in own.items():
            if account.own is None or account.own.speaker != key or account.own.beside is not primary:
                raise ValueError(f"the account of {key} was not made to stand beside the primary way")
        self._primary, self._own, self._on_lost = primary, dict(own), on_lost
        self.lost: dict[str, str] = {}
        self.inbox.leave_out(self.owns)
        for key, account in own.items():
            self.outbox.serve(key, partial(_deliver, account), partial(self._lose, key))

    @property
    def caps(self) -> Caps:
        """What the primary can do."""
        return self._primary.caps

    @property
    def inbox(self) -> Inbox:
        """What was heard by any, once each, until it is handled."""
        return self._primary.inbox

    @property
    def outbox(self) -> Outbox:
        """What is to be said by any."""
        return self._primary.outbox

    @property
    def reached(self) -> bool:
        """Whether the primary's homeserver was there, and reached us, when that was tried last."""
        return self._primary.reached

    @property
    def ready(self) -> asyncio.Event:
        """Set while the primary can hear."""
        return self._primary.ready

    @property
    def missed(self) -> asyncio.Event:
        """Set when something may not have reached the primary."""
        return self._primary.missed

    async def look_back(self, speaker: str, room: str) -> int:
        """Hear what a room said lately and nobody brought us; returns how many events."""
        return await self.of(speaker).look_back(speaker, room)

    async def run(self) -> None:
        """Receive and send until cancelled. Raises MatrixLoggedOut (in a group) when the primary is logged out."""
        async with asyncio.TaskGroup() as group:
            for key, account in self._own.items():
                group.create_task(self._run_own(key, account), name=f"matrix account of {key}")
            group.create_task(self._primary.run(), name="matrix primary")

    async def _run_own(self, key: str, account: Account) -> None:
        """Have an account listen until its login turns out void. Whatever else goes wrong is its own trouble."""
        wait_s = BACKOFF_S[0]
        while True:
            begun = asyncio.get_running_loop().time()
            try:
                await account.run()
            except Exception as error:  # of its keys' files, or a fault of ours: the others go on
                if void := _find(error, MatrixLoggedOut):
                    self.outbox.rest(key)
                    self._lose(key, plain(str(void)))
                    return
                log.exception("an account of its own hears nothing just now; trying again", speaker=key)
            if asyncio.get_running_loop().time() - begun > BACKOFF_S[1]:
                wait_s = BACKOFF_S[0]
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, BACKOFF_S[1])

    def _lose(self, key: str, reason: str) -> None:
        if key in self.lost:
            return
        self.lost[key] = reason
        log.warning("an account of its own is logged out; the others go on", speaker=key, reason=reason)
        if self._on_lost:
            self._on_lost(key, reason)

    def of(self, speaker: str) -> AppService | Account:
        """The way that a speaker uses. Raises MatrixSilenced when its own one is lost."""
        if speaker in self.lost:
            raise MatrixSilenced(f"the account of {speaker} is logged out: {self.lost[speaker]}")
        return self._own.get(speaker, self._primary)

    def user_id(self, speaker: str) -> str:
        """The Matrix user that speaks for a speaker's key."""
        return self._own.get(speaker, self._primary).user_id(speaker)

    def owns(self, user_id: str) -> bool:
        """Whether a Matrix user is one of ours, in whatever way."""
        return self._primary.owns(user_id) or any(account.owns(user_id) for account in self._own.values())

    async def ensure(self, speaker: Speaker) -> str:
        """Make the speaker exist, with its name and avatar; returns its Matrix user id. Idempotent."""
        return await self.of(speaker.key).ensure(speaker)

    def put(self, speaker: Speaker, room: str, kind: str, content: Mapping[str, Any], key: str) -> bool:
        """Keep one event for sending; see MatrixPort. It is kept for a lost account as well, until it is back."""
        return self._own.get(speaker.key, self._primary).put(speaker, room, kind, content, key)

    async def send(self, speaker: Speaker, room: str, kind: str, content: Mapping[str, Any], key: str) -> str:
        """`put` in a transaction of its own, and wait until it is sent; returns the event's id; see MatrixPort."""
        return await self.of(speaker.key).send(speaker, room, kind, content, key)

    async def way(self, speaker: str | None) -> tuple[Api, As | None]:
        """Where requests of a speaker go, and whom they are made for."""
        return await (self._primary if speaker is None else self.of(speaker)).way(speaker)

    async def join(self, speaker: str, room: str, via: str | None = None) -> str:
        """Join a room by id or alias; returns its id. `via` is a server that knows it."""
        return await self.of(speaker).join(speaker, room, via)

    async def equip(self, speaker: str, room: str) -> None:
        """See that a speaker who sits in a room can read what is said there, as far as that can be had now."""
        await self.of(speaker).equip(speaker, room)

    async def leave(self, speaker: str, room: str) -> None:
        """Leave a room, or decline its invitation."""
        await self.of(speaker).leave(speaker, room)

    async def invite(self, speaker: str, room: str, user_id: str) -> None:
        """Invite a user."""
        await self.of(speaker).invite(speaker, room, user_id)

    async def typing(self, speaker: str, room: str, timeout_ms: int) -> None:
        """Show as typing for so long; 0 stops it."""
        await self.of(speaker).typing(speaker, room, timeout_ms)

    async def read(self, speaker: str, room: str, event_id: str) -> None:
        """Say that everything up to an event was read."""
        await self.of(speaker).read(speaker, room, event_id)

    async def upload(self, speaker: str, data: bytes, mime: str, name: str) -> str:
        """Store a file with the speaker's homeserver; returns its `mxc://` address."""
        return await self.of(speaker).upload(speaker, data, mime, name)


async def _deliver(account: Account, row: Outgoing) -> str:
    """One attempt to send a row of an account of its own: what goes wrong there does not end the sending of others."""
    try:
        return await account.deliver(row)
    except (MatrixUnavailable, MatrixRefused, MatrixLoggedOut):
        raise
    except Exception as error:
        log.exception("an account of its own cannot send just now; trying again", speaker=row.speaker)
        raise MatrixUnavailable(f"it could not be sent: {type(error).__name__}") from error


def _find(error: BaseException, kind: type[MatrixLoggedOut]) -> MatrixLoggedOut | None:
    """An error of a kind, if there is one within groups."""
    if isinstance(error, BaseExceptionGroup):
        parts = cast("tuple[BaseException, ...]", error.exceptions)
        return next((found for part in parts if (found := _find(part, kind))), None)
    return error if isinstance(error, kind) else None
