"""Buses to test against: one in memory, and a real nats-server for each test that asks for one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from buses import Logins, Place, make_logins

from mesh.bus.base import Bus
from mesh.bus.memory import MemoryBroker
from mesh.bus.nats.bus import NatsBus
from mesh.server import Server


@pytest.fixture
def logins() -> Logins:
    return make_logins()


@pytest.fixture
async def server(tmp_path: Path, logins: Logins) -> AsyncIterator[Server]:
    """A real server that has started; nobody supervises it."""
    server = Server(tmp_path / "nats", logins.public)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def bus(server: Server, logins: Logins) -> AsyncIterator[NatsBus]:
    """The node's own connection to the real server."""
    bus = await NatsBus.connect(server.url, nkey_seed=logins.node)
    yield bus
    await bus.close()


@pytest.fixture
async def memory_place() -> AsyncIterator[Place]:
    async with MemoryBroker() as broker:

        async def connect() -> Bus:
            return broker.connect()

        yield Place(connect)


@pytest.fixture
async def nats_place(server: Server, logins: Logins) -> AsyncIterator[Place]:
    opened: list[NatsBus] = []

    async def connect() -> Bus:
        opened.append(await NatsBus.connect(server.url, nkey_seed=logins.node))
        return opened[-1]

    yield Place(connect)
    for one in opened:
        await one.close()


@pytest.fixture(params=["memory", "nats"])
def place(request: pytest.FixtureRequest) -> Place:
    """Both kinds of bus, one after the other: what a test says of one holds for the other."""
    return request.getfixturevalue(f"{request.param}_place")
