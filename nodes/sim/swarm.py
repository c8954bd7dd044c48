"""A swarm of light meshes: made, linked, set talking, disturbed, and judged."""

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from mesh.links.links import AGAIN_S
from nodes.sim.clockwork import DAY_MS, START_MS, Clockwork
from nodes.sim.hostile import TRICKS, Hostile
from nodes.sim.mesh import PERSON, Mesh, home
from nodes.sim.oracle import Oracle, Outcome, Promises
from nodes.sim.scenario import Scenario
from nodes.sim.session import Message, Session
from nodes.sim.shape import pairs
from nodes.sim.shares import COMMON, Share, roads, shares
from protocol.acts import RANDOM_BYTES, Act, new_id
from protocol.budget import Budget
from protocol.certificate import Certificate
from protocol.keys import MeshId
from protocol.link import QUOTAS, Relationship, apply, declare, next_body
from protocol.statement import MAX_AHEAD_MS, Changes, May

HOUR_MS: Final = 3_600_000
HISTORY_MS: Final = 120_000  # what is said before anybody is linked, and the answers to it
SETTLE_MS: Final = 10_000  # until somebody speaks, beside what the clocks are wrong by
PATIENCE_MS: Final = 30 * DAY_MS  # for what waits for quotas, after the last word
STATEMENT: Final = Budget(0, 0, 0, 0)  # nobody's ems answer what is said of a relationship

Make = Callable[[int, "Swarm", str, int], Mesh]


