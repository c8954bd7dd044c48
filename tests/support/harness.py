"""A whole node on a memory bus with a scripted model: everything but the processes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.bus.base import Bus
from mesh.bus.memory import MemoryBroker
from mesh.store import Store
from mesh.trust import Trust
from nodes.commands.joining import SCHEMAS
from nodes.config import MeshConfig
from nodes.media import Media
from nodes.models.base import Model
from nodes.node import Ground, Identity, Node
from nodes.speaker import Models
from protocol.acts import Act, new_id
from protocol.address import Subject
from protocol.budget import Budget
from protocol.certificate import Certificate
from protocol.frame import encode_frame
from protocol.keys import KeyKind, MeshId, NodeId, Signer

NOW = 1_800_000_000_000
MESH = Signer(b"m" * 32, KeyKind.MESH)
NODE = Signer(b"n" * 32, KeyKind.NODE)
CLIENT = Signer(b"c" * 32, KeyKind.NODE)
OTHER = Signer(b"o" * 32, KeyKind.NODE)
MESH_ID = MeshId(MESH.public)
BUDGET = Budget(6, 16, 50_000, NOW + 600_000)


def certificate(node: Signer, mesh: Signer = MESH, not_after: int = 2 * NOW) -> Certificate:
    return Certificate(MeshId(mesh.public), NodeId(node.public), 0, not_after, ["speak"])


TRUST = Trust([certificate(NODE), certificate(OTHER)])


def root(text: str, number: int = 0, author: str = "mara", kind: str = "say", budget: Budget = BUDGET) -> Act:
    """What a person says; `number` makes it another act."""
    identity = new_id(NOW, number.to_bytes(10, "big"))
    return Act(identity, kind, author, [], identity, budget, NOW, {"text": text})


def frame(
    sequence: int, *acts: Act, node: Signer = NODE, basin: str = "yappings", sent: int = NOW
) -> tuple[str, bytes]:
    """The subject and bytes of a frame."""
    subject = Subject(True, basin, MESH_ID, NodeId(node.public))
    return str(subject), encode_frame(node, sequence, sent, basin, acts)


def write_em(folder: Path, name: str, config: str = "") -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "config.yaml").write_text(config, "utf-8")
    (folder / name / "chat.txt").write_text(f"<mara> hello\n<{name}> hello, I am {name}\n", "utf-8")


class World:
    """A broker, a database and an em folder that outlive the nodes that run on them."""

    signer = NODE  # the node's; OTHER is trusted as well

    def __init__(self, path: Path, broker: MemoryBroker, config: MeshConfig | None = None) -> None:
        self.path, self.broker = path, broker
        self.config = config or MeshConfig(name="amp", human="mara")
        self.ems = path / "ems"
        self.ems.mkdir(exist_ok=True)
        self.clock: Callable[[], int] = lambda: NOW

    @asynccontextmanager
    async def node(
        self,
        model: Model,
        bus: Bus | None = None,
        prepare: Callable[[Node], None] = lambda _node: None,
    ) -> AsyncIterator[Node]:
        """A node that runs within the block and is cut off at its end, as a crash would.

        `prepare` is called before it runs: to give it a companion.
        """
        store = Store(self.path / "node.db", SCHEMAS)
        ground = Ground(
            bus or self.broker.connect(),
            store,
            Models(model, lambda _: "chat", "scripted"),
            self.clock,
            Media(self.path / "media"),
        )
        identity = Identity(self.signer, certificate(self.signer), TRUST, NodeId(CLIENT.public))
        node = Node(self.config, self.ems, identity, ground)
        prepare(node)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(node.run())
            await node.ready.wait()
            try:
                yield node
            finally:
                task.cancel()
        store.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until something holds; the test's own timeout ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0)


async def quiet(node: Node) -> None:
    """Until nobody writes, nothing waits, and everything stored was heard."""

    async def settled() -> bool:
        newest = await node.ground.bus.last_seq()
        return not node.runtime.speaking() and node.outbox.waiting() == 0 and node.ledger.cursor == newest

    calm = 0
    while calm < 20:  # a decision and a reply are several turns of the loop apart
        calm = calm + 1 if await settled() else 0
        await asyncio.sleep(0)
