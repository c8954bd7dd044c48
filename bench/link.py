"""What a link costs: an act from one owner's node to another's, and catching up, beside plain NATS leaf nodes.

    python bench/link.py [--acts 20000]

Two whole nodes with a synced stream and a database each, linked by a sealed WebSocket, in one process on one loop: each
figure is of both ends together. Idle: a person says something every 10 ms; the time is from the call until the other
node has verified and stored it. Catch-up: what was said while the other was away. Raw: two nats-servers linked as leaf
nodes, core NATS, unsigned, stored nowhere.
"""

import argparse
import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from homeserver import free_port
from owners import Owner, link, owners, until

from mesh.bus.nats import NatsBus
from mesh.server import Server, ServerKeys, find_server
from nodes.commands.common import run_loop
from nodes.commands.logs import configure
from protocol.acts import Act, new_id
from protocol.budget import Budget
from protocol.keys import KeyKind, Signer

IDLE, IDLE_S = 300, 0.01
TEXT = "x" * 256
FAR = Budget(6, 1_000_000, 1_000_000_000, 2**50)
PATIENCE_S = 300


class Served:
    """In the place of a broker: a nats-server of the owner's own."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus

    def connect(self) -> NatsBus:
        """The connection that there is."""
        return self._bus


@asynccontextmanager
async def served(owner: Owner, stack: AsyncExitStack) -> AsyncGenerator[Owner]:
    """A node on a real server."""
    client, system = (Signer(bytes([n]) * 32, KeyKind.NODE) for n in (3, 4))
    keys = ServerKeys(owner.mesh, owner.signer.public, client.public, system.public)
    server = Server(owner.path / "nats", keys)
    await server.start()
    stack.push_async_callback(server.stop)
    bus = await NatsBus.connect(server.url, nkey_seed=owner.signer.seed())
    stack.push_async_callback(bus.close)
    owner.broker = Served(bus)  # type: ignore[assignment]
    async with owner.up() as one:
        yield one


def act(owner: Owner, number: int) -> Act:
    identity = new_id(owner.now(), number.to_bytes(10, "big"))
    return Act(identity, "say", owner.config.human, [], identity, FAR, owner.now(), {"text": f"{number} {TEXT}"})


async def idle(one: Owner, other: Owner) -> list[float]:
    """Milliseconds from saying to having stored it at the other end."""
    took, heard = list[float](), asyncio.Event()
    proceed = other.peers.proceed

    def told() -> None:
        heard.set()
        proceed()

    other.peers.proceed = told  # type: ignore[method-assign]
    for number in range(IDLE):
        await asyncio.sleep(IDLE_S)
        heard.clear()
        begun = time.perf_counter()
        with one.node.ground.store.transaction():
            waiting = one.node.outbox.put("tea", act(one, number))
        one.node.outbox.send(waiting)
        await heard.wait()
        took.append((time.perf_counter() - begun) * 1000)
    other.peers.proceed = proceed  # type: ignore[method-assign]
    return took


async def leaves(folder: Path) -> list[float]:
    """The same over two plain servers linked as leaf nodes."""
    ports = [free_port() for _ in range(3)]
    hub = {"listen": f"127.0.0.1:{ports[0]}", "leafnodes": {"listen": f"127.0.0.1:{ports[2]}"}}
    leaf = {
        "listen": f"127.0.0.1:{ports[1]}",
        "leafnodes": {"remotes": [{"url": f"nats-leaf://127.0.0.1:{ports[2]}"}]},
    }
    processes = list[Process]()
    for number, config in enumerate((hub, leaf)):
        file = folder / f"leaf{number}.conf"
        file.write_text(json.dumps(config), "utf-8")
        processes.append(await asyncio.create_subprocess_exec(find_server(), "-c", file, stderr=DEVNULL))
    try:
        one, other, heard = Client(), Client(), asyncio.Event()

        async def quiet(_: Exception) -> None:
            """The first attempts come before the server is there."""

        for client, port in ((one, ports[1]), (other, ports[0])):
            await client.connect(
                f"nats://127.0.0.1:{port}", max_reconnect_attempts=50, reconnect_time_wait=1, error_cb=quiet
            )

        async def take(_: Msg) -> None:
            heard.set()

        await other.subscribe("tea", cb=take)  # pyright: ignore[reportUnknownMemberType] - nats-py types its futures loosely
        await other.flush()
        while not heard.is_set():  # until the link is up
            await one.publish("tea", b"?")
            await asyncio.sleep(0.05)
        took = list[float]()
        for _ in range(IDLE):
            await asyncio.sleep(IDLE_S)
            heard.clear()
            begun = time.perf_counter()
            await one.publish("tea", TEXT.encode())
            await heard.wait()
            took.append((time.perf_counter() - begun) * 1000)
        await one.close()
        await other.close()
        return took
    finally:
        for process in processes:
            process.terminate()
            await process.wait()


async def caught_up(one: Owner, other: Owner, acts: int) -> tuple[float, float]:
    """Seconds and CPU seconds until a node that was away has stored what was said."""
    with one.node.ground.store.transaction():
        waiting = [one.node.outbox.put("tea", act(one, IDLE + number)) for number in range(acts)]
    for each in waiting:
        one.node.outbox.send(each)
    while one.node.outbox.waiting():  # noqa: ASYNC110 - it empties as another process stores it
        await asyncio.sleep(0.01)
    before, cpu = other_count(other), resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    await one.ask("resume", peer=other.name)
    async with asyncio.timeout(PATIENCE_S):
        while other_count(other) < before + acts:  # noqa: ASYNC110 - the database tells, and nobody else
            await asyncio.sleep(0.005)
    took, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    return took, used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime


def other_count(owner: Owner) -> int:
    """How many acts a node has stored."""
    return int(owner.node.ground.store.one("SELECT count(*) FROM acts")[0])


async def measure(acts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        raw = await leaves(Path(folder))
        async with (
            AsyncExitStack() as stack,
            owners(Path(folder), "ada", "bob") as (ada, bob),
            served(ada, stack),
            served(bob, stack),
        ):
            await link(ada, bob, trust="close")
            ours = await idle(ada, bob)
            await ada.ask("pause", peer="bob")
            await until(lambda: bob.peers.relationship(ada.mesh).state.value == "paused")
            took, cpu = await caught_up(ada, bob, acts)
    table = Table("", "p50 ms", "p99 ms", "at most", title="from one owner's node to another's, idle")
    for name, times, most in (("leaf nodes, core, unsigned", raw, ""), ("ours, verified and stored", ours, "1.2, 5")):
        cuts = statistics.quantiles(times, n=100)
        table.add_row(name, f"{statistics.median(times):.2f}", f"{cuts[98]:.2f}", most)
    Console().print(table)
    late = Table("acts", "seconds", "acts/s", "at least", "CPU s, both ends", title="catching up after a pause")
    late.add_row(f"{acts:,}", f"{took:.2f}", f"{acts / took:,.0f}", "50,000", f"{cpu:.2f}")
    Console().print(late)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--acts", type=int, default=20_000)
    configure("warning")
    await measure(parser.parse_args().acts)
    return 0


if __name__ == "__main__":
    run_loop(main())
