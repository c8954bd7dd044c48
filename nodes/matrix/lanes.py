"""Events in lanes, one a room: in order within a room, and no room waits for another."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from mesh.bridges.matrix.inbox import Inbound, Inbox

MAX_LANES: Final = 1_024  # events read from the inbox and not handled yet; the others wait in the database
MAX_LANE: Final = 16  # of these, of one room: whatever holds one up, the others have room

Settle = Callable[[Inbound], Awaitable[None]]


class Lanes:
    """The consumer of the inbox. `settle` handles one event to its end, however long that takes."""

    def __init__(self, inbox: Inbox, settle: Settle) -> None:
        self._inbox, self._settle = inbox, settle
        self._lanes: dict[str, deque[Inbound]] = {}
        self._inside = 0
        self._behind: set[str] = set()  # rooms of which more waits in the database than in their lanes
        self._moved = asyncio.Event()

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Hand events to their rooms' lanes until cancelled, from the first that is not handled."""
        self._lanes.clear()
        self._behind.clear()
        self._inside = 0
        self._inbox.rewind()
        while True:
            while self._inside >= MAX_LANES:
                self._moved.clear()
                await self._moved.wait()
            event = await anext(self._inbox)
            lane = self._lanes.get(event.room)
            if lane is None:
                self._lanes[event.room] = deque([event])
                group.create_task(self._lane(event.room), name=f"room {event.room}")
            elif len(lane) >= MAX_LANE or event.room in self._behind:
                self._behind.add(event.room)
                await asyncio.sleep(0)  # there may be thousands: others have their turn
                continue
            else:
                lane.append(event)
            self._inside += 1

    async def _lane(self, room: str) -> None:
        lane = self._lanes[room]
        while lane:
            await self._settle(lane[0])
            lane.popleft()
            self._inside -= 1
            if not lane and room in self._behind:
                self._catch_up(room, lane)
            self._moved.set()
        del self._lanes[room]

    def _catch_up(self, room: str, lane: deque[Inbound]) -> None:
        """Take up what a room's lane had no place for."""
        lane.extend(self._inbox.again(room, MAX_LANE))
        self._inside += len(lane)
        if len(lane) < MAX_LANE:
            self._behind.discard(room)
