"""`mesh chat` through pipes: lines are said as they come in, and acts are printed as they are said."""

import asyncio
import codecs
import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Final

from nodes.client import Client
from nodes.commands.chat_talk import QUIT, Talk
from nodes.commands.follow import Follower, Record
from nodes.home import Home
from nodes.terminal import Said, Screen

READ_BYTES: Final = 65_536
WAITING: Final = 256  # lines of standard input that wait to be said; then whoever writes them waits
STDIN: Final = 0


async def converse(home: Home, basin: str, wait_s: float) -> None:
    """Say the lines of standard input, print what is said, end when input and talk are over. Raises NodeError."""
    pipe = _Pipe(home, basin, Screen(sys.stdout), Screen(sys.stderr))
    async with asyncio.TaskGroup() as group:
        following = group.create_task(Follower(home, basin, pipe).run(patient=False), name="follow")
        await pipe.talk(wait_s)
        following.cancel()


class _Pipe:
    """Talk through pipes: acts on stdout, everything else on stderr."""

    def __init__(self, home: Home, basin: str, screen: Screen, notes: Screen) -> None:
        self._mesh, self._screen, self._notes = home.mesh_id(), screen, notes
        self._talk = Talk(home, basin)
        self._heard_s = 0.0
        self._joined = asyncio.Event()

    def joined(self, client: Client) -> None:
        """Begin."""
        self._talk.client = client
        self._joined.set()

    def away(self) -> None:
        """Never: whoever follows without patience ends."""

    def hear(self, record: Record) -> None:
        """Print an act."""
        self._talk.hear(record)
        self._heard_s = asyncio.get_running_loop().time()
        self._screen.write(self._screen.act(Said.of(record, self._mesh, left=False)))

    def writing(self, record: Record) -> None:
        """Nothing: the whole act will come."""

    def beat(self, status: Record, missed: int, refused: int) -> None:
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
