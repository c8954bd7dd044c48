"""Cards and introductions: only what a node of the mesh signed for this reader, now, is taken."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from acts_strategies import MESH, NODE, OTHER
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.card import (
    CARD_MS,
    INTRODUCTION_MS,
    MAX_BASINS,
    MAX_CARD_MS,
    MAX_EMS,
    Card,
    CardEm,
    Introduction,
    read_card,
    read_introduction,
    sign_card,
    sign_introduction,
)
from protocol.certificate import Certificate, issue
from protocol.document import MAX_DOCUMENT, node_of
from protocol.errors import BadDocument
from protocol.keys import KeyKind, MeshId, NodeId, Signer

NOW = 1_800_000_000_000
READER = MeshId(Signer(b"r" * 32, KeyKind.MESH).public)
THIRD = MeshId(Signer(b"t" * 32, KeyKind.MESH).public)
STRANGER = Signer(b"s" * 32, KeyKind.MESH)
MINE = MeshId(MESH.public)
PAPER = issue(MESH, Certificate(MINE, NodeId(NODE.public), NOW - 10**9, NOW + 10**9, ["speak"]))
CARD = Card(
    mesh=MINE,
    certificate=PAPER,
    to=READER,
    made_ms=NOW,
    name="ada",
    addresses=("127.0.0.1:7417", "[::1]:7417"),
    ems=[CardEm("aporia", True), CardEm("ruri", False)],
    basins=["tea", "yappings"],
    introducible=True,
    expires_ms=NOW + CARD_MS,
)
TOLD = Introduction(
    mesh=MINE,
    certificate=PAPER,
    to=READER,
    made_ms=NOW,
    other=THIRD,
    name="cara",
    addresses=("mesh.example.org:443",),
    text="you both like tea",
    expires_ms=NOW + INTRODUCTION_MS,
)
SIGNED, INTRODUCED = sign_card(NODE, CARD), sign_introduction(NODE, TOLD)


def forged(document: Card | Introduction, domain: bytes, signer: Signer = NODE, **changes: Any) -> bytes:
    """Signed, whatever it says."""
    body = msgspec.msgpack.encode(msgspec.structs.replace(document, **changes))
    return signer.sign(domain + body) + body


def card(signer: Signer = NODE, **changes: Any) -> bytes:
    return forged(CARD, b"ampmesh/card/1\0", signer, **changes)


def told(signer: Signer = NODE, **changes: Any) -> bytes:
    return forged(TOLD, b"ampmesh/introduction/1\0", signer, **changes)


def test_a_card_and_an_introduction_say_what_was_signed() -> None:
    assert read_card(SIGNED, READER, NOW + CARD_MS - 1) == CARD
    assert read_introduction(INTRODUCED, READER, NOW) == TOLD
    assert node_of(CARD) == NODE.public


@pytest.mark.parametrize(
    "data",
    [
        card(signer=OTHER),
        card(mesh=MeshId(STRANGER.public)),
        card(certificate=issue(STRANGER, Certificate(MeshId(STRANGER.public), NodeId(NODE.public), 0, 2 * NOW, []))),
        card(certificate=b"none"),
        card(made_ms=NOW - 2 * 10**9, expires_ms=NOW - 2 * 10**9 + 1),
        card(to=THIRD),
        card(made_ms=NOW + 300_001),
        card(expires_ms=NOW),
        card(expires_ms=NOW - 1),
        card(expires_ms=NOW + MAX_CARD_MS + 1),
        card(name="no name"),
        card(name="x" * 65),
        card(basins=["Ünnamed"]),
        card(basins=["tea"] * (MAX_BASINS + 1)),
        card(ems=[CardEm("../etc", True)]),
        card(ems=[CardEm("em", True)] * (MAX_EMS + 1)),
        card(addresses=("http://example.org",)),
        card(addresses=("MESH.example.org:443",)),
        card(addresses=("127.0.0.1:7417\n",)),
        card(addresses=("127.0.0.1:0",)),
        card(addresses=("a:1",) * 5),
        INTRODUCED,
        SIGNED + b"\0",
        b"",
        b"x" * (MAX_DOCUMENT + 1),
    ],
)
def test_any_other_card_is_refused(data: bytes) -> None:
    with pytest.raises(BadDocument):
        read_card(data, READER, NOW)


@pytest.mark.parametrize(
    "data",
    [
        told(signer=OTHER),
        told(to=THIRD, other=READER),
        told(other=READER),
        told(other=MINE),
        told(other=MeshId(NODE.public)),
        told(name="../cara"),
        told(text="x" * 501),
        told(addresses=("127.0.0.1",)),
        told(expires_ms=NOW + INTRODUCTION_MS + 1),
        told(made_ms=NOW - INTRODUCTION_MS, expires_ms=NOW),
        SIGNED,
    ],
)
def test_any_other_introduction_is_refused(data: bytes) -> None:
    with pytest.raises(BadDocument):
        read_introduction(data, READER, NOW)


@pytest.mark.parametrize(
    ("sign", "document", "changes"),
    [
        (sign_card, CARD, {"name": "no name"}),
        (sign_card, CARD, {"to": "nobody"}),
        (sign_card, CARD, {"expires_ms": NOW}),
        (sign_card, CARD, {"certificate": b""}),
        (sign_card, CARD, {"made_ms": NOW + 2 * 10**9, "expires_ms": NOW + 2 * 10**9 + 1}),
        (sign_introduction, TOLD, {"addresses": ("nowhere",)}),
    ],
)
def test_what_nobody_would_take_is_not_signed(
    sign: Callable[[Signer, Any], bytes], document: Any, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"."):
        sign(NODE, msgspec.structs.replace(document, **changes))
    with pytest.raises(ValueError, match="signed by the node"):
        sign(OTHER, document)


def test_the_largest_card_fits() -> None:
    names = [f"{number:03}".ljust(64, "x") for number in range(MAX_BASINS)]
    ems = [CardEm(name, True) for name in names[:MAX_EMS]]
    addresses = (f"{'.'.join(['a' * 62] * 4)}:65535",) * 4
    largest = msgspec.structs.replace(CARD, ems=ems, basins=names, addresses=addresses)
    assert len(sign_card(NODE, largest)) <= MAX_DOCUMENT


@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
@example(0, 1)
def test_every_changed_byte_and_every_end_is_noticed(place: int, mask: int) -> None:
    changed = SIGNED[:place] + bytes([SIGNED[place] ^ mask]) + SIGNED[place + 1 :]
    for data in (changed, SIGNED[:place]):
        with pytest.raises(BadDocument):
            read_card(data, READER, NOW)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_document_or_an_error(data: bytes) -> None:
    for read in (read_card, read_introduction):
        with pytest.raises(BadDocument):
            read(data, READER, NOW)
