"""Logs: no locals, no escapes, no floods, on a terminal and as JSON."""

import io
import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from nodes.commands.logs import MAX_ITEMS, MAX_VALUE, TRACE_INDENT, configure

HOSTILE = "a\x1b]0;owned\x07b\x9b2Jc\u202ed\ne"
CLEAN = "a ]0;owned b 2Jc d e"
KEY = "sk-made-up-" + "5" * 8  # joined here, so that no line of source that a traceback shows holds all of it


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture(params=[Terminal, io.StringIO])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = request.param()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("info")
    return stream


def logged(out: io.StringIO) -> str:
    """What was written, with JSON's own escapes read; a terminal shows its text as it is."""
    text = out.getvalue()
    if out.isatty():
        return text
    return repr(json.loads(text)).replace("\\\\", "\\")


def fail(secret: str) -> None:
    spelled = list(secret)
    raise ValueError(f"{HOSTILE} has {len(spelled)} letters")


def test_a_traceback_shows_no_locals_and_passes_on_no_escapes(out: io.StringIO) -> None:
    try:
        fail(KEY)
    except ValueError:
        structlog.get_logger().exception("a turn failed", em="aporia")
    text = logged(out)
    assert "letters" in text
    assert "fail" in text
    assert KEY not in text
    assert "'5', '5'" not in text
    for char in ("\x07", "\x1b]", "\x9b", "\u202e", "\\x1b", "\\x9b", "\\u202e"):
        assert char not in text


def test_no_line_of_a_traceback_can_pass_for_a_line_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("info")
    try:
        fail(KEY)
    except ValueError:
        structlog.get_logger().exception("failed")
    _, *lines = stream.getvalue().splitlines()
    assert len(lines) > 4
    assert all(line.startswith(TRACE_INDENT) for line in lines)


def test_values_are_rid_of_escapes_however_deep_they_stand(out: io.StringIO) -> None:
    endless: list[object] = []
    endless.append(endless)

    class Odd:
        def __repr__(self) -> str:
            return HOSTILE

    structlog.get_logger().info(HOSTILE, name=HOSTILE, deep={HOSTILE: [(HOSTILE,)]}, odd=Odd(), endless=endless, n=3)
    text = logged(out)
    for char in ("\x07", "\x1b]", "\x9b", "\u202e", "\\x1b", "\\x9b", "\\u202e"):
        assert char not in text
    assert text.count(CLEAN) == 5


def test_values_are_bounded(out: io.StringIO) -> None:
    structlog.get_logger().info("much", text="x" * 10**6, many=list(range(10**5)))
    assert len(out.getvalue()) < MAX_VALUE + 8 * MAX_ITEMS + 500


def test_json_keeps_numbers_and_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("info")
    try:
        fail(KEY)
    except ValueError:
        structlog.get_logger().exception("failed", count=3, good=True, nothing=None)
    read = json.loads(stream.getvalue())
    assert (read["count"], read["good"], read["nothing"], read["level"]) == (3, True, None, "error")
    assert [frame["name"] for frame in read["exception"][0]["frames"]][-1] == "fail"
    assert "locals" not in read["exception"][0]["frames"][-1]
