"""What a link costs: an act from one owner's em to another's, and catching up, beside plain NATS leaf nodes.

    python bench/link.py [--acts 20000] [--rounds 3]

Two whole nodes as `mesh up` runs them, each a process with a nats-server, a synced stream and an em of its own, linked
by a sealed WebSocket. Idle: an em of the one says something every 10 ms. The time is from saying it until the other
node has verified it, had its em decide, and committed that (one machine, one monotonic clock); and until the first
node knows that it is in the synced streams of both. Catch-up: what was said while the link was paused. Raw: two
nats-servers linked as leaf nodes. Rounds alternate; shown are the medians of theirs.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import yaml
from footprint import cpu, server_of
from leafnodes import leaves
from rich.console import Console
from rich.table import Table

from mesh.clock import now_ms
from mesh.entries import Entry
from nodes.client import Client
from nodes.commands import assembly, joining
from nodes.commands.common import run_loop
from nodes.commands.logs import configure
from nodes.control import Operations
from nodes.home import Home, create_home
from nodes.node import Node
from nodes.peers.peers import Peers
from protocol.acts import RANDOM_BYTES, Act, new_id
from protocol.budget import Budget
from protocol.keys import MeshId

IDLE, IDLE_S = 300, 0.01
HEARD, QUIET = "tea", "harbour"  # a basin in which the ems listen, and one in which nobody does
TEXT = "x" * 256
FAR = Budget(6, 1_000_000, 1_000_000_000, 2**50)
READY_S, LOOK_S = 30.0, 0.01
EM = f"reply_on_name: true\nreply_on_floor: false\nbasins: [{HEARD}]\n"
NAMES = ("leaf nodes, core NATS, unsigned", "ours: verified and stored there", "  and in both synced streams")
MOST = ("", "1.2, 5", "")


class Say(msgspec.Struct):
    """A number of acts, of a basin."""

    acts: int
    basin: str = HEARD


class Measured(Node):
    """A node that notes by the monotonic clock what it heard, and when."""

    def __init__(self, *parts: Any) -> None:  # noqa: ANN401 - a Node's
        super().__init__(*parts)
        self.heard: dict[str, int] = {}
        self._fresh: list[str] = []

    def _hear(self, entries: Sequence[Entry]) -> None:
        super()._hear(entries)
        self._fresh += [entry.act.id.hex() for entry in entries if entry.basin in (HEARD, QUIET)]

    def _proceed(self) -> None:
        if self._fresh:
            self.heard.update(dict.fromkeys(self._fresh, time.monotonic_ns()))
            self._fresh.clear()
        super()._proceed()


class Asked:
    """What the bench asks of a node beside what every owner may."""

    def __init__(self, node: Measured, peers: Peers) -> None:
        self._node, self._peers, self._number = node, peers, 0

    async def say(self, wish: Say) -> dict[str, Any]:
        """Say acts, each when the one before is in both streams; when each was begun and when it was there, in ns."""
        begun, there = dict[str, int](), list[int]()
        kept, acknowledged = self._peers.gates.kept, asyncio.Event()

        def note(peer: MeshId, basin: str) -> None:
            acknowledged.set()
            kept(peer, basin)

        self._peers.gates.kept = note  # type: ignore[method-assign]
        for _ in range(wish.acts):
            await asyncio.sleep(IDLE_S)
            act = self._act()
            acknowledged.clear()
            begun[act.id.hex()] = time.monotonic_ns()
            await self._node.outbox.say(wish.basin, act)
            await acknowledged.wait()
            there.append(time.monotonic_ns())
        self._peers.gates.kept = kept  # type: ignore[method-assign]
        return {"begun": begun, "there": there}

    async def fill(self, wish: Say) -> dict[str, Any]:
        """Say acts all at once; answers when the stream has them."""
        outbox = self._node.outbox
        with self._node.ground.store.transaction():
            waiting = [outbox.put(wish.basin, self._act()) for _ in range(wish.acts)]
        for one in waiting:
            outbox.send(one)
        while outbox.waiting():  # noqa: ASYNC110 - another process stores it
            await asyncio.sleep(LOOK_S)
        return {}

    def _act(self) -> Act:
        self._number += 1
        now = now_ms()
        identity = new_id(now, self._number.to_bytes(RANDOM_BYTES, "big"))
        (em,) = self._node.runtime.ems
        return Act(identity, "say", em, [], identity, FAR, now, {"text": f"{self._number} {TEXT}"})

    async def heard(self, wish: Say) -> dict[str, Any]:
        """Which acts were heard since the last time and when, once there are so many; CPU seconds until now."""
        while len(self._node.heard) < wish.acts:  # noqa: ASYNC110 - it looks rarely, to take no part
            await asyncio.sleep(LOOK_S)
        found, self._node.heard = self._node.heard, {}
        short = found if len(found) <= IDLE else {"last": max(found.values())}
        return {"heard": short, "cpu": [cpu(os.getpid()), cpu(server_of(os.getpid()))]}


def node(home: Path) -> None:
    """Run the node of a home, with the bench's own questions."""
    made, operations = list[Measured](), joining.peer_operations

    def measured(*parts: Any) -> Measured:  # noqa: ANN401 - a Node's
        made.append(Measured(*parts))
        return made[0]

    def more(peers: Peers) -> Operations:
        asked = Asked(made[0], peers)
        ours = {"say": asked.say, "fill": asked.fill, "heard": asked.heard}
        return {**operations(peers), **{f"bench_{name}": (Say, one) for name, one in ours.items()}}

    assembly.Node, joining.peer_operations = measured, more  # type: ignore[assignment,misc]
    run_loop(assembly.serve(Home(home)))


