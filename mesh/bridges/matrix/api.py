"""HTTP to a homeserver: one request, a JSON object or a typed error. Nothing is retried here.

Plain aiohttp rather than nio: the outbox must know the error code and how long to wait, an event must come through
whatever is in it, and no room's members should be kept in memory.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, urlencode

from mesh.bridges.matrix.errors import MatrixAsks, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.shape import from_json
from mesh.words import plain

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession

TIMEOUT_S: Final = 30.0  # of a request; a sync waits its own time on top
UPLOAD_TIMEOUT_S: Final = 120.0
DOWNLOAD_TIMEOUT_S: Final = 60.0
CONNECT_S: Final = 10.0
MAX_ANSWER: Final = 64 * 1024 * 1024  # bytes; a first sync of many rooms is long, and nothing honest is longer
OK: Final = 200
UNAUTHORIZED: Final = 401
REQUEST_TIMEOUT: Final = 408
TOO_LARGE: Final = 413
TOO_MANY: Final = 429
SERVER_ERRORS: Final = 500
HEALING: Final = frozenset({"M_LIMIT_EXCEEDED", "M_RESOURCE_LIMIT_EXCEEDED"})  # refused now, welcome later
LOGGED_OUT: Final = frozenset({"M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"})
MAX_PATIENCE_MS: Final = 86_400_000  # that a homeserver may ask for; whoever waits has limits of their own below it
MAX_CODE: Final = 60  # characters of an error code that are kept


@dataclass(frozen=True, slots=True)
class As:
    """Whom an appservice's request is made for. The device makes the homeserver remember transaction ids for good."""

    user_id: str
    device_id: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Where the homeserver is and what lets us in. `token` is never shown."""

    homeserver: str
    token: str = field(repr=False)


class Api:
    """Requests to one homeserver. Close it."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: ClientSession | None = None

    async def call(  # noqa: PLR0913 - a request has these parts, and most calls name two
        self,
        method: str,
        path: Sequence[str],
        body: Mapping[str, Any] | bytes | str | None = None,
        *,
        query: Mapping[str, str] | None = None,
        acting: As | None = None,
        mime: str = "application/json",
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """Make one request below `/_matrix/`; every part of `path` is escaped. `timeout_s` is for all of it.

        Raises MatrixUnavailable, MatrixRefused, MatrixLoggedOut.
        """
        import aiohttp

        session = self._opened()
        url = self._url(path, dict(query or {}), acting)
        data = json.dumps(body, separators=(",", ":")) if isinstance(body, Mapping) else body
        headers = {"Authorization": f"Bearer {self._access.token}"} if self._access.token else {}
        limits = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        try:
            async with session.request(
                method, url, data=data, headers=headers | {"Content-Type": mime}, timeout=limits, allow_redirects=False
            ) as response:
                return _judged(response.status, await _body(response))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise MatrixUnavailable(f"the homeserver is not there: {_why(error)}", unsent=True) from error
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise MatrixUnavailable(f"the homeserver did not answer: {_why(error)}") from error

    async def fetch(self, path: Sequence[str], limit: int, *, acting: As | None = None) -> tuple[bytes, str]:
        """Get a file of at most `limit` bytes below `/_matrix/`; returns it with the type that the homeserver says.

        Nobody sends us on to other addresses. Raises as `call` does, and MatrixRefused with code TOO_LARGE when the
        file is longer: no more of it than that is read.
        """
        import aiohttp

        url = self._url(path, {}, acting)
        limits = aiohttp.ClientTimeout(total=DOWNLOAD_TIMEOUT_S, sock_connect=CONNECT_S)
        headers = {"Authorization": f"Bearer {self._access.token}"}
        try:
            get = self._opened().get(url, headers=headers, timeout=limits, allow_redirects=False)
            async with get as response:
                if response.status == OK:
                    return _whole(await _read(response, limit), limit), response.content_type
                _judged(response.status, await _body(response))
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise MatrixUnavailable(f"the homeserver did not answer: {_why(error)}") from error
        raise MatrixUnavailable("the homeserver's answer is no file")

    def _opened(self) -> "ClientSession":
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
        return self._session

    def _url(self, path: Sequence[str], query: dict[str, str], acting: As | None) -> Any:  # noqa: ANN401 - yarl's URL
        from yarl import URL

        if acting:
            query["user_id"] = acting.user_id
            if acting.device_id:
                query["device_id"] = acting.device_id
        whole = "/".join(quote(part, safe="") for part in path)
        end = f"?{urlencode(query)}" if query else ""
        return URL(f"{self._access.homeserver.rstrip('/')}/_matrix/{whole}{end}", encoded=True)

    async def close(self) -> None:
        """Hang up. Idempotent."""
        if self._session:
            await self._session.close()
            self._session = None


def _why(error: Exception) -> str:
    """What went wrong on the way, for a person; no words of the other end are passed on."""
    import aiohttp

    match error:
        case aiohttp.ClientConnectorDNSError():
            return "its name is not known here"
        case aiohttp.ClientSSLError() | aiohttp.ClientConnectorCertificateError():
            return "its TLS certificate does not hold for that name, or it speaks no TLS"
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, ConnectionRefusedError):
            return "nothing listens at its address"
        case TimeoutError():
            return "it took too long"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientPayloadError() | ConnectionError():
            return "it hung up"
        case _:
            return type(error).__name__


