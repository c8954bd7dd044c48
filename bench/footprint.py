"""What a node takes: time to its first reply, memory, and CPU when nobody speaks.

    python bench/footprint.py [--ems 4,100,1000] [--idle SECONDS] [--starts N]

For each number of ems a new home is made, where each has some 20 KB of text that no other em has, and `mesh up` runs
on it with a nats-server of its own. Times count from the start of the process; the first reply is heard by a client
that speaks as soon as the node is ready, and the middle one of several starts is shown. Memory is VmRSS: all pages of
a process, those included that it shares with others. Files may be in the machine's cache.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from mesh.clock import now_ms
from nodes.client import Client
from nodes.commands.assembly import connect
from nodes.home import Home, create_home
from nodes.models.echo_voice import installed_prior

TEXT_BYTES = 20_000  # of an em's log
SPEAKERS = 100  # ems that are asked to speak once, where there are so many
LOOK_S = 0.002  # between two looks whether the node is ready
PATIENCE_S = 60.0
EM = yaml.safe_dump({"reply_on_name": True, "reply_on_floor": True})
MESH = {"name": "bench", "human": "mara", "basins": {"yappings": {"budget": {"hops": 1, "acts": 8}}}}
START_S, FEW_MB, EM_MB = 2.0, 150.0, 1.0  # what must not be exceeded


@dataclass(frozen=True, slots=True)
class Memory:
    """VmRSS in MB."""

    node: float
    server: float

    @property
    def both(self) -> float:
        """All that runs."""
        return self.node + self.server


@dataclass(slots=True)
class Figures:
    """What was measured with one number of ems."""

    ready_s: list[float] = field(default_factory=list[float])
    reply_s: list[float] = field(default_factory=list[float])
    memory: list[Memory] = field(default_factory=list[Memory])  # after the start, the first reply, everybody's reply
    idle: tuple[float, float] = (0.0, 0.0)  # % of a core: node, server
    spoke: int = 0


@contextmanager
def new_home(ems: int) -> Generator[Home]:
    """A home with so many ems, each with the starters' lines in an order of its own."""
    lines = [line.text.replace("\n", " ") for scene in installed_prior().chat for line in scene.lines]
    with tempfile.TemporaryDirectory() as folder:
        home = create_home(Path(folder) / "home", "bench", now_ms)
        home.ems.rename(home.path / "starters")
        for number in range(ems):
            em = home.ems / name(number)
            em.mkdir(parents=True)
            (em / "config.yaml").write_text(EM, "utf-8")
            (em / "chat.txt").write_text(chat(em.name, random.Random(number), lines), "utf-8")
        (home.path / "mesh.yaml").write_text(yaml.safe_dump(MESH), "utf-8")
        yield home


def name(number: int) -> str:
    """An em's."""
    return f"em{number:04d}"


def chat(author: str, rng: random.Random, lines: list[str]) -> str:
    """A log: every other line is the em's own."""
    made: list[str] = []
    size = 0
    for text in rng.sample(lines, len(lines)):
        made.append(f"<{author if len(made) % 2 else 'mara'}> {text}\n")
        size += len(made[-1].encode())
        if size >= TEXT_BYTES:
            break
    return "".join(made)


@asynccontextmanager
async def running(home: Home) -> AsyncGenerator[tuple[asyncio.subprocess.Process, float]]:
    """`mesh up` and when it was started; it has said that it is ready."""
    with (home.path / "up.log").open("ab") as log:
        began = time.perf_counter()
        program = (sys.executable, "-m", "nodes.cli", "up", "--home", str(home.path))
        process = await asyncio.create_subprocess_exec(*program, stdout=log, stderr=log)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while home.running() is None:
                assert process.returncode is None, (home.path / "up.log").read_text("utf-8")
                await asyncio.sleep(LOOK_S)
        yield process, began
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answer(client: Client, em: str) -> None:
    """Say an em's name and wait for its reply."""
    async with asyncio.timeout(PATIENCE_S), client.listening("yappings") as inbox:
        await client.say("yappings", f"{em}, what do you make of the weather?")
        async for heard in inbox:
            if heard.kept and heard.act.author == em:
                return


async def start(home: Home, figures: Figures) -> None:
    """One start, timed up to the first reply."""
    async with running(home) as (_, began):
        figures.ready_s.append(time.perf_counter() - began)
        async with connect(home) as client:
            await answer(client, name(0))
        figures.reply_s.append(time.perf_counter() - began)


async def stay(home: Home, ems: int, idle_s: float, figures: Figures) -> None:
    """One long run, for memory and CPU."""
    async with running(home) as (process, _):
        pids = process.pid, server_of(process.pid)
        figures.memory.append(Memory(*map(rss, pids)))
        async with connect(home) as client:
            await answer(client, name(0))
            figures.memory.append(Memory(*map(rss, pids)))
            figures.spoke = min(ems, SPEAKERS)
            for number in range(1, figures.spoke):
                await answer(client, name(number))
            figures.memory.append(Memory(*map(rss, pids)))
        before = [cpu(pid) for pid in pids]
        await asyncio.sleep(idle_s)
        node, server = ((cpu(pid) - spent) / idle_s * 100 for pid, spent in zip(pids, before, strict=True))
        figures.idle = node, server


def server_of(pid: int) -> int:
    """The process id of a node's nats-server."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    (server,) = [int(child) for child in children if "nats" in Path(f"/proc/{child}/comm").read_text("ascii")]
    return server


def rss(pid: int) -> float:
    """VmRSS in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"process {pid} has no memory any more")


def cpu(pid: int) -> float:
    """CPU seconds of a process so far, all its threads, in the kernel too."""
    after_name = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(") ")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


async def measure(ems: int, starts: int, idle_s: float) -> Figures:
    """Everything with one number of ems."""
    figures = Figures()
    with new_home(ems) as home:
        for _ in range(starts):
            await start(home, figures)
        await stay(home, ems, idle_s, figures)
    return figures


def show(found: dict[int, Figures]) -> None:
    """The figures, and what each further em adds."""
    table = Table(title=f"a node and its server on {os.cpu_count()} cores, {TEXT_BYTES / 1000:.0f} KB of text an em")
    table.add_column("ems")
    for ems in found:
        table.add_column(f"{ems:,}", justify="right")
    table.add_column("at most", justify="right")

    def row(what: str, cells: list[str], most: str = "") -> None:
        table.add_row(what, *cells, most)

    all_of = list(found.values())
    row("start to ready, s", [f"{statistics.median(one.ready_s):.2f}" for one in all_of])
    row("start to first reply, s", [spread(one.reply_s) for one in all_of], f"{START_S} with 4")
    table.add_section()
    for place, when in enumerate(("after the start", "after one reply", f"after replies of up to {SPEAKERS}")):
        for part in ("node", "server"):
            row(f"{part} {when}, MB", [f"{getattr(one.memory[place], part):.1f}" for one in all_of])
        row("  together, MB", [f"{one.memory[place].both:.1f}" for one in all_of], f"{FEW_MB:.0f} with 4")
    row("idle CPU, node + server, %", [f"{one.idle[0]:.2f} + {one.idle[1]:.2f}" for one in all_of])
    table.add_section()
    for further, cells in each_further(found).items():
        row(further, cells, f"{EM_MB:.0f}" if "MB" in further else "")
    Console(width=120).print(table)


def spread(seconds: list[float]) -> str:
    """The middle one, and the longest."""
    return f"{statistics.median(seconds):.2f} (most {max(seconds):.2f})"


def each_further(found: dict[int, Figures]) -> dict[str, list[str]]:
    """What each further em adds, from one number of ems to the next; the same everywhere if growth is linear."""
    rows: dict[str, list[str]] = {"each further em, ready, ms": [""], "each further em, silent, MB": [""]}
    for (fewer, one), (more, other) in zip(found.items(), list(found.items())[1:], strict=False):
        added = more - fewer
        ms = (min(other.ready_s) - min(one.ready_s)) / added * 1000  # of the shortest: what else ran counts least
        rows["each further em, ready, ms"].append(f"{ms:.2f}")
        rows["each further em, silent, MB"].append(f"{(other.memory[0].both - one.memory[0].both) / added:.3f}")
    rows["each em that speaks, MB"] = [
        f"{(one.memory[2].both - one.memory[1].both) / (one.spoke - 1):.3f}" if one.spoke > 1 else ""
        for one in found.values()
    ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ems", default="4,100,1000", help="numbers of ems, with commas between them")
    parser.add_argument("--starts", type=int, default=5, help="how often to start each")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds in which nobody speaks")
    options = parser.parse_args()
    numbers = sorted({int(number) for number in options.ems.split(",")})
    show({ems: asyncio.run(measure(ems, options.starts, options.idle)) for ems in numbers})


if __name__ == "__main__":
    main()
