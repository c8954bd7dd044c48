"""Relationships: tables for what is lawful and what may cross, and two sides that a bad network cannot part."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from acts_strategies import MESH, acts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.acts import Act, check_act, new_id
from protocol.budget import Budget
from protocol.crossing import may_send, may_take, plainly
from protocol.errors import BadAddress, BadLink, LinkFault
from protocol.husk import husk
from protocol.keys import KeyKind, MeshId, Signer
from protocol.link import (
    MAX_SHARED,
    QUOTAS,
    Relationship,
    Share,
    Standing,
    State,
    apply,
    declare,
    next_body,
)
from protocol.quota import Quota
from protocol.statement import MAX_AHEAD_MS, Changes, Trust, check_shareable, own_basin
from protocol.vocabulary import Digest

NOW = 1_800_000_000_000
A = MeshId(MESH.public)
B = MeshId(Signer(b"b" * 32, KeyKind.MESH).public)
C = MeshId(Signer(b"c" * 32, KeyKind.MESH).public)
STRANGERS = Relationship(A, B)
OWN = own_basin(A, B)


def is_em(author: str) -> bool:
    return author == "aporia"


def act(kind: str, body: dict[str, Any], at_ms: int = NOW, author: str = "me", number: int = 0) -> Act:
    identity = new_id(at_ms, number.to_bytes(10, "big"))
    made = Act(identity, kind, author, [], identity, Budget(1, 1, 1, NOW), at_ms, body)
    check_act(made)
    return made


def saying(seen: Relationship, kind: str, at_ms: int = NOW, **changes: Any) -> Act:
    """The next statement of `seen.me`."""
    return act(kind, next_body(seen, kind, Changes(text=kind, **changes)), at_ms, number=seen.mine.turn)


def told(seen: Relationship, by: MeshId, kind: str, at_ms: int = NOW, **changes: Any) -> Relationship:
    """`seen` after `by` has said this, at once known to both."""
    view = seen if by == seen.me else seen.mirrored()
    after = declare(view, saying(view, kind, at_ms, **changes), NOW, is_em)
    return after if by == seen.me else after.mirrored()


INVITED = told(STRANGERS, A, "invite", gives={"sea": "read"}, until_ms=NOW + 50)
LINKED = told(INVITED, B, "link", takes={"sea": "read"}, at_ms=NOW + 10)
PAUSED = told(LINKED, B, "link", paused=True)
LEFT = told(LINKED, B, "leave")


@pytest.mark.parametrize(
    ("relationship", "state"),
    [
        (STRANGERS, "stranger"),
        (INVITED, "invited"),
        (INVITED.mirrored(), "invited"),
        (LINKED, "linked"),
        (PAUSED, "paused"),
        (told(PAUSED, B, "link", paused=False), "linked"),
        (told(PAUSED, A, "leave"), "left"),
        (told(INVITED, A, "leave"), "left"),
        (told(INVITED, B, "leave"), "left"),
        (LEFT, "left"),
        (told(LEFT, A, "invite"), "invited"),
        (told(LEFT, B, "invite"), "invited"),
        (told(told(LEFT, A, "invite"), B, "link"), "linked"),
        (told(INVITED, A, "invite"), "invited"),
    ],
)
def test_the_states(relationship: Relationship, state: str) -> None:
    assert relationship.state == relationship.mirrored().state == state
    assert msgspec.json.decode(msgspec.json.encode(relationship), type=Relationship) == relationship


@pytest.mark.parametrize(
    ("relationship", "by", "kind"),
    [
        *((STRANGERS, A, kind) for kind in ("link", "share", "unshare", "leave")),
        *((LEFT, by, kind) for by in (A, B) for kind in ("link", "share", "unshare", "leave")),
        *((INVITED, B, kind) for kind in ("share", "unshare", "invite")),
        *((relationship, by, "invite") for relationship in (LINKED, PAUSED) for by in (A, B)),
    ],
)
def test_what_cannot_be_said_in_a_state_is_refused_before_it_is_sent(
    relationship: Relationship, by: MeshId, kind: str
) -> None:
    changes = {"basin": "sea", "may": "read"} if "share" in kind else {}
    with pytest.raises(BadLink) as caught:
        told(relationship, by, kind, **changes)
    assert caught.value.fault == LinkFault.UNLAWFUL


def test_only_the_side_itself_changes_its_half() -> None:
    after = told(LINKED, B, "link", gives={"cove": "write"}, trust="close", quota=Quota(1, 2, 3), paused=True)
    assert after.mine == LINKED.mine
    assert after.theirs.terms.gives == {"cove": Share("write", NOW)}
    assert (after.theirs.terms.trust, after.theirs.terms.allowance) == (Trust.CLOSE, Quota(1, 2, 3))
    assert LINKED.mine.terms.allowance == QUOTAS[Trust.GUEST]


def test_basins_are_given_taken_and_taken_back() -> None:
    more = told(LINKED, A, "share", NOW + 20, basin="sea", may="write")
    assert more.mine.terms.gives == {"sea": Share("write", NOW)}  # who may write as well goes on reading
    taken = told(more, B, "link", NOW + 30, takes={"sea": "write"})
    assert taken.theirs.terms.takes == {"sea": Share("write", NOW + 30)}
    assert told(taken, B, "link", takes={"sea": None}).theirs.terms.takes == {}
    assert told(taken, A, "unshare", basin="sea").mine.terms.gives == {}
    assert told(taken, A, "unshare", basin="moor").mine.terms.gives == taken.mine.terms.gives


BODY = {"text": "x", "mesh": B, "round": 1, "turn": 1}


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        (act("invite", BODY, author="aporia"), "author"),
        (act("invite", BODY, author="@mara:example.org"), "author"),
        (act("say", BODY), "body"),
        (act("invite", {"text": "x", "mesh": B}), "body"),
        (husk(act("invite", BODY)), "body"),
        (act("invite", BODY | {"round": 0}), "body"),
        (act("invite", BODY | {"turn": 0}), "body"),
        (act("invite", BODY | {"turn": "1"}), "body"),
        (act("invite", BODY | {"gives": {"sea": "own"}}), "body"),
        (act("invite", BODY | {"gives": {"the sea": "read"}}), "body"),
        (act("invite", BODY | {"takes": {OWN: "read"}}), "body"),
        (act("invite", BODY | {"gives": {f"b{at}": "read" for at in range(65)}}), "body"),
        (act("invite", BODY | {"trust": "best"}), "body"),
        (act("invite", BODY | {"quota": [1, 2, -3]}), "body"),
        (act("share", BODY | {"basin": "sea"}), "body"),
        (act("share", BODY | {"may": "read"}), "body"),
        (act("share", BODY | {"may": "read", "basin": "the sea"}), "body"),
        (act("unshare", BODY), "body"),
        (act("invite", BODY, NOW + MAX_AHEAD_MS + 1), "clock"),
        (act("invite", BODY | {"turn": 2}), "early"),
        (act("invite", BODY | {"round": 2}), "unlawful"),
        (act("invite", BODY | {"mesh": A}), "unlawful"),
        (act("invite", BODY | {"mesh": C}), "unlawful"),
        (act("invite", {key: BODY[key] for key in ("text", "round", "turn")}), "unlawful"),
        (act("link", BODY), "unlawful"),
        (act("leave", BODY), "unlawful"),
        (act("leave", BODY | {"turn": 2}), "early"),
    ],
)
def test_what_is_not_lawful_is_refused_with_its_fault(statement: Act, fault: str) -> None:
    with pytest.raises(BadLink) as caught:
        apply(STRANGERS, A, statement, NOW, is_em)
    assert caught.value.fault == fault


@given(
    kind=st.sampled_from(["invite", "link", "share", "unshare", "leave"]),
    body=st.fixed_dictionaries(
        {"text": st.just("x")},
        optional={
            "mesh": st.sampled_from([A, B]) | st.text(max_size=5),
            "round": st.integers(-1, 3) | st.none() | st.just(2**60),
            "turn": st.integers(-1, 3) | st.text(max_size=2),
            "basin": st.sampled_from(["sea", "the sea", OWN]) | st.none() | st.integers(),
            "may": st.sampled_from(["read", "write", "own"]),
            "gives": st.dictionaries(st.text(max_size=3), st.text(max_size=3)) | st.just({"sea": "write"}),
            "takes": st.dictionaries(st.text(max_size=3), st.none()) | st.just({"sea": "write"}),
            "trust": st.sampled_from([*Trust, "best"]) | st.integers(),
            "quota": st.lists(st.integers(-1, 2**63 - 1), max_size=4) | st.just({}),
            "paused": st.booleans() | st.integers(0, 1),
            "until_ms": st.integers(-1, 2**53),
        },
    ),
    seen=st.sampled_from([STRANGERS, INVITED, LINKED, PAUSED, LEFT]),
    by=st.sampled_from([A, B]),
)
def test_any_body_gives_a_relationship_or_a_documented_error(
    kind: str, body: dict[str, Any], seen: Relationship, by: MeshId
) -> None:
    identity = new_id(NOW, bytes(10))
    statement = Act(identity, kind, "me", [], identity, Budget(1, 1, 1, NOW), NOW, body)
    try:
        after = apply(seen, by, statement, NOW, is_em)
    except BadLink:
        return
    untouched = "theirs" if by == A else "mine"
    assert kind in ("invite", "leave") or getattr(after, untouched) == getattr(seen, untouched)


def _by_b(seen: Relationship, kind: str, **changes: Any) -> Act:
    body = next_body(seen.mirrored(), kind, Changes(text=kind)) | changes
    return act(kind, body, changes.pop("at_ms", NOW), number=99)


@pytest.mark.parametrize(
    ("seen", "statement"),
    [
        (LEFT, _by_b(LEFT, "link")),
        (LEFT, _by_b(LEFT, "invite", round=1)),
        (LEFT, _by_b(LEFT, "invite", round=3)),
        (LINKED, _by_b(LINKED, "invite", round=1)),
        (LINKED, _by_b(LINKED, "share", basin="sea", may="read", round=2)),
        (LINKED, _by_b(LINKED, "link", turn=1)),
        (INVITED, _by_b(INVITED, "share", basin="sea", may="read")),
        (INVITED, act("link", next_body(INVITED.mirrored(), "link", Changes(text="late")), NOW + 51)),
    ],
)
def test_a_peer_that_breaks_the_rules_changes_nothing(seen: Relationship, statement: Act) -> None:
    with pytest.raises(BadLink) as caught:
        apply(seen, B, statement, NOW, is_em)
    assert caught.value.fault == LinkFault.UNLAWFUL


def test_only_the_two_speak_and_no_side_can_name_too_many_basins() -> None:
    with pytest.raises(BadLink, match="neither"):
        apply(LINKED, C, saying(LINKED, "leave"), NOW, is_em)
    seen = LINKED
    for hundred in range(MAX_SHARED // 64):
        seen = told(seen, A, "link", takes={f"b{hundred}-{at}": "read" for at in range(64)})
    with pytest.raises(BadLink, match="more than"):
        told(seen, A, "link", takes={"last": "read"})


def test_a_statement_that_was_overtaken_by_the_end_or_a_new_round_is_counted_and_does_nothing() -> None:
    share = saying(LINKED.mirrored(), "share", basin="cove", may="read")
    gone = told(LINKED, A, "leave")
    after = apply(gone, B, share, NOW, is_em)
    assert (after.state, after.theirs.terms, after.theirs.turn) == (State.LEFT, gone.theirs.terms, 2)
    again = told(gone, A, "invite")
    after = apply(again, B, share, NOW, is_em)
    assert (after.state, after.theirs.standing, after.theirs.turn) == (State.INVITED, Standing.NOTHING, 2)


def test_an_invitation_that_was_overtaken_does_nothing_in_a_later_round_or_after_the_end() -> None:
    late = saying(LEFT.mirrored(), "invite")
    gone = told(told(LEFT, A, "invite"), A, "leave")
    again = told(gone, A, "invite")
    for seen, state in ((gone, State.LEFT), (again, State.INVITED)):
        after = apply(seen, B, late, NOW, is_em)
        assert (after.state, after.theirs.standing, after.theirs.turn) == (state, Standing.NOTHING, 3)


def test_a_statement_that_comes_again_much_later_changes_nothing() -> None:
    share = saying(LINKED, "share", basin="cove", may="read")
    seen = told(apply(LINKED, A, share, NOW, is_em), A, "unshare", basin="cove")
    assert apply(seen, A, share, NOW, is_em) is seen


def test_both_may_invite_at_once_and_are_linked_on_what_each_said() -> None:
    mine = saying(STRANGERS, "invite", gives={"sea": "read"})
    theirs = saying(STRANGERS.mirrored(), "invite", takes={"sea": "read"})
    one = apply(apply(STRANGERS, A, mine, NOW, is_em), B, theirs, NOW, is_em)
    other = apply(apply(STRANGERS.mirrored(), B, theirs, NOW, is_em), A, mine, NOW, is_em)
    assert one == other.mirrored()
    assert one.state == State.LINKED
    assert may_send(one, "sea", act("say", {"text": ""}), NOW) is None


def test_leaving_waits_for_no_statement_that_was_lost() -> None:
    peer = told(LINKED.mirrored(), B, "share", basin="cove", may="read")
    after = apply(LINKED, B, saying(peer, "leave"), NOW, is_em)
    assert after.state == State.LEFT


def test_ones_own_statement_follows_the_last_one() -> None:
    stale = saying(LINKED, "share", basin="cove", may="read")
    seen = told(LINKED, A, "unshare", basin="sea")
    with pytest.raises(BadLink):
        declare(seen, stale, NOW, is_em)


# What may cross


SEEN = told(LINKED, B, "link", NOW + 20, gives={"moor": "write", "cove": "read"}, trust="known")
BOTH = told(SEEN, A, "link", NOW + 30, takes={"moor": "write", "cove": "write"}, trust="known")


@pytest.mark.parametrize(
    ("relationship", "basin", "at_ms", "sent", "taken"),
    [
        (STRANGERS, "sea", NOW + 10, "strangers", "strangers"),
        (INVITED, "sea", NOW + 10, "not been accepted", "not been accepted"),
        (PAUSED, "sea", NOW + 10, "paused", "paused"),
        (LEFT, "sea", NOW + 10, "ended", "ended"),
        (LINKED, "sea", NOW + 10, None, "not shared"),
        (LINKED, "sea", NOW + 9, "a guest", "not shared"),  # the share began when both had agreed
        (told(LINKED, A, "link", trust="known"), "sea", 0, None, "not shared"),
        (told(LINKED, B, "link", trust="silent"), "sea", NOW + 10, "no longer listens", "not shared"),
        (told(LINKED, A, "link", trust="silent"), "sea", NOW + 10, None, "no longer listens"),
        (told(LINKED, B, "link", takes={"sea": None}), "sea", NOW + 10, "not shared", "not shared"),
        (told(LINKED, A, "unshare", basin="sea"), "sea", NOW + 10, "not shared", "not shared"),
        (LINKED, "cove", NOW + 10, "not shared", "not shared"),
        (SEEN, "moor", NOW + 99, "not shared", "not shared"),  # given, and not taken yet
        (BOTH, "moor", NOW + 99, None, None),  # given to write, taken to write: both ways
        (BOTH, "cove", NOW + 99, "not shared", None),  # given to read, whatever is taken
        (told(BOTH, A, "link", trust="guest"), "moor", NOW + 29, "a guest", None),
        (told(BOTH, A, "link", trust="guest"), "moor", NOW + 30, None, None),
        (BOTH, "moor", NOW + MAX_AHEAD_MS + 1, "five minutes", "five minutes"),
        (LINKED, OWN, NOW, None, None),
        (LEFT, OWN, NOW, "ended", "ended"),
    ],
)
def test_what_may_cross(
    relationship: Relationship, basin: str, at_ms: int, sent: str | None, taken: str | None
) -> None:
    said = act("say", {"text": "hello"}, at_ms)
    for why, expected in (
        (may_send(relationship, basin, said, NOW), sent),
        (may_take(relationship, basin, said, NOW), taken),
        (may_take(relationship.mirrored(), basin, said, NOW), sent),
    ):
        assert (why is None) == (expected is None)
        assert expected is None or expected in (why or "")


@pytest.mark.parametrize("relationship", [STRANGERS, INVITED, LINKED, PAUSED, LEFT])
def test_statements_always_cross_in_the_basin_of_the_two_and_nowhere_else(relationship: Relationship) -> None:
    leaving = act("leave", {"text": "farewell"})
    assert may_send(relationship, OWN, leaving, NOW) is may_take(relationship, OWN, leaving, NOW) is None
    assert may_send(relationship, own_basin(A, C), leaving, NOW) is not None


def test_the_basin_of_two_is_theirs_alone() -> None:
    assert own_basin(A, B) == own_basin(B, A) != own_basin(A, C)
    assert check_shareable("link-farm") == "link-farm"
    with pytest.raises(BadAddress):
        check_shareable(OWN)


@given(acts())
def test_unknown_words_are_sent_as_text_in_the_same_place(said: Act) -> None:
    dance, other = Digest("b2:dance"), Digest("b2:other")
    plain = plainly(said, {"dance": dance}, {other})
    assert plainly(said, {"dance": dance}, {dance}) is said
    check_act(plain)
    if said.kind == "dance":
        assert (plain.kind, plain.body) == ("say", {"text": said.text, "kind": "dance"})
        assert msgspec.structs.replace(plain, kind=said.kind, body=said.body) == said
    else:
        assert plain is said


# Two sides and a bad network


BASINS = ("sea", "moor")
mays = st.sampled_from(["read", "write"])
sides = st.sampled_from([0, 1])
KINDS = ("invite", "link", "share", "unshare", "leave")
LIKELY = {
    State.STRANGER: ("invite",),
    State.INVITED: ("link", "invite", "leave"),
    State.LINKED: KINDS[1:],
    State.PAUSED: KINDS[1:],
    State.LEFT: ("invite",),
}


class TwoSides(RuleBasedStateMachine):
    """Statements made on either side arrive late, twice, out of order or not at all, until the network is well."""

    def __init__(self) -> None:
        super().__init__()
        self.views = [Relationship(A, B), Relationship(B, A)]
        self.said: list[list[Act]] = [[], []]
        self.clock = NOW

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    @rule(
        side=sides,
        data=st.data(),
        basin=st.sampled_from(BASINS),
        may=mays,
        gives=st.dictionaries(st.sampled_from(BASINS), mays),
        takes=st.dictionaries(st.sampled_from(BASINS), mays | st.none()),
        paused=st.none() | st.booleans(),
        trust=st.sampled_from([None, *Trust]),
    )
    def speak(self, side: int, data: st.DataObject, basin: str, **changes: Any) -> None:
        """A person says something about the relationship; what their own view does not allow is never sent."""
        view, may = self.views[side], changes.pop("may")
        kind = data.draw(st.sampled_from(LIKELY[view.state] * 3 + KINDS), label="kind")
        body = next_body(view, kind, Changes(text="", basin=basin, may=may, **changes))
        statement = act(kind, body, self.tick(), number=len(self.said[side]))
        try:
            self.views[side] = declare(view, statement, self.clock, is_em)
        except BadLink:
            return
        assert self.views[side].mine.turn == view.mine.turn + 1
        self.said[side].append(statement)

    @precondition(lambda self: self.said[0] or self.said[1])
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        """Anything that was ever said may arrive at the other side now, again, or before what was said earlier."""
        side = data.draw(st.sampled_from([side for side in (0, 1) if self.said[side]]))
        self.deliver(side, data.draw(st.sampled_from(self.said[side])))

    @rule(side=sides)
    def next_in_line(self, side: int) -> None:
        """The usual case: the next statement that the other side does not know arrives."""
        known = self.views[1 - side].theirs.turn
        for statement in self.said[side][known : known + 1]:
            self.deliver(side, statement)

    @rule()
    def network_is_well(self) -> None:
        """Everything missing arrives in order: both see the same, and one may send just what the other may take."""
        for side in (0, 1):
            for statement in self.said[side]:
                self.deliver(side, statement)
        one, other = self.views
        assert one == other.mirrored()
        for basin in (*BASINS, OWN):
            said = act("say", {"text": ""}, self.clock)
            assert may_send(one, basin, said, self.clock) == may_take(other, basin, said, self.clock)
            assert may_send(other, basin, said, self.clock) == may_take(one, basin, said, self.clock)

    def deliver(self, side: int, statement: Act) -> None:
        by = (A, B)[side]
        before = self.views[1 - side]
        try:
            after = apply(before, by, statement, self.clock, is_em)
        except BadLink as error:
            assert error.fault == LinkFault.EARLY  # noqa: PT017 - an honest peer is never unlawful
            assert statement.body["turn"] > before.theirs.turn + 1
            return
        assert apply(after, by, statement, self.clock, is_em) == after
        assert after.round == before.round or statement.kind == "invite"
        self.views[1 - side] = after

    def this_round(self, side: int) -> Iterator[Act]:
        """What a side has itself said in the round that its own view is in."""
        return (one for one in self.said[side] if one.body["round"] == self.views[side].round)

    def written(self, one: Act) -> set[str]:
        """The basins that a statement gives to write."""
        given = {basin for basin, may in one.body.get("gives", {}).items() if may == "write"}
        return given | ({one.body["basin"]} if one.kind == "share" and one.body["may"] == "write" else set())

    @invariant()
    def nothing_crosses_without_the_givers_own_act(self) -> None:
        """Replayed from each side's own statements alone, with none of the code under test."""
        for side in (0, 1):
            joined, gives, takes, paused = False, set(), {}, False
            let = {basin for one in self.said[1 - side] for basin in self.written(one)}
            for one in self.this_round(side):
                joined |= one.kind in ("invite", "link")
                if one.kind in ("invite", "link"):
                    gives |= set(one.body.get("gives", {}))
                    takes |= one.body.get("takes", {})
                    paused = one.body.get("paused", paused)
                if one.kind == "share":
                    gives.add(one.body["basin"])
                if one.kind == "unshare":
                    gives.discard(one.body["basin"])
                if one.kind == "leave":
                    joined, gives, takes = False, set(), {}
            for basin in BASINS:
                said = act("say", {"text": ""}, self.clock)
                if may_send(self.views[side], basin, said, self.clock) is None:
                    assert joined
                    assert not paused
                    assert basin in gives or (takes.get(basin) == "write" and basin in let)

    @invariant()
    def leaving_is_final(self) -> None:
        """Once a side knows of a leave, nothing crosses, and only an invitation opens another round."""
        for view in self.views:
            if Standing.LEFT in (view.mine.standing, view.theirs.standing):
                assert view.state == State.LEFT
                assert not view.mine.terms.gives
                assert not view.theirs.terms.gives

    def teardown(self) -> None:
        self.network_is_well()


TwoSides.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestTwoSides = TwoSides.TestCase
