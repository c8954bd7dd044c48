"""What links cost a node: memory, CPU when nobody speaks, and how long a change of all of them takes.

    python bench/peers.py [--peers 1,10,50,200] [--idle SECONDS]

The measured node is `mesh up` with a nats-server of its own. Its peers are whole nodes with a bus in memory, all of
them in this process; each has invited the node, so that it is the node which dials. For each number of them the node is
started anew. Beside it, the least that so many links could cost: as many plain WebSockets of aiohttp in a process that
does nothing else, with a sign of life every ten seconds each way, as links have. Memory is VmRSS.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from footprint import cpu, rss, running, server_of
from owners import Owner

from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from nodes.client import Client
from nodes.commands.assembly import connect
from nodes.commands.common import run_loop
from nodes.commands.logs import configure
from nodes.home import Home, create_home
from protocol.link import State

SETTLE_S, LOOK_S, PATIENCE_S = 2.0, 0.002, 120.0
BEAT_S, BEAT = 10.0, b"x" * 30  # a sealed sign of life, as links have it


@dataclass(slots=True)
class Figures:
    """Of one number of links. Seconds, MB and % of a core."""

    ready_s: float = 0.0
    again_s: float = 0.0
    node_mb: float = 0.0
    server_mb: float = 0.0
    idle: float = 0.0
    one_s: float = 0.0
    all_s: float = 0.0
    ban_s: float = 0.0
    raw_mb: float = 0.0
    raw_idle: float = 0.0


async def until(condition: Callable[[], object]) -> float:
    """Wait for what several nodes bring about; seconds of the clock that all processes share."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - in other processes too
            await asyncio.sleep(LOOK_S)
    return time.monotonic()


async def used(pid: int, idle_s: float) -> float:
    """% of a core that a process takes."""
    before = cpu(pid)
    await asyncio.sleep(idle_s)
    return (cpu(pid) - before) / idle_s * 100


async def link(client: Client, owner: Owner) -> None:
    """The node accepts what an owner offers."""
    invited = await owner.ask("invite", gives={"tea": "write"}, takes={}, expires_s=600, trust="known")
    seen = await client.request("peer_look", {"code": invited["code"]})
    wish = {"code": invited["code"], "offer": seen["offer"], "trust": "known"}
    await client.request("peer_accept", wish)


