"""A swarm of whole nodes: what `mesh up` runs, each with a bus in memory and a database of its own, in virtual time.

Nothing of a node is left out but its sockets and its models. All of them are honest: hostile ones are light meshes'.
"""

import asyncio
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec

from mesh.bus.memory import MemoryBroker
from mesh.entries import Entry
from mesh.links.channel import Self
from mesh.links.messages import Papers
from mesh.links.ways import Way
from mesh.store import Store
from mesh.trust import Trust
from nodes.companion import Alone, Companions
from nodes.config import MeshConfig
from nodes.models.scripted import Scripted
from nodes.node import Ground, Identity, Node
from nodes.peers.peers import Peers
from nodes.peers.settings import Links
from nodes.peers.tables import Peer
from nodes.peers.ways import Ways
from nodes.sim.clockwork import START_MS
from nodes.sim.mesh import PERSON, YEAR_MS, home
from nodes.sim.net import Net, NetWay
from nodes.sim.oracle import Oracle, Outcome, Promises
from nodes.sim.scenario import Scenario
from nodes.sim.shape import pairs
from nodes.sim.shares import COMMON, roads, shares
from nodes.sim.virtual import VirtualLoop
from nodes.speaker import Models
from protocol.acts import RANDOM_BYTES, new_id
from protocol.certificate import Certificate, issue, read_certificate
from protocol.keys import KEY_BYTES, KeyKind, MeshId, NodeId, Signer
from protocol.link import QUOTAS, Relationship, State
from protocol.quota import DAY_MS
from protocol.statement import MAX_AHEAD_MS, STATEMENTS, Changes, May

HOUR_S: Final = 3_600.0
LINKING_S: Final = 60.0  # until all are linked
ENDING_S: Final = 1_200.0  # without news until it is over: a chain lasts ten minutes, and a quota's minute one
LOOK_S: Final = 0.25  # between two looks whether all are linked
WRITE_S: Final = 3.0  # how long an em takes

Schemas = Mapping[str, Sequence[str]]


class Ear(Alone):
    """Tells the oracle what a node hears, in the transaction in which it does."""

    def __init__(self, swarm: "WholeSwarm", number: int) -> None:
        self._swarm, self._number = swarm, number

    def hear(self, entries: Sequence[Entry]) -> None:
        """New acts; what this node says itself is said by being heard."""
        swarm, now = self._swarm, self._swarm.now_ms()
        for entry in entries:
            if entry.act.kind in STATEMENTS:
                continue
            if swarm.numbers[entry.mesh] == self._number:
                swarm.oracle.said(self._number, entry.basin, entry.act, now, is_history=not swarm.linked)
            swarm.oracle.heard(self._number, entry.act, now)
            swarm.heard[self._number].append(entry.act.id)


class NetWays(Ways):
    """All ways lead into the simulation: of two, the one with the lower number calls, and the other waits."""

    def __init__(self, owner: "Owner", who: Self, settings: Links, store: Store, net: Net) -> None:
        super().__init__(owner.mesh, who, settings, store)
        self._owner, self._net = owner, net

    def to(self, peer: Peer) -> list[Way]:
        """The one way to a peer."""
        here, there = self._owner.number, self._owner.swarm.numbers[peer.mesh]
        return [NetWay(self._net, frozenset((here, there)), calls=here < there)]