@asynccontextmanager
async def running(folder: Path, name: str) -> AsyncGenerator[Client]:
    """A node in a process of its own, and its owner's hands."""
    home = create_home(folder / name, name, now_ms)
    home.ems.rename(home.path / "starters")
    (home.ems / f"em-{name}").mkdir(parents=True)
    (home.ems / f"em-{name}" / "config.yaml").write_text(EM, "utf-8")
    (home.ems / f"em-{name}" / "chat.txt").write_text(f"<mara> hello\n<em-{name}> good day\n", "utf-8")
    settings = {"name": name, "human": "mara", "links": {"listen": "127.0.0.1:0"}}
    (home.path / "mesh.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--node", str(home.path))
    try:
        async with asyncio.timeout(READY_S):
            while home.running() is None:
                assert process.returncode is None, "the node has ended"
                await asyncio.sleep(LOOK_S)
        async with assembly.connect(home) as client:
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def link(one: Client, other: Client) -> None:
    """Both speak in both basins, as much as they like."""
    wish = {"gives": {HEARD: "write", QUIET: "write"}, "takes": {}, "expires_s": 600, "trust": "close"}
    code = (await one.request("peer_invite", wish))["code"]
    offer = (await other.request("peer_look", {"code": code}))["offer"]
    await other.request("peer_accept", {"code": code, "offer": offer, "trust": "close"})
    for client, peer in ((one, "bob"), (other, "ada")):
        await client.request("peer_quota", {"peer": peer, "acts": 10**9})


async def idle(one: Client, other: Client) -> tuple[list[float], list[float]]:
    """Milliseconds from saying to the commit at the other end, and to its being in both streams."""
    await other.request("bench_heard", {"acts": 0})
    told = await one.request("bench_say", {"acts": IDLE})
    heard: dict[str, int] = (await other.request("bench_heard", {"acts": IDLE}))["heard"]
    begun: dict[str, int] = told["begun"]
    there = [(at - from_) / 1e6 for at, from_ in zip(told["there"], begun.values(), strict=True)]
    return [(heard[act] - at) / 1e6 for act, at in begun.items()], there


async def catch_up(one: Client, other: Client, acts: int, basin: str) -> tuple[float, list[float]]:
    """Seconds until a node whose link was paused has stored what was said; CPU seconds of nodes and servers."""
    await one.request("peer_pause", {"peer": "bob"})
    while (await other.request("peer_show", {"peer": "ada"}))["state"] != "paused":  # noqa: ASYNC110 - in another process
        await asyncio.sleep(LOOK_S)
    await one.request("bench_fill", {"acts": acts, "basin": basin})
    ends = (one, other)
    before = [(await end.request("bench_heard", {"acts": 0}))["cpu"] for end in ends]
    begun = time.monotonic_ns()
    await one.request("peer_resume", {"peer": "bob"})
    told = [await end.request("bench_heard", {"acts": n}) for end, n in ((other, acts), (one, 0))][::-1]
    cpus = [
        now - then for end, first in zip(told, before, strict=True) for now, then in zip(end["cpu"], first, strict=True)
    ]
    return (told[1]["heard"]["last"] - begun) / 1e9, cpus


async def measure(acts: int, rounds: int) -> None:
    """All rounds, and the tables."""
    times: tuple[list[list[float]], ...] = [], [], []
    late = {HEARD: list[tuple[float, list[float]]](), QUIET: list[tuple[float, list[float]]]()}
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        async with running(folder, "ada") as one, running(folder, "bob") as other:
            await link(one, other)
            for _ in range(rounds):
                plain = await leaves(folder, IDLE, IDLE_S, TEXT.encode())
                for kind, took in zip(times, (plain, *(await idle(one, other))), strict=True):
                    kind.append(took)
                for basin, took in late.items():
                    took.append(await catch_up(one, other, acts, basin))
    show(times, late, acts)


def show(times: Sequence[list[list[float]]], late: dict[str, list[tuple[float, list[float]]]], acts: int) -> None:
    """The tables."""
    table = Table("", "p50 ms", "p99 ms", "at most", title="from one owner's em to another's, idle")
    for name, rounds, most in zip(NAMES, times, MOST, strict=True):
        p50, p99 = (statistics.median(statistics.quantiles(one, n=100)[at] for one in rounds) for at in (49, 98))
        table.add_row(name, f"{p50:.2f}", f"{p99:.2f}", most)
    Console().print(table)
    table = Table("in a basin", "seconds", "acts/s", "at least", "CPU s: sender, its server", "receiver, its server")
    table.title = f"catching up with {acts:,} acts after a pause"
    for basin, name, least in ((QUIET, "where no em listens", "50,000"), (HEARD, "where one does", "")):
        took, spent = sorted(late[basin])[len(late[basin]) // 2]
        used = [f"{one:.2f}" for one in spent]
        table.add_row(name, f"{took:.2f}", f"{acts / took:,.0f}", least, ", ".join(used[:2]), ", ".join(used[2:]))
    Console().print(table)


async def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--acts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    configure("warning")
    await measure(options.acts, options.rounds)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--node"]:
        configure("warning")
        node(Path(sys.argv[2]))
    else:
        run_loop(main())
