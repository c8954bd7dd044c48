"""What may be wrong between this node and its homeserver: one check each, what was found and what to do about it.

Every question has a time limit; whatever answers, and however wrongly, ends in a line.
"""

import asyncio
import ipaddress
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

from mesh.bridges.matrix.account import Session
from mesh.bridges.matrix.api import Access, Api
from mesh.bridges.matrix.errors import MatrixError, MatrixLoggedOut, MatrixRefused
from mesh.bridges.matrix.registration import Registration
from mesh.clock import Clock
from mesh.words import plain
from nodes.doctor import Check
from nodes.errors import NodeError
from nodes.home import Home
from nodes.matrix import homeserver
from nodes.matrix.login import FILE, REGISTRATION_FILE, Login
from nodes.matrix.names import names

CLIENT: Final = ("client", "v3")
SKEW_MS: Final = 60_000  # a homeserver this far off dates messages so that they are taken for old, or for future
LEFT: Final = "it left"  # the reason of those who were told to leave
PING_S: Final = 20.0  # the homeserver itself tries for a while
MAX_FILE: Final = 1 << 16  # bytes of a registration; ours has seven hundred


async def check_homeserver(url: str, clock: Clock) -> list[Check]:
    """Whether the homeserver answers, what it is, and whether its clock agrees with ours."""
    try:
        seen = await homeserver.look(url, clock)
    except NodeError as error:
        return [Check("homeserver", "fail", str(error))]
    runs = await homeserver.software(url) or "a homeserver"
    newest = f", Matrix {seen.versions[-1]}" if seen.versions else ""
    checks = [Check("homeserver", "ok", f"{url} answers: {runs}{newest}")]
    if _is_open(url):
        told = f"{url} is reached without encryption, so others on the way can read tokens and words; use https"
        checks.append(Check("homeserver", "warn", told))
    return [*checks, _clock(seen.ahead_ms)]


