"""Reading the state of rooms: any JSON gives a value or None."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import MEMBER, MatrixPort
from mesh.bridges.matrix.rooms import (
    CREATE,
    MAX_NAME,
    TOMBSTONE,
    Membership,
    Tombstone,
    is_room,
    is_successor,
    read_membership,
    read_name,
    read_tombstone,
)
from mesh.bridges.matrix.several import Several

NOW = 1_800_000_000_000
MARA, ADA = "@mara:x", "@ada:x"
NAMES = ["membership", "displayname", "reason", "replacement_room", "body", "name", "predecessor", "room_id"]
keys = st.sampled_from(NAMES)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=["L", "Cs", "Cc", "N"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=5), inner, max_size=8),
    max_leaves=12,
)
objects = st.dictionaries(keys | st.text(max_size=5), json_values, max_size=6)
memberships = st.sampled_from(["invite", "join", "knock", "leave", "ban"])


def state(kind: str, content: dict[str, Any], key: str = "", before: Any = None, sender: str = MARA) -> Inbound:
    return Inbound("$1", "!old:x", sender, kind, content, NOW, "account", key, previous=before)


def moved(before: str | None, after: str, by: str = MARA, user: str = ADA) -> Membership | None:
    previous = {"membership": before} if before else None
    return read_membership(state(MEMBER, {"membership": after}, user, previous, by), ADA.__eq__)


@given(st.sampled_from([MEMBER, TOMBSTONE, CREATE]), objects, st.none() | st.text(), st.none() | objects)
def test_any_content_is_read(
    kind: str, content: dict[str, Any], key: str | None, before: dict[str, Any] | None
) -> None:
    """Nothing raises, and what is shown is one printable line."""
    event = Inbound("$1", "!r", MARA, kind, content, NOW, "account", key, previous=before)
    shown = [read_name(content)]
    if found := read_membership(event, lambda _: False):
        shown += [found.name, found.reason]
    if grave := read_tombstone(event):
        assert is_room(grave.replacement)
        shown += [grave.replacement]
    assert all(text.isprintable() or text == "" for text in shown)
    is_successor(content, "!r")


@pytest.mark.parametrize(
    ("before", "after", "by", "change"),
    [
        (None, "invite", MARA, "invited"),
        ("leave", "invite", MARA, "invited"),
        ("invite", "join", ADA, "joined"),
        (None, "join", ADA, "joined"),
        ("join", "join", ADA, "renamed"),
        ("join", "leave", ADA, "left"),
        ("join", "leave", MARA, "kicked"),
        (None, "leave", MARA, "kicked"),
        ("invite", "leave", ADA, "declined"),
        ("invite", "leave", MARA, "uninvited"),
        ("knock", "leave", MARA, "refused"),
        ("knock", "leave", ADA, "left"),
        ("join", "ban", MARA, "banned"),
        ("ban", "leave", MARA, "unbanned"),
        (None, "knock", ADA, "knocked"),
    ],
)
def test_what_happened_to_a_member(before: str | None, after: str, by: str, change: str) -> None:
    found = moved(before, after, by)
    assert found
    assert (found.before, found.after, found.change) == (before, after, change)
    assert (found.user, found.by, found.ours) == (ADA, by, True)


@given(st.none() | memberships, memberships, st.booleans())
def test_every_change_of_membership_has_a_word(before: str | None, after: str, by_self: bool) -> None:
    found = moved(before, after, MARA if by_self else ADA, MARA)
    assert found
    assert found.change
    assert not found.ours


def test_what_is_no_membership_is_none() -> None:
    assert moved(None, "elsewhere") is None
    assert moved(None, "join", user="") is None
    assert (
        read_membership(Inbound("$1", "!r", MARA, MEMBER, {"membership": "join"}, NOW, "account"), ADA.__eq__) is None
    )


def test_a_tombstone_names_another_room() -> None:
    found = read_tombstone(state(TOMBSTONE, {"body": "moved\x1b[2J\non", "replacement_room": "!new:y"}))
    assert found == Tombstone("!old:x", "!new:y", "x")
    short = read_tombstone(state(TOMBSTONE, {"replacement_room": "!TzhW8Ojk3"}))
    assert short
    assert short.replacement == "!TzhW8Ojk3"
    for wrong in (None, 7, "", "new", "#new:y", "!old:x", "!a b:y", "!" + "n" * 300, "!n\x1b:y", "!\ud800:y"):
        assert read_tombstone(state(TOMBSTONE, {"replacement_room": wrong})) is None
    assert read_tombstone(state(TOMBSTONE, {"replacement_room": "!new:y"}, "key")) is None


def test_a_successor_says_whom_it_follows() -> None:
    assert is_successor({"predecessor": {"room_id": "!old:x"}}, "!old:x")
    for other in (None, {}, {"predecessor": "!old:x"}, {"predecessor": {"room_id": "!other:x"}}):
        assert not is_successor(other, "!old:x")


def test_what_is_shown_of_a_room_is_clean_and_short() -> None:
    assert read_name({"name": "Tea\n\x1b[31mhouse\u202e"}) == "Tea [31mhouse"
    assert len(read_name({"name": "n" * 10_000})) == MAX_NAME


def test_several_ways_are_one_port() -> None:
    """Every call of the port's interface is there."""
    wanted = {name for name in vars(MatrixPort) if not name.startswith("_")}
    assert wanted <= set(dir(Several))
