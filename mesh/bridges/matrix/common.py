"""What both ways have in common: speaking. Each adds how it hears and who it is."""

import asyncio
import json
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from mesh.bridges.matrix.api import UPLOAD_TIMEOUT_S, Api, As
from mesh.bridges.matrix.calls import Calls
from mesh.bridges.matrix.content import is_worded, resolve
from mesh.bridges.matrix.crypto import Crypto
from mesh.bridges.matrix.errors import BadContent, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbox
from mesh.bridges.matrix.outbox import PRIMARY, Done, Outbox, Outgoing
from mesh.bridges.matrix.port import ENCRYPTED, MESSAGE, REACTION, REDACTION, Caps, Speaker
from mesh.bridges.matrix.shape import text_of
from mesh.clock import Clock
from mesh.store import Store

CLIENT: Final = ("client", "v3")
JOIN_TIMEOUT_S: Final = 120.0  # joining through federation takes long
MAX_UPLOAD: Final = 50 * 1024 * 1024  # bytes: what homeservers usually take


@dataclass(frozen=True, slots=True)
class Own:
    """What makes an account the own one of a single speaker: its key, and the way that speaks for all others."""

    speaker: str
    beside: "Speaking"


class Speaking(Calls):
    """The half of a MatrixPort that speaks."""

    def __init__(  # noqa: PLR0913 - a port has these parts
        self,
        api: Api,
        store: Store,
        clock: Clock,
        caps: Caps,
        on_done: Done | None = None,
        *,
        own: "Own | None" = None,
    ) -> None:
        self.caps, self.own = caps, own
        self.inbox = own.beside.inbox if own else Inbox(store, clock)
        self.outbox = own.beside.outbox if own else Outbox(store, clock, self._deliver, on_done)
        self._api, self._store, self._clock = api, store, clock
        self.crypto = Crypto(api, store, self.inbox, store.path.parent / "matrix", self)
        self.missed = asyncio.Event()

    @abstractmethod
    def owns(self, user_id: str) -> bool:
        """Whether a Matrix user is one of ours."""

    @property
    @abstractmethod
    def replaces(self) -> bool:
        """Whether lost keys are replaced without asking anybody."""

    @abstractmethod
    async def device_of(self, user: str, known: str | None) -> tuple[str, As | None]:
        """A user's device for encrypted rooms; see `crypto.Owner`."""

    @abstractmethod
    async def seated(self, room: str) -> list[str]:
        """Which of our users are in a room, as far as it can be found out."""

    @abstractmethod
    async def _acting(self, speaker: str) -> As | None:
        """Whom requests of a speaker are made for, made to exist first if need be."""

    async def way(self, speaker: str | None) -> tuple[Api, As | None]:
        """Where requests of a speaker go, and whom they are made for."""
        return self._api, None if speaker is None else await self._acting(speaker)

    def _dress(self, _speaker: Speaker, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """A message's content as this way sends it."""
        return content

    def put(self, speaker: Speaker, room: str, kind: str, content: Mapping[str, Any], key: str) -> bool:
        """Keep one event for sending, within the caller's transaction; see MatrixPort."""
        self.user_id(speaker.key)  # a speaker that cannot be one is refused here, not in the loop
        _check(kind, content)
        whole = self._dress(speaker, content) if kind == MESSAGE else content
        return self.outbox.put(speaker.key, room, kind, whole, key, account=self.own.speaker if self.own else PRIMARY)

    async def send(self, speaker: Speaker, room: str, kind: str, content: Mapping[str, Any], key: str) -> str:
        """Put one event and wait until it is sent; returns its id.

        Raises MatrixRefused when it was given up. Cancelling stops the waiting, not the sending.
        """
        with self._store.transaction():
            self.put(speaker, room, kind, content, key)
        self.outbox.wake()
        outcome = await self.outbox.wait(speaker.key, key)
        if outcome.event_id is None:
            raise MatrixRefused(outcome.reason or "it was given up", "GIVEN_UP", 0)
        return outcome.event_id

    async def deliver(self, row: Outgoing) -> str:
        """One attempt to send a row of this account; returns the event's id. For the outbox."""
        return await self._deliver(row)

    async def _deliver(self, row: Outgoing) -> str:
        """One attempt. Never plaintext into an encrypted room; redactions have none, and reactions go as clients do it.

        Sealing the same content again gives another ciphertext; the transaction id makes it the same event still.
        """
        try:
            acting = await self._acting(row.speaker)
            path, content = await self._prepared(row, acting)
        except MatrixUnavailable as error:
            error.unsent = True
            raise
        return _event_id(await self._api.call("PUT", path, content, acting=acting))

    async def _prepared(self, row: Outgoing, acting: As | None) -> tuple[tuple[str, ...], Mapping[str, Any]]:
        """The path and body of the request that sends a row."""
        content, kind, room = self._resolved(row.content), row.kind, (*CLIENT, "rooms", row.room)
        if kind == REDACTION:
            told = "reason" in content and not await self._is_encrypted(row.room, acting)  # a reason goes in clear
            return (*room, "redact", content["redacts"], row.txn), {"reason": content["reason"]} if told else {}
        if kind == REACTION and is_worded(content) and await self._is_encrypted(row.room, acting):
            raise MatrixRefused("a reaction with words would go into an encrypted room in clear", "IN_CLEAR", 0)
        if kind != REACTION and await self._is_encrypted(row.room, acting):
            user = self.user_id(row.speaker)
            kind, content = ENCRYPTED, await self.crypto.seal(user, row.room, acting, kind, content)
        return (*room, "send", kind, row.txn), content

    def _resolved(self, text: str) -> dict[str, Any]:
        """A row's content with the ids of what it refers to; the same at every attempt, since those are settled."""

        def lookup(speaker: str, key: str) -> str | None:
            outcome = self.outbox.outcome(speaker, key)
            return outcome.event_id if outcome else None

        content = resolve(json.loads(text), lookup)
        if content is None:
            raise MatrixRefused("what it refers to was never sent", "NOTHING_TO_REFER_TO", 0)
        return content

    async def _is_encrypted(self, room: str, acting: As | None) -> bool:
        """Whether a room is encrypted: what was heard, or else what the homeserver says, each time: it may change."""
        if self.inbox.is_encrypted(room):
            return True
        try:
            await self._api.call("GET", (*CLIENT, "rooms", room, "state", "m.room.encryption", ""), acting=acting)
        except MatrixRefused as error:
            if error.code != "M_NOT_FOUND":
                raise
            return False
        self.inbox.note_encrypted([room])
        return True

    async def _show(self, speaker: Speaker, user_id: str, acting: As | None) -> None:
        """Set a user's name and avatar, if they changed since we set them last."""
        row = self._store.one("SELECT name, avatar FROM matrix_profiles WHERE user_id = ?", (user_id,))
        name, avatar = row or (None, "")
        profile = (*CLIENT, "profile", user_id)
        if speaker.name != name:
            await self._api.call("PUT", (*profile, "displayname"), {"displayname": speaker.name}, acting=acting)
        if speaker.avatar is not None and speaker.avatar != avatar:
            await self._api.call("PUT", (*profile, "avatar_url"), {"avatar_url": speaker.avatar}, acting=acting)
            avatar = speaker.avatar
        with self._store.transaction():
            self._store.execute(
                "INSERT OR REPLACE INTO matrix_profiles VALUES (?, ?, ?)", (user_id, speaker.name, avatar)
            )

    async def join(self, speaker: str, room: str, via: str | None = None) -> str:
        """Join a room by id or alias; returns its id. `via` is a server that knows it, for rooms of other servers."""
        acting, path = await self._acting(speaker), (*CLIENT, "join", room)
        query = {"via": via, "server_name": via} if via else {}  # the second is the first's older name
        ready = await self._has_device(speaker, room)  # before people see us there, so that we get their keys
        answer = await self._api.call("POST", path, {}, query=query, acting=acting, timeout_s=JOIN_TIMEOUT_S)
        joined = text_of(answer, "room_id")
        if not ready:
            with suppress(MatrixUnavailable, MatrixRefused):
                await self._is_encrypted(joined, acting)
            await self._has_device(speaker, joined)
        return joined

    async def _has_device(self, speaker: str, room: str) -> bool:
        """See that a speaker has a device, if a room is known to be encrypted; whether it is."""
        encrypted = self.inbox.is_encrypted(room)
        if encrypted:
            await self.crypto.equip_one(self.user_id(speaker))
        return encrypted

    async def equip(self, speaker: str, room: str) -> None:
        """See that a speaker who sits in a room can read what is said there, as far as that can be had now."""
        await self._has_device(speaker, room)

    async def look_back(self, speaker: str, room: str) -> int:  # noqa: ARG002 - see AppService
        """Nothing: whoever has a sync of its own knows where it was."""
        return 0

    async def leave(self, speaker: str, room: str) -> None:
        """Leave a room, or decline its invitation."""
        await self._api.call("POST", (*CLIENT, "rooms", room, "leave"), {}, acting=await self._acting(speaker))

    async def invite(self, speaker: str, room: str, user_id: str) -> None:
        """Invite a user."""
        acting = await self._acting(speaker)
        await self._api.call("POST", (*CLIENT, "rooms", room, "invite"), {"user_id": user_id}, acting=acting)

    async def typing(self, speaker: str, room: str, timeout_ms: int) -> None:
        """Show as typing for so long; 0 stops it."""
        body = {"typing": True, "timeout": timeout_ms} if timeout_ms else {"typing": False}
        path = (*CLIENT, "rooms", room, "typing", self.user_id(speaker))
        await self._api.call("PUT", path, body, acting=await self._acting(speaker))

    async def read(self, speaker: str, room: str, event_id: str) -> None:
        """Say that everything up to an event was read."""
        path = (*CLIENT, "rooms", room, "receipt", "m.read", event_id)
        await self._api.call("POST", path, {}, acting=await self._acting(speaker))

    async def upload(self, speaker: str, data: bytes, mime: str, name: str) -> str:
        """Store a file with the homeserver; returns its `mxc://` address. Raises BadContent beyond MAX_UPLOAD."""
        if len(data) > MAX_UPLOAD:
            raise BadContent(f"a file of {len(data)} bytes is too large; at most {MAX_UPLOAD} are sent to Matrix")
        acting = await self._acting(speaker)
        path, query = ("media", "v3", "upload"), {"filename": name}
        answer = await self._api.call(
            "POST", path, data, query=query, acting=acting, mime=mime, timeout_s=UPLOAD_TIMEOUT_S
        )
        return text_of(answer, "content_uri")


def _check(kind: str, content: Mapping[str, Any]) -> None:
    """Refuse what could not be sent later. Raises BadContent."""
    if kind == REDACTION and not isinstance(content.get("redacts"), str):
        raise BadContent("a redaction says in `redacts` which event it takes back")
    if kind == REDACTION and not isinstance(content.get("reason", ""), str):
        raise BadContent("a redaction's `reason` is a text")
    if kind == MESSAGE and not (isinstance(content.get("body"), str) and isinstance(content.get("msgtype"), str)):
        raise BadContent("a message has a `msgtype` and a `body`")
    try:
        resolve(content, lambda _speaker, _key: None)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadContent("`m.relates_to` names events by their ids") from error


def _event_id(answer: Mapping[str, Any]) -> str:
    return text_of(answer, "event_id")
