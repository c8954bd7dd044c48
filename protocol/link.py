"""Relationships: what two meshes have said to each other about linking, and what may therefore cross.

    stranger -> invited -> linked <-> paused
                   `-> left <-'----------'      an invitation after that opens the next round

Each side changes its own half alone, by statements that it counts. The whole is a function of the two halves, so it
does not matter in which order the halves reached anybody; what belongs to a round that is over has no effect.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

import msgspec

from protocol.acts import Act, ActId
from protocol.errors import BadLink, LinkFault
from protocol.keys import MeshId
from protocol.quota import Quota
from protocol.statement import Changes, May, Statement, Trust, read_statement

MAX_SHARED: Final = 256  # basins that one side gives, or takes: more is no relationship but an attack on memory

# What a peer may use where its quota has not been set: acts a minute, chains begun a day, tokens a day.
QUOTAS: Final[dict[Trust, Quota]] = {
    Trust.CLOSE: Quota(60_000, 10_000, 1_000_000),
    Trust.KNOWN: Quota(12_000, 1_000, 200_000),
    Trust.GUEST: Quota(12_000, 100, 20_000),
    Trust.SILENT: Quota(0, 0, 0),
}


class State(StrEnum):
    """How two meshes stand to each other."""

    STRANGER = "stranger"
    INVITED = "invited"
    LINKED = "linked"
    PAUSED = "paused"
    LEFT = "left"


class Standing(StrEnum):
    """What one side has said in this round."""

    NOTHING = "nothing"
    INVITED = "invited"
    AGREED = "agreed"
    LEFT = "left"


class Share(msgspec.Struct, frozen=True):
    """A basin given, or taken, since `since_ms` (the speaker's Unix milliseconds)."""

    may: May
    since_ms: int


class Terms(msgspec.Struct, frozen=True):
    """One side's terms. To take a basin to `write` is to say there, to the other side, what is said at home."""

    gives: dict[str, Share] = msgspec.field(default_factory=dict)
    takes: dict[str, Share] = msgspec.field(default_factory=dict)
    trust: Trust = Trust.GUEST  # nobody sees what was said before they came, until a person says so
    quota: Quota | None = None
    paused: bool = False

    @property
    def allowance(self) -> Quota:
        """What the other side may use here: the quota that was set, or its trust level's."""
        return self.quota or QUOTAS[self.trust]


class Side(msgspec.Struct, frozen=True):
    """One half: `turn` statements so far, the last of which was `last`; the rest is about this round."""

    turn: int = 0
    last: ActId = ActId(b"")
    standing: Standing = Standing.NOTHING
    joined_ms: int = 0  # when it invited or agreed
    until_ms: int | None = None  # when its invitation ends
    terms: Terms = Terms()


class Relationship(msgspec.Struct, frozen=True):
    """Two halves as `me` knows them. A value: keep it with msgspec, compare it, replace it."""

    me: MeshId
    peer: MeshId
    round: int = 0
    mine: Side = Side()
    theirs: Side = Side()

    @property
    def state(self) -> State:
        """Where the two stand. Either side alone ends or pauses it; only both together link."""
        standings = (self.mine.standing, self.theirs.standing)
        if not self.round:
            return State.STRANGER
        if Standing.LEFT in standings:
            return State.LEFT
        if Standing.NOTHING in standings:
            return State.INVITED
        return State.PAUSED if self.mine.terms.paused or self.theirs.terms.paused else State.LINKED

    def mirrored(self) -> "Relationship":
        """The same as the other side sees it."""
        return Relationship(self.peer, self.me, self.round, self.theirs, self.mine)


def apply(relationship: Relationship, by: MeshId, act: Act, now_ms: int, is_em: Callable[[str], bool]) -> Relationship:
    """The relationship after a statement by one of the two, as it arrived, once or again.

    `is_em` tells whether an author is an em of that mesh. Raises BadLink: `early` when statements before it have not
    arrived yet, anything else when it will never count. A `leave` waits for nothing.
    """
    said = read_statement(act, now_ms, is_em)
    if by not in (relationship.me, relationship.peer):
        raise _unlawful("it is by neither of the two")
    if said.mesh != (relationship.peer if by == relationship.me else relationship.me):
        raise _unlawful("it names another mesh")
    seen = relationship if by == relationship.me else relationship.mirrored()
    if act.id == seen.mine.last or said.turn < seen.mine.turn:
        return relationship
    if said.turn == seen.mine.turn:
        raise _unlawful(f"another statement already has the number {said.turn}")
    if said.turn > seen.mine.turn + 1 and not (act.kind == "leave" and said.round == seen.round):
        raise BadLink(LinkFault.EARLY, f"statements {seen.mine.turn + 1} to {said.turn - 1} have not arrived")
    after = _invite(seen, act, said) if act.kind == "invite" else _speak(seen, act, said)
    counted = msgspec.structs.replace(after.mine, turn=said.turn, last=act.id)
    after = msgspec.structs.replace(after, mine=counted)
    return after if by == relationship.me else after.mirrored()


def declare(relationship: Relationship, act: Act, now_ms: int, is_em: Callable[[str], bool]) -> Relationship:
    """`apply` for one's own next statement, before it is sent. Raises BadLink also where it would have no effect."""
    state, inviting = relationship.state, act.kind == "invite"
    if inviting and state in (State.LINKED, State.PAUSED):
        raise _unlawful("you are linked already; leave first, or share and unshare basins")
    if inviting and state == State.INVITED and relationship.theirs.standing == Standing.INVITED:
        raise _unlawful("they have invited you; accept or decline that")
    if not inviting and state in (State.STRANGER, State.LEFT):
        raise _unlawful("there is no link; invite them first")
    after = apply(relationship, relationship.me, act, now_ms, is_em)
    if after.mine.turn != relationship.mine.turn + 1 or after.round != act.body["round"]:
        raise _unlawful("it does not follow your last statement; make it again")
    return after


def next_body(relationship: Relationship, kind: str, changes: Changes) -> dict[str, Any]:
    """The body of one's own next statement: `changes` with the mesh it is for and its place filled in."""
    opens = 1 if kind == "invite" else 0
    fields = {name: getattr(changes, name) for name in changes.__struct_fields__}
    fields["mesh"] = relationship.peer
    return msgspec.to_builtins(
        Statement(**fields, round=relationship.round + opens, turn=relationship.mine.turn + 1), builtin_types=(bytes,)
    )


def _invite(seen: Relationship, act: Act, said: Statement) -> Relationship:
    """`seen` by the speaker, after its invitation: it opens the next round, or joins the one the other side opened."""
    if said.round > seen.round + 1:
        raise _unlawful(f"it begins round {said.round} after round {seen.round}")
    if said.round > seen.round:
        fresh = Relationship(seen.me, seen.peer, said.round, _afresh(seen.mine), _afresh(seen.theirs))
        return _join(fresh, act, said, Standing.INVITED)
    if said.round < seen.round:
        return seen
    if seen.mine.standing != Standing.NOTHING:
        raise _unlawful("they have spoken in this round already; an invitation opens the next")
    return seen if seen.theirs.standing == Standing.LEFT else _join(seen, act, said, Standing.INVITED)


def _speak(seen: Relationship, act: Act, said: Statement) -> Relationship:
    """`seen` by the speaker, after anything but an invitation."""
    mine, theirs = seen.mine, seen.theirs
    if said.round > seen.round:
        raise _unlawful("no invitation has opened that round")
    if said.round < seen.round:
        return seen
    if mine.standing == Standing.LEFT:
        raise _unlawful("they have left; only a new invitation counts")
    if act.kind == "leave":
        left = msgspec.structs.replace(_afresh(mine), standing=Standing.LEFT)
        crossed = theirs.standing == Standing.LEFT
        return msgspec.structs.replace(seen, mine=left, theirs=theirs if crossed else _afresh(theirs))
    if theirs.standing == Standing.LEFT:
        return seen  # the two crossed
    if mine.standing != Standing.NOTHING:
        return msgspec.structs.replace(seen, mine=_changed(mine, act, said))
    if act.kind != "link" or theirs.standing != Standing.INVITED:
        raise _unlawful("nobody has agreed to a link; an invitation comes first")
    if theirs.until_ms is not None and act.at_ms > theirs.until_ms:
        raise _unlawful("the invitation had ended; a new one is needed")
    return _join(seen, act, said, Standing.AGREED)


def _join(seen: Relationship, act: Act, said: Statement, standing: Standing) -> Relationship:
    until_ms = said.until_ms if standing == Standing.INVITED else None
    joined = msgspec.structs.replace(seen.mine, standing=standing, joined_ms=act.at_ms, until_ms=until_ms)
    return msgspec.structs.replace(seen, mine=_changed(joined, act, said))


def _afresh(side: Side) -> Side:
    """What stays of a side when a round ends or begins: its count."""
    return Side(side.turn, side.last)


def _changed(side: Side, act: Act, said: Statement) -> Side:
    terms = side.terms
    gives, takes = dict(terms.gives), dict(terms.takes)
    given: dict[str, May] = {}
    if act.kind in ("invite", "link"):
        given = said.gives
        terms = Terms(
            trust=said.trust or terms.trust,
            quota=said.quota or terms.quota,
            paused=terms.paused if said.paused is None else said.paused,
        )
        for basin, may in said.takes.items():
            _take(takes, basin, may, act.at_ms)
    elif said.basin is not None and act.kind == "share" and said.may is not None:
        given = {said.basin: said.may}
    elif said.basin is not None:
        gives.pop(said.basin, None)
    for basin, may in given.items():  # who may write as well has been reading since the beginning
        gives[basin] = Share(may, gives[basin].since_ms if basin in gives else act.at_ms)
    if max(len(gives), len(takes)) > MAX_SHARED:
        raise _unlawful(f"it names more than {MAX_SHARED} basins")
    return msgspec.structs.replace(side, terms=msgspec.structs.replace(terms, gives=gives, takes=takes))


def _take(takes: dict[str, Share], basin: str, may: May | None, at_ms: int) -> None:
    if may is None:
        takes.pop(basin, None)
    elif basin not in takes or takes[basin].may != may:  # to write is a step of its own, and begins when it is taken
        takes[basin] = Share(may, at_ms)


def _unlawful(sentence: str) -> BadLink:
    return BadLink(LinkFault.UNLAWFUL, f"the statement does not count: {sentence}")
