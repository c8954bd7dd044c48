"""Requests to compare emoji: which are answered, and how."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bridges.matrix.verification import MAX_ID, REQUEST, asks, declined, declined_device

ASKED: dict[str, Any] = {
    "type": REQUEST,
    "sender": "@mara:x",
    "content": {"from_device": "PHONE", "methods": ["m.sas.v1"], "timestamp": 1, "transaction_id": "t1"},
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


def test_the_device_that_asks_is_told_no() -> None:
    user, device, content = declined_device(ASKED) or ("", "", {})
    assert (user, device) == ("@mara:x", "PHONE")
    assert content == {"transaction_id": "t1", "code": "m.unknown_method", "reason": content["reason"]}


def test_a_request_in_a_room_is_told_no_where_it_stands() -> None:
    assert asks({"msgtype": REQUEST, "to": "@ada:x"})
    assert not asks({"msgtype": "m.text", "body": REQUEST})
    assert declined("$e")["m.relates_to"] == {"rel_type": "m.reference", "event_id": "$e"}


@pytest.mark.parametrize("device", ["", "*", "D" * (MAX_ID + 1), "D\n", "D\u202e", 7, None])
def test_who_asks_for_no_device_has_no_answer(device: object) -> None:
    """All of a user's devices, or none, or what is no name: nothing is sent."""
    assert declined_device(ASKED | {"content": ASKED["content"] | {"from_device": device}}) is None


@given(st.fixed_dictionaries({"type": st.just(REQUEST) | json_values, "sender": json_values, "content": json_values}))
def test_any_json_is_read(raw: dict[str, Any]) -> None:
    """Whatever a homeserver passes on, there is an answer to a device or none."""
    found = declined_device(raw)
    assert found is None or (found[0], found[1]) == (raw["sender"], raw["content"]["from_device"])


@given(json_values)
def test_what_is_no_object_asks_nothing(raw: object) -> None:
    """Arrays, numbers and objects without a type."""
    assert declined_device(raw) is None
