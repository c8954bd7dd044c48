"""The appservice: the homeserver pushes every event once, and every speaker is a user of its own.

An event is in the inbox before its push is answered, so the homeserver repeats what we have not kept. Transactions are
told apart by their events alone: Synapse on sqlite begins their numbers again at 1 after a restart.
"""

import asyncio
import hmac
import json
import re
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from mesh.bridges.matrix.api import Access, Api, As
from mesh.bridges.matrix.common import CLIENT, Speaking
from mesh.bridges.matrix.errors import BadContent, MatrixError, MatrixFull, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbound, parse_event
from mesh.bridges.matrix.outbox import Done, Outgoing
from mesh.bridges.matrix.port import ENCRYPTION, Caps, Speaker
from mesh.bridges.matrix.registration import Registration
from mesh.bridges.matrix.rooms import since_joining
from mesh.clock import Clock
from mesh.errors import StoreFailed
from mesh.store import Store
from mesh.words import plain

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Handler

DEVICE: Final = "AMPMESH"  # of every user: with a device, Synapse remembers transaction ids through its own restarts
MAX_BODY: Final = (
    64 * 1024 * 1024
)  # bytes: a hundred events of 64 KiB, escaped at worst; less would stop the queue for good
SHUTDOWN_S: Final = 1.0  # for pushes under way when we stop; they come again
NUDGE_S: Final = (1.0, 60.0)  # first and longest wait between two attempts, doubling between
WATCH_S: Final = 30.0  # between two looks whether the homeserver is there
LOOK_BACK_MS: Final = 3_600_000  # how far a room is looked through after a homeserver was away, or to what was heard
LOOK_PAGE: Final = 100  # events a request
LOOK_PAGES: Final = 20  # requests a room
SPEAKER: Final = re.compile(r"[a-z0-9_.-]{1,100}")  # fits a Matrix user id with any server's name
MAX_DIGITS: Final = 19  # of a transaction's number
LOGIN: Final = "m.login.application_service"

PAGES: Final = "/why/"
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

Pages = Callable[[str, str], str | None]

