"""`mesh redact`: take back what was said. The act stays in its place; its words are forgotten."""

import argparse
import sys

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
    from nodes.commands.assembly import connect
    from nodes.records import lookup, records

    home = home_of(options)
    with records(home) as store:
        identity = lookup(store, options.act)
    async with connect(home) as client:
        act = await client.redact(identity.hex(), options.reason.strip())
    if options.json:
        print_json(act)
    else:
        sys.stdout.write(f"{act['id']}\n")
