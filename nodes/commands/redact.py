"""`mesh redact`: take back what was said. The act stays in its place; its words are forgotten."""

import argparse
import contextlib
import sys
from pathlib import Path

from nodes.commands.common import add_home, add_json, home_of, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Take back what you or one of your ems said. Its words, those of its edits and the prompts they were in are"
        " erased from the node and its stream; copies that others have made, and archives, are out of its reach."
    )
    parser.add_argument("act", metavar="ACT", help="an act's id, its first digits (6 or more), or last")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for whoever reads that it was taken back")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from mesh.entries import find
    from nodes.commands.assembly import connect
    from nodes.records import lookup, records

    home = home_of(options)
    with records(home) as store:
        identity = lookup(store, options.act)
        entry = find(store, identity) if store else None
    async with connect(home) as client:
        act = await client.redact(identity.hex(), options.reason.strip())
    if entry is not None:
        untype(home.data / "chat_history", entry.act.text)
    if options.json:
        print_json(act)
    else:
        sys.stdout.write(f"{act['id']}\n")


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
