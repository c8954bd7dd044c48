"""The appservice: the homeserver pushes every event once, and every speaker is a user of its own.

An event is in the inbox before its push is answered, so the homeserver repeats what we have not kept. Transactions are
told apart by their events alone: Synapse on sqlite begins their numbers again at 1 after a restart.
"""

import asyncio
import hmac
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from mesh.bridges.matrix.api import Access, Api, As
from mesh.bridges.matrix.common import CLIENT, Speaking
from mesh.bridges.matrix.errors import BadContent, MatrixError, MatrixFull, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import parse_event
from mesh.bridges.matrix.outbox import Done
from mesh.bridges.matrix.port import Caps, Speaker
from mesh.bridges.matrix.registration import Registration
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
SPEAKER: Final = re.compile(r"[a-z0-9_.-]{1,100}")  # fits a Matrix user id with any server's name
LOGIN: Final = "m.login.application_service"

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
    ) -> None:
        api = Api(Access(homeserver, registration.as_token))
        super().__init__(api, store, clock, Caps("appservice", separate_identities=True), on_done)
        self._registration, self._listen = registration, listen
        self._existing: dict[str, As] = {}
        self._making = asyncio.Lock()
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Receive and send until cancelled. Raises MatrixError when the port is taken, MatrixLoggedOut (in a group)."""
        try:
            async with self._serving(), asyncio.TaskGroup() as group:
                group.create_task(self.outbox.run(), name="matrix outbox")
                group.create_task(self._nudge(), name="matrix nudge")
        finally:
            self.ready.clear()
            await self._api.close()

    async def _nudge(self) -> None:
        """Have what was kept for us pushed at once: left alone, Synapse waits up to 8.5 minutes after failures.

        A successful ping makes it try again (seen in Synapse 1.163); until one succeeds, nobody is heard.
        """
        wait_s = NUDGE_S[0]
        while True:
            try:
                await self.ping()
            except MatrixUnavailable as error:
                log.warning("the homeserver does not reach us", url=self._registration.url, reason=plain(str(error)))
            except MatrixRefused as error:
                log.info("the homeserver knows no pings; what it kept comes in its own time", code=error.code)
                return
            else:
                return
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, NUDGE_S[1])

    @asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        from aiohttp import web

        @web.middleware
        async def guard(request: web.Request, handler: "Handler") -> web.StreamResponse:
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
        try:
            self.inbox.take(event for event in found if event and not self._registration.owns(event.sender))
        except (MatrixFull, StoreFailed) as error:
            log.warning("a push from the homeserver is not taken; it will come again", reason=str(error))
            return _error(503, "M_LIMIT_EXCEEDED")
        return _answer({})

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
        try:
            await self._api.call("GET", (*CLIENT, "devices", DEVICE), acting=As(user_id))
        except MatrixRefused:
            identifier = {"type": "m.id.user", "user": localpart}
            body = {
                "type": LOGIN,
                "identifier": identifier,
                "device_id": DEVICE,
                "initial_device_display_name": "ampmesh",
            }
            await self._api.call("POST", (*CLIENT, "login"), body)
        return As(user_id, DEVICE)

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


def _answer(body: dict[str, Any], status: int = 200) -> "web.Response":
    from aiohttp import web

    return web.json_response(body, status=status)


def _error(status: int, code: str) -> "web.Response":
    return _answer({"errcode": code, "error": code}, status)
