"""What signing, storing and verifying cost on the bus: raw nats-py and the whole path, in one run.

    python bench/bus.py [--acts 100000] [--loop uvloop|asyncio|both]

Two processes and a nats-server of their own. Raw: core NATS, one 256-byte text a message, published by one process and
counted by a callback in the other; and the same with JetStream, each acknowledged. Ours: a backlog of acts in the
outbox of one process is framed, signed, published and acknowledged; the other verifies, stores and hands them to a
handler. Idle: one at a time, 10 ms apart.
"""

import argparse
import asyncio
import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext
from rich.console import Console
from rich.table import Table

from mesh.bus.nats.bus import NatsBus
from mesh.clock import now_ms
from mesh.entries import Entry
from mesh.ledger import Ledger
from mesh.outbox import Outbox
from mesh.server import Server, ServerKeys
from mesh.store import MESH_SCHEMA, Store
from mesh.trust import Trust
from nodes.commands.common import run_loop
from protocol.acts import Act, new_id
from protocol.budget import Budget
from protocol.certificate import Certificate
from protocol.frame import MAX_ACTS, decode_frame, encode_frame
from protocol.keys import KeyKind, MeshId, NodeId, Signer

TEXT = 256  # bytes
IDLE = 300  # messages, 10 ms apart
IDLE_S = 0.01
MESH, NODE, CLIENT, SYSTEM = (Signer(bytes([n]) * 32, KeyKind.MESH if n == 1 else KeyKind.NODE) for n in (1, 2, 3, 4))
KEYS = ServerKeys(MESH.public, NODE.public, CLIENT.public, SYSTEM.public)
CERTIFICATE = Certificate(MeshId(MESH.public), NodeId(NODE.public), 0, 2**50, ["speak"])
TRUST = Trust([CERTIFICATE])
END = b"end"
SUBJECTS = {"core": "raw.core", "jetstream": "b.raw", "frames": "raw.frames"}
NAMES = {
    "core": "raw nats-py",
    "frames": "ours: sign, publish, verify, handler",
    "jetstream": "raw JetStream, synced, acknowledged",
    "ours": "ours: outbox, sign, synced stream, verify, store, handler",
}


def text() -> str:
    """256 bytes that begin with the time, in nanoseconds of the machine's monotonic clock."""
    return f"{time.monotonic_ns():020d}".ljust(TEXT, "x")


def act(number: int, words: str) -> Act:
    """One root act."""
    identity = new_id(now_ms(), number.to_bytes(10, "big"))
    return Act(identity, "say", "me", [], identity, Budget(9, 9, 9, 2**50), now_ms(), {"text": words})


async def connect_raw(url: str) -> Client:
    """A client as nats-py makes it, with the buffers that a fair race needs."""
    client = Client()
    await client.connect(url, nkeys_seed_str=NODE.seed(), pending_size=64 << 20)
    return client


async def publish_raw(url: str, number: int, *, idle: bool) -> None:
    """Publish on core NATS as fast as it goes, or slowly."""
    client = await connect_raw(url)
    for place in range(number):
        await client.publish("raw.core", text().encode())
        if idle:
            await asyncio.sleep(IDLE_S)
        elif place % 500 == 499:
            await client.flush()
    await client.publish("raw.core", END)
    await client.drain()


async def publish_jetstream(url: str, number: int, *, idle: bool) -> None:
    """Publish into a stream, every one acknowledged, a thousand at a time."""
    client = await connect_raw(url)
    stream = JetStreamContext(client)
    for start in range(0, number, 1 if idle else 1000):
        async with asyncio.TaskGroup() as group:
            for _ in range(1 if idle else min(1000, number - start)):
                group.create_task(stream.publish("b.raw", text().encode()))
        if idle:
            await asyncio.sleep(IDLE_S)
    await client.publish("raw.js", END)
    await client.drain()


async def publish_frames(url: str, number: int, *, idle: bool) -> None:
    """Sign acts into frames and publish them on core NATS: 64 acts a frame with a backlog, one when idle."""
    client = await connect_raw(url)
    for sequence, start in enumerate(range(0, number, 1 if idle else MAX_ACTS), start=1):
        acts = [act(place, text()) for place in range(start, start + 1 if idle else min(start + MAX_ACTS, number))]
        await client.publish("raw.frames", encode_frame(NODE, sequence, now_ms(), "bench", acts))
        if idle:
            await asyncio.sleep(IDLE_S)
        elif sequence % 20 == 0:
            await client.flush()
    await client.publish("raw.frames", END)
    await client.drain()


async def publish_ours(url: str, number: int, *, idle: bool) -> None:
    """Say acts through the outbox, all waiting at the start, or one at a time."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "node.db", {"mesh": MESH_SCHEMA})
        bus = await NatsBus.connect(url, nkey_seed=NODE.seed())
        outbox = Outbox(bus, store, NODE, CERTIFICATE, now_ms)
        if not idle:
            with store.transaction():
                for place in range(number):
                    outbox.put("bench", act(place, text()))
            outbox.resume({})
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(outbox.run())
            for place in range(number if idle else 0):
                with store.transaction():
                    waiting = outbox.put("bench", act(place, text()))
                outbox.send(waiting)
                await asyncio.sleep(IDLE_S)
            while outbox.waiting():  # noqa: ASYNC110 - another task empties it
                await asyncio.sleep(IDLE_S)
            task.cancel()
        await bus.close()


class Counter:
    """Arrivals: how many, when the first and the last, how long each took."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.done = asyncio.Event()
        self.first = self.last = 0
        self.delays: list[int] = []
        self.cpu = 0.0

    def take(self, words: str) -> None:
        """Count one; its text holds the time it was said."""
        now = time.monotonic_ns()
        if not self.delays:
            self.first, self.cpu = now, cpu()
        self.delays.append(now - int(words[:20]))
        if len(self.delays) >= self.number:
            self.last, self.cpu = now, cpu() - self.cpu
            self.done.set()

    def take_all(self, entries: Sequence[Entry]) -> None:
        """Count what a ledger hands on."""
        for entry in entries:
            self.take(entry.act.text)


