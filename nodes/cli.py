"""The `mesh` command. Only what a command needs is imported: help answers at once."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

COMMANDS: Final[dict[str, str]] = {
    "init": "make a home folder with keys, settings and four starter ems",
    "up": "run the node of a home until it is told to stop",
    "demo": "watch four ems talk in a home of their own, until their budget is spent",
    "chat": "talk with the ems of a basin",
    "say": "say one thing in a basin",
    "tap": "listen to what is said, live and verified",
    "em": "new, list, check: the folders ems are made from",
    "basin": "list, show: what is talked about where",
    "why": "why an act was said, or why nothing was",
    "status": "how the node is",
    "doctor": "what is wrong, if anything, and what to do",
    "keys": "show, rotate: who this mesh is",
    "export": "put a whole home into one archive",
    "import": "make a home from an archive",
}


class Parser(argparse.ArgumentParser):
    """argparse, with one-line errors."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit with 2."""
        self.exit(2, f"mesh: {message}; see: {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. 0 done, 1 failed, 2 misused, 3 home, 4 not running, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="mesh", description="A personal node of the-mesh: it hosts your ems.", epilog=_EPILOG)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    chosen = next((word for word in given if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            importlib.import_module(f"nodes.commands.{name.replace('import', 'import_')}").arguments(sub)
    options = parser.parse_args(given)
    if options.version:
        from importlib.metadata import version

        sys.stdout.write(f"ampmesh {version('ampmesh')}\n")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    from nodes.commands.common import run

    return run(options)


_EPILOG: Final = "Every command has --help. The home is --home, or $AMPMESH_HOME, or ~/.ampmesh."

if __name__ == "__main__":
    raise SystemExit(main())
