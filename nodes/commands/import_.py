"""`mesh import`: a home from an archive."""

import argparse
import sys
from pathlib import Path

from nodes.commands.common import add_json, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = "Make a home from an archive that `mesh export` wrote: all of it or nothing."
    parser.add_argument("file", type=Path, metavar="FILE", help="the archive")
    parser.add_argument("dir", type=Path, metavar="DIR", help="the new home folder; must not be there yet")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from mesh.words import plain
    from nodes.home import at_home
    from nodes.transfer import import_home

    home, moved = import_home(options.file, options.dir)
    if options.json:
        print_json({"home": str(home.path), "name": moved.name, "files": moved.files, "bytes": moved.size})
        return
    keys = home.data / "matrix"
    stale = f"If it has run since the archive was made, delete {keys}: old room keys must not be used again.\n"
    sys.stdout.write(
        f"{home.path} is ready: the mesh {plain(moved.name)}, {moved.files:,} files.\n"
        "Run it in one place only: two nodes with the same key would contradict each other.\n"
        f"{stale if keys.is_dir() else ''}"
        f"Next:  mesh up{at_home(options.dir)}\n"
    )