def _is_open(url: str) -> bool:
    """Whether what is sent to an address travels readably through networks that are not ours."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == homeserver.SECURE:
        return False
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host


def _clock(ahead_ms: int | None) -> Check:
    if ahead_ms is None:
        return Check("clock", "warn", "the homeserver tells no time, so clocks cannot be compared")
    seconds = abs(ahead_ms) // 1000
    if abs(ahead_ms) > SKEW_MS:
        where = "ahead of" if ahead_ms > 0 else "behind"
        told = f"the homeserver's clock is {seconds:,} s {where} this machine's; set the one that is wrong"
        return Check("clock", "warn", f"{told}: messages seem too old to be answered, or of tomorrow")
    return Check("clock", "ok", f"it differs by {seconds} s from the homeserver's")


def check_files(home: Home, login: Login) -> list[Check]:
    """Whether the files with tokens are private, and the registration says what we use."""
    own, file = home.keys / FILE, home.path / REGISTRATION_FILE
    checks = [Check("login", "warn", _readable(path)) for path in (own, file) if path.exists() and not _private(path)]
    if login.registration is None:
        return checks or [Check("login", "ok", f"{own} is private")]
    if not file.exists():
        told = f"{file} is not here, so it cannot be compared; the homeserver has its own copy of it"
        return [*checks, Check("registration", "warn", told)]
    return [*checks, _registration(file, login.registration)]


def _private(path: Path) -> bool:
    return os.name != "posix" or not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def _readable(path: Path) -> str:
    return f"{path} holds tokens, and other people on this machine can read it; run: chmod 600 {path}"


def _registration(file: Path, ours: Registration) -> Check:
    """Whether the file is what we would write. JSON alone is read: that is how it was written."""
    try:
        with file.open("rb") as opened:
            value: object = json.loads(opened.read(MAX_FILE))
    except (OSError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        told = f"{file} was rewritten, so it cannot be compared with keys/{FILE}; whether it counts, `token` tells"
        return Check("registration", "warn", told)
    found, wanted = cast("dict[str, Any]", value), ours.document()
    differing = sorted(key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key))
    if differing:
        told = f"{file} differs from keys/{FILE} in {plain(', '.join(differing))}; make both anew: "
        return Check("registration", "fail", f"{told}mesh matrix register … --force")
    return Check("registration", "ok", f"{file} says what keys/{FILE} says")


def check_limits(login: Login) -> list[Check]:
    """Whether the homeserver slows us down."""
    checks = list[Check]()
    if login.registration is not None:
        checks.append(Check("limits", "ok", "the registration lifts the homeserver's rate limits for all ems"))
    slow = [session.user_id for session in (login.account, *login.own.values()) if session]
    if slow and (login.registration is None or login.own):
        told = (
            f"{plain(', '.join(slow))}: homeservers allow an ordinary account few messages (Synapse: 10, then one in"
            " 5 s); the node waits as it is told; the operator can lift that (docs/matrix.md)"
        )
        checks.append(Check("limits", "warn", told))
    return checks


async def check_tokens(login: Login) -> list[Check]:
    """Whether the homeserver knows our tokens, and as whom."""
    checks = list[Check]()
    if login.registration is not None:
        made = login.registration
        found = await _whoami(login.homeserver, made.as_token)
        checks.append(Check("token", *_appservice(found, f"@{made.sender}:{made.server_name}")))
    elif login.account is not None:
        checks.append(Check("token", *_account(await _whoami_of(login.account), login.account, "")))
    for em, session in sorted(login.own.items()):
        checks.append(Check(f"token of {em}", *_account(await _whoami_of(session), session, f" --em {em}")))
    return checks


def _appservice(found: str | MatrixError, user: str) -> tuple[Any, str]:
    if isinstance(found, MatrixLoggedOut):
        return "fail", (
            f"the homeserver does not know the token: name {REGISTRATION_FILE} in its app_service_config_files, and"
            " restart it; after `register --force` it needs the new file"
        )
    if isinstance(found, MatrixError):
        return "fail", f"{found}; see the homeserver's log"
    if found != user:
        return "fail", (
            f"the homeserver takes the node for {plain(found)}, and {user} was registered; make the registration anew"
            f" with --force --server-name {plain(found.partition(':')[2], 80)}"
        )
    return "ok", f"the homeserver knows the node as {user}"


def _account(found: str | MatrixError, session: Session, which: str) -> tuple[Any, str]:
    again = f"mesh matrix login {session.homeserver} {plain(session.user_id)}{which}"
    if isinstance(found, MatrixLoggedOut):
        return "fail", f"the session of {plain(session.user_id)} is over; log in again: {again}"
    if isinstance(found, MatrixError):
        return "fail", f"{session.homeserver}: {found}"
    if found != session.user_id:
        return "fail", f"the token of {plain(session.user_id)} is now that of {plain(found)}; log in again: {again}"
    return "ok", f"{plain(found)} is logged in at {session.homeserver}"


async def _whoami_of(session: Session) -> str | MatrixError:
    return await _whoami(session.homeserver, session.token)


async def _whoami(url: str, token: str) -> str | MatrixError:
    api = Api(Access(url, token))
    try:
        user = (await api.call("GET", (*CLIENT, "account", "whoami"), timeout_s=homeserver.ASK_S)).get("user_id")
    except MatrixError as error:
        return error
    finally:
        await api.close()
    return user if isinstance(user, str) else MatrixError("the homeserver does not say whose the token is")


async def check_push(login: Login, *, running: bool) -> list[Check]:
    """Whether the homeserver reaches us, which it tries when asked. Nothing for an account, which asks itself."""
    made = login.registration
    if made is None:
        return []
    if not running:
        told = f"whether the homeserver reaches {made.url} shows when the node runs; start it with: mesh up"
        return [Check("push", "warn", told)]
    api = Api(Access(login.homeserver, made.as_token))
    try:
        async with asyncio.timeout(PING_S):
            answer = await api.call("POST", ("client", "v1", "appservice", made.id, "ping"), {})
    except MatrixRefused as error:
        if error.code == "M_UNRECOGNIZED":
            return [
                Check("push", "warn", "the homeserver knows no pings (Matrix v1.7); whether it pushes cannot be seen")
            ]
        return [Check("push", "fail", f"the homeserver will not try to reach the node: {error}")]
    except MatrixLoggedOut:
        return [Check("push", "warn", f"whether the homeserver reaches {made.url} shows when it knows the token")]
    except (MatrixError, TimeoutError) as error:
        told = str(error) or f"the homeserver did not say within {PING_S:g} s"
        advice = "check --url and --listen of mesh matrix register, and what is between"
        return [Check("push", "fail", f"from the homeserver, {made.url} is not the node: {told}; {advice}")]
    finally:
        await api.close()
    took = answer.get("duration_ms")
    return [Check("push", "ok", f"the homeserver reaches {made.url}" + (f" in {took} ms" if type(took) is int else ""))]


def check_bridge(status: Mapping[str, Any]) -> list[Check]:
    """What the running node says of its bridge (its answer to `matrix_status`)."""
    problems = [Check("bridge", "warn", plain(str(one))) for one in _listed(status.get("problems"))]
    waiting = f"{status.get('waiting_in', 0)} events in and {status.get('waiting_out', 0)} out are waiting"
    if status.get("ready") is not True:
        return [Check("bridge", "fail", f"it is not ready; {waiting}; see the node's log"), *problems]
    return [Check("bridge", "ok", f"it is ready; {waiting}"), *problems]


def check_rooms(rooms: Iterable[Mapping[str, Any]]) -> list[Check]:
    """What the running node says of its rooms (its answer to `matrix_rooms`): encryption, and who was put out."""
    checks, rooms = list[Check](), list(rooms)
    known = names(rooms)
    for room in rooms:
        name = known.get(room["room"]) or plain(f"{room['name']} ({room['room']})" if room["name"] else room["room"])
        members = _listed(room["members"])
        here = [one["em"] for one in members if one["state"] == "joined" and not one["em"].startswith("_")]
        how = "encrypted" if room["encrypted"] else "not encrypted"
        basin, links = room["basin"], room.get("links")
        told = f"{name} is {basin or 'no basin'}, {how}, with {', '.join(sorted(here)) or 'no em'}"
        told += "; peers are met there" if links else ""
        is_sealed = links and room["encrypted"]  # which is of no use to links
        told += ", which takes one without encryption: mesh peer room" if is_sealed else ""
        checks.append(Check("room", "ok" if (here or links) and not is_sealed else "warn", plain(told)))
        checks += [
            Check("room", "warn", plain(f"{_who(one['em'])} is not in {name}: {one['reason'] or 'why is not known'}"))
            for one in members
            if one["state"] == "out" and one["reason"] != LEFT
        ]
    return checks or [
        Check("room", "warn", "there is none; bring a basin into one: mesh matrix join ROOM --basin BASIN")
    ]


def _who(em: str) -> str:
    """An em's name; that of the node's own user begins as no em's does."""
    return "the node" if em.startswith("_") else em


def _listed(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []
