"""What it costs to bring one act to all ems of a basin: `python bench/fanout.py [--ems 1,10,100,1000] [--acts 200]`.

Ours: from the moment the ledger hands the act on until everybody's decision (to answer, or why not) is recorded and
committed, on a memory bus's act, a database on disk and a scripted model. Once with ems that leave the word to one of
them, once with ems that all answer everything; then also until all their replies are ready to be sent. Raw: the same
act put into a queue each, and a task each that takes it; nothing is decided or recorded.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from mesh.bus.base import Stored
from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from mesh.entries import Entry
from mesh.ledger import Ledger
from mesh.outbox import Outbox
from mesh.store import MESH_SCHEMA, Store
from mesh.trust import Trust
from nodes.chatlog import Voice
from nodes.commands.common import run_loop
from nodes.companion import Alone
from nodes.em import Em
from nodes.em_settings import EmSettings
from nodes.models.scripted import Scripted
from nodes.runtime import Parts, Runtime
from nodes.speaker import Models
from nodes.turns import TURNS_SCHEMA
from protocol.acts import Act, new_id, reply_key
from protocol.address import Subject
from protocol.budget import Budget
from protocol.certificate import Certificate
from protocol.frame import encode_frame
from protocol.keys import KeyKind, MeshId, NodeId, Signer

BASIN: Final = "yappings"
WARM: Final = 20  # acts that are not counted
MESH, NODE = Signer(b"m" * 32, KeyKind.MESH), Signer(b"n" * 32, KeyKind.NODE)
CERTIFICATE = Certificate(MeshId(MESH.public), NodeId(NODE.public), 0, 2**50, ["speak"])
TRUST = Trust([CERTIFICATE])
KINDS: Final = {"one of them answers": {"reply_on_floor": True}, "all answer": {"reply_on_all": True}}


@dataclass(slots=True)
class Times:
    """Of each act, in seconds: until it is decided (wall and CPU), and until all replies are ready."""

    decided: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])
    replied: list[float] = field(default_factory=list[float])
    answers: int = 0  # to the last act


def roster(number: int, settings: dict[str, bool]) -> list[Em]:
    """So many ems without text; the scripted model needs none."""
    names = [f"em{place:04d}" for place in range(number)]
    return [
        Em(
            name,
            Path(name),
            EmSettings.model_validate({"name": name, **settings}),
            Voice(name, frozenset({name}), (), (), "b2:"),
            None,
            None,
            (),
        )
        for name in names
    ]


def said(number: int) -> Stored:
    """What a person says, as the stream holds it; a new root each time."""
    identity = new_id(now_ms(), number.to_bytes(10, "big"))
    budget = Budget(1, 2_000, 50_000_000, now_ms() + 3_600_000)
    act = Act(identity, "say", "mara", [], identity, budget, now_ms(), {"text": f"what do you all make of {number}?"})
    subject = Subject(True, BASIN, MeshId(MESH.public), NodeId(NODE.public))
    return Stored(number, str(subject), encode_frame(NODE, number, now_ms(), BASIN, [act]))


def listens(_em: Em, _basin: str) -> bool:
    """Everybody does."""
    return True


async def ours(number: int, acts: int, settings: dict[str, bool]) -> Times:
    """Ems in a runtime, acts from a ledger."""
    times, began = Times(), 0.0
    spent = 0.0
    async with MemoryBroker() as broker:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(Path(folder) / "node.db", {"mesh": MESH_SCHEMA, "turns": TURNS_SCHEMA})
            bus, model = broker.connect(), Scripted(["Indeed."])
            outbox = Outbox(bus, store, NODE, CERTIFICATE, now_ms)
            models = Models(model, lambda _: "chat", "scripted")
            mesh = MeshId(MESH.public)
            alone = Alone()
            parts = Parts(mesh, reply_key(NODE), store, outbox, models, now_ms, alone.show, alone.ended, 100)
            runtime = Runtime(parts)
            runtime.host(roster(number, settings), listens)

            def hear(entries: Sequence[Entry]) -> None:
                nonlocal began, spent
                began, spent = time.perf_counter(), time.thread_time()
                runtime.hear(entries)

            ledger = Ledger(bus, store, TRUST, now_ms, hear)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(runtime.run())
                await asyncio.sleep(0)
                for place in range(1, WARM + acts + 1):
                    ledger.keep([said(place)])
                    times.decided.append(time.perf_counter() - began)
                    times.cpu.append(time.thread_time() - spent)
                    runtime.proceed()
                    model.requests.clear()
                    while runtime.speaking():  # noqa: ASYNC110 - let the ems' own tasks run, and nothing else
                        await asyncio.sleep(0)
                    times.replied.append(time.perf_counter() - began)
                    times.answers = len(model.requests)
                task.cancel()
            store.close()
    return counted(times)


async def raw(number: int, acts: int) -> Times:
    """A queue and a task each."""
    times, act = Times(), said(1)
    queues = [asyncio.Queue[Stored]() for _ in range(number)]
    left = 0
    done = asyncio.Event()

    async def take(queue: asyncio.Queue[Stored]) -> None:
        nonlocal left
        while True:
            await queue.get()
            left -= 1
            if not left:
                done.set()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(take(queue)) for queue in queues]
        await asyncio.sleep(0)
        for _ in range(WARM + acts):
            left = number
            done.clear()
            began, spent = time.perf_counter(), time.thread_time()
            for queue in queues:
                queue.put_nowait(act)
            await done.wait()
            times.decided.append(time.perf_counter() - began)
            times.cpu.append(time.thread_time() - spent)
        for task in tasks:
            task.cancel()
    return counted(times)


def counted(times: Times) -> Times:
    """Without the first acts, which warm up."""
    return Times(times.decided[WARM:], times.cpu[WARM:], times.replied[WARM:], times.answers)


async def measure(number: int, acts: int) -> dict[str, Times]:
    """All with one number of ems."""
    found = {"raw: a queue and a task each": await raw(number, acts)}
    for kind, settings in KINDS.items():
        found[kind] = await ours(number, max(acts // 10, 5) if kind == "all answer" else acts, settings)
    return found


def show(found: dict[int, dict[str, Times]]) -> None:
    """A row for each number of ems and way."""
    table = Table(title=f"one act to all ems of a basin, on {os.cpu_count()} cores, medians")
    for column in ("ems", "", "answer", "decided ms", "p99 ms", "CPU µs/em", "against raw", "replied ms"):
        table.add_column(column, justify="left" if not column else "right")
    for number, kinds in found.items():
        limit = statistics.median(next(iter(kinds.values())).decided)
        for kind, times in kinds.items():
            middle = statistics.median(times.decided)
            late = sorted(times.decided)[int(len(times.decided) * 0.99)]
            cells = (
                f"{times.answers}" if times.replied else "",
                f"{middle * 1e3:.3f}",
                f"{late * 1e3:.3f}",
                f"{statistics.median(times.cpu) / number * 1e6:.2f}",
                f"{middle / limit:.1f} x",
                f"{statistics.median(times.replied) * 1e3:.2f}" if times.replied else "",
            )
            table.add_row(f"{number:,}", kind, *cells)
        table.add_section()
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ems", default="1,10,100,1000", help="numbers of ems, with commas between them")
    parser.add_argument("--acts", type=int, default=200, help="how many acts; a tenth where all answer")
    options = parser.parse_args()
    found: dict[int, dict[str, Times]] = {}

    async def all_of_it() -> None:
        for number in (int(word) for word in options.ems.split(",")):
            found[number] = await measure(number, options.acts)

    run_loop(all_of_it())
    show(found)


if __name__ == "__main__":
    main()
