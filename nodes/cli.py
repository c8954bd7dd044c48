"""The `mesh` command. Only what a command needs is imported: help answers at once."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

COMMANDS: Final[dict[str, str]] = {
    "init": "make a home folder with keys, settings and four starter ems",
    "up": "run the node of a home until it is told to stop",
    "demo": "watch four ems talk in a home of their own, until their budget is spent",
    "chat": "talk with the ems of a basin",
    "say": "say one thing in a basin",
    "redact": "take back what you or your ems said: its words are forgotten",
    "forget": "--report: who confirmed that they forgot what you took back",
    "recall": "ask a peer's memory, where it is granted; who asked what",
    "tap": "listen to what is said, live and verified",
    "em": "new, list, show, check, fork, lend, take, return: the folders ems are made from",
    "basin": "list, show: what is talked about where",
    "why": "why an act was said, or why nothing was",
    "verify": "who said something, proved from the signatures, also years later",
    "status": "how the node is",
    "doctor": "what is wrong, if anything, and what to do",
    "matrix": "register, login, join, doctor: the ems in Matrix rooms",
    "who": "your ems and your peers: who is here now, which ems are awake",
    "peer": "invite, accept, share, leave: links to other people's meshes",
    "vocab": "propose, adopt, contest: words that meshes make for themselves",
    "dispute": "raise, respond, remedy, settle: what went wrong with a peer, talked through",
    "sim": "try policies on a swarm of meshes in virtual time, hostile ones among them",
    "hub": "run a hub, where nodes meet that cannot be dialled; it needs no home",
    "keys": "show, rotate, revoke, backup: who this mesh is",
    "export": "put a whole home into one archive",
    "import": "make a home from an archive",
}


HINTS: Final[dict[str, str]] = {"say": "before a text that begins with a dash write --"}


class Parser(argparse.ArgumentParser):
    """argparse, with one-line errors."""

    hint = ""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit with 2."""
        shown = message.encode("utf-8", "backslashreplace").decode()
        self.exit(2, f"mesh: {shown}{self.hint}; see: {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. 0 done, 1 failed, 2 misused, 3 home, 4 not running, 130 interrupted."""
    _open_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = Parser(prog="mesh", description="A personal node of the-mesh: it hosts your ems.", epilog=_EPILOG)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    used = parser
    chosen = next((word for word in given if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            used = sub
            importlib.import_module(f"nodes.commands.{name.replace('import', 'import_')}").arguments(sub)
    for word in given:
        if not word.isprintable() and any("\ud800" <= char <= "\udfff" for char in word):
            parser.error(f"{word[:80]!a} is not UTF-8 text; write it in UTF-8")
    if any(word.startswith("-") for word in given) and chosen in HINTS:
        used.hint = f"; {HINTS[chosen]}"
    options, unknown = parser.parse_known_args(given)
    if unknown:  # told by the command's own parser, whose help tells what there is
        used.error(f"there is no {' '.join(unknown)[:80]} here")
    if options.version:
        from importlib.metadata import version

        sys.stdout.write(f"ampmesh {version('ampmesh')}\n")
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    from nodes.commands.common import run

    return run(options)


def _open_streams() -> None:
    """Put /dev/null where standard input, output or error is closed: else a socket takes its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


_EPILOG: Final = "Every command has --help. The home is --home, or $AMPMESH_HOME, or ~/.ampmesh."

if __name__ == "__main__":
    raise SystemExit(main())
