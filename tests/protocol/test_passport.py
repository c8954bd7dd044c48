"""Passports: what a mesh says of an em is read back as it was signed, and nothing else is."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.certificate import Certificate, issue
from protocol.errors import BadPassport
from protocol.keys import KeyKind, MeshId, NodeId, Signer
from protocol.passport import (
    MAX_LINEAGE,
    MAX_PASSPORT,
    Passport,
    digest_of_contents,
    digest_of_files,
    read_lineage,
    read_passport,
    sign_passport,
    write_lineage,
)

MESH, OTHER = Signer(b"m" * 32, KeyKind.MESH), Signer(b"o" * 32, KeyKind.MESH)
NODE, OTHER_NODE = Signer(b"n" * 32, KeyKind.NODE), Signer(b"p" * 32, KeyKind.NODE)
NOW = 1_800_000_000_000
PAPER = issue(MESH, Certificate(MeshId(MESH.public), NodeId(NODE.public), NOW - 9, NOW + 9_999, ["speak"]))

files = st.dictionaries(st.text(min_size=1, max_size=20), st.binary(min_size=32, max_size=32), max_size=5)
passports = st.builds(
    Passport,
    st.from_regex(r"[a-z0-9][a-z0-9_-]{0,31}", fullmatch=True),
    files.map(digest_of_files),
    st.just(MeshId(MESH.public)),
    st.integers(NOW, NOW + 9_999),
    st.sampled_from(["made", "fork", "lend", "return"]),
    st.lists(files.map(digest_of_files), max_size=8),
    st.none() | st.integers(0, 2**53 - 1),
    st.sampled_from([None, OTHER.public]),
)


@given(passport=passports)
def test_what_was_signed_is_read_back(passport: Passport) -> None:
    stamped = sign_passport(NODE, PAPER, passport)
    assert read_passport(stamped.data) == stamped
    assert (stamped.passport, stamped.node) == (passport, NODE.public)
    assert read_lineage(write_lineage([stamped])) == [stamped]


@given(passport=passports, data=st.data())
def test_a_changed_or_cut_passport_is_refused(passport: Passport, data: st.DataObject) -> None:
    whole = sign_passport(NODE, PAPER, passport).data
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    for bad in (whole[:at], whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :], whole + b"\0"):
        with pytest.raises(BadPassport):
            read_passport(bad)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_lineage_or_one_error(data: bytes) -> None:
    for read in (read_passport, read_lineage):
        with pytest.raises(BadPassport):
            read(data)


def made(number: int = 0, **more: object) -> Passport:
    fields = {"name": "aporia", "digest": digest_of_files({}), "mesh": MESH.public, "made_ms": NOW + number}
    return Passport(**fields | {"event": "made", "parents": []} | more)  # type: ignore[arg-type] - as each test needs


@pytest.mark.parametrize(
    ("signer", "passport", "reason"),
    [
        (OTHER_NODE, made(), "not signed"),
        (NODE, made(mesh=OTHER.public), "not signed"),
        (NODE, made(made_ms=NOW + 10_000), "not in service"),
        (NODE, made(name="../up"), "names no em"),
        (NODE, made(digest="b2:12"), "cannot be read"),
        (NODE, made(to="B" * 56), "proves nothing"),
    ],
)
def test_who_may_not_say_it_cannot(signer: Signer, passport: Passport, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sign_passport(signer, PAPER, passport)


def test_a_lineage_holds_forebears_and_nobody_else() -> None:
    first = sign_passport(NODE, PAPER, made())
    second = sign_passport(NODE, PAPER, made(1, event="fork", parents=[first.digest]))
    stranger = sign_passport(NODE, PAPER, made(2))
    assert read_lineage(write_lineage([second, first])) == [second, first]
    with pytest.raises(BadPassport, match="nothing in it descends"):
        read_lineage(write_lineage([second, first, stranger]))
    with pytest.raises(BadPassport, match="too long"):
        read_passport(bytes(MAX_PASSPORT + 1))
    with pytest.raises(BadPassport, match="version 9"):
        read_lineage(msgspec.msgpack.encode(["ampmesh-lineage", 9, [first.data]]))


def test_of_a_long_line_the_oldest_are_left_out() -> None:
    line = [sign_passport(NODE, PAPER, made())]
    for number in range(MAX_LINEAGE + 3):
        line.insert(0, sign_passport(NODE, PAPER, made(number, event="fork", parents=[line[0].digest])))
    assert read_lineage(write_lineage(line)) == line[:MAX_LINEAGE]


def test_the_digest_is_of_paths_and_contents() -> None:
    one, two = {"a": b"1" * 32, "b": b"2" * 32}, {"b": b"2" * 32, "a": b"1" * 32}
    assert digest_of_files(one) == digest_of_files(two)
    assert len({digest_of_files(x) for x in (one, {"a": b"2" * 32, "b": b"1" * 32}, {"a": b"1" * 32}, {})}) == 4
    assert digest_of_contents({"a": b""}) != digest_of_contents({"a": b"x"})