async def at_once(work: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """All of it, as a script would that waits for nothing."""
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(one)


def hears(owner: Owner, me: str, basin: str) -> bool:
    """Whether an owner's node knows that it is given a basin."""
    return basin in next(peer for mesh, peer in owner.peers.peers.items() if mesh == me).relationship.theirs.terms.gives


async def measure(home: Home, people: list[Owner], new: list[Owner], idle_s: float) -> Figures:
    """Everything with one number of links; `new` of them are to be made."""
    figures, me = Figures(), str(home.mesh_id())
    async with running(home), connect(home) as client:
        for owner in new:
            await link(client, owner)
        await until(lambda: all(owner.peers.links.sessions for owner in people))
    await until(lambda: not any(owner.peers.links.sessions for owner in people))
    begun = time.monotonic()
    async with running(home) as (process, _), connect(home) as client:
        figures.ready_s = time.monotonic() - begun
        figures.again_s = await until(lambda: all(owner.peers.links.sessions for owner in people)) - begun
        await asyncio.sleep(SETTLE_S)
        figures.idle = await used(process.pid, idle_s)
        figures.node_mb, figures.server_mb = rss(process.pid), rss(server_of(process.pid))
        first, news = people[-1], f"news{len(people)}"
        begun = time.monotonic()
        await client.request("peer_share", {"peer": first.name, "basin": news})
        figures.one_s = await until(lambda: hears(first, me, news)) - begun
        begun = time.monotonic()
        ask = [client.request("peer_share", {"peer": owner.name, "basin": f"{news}b"}) for owner in people]
        await at_once(ask)
        figures.all_s = await until(lambda: all(hears(owner, me, f"{news}b") for owner in people)) - begun
        begun = time.monotonic()
        await client.request("peer_pause", {"peer": first.name})
        figures.ban_s = time.monotonic() - begun
        await until(lambda: first.peers.relationship(home.mesh_id()).state == State.PAUSED)
        await client.request("peer_resume", {"peer": first.name})
    return figures


async def plain(port: int, links: int) -> None:
    """The process that does nothing but hold plain WebSockets."""
    import aiohttp

    async def hold(socket: aiohttp.ClientWebSocketResponse) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(beat(socket))
            async for _ in socket:
                pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session, asyncio.TaskGroup() as group:
        for _ in range(links):
            group.create_task(hold(await session.ws_connect(f"http://127.0.0.1:{port}/", compress=0)))
        await asyncio.get_running_loop().create_future()


async def beat(socket: Any) -> None:  # noqa: ANN401 - a WebSocket of either end
    """Signs of life, until the other end is gone."""
    with suppress(ConnectionError):
        while not socket.closed:
            await asyncio.sleep(BEAT_S)
            await socket.send_bytes(BEAT)


async def raw(links: int, idle_s: float) -> tuple[float, float]:
    """MB and % of a core of a process with so many plain WebSockets."""
    from aiohttp import web

    held = list[web.WebSocketResponse]()

    async def take(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        held.append(socket)
        async with asyncio.TaskGroup() as group:
            group.create_task(beat(socket))
            async for _ in socket:
                pass
        return socket

    app = web.Application()
    app.router.add_get("/", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--plain", str(runner.addresses[0][1]), str(links)
    )
    try:
        await until(lambda: len(held) == links)
        await asyncio.sleep(SETTLE_S)
        return rss(process.pid), await used(process.pid, idle_s)
    finally:
        process.kill()
        await process.wait()
        await runner.cleanup()


def show(found: dict[int, Figures], alone: Figures) -> None:
    """The table."""
    table = Table(title=f"a node with links, on {os.cpu_count()} cores")
    for name in ("links", *map(str, found)):
        table.add_column(name, justify="right" if name.isdigit() else "left")
    each = list(found.items())
    rows: dict[str, Callable[[int, Figures], str]] = {
        "start to ready, s": lambda _, one: f"{one.ready_s:.2f}",
        "start to all links up, s": lambda _, one: f"{one.again_s:.2f}",
        "node, MB": lambda _, one: f"{one.node_mb:.1f}",
        "  of it a link, kB": lambda n, one: f"{(one.node_mb - alone.node_mb) / n * 1000:.0f}",
        "  a plain WebSocket, kB": lambda n, one: f"{(one.raw_mb - alone.raw_mb) / n * 1000:.0f}",
        "nats-server, MB": lambda _, one: f"{one.server_mb:.1f}",
        "idle CPU of the node, %": lambda _, one: f"{one.idle:.2f}",
        "  of plain WebSockets, %": lambda _, one: f"{one.raw_idle:.2f}",
        "a share, until one peer holds it, ms": lambda _, one: f"{one.one_s * 1000:.0f}",
        "a share, until all hold it, ms": lambda _, one: f"{one.all_s * 1000:.0f}",
        "a pause, until it holds here, ms": lambda _, one: f"{one.ban_s * 1000:.0f}",
    }
    for what, cell in rows.items():
        table.add_row(what, *(cell(n, one) for n, one in each))
    Console(width=120).print(table)
    Console().print(
        f"without any link: {alone.node_mb:.1f} MB, idle {alone.idle:.2f} %, ready in {alone.ready_s:.2f} s"
    )


async def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", default="1,10,50,200", help="numbers of links, with commas between them")
    parser.add_argument("--idle", type=float, default=20.0, help="seconds in which nobody speaks")
    options = parser.parse_args()
    found = dict[int, Figures]()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        home = create_home(folder / "home", "bench", now_ms)
        home.ems.rename(home.path / "starters")
        home.ems.mkdir()
        (home.path / "mesh.yaml").write_text(yaml.safe_dump({"name": "bench", "human": "mara"}), "utf-8")
        async with running(home) as (process, began):
            alone = Figures(ready_s=time.perf_counter() - began)
            await asyncio.sleep(SETTLE_S)
            alone.idle, alone.node_mb = await used(process.pid, options.idle), rss(process.pid)
        alone.raw_mb, _ = await raw(0, 0.1)
        people = list[Owner]()
        for number in sorted({int(one) for one in options.peers.split(",")}):
            new = list[Owner]()
            while len(people) < number:
                owner = Owner(f"p{len(people)}", folder, await stack.enter_async_context(MemoryBroker()))
                people.append(await stack.enter_async_context(owner.up()))
                new.append(owner)
            found[number] = await measure(home, people, new, options.idle)
            found[number].raw_mb, found[number].raw_idle = await raw(number, options.idle)
        show(found, alone)
    return 0


if __name__ == "__main__":
    configure("warning")
    run_loop(plain(int(sys.argv[2]), int(sys.argv[3])) if sys.argv[1:2] == ["--plain"] else main())
