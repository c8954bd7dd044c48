"""Whole nodes of several owners as processes, each on a machine of its own with its own nats-server."""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from network import Machine, Network, network
from process import MESH, Process, make_home, up

from mesh.entries import recent
from mesh.errors import MeshError
from nodes.client import Client
from nodes.commands.assembly import connect
from nodes.errors import NodeError
from nodes.records import records

T = TypeVar("T")

PORT = 7417
PATIENCE_S = 60  # of a wait: in vain beyond it, and the test then says what is missing where
ANSWER_S = 3  # a node that is there answers sooner; one that was just killed never does
AWAY = (NodeError, MeshError, TimeoutError)  # what it is to ask a node that was just killed
ALL = 1_000_000
AT_ONCE = 32  # things said at a time by somebody who says many


class Said(NamedTuple):
    """An act as a node holds it."""

    mesh: str
    author: str
    text: str
    id: bytes


class Member:
    """One person: a home, and the node that runs on it, or does not."""

    def __init__(self, name: str, path: Path, machine: Machine, ems: dict[str, str], config: dict[str, Any]) -> None:
        self.name, self.machine = name, machine
        place = f"{machine.address}:{PORT}"
        settings = {"name": name, "human": name, "links": {"listen": place}, "basins": {}}
        self.home = make_home(path / name, ems, settings | config)
        self.mesh = str(self.home.mesh_id())
        self.node: Process | None = None
        self._running = AsyncExitStack()

    async def start(self) -> None:
        """Run the node; returns when it is ready."""
        self.node = await self._running.enter_async_context(up(self.home, (*self.machine.argv, *MESH, "up", "--home")))
        assert self.home.running() is not None, self.node.said()

    async def end(self, number: int = signal.SIGKILL) -> None:
        """End the node with a signal, and wait for it."""
        assert self.node is not None
        self.node.process.send_signal(number)
        await self.node.gone()
        await self._running.aclose()
        self.node = None

    def kill_server(self) -> None:
        """Kill the nats-server alone, if there is one at this moment; its node starts it again."""
        assert self.node is not None
        with contextlib.suppress(ValueError, ProcessLookupError):  # it was killed just now
            os.kill(self.node.server_pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill the node if it runs."""
        await self._running.aclose()
        self.node = None

    async def hands(self, work: Callable[[Client], Awaitable[T]]) -> T:
        """Do something with a client of the node, on its machine."""

        async def there() -> T:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(ANSWER_S):
                    one = await stack.enter_async_context(connect(self.home))
                return await work(one)

        return await self.machine.do(there())

    async def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """What a command asks of the node."""
        return await self.hands(lambda one: one.request(operation, arguments))

    async def say(self, text: str, basin: str = "tea") -> str:
        """Say one thing; returns the act's id."""
        return (await self.hands(lambda one: one.say(basin, text)))["id"]

    async def say_all(self, texts: Sequence[str], basin: str = "tea") -> None:
        """Say many things quickly, AT_ONCE at a time; their order is the node's."""

        async def some(one: Client, waiting: list[str]) -> None:
            while waiting:
                await one.say(basin, waiting.pop())

        async def all_of_them(one: Client) -> None:
            waiting = list(reversed(texts))
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(some(one, waiting))

        await self.hands(all_of_them)

    def count(self, basin: str = "tea") -> int:
        """How many acts of a basin this node holds."""
        sql = "SELECT count(*) FROM acts JOIN frames ON frames.n = acts.place / 64 WHERE basin = ?"
        with records(self.home) as store:
            return 0 if store is None else store.one(sql, (basin,))[0]

    def acts(self, basin: str = "tea") -> list[Said]:
        """All acts of a basin that this node holds, in its order."""
        with records(self.home) as store:
            entries = [] if store is None else recent(store, basin, ALL)
        return [Said(entry.mesh, entry.act.author, entry.act.text, entry.act.id) for entry in entries]

    def holds(self, words: bytes) -> bool:
        """Whether words stand anywhere in the files of this home."""
        return any(words in file.read_bytes() for file in self.home.path.rglob("*") if file.is_file())

    def memory(self) -> int:
        """What the node itself takes, in bytes."""
        assert self.node is not None
        return resident(self.node.process.pid)

    async def refused(self, other: "Member") -> dict[str, int]:
        """What was refused of somebody's, by reason."""
        return (await self.ask("peer_show", peer=other.mesh))["refused"]


def resident(pid: int) -> int:
    """The memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


class World:
    """Some members and their network."""

    def __init__(self, path: Path, net: Network) -> None:
        self.path, self.network = path, net
        self.members: list[Member] = []

    def member(self, name: str, ems: dict[str, str] | None = None, **config: Any) -> Member:
        """One more person."""
        one = Member(name, self.path, self.network.machine(), ems or {}, config)
        self.members.append(one)
        return one

    async def start(self) -> None:
        """Run all nodes that do not run."""
        async with asyncio.TaskGroup() as group:
            for one in self.members:
                if one.node is None:
                    group.create_task(one.start())

    async def link(self, one: Member, other: Member, *basins: str, trust: str = "close") -> None:
        """`one` invites `other`, who accepts: both speak in these basins."""
        gives = dict.fromkeys(basins or ("tea",), "write")
        invited = await one.ask("peer_invite", gives=gives, takes={}, expires_s=600, trust=trust)
        seen = await other.ask("peer_look", code=invited["code"])
        told = await other.ask("peer_accept", code=invited["code"], offer=seen["offer"], trust=trust)
        assert told["state"] == "linked", told
        async with asyncio.timeout(PATIENCE_S):
            while (await one.ask("peer_show", peer=other.mesh))["state"] != "linked":
                await asyncio.sleep(0.02)

    async def line(self, *members: Member) -> None:
        """Link each with the next."""
        for one, other in itertools.pairwise(members):
            await self.link(one, other)


async def spread(members: Iterable[Member], basin: str = "tea") -> None:
    """Wait until everybody holds as much of a basin as all of them have said."""
    everybody = list(members)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len({one.count(basin) for one in everybody}) > 1 or not _is_all(everybody, basin):
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError({one.name: one.count(basin) for one in everybody}) from None


def _is_all(members: Sequence[Member], basin: str) -> bool:
    own = sum(sum(said.mesh == one.mesh for said in one.acts(basin)) for one in members)
    return all(one.count(basin) == own for one in members)


def check(members: Iterable[Member], others: Iterable[Member] = (), basin: str = "tea") -> None:
    """Everybody holds all that each of them said, once and in its order; the others hold nothing of it."""
    everybody = list(members)
    held = {one.name: one.acts(basin) for one in everybody}
    for one in everybody:
        own = [said for said in held[one.name] if said.mesh == one.mesh]
        for other in everybody:
            there = [said for said in held[other.name] if said.mesh == one.mesh]
            assert there == own, (one.name, other.name, len(own), len(there))
    for name, acts in held.items():
        assert len({said.id for said in acts}) == len(acts), name
        assert {said.mesh for said in acts} <= {one.mesh for one in everybody}, name
    for one in others:
        assert one.acts(basin) == [], one.name


def figure(capsys: pytest.CaptureFixture[str], told: str) -> None:
    """Have a figure stand in the output of the run."""
    with capsys.disabled():
        sys.stdout.write(f" [{told}] ")
        sys.stdout.flush()


async def soon(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again and again a node that may have been killed, until it answers."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(*AWAY):
                async with asyncio.timeout(ANSWER_S):
                    return await ask()
            await asyncio.sleep(0.05)


@asynccontextmanager
async def world(path: Path, *names: str, seed: int = 0, **config: Any) -> AsyncIterator[World]:
    """A world of members without ems, not started yet; all nodes are killed at the end."""
    async with network(seed=seed) as net:
        one = World(path, net)
        for name in names:
            one.member(name, **config)
        try:
            yield one
        finally:
            for member in one.members:
                await member.close()
