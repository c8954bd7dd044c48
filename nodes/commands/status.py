"""`mesh status`: how the node is."""

import argparse
from typing import TYPE_CHECKING, Any

from nodes.commands.common import add_home, add_json, home_of, print_json

if TYPE_CHECKING:
    from nodes.commands.reach import Reached

NOT_RUNNING = 4  # as NotRunning, which is not raised here: the last known numbers are shown too

HANG = 10  # columns before what is told


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Show how the node is. The exit code is 4 when none is running."
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> int:
    from nodes.commands.reach import reach
    from nodes.layout import lines
    from nodes.records import numbers, records

    home = home_of(options)
    reached = await reach(home)
    if reached.status is not None:
        if options.json:
            print_json({**_place(reached), **reached.status})
        else:
            lines(_told(reached, reached.status), HANG)
        return 0
    with records(home) as store:
        last = numbers(store)
    if options.json:
        print_json({**_place(reached), "why": reached.why, **last})
    else:
        lines([_sentence(reached.why), f"What it knew last: {_counts(last)}."], 0)
    return NOT_RUNNING


def _place(reached: "Reached") -> dict[str, Any]:
    running = reached.running
    return {
        "running": reached.status is not None,
        "pid": running.pid if running else None,
        "since_ms": running.started_ms if running else None,
        "bus": running.url if running else None,
    }


def _told(reached: "Reached", status: dict[str, Any]) -> list[str]:
    from nodes.layout import when

    place = _place(reached)
    return [
        f"{status['name']} is running since {when(place['since_ms'])}, process {place['pid']}, bus {place['bus']}.",
        f"Ems:      {', '.join(status['ems']) or 'none'}",
        f"Writing:  {', '.join(status['speaking']) or 'nobody'}",
        f"Basins:   {', '.join(status['basins']) or 'none'}",
        f"Numbers:  {_counts(status)}",
    ]


def _counts(of: dict[str, Any]) -> str:
    return (
        f"{of['acts']:,} acts kept, {of['waiting']:,} waiting to be sent, {of['missing']:,} frames missing,"
        f" {of['refused']:,} refused"
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
