"""`mesh redact`: take back what was said. The act stays in its place; its words are forgotten."""

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodes.commands.common import add_home, add_json, home_of, mesh_of, print_json

if TYPE_CHECKING:
    from mesh.entries import Entry
    from mesh.store import Store
    from nodes.home import Home

RECENT: Final = 200  # acts of each basin in which `last` looks for the person's own words


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Take back what you or one of your ems said. Its words, those of its edits and the prompts they were in are"
        " erased from the node and its stream; copies that others have made, and archives, are out of its reach."
    )
    parser.add_argument(
        "act", metavar="ACT", help="an act's id, its first digits (6 or more), or last: what you said last"
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for whoever reads that it was taken back")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from mesh.entries import find
    from mesh.words import plain
    from nodes.commands.assembly import connect
    from nodes.layout import lines, when
    from nodes.records import LAST, lookup, records

    home = home_of(options)
    with records(home) as store:
        entry = _own_last(home, store) if options.act.lower() == LAST else None
        identity = entry.act.id if entry else lookup(store, options.act)
        entry = entry or (find(store, identity) if store else None)
    async with connect(home) as client:
        act = await client.redact(identity.hex(), options.reason.strip())
    if entry is not None:
        untype(home.data / "chat_history", entry.act.text)
    if options.json:
        print_json(act)
    else:
        what = f"what {entry.act.author} said in {entry.basin}, {when(entry.act.at_ms)}" if entry else identity.hex()
        lines([act["id"], plain(f"Took back {what}")], 0)


def _own_last(home: "Home", store: "Store | None") -> "Entry":
    """What the person of this home said last, in any basin; others may have spoken since. Raises NodeError."""
    from mesh.entries import recent
    from nodes.errors import NodeError
    from nodes.records import SHOWN
    from protocol.husk import is_husk

    me, human = mesh_of(home), home.config().human
    basins = [basin for (basin,) in store.rows("SELECT DISTINCT basin FROM frames")] if store else []
    said = [
        entry
        for basin in basins
        for entry in (recent(store, basin, RECENT) if store else [])
        if (entry.mesh, entry.act.author) == (me, human) and entry.act.kind in SHOWN and not is_husk(entry.act)
    ]
    if not said:
        raise NodeError("you have said nothing of late; mesh basin show BASIN lists what was said, with its ids")
    return max(said, key=lambda entry: entry.n)


def untype(path: Path, text: str) -> None:
    """Take a text out of the lines that were typed in `mesh chat`; nothing happens where it, or the file, is not."""
    from nodes.disk import write_private

    with contextlib.suppress(FileNotFoundError):
        typed = path.read_text("utf-8", "surrogateescape")
        entries = [entry.strip("\n") for entry in typed.split("\n\n")]  # as prompt_toolkit divides them
        kept = [entry for entry in entries if _typed(entry) != text.strip()]
        if len(kept) < len(entries):
            write_private(path, "".join(f"\n{entry}\n" for entry in kept).encode("utf-8", "surrogateescape"))


def _typed(entry: str) -> str:
    """The text of an entry: below its time, each line behind a plus sign."""
    return "\n".join(line[1:] for line in entry.split("\n") if line.startswith("+")).strip()
