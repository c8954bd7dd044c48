"""`mesh matrix rooms`: which rooms there are, who sits there, and who was put out."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mesh.words import plain
from nodes.commands.common import home_of, print_json
from nodes.commands.matrix import ask

MAX_NAME: Final = 28  # characters of a room's name: the other columns fit beside it, on 80 columns
NONE: Final = "There is no room yet. Bring a basin into one: mesh matrix join ROOM --basin BASIN"


async def rooms(options: argparse.Namespace) -> None:
    """Ask the node for its rooms, and show them."""
    from nodes.layout import lines

    told = await ask(home_of(options), "rooms", {})
    if options.json:
        print_json(told)
        return
    here, left = seated(told["rooms"]), gone(told["rooms"])
    if here:
        lines(here, here[0].index("EMS"))
    else:
        lines([NONE], 0)
    if left:
        lines(["", *left], left[0].index("WHY"))


def seated(rooms: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of all rooms, empty without any. A room's id stands below it where its name does not tell it apart."""
    from nodes.layout import table
    from nodes.matrix.names import names

    known = names(rooms)
    rows = [[_name(room), _basin(room), "yes" if room["encrypted"] else "no", _seats(room)] for room in rooms]
    if not rows:
        return []
    head, *body = table(["ROOM", "BASIN", "ENCRYPTED", "EMS"], rows)
    found = [head]
    for room, line in zip(rooms, body, strict=True):
        found += [line] if 0 < len(known.get(room["room"], "")) <= MAX_NAME else [line, f"  {plain(room['room'])}"]
    return found


def gone(rooms: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of who left which room, and why; empty when everybody is there."""
    from nodes.layout import table
    from nodes.matrix.names import names

    known = names(rooms)
    rows = [
        [
            _name(room) if room["room"] in known else room["room"],
            "the node" if one["em"].startswith("_") else one["em"],
            one["reason"] or "no reason is known",
        ]
        for room in rooms
        for one in room["members"]
        if one["state"] == "out"
    ]
    return table(["ROOM", "WHO LEFT", "WHY"], rows) if rows else []


def _name(room: Mapping[str, Any]) -> str:
    return plain(room["name"], MAX_NAME) or "(no name)"


def _basin(room: Mapping[str, Any]) -> str:
    return room["basin"] or ("(for links)" if room.get("links") else "-")


def _seats(room: Mapping[str, Any]) -> str:
    here = [one["em"] for one in room["members"] if one["state"] == "joined"]
    return " ".join(em for em in here if not em.startswith("_")) or "nobody"
