"""Husks: lawful acts of their kinds, without a word of what they said."""

from typing import Any

import msgspec
import pytest
from acts_strategies import acts
from hypothesis import given
from hypothesis import strategies as st

from protocol.acts import Act, check_act
from protocol.errors import BadFrame
from protocol.frame import HEADER_BYTES, decode_frame, encode_frame, reread_frame
from protocol.husk import hollow, husk, is_husk
from protocol.keys import KeyKind, Signer
from protocol.vocabulary import BODIES, core_terms

SIGNER = Signer(b"n" * 32, KeyKind.NODE)
OTHER = Signer(b"o" * 32, KeyKind.NODE)


@given(act=acts(), kind=st.sampled_from(sorted(BODIES)))
def test_a_husk_of_any_kind_is_a_lawful_act_in_the_same_place(act: Act, kind: str) -> None:
    before = msgspec.structs.replace(act, kind=kind)
    after = husk(before)
    check_act(after)
    assert is_husk(after)
    assert husk(after) == after
    assert (after.id, after.kind, after.author, after.refs, after.root, after.budget, after.at_ms, after.text) == (
        *(before.id, before.kind, before.author, before.refs, before.root, before.budget, before.at_ms),
        "",
    )


@pytest.mark.parametrize(
    "body",
    [{"text": ""}, {"text": "words", "forgotten": True}, {"text": "", "forgotten": True, "more": "words"}],
)
@given(act=acts())
def test_an_act_that_only_says_that_it_was_forgotten_is_no_husk(body: dict[str, Any], act: Act) -> None:
    assert not is_husk(msgspec.structs.replace(act, body=body))


def test_the_words_of_a_proposed_term_go_too() -> None:
    term = msgspec.to_builtins(core_terms()[0])
    said = Act(b"i" * 16, "propose", "mara", [], b"i" * 16, (1, 1, 1, 1), 1, {"text": "a term", "term": term})  # type: ignore[arg-type]
    assert "Says something" not in str(husk(said).body)


@given(before=st.lists(acts(), min_size=1, max_size=4), own=st.booleans())
def test_a_hollow_frame_verifies_when_it_is_our_own_and_visibly_fails_when_it_is_not(
    before: list[Act], own: bool
) -> None:
    data = encode_frame(SIGNER if own else OTHER, 7, 8, "sea", before)
    gone = before[0].id
    after = hollow(data, lambda act: act.id == gone, SIGNER)
    read = reread_frame(after)
    assert [is_husk(act) for act in read.acts if act.id == gone] == [True] * sum(act.id == gone for act in before)
    assert [act for act in read.acts if act.id != gone] == [act for act in before if act.id != gone]
    assert (read.node, read.sequence, read.sent_at_ms, read.basin) == (decode_frame(data).node, 7, 8, "sea")
    if own:
        assert decode_frame(after) == read
    else:
        assert after[:HEADER_BYTES] == data[:HEADER_BYTES]
        with pytest.raises(BadFrame):
            decode_frame(after)


@given(before=st.lists(acts(), min_size=1, max_size=4))
def test_a_frame_without_what_is_gone_stays_the_very_same_bytes(before: list[Act]) -> None:
    data = encode_frame(OTHER, 1, 2, "sea", before)
    assert hollow(data, lambda _: False, SIGNER) is data
    once = hollow(data, lambda _: True, SIGNER)
    assert hollow(once, lambda _: True, SIGNER) is once