def cpu() -> float:
    """CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def receive_raw(url: str, counter: Counter, subject: str) -> Callable[[], Awaitable[None]]:
    """Count by a callback on core NATS."""
    client = await connect_raw(url)

    async def take(message: Msg) -> None:
        if message.data == END:
            return
        if subject == "raw.frames":
            for said in decode_frame(message.data).acts:
                counter.take(said.text)
        else:
            counter.take(message.data.decode())

    await client.subscribe(  # pyright: ignore[reportUnknownMemberType] - nats-py types its futures loosely
        subject, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1
    )
    await client.flush()
    return client.close


async def measure(kind: str, url: str, number: int, *, idle: bool) -> dict[str, float]:
    """One race: a publishing process and this one."""
    counter = Counter(number)
    program = (
        sys.executable,
        str(Path(__file__)),
        "--publish",
        kind,
        "--url",
        url,
        "--acts",
        str(number),
        *["--idle"] * idle,
    )
    child = await asyncio.create_subprocess_exec(
        *program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdin is not None
    assert child.stdout is not None
    await child.stdout.readline()
    with tempfile.TemporaryDirectory() as folder:
        async with asyncio.TaskGroup() as group:
            tasks: list[asyncio.Task[None]] = []
            if kind == "ours":
                store = Store(Path(folder) / "node.db", {"mesh": MESH_SCHEMA})
                bus = await NatsBus.connect(url, nkey_seed=NODE.seed())
                ledger = Ledger(bus, store, TRUST, now_ms, counter.take_all)
                ready = asyncio.Event()
                name = f"bench-{next(_names)}"
                store.execute("UPDATE cursor SET seq = ?", (await bus.last_seq(),))
                tasks.append(group.create_task(ledger.run(name, ready.set, lambda: None)))
                await ready.wait()
                close = bus.close
            else:
                close = await receive_raw(url, counter, SUBJECTS[kind])
            began = time.monotonic_ns()
            child.stdin.write(b"go\n")
            await counter.done.wait()
            for task in tasks:
                task.cancel()
        await close()
    await child.wait()
    delays = sorted(counter.delays)
    return {
        "rate": number / (counter.last - (began if kind == "ours" else counter.first)) * 1e9,
        "cpu_us": counter.cpu / number * 1e6,
        "p50_ms": statistics.median(delays) / 1e6,
        "p99_ms": delays[int(len(delays) * 0.99)] / 1e6,
    }


_names = itertools.count()


async def receive(number: int) -> dict[str, dict[str, float]]:
    """All races against one server."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), KEYS)
        await server.start()
        try:
            await (await NatsBus.connect(server.url, nkey_seed=NODE.seed())).close()  # makes the stream
            for kind, idle in itertools.product(NAMES, (False, True)):
                part = min(number, 20_000) if kind == "jetstream" else number
                results[f"{kind} {'idle' if idle else 'backlog'}"] = await measure(
                    kind, server.url, IDLE if idle else part, idle=idle
                )
        finally:
            await server.stop()
    return results


def run(loop: str, main: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - what the coroutine gives
    """Run on the loop of that name, as the node itself does."""
    if loop == "asyncio":
        os.environ["AMPMESH_NO_UVLOOP"] = "1"
    return run_loop(main)


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the table and the two ratios that matter."""
    table = Table(title=f"{TEXT}-byte texts, two processes and a server on {os.cpu_count()} cores")
    for column in (
        "loop",
        "path",
        "acts/s",
        "against raw",
        "receiver CPU µs/act",
        "idle p50 ms (against raw)",
        "idle p99",
    ):
        table.add_column(column, justify="left" if column in ("loop", "path") else "right")
    for loop, rows in results.items():
        for kind, name in NAMES.items():
            busy, idle = rows[f"{kind} backlog"], rows[f"{kind} idle"]
            raw = "jetstream" if kind == "ours" else "core"
            table.add_row(
                loop,
                name,
                f"{busy['rate']:,.0f}",
                f"{busy['rate'] / rows[f'{raw} backlog']['rate']:.2f} x {raw}",
                f"{busy['cpu_us']:.1f}",
                f"{idle['p50_ms']:.2f} ({idle['p50_ms'] - rows['core idle']['p50_ms']:+.2f})",
                f"{idle['p99_ms']:.2f}",
            )
        table.add_section()
    Console(width=150).print(table)


def main() -> None:
    """Run as the receiver, or, started by it, as the publisher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acts", type=int, default=100_000)
    parser.add_argument("--loop", choices=["uvloop", "asyncio", "both"], default="both")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--publish", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--idle", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    loop = os.environ.get("BENCH_LOOP", "uvloop")
    if options.publish:
        publish = {"core": publish_raw, "jetstream": publish_jetstream, "frames": publish_frames, "ours": publish_ours}[
            options.publish
        ]
        if options.publish != "ours":
            print("ready", flush=True)
            sys.stdin.readline()
        run(loop, publish(options.url, options.acts, idle=options.idle))
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("uvloop", "asyncio") if options.loop == "both" else (options.loop,):
        os.environ["BENCH_LOOP"] = name
        results[name] = run(name, receive(options.acts))
    if options.json:
        print(json.dumps(results))
    show(results)


if __name__ == "__main__":
    main()
