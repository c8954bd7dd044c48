"""Disputes as a function of what was said: who counts, what settles, what becomes of commitments, in any order."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.acts import Act, ActId, check_act
from protocol.address import check_name
from protocol.budget import Budget
from protocol.dispute import (
    MAX_COMMITMENTS,
    MAX_NAMED,
    Dispute,
    Parties,
    Standing,
    State,
    concerns,
    dispute_basin,
    follow,
    is_dispute,
    parties_of,
    short,
)
from protocol.husk import husk
from protocol.keys import KeyKind, MeshId, Signer

ADA, BOB, CYD, DAN, EVE, FAY, GUS = (MeshId(Signer(bytes([n]) * 32, KeyKind.MESH).public) for n in range(7))
PARTIES = Parties(ADA, BOB)
NOW = 1_800_000_000_000
BUDGET = Budget(6, 16, 50_000, NOW + 600_000)


def identity(number: int) -> ActId:
    return ActId(bytes([1, 2, 3, 4, 5, 6, 0x70, 8, 0x80, 10, 11]) + number.to_bytes(5, "big"))


RAISE = identity(0)
BASIN = dispute_basin(ADA, BOB, RAISE)


def act(number: int, kind: str, *refs: int, author: str = "person", at: int | None = None, **body: Any) -> Act:
    """`number` is its id and its time; what counts refers to the `raise`, which is number 0."""
    one = identity(number)
    about = [identity(ref) for ref in refs]
    refers = about if kind in {"raise", "say"} else [RAISE, *about]
    made = Act(one, kind, author, refers, one, BUDGET, NOW + (number if at is None else at), {"text": kind} | body)
    check_act(made)
    return made


RAISED = (ADA, act(0, "raise", 90, mesh=BOB, wish="an apology"))


def is_person(_mesh: MeshId, author: str) -> bool:
    return author == "person"


def seen(*heard: tuple[MeshId, Act], now: int = NOW + 1_000) -> Dispute:
    return follow(BASIN, PARTIES, heard, now, is_person)


def test_a_basins_name_says_to_each_of_the_two_that_it_concerns_them() -> None:
    assert is_dispute(check_name(BASIN))
    assert BASIN.startswith(f"dispute-{short(RAISE)}")
    assert concerns(BASIN, ADA, BOB)
    assert concerns(BASIN, BOB, ADA)
    assert not concerns(BASIN, ADA, CYD)
    assert not concerns("yappings", ADA, BOB)
    assert dispute_basin(BOB, ADA, RAISE) != BASIN
    assert not any(map(is_dispute, ("dispute-", BASIN + "a", BASIN[:-1], BASIN.upper(), "link-" + "a" * 26)))


def test_only_the_raise_that_the_basin_is_named_after_opens_it() -> None:
    opened = RAISED[1]
    assert parties_of(BASIN, ADA, opened) == PARTIES
    assert parties_of(BASIN, BOB, opened) is None
    assert parties_of(BASIN, CYD, opened) is None
    assert parties_of(BASIN, ADA, act(0, "raise", mesh=CYD)) is None
    assert parties_of(BASIN, ADA, act(1, "raise", mesh=BOB)) is None
    assert parties_of(BASIN, ADA, act(0, "raise", mesh=ADA)) is None
    assert parties_of(BASIN, ADA, act(0, "raise")) is None
    assert parties_of(BASIN, ADA, act(0, "raise", mesh=7)) is None
    assert parties_of(BASIN, ADA, act(0, "say", mesh=BOB)) is None


def test_a_dispute_from_its_beginning_to_its_end() -> None:
    begun = [RAISED, (BOB, act(1, "respond"))]
    dispute = seen(*begun)
    assert (dispute.state, dispute.text, dispute.wish, dispute.about) == (
        State.OPEN,
        "raise",
        "an apology",
        (identity(90),),
    )
    assert dispute.id == short(RAISE)
    promised = [*begun, (BOB, act(2, "remedy", due_ms=NOW + 500))]
    assert [one.standing for one in seen(*promised, now=NOW + 500).commitments] == [Standing.OPEN]
    assert [one.standing for one in seen(*promised, now=NOW + 501).commitments] == [Standing.OVERDUE]
    kept = [*promised, (BOB, act(3, "report", 2))]
    assert [one.standing for one in seen(*kept).commitments] == [Standing.KEPT]
    willing = seen(*kept, (BOB, act(4, "settle")))
    assert (willing.state, willing.willing) == (State.OPEN, (BOB,))
    ended = seen(*kept, (BOB, act(4, "settle")), (ADA, act(5, "settle")))
    assert (ended.state, ended.willing) == (State.SETTLED, (ADA, BOB))
    assert [word.kind for word in ended.words] == ["raise", "respond", "remedy", "report", "settle", "settle"]
    assert ended.words[3].refs == (identity(2),)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([(BOB, act(3, "report", 2))], Standing.KEPT),
        ([(BOB, act(3, "report", 2, outcome="failed"))], Standing.OPEN),
        ([(BOB, act(3, "report", 2, outcome="partly"))], Standing.OPEN),
        ([(ADA, act(3, "report", 2))], Standing.OPEN),
        ([(ADA, act(3, "settle", 2))], Standing.RELEASED),
        ([(BOB, act(3, "settle", 2))], Standing.OPEN),
        ([(CYD, act(3, "settle", 2))], Standing.OPEN),
        ([(ADA, act(3, "settle", 2, author="em"))], Standing.OPEN),
        ([(ADA, act(3, "settle", 2)), (BOB, act(4, "report", 2))], Standing.KEPT),
        ([(ADA, act(3, "settle"))], Standing.OPEN),
        ([(ADA, act(3, "withdraw"))], Standing.RELEASED),
        ([(BOB, act(3, "withdraw"))], Standing.OPEN),
        ([(ADA, act(3, "settle", 2)), (ADA, husk(act(3, "settle", 2)))], Standing.RELEASED),
    ],
)
def test_what_becomes_of_a_commitment(more: list[tuple[MeshId, Act]], expected: Standing) -> None:
    dispute = seen(RAISED, (BOB, act(2, "remedy")), *more)
    assert [one.standing for one in dispute.commitments] == [expected]
    assert dispute.state in {State.OPEN, State.WITHDRAWN}


def test_what_was_taken_back_does_not_count_and_is_seen_to_be_gone() -> None:
    dispute = seen(
        (ADA, husk(RAISED[1])), (BOB, husk(act(2, "remedy"))), (BOB, husk(act(3, "settle"))), (ADA, act(4, "settle"))
    )
    assert [(one.standing, one.text) for one in dispute.commitments] == [(Standing.TAKEN_BACK, "")]
    assert [word.taken_back for word in dispute.words] == [True, True, True, False]
    assert (dispute.willing, dispute.text, dispute.about) == ((ADA,), "", (identity(90),))


def test_nobody_but_a_person_of_a_party_changes_anything() -> None:
    """Ems, people on bridges, third meshes, and acts that are about another dispute are not counted."""
    elsewhere = Act(identity(8), "settle", "person", [identity(77)], identity(8), BUDGET, NOW, {"text": "x"})
    dispute = seen(
        RAISED,
        *((mesh, act(n, "settle", author="em")) for n, mesh in enumerate(PARTIES, 2)),
        (CYD, act(4, "settle")),
        (CYD, act(5, "remedy")),
        (BOB, act(6, "withdraw")),
        (BOB, elsewhere),
        (ADA, act(7, "withdraw", author="em")),
    )
    assert (dispute.state, dispute.willing, dispute.commitments) == (State.OPEN, (), ())
    assert CYD not in {word.mesh for word in dispute.words}


def test_a_mediator_is_whom_both_named_and_either_may_think_better_of_it() -> None:
    ada, bob = (ADA, act(2, "respond", mediator=CYD)), (BOB, act(3, "respond", mediator=CYD))
    word = (CYD, act(4, "say"))
    assert seen(RAISED, ada, word).mediators == ()
    assert CYD not in {one.mesh for one in seen(RAISED, ada, word).words}
    agreed = seen(RAISED, ada, bob, word, (CYD, act(5, "remedy")), (CYD, act(6, "settle")))
    assert (agreed.mediators, agreed.members) == ((CYD,), {ADA, BOB, CYD})
    assert (agreed.commitments, agreed.willing) == ((), ())
    assert [one.kind for one in agreed.words if one.mesh == CYD] == ["say", "remedy", "settle"]
    ended = seen(RAISED, ada, bob, word, (BOB, act(7, "respond", mediator=CYD, consent=False)))
    assert (ended.mediators, ended.named) == ((), {CYD: (ADA,)})
    assert CYD in {one.mesh for one in ended.words}  # what was said while it was one stays
    for nonsense in (ADA, BOB, "", "A" * 55 + "B", 7, None):
        both = [(mesh, act(n, "respond", mediator=nonsense)) for n, mesh in enumerate(PARTIES, 2)]
        assert seen(RAISED, *both).named == {}


def test_what_one_party_can_make_grow_is_bounded() -> None:
    many = [(BOB, act(n, "remedy")) for n in range(1, MAX_COMMITMENTS + 10)]
    mediators = [(BOB, act(200 + n, "respond", mediator=one)) for n, one in enumerate((CYD, DAN, EVE, FAY, GUS))]
    dispute = seen(RAISED, *many, *mediators, (ADA, act(300, "remedy")))
    assert len(dispute.commitments) == MAX_COMMITMENTS + 1
    assert len(dispute.named) == MAX_NAMED


@st.composite
def things(draw: st.DrawFn) -> list[tuple[MeshId, Act]]:
    """Anything that anybody may say in a dispute's basin, each act once."""
    said = [RAISED]
    for number in range(1, draw(st.integers(0, 12)) + 1):
        kind = draw(st.sampled_from(["raise", "respond", "remedy", "report", "settle", "withdraw", "say", "react"]))
        refs = draw(st.lists(st.integers(1, 12), max_size=2))
        body = draw(st.sampled_from([{}, {"mediator": CYD}, {"mediator": CYD, "consent": False}, {"mediator": 3}]))
        one = act(
            number, kind, *refs, author=draw(st.sampled_from(["person", "em"])), at=draw(st.integers(0, 3)), **body
        )
        said.append(
            (draw(st.sampled_from([ADA, BOB, CYD])), husk(one) if draw(st.booleans()) and number % 4 == 0 else one)
        )
    return said


@given(things(), st.randoms(use_true_random=False))
def test_the_order_in_which_it_was_heard_does_not_matter(said: list[tuple[MeshId, Act]], random: Any) -> None:
    shuffled = list(said)
    random.shuffle(shuffled)
    assert seen(*shuffled) == seen(*said)


@given(things(), st.integers(0, 12))
def test_more_that_is_heard_never_reopens_a_dispute(said: list[tuple[MeshId, Act]], number: int) -> None:
    """Until something is taken back: a husk is another act in place of the one that was heard."""
    before, after = seen(*said[:number]), seen(*said)
    if before.state == State.SETTLED:
        assert after.state == State.SETTLED
    if before.state == State.WITHDRAWN:
        assert after.state != State.OPEN
    assert set(before.willing) <= set(after.willing)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_names_differ_where_the_ends_of_ids_do(one: bytes, other: bytes) -> None:
    assert base64.b32decode(short(one).upper()) == one[-5:]
    assert (dispute_basin(ADA, BOB, one) == dispute_basin(ADA, BOB, other)) == (one[-5:] == other[-5:])