def _whole(data: bytes | None, limit: int) -> bytes:
    """A file that was not too long. Raises MatrixRefused."""
    if data is None:
        raise MatrixRefused(f"the file is longer than {limit} bytes; it is not fetched", "TOO_LARGE", 0)
    return data


async def _body(response: "ClientResponse") -> bytes:
    """All of the answer. Raises MatrixUnavailable when it is longer than anything honest."""
    body = await _read(response, MAX_ANSWER)
    if body is None:
        raise MatrixUnavailable(f"the homeserver's answer is longer than {MAX_ANSWER} bytes")
    return body


async def _read(response: "ClientResponse", limit: int) -> bytes | None:
    """What an answer holds; None when that is more than `limit` bytes."""
    parts, size = list[bytes](), 0
    async for part in response.content.iter_chunked(64 * 1024):
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _judged(status: int, body: bytes) -> dict[str, Any]:
    """A good answer, or the error that it stands for."""
    value = from_json(body)
    answer = cast("dict[str, Any]", value) if isinstance(value, dict) else None
    if status == OK and answer is not None:
        return answer
    code, session = (answer or {}).get("errcode"), (answer or {}).get("session")
    if status == UNAUTHORIZED and code is None and isinstance(session, str):
        raise MatrixAsks("the homeserver wants the account's password for this", session)
    if status == TOO_LARGE and not isinstance(code, str):
        code = "M_TOO_LARGE"  # said by a proxy in front of the homeserver
    told = f"the homeserver answered {status}"
    if isinstance(code, str):
        code = plain(code, MAX_CODE)
        told = f"{told} {code}: {plain(str((answer or {}).get('error', '')))}"
    if not isinstance(code, str) or status >= SERVER_ERRORS or status < OK + 200:
        raise MatrixUnavailable(told)  # no Matrix error: a proxy, or a homeserver that is starting
    if status in {TOO_MANY, REQUEST_TIMEOUT} or code in HEALING:
        raise MatrixUnavailable(told, _patience(answer or {}), unsent=status != REQUEST_TIMEOUT)
    if code in LOGGED_OUT:
        raise MatrixLoggedOut("the homeserver does not know the token")
    raise MatrixRefused(told, code, status)


def _patience(answer: Mapping[str, Any]) -> float | None:
    """Seconds to wait, as far as the answer says."""
    told = answer.get("retry_after_ms")
    return min(told, MAX_PATIENCE_MS) / 1000 if type(told) is int and told > 0 else None
