"""The appservice: the homeserver pushes every event once, and every speaker is a user of its own.

An event is in the inbox before its push is answered, so the homeserver repeats what we have not kept. Transactions are
told apart by their events alone: Synapse on sqlite begins their numbers again at 1 after a restart.
"""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from mesh.bridges.matrix.api import Access, Api, As
from mesh.bridges.matrix.common import CLIENT, Speaking
from mesh.bridges.matrix.errors import BadContent, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbound, parse_event
from mesh.bridges.matrix.outbox import Done, Outgoing
from mesh.bridges.matrix.port import ENCRYPTION, Caps, Speaker
from mesh.bridges.matrix.push import Pages, PushDoor
from mesh.bridges.matrix.registration import Registration
from mesh.bridges.matrix.rooms import since_joining
from mesh.bridges.matrix.shape import as_dict, as_dicts
from mesh.clock import Clock
from mesh.store import Store
from mesh.words import plain

NO_DEVICE: Final = frozenset({"M_UNKNOWN_DEVICE", "M_EXCLUSIVE"})  # it is not there; the second is older
DEVICE: Final = "AMPMESH"  # of every user: with a device, Synapse remembers transaction ids through its own restarts
NUDGE_S: Final = (1.0, 15.0)  # first and longest wait between two attempts, doubling between
WATCH_S: Final = 30.0  # between two looks whether the homeserver is there
LOOK_BACK_MS: Final = 3_600_000  # how far a room is looked through after a homeserver was away, or to what was heard
LOOK_PAGE: Final = 100  # events a request
LOOK_PAGES: Final = 20  # requests a room
SPEAKER: Final = re.compile(r"[a-z0-9_.-]{1,100}")  # fits a Matrix user id with any server's name
MAX_DIGITS: Final = 19  # of a transaction's number
LOGIN: Final = "m.login.application_service"

log = structlog.get_logger(__name__)


