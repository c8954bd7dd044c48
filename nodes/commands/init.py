"""`mesh init`: make a home."""

import argparse
import getpass
import sys
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="the home folder (default: ~/.ampmesh)")
    parser.add_argument("--name", help="what to call this mesh (default: your user name)")
    parser.add_argument(
        "--recover", type=Path, metavar="FILE", help="a mesh whose node was lost, from what `mesh keys backup` wrote"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from nodes.home import as_name, at_home, create_home, default_home

    path: Path = options.dir or default_home()
    if options.recover:
        _recover(options, path)
        return
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


def _recover(options: argparse.Namespace, path: Path) -> None:
    from mesh.clock import now_ms
    from nodes.backup import read_backup, recover
    from nodes.home import as_name, at_home

    backup = read_backup(options.recover)
    home = recover(path, backup, as_name(options.name or backup.name), now_ms)
    there = at_home(path)
    lost = "".join(f"       mesh keys revoke {node}{there}\n" for node in backup.nodes())
    sys.stdout.write(
        f"{home.path} is ready: the same mesh, {home.mesh_id()}, with a new node and {len(backup.peers):,} peers.\n"
        f"Next:  mesh up{there}      it asks your peers for what was agreed on, and for what was said\n"
        "If the lost machine may be in other hands, run this first; what it signed is then believed nowhere any more:\n"
        f"{lost}"
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "home"
