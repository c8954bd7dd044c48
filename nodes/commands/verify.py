"""`mesh verify`: who said something, proved from the signatures alone; also years later, and on any machine."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodes.commands.common import add_home, add_json, print_json

if TYPE_CHECKING:
    from nodes.proofs import Known

NOT_PROVED: Final = 1
HANG: Final = 13  # columns before what is told


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.description = (
        "Prove who said something: an act that this home keeps, or a proof that somebody saved. Asks no node and no"
        " network; a proof in a file needs no home either. The exit code is 0 when it is proved, 1 when it is not."
    )
    parser.add_argument("what", metavar="ACT|FILE", help="an act's id, its first digits (6 or more), last; or a file")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the proof of an act into a new file")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from nodes.errors import NodeError
    from nodes.layout import lines
    from nodes.proofs import as_json, as_text, check, verdict
    from protocol.errors import BadProof

    data, there = _file(options) if Path(options.what).is_file() else _act(options)
    try:
        proved = check(data, there)
    except BadProof as error:
        raise NodeError(f"not proved: {error}") from None
    if options.json:
        print_json(as_json(proved, there))
    else:
        lines(as_text(proved, there), HANG)
    if proved.revoked and options.save:
        raise NodeError(f"{options.save} was not written: {verdict(proved)}")
    if options.save:
        _save(options.save, data)
        if not options.json:
            lines([f"{options.save} holds the proof. To check it, anywhere:", f"  mesh verify {options.save}"])
    return NOT_PROVED if proved.revoked else 0


def _act(options: argparse.Namespace) -> "tuple[bytes, Known]":
    """The proof of an act that the home keeps. Raises NodeError."""
    import string

    from nodes.commands.common import home_of
    from nodes.errors import NodeError
    from nodes.proofs import known, prove
    from nodes.records import LAST, lookup, records

    if options.what.lower() != LAST and not set(string.hexdigits).issuperset(options.what):
        raise NodeError(f"{options.what[:200]!a} is neither a file that is there nor an act's id")
    home = home_of(options)
    with records(home) as store:
        identity = lookup(store, options.what)
        if store is None:
            raise NodeError("nothing was said here yet")
        return prove(home, store, identity), known(home, store)


def _file(options: argparse.Namespace) -> "tuple[bytes, Known]":
    """The proof in a file, with what a home knows beside it, if there is one."""
    import contextlib

    from mesh.errors import StoreFailed
    from nodes.commands.common import home_of
    from nodes.errors import HomeError, NodeError
    from nodes.proofs import Known, known, read
    from nodes.records import records

    if options.save:
        raise NodeError("--save writes the proof of an act; a file holds one already")
    data, there = read(Path(options.what)), Known()
    try:
        home = home_of(options)
    except HomeError:
        if options.home is not None:
            raise
        return data, there
    there = known(home, None)
    with contextlib.suppress(StoreFailed), records(home) as store:
        there = known(home, store)
    return data, there


def _save(path: Path, data: bytes) -> None:
    """Write a new file. Raises NodeError."""
    from nodes.disk import told, write_private
    from nodes.errors import NodeError

    if path.exists() or path.is_symlink():
        raise NodeError(f"{path} is there already; name another file, or remove it")
    try:
        write_private(path, data)
    except OSError as error:
        raise NodeError(told(f"{path} cannot be written", error, "name another place")) from None