log = structlog.get_logger(__name__)


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
        keys: Path | None = None,
        pages: Pages | None = None,
    ) -> None:
        """`pages` gives the page below `/why/` for two parts of its address, which anybody may ask for."""
        api = Api(Access(homeserver, registration.as_token))
        caps = Caps("appservice", separate_identities=True, e2ee=True)
        super().__init__(api, store, clock, caps, on_done, keys=keys)
        self._registration, self._listen, self._pages = registration, listen, pages
        self._existing: dict[str, As] = {}
        self._making = asyncio.Lock()
        self.ready = asyncio.Event()
        self._last_push = 0  # the number of the homeserver's last transaction
        self._is_away = False

    async def run(self) -> None:
        """Receive and send until cancelled. Raises MatrixError when the port is taken, MatrixLoggedOut (in a group)."""
        try:
            await self.crypto.fleet.begin()
            self._is_away = True  # for all that we know
            async with self._serving(), asyncio.TaskGroup() as group:
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
        wait_s = NUDGE_S[0]
        while True:
            try:
                await self.ping()
            except MatrixUnavailable as error:
                log.warning("the homeserver does not reach us", url=self._registration.url, reason=plain(str(error)))
                self._is_away = True
            except MatrixRefused as error:
                log.info("the homeserver knows no pings; what it kept comes in its own time", code=error.code)
                self.missed.set()
                return
            else:
                self._came_back()
                wait_s = NUDGE_S[0]
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
            chunk, end = answer.get("chunk"), answer.get("end")
            raw = [_dict(one) for one in cast("list[object]", chunk)] if isinstance(chunk, list) else []
            lately, last = since_joining(raw[::-1], acting.user_id)
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

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        from aiohttp import web

        @web.middleware
        async def guard(request: web.Request, handler: "Handler") -> web.StreamResponse:
            if request.path.startswith(PAGES):
                return await self._page(request)
            return self._refused(request) or await handler(request)

        app = web.Application(client_max_size=MAX_BODY, middlewares=[guard])
        app.router.add_put("/_matrix/app/v1/transactions/{txn}", self._transaction)
        app.router.add_get("/_matrix/app/v1/users/{user}", self._user)
        app.router.add_get("/_matrix/app/v1/rooms/{room}", self._room)
        app.router.add_post("/_matrix/app/v1/ping", self._ping)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        try:
            host, port = self._listen
            try:
                await web.TCPSite(runner, host, port).start()
            except OSError as error:
                raise MatrixError(
                    f"nothing can listen on {host}:{port}: {error.strerror}; choose another port"
                ) from error
            self.ready.set()
            yield
        finally:
            await runner.cleanup()

    def _refused(self, request: "web.Request") -> "web.StreamResponse | None":
        """The answer to whoever is not the homeserver; what was sent is not even read. None lets it in."""
        wanted = f"Bearer {self._registration.hs_token}".encode()
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not given or "access_token" in request.query:  # tokens in addresses end up in logs
            return _error(401, "M_UNAUTHORIZED")
        return None if hmac.compare_digest(given, wanted) else _error(403, "M_FORBIDDEN")

    async def _transaction(self, request: "web.Request") -> "web.StreamResponse":
        try:
            body: object = json.loads(await request.read())
        except (ValueError, RecursionError):
            return _error(400, "M_NOT_JSON")
        raw = cast("dict[str, Any]", body).get("events") if isinstance(body, dict) else None
        if not isinstance(raw, list):
            return _error(400, "M_BAD_JSON")
        found = [parse_event(event, "appservice") for event in cast("list[object]", raw)]
        if None in found:
            log.warning("the homeserver pushed what is no event; it is dropped", count=found.count(None))
        for event in cast("list[object]", raw):
            if room := _encrypted_invitation(event):
                self.inbox.note_encrypted([room])
        events = [event for event in found if event]
        try:
            await self._take(events)
        except (MatrixFull, StoreFailed) as error:
            log.warning("a push from the homeserver is not taken; it will come again", reason=str(error))
            return _error(503, "M_LIMIT_EXCEEDED")
        self._count(request.match_info["txn"])
        return _answer({})

    def _count(self, txn: str) -> None:
        """Notice a homeserver that began anew, and may have forgotten something: on sqlite, its numbers do as well."""
        number = int(txn) if txn.isascii() and txn.isdecimal() and len(txn) < MAX_DIGITS else 0
        if number < self._last_push:
            self.missed.set()
        self._last_push = number

    async def _page(self, request: "web.Request") -> "web.StreamResponse":
        from aiohttp import web

        parts = request.path.removeprefix(PAGES).split("/")
        is_whole = self._pages is not None and request.method == "GET" and len(parts) == 2  # noqa: PLR2004 - act, seal
        page = self._pages(*parts) if self._pages and is_whole else None
        if page is None:
            return _error(404, "M_NOT_FOUND")
        return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": POLICY})

    async def _user(self, request: "web.Request") -> "web.StreamResponse":
        known = request.match_info["user"] in self._existing
        return _answer({}) if known else _error(404, "M_NOT_FOUND")

    async def _room(self, _request: "web.Request") -> "web.StreamResponse":
        return _error(404, "M_NOT_FOUND")

    async def _ping(self, _request: "web.Request") -> "web.StreamResponse":
        return _answer({})

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
        listed = answer.get("devices")
        for one in cast("list[object]", listed) if isinstance(listed, list) else ():
            old = str(_dict(one).get("device_id"))
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
            return [user for user in _dict(answer.get("joined")) if user in self._existing]
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


def _encrypted_invitation(event: object) -> str | None:
    """The room of a pushed event that is an invitation into an encrypted room. Total."""
    raw = _dict(event)
    room, state = raw.get("room_id"), _dict(raw.get("unsigned")).get("invite_room_state")
    shown = cast("list[object]", state) if isinstance(state, list) else []
    encrypted = any(_dict(one).get("type") == ENCRYPTION for one in shown)
    return room if encrypted and isinstance(room, str) else None


def _dict(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _answer(body: dict[str, Any], status: int = 200) -> "web.Response":
    from aiohttp import web

    return web.json_response(body, status=status)


def _error(status: int, code: str) -> "web.Response":
    return _answer({"errcode": code, "error": code}, status)
