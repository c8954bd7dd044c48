"""Owners' nodes as far as links go: a bus in memory, a ledger, and gates that are plain sets."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.bus.memory import MemoryBroker
from mesh.entries import recent
from mesh.ledger import Ledger
from mesh.links.channel import Self
from mesh.links.ground import LINKS_SCHEMA, Ground, Sent
from mesh.links.links import Links
from mesh.links.messages import BadMessage, Papers
from mesh.links.session import Session
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
        self.oldest_ms = 0
        self.notes: list[str] = []
        self.matters: list[tuple[str, bytes]] = []
        self.sessions: Links | list[Session] = []
        self.sequences: dict[str, int] = {}
        self.ledger = Ledger(self.bus, self.store, self.trust, lambda: NOW, lambda _entries: None)
        self.who = Self(self.node, paper)
        self.ground = Ground(
            self.mesh,
            self.node,
            self.store,
            self.bus,
            self.trust,
            lambda: NOW,
            self,
            Papers([paper], []),
            "b2:0",
            self.ledger,
        )

    def met(self, peer: MeshId) -> None:
        """Nobody here waits for a link."""

    def sent(self, peer: MeshId) -> Sequence[Sent]:  # noqa: ARG002 - one peer
        return [Sent(basin, since_ms, self.oldest_ms) for basin, since_ms in self.gives.items()]

    def may_have(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> bool:  # noqa: ARG002
        return act.text != "not for you"

    def as_read(self, peer: MeshId, act: Act) -> Act:  # noqa: ARG002 - one peer
        return act

    def kept(self, peer: MeshId, basin: str) -> None:
        """Nothing is noted here."""

    def pace_s(self, peer: MeshId, basin: str, acts: int) -> float:  # noqa: ARG002
        return 0.0

    def takes(self, peer: MeshId, basin: str) -> bool:  # noqa: ARG002 - one peer
        return basin in self.taken

    def refuses(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> str | None:  # noqa: ARG002
        return "not with me" if act.text == "refuse me" else None

    def recovers(self, peer: MeshId) -> Sequence[str]:  # noqa: ARG002 - nothing was lost here
        return ()

    def recovered(self, peer: MeshId) -> None:
        """Nothing was lost here."""

    def told(self, peer: MeshId, text: str) -> None:  # noqa: ARG002 - one peer
        self.notes.append(text)

    def matter(self, peer: MeshId, topic: str, data: bytes) -> None:  # noqa: ARG002 - one peer
        if topic == "nonsense":
            raise BadMessage("no part of ours says that")
        self.matters.append((topic, data))

    def proceed(self) -> None:
        for session in self.sessions if isinstance(self.sessions, list) else self.sessions.sessions.values():
            session.wake()

    async def say(self, basin: str, *texts: str, signer: Signer | None = None) -> None:
        """Say each in a frame of its own."""
        node = signer or self.node
        for text in texts:
            number = self.sequences[basin] = self.sequences.get(basin, 0) + 1
            identity = new_id(NOW, f"{self.mesh[3]}{basin[:3]}{number:06}".encode().rjust(10))
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
        try:
            yield pair
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for side in pair:
                side.store.close()


async def until_heard(side: Side, basin: str, texts: list[str]) -> None:
    while side.heard(basin) != texts:
        await asyncio.sleep(0)
