"""The outbox: heard here at once, kept until the stream has it, and the same frame however often it is sent."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from harness import NODE, NOW, SCHEMAS, TRUST, certificate, root, until

from mesh.bus.base import Bus
from mesh.bus.memory import MemoryBroker, MemoryBus
from mesh.entries import Entry
from mesh.errors import BusUnavailable
from mesh.ledger import Checked, Ledger
from mesh.outbox import Outbox
from mesh.store import Store
from protocol.frame import decode_frame
from protocol.keys import NodeId


class Deaf(MemoryBus):
    """A server that is away."""

    async def publish(self, subject: str, data: bytes, msg_id: str) -> int:  # noqa: ARG002 - a Bus's
        raise BusUnavailable("nobody there")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", SCHEMAS)
    yield one
    one.close()


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    async with MemoryBroker() as one:
        yield one


def put(outbox: Outbox, store: Store, *texts: str) -> None:
    with store.transaction():
        for number, text in enumerate(texts):
            outbox.put("yappings", root(text, number + len(text)))


@asynccontextmanager
async def speaking(bus: Bus, store: Store, heard: list[Entry]) -> AsyncIterator[Outbox]:
    """An outbox with the ledger that it tells; both are cut off at the end of the block."""
    ledger = Ledger(bus, store, TRUST, lambda: NOW, heard.extend)
    outbox = Outbox(bus, store, NODE, certificate(NODE), lambda: NOW, ledger.take)
    async with asyncio.TaskGroup() as group:

        def begin() -> None:
            outbox.resume(ledger.marks_of(certificate(NODE).mesh, NodeId(NODE.public)))
            tasks.append(group.create_task(outbox.run()))

        tasks = list[asyncio.Task[None]]()
        tasks.append(group.create_task(ledger.run("node", begin, lambda: None)))
        await until(lambda: len(tasks) == 2)
        yield outbox
        for task in tasks:
            task.cancel()


async def test_what_is_heard_at_once_is_what_others_read(store: Store, broker: MemoryBroker) -> None:
    heard = list[Checked]()

    def hear(frames: Sequence[Checked]) -> None:
        assert not broker.stored, "before the bus has it"
        heard.extend(frames)

    outbox = Outbox(broker.connect(), store, NODE, certificate(NODE), lambda: NOW, hear)
    put(outbox, store, "one", "another")
    outbox.resume({"yappings": 6})
    async with asyncio.TaskGroup() as group:
        task = group.create_task(outbox.run())
        await until(lambda: not outbox.waiting())
        task.cancel()
    ((subject, frame, data),) = heard
    assert [(one.subject, one.data) for one in broker.stored.values()] == [(str(subject), data)]
    assert decode_frame(data) == frame
    assert (frame.sequence, [act.text for act in frame.acts]) == (7, ["one", "another"])


async def test_what_was_heard_and_not_stored_is_stored_as_it_was_signed(store: Store, broker: MemoryBroker) -> None:
    """A crash, or a server that is away, between the two: peers may have the frame already, so there is no other."""
    heard = list[Entry]()
    async with speaking(Deaf(broker), store, heard) as outbox:
        put(outbox, store, "heard")
        outbox.resume({})
        await until(lambda: len(heard) == 1)
    put(outbox, store, "not heard")
    signed = [row[0] for row in store.rows("SELECT frame FROM frames")]
    async with speaking(broker.connect(), store, heard) as outbox:
        assert [act.text for act in outbox.acts()] == ["not heard"]
        assert outbox.waiting() == 2
        await until(lambda: not outbox.waiting() and len(broker.stored) == 2)
    stored = [one.data for one in broker.stored.values()]
    assert stored[0] == signed[0]
    assert [decode_frame(data).sequence for data in stored] == [1, 2]
    assert [entry.act.text for entry in heard] == ["heard", "not heard"]
    assert store.rows("SELECT * FROM outbox") == []
    assert store.rows("SELECT * FROM gaps") == []
