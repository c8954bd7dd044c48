"""Requests: the owner's alone, for this operation, now."""

import pytest
from acts_strategies import NODE
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest
from protocol.keys import KeyKind, Signer
from protocol.request import MAX_REQUEST, VALID_MS, decode_request, encode_request

NOW = 1_800_000_000_000
SAMPLE = encode_request(NODE, "say", NOW, b"nonce..8", b'{"text":"x"}')


@given(st.binary(max_size=200), st.sampled_from(["say", "stop"]), st.integers(-VALID_MS, VALID_MS))
def test_round_trip(body: bytes, operation: str, late: int) -> None:
    request = decode_request(NODE.raw, operation, NOW + late, encode_request(NODE, operation, NOW, bytes(8), body))
    assert (request.body, request.at_ms) == (body, NOW)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_request(NODE.raw, "say", NOW, data)


def test_every_truncation_and_flipped_bit_is_refused() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(BadRequest):
            decode_request(NODE.raw, "say", NOW, SAMPLE[:length])
    for place in range(len(SAMPLE) * 8):
        damaged = bytearray(SAMPLE)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(BadRequest):
            decode_request(NODE.raw, "say", NOW, bytes(damaged))


@pytest.mark.parametrize("now", [NOW - VALID_MS - 1, NOW + VALID_MS + 1])
def test_another_time_another_operation_and_another_key_are_refused(now: int) -> None:
    for key, operation, at in ((NODE.raw, "say", now), (NODE.raw, "stop", NOW), (bytes(32), "say", NOW)):
        with pytest.raises(BadRequest):
            decode_request(key, operation, at, SAMPLE)
    assert Signer(b"x" * 32, KeyKind.NODE).raw != NODE.raw


def test_length_is_bounded_on_both_sides() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode_request(NODE, "say", NOW, bytes(8), bytes(MAX_REQUEST + 1))
    with pytest.raises(BadRequest, match="long"):
        decode_request(NODE.raw, "say", NOW, bytes(MAX_REQUEST + 100))
