"""What is worth no retry and no storage: who is typing, what was read. And when words so far are shown.

One task does all of it; it is told what to do and never makes anybody wait.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from mesh.bridges.matrix.errors import MatrixError
from mesh.bridges.matrix.port import MatrixPort

TYPING_AFTER_S: Final = 0.5  # of writing; a reply that is there sooner needs no announcement
TYPING_MS: Final = 30_000  # for how long a homeserver shows it
TYPING_AGAIN_S: Final = 20.0  # between two announcements, well before the last one ends
TICK_S: Final = 0.25  # between two looks at who writes, and before the first
MAX_RECEIPTS: Final = 512  # receipts that wait; beyond it the oldest is not sent: a later one says as much
AT_A_TIME: Final = 4  # requests
SHOW_AFTER_S: Final = (0.5, 1.0, 1.5, 2.5, 4.0, 6.5, 10.0)  # before each edit with words so far; the end is the eighth
SLOW_FACTOR: Final = 4.0  # for accounts, which homeservers allow a message every few seconds


@dataclass(slots=True)
class Writing:
    """An em that writes: where, since when it has shown nothing new, and whether it is shown as typing."""

    em: str
    basin: str
    since: float
    typing: float | None = None
    has_words: bool = False


class Manners:
    """Typing and receipts. `rooms` gives the rooms in which an em sits for a basin."""

    def __init__(self, port: MatrixPort, rooms: Callable[[str, str], list[str]]) -> None:
        self._port, self._rooms = port, rooms
        self._writing: dict[bytes, Writing] = {}
        self._receipts: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._wake = asyncio.Event()

    def begins(self, act: bytes, em: str, basin: str) -> None:
        """An em begins to write."""
        self._writing[act] = Writing(em, basin, asyncio.get_running_loop().time())
        self._wake.set()

    def is_due(self, act: bytes, edits: int) -> bool:
        """Whether it is time to show more of what is being written, after so many times. Asked once, it is shown."""
        writing, now = self._writing.get(act), asyncio.get_running_loop().time()
        if writing is None or edits >= len(SHOW_AFTER_S):
            return False
        if not writing.has_words:  # counted from the first words: a reply that comes at once needs no edits
            writing.since, writing.has_words = now, True
        factor = 1.0 if self._port.caps.separate_identities else SLOW_FACTOR
        if now - writing.since < factor * SHOW_AFTER_S[edits]:
            return False
        writing.since = now
        return True

    def ends(self, act: bytes) -> None:
        """It has written, or gave up."""
        writing = self._writing.get(act)
        if writing and writing.typing is not None:
            writing.typing = -1.0  # the task takes it back
            self._wake.set()
        else:
            self._writing.pop(act, None)

    def has_read(self, em: str, room: str, event_id: str) -> None:
        """An em has read up to an event."""
        self._receipts[em, room] = event_id
        self._receipts.move_to_end((em, room))
        if len(self._receipts) > MAX_RECEIPTS:
            self._receipts.popitem(last=False)
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            work = self._due()
            for start in range(0, len(work), AT_A_TIME):
                async with asyncio.TaskGroup() as group:
                    for one in work[start : start + AT_A_TIME]:
                        group.create_task(_try(one))
            if not self._writing and not self._receipts:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(TICK_S)  # also after the wake: a quick reply goes before the receipt of its question

    def _due(self) -> list[Callable[[], Awaitable[None]]]:
        work = list[Callable[[], Awaitable[None]]]()
        now = asyncio.get_running_loop().time()
        for act, writing in list(self._writing.items()):
            if writing.typing == -1.0:
                del self._writing[act]
                work += self._type(writing, 0)
            elif (writing.typing is None and now - writing.since >= TYPING_AFTER_S) or (
                writing.typing is not None and now - writing.typing >= TYPING_AGAIN_S
            ):
                writing.typing = now
                work += self._type(writing, TYPING_MS)
        while self._receipts and len(work) < MAX_RECEIPTS:
            (em, room), event_id = self._receipts.popitem(last=False)
            work.append(lambda em=em, room=room, event_id=event_id: self._port.read(em, room, event_id))
        return work

    def _type(self, writing: Writing, timeout_ms: int) -> list[Callable[[], Awaitable[None]]]:
        rooms = self._rooms(writing.em, writing.basin)
        return [lambda room=room: self._port.typing(writing.em, room, timeout_ms) for room in rooms]


async def _try(work: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(MatrixError):
        await work()
