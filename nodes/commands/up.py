"""`mesh up`: run a node in the foreground."""

import argparse
import os

from nodes.commands.common import add_home, home_of


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_home(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    import structlog

    from nodes.commands.assembly import serve
    from nodes.commands.logs import configure

    home = home_of(options)
    home.require_here()
    configure(os.environ.get("AMPMESH_LOG", home.config().log_level))
    if not home.data.exists():
        structlog.get_logger(__name__).warning(
            "data/ was missing and is made anew: what was said before is gone, and nothing brings it back"
        )
    await serve(home)
