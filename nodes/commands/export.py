"""`mesh export`: a whole home in one file."""

import argparse
import sys
from pathlib import Path

from nodes.commands.common import add_home, add_json, home_of, print_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Put a whole home into one archive: settings, ems, keys, and everything that was said. It holds secrets. The"
        " node must not be running, since only then do its parts agree with one another."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the archive to write; never overwrites one")
    parser.add_argument(
        "--move", action="store_true", help="the mesh goes on elsewhere: `mesh up` refuses to run it here any more"
    )
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


_LEFT = "This home runs no more: two nodes with one key would contradict each other.\n"


def _run(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from nodes.transfer import export_home

    home = home_of(options)
    home.certificate()  # without one the archive would be a home that cannot speak
    moved = export_home(home, options.file, now_ms, leave=options.move)
    if options.json:
        print_json({"file": str(options.file), "name": moved.name, "files": moved.files, "bytes": moved.size})
        return
    sys.stdout.write(
        f"{options.file} holds the mesh {moved.name}: {moved.files:,} files, {moved.size:,} bytes.\n"
        "It holds all keys: whoever has this file can speak as you. Keep it where nobody else can read it.\n"
        "Files that mesh.yaml names outside the home folder are not in it.\n"
        f"{_LEFT if options.move else ''}"
        f"To restore it:  mesh import {options.file} DIR\n"
    )
