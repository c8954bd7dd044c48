"""Whole nodes of several owners in one process, linked over real sockets: own keys, buses, databases and ems each."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from harness import CLIENT, SCHEMAS, write_em

from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from mesh.entries import Entry, recent
from mesh.links.channel import Self
from mesh.links.messages import Papers
from mesh.store import Store
from mesh.trust import Trust
from nodes.companion import Companions
from nodes.config import MeshConfig
from nodes.disputes.disputes import Disputes
from nodes.disputes.operations import operations as dispute_operations
from nodes.models.scripted import Scripted
from nodes.node import Ground, Identity, Node
from nodes.peers.operations import operations
from nodes.peers.peers import Peers
from nodes.presence.introductions import Introductions
from nodes.presence.operations import operations as presence_operations
from nodes.presence.presence import Presence
from nodes.recalls.operations import operations as recall_operations
from nodes.recalls.recalls import Recalls
from nodes.receipts.receipts import Receipts
from nodes.speaker import Models
from nodes.words.operations import operations as word_operations
from nodes.words.words import Words
from protocol.certificate import Certificate, issue, read_certificate
from protocol.keys import KeyKind, MeshId, NodeId, Signer

DAY_MS = 86_400_000
PATIENCE_S = 20  # of a wait: in vain beyond it, and the test then says where


class Owner:
    """One person: mesh, node and what they say. `peers` and `node` are those that run."""

    node: Node
    peers: Peers
    words: Words
    disputes: Disputes
    presence: Presence
    receipts: Receipts
    recalls: Recalls
    introductions: Introductions

    def __init__(self, name: str, path: Path, broker: MemoryBroker, **basins: Any) -> None:
        self.name, self.path, self.broker = name, path / name, broker
        self.path.mkdir()
        self.key = Signer(name.encode().ljust(32, b"m"), KeyKind.MESH)
        self.signer = Signer(name.encode().ljust(32, b"n"), KeyKind.NODE)
        self.mesh = MeshId(self.key.public)
        self.clock: Callable[[], int] = now_ms
        self.price: float | None = None  # of a reply
        start = now_ms()
        certificate = Certificate(self.mesh, NodeId(self.signer.public), start - DAY_MS, start + DAY_MS, ["speak"])
        self.paper = issue(self.key, certificate)
        self.model = Scripted([f"{name}'s em says so"])
        self.ems = self.path / "ems"
        self.ems.mkdir()
        self.config = MeshConfig.model_validate(
            {
                "name": name,
                "human": f"{name}-person",
                "basins": {"tea": {"budget": {"hops": 2, "acts": 8}}, **basins},
                "links": {"listen": "127.0.0.1:0"},
            }
        )

    def em(self, name: str, config: str = "reply_on_floor: false\nbasins: [tea]\n") -> None:
        write_em(self.ems, name, config)

    @asynccontextmanager
    async def up(self, port: int | None = None) -> AsyncIterator["Owner"]:
        """A node that runs within the block and is cut off at its end; `port` is one that it had before."""
        if port is not None:
            links = self.config.links.model_copy(update={"listen": f"127.0.0.1:{port}"})
            self.config = self.config.model_copy(update={"links": links})
        store = Store(self.path / "node.db", SCHEMAS)
        models = Models(self.model, lambda _: "chat", "scripted", price=lambda _, __: self.price)
        ground = Ground(self.broker.connect(), store, models, self.now)
        trust = Trust([read_certificate(self.paper)])
        identity = Identity(self.signer, read_certificate(self.paper), trust, NodeId(CLIENT.public))
        self.node = Node(self.config, self.ems, identity, ground)
        self.peers = Peers(self.node, Self(self.signer, self.paper), Papers([self.paper], []))
        self.words = Words(self.node, self.peers)
        self.disputes = Disputes(self.node, self.peers)
        self.presence = Presence(self.node, self.peers)
        self.receipts = Receipts(self.node, self.peers)
        self.recalls = Recalls(self.node, self.peers)
        self.introductions = Introductions(self.node, self.peers, self.presence)
        self.node.companion = Companions(self.peers, self.disputes)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.node.run())
            await self.node.ready.wait()
            await self.peers.links.ready.wait()
            try:
                yield self
            finally:
                task.cancel()
        store.close()

    def now(self) -> int:
        """The time, as this owner's machine has it."""
        return self.clock()

    @property
    def port(self) -> int:
        """Where links are taken now."""
        return self.peers.links.port or 0

    async def ask(self, operation: str, **given: Any) -> dict[str, Any]:
        """What a command asks of the node."""
        kind, answer = operations(self.peers)[f"peer_{operation}"]
        return await answer(msgspec.convert(given, kind))

    async def vocab(self, operation: str, **given: Any) -> dict[str, Any]:
        """What `mesh vocab` asks of the node."""
        kind, answer = word_operations(self.words, self.peers)[f"vocab_{operation}"]
        return await answer(msgspec.convert(given, kind))

    async def dispute(self, operation: str, **given: Any) -> dict[str, Any]:
        """What `mesh dispute` asks of the node."""
        kind, answer = dispute_operations(self.disputes)[f"dispute_{operation}"]
        return await answer(msgspec.convert(given, kind))

    async def find(self, operation: str, **given: Any) -> dict[str, Any]:
        """What `mesh who`, `mesh recall`, and `mesh peer introduce`, `meet`, `decline` and `grant` ask of the node."""
        found = presence_operations(self.peers, self.presence, self.introductions)
        kind, answer = {**found, **recall_operations(self.peers, self.recalls)}[operation]
        return await answer(msgspec.convert(given, kind))

    async def say(self, text: str, basin: str = "tea") -> None:
        await self.node.say(basin, text, [])

    def entries(self, basin: str = "tea") -> list[Entry]:
        return recent(self.node.ground.store, basin, 10_000)

    def heard(self, basin: str = "tea") -> list[str]:
        """What was said in a basin, as far as this node knows."""
        return [entry.act.text for entry in self.entries(basin)]

    def refused(self, other: "Owner") -> dict[str, int]:
        """What was refused of somebody's."""
        return self.peers.gates.tables.refusals(other.mesh)


@asynccontextmanager
async def owners(path: Path, *names: str, ems: bool = False) -> AsyncIterator[list[Owner]]:
    """Some owners, each with a broker of their own; with an em each, called after them, where asked for."""
    async with AsyncExitStack() as stack:
        people = [Owner(name, path, await stack.enter_async_context(MemoryBroker())) for name in names]
        for one in people:
            if ems:
                one.em(f"em-{one.name}", "reply_on_floor: false\nreply_on_name: true\nbasins: [tea]\n")
        yield people


async def link(one: Owner, other: Owner, trust: str = "known", gives: str = "write", **basins: Any) -> None:
    """`one` invites `other`, who accepts: by default, both speak in tea."""
    invited = await one.ask("invite", gives=basins or {"tea": gives}, takes={}, expires_s=600, trust=trust)
    seen = await other.ask("look", code=invited["code"])
    told = await other.ask("accept", code=invited["code"], offer=seen["offer"], trust=trust)
    assert told["state"] == "linked", told
    await until(lambda: one.peers.relationship(other.mesh).state.value == "linked")


async def until(condition: Callable[[], object]) -> None:
    """Wait for what several nodes bring about together."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)
