"""`mesh doctor`: what is wrong, if anything, and what to do."""

import argparse
from typing import TYPE_CHECKING

from nodes.commands.common import add_home, add_json, home_of, print_json

if TYPE_CHECKING:
    from nodes.config import MeshConfig
    from nodes.doctor import Check
    from nodes.home import Home


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Show what is wrong, if anything, and what to do. The exit code is 1 when something is."
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> int:
    from nodes.doctor import Check, check_installation, worst
    from nodes.errors import HomeError
    from nodes.layout import lines

    checks = check_installation()
    try:
        checks += await _home(home_of(options))
    except HomeError as error:
        checks.append(Check("home", "fail", str(error)))
    state = worst(checks)
    if options.json:
        print_json({"state": state, "checks": [check._asdict() for check in checks]})
    else:
        lines(_told(checks), 8 + max(len(check.name) for check in checks))
    return int(state == "fail")


def _told(checks: "list[Check]") -> list[str]:
    width = max(len(check.name) for check in checks)
    return [f"{check.state:<4}  {check.name:<{width}}  {check.told}" for check in checks]


async def _home(home: "Home") -> "list[Check]":
    from mesh.clock import now_ms
    from nodes import doctor, inspection
    from nodes.commands.vendors import model_problems
    from nodes.em import load_ems
    from nodes.errors import ConfigError

    checks = doctor.check_home(home)
    if doctor.worst(checks[:1]) == "fail":  # everything else would fail for the same reason
        return checks
    try:
        config = home.config()
    except ConfigError:  # told by check_settings
        config = None
    ems, problems = load_ems(home.ems)
    names = inspection.shared_names(ems, config.human if config else None)
    checks += [
        *doctor.check_keys(home),
        *doctor.check_certificate(home, now_ms()),
        *doctor.check_settings(home),
        *doctor.check_ems(ems, problems, names),
        doctor.check_clock(home, now_ms()),
        inspection.check_database(home),
        *await _node(home, config),
    ]
    if config is None:
        return checks
    checks += inspection.check_models(model_problems(config, ems))
    return [*checks, *await _vendors(home, config)]


async def _node(home: "Home", config: "MeshConfig | None") -> "list[Check]":
    from nodes.commands.reach import reach
    from nodes.doctor import Check, check_bus
    from nodes.inspection import check_changed

    reached = await reach(home)
    if reached.status is None or reached.running is None:
        checks = [Check("node", "warn" if reached.running is None else "fail", reached.why)]
    else:
        checks = [
            Check("node", "ok", f"it runs (process {reached.running.pid}) and answers"),
            *check_changed(home, reached.running),
        ]
    if config is not None:
        checks.append(check_bus(home, config.server.url, answering=reached.status is not None))
    return checks


async def _vendors(home: "Home", config: "MeshConfig") -> "list[Check]":
    """All vendors at once: each may take its time."""
    import asyncio
    from functools import partial

    from nodes.commands.vendors import vendor_key
    from nodes.doctor import check_vendor

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                check_vendor(name, vendor.base_url, partial(vendor_key, home, config, name, vendor)), name=name
            )
            for name, vendor in config.models.vendors.items()
        ]
    return [task.result() for task in tasks]
