"""Words and their readings: what counts as a term, whose word counts for what, and that order does not matter."""

import itertools
from typing import Any

import msgspec
import pytest
from acts_strategies import MESH
from hypothesis import given
from hypothesis import strategies as st

from protocol.acts import Act, check_act, new_id
from protocol.budget import Budget
from protocol.errors import BadTerm
from protocol.keys import KeyKind, MeshId, Signer
from protocol.lexicon import MAX_SAID, SLACK, Lexicon
from protocol.terms import (
    MAX_TERM,
    Slot,
    check_digest,
    check_term,
    new_term,
    read_said,
    read_term,
    write_term,
)
from protocol.vocabulary import Digest, Term, core_terms, digest

NOW = 1_800_000_000_000
A = MeshId(MESH.public)
B = MeshId(Signer(b"b" * 32, KeyKind.MESH).public)
C = MeshId(Signer(b"c" * 32, KeyKind.MESH).public)
D = MeshId(Signer(b"d" * 32, KeyKind.MESH).public)
EBB = new_term("ebb", "the tide going out")
REST = new_term("Ebb", "a rest between two waves")
LUMEN = new_term("lumen", "light that stays", "act")


def is_em(author: str) -> bool:
    return author == "aporia"


def act(kind: str, at: int = 0, author: str = "me", *, root: bool = True, **body: Any) -> Act:
    identity = new_id(NOW + at, at.to_bytes(10, "big"))
    refs = [] if root else [new_id(NOW, b"r" * 10)]
    made = Act(
        identity,
        kind,
        author,
        refs,
        refs[0] if refs else identity,
        Budget(1, 1, 1, NOW),
        NOW + at,
        {"text": "", **body},
    )
    check_act(made)
    return made


def term_of(term: Term) -> dict[str, Any]:
    return msgspec.to_builtins(term)


def lexicon(*said: tuple[MeshId, Act]) -> Lexicon:
    """What A knows when these have been said, B and C being its peers."""
    made = Lexicon(A, {B, C}.__contains__)
    for mesh, one in said:
        hear(made, mesh, one)
    return made


def hear(made: Lexicon, mesh: MeshId, one: Act) -> None:
    said, term = read_said(mesh, "words", one, is_em)
    for each in said:
        made.hear(each)
    if term is not None:
        made.learn(term)


PROPOSED = (B, act("propose", 1, term=term_of(EBB)))


# Terms


@pytest.mark.parametrize("name", ["ebb", "low tide", "Über-ich", "l'eau", "ชา", "2fold", "日和", "a" * 64])
def test_words_of_every_script_can_be_named(name: str) -> None:
    assert read_term(write_term(new_term(name, "means something"))).name == new_term(name, "x").name


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "two  spaces"}, "spaces"),
        ({"name": " led"}, "spaces"),
        ({"name": "a\x1b[31mb"}, "printable"),
        ({"name": "a\u202eb"}, "printable"),
        ({"name": "e\u0301"}, "printable"),
        ({"name": "-dash"}, "begins with"),
        ({"name": "a:b"}, "begins with"),
        ({"name": "<mara"}, "begins with"),
        ({"kind": "act", "name": "Lumen"}, "name an act"),
        ({"kind": "act", "name": "say"}, "core acts"),
        ({"schema": {}}, "no schema"),
        ({"definition": "one\ntwo"}, "printable line"),
        ({"example": "\x07"}, "printable line"),
        ({"definition": " "}, "says something"),
        ({"kind": "act", "name": "lumen", "schema": {"a": "x" * MAX_TERM}}, "bytes"),
        ({"kind": "act", "name": "lumen", "schema": {"a": b"bytes"}}, "JSON"),
        ({"obliges": "é" * 1000, "example": "é" * 1024, "definition": "é" * 1024}, "bytes"),
    ],
)
def test_a_term_that_breaks_the_rules_is_refused_with_the_reason(change: dict[str, Any], why: str) -> None:
    with pytest.raises(BadTerm, match=why):
        check_term(msgspec.structs.replace(EBB, **change))


def test_what_a_person_types_is_made_one_line_and_then_checked() -> None:
    made = new_term("  low \n tide ", "e\u0301bb\x00 and\tflow")
    assert (made.name, made.definition) == ("low tide", "\u00e9bb and flow")
    with pytest.raises(BadTerm, match="no term"):
        new_term("x" * 65, "too long")
    with pytest.raises(BadTerm, match="no term"):
        new_term("", "nothing")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_term_or_badterm(data: bytes) -> None:
    try:
        term = read_term(data)
    except BadTerm:
        return
    assert read_term(write_term(term)) == term


@given(st.text(max_size=80), st.text(max_size=300))
def test_any_words_are_a_term_that_can_be_read_again_or_badterm(name: str, definition: str) -> None:
    try:
        term = new_term(name, definition)
    except BadTerm:
        return
    assert digest(read_term(write_term(term))) == check_term(term) == check_digest(digest(term))


