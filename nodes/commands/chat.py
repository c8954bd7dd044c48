"""`mesh chat`: talk with the ems of a basin, in a terminal or through pipes."""

import argparse
import asyncio
import codecs
import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from nodes.commands.common import add_home, home_of
from nodes.errors import NotRunning

if TYPE_CHECKING:  # what these need takes longer to import than help may take
    from nodes.client import Client
    from nodes.commands.follow import Record
    from nodes.home import Home
    from nodes.terminal import Screen

WAIT_S: Final = 5.0  # seconds of silence after which piped talk is over
SILENCE_S: Final = 2.0  # after a person's words; then those who were to answer may have failed
LOOKS: Final = 10  # for failures, about a second apart, while nobody is still to answer
READ_BYTES: Final = 65_536
WAITING: Final = 256  # lines of standard input that wait to be said; then whoever writes them waits
STDIN: Final = 0
QUIT: Final = "/quit"
HELP: Final = (
    "/stop  ends all chains of replies here, and what is being written",
    "/who   tells who is here and who is writing",
    "/why   tells why the last reply was given and what it was made from, or why there was none",
    "/quit  leaves, as Ctrl-D does; Ctrl-C clears the line, Tab completes names",
    "A message that begins with / is written with //.",
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("basin", nargs="?", default="yappings", metavar="BASIN", help="where (default: yappings)")
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_S,
        metavar="SECONDS",
        help=f"when input is piped: leave after so long a silence (default: {WAIT_S:g})",
    )
    add_home(parser)
    parser.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> None:
    from nodes.commands.logs import configure

    configure(os.environ.get("AMPMESH_LOG", "error"))  # a log line would tear the screen; the chat says what matters
    home = home_of(options)
    if all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        from nodes.commands.chat_screen import converse

        await converse(home, options.basin)
    else:
        await _pipe(home, options.basin, options.wait)


class Talk:
    """What a line that a person types does: most are said, some are commands."""

    def __init__(self, home: "Home", basin: str) -> None:
        self._home, self._basin = home, basin
        self._own = self._reply = ""  # ids: what the person said last, and what was answered to anything since
        self._quiet_s = 0.0  # since when nothing was said; on the loop's clock
        self._looks = 0  # into the records that are left, for what the person said last
        self._told: set[bytes] = set()
        self.client: Client | None = None  # None while the node is away

    def hear(self, record: "Record") -> None:
        """Remember the last reply."""
        self._quiet_s = asyncio.get_running_loop().time()
        if record["id"] != record["root"]:
            self._reply = record["id"]

    async def line(self, text: str) -> Sequence[str]:
        """Do what a line says, QUIT excepted; returns lines for the person. Raises NodeError, MeshError."""
        text = text.strip()
        if text == "/help":
            return [note(line) for line in HELP]
        if text == "/why":
            return self._why()
        if self.client is None:
            raise NotRunning("the node is away; wait until it is back")
        if text == "/stop":
            self._looks = 0  # who is stopped has not failed
            await self.client.stop(self._basin)
        elif text == "/who":
            return [note(_who(await self.client.status()))]
        elif text.startswith("/") and not text.startswith("//"):
            return [note(f"there is no {text.split()[0]}; /help tells what there is")]
        elif text:
            await self._say(self.client, text[1:] if text.startswith("//") else text)
        return []

    async def _say(self, client: "Client", text: str) -> None:
        self._reply = ""
        said = await client.say(self._basin, text)
        self._own, self._looks = said["id"], LOOKS
        self._quiet_s = asyncio.get_running_loop().time()

    def failures(self, *, at_once: bool = False) -> list[str]:
        """A line for each em that was to answer the person's last words and could not, once.

        Looks into the node's records when nothing was said for SILENCE_S; to be called about every second.
        """
        quiet = asyncio.get_running_loop().time() - self._quiet_s >= SILENCE_S
        if not self._own or not self._looks or not (quiet or at_once):
            return []
        from nodes.records import failed

        ended, still = failed(self._home, bytes.fromhex(self._own))
        self._looks = LOOKS if still else self._looks - 1
        new = [(turn, em, reason) for turn, em, reason in ended if turn not in self._told]
        self._told.update(turn for turn, _, _ in new)
        return [note(f"{em} cannot answer: {reason}") for _, em, reason in new]

    def _why(self) -> list[str]:
        """Why the last reply was given, or why none was."""
        from nodes.explain import as_text, why
        from nodes.home import at_home
        from nodes.records import records

        act = self._reply or self._own
        if not act:
            return [note("nothing was said here since you came")]
        with records(self._home) as store:
            known = None if store is None else why(store, bytes.fromhex(act))
        if known is None or (known.said is None and known.made is None):
            return [note("nothing is recorded about it yet")]
        return list(as_text(known, self._home.mesh_id(), there=at_home(self._home.path)))


