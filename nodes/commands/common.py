"""What all commands share: the home option, the loop, and errors as one line."""

import argparse
import asyncio
import gc
import json
import os
import re
import shutil
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from mesh.errors import MeshError, StoreFailed
from nodes.disk import FULL, told
from nodes.errors import NodeError
from protocol.errors import ProtocolError

if TYPE_CHECKING:  # what a home needs takes longer to import than help may take
    from nodes.home import Home
    from protocol.keys import MeshId

FAILED: Final = 1
MISTAKE: Final = 70  # EX_SOFTWARE of sysexits.h
GC_ALLOCATIONS: Final = 50_000  # a busy ledger makes thousands of short-lived acts; collecting sooner costs a fifth
HANG: Final = 6  # columns before what an error says
MAX_LAST: Final = 10_000  # acts to show: a few megabytes of text; more is what `mesh export` is for
INTERRUPTED: Final = 130  # what shells expect after Ctrl-C

# Escape sequences, line ends, turns of the writing direction and half characters, which only stand within texts here.
_ACTED_UPON: Final = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_DAMAGED: Final = ("malformed", "not a database", "no such table", "no such column")  # how SQLite says it
_EXPECTED: Final = (NodeError, MeshError, ProtocolError, OSError, EOFError)


def add_home(parser: argparse.ArgumentParser) -> None:
    """The option that says which home a command is about."""
    parser.add_argument("--home", type=Path, default=None, metavar="DIR", help="the home folder (default: ~/.ampmesh)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option for scripts."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def count(text: str) -> int:
    """How many acts to show, as an option. Raises ArgumentTypeError."""
    if not (text.isascii() and text.isdecimal()) or len(text) > len(str(MAX_LAST)) or int(text) > MAX_LAST:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {MAX_LAST}")
    return int(text)


def home_of(options: argparse.Namespace) -> "Home":
    """The home that a command is about. Raises HomeError."""
    from nodes.home import default_home, open_home

    return open_home(options.home or default_home())


def mesh_of(home: "Home") -> "MeshId | None":
    """Whose home it is; None where its keys are lost: it can still be asked."""
    from nodes.errors import HomeError

    try:
        return home.mesh_id()
    except HomeError:
        return None


def print_json(value: Any) -> None:  # noqa: ANN401 - whatever JSON can say
    """One JSON document on one line."""
    text = json.dumps(value, ensure_ascii=False)
    sys.stdout.write(_ACTED_UPON.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
    sys.stdout.flush()


def run(options: argparse.Namespace) -> int:
    """Run the chosen command; whatever can be expected to go wrong ends in one sentence on stderr."""
    from nodes.commands.logs import configure

    configure(os.environ.get("AMPMESH_LOG", ""))
    try:
        result = options.run(options)
        return (run_loop(result) if asyncio.iscoroutine(result) else result) or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        leaf = _leaf(error)
        if isinstance(leaf, BrokenPipeError):
            return _unread()
        if not isinstance(leaf, _EXPECTED):
            if os.environ.get("AMPMESH_LOG") == "debug":
                raise
            sys.stderr.write(f"mesh: a mistake in ampmesh itself: {leaf!r}; AMPMESH_LOG=debug shows where\n")
            return MISTAKE
        _complain(_told(leaf).splitlines() or [repr(leaf)])
        return getattr(leaf, "code", FAILED)


def _complain(lines: list[str]) -> None:
    """One sentence a line, on a terminal broken between words."""
    texts = [f"mesh: {line}" for line in lines]
    if sys.stderr.isatty():
        from nodes.wrapping import broken

        columns = shutil.get_terminal_size().columns
        texts = [line for text in texts for line in broken(text, columns, HANG)]
    sys.stderr.write("".join(f"{text}\n" for text in texts))


def _unread() -> int:
    """Nobody reads on: nothing more is wanted, and nothing is wrong."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _told(error: BaseException) -> str:
    """The sentence of an error; for a damaged database also what to do about it."""
    text = str(error)
    if isinstance(error, StoreFailed) and any(word in text for word in _DAMAGED):
        from nodes.records import damaged

        return damaged(text.partition(": ")[0])
    if isinstance(error, OSError) and error.errno in FULL:
        return told(f"{error.filename or 'a file'} cannot be written", error, "make room")
    return text


def run_loop(main: Coroutine[Any, Any, int | None]) -> int | None:
    """Run on uvloop where it exists, which is faster; otherwise on asyncio's own loop."""
    gc.set_threshold(GC_ALLOCATIONS, 50, 100)
    if sys.platform != "win32" and not os.environ.get("AMPMESH_NO_UVLOOP"):
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)


def _leaf(error: BaseException) -> BaseException:
    """The error that a person should hear of: one that ampmesh knows nothing about, else the first."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if not isinstance(leaf, _EXPECTED)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(inner)
    else:
        yield error
