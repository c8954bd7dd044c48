"""Frames: total decoding, round trips, and a refusal for everything that was touched."""

import msgspec
import pytest
from acts_strategies import NODE, acts, counts, names
from hypothesis import given
from hypothesis import strategies as st

from protocol.acts import MAX_DEPTH, Act, new_id
from protocol.budget import Budget
from protocol.errors import BadAct, BadFrame, FrameFault, ProtocolError
from protocol.frame import MAX_ACTS, MAX_FRAME, decode_frame, encode_frame, reread_frame
from protocol.keys import KeyKind, Signer, verify
from protocol.vocabulary import MAX_TEXT

BUDGET = Budget(3, 9, 1000, 2_000_000)


def say(body: dict[str, object], kind: str = "say", author: str = "me") -> Act:
    identity = new_id(1_000_000, bytes(range(10)))
    return Act(identity, kind, author, [], identity, BUDGET, 1_000_000, body)


def signed(body: object, version: int = 1) -> bytes:
    """A frame around anything, correctly signed."""
    raw = msgspec.msgpack.encode(body)
    return bytes([version]) + NODE.raw + NODE.sign(b"ampmesh/frame/1\0" + raw) + raw


SAMPLE = encode_frame(NODE, 7, 1_000_001, "yappings", [say({"text": "the tide is out"})])


@given(st.binary(max_size=400))
def test_any_bytes_give_a_frame_or_a_documented_error(data: bytes) -> None:
    with pytest.raises(BadFrame):
        decode_frame(data)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=20), st.lists, max_leaves=20))
def test_any_signed_value_gives_a_frame_or_a_documented_error(value: object) -> None:
    try:
        data = signed(value)
    except OverflowError:
        return  # MessagePack has no such number
    with pytest.raises(ProtocolError):
        decode_frame(data)


@given(st.lists(acts(), min_size=1, max_size=5), counts, counts, names)
def test_round_trip(some: list[Act], sequence: int, sent: int, basin: str) -> None:
    data = encode_frame(NODE, sequence, sent, basin, some)
    frame = decode_frame(data)
    assert list(frame.acts) == some
    assert reread_frame(data) == frame
    assert (frame.sequence, frame.sent_at_ms, frame.basin) == (sequence, sent, basin)
    assert frame.node == NODE.public


def test_every_truncation_is_refused() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(BadFrame):
            decode_frame(SAMPLE[:length])


def test_every_flipped_bit_is_refused() -> None:
    for place in range(len(SAMPLE) * 8):
        damaged = bytearray(SAMPLE)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(BadFrame) as caught:
            decode_frame(bytes(damaged))
        assert caught.value.fault is (FrameFault.VERSION if place < 8 else FrameFault.SIGNATURE)


def test_trailing_bytes_are_refused_even_when_signed() -> None:
    raw = SAMPLE[97:] + b"\xc0"
    with pytest.raises(BadFrame) as caught:
        decode_frame(bytes([1]) + NODE.raw + NODE.sign(b"ampmesh/frame/1\0" + raw) + raw)
    assert caught.value.fault is FrameFault.BODY


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": 1},
        {"text": "x" * (MAX_TEXT + 1)},
        {"text": "x", "more": "x" * (MAX_TEXT + 1)},
        {"text": "x", "more": float("nan")},
        {"text": "x", "more": [0] * 2000},
        {"text": "x", "more": {1: 2}},
        {"text": "x", "more": msgspec.msgpack.Ext(5, b"x")},
        {"text": "x", "more": 2**64 - 1},
    ],
)
def test_bodies_that_break_the_rules(body: dict[str, object]) -> None:
    with pytest.raises(BadAct):
        decode_frame(encode_frame(NODE, 1, 1, "yappings", [say(body)]))


def test_depth_is_bounded_and_a_deep_bomb_is_refused() -> None:
    nested: object = "x"
    for _ in range(MAX_DEPTH + 1):
        nested = [nested]
    with pytest.raises(BadAct):
        decode_frame(encode_frame(NODE, 1, 1, "yappings", [say({"text": "x", "more": nested})]))
    bomb = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(BadFrame):
        decode_frame(bytes([1]) + NODE.raw + NODE.sign(b"ampmesh/frame/1\0" + bomb) + bomb)


@pytest.mark.parametrize(("kind", "author"), [("Say", "me"), ("say", ""), ("say", "a b"), ("say", "a\nb"), ("", "me")])
def test_kinds_and_authors_are_words(kind: str, author: str) -> None:
    with pytest.raises(BadAct):
        decode_frame(encode_frame(NODE, 1, 1, "yappings", [say({"text": "x"}, kind, author)]))


@pytest.mark.parametrize("basin", ["", "a.b", "a b", "*", ">", "x" * 65, "A"])
def test_a_basin_is_a_name(basin: str) -> None:
    act = msgspec.to_builtins(say({"text": "x"}), builtin_types=(bytes,))
    with pytest.raises(BadFrame):
        decode_frame(signed([1, 1, basin, [act]]))


def test_an_act_within_a_chain_names_what_it_answers() -> None:
    act = Act(bytes(16), "say", "me", [], b"r" * 16, BUDGET, 1, {"text": "x"})
    with pytest.raises(BadAct):
        decode_frame(encode_frame(NODE, 1, 1, "yappings", [act]))


def test_frames_are_bounded_on_both_sides() -> None:
    act = say({"text": "x"})
    for wrong in ([], [act] * (MAX_ACTS + 1), [say({"text": "x" * MAX_TEXT})] * 20):
        with pytest.raises(ValueError, match="frame"):
            encode_frame(NODE, 1, 1, "yappings", wrong)
    with pytest.raises(BadFrame) as caught:
        decode_frame(b"\x01" * (MAX_FRAME + 1))
    assert caught.value.fault is FrameFault.LONG


def test_other_versions_are_named() -> None:
    with pytest.raises(BadFrame, match="version 9"):
        decode_frame(signed([], version=9))


def test_another_key_does_not_verify() -> None:
    other = Signer(b"o" * 32, KeyKind.NODE)
    assert not verify(other.raw, b"text", NODE.sign(b"text"))
    assert verify(NODE.raw, b"text", NODE.sign(b"text"))
