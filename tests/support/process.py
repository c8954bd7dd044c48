"""Real nodes in processes of their own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mesh.clock import now_ms
from nodes.client import Client
from nodes.commands.assembly import connect
from nodes.home import Home, create_home

MESH = (sys.executable, "-m", "nodes.cli")
CRASHING = (sys.executable, str(Path(__file__).with_name("crashing.py")))
READY_S = 30  # a node is up in about a second; a busy machine takes longer
TINY = {"yappings": {"budget": {"hops": 1, "acts": 8}}}


def make_home(path: Path, ems: dict[str, str], config: dict[str, Any] | None = None) -> Home:
    """A home with these ems (name → config.yaml) in place of the starters; one reply deep unless `config` says more."""
    home = create_home(path, "amp", now_ms)
    for folder in home.ems.iterdir():
        if folder.name not in ems:
            folder.rename(path / f"unused-{folder.name}")
    for name, settings in ems.items():
        folder = home.ems / name
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(settings, "utf-8")
        if not (folder / "chat.txt").exists():
            (folder / "chat.txt").write_text(
                f"<mara> hello\n<{name}> good day\n<mara> why?\n<{name}> because\n", "utf-8"
            )
    whole = {"name": "amp", "human": "mara", "basins": TINY} | (config or {})
    (home.path / "mesh.yaml").write_text(yaml.safe_dump(whole), "utf-8")
    return home


def mesh(*arguments: str | Path, stdin: str = "", timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run one `mesh` command to its end."""
    return subprocess.run(
        [*MESH, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )


@dataclass
class Process:
    """A running `mesh up`, and what it said."""

    home: Home
    process: asyncio.subprocess.Process
    log: Path

    @property
    def server_pid(self) -> int:
        """The process id of its nats-server."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text("ascii").split()
        (server,) = [int(pid) for pid in children if "nats" in Path(f"/proc/{pid}/comm").read_text("ascii")]
        return server

    def kill(self) -> None:
        self.process.kill()

    async def gone(self) -> int:
        """Wait for its end; returns the exit code."""
        return await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        self.process.send_signal(signal.SIGTERM)
        return await self.process.wait()

    def said(self) -> str:
        """All it wrote."""
        return self.log.read_text("utf-8")


@asynccontextmanager
async def up(
    home: Home, program: Sequence[str] = (*MESH, "up", "--home"), *, env: dict[str, str] | None = None
) -> AsyncIterator[Process]:
    """A node that is ready; killed at the end of the block if it still runs."""
    log = home.path / "up.log"
    (home.data / "node.json").unlink(missing_ok=True)
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *program, str(home.path), stdout=file, stderr=file, env=os.environ | (env or {})
        )
    node = Process(home, process, log)
    try:
        async with asyncio.timeout(READY_S):
            await until(lambda: home.running() is not None or process.returncode is not None)
        yield node
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again until something outside this process holds."""
    while not condition():
        await asyncio.sleep(0.01)


@asynccontextmanager
async def client(home: Home) -> AsyncIterator[Client]:
    async with connect(home) as one:
        yield one


async def settled(one: Client, basin: str = "yappings") -> list[dict[str, Any]]:
    """Wait until nobody writes and nothing waits, then give all that was said."""
    calm, before = 0, -1
    while calm < 3:
        status = await one.status()
        busy = status["speaking"] or status["waiting"] or status["acts"] != before
        calm, before = (0 if busy else calm + 1), status["acts"]
        await asyncio.sleep(0.02)
    return await one.history(basin, 1000)


def replies(history: list[dict[str, Any]], act: str) -> list[str]:
    """The authors of the answers to an act."""
    return [entry["author"] for entry in history if act in entry["refs"]]


def lines(text: str) -> list[dict[str, Any]]:
    """The JSON lines of a log."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]
