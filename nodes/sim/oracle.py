"""Who should have heard what: worked out from the scenario alone, with none of the code that it judges.

It is told what is said, carried and heard, and finds what was lost, came twice, reached somebody who was not meant to
have it, or came out of order; and what was spent beyond what anybody allowed.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocol.acts import Act
from protocol.quota import DAY_MS, MINUTE_MS, Quota

REMEMBERED: Final = 8_192  # answers to "who may hear this author in this basin"; they are needed in runs
TOLD: Final = 5  # breaches of each kind that are told in words

Roads = Mapping[str, Mapping[int, Sequence[int]]]  # by basin and mesh: to whom what is there goes


class Saying(NamedTuple):
    """An act as it was said: `place` counts its author's in that basin; `bad` is the trick, where it is one."""

    author: int
    basin: str
    place: int
    at_ms: int
    is_history: bool
    bad: str | None


@dataclass(slots=True)
class Chain:
    """A chain: what it began with, the acts that answer in it, and the meshes that gave them."""

    hops: int
    acts: int
    answers: int = 0
    depth: int = 0
    speakers: set[int] = field(default_factory=set[int])


@dataclass(slots=True)
class Outcome:
    """What came of a simulation, in numbers; `breaches` are sentences, and `broken` counts them by kind."""

    said: int = 0
    due: int = 0
    delivered: int = 0
    distances: Counter[int] = field(default_factory=Counter[int])
    late: int = 0
    catch_up_ms: int = 0
    unreadable: int = 0
    longest: int = 0
    deepest: int = 0
    overshoot: int = 0
    overshoot_of: int = 0
    spent_for_others: int = 0
    most_spent: int = 0
    most_chains: int = 0
    most_a_minute: int = 0
    tried: Counter[str] = field(default_factory=Counter[str])
    got: Counter[str] = field(default_factory=Counter[str])
    broken: Counter[str] = field(default_factory=Counter[str])
    breaches: list[str] = field(default_factory=list[str])

    def breach(self, kind: str, sentence: str) -> None:
        """Note that a promise was broken."""
        self.broken[kind] += 1
        if self.broken[kind] <= TOLD:
            self.breaches.append(f"{kind}: {sentence}")


@dataclass(frozen=True, slots=True)
class Promises:
    """What the oracle holds a swarm to. `roads` say where what is said in a basin may go.

    `cut_ms` are the times between which some meshes are cut off. `ahead_ms` has for each mesh how far its clock is
    ahead of the slowest one's; acts from further ahead than `limit_ms` may be refused.
    """

    roads: Roads
    hostile: Sequence[bool]
    quota: Quota
    shows_history: bool
    cut_ms: tuple[int, int]
    ahead_ms: Sequence[int]
    limit_ms: int


