"""`mesh keys`: who this mesh is. Never shows a secret."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nodes.commands.common import add_home, add_json, home_of, print_json

if TYPE_CHECKING:
    from protocol.keys import Signer

MAX_SEED_BYTES = 1_024  # a seed has 58 letters; a longer file is something else


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "the public ids of this mesh and its node, and how long the node's certificate is valid"
    show = actions.add_parser("show", help="the public ids", description=f"Show {text}.")
    show.set_defaults(run=_show)
    rotate = actions.add_parser(
        "rotate", help="a new key for the node", description="Put a new node key into service, certified for a year."
    )
    rotate.add_argument("--revoke", action="store_true", help="and let the old key's words count no longer")
    rotate.add_argument("--mesh-key", type=Path, metavar="FILE", help="the mesh key, where it is kept elsewhere")
    rotate.set_defaults(run=_rotate)
    out = actions.add_parser(
        "revoke",
        help="take another node out of service",
        description="Take a node of this mesh out of service, for good: what it signed is believed no more. Peers hear"
        " of it when they next connect.",
    )
    out.add_argument("node", metavar="NODE", help="its id, which begins with U; mesh keys show lists those that were")
    out.add_argument("--mesh-key", type=Path, metavar="FILE", help="the mesh key, where it is kept elsewhere")
    out.set_defaults(run=_revoke)
    backup = actions.add_parser(
        "backup",
        help="all that it takes to recover this mesh when its node is lost",
        description="Write the mesh key, and who your peers are, into one file, for `mesh init --recover`. Whoever has"
        " it can speak as you. Make a new one after `mesh keys rotate`, and when your peers have changed.",
    )
    backup.add_argument("file", type=Path, metavar="FILE", help="the file to write; never overwrites one")
    backup.add_argument("--mesh-key", type=Path, metavar="FILE", help="the mesh key, where it is kept elsewhere")
    backup.set_defaults(run=_backup)
    for action in (show, rotate, out, backup):
        add_home(action)
        add_json(action)


def _show(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from nodes.layout import lines, when
    from protocol.keys import fingerprint

    home = home_of(options)
    certificate = home.certificate()
    known: dict[str, Any] = {
        "mesh": certificate.mesh,
        "mesh_fingerprint": fingerprint(certificate.mesh),
        "mesh_key_here": (home.keys / "mesh.seed").exists(),
        "node": certificate.node,
        "node_fingerprint": fingerprint(certificate.node),
        "valid_from_ms": certificate.not_before_ms,
        "valid_until_ms": certificate.not_after_ms,
        "valid": certificate.not_before_ms <= now_ms() <= certificate.not_after_ms,
        "revoked": home.revocation().nodes,
    }
    if options.json:
        print_json(known)
        return
    valid = "valid" if known["valid"] else "NOT valid now; run: mesh keys rotate"
    lines(
        [
            f"mesh         {known['mesh_fingerprint']}  {known['mesh']}",
            f"node         {known['node_fingerprint']}  {known['node']}",
            f"certificate  {valid}, from {when(certificate.not_before_ms)} until {when(certificate.not_after_ms)}",
            f"mesh key     {'in this home' if known['mesh_key_here'] else 'kept elsewhere'}",
            *(f"revoked      {fingerprint(node)}  {node}" for node in known["revoked"]),
        ]
    )


def _rotate(options: argparse.Namespace) -> None:
    from mesh.clock import now_ms
    from nodes.layout import lines, when
    from protocol.keys import fingerprint

    home = home_of(options)
    held = home.hold()
    try:
        before = home.held("node")
        mesh = None if options.mesh_key is None else _read(options.mesh_key)
        node = home.rotate(now_ms(), mesh, revoke_old=options.revoke)
    finally:
        held.release()
    old = None if before is None else before.public
    until = home.certificate().not_after_ms
    if options.json:
        print_json({"node": node, "old": old, "revoked": options.revoke, "valid_until_ms": until})
        return
    what = "is revoked: nothing that it signed is believed any more" if options.revoke else "is not revoked"
    lines(
        [
            f"The node is now {fingerprint(node)} ({node}), until {when(until)}.",
            "Its old key was lost." if old is None else f"Its old key {fingerprint(old)} {what}.",
        ],
        0,
    )


def _revoke(options: argparse.Namespace) -> None:
    from nodes.layout import lines
    from protocol.keys import NodeId, fingerprint

    home = home_of(options)
    held = home.hold()
    try:
        after = home.revoke(NodeId(options.node), None if options.mesh_key is None else _read(options.mesh_key))
    finally:
        held.release()
    if options.json:
        print_json({"node": options.node, "list": after.serial, "revoked": after.nodes})
        return
    lines(
        [
            f"The node {fingerprint(options.node)} is revoked, by list {after.serial} of this mesh.",
            "Nothing that it signed is believed any more. Your peers hear of it when your node next connects: mesh up",
        ],
        0,
    )


def _backup(options: argparse.Namespace) -> None:
    from nodes.backup import write_backup
    from nodes.layout import lines

    backup = write_backup(home_of(options), None if options.mesh_key is None else _read(options.mesh_key), options.file)
    if options.json:
        print_json({"file": str(options.file), "mesh": backup.mesh(), "peers": len(backup.peers)})
        return
    lines(
        [
            f"{options.file} holds the mesh key and {len(backup.peers):,} peers.",
            "Whoever has this file can speak as you. Keep it where nobody else can read it, and not on this machine.",
            f"After a loss:  mesh init DIR --recover {options.file.name}",
        ],
        0,
    )


def _read(path: Path) -> "Signer":
    """The mesh key in a file. Raises HomeError, never with key material in it."""
    from nodes.errors import ConfigError, HomeError
    from nodes.textfile import read_bytes
    from protocol.errors import BadKey
    from protocol.keys import KeyKind, Signer

    try:
        signer = Signer.from_seed(read_bytes(path, MAX_SEED_BYTES).decode("ascii").strip())
    except ConfigError as error:
        raise HomeError(str(error)) from None
    except (BadKey, UnicodeDecodeError):
        raise HomeError(f"{path} holds no mesh key; name the file that was keys/mesh.seed") from None
    if signer.kind != KeyKind.MESH:
        raise HomeError(f"{path} holds the key of something else; name the file that was keys/mesh.seed")
    return signer
