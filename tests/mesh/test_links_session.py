"""Two nodes' ledgers over a wire in memory: what is shared arrives once, in order, and nothing else does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.bus.memory import MemoryBroker
from mesh.entries import recent
from mesh.ledger import Ledger
from mesh.links.messages import Frames, Papers, encode
from mesh.links.session import LINKS_SCHEMA, Ground, Session
from mesh.links.wire import MemoryWire, Wire, WireBroken
from mesh.store import MESH_SCHEMA, Store
from mesh.trust import Trust
from protocol.acts import Act, new_id
from protocol.address import Subject
from protocol.budget import Budget
from protocol.certificate import Certificate, issue, read_certificate
from protocol.frame import encode_frame, frame_id
from protocol.keys import KeyKind, MeshId, NodeId, Signer

NOW = 1_800_000_000_000
BUDGET = Budget(6, 16, 50_000, NOW + 600_000)


class Side:
    """One owner's node: keys, a bus, a ledger, and gates that are plain sets."""

    def __init__(self, letter: str, path: Path, broker: MemoryBroker) -> None:
        self.key = Signer(letter.encode() * 32, KeyKind.MESH)
        self.node = Signer(letter.upper().encode() * 32, KeyKind.NODE)
        self.mesh = MeshId(self.key.public)
        paper = issue(self.key, Certificate(self.mesh, NodeId(self.node.public), 0, 2 * NOW, ["speak"]))
        self.trust = Trust([read_certificate(paper)])
        self.bus = broker.connect()
        self.store = Store(path / f"{letter}.db", {"mesh": MESH_SCHEMA, "links": LINKS_SCHEMA})
        self.gives: dict[str, int] = {}
        self.taken: set[str] = set()
        self.sessions: list[Session] = []
        self.sequences: dict[str, int] = {}
        self.ledger = Ledger(self.bus, self.store, self.trust, lambda: NOW, lambda _entries: None)
        self.ground = Ground(
            self.mesh, self.store, self.bus, self.trust, lambda: NOW, self, Papers([paper], []), "b2:0"
        )

    def sent(self, peer: MeshId) -> Sequence[tuple[str, int]]:  # noqa: ARG002 - one peer
        return list(self.gives.items())

    def takes(self, peer: MeshId, basin: str) -> bool:  # noqa: ARG002 - one peer
        return basin in self.taken

    def refuses(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> str | None:  # noqa: ARG002
        return "not with me" if act.text == "refuse me" else None

    def told(self, peer: MeshId, text: str) -> None:
        """Nothing is told here."""

    def proceed(self) -> None:
        for session in self.sessions:
            session.wake()

    async def say(self, basin: str, *texts: str, signer: Signer | None = None) -> None:
        """Say each in a frame of its own."""
        node = signer or self.node
        for text in texts:
            number = self.sequences[basin] = self.sequences.get(basin, 0) + 1
            identity = new_id(NOW, f"{basin}{number:06}".encode()[-10:].rjust(10))
            act = Act(identity, "say", "mara", [], identity, BUDGET, NOW, {"text": text})
            data = encode_frame(node, number, NOW, basin, [act])
            subject = Subject(True, basin, self.mesh, NodeId(node.public))
            await self.bus.publish(str(subject), data, frame_id(data))

    def heard(self, basin: str) -> list[str]:
        return [entry.act.text for entry in recent(self.store, basin, 10_000)]


@asynccontextmanager
async def sides(path: Path) -> AsyncIterator[tuple[Side, Side]]:
    async with MemoryBroker() as one, MemoryBroker() as other, asyncio.TaskGroup() as group:
        pair = Side("a", path, one), Side("b", path, other)
        tasks = [
            group.create_task(side.ledger.run(f"node-{number}", lambda: None, side.proceed))
            for number, side in enumerate(pair)
        ]
        yield pair
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def linked(a: Side, b: Side) -> AsyncIterator[tuple[Wire, Wire]]:
    """A wire between two sides, with a session at each end, broken at the end of the block."""
    ends = MemoryWire.pair()
    async with asyncio.TaskGroup() as group:
        for side, other, end in ((a, b, ends[0]), (b, a, ends[1])):
            session = Session(other.mesh, end, side.ground)
            side.sessions = [session]
            group.create_task(until_broken(session))
        yield ends
        await ends[0].close()


async def until_broken(session: Session) -> None:
    try:
        await session.run()
    except* WireBroken:
        pass


async def until_heard(side: Side, basin: str, texts: list[str]) -> None:
    while side.heard(basin) != texts:
        await asyncio.sleep(0)


async def test_what_is_shared_arrives_in_order_and_nothing_else(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        await a.say("tea", "before")
        await a.say("diary", "private")
        async with linked(a, b):
            await until_heard(b, "tea", ["before"])
            said = [f"line {number}" for number in range(300)]
            await a.say("tea", *said)
            await until_heard(b, "tea", ["before", *said])
            assert b.heard("diary") == []
            assert b.store.one("SELECT count(*) FROM gaps")[0] == 0


async def test_a_broken_wire_is_gone_on_with_and_nothing_comes_twice(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.gives, a.taken, b.taken = {"tea": 0}, {"tea": 0}, {"tea"}, {"tea"}
        said = list[str]()
        for number in range(5):
            async with linked(a, b):
                await a.say("tea", f"live {number}")
                said.append(f"live {number}")
                await until_heard(b, "tea", said)
            await a.say("tea", f"away {number}")
            said.append(f"away {number}")
        async with linked(a, b):
            await until_heard(b, "tea", said)
        assert a.heard("tea") == said


async def test_what_is_not_taken_or_not_signed_right_is_refused_and_counted(tmp_path: Path) -> None:
    """A basin that is not taken, an act that the gates refuse, a stranger's frame: none is stored, the rest goes on."""
    stranger = Signer(b"s" * 32, KeyKind.NODE)
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0, "diary": 0}, {"tea"}
        async with linked(a, b) as (wire, _):
            await a.say("diary", "not asked for")
            await a.say("tea", "refuse me", "hello")
            await until_heard(b, "tea", ["hello"])
            identity = new_id(NOW, b"x" * 10)
            act = Act(identity, "say", "mara", [], identity, BUDGET, NOW, {"text": "forged"})
            await wire.send(encode(Frames(99, [encode_frame(stranger, 1, NOW, "tea", [act]), b"nonsense"])))
            await a.say("tea", "still here")
            await until_heard(b, "tea", ["hello", "still here"])
            assert b.heard("diary") == []
            assert b.store.one("SELECT sum(times) FROM refusals WHERE mesh = ?", (a.mesh,))[0] == 4
