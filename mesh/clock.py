"""The one place that asks what time it is."""

import time
from collections.abc import Callable

Clock = Callable[[], int]  # gives Unix milliseconds


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000
