"""Acts, their ids, addresses and the vocabulary."""

import uuid

import msgspec
import pytest
from acts_strategies import MESH, NODE, OTHER, acts, names
from hypothesis import given
from hypothesis import strategies as st

from protocol.acts import Act, check_act, new_id, reply_id, reply_key
from protocol.address import Subject, check_author, check_name, parse_subject
from protocol.errors import BadAct, BadAddress, ProtocolError
from protocol.keys import KeyKind, MeshId, Signer
from protocol.vocabulary import BODIES, core_terms, digest

ONE, TWO = reply_key(NODE), reply_key(OTHER)
HERS, HIS = MeshId(MESH.public), MeshId(Signer(b"x" * 32, KeyKind.MESH).public)


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_ids_are_uuid7_and_ordered_by_time(now: int, randomness: bytes) -> None:
    identity = new_id(now, randomness)
    read = uuid.UUID(bytes=bytes(identity))
    assert (read.version, read.variant) == (7, uuid.RFC_4122)
    assert int.from_bytes(identity[:6], "big") == now
    assert new_id(now + 1, randomness) > identity or now == 2**48 - 1


@given(acts(), names, names)
def test_a_reply_has_one_id_however_often_it_is_made(act: Act, one: str, other: str) -> None:
    assert reply_id(ONE, one, HERS, act, 0) == reply_id(ONE, one, HERS, act, 0)
    assert reply_id(ONE, one, HERS, act, 0) != reply_id(ONE, one, HERS, act, 1)
    assert reply_id(ONE, one, HERS, act, 0) != reply_id(ONE, one, HIS, act, 0)
    assert reply_id(ONE, one, HERS, act, 0) != reply_id(TWO, one, HERS, act, 0)
    assert (reply_id(ONE, one, HERS, act, 0) == reply_id(ONE, other, HERS, act, 0)) == (one == other)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("attend", {"text": "", "state": "asleep"}),
        ("progress", {"text": "half", "done": 2.0}),
        ("report", {"text": "no", "outcome": "maybe"}),
        ("adopt", {"text": "no digest"}),
        ("propose", {"text": "ebb", "term": {"name": "ebb"}}),
        ("share", {"text": "x", "may": "everything"}),
    ],
)
def test_core_acts_keep_to_their_schema(kind: str, body: dict[str, object]) -> None:
    with pytest.raises(BadAct, match=kind):
        check_act(make(kind, body))


def make(kind: str, body: dict[str, object]) -> Act:
    return msgspec.convert([bytes(16), kind, "me", [], bytes(16), [1, 1, 1, 1], 1, body], Act)


def test_an_unknown_kind_needs_only_a_text() -> None:
    check_act(make("dance", {"text": "twirls", "beats": 3}))
    with pytest.raises(BadAct):
        check_act(make("dance", {"beats": 3}))


def test_every_core_term_is_defined_and_named_by_its_own_digest() -> None:
    terms = core_terms()
    assert [term.name for term in terms] == list(BODIES)
    assert len({digest(term) for term in terms}) == len(terms)
    assert all(term.definition.endswith(".") and term.schema for term in terms)
    changed = msgspec.structs.replace(terms[0], definition="Shouts.")
    assert digest(changed) != digest(terms[0])


@pytest.mark.parametrize("name", ["", "A", "a.b", "a b", "-a", "x" * 65, "é", "a\n", "../x", "a*"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(BadAddress):
        check_name(name)


@pytest.mark.parametrize("author", ["me", "aporia", "@mara:example.org", "x" * 255, "ü"])
def test_authors(author: str) -> None:
    assert check_author(author) == author


@pytest.mark.parametrize("author", ["", " ", "a b", "<a>", "a\x1b[31m", "a\u202eb", "a\u2028b", "x" * 256])
def test_authors_that_are_none(author: str) -> None:
    with pytest.raises(BadAddress):
        check_author(author)


def test_a_subject_reads_back() -> None:
    subject = Subject(True, "yappings", MESH.public, NODE.public)
    assert parse_subject(str(subject)) == subject


@given(st.text(max_size=80))
def test_any_text_is_no_subject(text: str) -> None:
    with pytest.raises(ProtocolError):
        parse_subject(text)
