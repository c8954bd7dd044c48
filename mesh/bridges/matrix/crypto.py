"""Encrypted rooms: whose devices there are, what is sealed for them, and what is opened on its way to the inbox.

An event that no device can open is let through as it is, kept, and its key is asked for; when the key comes, the event
comes to the inbox once more, opened. Devices exist only for users who sit in encrypted rooms, and nio is loaded with
the first of them.
"""

import asyncio
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, cast

import structlog

from mesh.bridges.matrix.api import Api, As
from mesh.bridges.matrix.content import fit, size
from mesh.bridges.matrix.errors import MatrixError, MatrixFull, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import MAX_ID, SEALED, Inbound, Inbox, parse_event
from mesh.bridges.matrix.port import ENCRYPTION, MEMBER
from mesh.bridges.matrix.sealed import Sealed
from mesh.bridges.matrix.vault import Vault, has_vault, users
from mesh.store import Store
from mesh.words import plain

if TYPE_CHECKING:
    from mesh.bridges.matrix.device import Device

POLL_MS: Final = 30_000  # how long the homeserver waits for messages to a device
BACKOFF_S: Final = (1.0, 60.0)  # first and longest wait after a failure, doubling between
BEGIN_S: Final = 20.0  # for all devices to hear what they missed, before anything else is heard
MAX_CLEAR: Final = 45_000  # bytes of a content before it is sealed: base64 makes a third more of it
ASKING: Final = 3  # of our users in a room who ask for a key: one is enough, if the sender's client knows it
ROOMS: Final = 10_000  # rooms whose people are remembered

log = structlog.get_logger(__name__)


class Owner(Protocol):
    """Who has devices: one of the ways in."""

    @property
    def replaces(self) -> bool:
        """Whether a device or signing key that is lost may be replaced by a new one without anybody's password."""
        ...

    async def device_of(self, user: str, known: str | None) -> tuple[str, As | None]:
        """The known device of a user if it still exists, or else another, and whom its requests are made for.

        Raises MatrixUnavailable, MatrixRefused.
        """
        ...

    async def seated(self, room: str) -> list[str]:
        """Which of our users are in a room, as far as it can be found out."""
        ...

    def owns(self, user_id: str) -> bool:
        """Whether a user is one of ours."""
        ...


