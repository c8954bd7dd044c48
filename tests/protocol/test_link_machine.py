"""One honest side of a relationship, and another that may say anything at all.

What two honest sides make of a bad network stands in test_link.py. Here the other side has the key of its mesh and no
manners: statements with any place and body, in its own name and, unsigned for, in ours; the honest side's own come late
and again as well.
"""

from typing import Any, Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from protocol.acts import Act, ActId, new_id
from protocol.budget import Budget
from protocol.crossing import may_send, may_take, sent_basins
from protocol.errors import BadLink
from protocol.keys import KeyKind, MeshId, Signer
from protocol.link import MAX_SHARED, Relationship, Standing, State, apply, declare, next_body
from protocol.statement import STATEMENTS, Changes, Trust, own_basin

NOW: Final = 1_800_000_000_000
US = MeshId(Signer(b"u" * 32, KeyKind.MESH).public)
THEM = MeshId(Signer(b"t" * 32, KeyKind.MESH).public)
OTHERS = MeshId(Signer(b"o" * 32, KeyKind.MESH).public)
BASINS: Final = ("sea", "moor")
USUAL: Final = {
    State.STRANGER: ("invite",),
    State.INVITED: ("link", "leave"),
    State.LINKED: ("link", "share", "unshare", "leave"),
    State.PAUSED: ("link", "share", "unshare", "leave"),
    State.LEFT: ("invite",),
}

mays = st.sampled_from(["read", "write"])
kinds = st.sampled_from(sorted(STATEMENTS))
bodies = st.fixed_dictionaries(
    {"text": st.just("x"), "mesh": st.sampled_from([US, US, US, THEM, OTHERS, ""])},
    optional={
        "basin": st.sampled_from([*BASINS, "the sea", own_basin(US, THEM)]),
        "may": st.sampled_from(["read", "write", "own"]),
        "gives": st.dictionaries(st.sampled_from([*BASINS, "the sea"]), mays),
        "takes": st.dictionaries(st.sampled_from(BASINS), mays | st.none()),
        "trust": st.sampled_from([*Trust, "best"]),
        "quota": st.lists(st.integers(-1, 2**53 - 1), min_size=2, max_size=3),
        "paused": st.booleans(),
        "until_ms": st.integers(-1, 2**53),
    },
)


def is_em(author: str) -> bool:
    return author == "aporia"


