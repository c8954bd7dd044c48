"""`mesh who`: the ems here, the peers, and which of theirs are awake."""

import argparse
from typing import Any

from nodes.commands.common import add_home, add_json, home_of, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Your ems, and every peer: here now or last seen when, their ems, what you share."
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from nodes.commands.assembly import connect
    from nodes.layout import lines, table

    async with connect(home_of(options)) as client:
        told = await client.request("who", {})
    if options.json:
        print_json(told)
        return
    ems = ", ".join(_em(em) for em in told["ems"]) or "no ems"
    lines([f"{told['name']}  {told['fingerprint']}  you: {ems}"])
    if told["peers"]:
        rows = [
            [one["name"], one["fingerprint"], _presence(one), _ems(one), " ".join(one["basins"]) or "-"]
            for one in told["peers"]
        ]
        lines(["", *table(["PEER", "KEY", "PRESENCE", "EMS", "SHARED"], rows)])
    lines(introduced(told["introduced"]))


def introduced(told: list[dict[str, Any]]) -> list[str]:
    """Lines about whom peers have introduced."""
    from mesh.words import plain
    from nodes.layout import when

    if not told:
        return []
    found = [
        plain(
            f"introduced by {one['by']}: {one['name']} ({one['fingerprint']}), until {when(one['expires_ms'])}"
            f"{': ' + one['text'] if one['text'] else ''}",
            800,
        )
        for one in told
    ]
    return ["", *found, "To link with one of them: mesh peer meet NAME. If not: mesh peer decline NAME"]


def _em(em: dict[str, Any]) -> str:
    return em["name"] if em["awake"] else f"{em['name']} (mute)"


def _presence(peer: dict[str, Any]) -> str:
    from nodes.layout import when

    state = "" if peer["state"] == "linked" else f"{peer['state']}, "
    if peer["here"]:
        return f"{state}here now"
    return f"{state}not seen yet" if peer["seen_ms"] is None else f"{state}last seen {when(peer['seen_ms'])}"


def _ems(peer: dict[str, Any]) -> str:
    return ", ".join(f"{em['name']} {'awake' if em['awake'] else 'asleep'}" for em in peer["ems"]) or "-"
