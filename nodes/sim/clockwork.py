"""Virtual time: what is to happen, in order, with nothing in between."""

import heapq
import itertools
from collections.abc import Callable
from typing import Any, Final

DAY_MS: Final = 86_400_000
START_MS: Final = 20_833 * DAY_MS  # a midnight in 2027: windows of a day begin with the simulation


class Clockwork:
    """Events by their time; those of one moment in the order in which they were set."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        self.done = 0  # events
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def at(self, when_ms: int, work: Callable[..., None], *given: Any) -> None:  # noqa: ANN401 - passed on as it is
        """Have something done at a time; now, if that has passed."""
        heapq.heappush(self._heap, (max(when_ms, self.now_ms), next(self._order), work, given))

    def after(self, delay_ms: int, work: Callable[..., None], *given: Any) -> None:  # noqa: ANN401 - passed on as it is
        """Have something done so much later."""
        self.at(self.now_ms + delay_ms, work, *given)

    def run(self, until_ms: int) -> bool:
        """Do all there is until nothing is left, or until a time; returns whether nothing is left."""
        while self._heap:
            if self._heap[0][0] > until_ms:
                return False
            self.now_ms, _, work, given = heapq.heappop(self._heap)
            self.done += 1
            work(*given)
        return True