class Crypto:
    """The devices of one way in. `close` it."""

    def __init__(self, api: Api, store: Store, inbox: Inbox, base: Path, owner: Owner) -> None:
        self._api, self._inbox, self._base, self._owner = api, inbox, base, owner
        self._sealed = Sealed(store)
        self._devices: dict[str, Device] = {}
        self._vaults = dict[str, Vault]()
        self._lost = dict[str, MatrixError]()  # users whose keys cannot be had in this run, and why
        self._making = asyncio.Lock()
        self._people = dict[str, frozenset[str]]()  # by room
        self._moves = 0  # how often somebody came or went
        self._seats = dict[str, list[str]]()  # by room: our users in it, who have devices
        self._listening = set[str]()
        self._more = asyncio.Event()

    async def resume(self, user: str) -> None:
        """Start the device that a user had in an earlier run, before anything is heard that may be meant for it.

        Raises MatrixUnavailable, MatrixLoggedOut.
        """
        if user in self._devices or user in self._lost or not has_vault(self._base, user):
            return
        try:
            await self.device(user)
        except MatrixRefused as error:
            log.warning("encrypted rooms cannot be read", user=user, reason=plain(str(error)))

    def close(self) -> None:
        """Close everything and let the folders go. Idempotent."""
        for device in self._devices.values():
            device.close()
        for vault in self._vaults.values():
            vault.close()
        self._devices.clear()
        self._vaults.clear()

    async def device(self, user: str) -> "Device":
        """A user's device, started. Raises MatrixUnavailable (also when its folder is taken), MatrixRefused."""
        async with self._making:
            if user in self._lost:
                raise self._lost[user]
            if user not in self._devices:
                self._devices[user] = await self._make(user)
                self._more.set()
            return self._devices[user]

    async def _make(self, user: str) -> "Device":
        await asyncio.to_thread(_load)
        from mesh.bridges.matrix.device import Device, KeysLost

        vault = self._vaults.get(user) or Vault(self._base, user)
        self._vaults[user] = vault
        known = vault.get("device")
        while True:
            device_id, acting = await self._owner.device_of(user, known)
            if device_id != vault.get("device"):
                vault.unset("since")
                vault.set(user=user, device=device_id)
            device = Device(self._api, user, device_id, acting=acting, vault=vault, wanted=self._sealed.is_wanted)
            try:
                await device.start(replace=self._owner.replaces)
            except KeysLost as error:
                device.close()
                if self._owner.replaces and known is not None:
                    known = None
                    continue
                self._lost[user] = _lost(error)
                raise self._lost[user] from error
            except BaseException:
                device.close()
                raise
            log.info("a device for encrypted rooms is ready", user=user, device=device_id)
            self._open_late(device, self._sealed.sessions())  # whose keys came, and then the process ended
            return device

    async def begin(self) -> None:
        """Have the users that had devices before hear what was sent to these meanwhile; failures are left to `run`."""
        try:
            async with asyncio.timeout(BEGIN_S):
                for user in users(self._base):
                    if self._owner.owns(user) and await self._has(user):
                        await self._poll(self._devices[user], 0)
        except (TimeoutError, MatrixError) as error:
            log.warning("not all devices are ready; they will be when they are needed", reason=plain(str(error)))

    async def run(self) -> NoReturn:
        """Listen for each device until cancelled."""
        self._listening.clear()
        async with asyncio.TaskGroup() as group:
            while True:
                self._more.clear()
                for user in self._devices.keys() - self._listening:
                    self._listening.add(user)
                    group.create_task(self._listen(self._devices[user]), name=f"matrix device of {user}")
                await self._more.wait()

    async def _listen(self, device: "Device") -> None:
        """Listen until the homeserver refuses the device: somebody has logged it out, and another takes its place."""
        wait_s = BACKOFF_S[0]
        while True:
            try:
                await self._poll(device, POLL_MS)
            except MatrixUnavailable as error:
                log.info("nothing comes to a device just now", user=device.user, reason=plain(str(error)))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, BACKOFF_S[1])
            except MatrixRefused as error:
                log.warning("a device is refused; it is made anew", user=device.user, reason=plain(str(error)))
                await asyncio.sleep(BACKOFF_S[0])
                break
            else:
                wait_s = BACKOFF_S[0]
        self._devices.pop(device.user).close()
        self._listening.discard(device.user)
        self._seats.clear()
        await self._has(device.user)

    async def _poll(self, device: "Device", timeout_ms: int) -> None:
        while (keys := await device.poll(timeout_ms)) is None:
            pass  # another poll took what came; what came since is not heard yet
        self._open_late(device, keys)
        await device.mend()

    async def hear(self, user: str, answer: Mapping[str, Any]) -> None:
        """Take what an account's own sync says to its device."""
        if device := self._devices.get(user):
            self._open_late(device, device.take(answer))
            try:
                await device.mend()
            except (MatrixUnavailable, MatrixRefused) as error:
                log.info("keys could not be brought to the homeserver", reason=plain(str(error)))

    async def seal(self, user: str, room: str, acting: As | None, kind: str, content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """An event's content as it goes into an encrypted room. Raises MatrixUnavailable, MatrixRefused."""
        device = await self.device(user)
        there = self._people.get(room) or await self._who(room, acting)
        people = frozenset(one for one in there if one == user or not self._owner.owns(one))
        return await device.seal(room, people, kind, shorter(content, MAX_CLEAR))

    async def _who(self, room: str, acting: As | None) -> frozenset[str]:
        """Everybody in a room or invited. Our own users need no keys of one another: they hear within the node."""
        moves = self._moves
        answer = await self._api.call("GET", ("client", "v3", "rooms", room, "members"), acting=acting)
        found = set[str]()
        chunk = answer.get("chunk")
        for raw in cast("list[object]", chunk) if isinstance(chunk, list) else ():
            event = parse_event(raw, "account", room)
            there = event is not None and event.content.get("membership") in {"join", "invite"}
            if event and event.kind == MEMBER and event.state_key and there:
                found.add(event.state_key)
        if moves == self._moves:  # else somebody came or went while we asked: it holds for this once
            if len(self._people) >= ROOMS:
                self._people.clear()
            self._people[room] = frozenset(found)
        return frozenset(found)

    def forget_people(self, room: str) -> None:
        """Ask anew who is in a room: somebody may have come or gone unnoticed."""
        self._people.pop(room, None)
        self._moves += 1

    async def opened(self, events: Iterable[Inbound], *, catch_up: bool) -> list[Inbound]:
        """The events with those opened that can be. `catch_up`: their keys may just be arriving another way.

        Raises StoreFailed.
        """
        found = list(events)
        if not any(_is_sealed(event) for event in found):
            return found
        found = [self._try(event) for event in found]
        if catch_up and any(_is_sealed(event) for event in found):
            await self._catch_up({event.room for event in found if _is_sealed(event)})
            found = [self._try(event) for event in found]
        for event in found:
            if _is_sealed(event):
                await self._keep(event)
        return found

    async def notice(self, events: Iterable[Inbound]) -> None:
        """See who came and went, ours as well, and that our users in encrypted rooms have devices."""
        rooms = dict[str, None]()
        for event in events:
            if event.kind == MEMBER:
                self.forget_people(event.room)
                if self._owner.owns(event.state_key or ""):
                    self._seats.pop(event.room, None)
                    if self._inbox.is_encrypted(event.room) and event.content.get("membership") == "join":
                        rooms[event.room] = None
            elif event.kind in {ENCRYPTION, SEALED}:
                rooms[event.room] = None
        for room in rooms:
            await self.equip(room)

    async def equip(self, room: str) -> None:
        """Have devices for our users in an encrypted room; what fails is tried again when it is needed."""
        if room in self._seats:
            return
        try:
            seated = await self._owner.seated(room)
        except MatrixError as error:
            log.info("it is not known who of ours is in an encrypted room", room=room, reason=plain(str(error)))
            return
        if all([await self._has(user) for user in seated]):
            self._seats[room] = seated

    async def equip_one(self, user: str) -> None:
        """Have a device for one of our users who is about to enter an encrypted room."""
        await self._has(user)

    async def _has(self, user: str) -> bool:
        if user in self._lost:
            return False
        try:
            await self.device(user)
        except MatrixError as error:
            log.warning("a user has no device for encrypted rooms just now", user=user, reason=plain(str(error)))
            return False
        return True

    async def _catch_up(self, rooms: Iterable[str]) -> None:
        """Have the devices in rooms hear what was sent to them until now: a key is sent before what it opens."""
        ours = {user for room in rooms for user in self._seats.get(room, ())}
        try:
            async with asyncio.TaskGroup() as group:
                for user in ours & self._devices.keys():
                    group.create_task(self._poll(self._devices[user], 0), name=f"matrix device of {user}")
        except* (MatrixUnavailable, MatrixRefused) as errors:
            log.info("devices cannot be asked for keys just now", failures=len(errors.exceptions))

    def _try(self, event: Inbound) -> Inbound:
        """The event, opened if one of our devices can."""
        if _is_sealed(event):
            for device in self._devices.values():
                if opened := self._open(device, event):
                    return opened
        return event

    def _open(self, device: "Device", event: Inbound) -> Inbound | None:
        inside = device.open(event)
        if inside is None:
            return None
        kind, content, number = inside
        if not self._sealed.is_first(str(event.content["session_id"]), number, event.event_id):
            log.warning("what was said once is served as another event; it stays closed", room=event.room)
            return None
        raw = {
            "event_id": event.event_id,
            "room_id": event.room,
            "sender": event.sender,
            "type": kind,
            "content": content,
            "origin_server_ts": event.at_ms,
        }
        return parse_event(raw, event.way)

    async def _keep(self, event: Inbound) -> None:
        """Remember an event that cannot be opened, and ask for its key once."""
        session = event.content.get("session_id")
        if not isinstance(session, str) or not session.isascii() or len(session) > MAX_ID:
            return
        if not self._sealed.keep(event, session):
            return
        try:
            for user in self._seats.get(event.room, [])[:ASKING]:
                if device := self._devices.get(user):
                    await device.ask(event)
        except MatrixError as error:
            log.info("a key cannot be asked for just now", reason=plain(str(error)))

    def _open_late(self, device: "Device", keys: Iterable[tuple[str, str]]) -> None:
        """Bring the events that wait for these keys to the inbox, oldest first."""
        for room, session in keys:
            events = self._sealed.waiting(room, session)
            opened = [one for event in events if (one := self._open(device, event))]
            if not opened:
                continue
            try:
                self._inbox.take(opened)
            except MatrixFull:
                log.warning("too much waits to open what came late", events=len(opened))
                continue
            self._sealed.forget(opened)


def shorter(content: Mapping[str, Any], room: int) -> dict[str, Any]:
    """A message's content of at most `room` bytes: if need be without HTML, and then with its words cut. Pure."""
    if size(content) <= room:
        return dict(content)
    slim = {name: value for name, value in content.items() if name not in {"format", "formatted_body"}}
    new, body = slim.get("m.new_content"), slim.get("body")
    if isinstance(new, Mapping):
        left = room - size(slim | {"m.new_content": {}})
        slim["m.new_content"] = shorter(cast("Mapping[str, Any]", new), left)
    elif isinstance(body, str):
        slim["body"] = fit(body, room - size(slim | {"body": ""}))
    return slim


def _load() -> None:
    """Load nio, which takes a second, away from the loop."""
    importlib.import_module("mesh.bridges.matrix.device")


def _lost(error: Exception) -> MatrixRefused:
    told = f"{error}: log this account in again (mesh matrix login), which gives it a new device"
    return MatrixRefused(told, "KEYS_LOST", 0)


def _is_sealed(event: Inbound) -> bool:
    return event.kind == SEALED and event.state_key is None