class Oracle:
    """Told as things happen; `judge` says what came of it."""

    def __init__(self, promises: Promises) -> None:
        self.outcome = Outcome()
        self._promises = promises
        self._sayings: dict[bytes, Saying] = {}
        self._places: Counter[tuple[int, str]] = Counter()
        self._heard: list[list[bytes]] = [[] for _ in promises.hostile]
        self._chains: dict[bytes, Chain] = {}
        self._reach: OrderedDict[tuple[str, int, bool], dict[int, int]] = OrderedDict()
        self._tokens: Counter[tuple[int, int, int]] = Counter()
        self._begun: Counter[tuple[int, int, int]] = Counter()
        self._minutes: dict[tuple[int, int], tuple[int, int]] = {}

    # Told as it happens

    def said(self, number: int, basin: str, act: Act, now_ms: int, *, is_history: bool = False) -> None:
        """A mesh says something by the rules."""
        self.outcome.said += 1
        self._places[number, basin] += 1
        self._sayings[act.id] = Saying(number, basin, self._places[number, basin], now_ms, is_history, None)
        if act.is_root:
            self._chains[act.id] = Chain(act.budget.hops, act.budget.acts)
        elif chain := self._chains.get(act.root):
            chain.answers += 1
            chain.depth = max(chain.depth, chain.hops - act.budget.hops)
            chain.speakers.add(number)

    def tricked(self, number: int, basin: str, act: Act, now_ms: int, trick: str) -> None:
        """A hostile mesh sends something that nobody may take."""
        self.outcome.tried[trick] += 1
        self._sayings.setdefault(act.id, Saying(number, basin, 0, now_ms, False, trick))

    def carried(self, sender: int, receiver: int, act: Act) -> None:
        """An act has come to a mesh, whether that takes it or not. A hostile sender may send what it likes."""
        told = self._sayings.get(act.id)
        if told is not None and told.bad is None and not self._promises.hostile[sender]:
            self._look(receiver, told, "was sent")

    def heard(self, number: int, act: Act, now_ms: int) -> None:
        """A mesh hands an act on as new."""
        told = self._sayings[act.id]
        self._heard[number].append(act.id)
        if told.bad is not None:
            self.outcome.got[told.bad] += 1
            if not self._promises.hostile[number]:
                self.outcome.breach("hostile", f"mesh {number} took what nobody may take: {told.bad}")
            return
        self._look(number, told, "took")
        begun, ended = self._promises.cut_ms
        if begun <= told.at_ms < ended <= now_ms and number != told.author:
            self.outcome.late += 1
            self.outcome.catch_up_ms = max(self.outcome.catch_up_ms, now_ms - ended)

    def took(self, host: int, sender: int, acts: int, clock_ms: int) -> None:
        """So many acts of a peer were counted against its quota."""
        minute, so_far = self._minutes.get((host, sender), (0, 0))
        now = max(minute, clock_ms // MINUTE_MS)
        count = acts + (so_far if now == minute else 0)
        self._minutes[host, sender] = (now, count)
        self.outcome.most_a_minute = max(self.outcome.most_a_minute, count)
        if count > self._promises.quota.acts_a_minute:
            self.outcome.breach("quota", f"mesh {host} took {count} acts in a minute from mesh {sender}")

    def spent(self, host: int, payer: int, tokens: int, clock_ms: int, *, begins: bool) -> None:
        """A mesh has paid for a reply in a chain that another one began."""
        key = (host, payer, clock_ms // DAY_MS)
        self._tokens[key] += tokens
        self._begun[key] += begins

    # Judged at the end

    def judge(self) -> Outcome:
        """Everything is delivered that will be: what came of it?"""
        known = [self._order(number, ids) for number, ids in enumerate(self._heard)]
        for identity, told in self._sayings.items():
            self._arrived(identity, told, known)
        self._count()
        return self.outcome

    def _look(self, number: int, told: Saying, how: str) -> None:
        """Whether a mesh may have an act at all."""
        meant = self._reached(told.basin, told.author, through_hostile=True)
        is_early = told.is_history and not self._promises.shows_history and number != told.author
        if number not in meant or is_early:
            self.outcome.breach("leaked", f"mesh {number} {how} what mesh {told.author} said in {told.basin}")

    def _order(self, number: int, ids: Sequence[bytes]) -> set[bytes]:
        """Each act once, and of each author in order; gives what a mesh has heard."""
        seen, places = set[bytes](), dict[tuple[int, str], int]()
        for identity in ids:
            told = self._sayings[identity]
            if identity in seen:
                self.outcome.breach("doubled", f"mesh {number} heard an act of mesh {told.author} twice")
                continue
            seen.add(identity)
            before = places.get((told.author, told.basin), 0)
            if told.place < before and not self._promises.hostile[told.author]:
                self.outcome.breach("order", f"mesh {number} heard an act of mesh {told.author} after a later one")
            places[told.author, told.basin] = max(told.place, before)
        return seen

    def _arrived(self, identity: bytes, told: Saying, known: Sequence[set[bytes]]) -> None:
        """Whether everybody who should have heard an act has."""
        promises = self._promises
        if told.bad is not None or promises.hostile[told.author] or (told.is_history and not promises.shows_history):
            return
        readable = promises.ahead_ms[told.author] <= promises.limit_ms
        for number, distance in self._reached(told.basin, told.author, through_hostile=False).items():
            if number == told.author:
                continue
            if identity in known[number]:
                self.outcome.due += 1
                self.outcome.delivered += 1
                self.outcome.distances[distance] += 1
            elif not readable:
                self.outcome.unreadable += 1
            else:
                self.outcome.due += 1
                self.outcome.breach("lost", f"mesh {number} never heard an act of mesh {told.author} in {told.basin}")

    def _count(self) -> None:
        outcome, quota = self.outcome, self._promises.quota
        for chain in self._chains.values():
            outcome.longest = max(outcome.longest, chain.answers)
            outcome.deepest = max(outcome.deepest, chain.depth)
            if chain.answers - chain.acts > outcome.overshoot:
                outcome.overshoot, outcome.overshoot_of = chain.answers - chain.acts, len(chain.speakers)
            if chain.depth > chain.hops:
                outcome.breach("budget", f"a chain of {chain.hops} hops went {chain.depth} deep")
            if chain.answers > chain.acts * max(1, len(chain.speakers)):
                outcome.breach("budget", f"a chain of {chain.acts} acts came to {chain.answers}")
        outcome.spent_for_others = self._tokens.total()
        outcome.most_spent = max(self._tokens.values(), default=0)
        outcome.most_chains = max(self._begun.values(), default=0)
        if outcome.most_chains > quota.roots_a_day:
            outcome.breach("quota", f"a mesh paid for {outcome.most_chains} chains of another in a day")
        for (host, payer, _), tokens in self._tokens.items():
            if tokens > quota.tokens_a_day:
                outcome.breach("quota", f"mesh {host} spent {tokens} tokens in a day for mesh {payer}")

    def _reached(self, basin: str, author: int, *, through_hostile: bool) -> dict[int, int]:
        """To whom an author's acts in a basin should come, each with the number of links between."""
        key = (basin, author, through_hostile)
        if (found := self._reach.get(key)) is None:
            found = self._reach[key] = dict(self._walk(basin, author, through_hostile=through_hostile))
            if len(self._reach) > REMEMBERED:
                self._reach.popitem(last=False)
        return found

    def _walk(self, basin: str, author: int, *, through_hostile: bool) -> Iterator[tuple[int, int]]:
        roads, hostile = self._promises.roads.get(basin, {}), self._promises.hostile
        waiting, seen = deque([(author, 0)]), {author}
        while waiting:
            at, distance = waiting.popleft()
            yield at, distance
            if hostile[at] and at != author and not through_hostile:
                continue  # it may keep to itself what it should pass on
            for there in roads.get(at, ()):
                if there not in seen:
                    seen.add(there)
                    waiting.append((there, distance + 1))
