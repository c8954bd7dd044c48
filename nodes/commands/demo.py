"""`mesh demo`: four ems talk in a home of their own until their budget is spent, and nothing is left of it."""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nodes.commands.common import INTERRUPTED, run_loop

if TYPE_CHECKING:  # what these need takes longer to import than help may take
    from nodes.client import Client, Heard
    from nodes.commands.follow import Record
    from nodes.home import Home

BASIN: Final = "yappings"
OPENING: Final = "hello everyone. aletheia, what are you writing these days?"
PACE_S: Final = 1.0  # before each reply, so that people can read along; about 25 s in all
LOOK_S: Final = 0.2  # when nothing was said for so long we look whether anybody is still writing
CALM: Final = 2  # looks in a row that must find nobody writing and nothing under way
SETTINGS: Final = f"""\
name: demo
human: you
basins:
  {BASIN}:
    budget: {{hops: 20, acts: 22, tokens: 200_000, minutes: 0.75}}
"""
NEXT: Final = (
    "Next:  {mesh} init    makes a home of your own in ~/.ampmesh, with these four ems",
    "       {mesh} up      runs it until Ctrl-C",
    "       {mesh} chat    talks with them, in another terminal",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--fast", action="store_true", help="do not wait for people to read along")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """Run it in a folder that is gone afterwards, whatever ends it: its own end, Ctrl-C or SIGTERM."""
    from nodes.commands.logs import configure

    configure(os.environ.get("AMPMESH_LOG", "warning"))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, until the node has its own way
    try:
        with tempfile.TemporaryDirectory(prefix="ampmesh-demo-", ignore_cleanup_errors=True) as folder:
            try:
                show = _Show(_home(Path(folder) / "home", 0.0 if options.fast else PACE_S))
                run_loop(show.run())
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # for the moment that removing the folder takes
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0 if show.over else INTERRUPTED


def _home(path: Path, pace_s: float) -> "Home":
    """A home for the demo. Raises HomeError; the disk may be full."""
    from mesh.clock import now_ms
    from nodes.disk import told
    from nodes.errors import HomeError
    from nodes.home import create_home

    home = create_home(path, "demo", now_ms)
    try:
        (path / "mesh.yaml").write_text(SETTINGS, "utf-8")
        for folder in home.ems.iterdir():
            config = folder / "config.yaml"
            lines = [line for line in config.read_text("utf-8").splitlines() if not line.startswith("delay_s:")]
            config.write_text("\n".join([*lines, f"delay_s: {pace_s}", ""]), "utf-8")
    except OSError as error:
        raise HomeError(told(f"{path} cannot be made", error, "name another place for it in TMPDIR")) from None
    return home


class _Show:
    """The talk, and what is printed of it."""

    def __init__(self, home: "Home") -> None:
        from nodes.terminal import Screen

        self._home, self._mesh, self._screen = home, home.mesh_id(), Screen(sys.stdout)
        self._heard: list[Record] = []
        self.over = False

    async def run(self) -> None:
        """Run a node for as long as the talk goes on."""
        from nodes.commands.assembly import serve

        await serve(self._home, self._watch)

    async def _watch(self) -> None:
        from nodes.commands.assembly import connect

        self._note("four ems, each made from a folder of text; their model, echo, has nothing but their own words")
        async with connect(self._home) as client, client.listening(BASIN) as inbox:
            await client.say(BASIN, OPENING)
            calm = 0
            while calm < CALM:
                try:
                    async with asyncio.timeout(LOOK_S):
                        heard = await anext(inbox)
                except TimeoutError:
                    calm = calm + 1 if await self._calm(client) else 0
                else:
                    calm = 0
                    self._hear(heard)
        self._end()

    async def _calm(self, client: "Client") -> bool:
        """Whether nobody writes, and the node knows of everything that was said, so that nobody is about to write."""
        status = await client.status()
        return not status["speaking"] and not status["waiting"] and status["acts"] >= len(self._heard)

    def _hear(self, heard: "Heard") -> None:
        from nodes.control import shown_act
        from nodes.terminal import Said

        if heard.kept:
            record = {"basin": heard.basin, "mesh": heard.mesh, **shown_act(heard.act)}
            self._heard.append(record)
            self._screen.write(self._screen.act(Said.of(record, self._mesh)))

    def _end(self) -> None:
        """Say why it is silent now, and what to do next."""
        from nodes.terminal import program

        minted, *left = (record["budget"] for record in self._heard)
        hops = min((budget["hops"] for budget in left), default=minted["hops"])
        acts = min((budget["acts"] for budget in left), default=minted["acts"])
        why = "the budget is spent" if 0 in (hops, acts) else "nobody has more to say"
        self._note(f"{why}: the room is silent ({len(left)} replies, {minted['hops'] - hops} hops deep)")
        mesh = program(sys.argv[0])
        for line in NEXT:
            self._screen.write(f"{line.format(mesh=mesh)}\n")
        self.over = True

    def _note(self, text: str) -> None:
        self._screen.write(self._screen.note(f"— {text} —"))
