"""What vendors send, read: any bytes give text, a count, or a fault."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.models.answers import DONE, MAX_QUOTE, EventParser, Fault, Reply, plain, refusal, retry_after_s

LINES = st.lists(st.sampled_from([b"data: x", b"data:y", b"data", b": hush", b"event: e", b"", b"data: ", b"dat\xff"]))
KEYS = ["choices", "delta", "message", "content", "text", "usage", "error", "prompt_tokens"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=12,
)


def divided(body: bytes, cuts: list[int]) -> list[bytes]:
    marks = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    return [body[start:end] for start, end in pairwise(marks)]


def parse(chunks: list[bytes], max_bytes: int = 1000) -> list[bytes]:
    parser = EventParser(max_bytes)
    return [event for chunk in chunks for event in parser.feed(chunk)] + list(parser.finish())


@given(LINES, st.lists(st.integers(0, 500)), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_the_same_however_the_bytes_arrive(lines: list[bytes], cuts: list[int], end: bytes) -> None:
    """And they are what the standard says: the data lines up to an empty line, joined."""
    expected: list[bytes] = []
    data: list[bytes] = []
    for line in [*lines, b""]:
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            expected.append(b"\n".join(data))
            data = []
    assert parse(divided(end.join(lines) + end, cuts)) == expected


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_any_bytes_can_be_fed(body: bytes, cuts: list[int]) -> None:
    assert all(len(event) <= len(body) for event in parse(divided(body, cuts)))


@pytest.mark.parametrize("body", [b"data: " + b"x" * 200, b"data: x\n" * 40, b": " + b"x" * 200])
def test_an_event_is_bounded(body: bytes) -> None:
    with pytest.raises(Fault, match="more than any reply needs"):
        parse([body[at : at + 7] for at in range(0, len(body), 7)], max_bytes=100)
    assert parse([b"data: x\n\n" * 100], max_bytes=100) == [b"x"] * 100


@given(JSON | st.fixed_dictionaries({"choices": st.lists(JSON, max_size=2)}) | st.fixed_dictionaries({"usage": JSON}))
def test_any_json_is_text_or_a_fault(value: object) -> None:
    reply = Reply()
    try:
        text = reply.take(json.dumps(value).encode())
    except Fault:
        text = ""
    assert reply.chars == len(text)
    assert reply.usage is None or reply.usage.prompt >= 0


def test_an_emoji_sent_in_halves_does_no_harm() -> None:
    reply = Reply()
    with pytest.raises(Fault, match="not the JSON"):
        reply.take(b'{"choices": [{"text": "\\ud83d"}]}')
    assert reply.take(b'{"choices": [{"text": "\\ud83d\\ude00"}]}') == "😀"
    assert reply.take(DONE) == ""
    assert reply.finished


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        ("7", "", 7.0),
        ("0.5", "", 0.5),
        (" 12 ", "", 12.0),
        ("9" * 400, "", float("inf")),
        ("Wed, 21 Oct 2015 07:28:10 GMT", "Wed, 21 Oct 2015 07:28:00 GMT", 10.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:29:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 07:28:10 GMT", "", None),
        ("Wed, 21 Oct 2015 07:28:10", "Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("-5", "", None),
        ("nan", "", None),
        ("soon", "", None),
        ("", "", None),
    ],
)
def test_retry_after(value: str, date: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": value, "date": date}) == seconds


@given(st.text(), st.text())
def test_any_retry_after_is_a_time_or_none(value: str, date: str) -> None:
    seconds = retry_after_s({"retry-after": value, "date": date})
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "m", "code": 1}}', "m"),
        (b'{"error": "m"}', "m"),
        (b'{"message": "m"}', "m"),
        (b'{"detail": [{"loc": ["body", "seed"]}]}', '[{"loc": ["body", "seed"]}]'),
        (b'{"error": {"message": "m", "param": "cut o', "m"),
        (b"<html>", ""),
        (b"", ""),
        (b"[" * 4096, ""),
    ],
)
def test_the_vendors_words_are_found(body: bytes, said: str) -> None:
    assert refusal(400, {}, body).said == said


@given(st.integers(100, 999), st.binary(max_size=200))
def test_any_refusal_is_a_fault_that_is_either_final_or_not(status: int, body: bytes) -> None:
    fault = refusal(status, {}, body)
    assert fault.final != fault.again
    assert f"HTTP {status}" in fault.words


@given(st.text())
def test_strangers_text_is_one_printable_line(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    assert len(shown) <= 10 * MAX_QUOTE + 1