class _Renewing(Api):
    """Requests of virtual users. Homeservers may remove devices that seem unused: then they are made anew."""

    def __init__(self, access: Access, renew: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(access)
        self._renew = renew

    async def call(
        self,
        method: str,
        path: Sequence[str],
        body: Mapping[str, Any] | bytes | str | None = None,
        **more: Any,  # noqa: ANN401 - what else Api takes
    ) -> dict[str, Any]:
        """As Api's; see there."""
        acting: As | None = more.get("acting")
        try:
            return await super().call(method, path, body, **more)
        except MatrixRefused as error:
            if error.code not in NO_DEVICE or acting is None or acting.device_id != DEVICE:
                raise
        await self._renew(acting.user_id)
        return await super().call(method, path, body, **more)


class AppService(Speaking):
    """A MatrixPort through an appservice that listens on `host`:`port`. Close it."""

    def __init__(  # noqa: PLR0913 - a port has these parts
        self,
        homeserver: str,
        registration: Registration,
        listen: tuple[str, int],
        store: Store,
        clock: Clock,
        *,
        on_done: Done | None = None,
        pages: Pages | None = None,
    ) -> None:
        """`pages` gives the page below `/why/` for two parts of its address, which anybody may ask for."""
        api = _Renewing(Access(homeserver, registration.as_token), self._renew)
        caps = Caps("appservice", separate_identities=True)
        super().__init__(api, store, clock, caps, on_done)
        self._registration = registration
        self._existing: dict[str, As] = {}
        self.door = PushDoor(listen, registration.hs_token, self._pushed, self._existing.__contains__, pages)
        self._making = asyncio.Lock()
        self.ready = asyncio.Event()
        self._last_push = 0  # the number of the homeserver's last transaction
        self._is_away = False
        self.reached = False

    async def run(self) -> None:
        """Receive and send until cancelled. Raises MatrixError when the port is taken, MatrixLoggedOut (in a group)."""
        try:
            await self.crypto.fleet.begin()
            self._is_away = True  # for all that we know
            async with self.door.open(), asyncio.TaskGroup() as group:
                self.ready.set()
                group.create_task(self.crypto.fleet.run(), name="matrix devices")
                group.create_task(self.outbox.run(), name="matrix outbox")
                group.create_task(self._nudge(), name="matrix nudge")
        finally:
            self.ready.clear()
            self.crypto.close()
            await self._api.close()

    async def _nudge(self) -> None:
        """Have what was kept for us pushed at once: left alone, Synapse waits up to 8.5 minutes after failures.

        A successful ping makes it try again (seen in Synapse 1.163); until one succeeds, nobody is heard. And a
        homeserver that is killed forgets what it was about to push, so that we look for it whenever one comes back.
        """
        wait_s, told, url = NUDGE_S[0], "", self._registration.url
        while True:
            try:
                await self.ping()
            except MatrixUnavailable as error:
                if (reason := plain(str(error))) != told:
                    log.warning("nothing is heard from the homeserver; it is tried again", url=url, reason=reason)
                told = reason
                self._is_away, self.reached = True, False
            except MatrixRefused as error:
                log.info("the homeserver knows no pings; what it kept comes in its own time", code=error.code)
                self.missed.set()
                self.reached = True
                return
            else:
                self._came_back()
                self.reached = True
                if told:
                    log.info("the homeserver reaches us again", url=url)
                wait_s, told = NUDGE_S[0], ""
                await asyncio.sleep(WATCH_S)
                continue
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, NUDGE_S[1])

    def _came_back(self) -> None:
        if self._is_away:
            self.missed.set()
        self._is_away = False

    async def _deliver(self, row: Outgoing) -> str:
        """One attempt, which also tells whether the homeserver was away."""
        try:
            event_id = await super()._deliver(row)
        except MatrixUnavailable as error:
            self._is_away = self._is_away or error.retry_after_s is None
            raise
        self._came_back()
        return event_id

    async def look_back(self, speaker: str, room: str) -> int:
        """Hear what a room said lately and nobody pushed to us; returns how many events.

        Synapse 1.163 moves its place before it keeps what it is about to push, and what it had kept it pushes again
        only after the next failure: killed in between, it never brings it.
        """
        acting, since = await self._acting(speaker), self._clock() - LOOK_BACK_MS
        query, found = {"dir": "b", "limit": str(LOOK_PAGE)}, list[Inbound]()
        gap: int | None = None  # how many of `found` nothing that was heard came after
        for _ in range(LOOK_PAGES):
            answer = await self._api.call("GET", (*CLIENT, "rooms", room, "messages"), query=query, acting=acting)
            end = answer.get("end")
            lately, last = since_joining(as_dicts(answer.get("chunk"))[::-1], acting.user_id)
            for event in (parse_event(one, "appservice", room) for one in reversed(lately)):
                if event and gap is None and self.inbox.knows(event):
                    gap = len(found)
                found += [event] if event else []
            is_past = gap is not None and bool(found) and found[-1].at_ms < since
            if last or is_past or not isinstance(end, str):
                break
            query["from"] = end
        missed = [event for n, event in enumerate(found) if n < (gap or 0) or event.at_ms >= since]
        return await self._take(missed[::-1])

    async def _take(self, events: list[Inbound]) -> int:
        """Keep what is new. Raises MatrixFull, StoreFailed."""
        await self.crypto.notice(events)
        heard = [event for event in events if not self._registration.owns(event.sender)]
        return self.inbox.take(await self.crypto.opened(heard, catch_up=True))

    async def _pushed(self, raw: list[object], txn: str) -> None:
        """Take the events of a push, whatever else is in it. Raises MatrixFull, StoreFailed: it will come again."""
        found = [(parse_event(event, "appservice"), event) for event in raw]
        events = [event for event, _ in found if event]
        if len(events) < len(raw):
            log.warning("the homeserver pushed what is no event; it is dropped", count=len(raw) - len(events))
        self.inbox.note_encrypted([event.room for event, whole in found if event and _shows_encryption(whole)])
        await self._take(events)
        self._count(txn)

    def _count(self, txn: str) -> None:
        """Notice a homeserver that began anew, and may have forgotten something: on sqlite, its numbers do as well."""
        number = int(txn) if txn.isascii() and txn.isdecimal() and len(txn) < MAX_DIGITS else 0
        if number < self._last_push:
            self.missed.set()
        self._last_push = number

    def user_id(self, speaker: str) -> str:
        """The virtual user of a speaker's key. Raises BadContent when the key cannot be in a user's id."""
        if not SPEAKER.fullmatch(speaker):
            raise BadContent("a speaker in Matrix has a key of a-z, 0-9, `_`, `.` and `-`, at most 100 characters")
        return f"@{self._localpart(speaker)}:{self._registration.server_name}"

    def owns(self, user_id: str) -> bool:
        """Whether a user is in the appservice's namespace."""
        return self._registration.owns(user_id)

    def _localpart(self, speaker: str) -> str:
        return f"{self._registration.prefix}{speaker}"

    async def _acting(self, speaker: str) -> As:
        user_id = self.user_id(speaker)
        if user_id in self._existing:
            return self._existing[user_id]
        async with self._making:
            if user_id not in self._existing:
                self._existing[user_id] = await self._make(speaker, user_id)
        return self._existing[user_id]

    async def _make(self, speaker: str, user_id: str) -> As:
        """Register a user, unless it is, with its device."""
        localpart = self._localpart(speaker)
        try:
            body = {"type": LOGIN, "username": localpart, "inhibit_login": True}
            await self._api.call("POST", (*CLIENT, "register"), body)
        except MatrixRefused as error:
            if error.code != "M_USER_IN_USE":
                raise
        if not await self._has_device_at(user_id, DEVICE):
            await self._log_in(localpart, DEVICE)
        return As(user_id, DEVICE)

    async def _has_device_at(self, user_id: str, device: str) -> bool:
        """Whether the homeserver knows a device of a user."""
        try:
            await self._api.call("GET", (*CLIENT, "devices", device), acting=As(user_id))
        except MatrixRefused:
            return False
        return True

    async def _renew(self, user_id: str) -> None:
        await self._log_in(user_id[1:].partition(":")[0], DEVICE)

    async def _log_in(self, localpart: str, device: str) -> None:
        identifier = {"type": "m.id.user", "user": localpart}
        body = {"type": LOGIN, "identifier": identifier, "device_id": device, "initial_device_display_name": "ampmesh"}
        await self._api.call("POST", (*CLIENT, "login"), body)

    @property
    def replaces(self) -> bool:
        """Whether lost keys are replaced: nobody but us has a say in these users."""
        return True

    async def device_of(self, user: str, known: str | None) -> tuple[str, As | None]:
        """The user's device for encrypted rooms, or a new one in its place; the old ones are logged out."""
        acting = await self._acting(user.removeprefix(f"@{self._registration.prefix}").partition(":")[0])
        if known and await self._has_device_at(user, known):
            return known, As(user, known)
        new = f"{DEVICE}_{secrets.token_hex(4).upper()}"
        await self._log_in(user[1:].partition(":")[0], new)
        answer = await self._api.call("GET", (*CLIENT, "devices"), acting=acting)
        for one in as_dicts(answer.get("devices")):
            old = str(one.get("device_id"))
            if old.startswith(f"{DEVICE}_") and old != new:
                await self._api.call("POST", (*CLIENT, "logout"), {}, acting=As(user, old))
        return new, As(user, new)

    async def seated(self, room: str) -> list[str]:
        """Which of our users are in a room: whoever is there may ask."""
        for acting in list(self._existing.values()):
            try:
                answer = await self._api.call("GET", (*CLIENT, "rooms", room, "joined_members"), acting=acting)
            except MatrixRefused:
                continue
            return [user for user in as_dict(answer.get("joined")) if user in self._existing]
        return []

    async def ensure(self, speaker: Speaker) -> str:
        """Make the speaker's user exist, and set name and avatar if they changed since we set them last."""
        acting = await self._acting(speaker.key)
        await self._show(speaker, acting.user_id, acting)
        return acting.user_id

    async def ping(self) -> int:
        """Ask the homeserver to reach us; returns the milliseconds it took. Raises MatrixUnavailable when it cannot."""
        path = ("client", "v1", "appservice", self._registration.id, "ping")
        took = (await self._api.call("POST", path, {})).get("duration_ms")
        return took if type(took) is int else 0


def _shows_encryption(event: object) -> bool:
    """Whether a pushed event is an invitation into an encrypted room. Total."""
    shown = as_dict(as_dict(event).get("unsigned")).get("invite_room_state")
    return any(one.get("type") == ENCRYPTION for one in as_dicts(shown))
