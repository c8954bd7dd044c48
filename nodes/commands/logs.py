"""Logs: for people on a terminal, JSON for machines. Never a key, never a prompt, never an escape of others."""

import logging
import sys
import traceback
from collections.abc import Mapping
from itertools import islice
from typing import Final, TextIO, cast

import structlog

from mesh.words import LINE_LIMIT, plain

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_VALUE: Final = 1_000  # characters of one value: a few sentences about settings
MAX_ITEMS: Final = 64  # of one list or mapping in a value
MAX_DEPTH: Final = 10  # of lists and mappings in each other: a traceback in a group in a group
MAX_FRAMES: Final = 50  # of a traceback; a recursion has a thousand alike
MAX_TRACE_LINES: Final = 400  # of a traceback with all that caused it; the last are the nearest
TRACE_INDENT: Final = "    "  # so that no line of a message can pass for one of the log

_AS_THEY_ARE: Final = (bool, int, float, type(None))


def configure(level: str) -> None:
    """Log to stderr from `level` on (`info` for anything that is no level)."""
    threshold = getattr(logging, level.upper()) if level in LEVELS else logging.INFO
    human = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
    ]
    last: list[structlog.typing.Processor] = (
        [_cleaned, structlog.dev.ConsoleRenderer(pad_event_to=0, exception_formatter=_write_traceback)]
        if human
        else [_TRACEBACKS, _cleaned, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


# Without locals: what a function holds may be a prompt or a key.
_TRACEBACKS: Final = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=MAX_FRAMES)
)


def _cleaned(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make all values safe to show; what is to become a traceback is cleaned as it is written."""
    return {plain(key): value if key == "exc_info" else _clean(value, MAX_DEPTH) for key, value in event.items()}


def _clean(value: object, depth: int) -> object:
    """The same value, bounded, with text that no terminal acts upon."""
    if isinstance(value, _AS_THEY_ARE):
        return value
    if isinstance(value, str):
        return plain(value, MAX_VALUE)
    if depth and isinstance(value, Mapping):
        pairs = islice(cast("Mapping[object, object]", value).items(), MAX_ITEMS)
        return {plain(str(key)): _clean(item, depth - 1) for key, item in pairs}
    if depth and isinstance(value, (list, tuple, set, frozenset)):
        items = islice(cast("list[object]", value), MAX_ITEMS)
        return [_clean(item, depth - 1) for item in items]
    return plain(repr(value), MAX_VALUE)


def _write_traceback(out: TextIO, error: structlog.typing.ExcInfo) -> None:
    """Where it happened and what it says, line by line, in no more than what a terminal can show."""
    text = "".join(traceback.format_exception(error[1], limit=-MAX_FRAMES))
    for line in text.splitlines()[-MAX_TRACE_LINES:]:
        shown = "".join(char if char.isprintable() else " " for char in line[:LINE_LIMIT])
        out.write(f"\n{TRACE_INDENT}{shown}")
