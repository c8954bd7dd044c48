"""An event loop whose time is what its timers say: where nothing is left to do now, it is at once as late as the next.

Whole nodes run on it unchanged, an hour in the time that the work of an hour takes. Nothing outside is waited for:
what would be done in a thread is done at once, and no socket is served.
"""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any


class _Skipping(selectors.SelectSelector):
    """Waits for nothing: `skip` is told how long it should have waited, None for ever."""

    def __init__(self, skip: Callable[[float | None], None]) -> None:
        super().__init__()
        self._skip = skip

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is there already; else time passes."""
        found = super().select(0)
        if not found and (timeout is None or timeout > 0):
            self._skip(timeout)
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at 0 seconds."""

    def __init__(self) -> None:
        self._now_s = 0.0
        super().__init__(_Skipping(self._pass))

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride] - done at once, so no executor is needed
        self,
        executor: Executor | None,  # noqa: ARG002 - the loop's own
        func: Callable[..., Any],
        *args: Any,  # noqa: ANN401 - the loop's own
    ) -> asyncio.Future[Any]:
        """Do it here and now: a thread's end would come at no certain time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - it belongs to whoever waits
            future.set_exception(error)
        return future

    def _pass(self, seconds: float | None) -> None:
        if seconds is None:
            raise RuntimeError("everything in the simulation waits for something else, for ever")
        self._now_s += seconds
