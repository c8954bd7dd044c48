"""Frames in events: bytes come out as they went in, and anything else is none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bridges.matrix.content import size
from mesh.bridges.matrix.errors import BadContent
from mesh.bridges.matrix.link import FRAME, MAX_INSIDE, frame_content, read_frame
from mesh.bridges.matrix.payload import encode

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("AQg_-=+/ \n\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_come_out_as_they_went_in(data: bytes) -> None:
    content = frame_content(data)
    assert encode(content)
    assert read_frame(FRAME, content) == data
    assert read_frame("m.room.message", content) is None


@given(st.sampled_from([FRAME, "m.room.message"]), st.dictionaries(st.sampled_from(["bytes", "file"]), json_values))
def test_any_content_is_a_frame_or_none(kind: str, content: dict[str, Any]) -> None:
    data = read_frame(kind, content)
    assert data is None or frame_content(data)["bytes"] == content["bytes"]


@given(st.text("AQgw_-", min_size=1, max_size=9))
def test_there_is_one_way_to_write_a_frame(text: str) -> None:
    data = read_frame(FRAME, {"bytes": text})
    assert data is None or frame_content(data) == {"bytes": text}


def test_the_longest_frame_leaves_room_in_an_event() -> None:
    content = frame_content(b"\xff" * MAX_INSIDE)
    assert size(content) < 65_536 - 2_800
    assert read_frame(FRAME, content) == b"\xff" * MAX_INSIDE
    assert read_frame(FRAME, {"bytes": content["bytes"] + "____"}) is None
    for wrong in (b"", b"\xff" * (MAX_INSIDE + 1)):
        with pytest.raises(BadContent, match="does not fit an event"):
            frame_content(wrong)