class Swarm:
    """A scenario at work. `make` makes an honest mesh: another kind can be tried in its place."""

    def __init__(self, plan: Scenario, make: Make = Mesh) -> None:
        self.plan, self.clockwork = plan, Clockwork()
        self.messages = 0
        self.refusals: Counter[str] = Counter()
        self.silences: Counter[str] = Counter()
        self._dice = random.Random(f"{plan.seed}")
        self._net_dice = random.Random(f"{plan.seed}/net")
        links = pairs(plan, self._dice)
        given = shares(plan, links, self._dice)
        hostile = self._chosen(plan.hostile)
        self.hostile = sum(hostile)
        skews = [round(self._dice.uniform(-plan.skew, plan.skew) * 1000) for _ in range(plan.nodes)]
        wrong_ms = 2 * round(plan.skew * 1000)
        self.linked_ms = START_MS + HISTORY_MS + wrong_ms  # on every clock, history is dated before this
        first = self.linked_ms + SETTLE_MS + wrong_ms
        self.times = (first, first + round(plan.hours * HOUR_MS))
        third = (self.times[1] - first) // 3
        self.cut_ms = (first + third, first + 2 * third) if plan.partition else (0, 0)
        quota = plan.allowance or QUOTAS[plan.trusting]
        ahead = [skew - min(skews) for skew in skews]
        self.oracle = Oracle(
            Promises(roads(given), hostile, quota, plan.trust != "guest", self.cut_ms, ahead, MAX_AHEAD_MS)
        )
        self.meshes = [
            self._made(number, make, hostile[number], skew, sum(hostile[:number])) for number, skew in enumerate(skews)
        ]
        self.numbers: dict[MeshId, int] = {mesh.id: mesh.number for mesh in self.meshes}
        self.certificates: dict[MeshId, Certificate] = {mesh.id: mesh.certificate for mesh in self.meshes}
        self._listeners = self._link(links, given)

    def run(self) -> Outcome:
        """From the first word to the last delivery. Deterministic."""
        for mesh in self.meshes:
            for place in range(self.plan.history):
                self.clockwork.at(START_MS + place, self._remember, mesh)
        for at in range(len(self.meshes)):
            self.clockwork.at(self.linked_ms, self._open, at)
            self._next_word(at, self.times[0])
        for mesh in self.meshes:
            if isinstance(mesh, Hostile):
                self.clockwork.at(self.times[0] + mesh.dice.randrange(HOUR_MS), mesh.attack, self.times[1])
        if self.plan.partition:
            self._part(self._chosen(self.plan.partition))
        self.clockwork.run(self.times[1] + PATIENCE_MS)
        return self.oracle.judge()

    def digest(self) -> str:
        """A hash of everything that every mesh has heard, in order."""
        hashed = hashlib.blake2b(digest_size=16)
        for mesh in self.meshes:
            for basin in sorted(mesh.frames):
                hashed.update(basin.encode())
                for carried in mesh.frames[basin]:
                    hashed.update(b"".join(act.id for act in carried.frame.acts))
        return hashed.hexdigest()

    # What meshes and sessions ask of it

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        self.refusals[reason] += 1

    def silent(self, reason: str) -> None:
        """Count a silence."""
        self.silences[reason] += 1

    def delay_ms(self) -> int | None:
        """Between half and one and a half of the latency; None: the wire breaks."""
        if self._net_dice.random() < self.plan.broken:
            return None
        return round(self.plan.latency * self._net_dice.uniform(0.5, 1.5))

    def carried(self, session: Session, message: Message) -> None:
        """A message has come: what is in it can be read there, taken or not; and who vouches for others is shown."""
        mesh = session.mesh
        for one in message.frames:
            for act in one.frame.acts:
                self.oracle.carried(self.numbers[session.peer], mesh.number, act)
            if mesh.trust.mesh_of(one.frame.node) is None:
                mesh.trust.learn(self.certificates[one.mesh])

    # Making it

    def _chosen(self, share: float) -> list[bool]:
        """Some of the meshes."""
        numbers = self._dice.sample(range(self.plan.nodes), round(share * self.plan.nodes))
        chosen = set(numbers)
        return [number in chosen for number in range(self.plan.nodes)]

    def _made(self, number: int, make: Make, is_hostile: bool, skew_ms: int, before: int) -> Mesh:  # noqa: FBT001 - of a list
        seed = str(self.plan.seed)
        if is_hostile:
            return Hostile(number, self, seed, skew_ms, TRICKS[before % len(TRICKS)])
        return make(number, self, seed, skew_ms)

    def _link(self, links: Sequence[tuple[int, int]], given: Sequence[Share]) -> list[list[int]]:
        """Have all say to each other what they share; gives for each mesh those who hear its own basin."""
        terms: dict[tuple[int, int], dict[str, May]] = defaultdict(dict)
        for one in given:
            terms[one.giver, one.taker][one.basin] = one.may
        listeners = [list[int]() for _ in self.meshes]
        for at, there in links:
            one, other = self.meshes[at], self.meshes[there]
            gives, takes = terms[at, there], terms[there, at]
            relationship = self._agreed(one, other, gives, takes)
            ends = Session(one, other.id, self), Session(other, one.id, self)
            ends[0].far, ends[1].far = ends[1], ends[0]
            one.meet(other.id, relationship[0], ends[0])
            other.meet(one.id, relationship[1], ends[1])
            listeners[at].append(there)
            listeners[there].append(at)
        return listeners

    def _agreed(
        self, one: Mesh, other: Mesh, gives: dict[str, May], takes: dict[str, May]
    ) -> tuple[Relationship, Relationship]:
        """How two see each other after the one has invited the other, who agreed."""
        here, there = Relationship(one.id, other.id), Relationship(other.id, one.id)
        invited = self._statement(one, here, "invite", gives, takes)
        here = declare(here, invited, self.linked_ms, _is_em)
        there = apply(there, one.id, invited, self.linked_ms, _is_em)
        agreed = self._statement(other, there, "link", takes, gives)
        there = declare(there, agreed, self.linked_ms, _is_em)
        return apply(here, other.id, agreed, self.linked_ms, _is_em), there

    def _statement(
        self, mesh: Mesh, seen: Relationship, kind: str, gives: dict[str, May], takes: dict[str, May]
    ) -> Act:
        changes = Changes(
            text="",
            gives=gives,
            takes=dict[str, May | None](takes),
            trust=self.plan.trusting,
            quota=self.plan.allowance,
        )
        identity = new_id(self.linked_ms, mesh.dice.randbytes(RANDOM_BYTES))
        return Act(identity, kind, PERSON, [], identity, STATEMENT, self.linked_ms, next_body(seen, kind, changes))

    # What happens

    def _basin(self, mesh: Mesh) -> str:
        return COMMON if self.plan.basins == "common" else home(mesh.number)

    def _remember(self, mesh: Mesh) -> None:
        """Something that was said before anybody was linked."""
        basin = self._basin(mesh)
        mesh.say(basin, [mesh.root(basin, (), "to myself")])

    def _open(self, at: int) -> None:
        for session in self.meshes[at].sessions.values():
            session.dial()

    def _next_word(self, at: int, after_ms: int) -> None:
        """Set when a person speaks next: at any moment as likely as at any other."""
        if not self.plan.talk:
            return
        mesh = self.meshes[at]
        when = after_ms + round(mesh.dice.expovariate(self.plan.talk) * HOUR_MS)
        if when < self.times[1]:
            self.clockwork.at(when, self._speak, at)

    def _speak(self, at: int) -> None:
        mesh, listeners = self.meshes[at], self._listeners[at]
        called = mesh.dice.choice(listeners) if listeners and self.plan.ems else None
        to = () if called is None else (f"em{mesh.dice.randrange(self.plan.ems)}-{called}",)
        basin = self._basin(mesh)
        mesh.say(basin, [mesh.root(basin, to)])
        self._next_word(at, self.clockwork.now_ms)

    def _part(self, away: Sequence[bool]) -> None:
        """Cut every link between those who are away and the others, for a while."""
        ends = [
            session
            for mesh in self.meshes
            for session in mesh.sessions.values()
            if away[mesh.number] and not away[self.numbers[session.peer]]
        ]
        self.clockwork.at(self.cut_ms[0], _cut, ends)
        longest_ms = min(round(AGAIN_S[1] * 1000), self.cut_ms[1] - self.cut_ms[0])
        for end in ends:  # whoever dials in vain waits for up to a minute between two attempts
            self.clockwork.at(self.cut_ms[1] + self._net_dice.randrange(longest_ms + 1), _mend, end)


def _cut(ends: Sequence[Session]) -> None:
    for end in ends:
        end.cut = end.far.cut = True
        end.close()
        end.far.close()


def _mend(end: Session) -> None:
    end.cut = end.far.cut = False
    end.dial()


def _is_em(author: str) -> bool:
    return author != PERSON
