"""`mesh matrix register`: the node as an appservice of a homeserver. Shows no secret."""

import argparse
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodes.commands.common import home_of, print_json
from nodes.commands.matrix_login import owner_of, who_invites
from nodes.errors import NodeError

if TYPE_CHECKING:
    from mesh.bridges.matrix.registration import Registration
    from nodes.home import Home
    from nodes.matrix.login import Listening, Login

MAX_PORT: Final = 65_535
EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - addresses to listen on, at which nobody is reached
PREFIX: Final = re.compile(r"_[a-z0-9_.-]{0,30}_")


async def register(options: argparse.Namespace) -> None:
    """Make tokens, keep them, and write the file for the homeserver."""
    from mesh.bridges.matrix.registration import PREFIX as USUAL
    from mesh.bridges.matrix.registration import new_registration
    from nodes.disk import write_private
    from nodes.matrix.login import REGISTRATION_FILE, Login, write_login

    home = home_of(options)
    file = home.path / REGISTRATION_FILE
    listening, owner = _listening(options.listen), owner_of(options.owner)
    url, prefix = _reached(options.url, listening), options.prefix or USUAL
    if not PREFIX.fullmatch(prefix):
        raise NodeError("--prefix begins and ends with _ and has a-z, 0-9, _, . and - between, as in _mesh2_")
    if not options.force:
        _require_none(home, file)
    homeserver, name = await _server(options)
    try:
        made = new_registration(url, name, prefix)
    except ValueError as error:
        raise NodeError(str(error)) from None
    if prefix != USUAL:  # another node on the same homeserver
        made = replace(made, id=f"ampmesh-{prefix.strip('_')}")
    before = _before(home, force=options.force) or Login(homeserver)
    after = replace(before, homeserver=homeserver, registration=made, listening=listening, owner=owner or before.owner)
    write_private(file, made.text().encode())
    write_login(home.keys, after)
    _tell_registered(options, file, made, after)


def _require_none(home: "Home", file: Path) -> None:
    """Raise NodeError when there is a registration that a new one would make void."""
    from nodes.matrix.login import read_login

    login = read_login(home.keys)
    if login is not None and login.registration is not None:
        raise NodeError(
            f"this home has a registration already, for {login.registration.server_name}; a new one has new tokens,"
            " which the homeserver must read before it knows this node again; if you want that: --force"
        )
    if file.exists():
        raise NodeError(f"{file} is there already; move it away, or replace it with --force")


def _before(home: "Home", *, force: bool) -> "Login | None":
    """The login so far; with `force` a damaged one is none. Raises NodeError."""
    from nodes.matrix.login import read_login

    try:
        return read_login(home.keys)
    except NodeError:
        if force:
            return None
        raise


async def _server(options: argparse.Namespace) -> tuple[str, str]:
    """The homeserver's address, and the name in its users' ids."""
    from mesh.clock import now_ms
    from nodes.matrix import homeserver

    url = await homeserver.find(options.homeserver)
    await homeserver.look(url, now_ms)
    known, given = await homeserver.name_of(url), options.server_name
    if known and given and known != given:
        raise NodeError(f"the homeserver at {url} is called {known}, which is what --server-name must say")
    name = known or given
    if name is None:
        raise NodeError(
            "the homeserver does not say what it is called; give --server-name NAME: what stands after the colon in"
            " its users' ids, and as `server_name` in Synapse's homeserver.yaml"
        )
    return url, name


def _tell_registered(options: argparse.Namespace, file: Path, made: "Registration", login: "Login") -> None:
    from nodes.home import at_home
    from nodes.layout import lines

    if options.json:
        told = {"registration": str(file), "url": made.url, "server_name": made.server_name, "owner": login.owner}
        print_json(told | {"bot": f"@{made.bot}:{made.server_name}"})
        return
    there, here = f"/etc/matrix-synapse/{file.name}", at_home(file.parent)
    lines([f"{file} is ready. It holds tokens: whoever reads it can be your ems."], 0)
    lines(
        [  # not broken on a terminal: it is copied from there
            "",
            "1. Put a copy where Synapse can read it, and nobody else:",
            f"     sudo install -m 600 -o matrix-synapse {file} {there}",
            "2. Name it in Synapse's homeserver.yaml, on lines of their own:",
            "     app_service_config_files:",
            f"       - {there}",
            "3. Restart Synapse, for instance: sudo systemctl restart matrix-synapse",
            "4. Start this node, or restart it; then see whether all is well:",
            f"     mesh matrix doctor{here}",
            "5. Bring a basin and its ems into a room:",
            f"     mesh matrix join lounge:{made.server_name} --basin yappings{here}",
            "",
        ]
    )
    lines([f"Synapse reaches this node at {made.url}. {who_invites(login)}"], 0)


def _listening(text: str) -> "Listening":
    """Where to listen, out of `HOST:PORT`. Raises NodeError."""
    from nodes.matrix.login import Listening

    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port[:6]) <= MAX_PORT:
        raise NodeError(f"--listen {text[:80]!a} is no HOST:PORT, such as 127.0.0.1:29318")
    return Listening(host, int(port))


def _reached(url: str | None, listening: "Listening") -> str:
    """Where the homeserver reaches us. Raises NodeError."""
    from nodes.matrix.homeserver import base_url

    if url is not None:
        return base_url(url)
    if listening.host in EVERYWHERE:
        raise NodeError("with --listen on every address, --url says at which of them the homeserver reaches this node")
    host = f"[{listening.host}]" if ":" in listening.host else listening.host
    return f"http://{host}:{listening.port}"
