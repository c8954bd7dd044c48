"""`mesh matrix doctor`: what is wrong between the node and its homeserver, and what to do."""

import argparse
from typing import TYPE_CHECKING, Any

from nodes.commands.common import home_of, print_json
from nodes.commands.matrix import NO_LOGIN, ask
from nodes.errors import NodeError

if TYPE_CHECKING:
    from nodes.doctor import Check
    from nodes.home import Home
    from nodes.matrix.login import Login


async def doctor(options: argparse.Namespace) -> int:
    """Check everything, and show it; returns 1 when something is wrong."""
    from nodes.doctor import Check, worst
    from nodes.layout import lines
    from nodes.matrix.login import read_login

    home = home_of(options)
    try:
        login = read_login(home.keys)
        checks = [Check("login", "fail", NO_LOGIN)] if login is None else await _checks(home, login)
    except NodeError as error:
        checks = [Check("login", "fail", str(error))]
    state = worst(checks)
    if options.json:
        print_json({"state": state, "checks": [check._asdict() for check in checks]})
    else:
        width = max(len(check.name) for check in checks)
        lines([f"{check.state:<4}  {check.name:<{width}}  {check.told}" for check in checks], 8 + width)
    return int(state == "fail")


async def _checks(home: "Home", login: "Login") -> "list[Check]":
    from mesh.clock import now_ms
    from nodes.matrix import doctor

    url = login.homeserver
    checks = doctor.check_files(home, login)
    about = await doctor.check_homeserver(url, now_ms)
    checks += about
    is_there = about[0].state != "fail"
    if is_there:
        checks += await doctor.check_tokens(login)
    node, rooms = await _node(home)
    if is_there:
        checks += await doctor.check_push(login, running=node[0].name != "node")
    return [*checks, *node, *await _rooms(login, rooms, is_there=is_there), *doctor.check_limits(login)]


async def _node(home: "Home") -> "tuple[list[Check], list[dict[str, Any]] | None]":
    """What the running node says of its bridge and rooms; the only check is `node` when none answers."""
    from mesh.errors import MeshError
    from nodes.doctor import Check
    from nodes.errors import NotRunning
    from nodes.matrix.doctor import check_bridge

    try:
        status = await ask(home, "status", {})
        return check_bridge(status), (await ask(home, "rooms", {}))["rooms"]
    except NotRunning as error:
        return [Check("node", "warn", str(error))], None
    except (NodeError, MeshError) as error:
        return [Check("node", "fail", str(error))], None


async def _rooms(login: "Login", rooms: "list[dict[str, Any]] | None", *, is_there: bool) -> "list[Check]":
    from mesh.bridges.matrix.api import Access
    from nodes.matrix.devices import check_devices, users_with_keys
    from nodes.matrix.doctor import check_rooms

    if rooms is None:
        return []
    made, account = login.registration, login.account
    token = made.as_token if made else account.token if account else ""
    users = users_with_keys(rooms) if is_there else []
    return [*check_rooms(rooms), *await check_devices(Access(login.homeserver, token), users)]
