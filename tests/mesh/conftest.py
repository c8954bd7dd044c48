"""Buses to test against: one in memory, and a real nats-server for each test that asks for one."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import nkeys
import pytest

from mesh.bus.base import Bus
from mesh.bus.memory import MemoryBroker
from mesh.bus.nats import NatsBus
from mesh.server import Server, ServerKeys


@dataclass(frozen=True)
class Logins:
    """Seeds of the three users of a server, and their public keys as the server is told them."""

    node: str
    client: str
    system: str
    public: ServerKeys


@dataclass(frozen=True)
class Place:
    """Somewhere to open connections to one and the same bus. `forget` removes one stored message."""

    connect: Callable[[], Awaitable[Bus]]
    forget: Callable[[int], Awaitable[None]]


def _pair(prefix: int) -> tuple[str, str]:
    seed = bytes(nkeys.encode_seed(os.urandom(32), prefix))
    return seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode()


def make_logins() -> Logins:
    mesh, node, client, system = (
        _pair(nkeys.PREFIX_BYTE_ACCOUNT if i == 0 else nkeys.PREFIX_BYTE_USER) for i in range(4)
    )
    return Logins(node[0], client[0], system[0], ServerKeys(mesh[1], node[1], client[1], system[1]))


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

        async def forget(seq: int) -> None:
            broker.forget(seq)

        yield Place(connect, forget)


@pytest.fixture
async def nats_place(server: Server, logins: Logins) -> AsyncIterator[Place]:
    opened: list[NatsBus] = []

    async def connect() -> Bus:
        opened.append(await NatsBus.connect(server.url, nkey_seed=logins.node))
        return opened[-1]

    async def forget(seq: int) -> None:
        await opened[0]._stream.call("STREAM.MSG.DELETE.MESH", {"seq": seq})

    yield Place(connect, forget)
    for one in opened:
        await one.close()


@pytest.fixture(params=["memory", "nats"])
def place(request: pytest.FixtureRequest) -> Place:
    """Both kinds of bus, one after the other: what a test says of one holds for the other."""
    return request.getfixturevalue(f"{request.param}_place")