class Owner:
    """A person with a node."""

    node: Node
    peers: Peers

    def __init__(self, number: int, swarm: "WholeSwarm", folder: Path, skew_ms: int) -> None:
        self.number, self.swarm, self._skew_ms = number, swarm, skew_ms
        self.dice = random.Random(f"{swarm.plan.seed}/{number}")
        key = Signer(self.dice.randbytes(KEY_BYTES), KeyKind.MESH)
        self._signer = Signer(self.dice.randbytes(KEY_BYTES), KeyKind.NODE)
        self.mesh = MeshId(key.public)
        service = Certificate(self.mesh, NodeId(self._signer.public), START_MS - YEAR_MS, START_MS + YEAR_MS, ["speak"])
        self._paper = issue(key, service)
        self._folder = folder / str(number)

    def clock(self) -> int:
        """The time, as this owner's machine has it."""
        return self.swarm.now_ms() + self._skew_ms

    def make(self, basins: Sequence[str], bus: MemoryBroker, net: Net, stack: AsyncExitStack) -> None:
        """The node, with ems that listen in these basins."""
        plan = self.swarm.plan
        (self._folder / "ems").mkdir(parents=True)
        for place in range(plan.ems):
            self._em(f"em{place}-{self.number}", basins)
        hops, acts = plan.budget
        settings = {basin: {"budget": {"hops": min(hops, 64), "acts": min(acts, 4_096)}} for basin in basins}
        config = MeshConfig.model_validate({"name": f"mesh-{self.number}", "human": PERSON, "basins": settings})
        store = Store(self._folder / "node.db", self.swarm.schemas)
        stack.callback(store.close)
        certificate = read_certificate(self._paper)
        models = Models(Scripted(["I think so too."]), lambda _: "chat", "scripted")
        ground = Ground(bus.connect(), store, models, self.clock)
        identity = Identity(self._signer, certificate, Trust([certificate]), certificate.node)
        self.node = Node(config, self._folder / "ems", identity, ground)
        who = Self(self._signer, self._paper)
        self.peers = Peers(self.node, who, Papers([self._paper], []))
        self.peers.ways = NetWays(self, who, config.links, store, net)
        self.node.companion = Companions(self.peers, Ear(self.swarm, self.number))

    def _em(self, name: str, basins: Sequence[str]) -> None:
        folder = self._folder / "ems" / name
        folder.mkdir(parents=True)
        chance = self.swarm.plan.chance
        answers = f"reply_on_random: {round(1 / chance)}\n" if chance else ""
        listens = f"basins: [{', '.join(basins)}]\nreply_on_ping: false\ndelay_s: {WRITE_S}\n"
        (folder / "config.yaml").write_text(answers + listens, "utf-8")
        (folder / "chat.txt").write_text(f"<{PERSON}> hello\n<{name}> hello, I am {name}\n", "utf-8")

    async def say(self, basin: str, text: str) -> None:
        """Say something; by dice, where the node itself takes what nobody can tell beforehand."""
        identity = new_id(self.clock(), self.dice.randbytes(RANDOM_BYTES))
        act = msgspec.structs.replace(self.node.root(basin, PERSON, [], "say", {"text": text}), id=identity)
        await self.node.outbox.say(basin, msgspec.structs.replace(act, root=identity))