def note(text: str) -> str:
    """How the command's own words are told from everybody else's."""
    return f"— {text} —"


def _who(status: dict[str, Any]) -> str:
    ems = ", ".join(f"{name} ({model})" for name, model in sorted(status["models"].items()))
    writing = ", ".join(status["speaking"])
    return f"you are {status['human']}; ems of this node: {ems or 'none'}; writing now: {writing or 'nobody'}"


async def _pipe(home: "Home", basin: str, wait_s: float) -> None:
    """Say the lines of standard input, print what is said, end when input and talk are over."""
    from nodes.commands.follow import Follower
    from nodes.terminal import Screen

    pipe = _Pipe(home, basin, Screen(sys.stdout), Screen(sys.stderr))
    async with asyncio.TaskGroup() as group:
        following = group.create_task(Follower(home, basin, pipe).run(patient=False), name="follow")
        await pipe.talk(wait_s)
        following.cancel()


class _Pipe:
    """Talk through pipes: acts on stdout, everything else on stderr."""

    def __init__(self, home: "Home", basin: str, screen: "Screen", notes: "Screen") -> None:
        self._mesh, self._screen, self._notes = home.mesh_id(), screen, notes
        self._talk = Talk(home, basin)
        self._heard_s = 0.0
        self._joined = asyncio.Event()

    def joined(self, client: "Client") -> None:
        """Begin."""
        self._talk.client = client
        self._joined.set()

    def away(self) -> None:
        """Never: whoever follows without patience ends."""

    def hear(self, record: "Record") -> None:
        """Print an act."""
        from nodes.terminal import Said

        self._talk.hear(record)
        self._heard_s = asyncio.get_running_loop().time()
        self._screen.write(self._screen.act(Said.of(record, self._mesh, left=False)))

    def writing(self, record: "Record") -> None:
        """Nothing: the whole act will come."""

    def beat(self, status: "Record", missed: int, refused: int) -> None:
        """Whoever writes is not silent."""
        del missed, refused
        if status["speaking"] or status["waiting"]:
            self._heard_s = asyncio.get_running_loop().time()
        self._tell(self._talk.failures())

    async def talk(self, wait_s: float) -> None:
        """Say line after line, then wait for `wait_s` seconds of silence. Raises NodeError."""
        await self._joined.wait()
        lines = _Lines()
        while (line := await lines.next()) is not None and line.strip() != QUIT:
            self._tell(await self._talk.line(line))
        if line is None:
            await self._silence(wait_s)
            self._tell(self._talk.failures(at_once=True))

    def _tell(self, lines: Sequence[str]) -> None:
        for line in lines:
            self._notes.write(self._notes.note(line))

    async def _silence(self, wait_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._heard_s = loop.time()
        while (left := self._heard_s + wait_s - loop.time()) > 0:
            await asyncio.sleep(left)
            if self._talk.client is not None:
                self.beat(await self._talk.client.status(), 0, 0)


class _Lines:
    """Standard input by line. A thread reads it, since the loop cannot wait for a file."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._room = threading.Semaphore(WAITING)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    async def next(self) -> str | None:
        """The next line without its end; None when there are no more."""
        line = await self._queue.get()
        self._room.release()
        return line

    def _read(self) -> None:
        # From the descriptor: a thread that still waits in sys.stdin at the end holds a lock that Python then wants.
        decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
        with contextlib.suppress(OSError):  # standard input is closed: nothing to say
            while data := os.read(STDIN, READ_BYTES):
                *whole, rest = (rest + decoder.decode(data)).split("\n")
                for line in whole:
                    self._push(line)
        self._push(rest)
        self._push(None)

    def _push(self, line: str | None) -> None:
        self._room.acquire()
        with contextlib.suppress(RuntimeError):  # the command has ended meanwhile
            self._loop.call_soon_threadsafe(self._queue.put_nowait, line)
