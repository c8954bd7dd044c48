"""Receipts: for what was forgotten, and for what was asked of a memory."""

from typing import Any

import msgspec
import pytest
from acts_strategies import MESH, NODE, OTHER
from hypothesis import given
from hypothesis import strategies as st

from protocol.acts import ActId
from protocol.certificate import Certificate, issue
from protocol.errors import BadDocument
from protocol.keys import KeyKind, MeshId, NodeId, Signer
from protocol.receipt import (
    MAX_CITED,
    Forgotten,
    Recalled,
    digest_of_question,
    read_forgotten,
    read_recalled,
    sign_forgotten,
    sign_recalled,
)

NOW = 1_800_000_000_000
AUTHOR = MeshId(Signer(b"r" * 32, KeyKind.MESH).public)
MINE = MeshId(MESH.public)
PAPER = issue(MESH, Certificate(MINE, NodeId(NODE.public), 0, 2 * NOW, ["speak"]))
ACT = ActId(b"a" * 16)
GONE = Forgotten(
    mesh=MINE, certificate=PAPER, to=AUTHOR, made_ms=NOW, target=ACT, redaction=ActId(b"b" * 16), held=True
)
ASKED = Recalled(
    mesh=MINE,
    certificate=PAPER,
    to=AUTHOR,
    made_ms=NOW,
    question=digest_of_question("where is the key?"),
    basins=["tea"],
    acts=[ACT],
)


def forged(document: Any, domain: bytes, signer: Signer = NODE, **changes: Any) -> bytes:
    body = msgspec.msgpack.encode(msgspec.structs.replace(document, **changes))
    return signer.sign(domain + body) + body


def test_a_receipt_says_what_was_signed_also_years_later() -> None:
    assert read_forgotten(sign_forgotten(NODE, GONE), AUTHOR, 3 * NOW) == GONE
    assert read_recalled(sign_recalled(NODE, ASKED), AUTHOR, 3 * NOW) == ASKED


def test_one_kind_of_receipt_is_not_another() -> None:
    with pytest.raises(BadDocument):
        read_recalled(sign_forgotten(NODE, GONE), AUTHOR, NOW)
    with pytest.raises(BadDocument):
        read_forgotten(sign_recalled(NODE, ASKED), AUTHOR, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"signer": OTHER},
        {"to": MINE},
        {"target": b"short"},
        {"made_ms": NOW + 300_001},
        {"held": None},
        {"certificate": b"x" * 5_000},
    ],
)
def test_any_other_receipt_for_forgetting_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadDocument):
        read_forgotten(forged(GONE, b"ampmesh/forgotten/1\0", **changes), AUTHOR, NOW)


@pytest.mark.parametrize(
    "changes",
    [{"question": b"x" * 31}, {"basins": ["no basin"]}, {"acts": [ACT] * (MAX_CITED + 1)}, {"mesh": AUTHOR}],
)
def test_any_other_receipt_for_an_answer_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BadDocument):
        read_recalled(forged(ASKED, b"ampmesh/recalled/1\0", **changes), AUTHOR, NOW)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_questions_are_told_apart_by_their_digests(one: str, other: str) -> None:
    assert (digest_of_question(one) == digest_of_question(other)) == (one == other)
    assert len(digest_of_question(one)) == 32
