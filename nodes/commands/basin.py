"""`mesh basin`: what is talked about where. Reads the node's database, whether or not the node runs."""

import argparse
from typing import TYPE_CHECKING, Any

from nodes.commands.common import add_home, add_json, count, home_of, mesh_of, print_json

if TYPE_CHECKING:
    from mesh.entries import Entry
    from nodes.config import MeshConfig
    from nodes.em import Em
    from nodes.home import Home
    from nodes.records import Talk

HANG = 4  # columns before what does not fit on an act's first line
LAST = 20  # acts that `show` shows: a screenful


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    every = actions.add_parser("list", help="all basins", description="Show all basins, who listens, what was said.")
    every.set_defaults(run=_list)
    text = "the newest acts of a basin, and its budget"
    show = actions.add_parser("show", help=text, description=f"Show {text}.")
    show.add_argument("basin", metavar="BASIN")
    show.add_argument("--last", type=count, default=LAST, metavar="N", help=f"how many acts (default: {LAST})")
    show.set_defaults(run=_show)
    for action in (every, show):
        add_home(action)
        add_json(action)


def _list(options: argparse.Namespace) -> None:
    from nodes.em import load_ems
    from nodes.layout import lines, table, when
    from nodes.records import records, talks

    home = home_of(options)
    config = home.config()
    ems, _ = load_ems(home.ems)
    with records(home) as store:
        kept = talks(store)
    names = sorted({*config.basins, *kept, *(basin for em in ems for basin in em.settings.basins)})
    rows = [_about(name, config, ems, kept.get(name)) for name in names]
    if options.json:
        print_json({"basins": rows})
        return
    shown = [
        [row["basin"], f"{row['acts']:,}", when(row["last_ms"]), " ".join(row["listeners"]) or "nobody"] for row in rows
    ]
    lines(table(["BASIN", "ACTS", "LAST", "LISTENERS"], shown))


def _about(name: str, config: "MeshConfig", ems: "list[Em]", talk: "Talk | None") -> dict[str, Any]:
    """A basin as scripts see it."""
    from nodes.records import listeners

    return {
        "basin": name,
        "acts": talk.acts if talk else 0,
        "last_ms": talk.last_ms if talk else None,
        "listeners": listeners(config, ems, name),
        "budget": config.basin(name).budget.model_dump(),
    }


def _show(options: argparse.Namespace) -> None:
    from mesh.entries import recent
    from nodes.em import load_ems
    from nodes.errors import NodeError
    from nodes.layout import lines
    from nodes.records import records, talks
    from protocol.address import check_name

    home, basin = home_of(options), check_name(options.basin)
    config = home.config()
    ems, _ = load_ems(home.ems)
    with records(home) as store:
        kept = talks(store)
        entries = recent(store, basin, options.last) if store else []
    about = _about(basin, config, ems, kept.get(basin))
    if not entries and basin not in {*kept, *config.basins} and not about["listeners"]:
        raise NodeError(f"there is no basin {basin} here; mesh basin list shows those that are")
    if options.json:
        print_json({**about, "recent": _as_json(entries)})
    else:
        lines([*_head(about), *_said(entries, home)], HANG)


def _as_json(entries: "list[Entry]") -> list[dict[str, Any]]:
    from nodes.control import shown
    from nodes.records import texts

    return [{**shown(entry), "text": text} for entry, text in zip(entries, texts(entries), strict=True)]


def _head(about: dict[str, Any]) -> list[str]:
    from nodes.layout import counted

    budget = about["budget"]
    start = f"{budget['hops']} hops, {budget['acts']} acts, {budget['tokens']:,} tokens, {budget['minutes']:g} minutes"
    return [
        f"{about['basin']}: {counted(about['acts'], 'act')}, heard by {', '.join(about['listeners']) or 'no em here'}",
        f"A message of yours starts with {start}.",
    ]


def _said(entries: "list[Entry]", home: "Home") -> list[str]:
    from mesh.words import plain
    from nodes.layout import when
    from nodes.records import GONE, texts
    from protocol.keys import fingerprint

    own = mesh_of(home)
    told = [""] if entries else []
    for entry, text in zip(entries, texts(entries), strict=True):
        act = entry.act
        kind = "" if act.kind == "say" else f" ({act.kind})"
        author = act.author if own in {None, entry.mesh} else f"{act.author}~{fingerprint(entry.mesh)}"
        told.append(f"{when(act.at_ms)}  {act.id.hex()}  {author}{kind}: {GONE if text is None else plain(text)}")
    return told
