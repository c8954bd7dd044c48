"""`mesh init`: make a home."""

import argparse
import getpass
import sys
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="the home folder (default: ~/.ampmesh)")
    parser.add_argument("--name", help="what to call this mesh (default: your user name)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from nodes.home import as_name, at_home, create_home, default_home

    path: Path = options.dir or default_home()
    kept = (path / "keys").exists()
    home = create_home(path, as_name(options.name or _user()), now_ms)
    there = at_home(path)
    ems = ", ".join(sorted(folder.name for folder in home.ems.iterdir()))
    secrets = "your keys as they were" if kept else "secrets in keys/ (keep a copy)"
    sys.stdout.write(
        f"{home.path} is ready: settings in mesh.yaml, ems in ems/ ({ems}), {secrets}.\n"
        f"Next:  mesh up{there}      in one terminal\n"
        f"       mesh chat{there}    in another\n"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "home"
