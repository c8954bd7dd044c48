"""The door of an appservice: where the homeserver pushes events, and people read pages."""

import asyncio
import hmac
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from mesh.bridges.matrix.errors import MatrixError, MatrixFull
from mesh.bridges.matrix.shape import as_dict, from_json
from mesh.door import Door, unheard
from mesh.errors import StoreFailed

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Handler

MAX_BODY: Final = 64 * 1024 * 1024  # bytes: a hundred events of 64 KiB, escaped at worst; less would stop the queue
SHUTDOWN_S: Final = 1.0  # for pushes under way when we stop; they come again
PAGES: Final = "/why/"
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",  # the address is the key
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
    "Cache-Control": "no-store",  # what was redacted meanwhile is not shown again
}

Pages = Callable[[str, str], str | None]
"""Gives the page below PAGES for two parts of its address; None when there is none."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PushDoor:
    """What listens on `listen`, a host and port, and lets nobody in but the homeserver, whose token is never shown.

    `push` takes the events of a transaction and its name, and raises MatrixFull or StoreFailed when they are to come
    again; `knows` tells whether a user exists.
    """

    listen: tuple[str, int]
    token: str = field(repr=False)
    push: Callable[[list[object], str], Awaitable[None]]
    knows: Callable[[str], bool]
    pages: Pages | None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        """Listen within the block. Raises MatrixError when the port is taken."""
        from aiohttp import web

        door = Door(None)

        @web.middleware
        async def guard(request: web.Request, handler: "Handler") -> web.StreamResponse:
            is_page = request.path.startswith(PAGES)
            answer = await self._page(request) if is_page else self._refused(request)
            if answer is not None:
                answer.force_close()  # a stranger's connection is not kept
                return answer
            door.passed(request.protocol)
            return await handler(request)

        app = web.Application(client_max_size=MAX_BODY, middlewares=[guard])
        app.router.add_put("/_matrix/app/v1/transactions/{txn}", self._transaction)
        app.router.add_get("/_matrix/app/v1/users/{user}", self._user)
        app.router.add_get("/_matrix/app/v1/rooms/{room}", self._room)
        app.router.add_post("/_matrix/app/v1/ping", self._ping)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, logger=unheard())
        await runner.setup()
        try:
            made: Any = runner.server
            async with door.open():
                server = await self._server(lambda: door.enter(made))
                try:
                    yield
                finally:
                    server.close()
        finally:
            await runner.cleanup()

    async def _server(self, made: Callable[[], Any]) -> asyncio.Server:
        host, port = self.listen
        try:
            return await asyncio.get_running_loop().create_server(made, host, port)
        except OSError as error:
            number = error.errno or 0  # negative where a name was looked up
            reason = os.strerror(number) if number > 0 else error.strerror
            told = (
                f"nothing can listen on {host}:{port}: {reason}; end what uses it (another node of this registration?)"
                " or choose another port: mesh matrix register … --force --listen HOST:PORT"
            )
            raise MatrixError(told) from error

    def _refused(self, request: "web.Request") -> "web.StreamResponse | None":
        """The answer to whoever is not the homeserver; what was sent is not even read. None lets it in."""
        wanted = f"Bearer {self.token}".encode()
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not given or "access_token" in request.query:  # tokens in addresses end up in logs
            return _error(401, "M_UNAUTHORIZED")
        return None if hmac.compare_digest(given, wanted) else _error(403, "M_FORBIDDEN")

    async def _transaction(self, request: "web.Request") -> "web.StreamResponse":
        body = from_json(await request.read())
        if body is None:
            return _error(400, "M_NOT_JSON")
        events = as_dict(body).get("events")
        if not isinstance(events, list):
            return _error(400, "M_BAD_JSON")
        try:
            await self.push(cast("list[object]", events), request.match_info["txn"])
        except (MatrixFull, StoreFailed) as error:
            log.warning("a push from the homeserver is not taken; it will come again", reason=str(error))
            return _error(503, "M_LIMIT_EXCEEDED")
        except Exception:
            log.exception("a push from the homeserver cannot be taken; it will come again")
            return _error(500, "M_UNKNOWN")
        return _answer({})

    async def _page(self, request: "web.Request") -> "web.StreamResponse":
        from aiohttp import web

        parts = request.path.removeprefix(PAGES).split("/")
        is_whole = self.pages is not None and request.method == "GET" and len(parts) == 2  # noqa: PLR2004 - act, seal
        try:
            page = self.pages(*parts) if self.pages and is_whole else None
        except Exception:
            log.exception("a page cannot be shown")
            return _error(500, "M_UNKNOWN")
        if page is None:
            return _error(404, "M_NOT_FOUND")
        return web.Response(text=page, content_type="text/html", headers=HEADERS)

    async def _user(self, request: "web.Request") -> "web.StreamResponse":
        return _answer({}) if self.knows(request.match_info["user"]) else _error(404, "M_NOT_FOUND")

    async def _room(self, _request: "web.Request") -> "web.StreamResponse":
        return _error(404, "M_NOT_FOUND")

    async def _ping(self, _request: "web.Request") -> "web.StreamResponse":
        return _answer({})


def _answer(body: dict[str, Any], status: int = 200) -> "web.Response":
    from aiohttp import web

    return web.json_response(body, status=status)


def _error(status: int, code: str) -> "web.Response":
    return _answer({"errcode": code, "error": code}, status)
