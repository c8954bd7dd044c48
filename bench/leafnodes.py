"""Two plain nats-servers linked as leaf nodes: what `link.py` is compared with. Core NATS, unsigned, stored nowhere."""

import asyncio
import json
import sys
import time
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path

from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from homeserver import free_port

from mesh.server import find_server


async def leaves(folder: Path, count: int, every_s: float, text: bytes) -> list[float]:
    """Milliseconds of a text over two plain servers linked as leaf nodes."""
    one, two, between = free_port(), free_port(), free_port()
    hub = {"listen": f"127.0.0.1:{one}", "leafnodes": {"listen": f"127.0.0.1:{between}"}}
    remotes = [{"url": f"nats-leaf://127.0.0.1:{between}"}]
    took, heard, processes = list[float](), asyncio.Event(), list[Process]()

    async def take(_: Msg) -> None:
        heard.set()

    async def quiet(_: Exception) -> None:
        """The first attempts come before the server is there."""

    try:
        for config in (hub, {"listen": f"127.0.0.1:{two}", "leafnodes": {"remotes": remotes}}):
            file = folder / f"leaf{len(processes)}.conf"
            file.write_text(json.dumps(config), "utf-8")
            processes.append(await asyncio.create_subprocess_exec(find_server(), "-c", file, stderr=DEVNULL))
        here, there = Nats(), Nats()
        for client, port in ((here, one), (there, two)):
            await client.connect(f"nats://127.0.0.1:{port}", reconnect_time_wait=1, error_cb=quiet)
        await there.subscribe("tea", cb=take)  # pyright: ignore[reportUnknownMemberType] - nats-py types its futures loosely
        await there.flush()
        while not heard.is_set():  # until the link is up
            await here.publish("tea", b"?")
            await asyncio.sleep(0.05)
        for _ in range(count):
            await asyncio.sleep(every_s)
            heard.clear()
            begun = time.monotonic_ns()
            await here.publish("tea", text)
            await heard.wait()
            took.append((time.monotonic_ns() - begun) / 1e6)
        await here.close()
        await there.close()
    finally:
        for process in processes:
            process.terminate()
            await process.wait()
    return took
