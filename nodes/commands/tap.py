"""`mesh tap`: listen, live; every line is verified here."""

import argparse

from nodes.commands.assembly import connect
from nodes.commands.common import add_home, add_json, home_of, print_json
from nodes.control import shown_act


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("basin", nargs="?", metavar="BASIN", help="one basin (default: all)")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    async with connect(home_of(options)) as client, client.listening(options.basin) as inbox:
        async for heard in inbox:
            if heard.kept:
                print_json({"basin": heard.basin, "mesh": heard.mesh, **shown_act(heard.act)})
