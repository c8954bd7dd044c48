"""Logs: for people on a terminal, JSON for machines. Never a key, never a prompt."""

import logging
import sys
from typing import Final

import structlog

LEVELS: Final = ("debug", "info", "warning", "error")


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
        [structlog.dev.ConsoleRenderer(pad_event_to=0)]
        if human
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(ensure_ascii=False)]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