class OneHonestSide(RuleBasedStateMachine):
    """`seen` is what we hold; `ours` what we have said; `told` what the other side has said, to come again."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Relationship(US, THEM)
        self.ours: list[Act] = []
        self.told: list[Act] = []
        self.number = 0

    def act(self, kind: str, body: dict[str, Any], author: str = "me", ahead_ms: int = 0) -> Act:
        self.number += 1
        at_ms = NOW + self.number + ahead_ms
        identity: ActId = new_id(at_ms, self.number.to_bytes(10, "big"))
        return Act(identity, kind, author, [], identity, Budget(0, 0, 0, 0), at_ms, body)

    def comes(self, by: MeshId, act: Act) -> None:
        """A statement reaches us: it changes what is its speaker's to change, or nothing."""
        before = self.seen
        try:
            self.seen = apply(before, by, act, NOW + self.number, is_em)
        except BadLink:
            return
        assert apply(self.seen, by, act, NOW + self.number, is_em) == self.seen
        mine, was = self.seen.mine, before.mine
        assert (mine.turn, mine.last) == (was.turn, was.last)
        if act.kind not in ("invite", "leave"):  # those begin a round and end one, which empties both halves
            assert mine == was

    @rule(data=st.data(), basin=st.sampled_from(BASINS), may=mays, paused=st.none() | st.booleans())
    def we_speak(self, data: st.DataObject, basin: str, may: str, **changes: Any) -> None:
        """Our person says what may be said now."""
        kind = data.draw(st.sampled_from(USUAL[self.seen.state]))
        terms: dict[str, Any] = {"gives": {basin: may}} if kind in ("invite", "link") else {"basin": basin, "may": may}
        said = self.act(kind, next_body(self.seen, kind, Changes(text="", **terms, **changes)))
        try:
            self.seen = declare(self.seen, said, NOW + self.number, is_em)
        except BadLink:
            return
        self.ours.append(said)

    @rule(
        kind=kinds,
        body=bodies,
        turn=st.integers(-2, 3),
        step=st.integers(-2, 2),
        author=st.sampled_from(["me", "me", "me", "aporia", "@mara:example.org"]),
        ahead_ms=st.sampled_from([0, 0, 0, 600_000]),
    )
    def they_say_anything(  # noqa: PLR0913, PLR0917 - a strategy for each part of a statement
        self, kind: str, body: dict[str, Any], turn: int, step: int, author: str, ahead_ms: int
    ) -> None:
        """A statement near the place that would be lawful."""
        place = {"turn": self.seen.theirs.turn + turn, "round": self.seen.round + step}
        said = self.act(kind, body | place, author, ahead_ms)
        self.told.append(said)
        self.comes(THEM, said)

    @rule(kind=kinds, body=bodies)
    def they_say_what_may_be_said(self, kind: str, body: dict[str, Any]) -> None:
        """The next statement in the right place, with any terms."""
        opens = int(kind == "invite" and self.seen.state in (State.STRANGER, State.LEFT))
        place = {"turn": self.seen.theirs.turn + 1, "round": self.seen.round + opens, "mesh": US}
        self.they_say_again(self.act(kind, body | place))

    def they_say_again(self, said: Act) -> None:
        self.told.append(said)
        self.comes(THEM, said)

    @rule(data=st.data())
    def something_comes_again(self, data: st.DataObject) -> None:
        """Whatever was said by anybody comes again, much later."""
        if self.told:
            self.comes(THEM, data.draw(st.sampled_from(self.told)))
        if self.ours:
            before = self.seen
            self.seen = apply(before, US, data.draw(st.sampled_from(self.ours)), NOW + self.number, is_em)
            assert self.seen == before

    @rule(kind=kinds, body=bodies)
    def somebody_else_speaks(self, kind: str, body: dict[str, Any]) -> None:
        """A third mesh has no say."""
        before = self.seen
        self.comes(OTHERS, self.act(kind, body | {"turn": 1, "round": 1}))
        assert self.seen == before

    @invariant()
    def our_half_is_what_we_said(self) -> None:
        """No word of theirs gives, takes, trusts or unpauses for us."""
        mine, round_ours = self.seen.mine, [one for one in self.ours if one.body["round"] == self.seen.round]
        assert mine.turn == len(self.ours)
        gives, paused, joined = dict[str, str](), False, False
        for one in round_ours:
            if one.kind in ("invite", "link"):
                joined = True
                gives |= one.body.get("gives", {})
                paused = one.body.get("paused", paused)
            elif one.kind == "share":
                gives[one.body["basin"]] = one.body["may"]
            elif one.kind == "unshare":
                gives.pop(one.body["basin"], None)
            else:
                joined = False
        if self.seen.state in (State.LINKED, State.PAUSED):
            assert joined
            assert {basin: share.may for basin, share in mine.terms.gives.items()} == gives
            assert mine.terms.paused == paused
        assert mine.standing == Standing.NOTHING or round_ours

    @invariant()
    def nothing_goes_out_that_we_did_not_give(self) -> None:
        """And nothing at all unless both have agreed."""
        said = self.act("say", {"text": ""})
        for basin in BASINS:
            is_sent = may_send(self.seen, basin, said, NOW + self.number) is None
            is_given = basin in self.seen.mine.terms.gives
            assert not is_sent or is_given
            assert is_sent == (basin in sent_basins(self.seen)) or self.seen.mine.terms.trust == Trust.GUEST
            if self.seen.state != State.LINKED:
                assert not is_sent
                assert may_take(self.seen, basin, said, NOW + self.number) is not None

    @invariant()
    def nothing_grows_without_end(self) -> None:
        for side in (self.seen.mine, self.seen.theirs):
            assert max(len(side.terms.gives), len(side.terms.takes)) <= MAX_SHARED
            assert set(side.terms.gives) | set(side.terms.takes) <= set(BASINS)


OneHonestSide.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestOneHonestSide = OneHonestSide.TestCase
