"""`mesh tap`: listen, live; every line is verified here."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from nodes.commands.common import add_home, add_json, count, home_of, print_json

if TYPE_CHECKING:
    from nodes.client import Client
    from nodes.commands.follow import Record
    from nodes.terminal import Screen


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("basin", nargs="?", metavar="BASIN", help="one basin (default: all)")
    parser.add_argument("--last", type=count, default=0, metavar="N", help="first the newest N that were said before")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from nodes.commands.follow import Follower
    from nodes.commands.logs import configure
    from nodes.terminal import Screen

    configure(os.environ.get("AMPMESH_LOG", "error"))  # the tap itself says when the node goes and comes
    home = home_of(options)
    tap = _Tap(home.mesh_id(), None if options.json else Screen(sys.stdout), Screen(sys.stderr), options.basin is None)
    try:
        await Follower(home, options.basin, tap).run(options.last)
    finally:
        tap.count()


class _Tap:
    """Prints acts on stdout, and what there is to say about the listening itself on stderr."""

    def __init__(self, mesh: str, screen: "Screen | None", notes: "Screen", basins: bool) -> None:  # noqa: FBT001 - of one caller
        """`screen` None prints JSON; `basins` shows where things are said."""
        self._mesh, self._screen, self._notes, self._basins = mesh, screen, notes, basins
        self._gone = False
        self._counts = self._counted = (0, 0)

    def joined(self, client: "Client") -> None:
        """Say that the node is back, if it was away."""
        del client
        if self._gone:
            self._note("the node is back")
        self._gone = False

    def away(self) -> None:
        """Say that the node is away."""
        self._gone = True
        self._note("the node is away; waiting for it (Ctrl-C ends)")

    def hear(self, record: "Record") -> None:
        """Print an act."""
        from nodes.terminal import Said

        if self._screen is None:
            print_json(record)
        else:
            self._screen.write(self._screen.act(Said.of(record, self._mesh, basin=self._basins)))

    def writing(self, record: "Record") -> None:
        """Nothing: the whole act will come."""

    def beat(self, status: "Record", missed: int, refused: int) -> None:
        """Count what could not be shown; the first of it is worth a line at once."""
        del status
        first = self._counts == (0, 0)
        self._counts = (missed, refused)
        if first:
            self.count()

    def count(self) -> None:
        """Say what could not be shown, if anything was not and it was not said yet."""
        if self._counts == self._counted:
            return
        self._counted = self._counts
        missed, refused = self._counts
        self._note(f"not shown so far: {refused} that did not verify, {missed} that came faster than they were read")

    def _note(self, text: str) -> None:
        self._notes.write(self._notes.note(f"— {text} —"))
