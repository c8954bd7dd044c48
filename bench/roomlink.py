"""What a link through a Matrix room costs: `python bench/roomlink.py [--number 60]`.

Two persons' nodes are `mesh up` with nats-servers, synced streams and databases on disk; the one has an appservice, the
other an account, on two real Synapses on sqlite that federate. Something is said at the one node, and the bus of the
other brings it, verified. The floor is Synapse alone: what a person says at the one homeserver, until somebody's /sync
at the other shows it. They take turns, so that whatever else the machine does hits all of them.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from homeserver import Synapse, federating, free_port
from matrix_world import Person, person
from process import client, make_home, up

from mesh.bridges.matrix.account import log_in
from mesh.bridges.matrix.registration import Registration, new_registration
from nodes.client import Client
from nodes.commands.common import run_loop
from nodes.home import Home
from nodes.matrix.login import Listening, Login, write_login

WARM: Final = 5  # of each that are not counted
PAUSE_S: Final = 0.4  # between two: what acknowledges the one is not to hold up the other
PATIENCE_S: Final = 60.0
CONFIG: Final = {"human": "somebody", "basins": {"tea": {"budget": {"hops": 1, "acts": 8}}}}

Once = Callable[[str], Awaitable[float]]
"""Sends a text once; gives the seconds that it took."""


@asynccontextmanager
async def homeservers(folder: Path, way: Registration, names: tuple[str, str]) -> AsyncGenerator[list[Synapse]]:
    """Two that federate, the first of which knows an appservice."""
    made = list[Synapse]()
    for number, name in enumerate(names):
        (folder / f"synapse{number}").mkdir()
        texts = [way.text()] if number == 0 else []
        made.append(Synapse(folder / f"synapse{number}", texts, **federating(folder / f"synapse{number}", name)))
    async with made[0], made[1]:
        yield made


async def homes(folder: Path, synapses: list[Synapse], way: Registration, port: int) -> tuple[Home, Home]:
    """Ada's home, with the appservice, and Bob's, with an account; no em of theirs listens."""
    ada, bob = (make_home(folder / name, {}, {**CONFIG, "name": name}) for name in ("ada", "bob"))
    write_login(ada.keys, Login(synapses[0].url, None, way, Listening("127.0.0.1", port)))
    await synapses[1].register("node", "secret")
    write_login(bob.keys, Login(synapses[1].url, None, account=await log_in(synapses[1].url, "node", "secret")))
    return ada, bob


async def meet(one: Client, other: Client, room: str) -> None:
    """Link two nodes in a room."""
    give = {"gives": {"tea": "write"}, "takes": {}, "expires_s": 600, "trust": "known", "room": room}
    code = (await one.request("peer_invite", give))["code"]
    offer = (await other.request("peer_look", {"code": code, "room": room}))["offer"]
    wish = {"code": code, "offer": offer, "trust": "known", "room": room}
    await other.request("peer_accept", wish)
    async with asyncio.timeout(PATIENCE_S):
        while (await other.request("peer_list", {}))["peers"][0]["state"] != "linked":  # noqa: ASYNC110 - elsewhere
            await asyncio.sleep(PAUSE_S)


def said(one: Client, other: Client) -> Once:
    """From one node to another."""

    async def once(text: str) -> float:
        async with other.listening("tea") as inbox:
            began = time.perf_counter()
            await one.say("tea", text)
            async with asyncio.timeout(PATIENCE_S):
                while (await anext(inbox)).act.text != text:
                    pass
            return time.perf_counter() - began

    return once


def shown(one: Person, other: Person, room: str) -> Once:
    """From one person to another."""

    async def once(text: str) -> float:
        began = time.perf_counter()
        event = await one.say(room, text)
        await other.until(lambda: event in other.seen)
        return other.seen[event] - began

    return once


async def measure(number: int) -> dict[str, list[float]]:
    """So many each way, in turns."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names, port = (f"localhost:{free_port()}", f"localhost:{free_port()}"), free_port()
        way = replace(new_registration(f"http://127.0.0.1:{port}", names[0], "_bench_"), id="bench")
        synapses = await stack.enter_async_context(homeservers(folder, way, names))
        ada, bob = await homes(folder, synapses, way, port)
        hers, his = [await stack.enter_async_context(person(one, "person")) for one in synapses]
        room = str((await hers.call("POST", "/createRoom", {"preset": "public_chat", "invite": [his.id]}))["room_id"])
        await his.call("POST", f"/join/{quote(room)}", {})
        for home in (ada, bob):
            await stack.enter_async_context(up(home))
        one, other = [await stack.enter_async_context(client(home)) for home in (ada, bob)]
        await meet(one, other, room)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        watching = [group.create_task(each.watch()) for each in (hers, his)]
        ways = {
            "Synapse's own floor, send → federation → /sync": shown(hers, his, room),
            "the same, the other way": shown(his, hers, room),
            "node → node, appservice → account": said(one, other),
            "node → node, account → appservice": said(other, one),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for place in range(WARM + number):
            for name, once in ways.items():
                took = await once(f"{name} {place}")
                if place >= WARM:
                    found[name].append(took)
                await asyncio.sleep(PAUSE_S)
        for task in watching:
            task.cancel()
        return found


def show(found: dict[str, list[float]]) -> None:
    number = len(next(iter(found.values())))
    table = Table(title=f"through two homeservers that federate, {number} each, ms, on {os.cpu_count()} cores")
    for column in ("", "p50", "p99", "most"):
        table.add_column(column, justify="right" if column else "left")
    for name, seconds in found.items():
        late = sorted(seconds)[int(len(seconds) * 0.99)]
        table.add_row(name, *(f"{one * 1e3:.1f}" for one in (statistics.median(seconds), late, max(seconds))))
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60, help="how many to time each way")
    options = parser.parse_args()

    async def all_of_it() -> None:
        show(await measure(options.number))

    run_loop(all_of_it())


if __name__ == "__main__":
    main()
