"""`mesh chat`: talk with the ems of a basin, in a terminal or through pipes."""

import argparse
import os
import sys
from typing import Final

from nodes.commands.common import add_home, home_of

WAIT_S: Final = 5.0  # seconds of silence after which piped talk is over


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("basin", nargs="?", default="yappings", metavar="BASIN", help="where (default: yappings)")
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_S,
        metavar="SECONDS",
        help=f"when input is piped: leave after so long a silence (default: {WAIT_S:g})",
    )
    add_home(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from nodes.commands.logs import configure

    configure(os.environ.get("AMPMESH_LOG", "error"))  # a log line would tear the screen; the chat says what matters
    home = home_of(options)
    if all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        from nodes.commands.chat_screen import converse

        await converse(home, options.basin)
    else:
        from nodes.commands.chat_pipe import converse

        await converse(home, options.basin, options.wait)
