"""`mesh who`: the ems here, the peers, and which of theirs are awake."""

import argparse
from typing import Any, Final

from nodes.commands.common import add_home, add_json, home_of, print_json

HANG: Final = 10  # columns before what is told
_STATES: Final = (("awake", True), ("asleep", False))


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Your ems, and every peer: here now or last seen when, their ems, what you share."
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from nodes.commands.assembly import connect
    from nodes.layout import lines

    async with connect(home_of(options)) as client:
        told = await client.request("who", {})
    if options.json:
        print_json(told)
        return
    ems = ", ".join(_em(em) for em in told["ems"]) or "none"
    shown = [f"{told['name']}  {told['fingerprint']}  you", f"  ems     {ems}"]
    for one in told["peers"]:
        shown += ["", *_peer(one)]
    lines(shown, HANG)
    lines(introduced(told["introduced"]), 0)


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


def _peer(peer: dict[str, Any]) -> list[str]:
    """A peer, line by line."""
    return [
        f"{peer['name']}  {peer['fingerprint']}  {_presence(peer)}",
        f"  ems     {_ems(peer)}",
        f"  shared  {' '.join(peer['basins']) or '-'}",
    ]


def _ems(peer: dict[str, Any]) -> str:
    named = {state: ", ".join(em["name"] for em in peer["ems"] if em["awake"] is awake) for state, awake in _STATES}
    return "; ".join(f"{state}: {names}" for state, names in named.items() if names) or "-"
