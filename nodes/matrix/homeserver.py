"""What a homeserver says of itself to anybody: where it is, what it runs, what it is called, what time it has.

Nothing secret is sent here. Every question has a time limit, and every answer a size.
"""

import asyncio
import json
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast
from urllib.parse import urlsplit

from mesh.bridges.matrix.registration import SERVER_NAME
from mesh.clock import Clock
from mesh.words import plain
from nodes.errors import NodeError

ASK_S: Final = 5.0  # for an answer of a few hundred bytes
MAX_ANSWER: Final = 1 << 20  # bytes; honest answers have some thousand
MAX_REDIRECTS: Final = 3  # of a .well-known file, which may be on another host of the same owner
OK: Final = 200
NOT_FOUND: Final = 404
SECURE: Final = "https"
VERSION: Final = re.compile(r"[rv]\d{1,3}(\.\d{1,3}){1,2}")


@dataclass(frozen=True, slots=True)
class Seen:
    """A homeserver that answered. `ahead_ms` is its clock before ours, exact to a second; None: it told no time."""

    url: str
    versions: tuple[str, ...]
    ahead_ms: int | None


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: dict[str, Any] | None  # None: no JSON object
    date: str | None


def base_url(given: str) -> str:
    """An address as a person gives it, without what is too much. Raises NodeError."""
    try:
        parts = urlsplit(given)
        _ = parts.port  # raises ValueError when it is none
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in {"http", SECURE} or not parts.hostname or parts.username is not None:
        raise NodeError(f"{plain(given, 80)!a} is no address of a server; give one such as https://matrix.example.org")
    if parts.query or parts.fragment or not given.isascii() or not given.isprintable() or " " in given:
        raise NodeError(f"{plain(given, 80)!a} has more than an address; give one such as https://matrix.example.org")
    return given.rstrip("/").removesuffix("/_matrix")


async def find(given: str, scheme: str = SECURE) -> str:
    """The address of a homeserver, given that or a server's name alone, which its `.well-known` file resolves.

    Raises NodeError.
    """
    if "://" in given:
        return base_url(given)
    if not SERVER_NAME.fullmatch(given):
        raise NodeError(f"{plain(given, 80)!a} is no homeserver; give its address (https://…) or its name")
    where = f"{scheme}://{given}"
    answer = await _ask(f"{where}/.well-known/matrix/client", redirects=MAX_REDIRECTS)
    if answer.status == NOT_FOUND:
        return where
    entry = (answer.body or {}).get("m.homeserver")
    url = cast("dict[str, Any]", entry).get("base_url") if isinstance(entry, dict) else None
    if not isinstance(url, str) or url.partition(":")[0].lower() not in {scheme, SECURE}:
        raise NodeError(
            f"{where}/.well-known/matrix/client does not say where the homeserver is; give its address (https://…)"
        )
    return base_url(url)


async def look(url: str, clock: Clock) -> Seen:
    """Ask whether a homeserver is there. Raises NodeError."""
    asked = clock()
    answer = await _ask(f"{url}/_matrix/client/versions")
    now = (asked + clock()) // 2
    versions = (answer.body or {}).get("versions")
    if answer.status != OK or not isinstance(versions, list):
        raise NodeError(
            f"{url} answers, but not as a homeserver does (status {answer.status}); check the address: it is that of"
            " the client API, often https://matrix.SERVER"
        )
    known = [one for one in cast("list[object]", versions) if isinstance(one, str) and VERSION.fullmatch(one)]
    return Seen(url, tuple(known), _ahead(answer.date, now))


async def software(url: str) -> str | None:
    """What the homeserver runs, as `Synapse 1.163.2`; None when it does not say (where it does not federate)."""
    try:
        answer = await _ask(f"{url}/_matrix/federation/v1/version")
    except NodeError:
        return None
    server = (answer.body or {}).get("server")
    told = cast("dict[str, Any]", server) if isinstance(server, dict) else {}
    words = [told.get("name"), told.get("version")]
    return plain(" ".join(word for word in words if isinstance(word, str)), 60) or None


async def name_of(url: str) -> str | None:
    """The name in its users' ids, as it signs events; None when it does not say (where it does not federate)."""
    try:
        answer = await _ask(f"{url}/_matrix/key/v2/server")
    except NodeError:
        return None
    name = (answer.body or {}).get("server_name")
    return name if answer.status == OK and isinstance(name, str) and SERVER_NAME.fullmatch(name) else None


async def _ask(url: str, redirects: int = 0) -> _Answer:
    """One GET. Raises NodeError when nothing answers in time, or with too much."""
    import httpx2

    try:
        async with (
            asyncio.timeout(ASK_S),
            httpx2.AsyncClient(timeout=None, trust_env=False, max_redirects=max(redirects, 1)) as client,
            client.stream("GET", url, follow_redirects=redirects > 0) as response,
        ):
            if any(step.url.scheme != response.url.scheme for step in response.history):
                raise NodeError(f"{url} leads from {SECURE} to http or back; give the homeserver's address instead")
            body = await _body(response)
            return _Answer(response.status_code, body, response.headers.get("date"))
    except TimeoutError:
        raise NodeError(f"{url} gives no answer within {ASK_S:g} s; check the address and the network") from None
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError, ValueError) as error:
        reason = plain(str(error)) or type(error).__name__
        raise NodeError(f"{url} cannot be reached: {reason}; check the address and the network") from None


async def _body(response: Any) -> dict[str, Any] | None:  # noqa: ANN401 - httpx2's, which is imported late
    data = b""
    async for part in response.aiter_bytes():
        data += part
        if len(data) > MAX_ANSWER:
            return None
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _ahead(date: str | None, now_ms: int) -> int | None:
    try:
        return int(parsedate_to_datetime(date or "").timestamp() * 1000) - now_ms
    except (ValueError, TypeError, OverflowError):
        return None
