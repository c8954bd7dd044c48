"""How many calls go on at one time."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager


class Gate:
    """Lets calls through: at most `limits[door]` at a time per door, and about `total` in all.

    Each door always has one place that no other door can take, so a door whose calls are stuck delays only its own
    callers; `total` is therefore at least the number of doors. First come, first served within a door.
    """

    def __init__(self, limits: Mapping[str, int], total: int) -> None:
        self._limits = limits
        self._shared = max(0, total - len(limits))
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {door: deque() for door in limits}

    @asynccontextmanager
    async def through(self, door: str) -> AsyncGenerator[None, None]:
        """Wait for a place and hold it."""
        await self._enter(door)
        try:
            yield
        finally:
            self._leave(door)

    async def _enter(self, door: str) -> None:
        if self._free(door) and not self._waiting[door]:
            self._running[door] += 1
            return
        place = asyncio.get_running_loop().create_future()
        self._waiting[door].append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self._leave(door)  # the place was given in the moment in which the caller gave up
            elif place in self._waiting[door]:
                self._waiting[door].remove(place)
            raise

    def _leave(self, door: str) -> None:
        self._running[door] -= 1
        for other in (door, *self._waiting):
            while self._waiting[other] and self._free(other):
                place = self._waiting[other].popleft()
                if not place.cancelled():
                    self._running[other] += 1
                    place.set_result(None)

    def _free(self, door: str) -> bool:
        running = self._running[door]
        shared = sum(count - 1 for count in self._running.values() if count > 1)
        return running < self._limits[door] and (running == 0 or shared < self._shared)