@pytest.mark.parametrize("text", ["", "b2:", "b2:" + "A" * 64, "b2:" + "0" * 63, "sha:" + "0" * 64, "b2:" + "0" * 65])
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(BadTerm):
        check_digest(text)


def test_nested_deeper_than_json_can_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"a": deep}
    with pytest.raises(BadTerm):
        check_term(msgspec.structs.replace(LUMEN, schema=deep))


# Whose word counts for what


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (act("say"), "nothing about a term"),
        (act("adopt", digest="b2:nothing"), "no digest"),
        (act("propose", author="@mara:example.org", term=term_of(EBB)), "bridge"),
        (act("propose", term=term_of(core_terms()[0])), "core acts"),
        (act("contest", digest=digest(EBB), term=term_of(EBB)), "by itself"),
        (act("contest", digest=digest(EBB), term={"name": "ebb"}), "no term"),
    ],
)
def test_an_act_that_says_nothing_lawful_does_not_count(one: Act, why: str) -> None:
    with pytest.raises(BadTerm, match=why):
        read_said(B, "words", one, is_em)


def test_only_a_person_adopts_for_the_mesh_and_an_em_has_an_opinion() -> None:
    """An em's act answers another, or its author is known as an em; both are shown, and neither decides."""
    answers = act("adopt", 2, "ruri", root=False, digest=digest(EBB))
    known = act("adopt", 3, "aporia", digest=digest(EBB))
    made = lexicon(PROPOSED, (B, answers), (A, known))
    assert made.held(A) == made.held(B) == frozenset()
    assert made.reading(digest(EBB)).ems == ((B, "ruri"), (A, "aporia"))
    hear(made, B, act("adopt", 4, digest=digest(EBB)))
    assert (made.held(A), made.held(B)) == (frozenset(), {digest(EBB)})
    assert made.reading(digest(EBB)).used == (B,)


def test_an_adoption_counts_once_its_term_is_known_whichever_comes_first() -> None:
    made = lexicon((B, act("adopt", 2, digest=digest(EBB))))
    assert made.held(B) == frozenset()
    hear(made, *PROPOSED)
    assert made.held(B) == {digest(EBB)}


def test_contesting_keeps_both_readings_with_who_uses_which() -> None:
    made = lexicon(
        PROPOSED,
        (B, act("adopt", 2, digest=digest(EBB))),
        (C, act("contest", 3, digest=digest(EBB), term=term_of(REST))),
    )
    first, second = map(made.reading, made.find("EBB"))
    assert (first.term, first.used, first.contested) == (EBB, (B,), ((C, "me"),))
    assert (second.term, second.used, second.proposed) == (REST, (C,), ((C, "me"),))
    assert made.contested("ebb")
    hear(made, C, act("adopt", 4, digest=digest(EBB)))  # comes round
    assert made.held(C) == {digest(EBB)}
    assert not made.contested("ebb")


def test_a_mesh_uses_one_reading_of_a_name_and_retires_it() -> None:
    made = lexicon(PROPOSED, (B, act("propose", 2, term=term_of(REST))))
    for at, kind, term, held in [
        (3, "adopt", EBB, {EBB}),
        (4, "adopt", REST, {REST}),
        (5, "retire", REST, set[Term]()),
        (6, "adopt", EBB, {EBB}),
    ]:
        hear(made, B, act(kind, at, digest=digest(term)))
        assert made.held(B) == set(map(digest, held))


def test_nobody_changes_what_another_mesh_uses_or_what_a_digest_means() -> None:
    """All that B can say, under its own name, about a term that A uses."""
    made = lexicon(PROPOSED, (A, act("adopt", 2, digest=digest(EBB))))
    for at, kind in enumerate(["retire", "contest", "adopt"], 10):
        hear(made, B, act(kind, at, digest=digest(EBB)))
    made.retract(B, "me", act("adopt", 2, digest=digest(EBB)).id)
    made.learn(msgspec.structs.replace(EBB, definition="something else"))
    made.tell(B, [])
    assert made.held(A) == {digest(EBB)}
    assert made.terms[digest(EBB)] == EBB
    assert len(made.terms) == 1


def test_who_takes_an_act_back_has_not_said_it() -> None:
    adopted = act("adopt", 2, digest=digest(EBB))
    made = lexicon(PROPOSED, (B, adopted))
    made.retract(B, "somebody-else", adopted.id)
    assert made.held(B)
    made.retract(B, "me", adopted.id)
    assert not made.held(B)
    made.retract(B, "me", PROPOSED[1].id)
    assert not made.terms, "nobody speaks of it any more"


def test_what_a_peers_node_tells_is_what_its_mesh_uses() -> None:
    made = lexicon(PROPOSED)
    made.tell(C, [digest(EBB), digest(LUMEN)])
    made.learn(LUMEN)
    assert made.reading(digest(EBB)).used == (C,)
    assert made.find("lumen") == [digest(LUMEN)] == made.find(digest(LUMEN)[:12])
    made.tell(C, [])
    assert set(made.terms) == {digest(EBB)}, "a term of which nobody speaks any more is let go"


