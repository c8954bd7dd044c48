"""`mesh say`: one act, for scripts and people in a hurry."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nodes.commands.common import add_home, add_json, home_of, print_json

if TYPE_CHECKING:
    from nodes.home import Home
    from nodes.picture import Picture


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("basin", metavar="BASIN")
    parser.add_argument(
        "text", metavar="TEXT", nargs="?", help="what to say; - reads it from standard input; not needed with --image"
    )
    parser.add_argument(
        "--image",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a picture to show (PNG, JPEG, GIF or WebP); may be given several times",
    )
    parser.add_argument("--answers", metavar="ACT", help="the id of the act that this answers")
    parser.add_argument("--kind", default="say", help="what kind of act: say, ask, answer, … (default: say)")
    parser.add_argument("--any-kind", action="store_true", help="let the kind be one that ampmesh does not know")
    add_home(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from nodes.commands.assembly import connect

    home = home_of(options)
    _check(options)
    text = _read() if options.text == "-" else options.text
    async with connect(home) as client:
        shown = await asyncio.to_thread(_kept, home, options.image)
        text = " ".join(picture.name for picture in shown) if text is None else text.strip()
        act = await client.say(options.basin, text, kind=options.kind, answers=options.answers, media=shown)
        heard: list[str] = [] if act["listeners"] else (await client.status())["basins"]
    if options.json:
        print_json(act)
    else:
        sys.stdout.write(f"{act['id']}\n")
        sys.stdout.flush()
    if not act["listeners"]:  # mostly a slip
        where = ", ".join(heard) or "none"
        sys.stderr.write(f"mesh: no em of yours listens in {options.basin}; basins where some do: {where}\n")


def _read() -> str:
    from nodes.errors import ConfigError

    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError([f"standard input is not UTF-8 text from its byte {error.start + 1:,} on"]) from None


def _kept(home: "Home", files: Sequence[Path]) -> "list[Picture]":
    """The pictures in these files, now in the home's media folder. Raises ConfigError and NodeError."""
    from nodes.media import Media
    from nodes.picture import MAX_BYTES
    from nodes.textfile import read_bytes

    media = Media(home.media)
    return [media.put(read_bytes(file, MAX_BYTES), file.name) for file in files]


def _check(options: argparse.Namespace) -> None:
    """Raise ConfigError, whose exit code is that of misuse, for what no node could mean."""
    from nodes.client import is_id
    from nodes.errors import ConfigError
    from nodes.picture import MAX_LISTED
    from protocol.vocabulary import BODIES

    if options.text is None and not options.image:
        raise ConfigError(["TEXT is missing: say something, or show a picture with --image FILE"])
    if len(options.image) > MAX_LISTED:
        raise ConfigError([f"--image: {len(options.image)} pictures are too many for one act; {MAX_LISTED} are shown"])
    if options.answers is not None and not is_id(options.answers):
        raise ConfigError([f"--answers: {options.answers[:40]!a} is no id of an act: give its 32 hex digits"])
    if options.kind not in BODIES and not options.any_kind:
        kinds = ", ".join(BODIES)
        raise ConfigError(
            [f"--kind: {options.kind[:40]!a} is none of {kinds}; with --any-kind it is said all the same"]
        )