class WholeSwarm:
    """A scenario at work. It needs a folder for a moment, and nothing else of the machine."""

    def __init__(self, plan: Scenario, schemas: Schemas) -> None:
        """`schemas` are those of a node's database; see nodes.commands.assembly."""
        self.schemas = schemas
        self.plan, self.hostile, self.messages = plan, 0, 0
        self.linked = False
        self.refusals: Counter[str] = Counter()
        self.silences: Counter[str] = Counter()
        self.numbers: dict[MeshId, int] = {}
        self._dice = random.Random(f"{plan.seed}")
        self._links = pairs(plan, self._dice)
        self._shares = shares(plan, self._links, self._dice)
        skews = [round(self._dice.uniform(-plan.skew, plan.skew) * 1000) for _ in range(plan.nodes)]
        self._skews = skews
        self._away = frozenset(self._dice.sample(range(plan.nodes), round(plan.partition * plan.nodes)))
        self._first_s = LINKING_S + 4 * plan.skew
        third_s = plan.hours * HOUR_S / 3
        self._cut_s = (self._first_s + third_s, self._first_s + 2 * third_s) if plan.partition else (0.0, 0.0)
        quota = plan.allowance or QUOTAS[plan.trusting]
        cut_ms = (START_MS + round(self._cut_s[0] * 1000), START_MS + round(self._cut_s[1] * 1000))
        ahead = [skew - min(skews) for skew in skews]
        honest = [False] * plan.nodes
        self.oracle = Oracle(
            Promises(roads(self._shares), honest, quota, plan.trust != "guest", cut_ms, ahead, MAX_AHEAD_MS)
        )
        self.heard: list[list[bytes]] = [[] for _ in range(plan.nodes)]
        self._loop = VirtualLoop()

    def run(self) -> Outcome:
        """From the first word to the last delivery."""
        random.seed(self.plan.seed)  # what links wait between two attempts
        with TemporaryDirectory(prefix="ampmesh-sim-") as folder, asyncio.Runner(loop_factory=lambda: self._loop) as it:
            it.run(self._play(Path(folder)))
        return self.oracle.judge()

    def digest(self) -> str:
        """A hash of everything that every mesh has heard, in order."""
        return hashlib.blake2b(b"".join(map(b"".join, self.heard)), digest_size=16).hexdigest()

    def now_ms(self) -> int:
        """The true time."""
        return START_MS + round(self._loop.time() * 1000)

    async def _play(self, folder: Path) -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            owners = [Owner(number, self, folder, skew) for number, skew in enumerate(self._skews)]
            self.numbers = {one.mesh: one.number for one in owners}
            dice = random.Random(f"{self.plan.seed}/net")
            net = Net(dice, self.plan.latency, self.plan.broken)
            for one in owners:
                one.make(self._basins(one.number), await stack.enter_async_context(MemoryBroker()), net, stack)
            nodes = [group.create_task(one.node.run(), name=f"node {one.number}") for one in owners]
            for one in owners:
                await one.node.ready.wait()
                for _ in range(self.plan.history):
                    await one.say(self._spoken(one.number), ".to myself")  # hidden by its dot: nobody answers
            await asyncio.sleep(1 + 2 * self.plan.skew)  # on every clock, history is dated before the links
            await self._link(owners)
            await self._talk(owners, net)
            for node in nodes:
                node.cancel()
            self._note(owners, net)

    def _basins(self, number: int) -> list[str]:
        """Where a mesh's ems listen."""
        found = {share.basin for share in self._shares if number in (share.giver, share.taker)}
        return sorted(found | {self._spoken(number)})

    def _spoken(self, number: int) -> str:
        return COMMON if self.plan.basins == "common" else home(number)

    async def _link(self, owners: Sequence[Owner]) -> None:
        """Have one invite, and the other accept, by statements that travel over the links themselves."""
        terms: dict[tuple[int, int], dict[str, May]] = defaultdict(dict)
        for share in self._shares:
            terms[share.giver, share.taker][share.basin] = share.may
        for at, there in self._links:
            one, other = owners[at], owners[there]
            gives, takes = terms[at, there], terms[there, at]
            other.peers.meet(_peer(other, one, self._changes(takes, gives)))
            one.peers.meet(_peer(one, other))
            await one.peers.say(one.peers.peers[other.mesh], "invite", self._changes(gives, takes))
        while any(peer.relationship.state != State.LINKED for one in owners for peer in one.peers.peers.values()):  # noqa: ASYNC110 - in virtual time it costs nothing
            await asyncio.sleep(LOOK_S)
        self.linked = True

    def _changes(self, gives: dict[str, May], takes: dict[str, May]) -> Changes:
        taken = dict[str, May | None](takes)
        return Changes(text="", gives=gives, takes=taken, trust=self.plan.trusting, quota=self.plan.allowance)

    async def _talk(self, owners: Sequence[Owner], net: Net) -> None:
        """What people say, and the cut, as it comes; then silence, until all has come to its end."""
        if self._loop.time() > self._first_s:
            raise RuntimeError("the nodes were not linked in time")
        events = sorted([*self._words(owners), (self._cut_s[0], -1, ""), (self._cut_s[1], -2, "")])
        for when, number, text in events:
            await asyncio.sleep(when - self._loop.time())
            if number >= 0:
                await owners[number].say(self._spoken(number), text)
            elif self.plan.partition:
                net.part(self._away if number == -1 else frozenset())
        heard = -1
        while heard != (heard := sum(map(len, self.heard))):  # noqa: ASYNC110 - what waits for quotas comes by and by
            await asyncio.sleep(max(0.0, self._first_s + self.plan.hours * HOUR_S - self._loop.time()) + ENDING_S)

    def _words(self, owners: Sequence[Owner]) -> list[tuple[float, int, str]]:
        """When who says what: at any moment as likely as at any other."""
        found = list[tuple[float, int, str]]()
        for one in owners:
            heard_by = [pair[pair[0] == one.number] for pair in self._links if one.number in pair]
            when = self._first_s
            while self.plan.talk:
                when += one.dice.expovariate(self.plan.talk) * HOUR_S
                if when >= self._first_s + self.plan.hours * HOUR_S:
                    break
                named = f"em{one.dice.randrange(self.plan.ems)}-{one.dice.choice(heard_by)}, " if self.plan.ems else ""
                found.append((when, one.number, f"{named}what do you think?"))
        return found

    def _note(self, owners: Sequence[Owner], net: Net) -> None:
        """What the nodes have written down themselves."""
        self.messages = net.messages
        for one in owners:
            store = one.node.ground.store
            self.refusals.update(dict[str, int](store.rows("SELECT reason, sum(times) FROM refusals GROUP BY reason")))
            sql = "SELECT outcome, count(*) FROM turns WHERE state = 'silent' GROUP BY outcome"
            self.silences.update(dict[str, int](store.rows(sql)))
            for peer in one.peers.peers.values():
                payer, day_ms = self.numbers[peer.mesh], peer.spent.day * DAY_MS
                self.oracle.spent(one.number, payer, peer.spent.tokens, day_ms, begins=False)
                for _ in range(peer.spent.roots):
                    self.oracle.spent(one.number, payer, 0, day_ms, begins=True)


def _peer(one: Owner, other: Owner, accepted: Changes | None = None) -> Peer:
    """Another mesh as one that nothing was said to yet; it needs no address here."""
    return Peer(other.mesh, f"mesh-{other.number}", (), Relationship(one.mesh, other.mesh), accepted=accepted)