def test_what_a_peer_was_heard_to_adopt_counts_beside_what_its_node_tells() -> None:
    """A node tells of no word from a basin that it does not share with us; we may hear of it from another."""
    made = lexicon(PROPOSED, (C, act("adopt", 2, digest=digest(EBB))))
    made.tell(C, [digest(LUMEN)])
    assert made.held(C) == {digest(EBB), digest(LUMEN)}
    hear(made, C, act("retire", 3, digest=digest(EBB)))
    assert made.held(C) == {digest(LUMEN)}


# Order and bounds

TERMS = [EBB, REST, LUMEN]
acts_of_terms = st.builds(
    lambda at, kind, one, other, author, root: act(
        kind,
        at,
        author,
        root=root,
        **(
            {"term": term_of(TERMS[one])}
            if kind == "propose"
            else {"digest": digest(TERMS[one])}
            if kind != "contest" or one == other
            else {"digest": digest(TERMS[one]), "term": term_of(TERMS[other])}
        ),
    ),
    st.integers(0, 40),
    st.sampled_from(["propose", "adopt", "contest", "retire"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from(["me", "aporia", "ruri"]),
    st.booleans(),
)


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C, D]), acts_of_terms), max_size=12, unique_by=lambda one: one[1].at_ms),
    st.randoms(use_true_random=False),
)
def test_what_was_said_comes_to_the_same_in_any_order_and_any_number_of_times(
    said: list[tuple[MeshId, Act]], random: Any
) -> None:
    mixed = said * 2
    random.shuffle(mixed)
    one, other = lexicon(*said), lexicon(*mixed)
    assert one.terms == other.terms
    for mesh in (A, B, C, D):
        assert one.uses(mesh) == other.uses(mesh)
    for term in TERMS:
        assert one.reading(digest(term)) == other.reading(digest(term))


@given(st.lists(st.tuples(st.sampled_from([A, B, C, D]), acts_of_terms), max_size=12))
def test_what_changed_is_enough_to_restore_everything(said: list[tuple[MeshId, Act]]) -> None:
    made, kept, terms = lexicon(), dict[Any, Any](), dict[Digest, Term]()
    for mesh, one in said:
        hear(made, mesh, one)
        made.retract(mesh, one.author, one.id) if one.at_ms % 5 == 0 else None
        changed = made.take_changed()
        kept |= changed.said
        terms |= changed.terms  # pyright: ignore[reportOperatorIssue] - None is filtered below
    again = Lexicon(A, {B, C}.__contains__)
    again.restore(
        [term for term in terms.values() if term is not None], [one for one in kept.values() if one is not None], {}
    )
    assert again.terms == made.terms
    assert all(again.uses(mesh) == made.uses(mesh) for mesh in (A, B, C, D))
    assert again.take_changed().said == {}


def test_what_one_mesh_or_all_unknown_ones_say_is_bounded_and_costs_nobody_else() -> None:
    """What it uses goes last; another's words, and ours, stay whole however much a peer says."""
    made = lexicon((A, act("propose", 1, term=term_of(EBB))), (A, act("adopt", 2, digest=digest(EBB))))
    hear(made, C, act("adopt", 3, digest=digest(EBB)))
    hear(made, B, act("adopt", 4, digest=digest(EBB)))
    strangers = itertools.cycle(MeshId(f"stranger {number}") for number in range(40))
    for number in range(MAX_SAID + SLACK + 100):
        flood = act("propose", 10 + number, "ruri", root=False, term=term_of(new_term(f"w{number}", "flood")))
        hear(made, B, flood)
        hear(made, next(strangers), act("adopt", 10 + number, digest=digest(new_term(f"u{number}", "unknown"))))
    assert MAX_SAID <= len(made.terms) <= MAX_SAID + SLACK
    assert made.held(A) == made.held(B) == made.held(C) == {digest(EBB)}
    assert "w0" not in made.names()
    assert f"w{MAX_SAID + SLACK + 99}" in made.names()
    kept = made.take_changed().said
    of = [key.mesh for key, said in kept.items() if said is not None]
    assert MAX_SAID <= of.count(B) <= MAX_SAID + SLACK
    assert MAX_SAID <= sum(mesh.startswith("stranger") for mesh in of) <= MAX_SAID + SLACK


def test_the_newest_word_counts_also_when_an_older_one_comes_later() -> None:
    made = lexicon(PROPOSED, (B, act("retire", 9, digest=digest(EBB))), (B, act("adopt", 5, digest=digest(EBB))))
    assert made.held(B) == frozenset()
    said = made.of(B, digest(EBB))
    assert said is not None
    assert (said.slot, said.uses, said.at_ms) == (Slot.USE, False, NOW + 9)
