"""`mesh say`: one act, for scripts and people in a hurry."""

import argparse
import sys

from nodes.commands.common import add_home, add_json, home_of, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("basin", metavar="BASIN")
    parser.add_argument("text", metavar="TEXT", help="what to say; - reads it from standard input")
    parser.add_argument("--answers", metavar="ACT", help="the id of the act that this answers")
    parser.add_argument("--kind", default="say", help="the act's kind (default: say)")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from nodes.commands.assembly import connect

    text = sys.stdin.read() if options.text == "-" else options.text
    async with connect(home_of(options)) as client:
        act = await client.say(options.basin, text.strip(), kind=options.kind, answers=options.answers)
    if options.json:
        print_json(act)
    else:
        sys.stdout.write(f"{act['id']}\n")
