"""What people in Matrix rooms wait for, and what ems there cost: `python bench/matrix.py [--load | --ems 100]`.

Nodes are `mesh up` with a nats-server, synced streams and databases on disk; the homeserver is a real Synapse on
sqlite; the model is a server in this process. Without an option: a person says an em's name, and another one's /sync
shows the reply, whose first words and last ones may come in several events; the floor is Synapse alone, where the other
one's /sync shows what the person said in a room of four, as ours have at most. Floor and replies take turns, so that
whatever else the machine does hits all of them.
"""

import argparse
import asyncio
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

from matrix_world import AT_ONCE, Answer, World, answered, cpu, person, quiet, rss, running, settled, world
from rich.console import Console
from rich.table import Table

from nodes.commands.common import run_loop

WARM: Final = 10  # messages that are not counted
PAUSE_S: Final = 0.4  # between two messages: receipts of the one are not to hold up the other
AT_MOST_MS: Final = 60.0  # beyond twice the floor
ROOMS: Final = 10
MODEL_S: Final = 2.0
LOAD_S: Final = 24.0
EM_MB: Final = 0.1


# One message after the other


@dataclass(slots=True)
class Waits:
    """Seconds that people waited, each time, and the CPU seconds that a node took for all of it."""

    first: list[float] = field(default_factory=list[float])
    whole: list[float] = field(default_factory=list[float])
    cpu: float = 0.0


async def latency(number: int) -> None:
    """Floor, appservice and account, in turns."""
    async with world(1) as here, AsyncExitStack() as stack:
        extra = [await stack.enter_async_context(person(here.synapse, name)) for name in ("x", "y")]
        rooms = {"floor": await here.speaker.room(here.watcher, *extra)}
        pids = dict[str, int]()
        for way in ("appservice", "account"):
            home = here.home({"ada": ["tea"]})
            if way == "appservice":
                here.by_appservice(home)
            else:
                await here.by_account(home)
            rooms[way] = await here.speaker.room(here.watcher)
            pids[way], _ = await stack.enter_async_context(running(home, {"tea": rooms[way]}))
        await measure(here, rooms, pids, WARM)
        show_waits(await measure(here, rooms, pids, number))


async def measure(here: World, rooms: dict[str, str], pids: dict[str, int], number: int) -> dict[str, Waits]:
    """So many messages in each room, in turns."""
    found = {way: Waits() for way in rooms}
    before = {way: cpu(pid) for way, pid in pids.items()}
    for place in range(number):
        for way, room in rooms.items():
            began = time.perf_counter()
            event = await here.speaker.say(room, f"what do you say to {place}, ada?")
            if way == "floor":
                await here.watcher.until(lambda event=event: event in here.watcher.seen)
                found[way].first.append(here.watcher.seen[event] - began)
                found[way].whole.append(here.watcher.seen[event] - began)
            else:
                await here.watcher.until(lambda event=event: event in here.watcher.whole)
                found[way].first.append(here.watcher.first[event] - began)
                found[way].whole.append(here.watcher.whole[event] - began)
            await asyncio.sleep(PAUSE_S)
    for way, pid in pids.items():
        found[way].cpu = cpu(pid) - before[way]
    return found


def show_waits(found: dict[str, Waits]) -> None:
    floor = statistics.median(found["floor"].whole) * 1e3
    number = len(found["floor"].whole)
    table = Table(title=f"a person's message to what another one sees, {number} each, ms, on {os.cpu_count()} cores")
    for column in ("", "first p50", "p99", "final p50", "p99", "against the floor", "at most", "CPU ms of the node"):
        table.add_column(column, justify="right" if column else "left")
    for way, waits in found.items():
        whole = statistics.median(waits.whole) * 1e3
        ours = way != "floor"
        table.add_row(
            way if ours else "Synapse's own floor, send → /sync",
            f"{statistics.median(waits.first) * 1e3:.1f}",
            f"{late(waits.first) * 1e3:.1f}",
            f"{whole:.1f}",
            f"{late(waits.whole) * 1e3:.1f}",
            f"{whole / floor:.2f} x" if ours else "",
            f"{2 * floor + AT_MOST_MS:.1f}" if ours else "",
            f"{waits.cpu / number * 1e3:.1f}" if ours else "",
        )
    Console(width=140).print(table)


def late(seconds: list[float]) -> float:
    """The 99th of a hundred."""
    return sorted(seconds)[int(len(seconds) * 0.99)]


# Many at once


@dataclass(frozen=True, slots=True)
class Told:
    """A reply: to which mention (its place among all), in which room, by which em."""

    place: int
    room: str
    em: str


@dataclass(frozen=True, slots=True)
class Load:
    """What became of many mentions at once."""

    took: float
    calls: int
    most: int
    replies: list[Told]  # in the order of each room
    again: tuple[int, int, int]  # pushed once more: events, model calls, replies


async def load(mentions: int, each: int) -> Load:
    """Mentions over all rooms, where `each` ems sit and are called in turns; then everything pushed once more."""
    async with world(1, tapped=True) as here:
        basins = [f"b{number}" for number in range(ROOMS)]
        home = here.home({f"em{basin}{number}": [basin] for basin in basins for number in range(each)})
        tap = here.by_appservice(home)
        rooms = {basin: await here.speaker.room(here.watcher) for basin in basins}
        async with running(home, rooms) as (_, mesh):
            await settled(mesh)
            here.models.mend()
            here.models.play(*[Answer(("Indeed.",), delay_s=MODEL_S)] * mentions)
            began = time.perf_counter()
            asked = await mention(here, rooms, mentions // ROOMS, each)
            await here.watcher.until(lambda: all(event in here.watcher.whole for event in asked))
            took = time.perf_counter() - began
            await settled(mesh)
            calls, most = len(here.models.requests), here.models.most_running
            replies = await told(here, rooms, asked)
            events = await tap.again()
            await settled(mesh)
            more = len(await told(here, rooms, asked)) - len(replies)
            return Load(took, calls, most, replies, (events, len(here.models.requests) - calls, more))


async def mention(here: World, rooms: dict[str, str], times: int, each: int) -> list[str]:
    """Say ems' names, so many times in each room, in all rooms at once; returns the events, a room's in order."""

    async def speak(basin: str, room: str) -> list[str]:
        return [await here.speaker.say(room, f"em{basin}{n % each}, number {n}") for n in range(times)]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(speak(basin, room)) for basin, room in rooms.items()]
    return [event for task in tasks for event in task.result()]


async def told(here: World, rooms: dict[str, str], asked: list[str]) -> list[Told]:
    """All replies to what was asked."""
    places = {event: place for place, event in enumerate(asked)}
    said = [(room, event) for room in rooms.values() for event in await here.watcher.messages(room)]
    return [Told(places[to], room, event["sender"]) for room, event in said if (to := answered(event)) in places]


def disorder(replies: list[Told], lane: Callable[[Told], str]) -> int:
    """How many replies stand after one to a later mention of the same lane."""
    latest, late_ones = dict[str, int](), 0
    for one in replies:
        late_ones += one.place < latest.get(lane(one), -1)
        latest[lane(one)] = max(one.place, latest.get(lane(one), -1))
    return late_ones


def show_load(found: dict[int, Load], mentions: int) -> None:
    title = (
        f"{mentions} mentions over {ROOMS} rooms at once, a model of {MODEL_S:g} s, at most {AT_ONCE} calls at a time"
    )
    table = Table(title=title)
    columns = ("ems a room", "seconds", "at most", "calls", "at a time", "answered once", "out of an em's order")
    for column in (*columns, "a room's", "the same events pushed again"):
        table.add_column(column, justify="right")
    for each, one in found.items():
        events, calls, more = one.again
        once = sum(times == 1 for times in Counter(reply.place for reply in one.replies).values())
        table.add_row(
            f"{each}",
            f"{one.took:.1f}",
            f"{LOAD_S:g}",
            f"{one.calls}",
            f"{one.most}",
            f"{once}",
            f"{disorder(one.replies, lambda reply: reply.em)}",
            f"{disorder(one.replies, lambda reply: reply.room)}",
            f"{events}: {calls} calls, {more} replies",
        )
    Console(width=140).print(table)


# Many ems


@dataclass(slots=True)
class Weight:
    """What a node takes: MB without Matrix and in a room, silent and after replies; one message to all of them."""

    alone: tuple[float, float]
    joined: tuple[float, float]
    pushes: int
    reply: float | None  # seconds


async def weigh(ems: int) -> Weight:
    """So many ems in one room. The first reply loads the client of the models, with Matrix and without."""
    async with world(1, tapped=True) as here:
        crowd = {f"em{number:03d}": ["tea"] for number in range(ems)}
        bare = here.home(crowd)
        async with running(bare, {}) as (pid, mesh):
            alone = rss(pid)
            for place in range(2):
                await mesh.say("tea", f"em000, good day {place}")
                await quiet(mesh)
            alone = alone, rss(pid)
        home = here.home(crowd)
        tap, room = here.by_appservice(home), await here.speaker.room(here.watcher)
        async with running(home, {"tea": room}) as (pid, mesh):
            await settled(mesh)
            joined, event, began = rss(pid), "", 0.0
            for place in range(2):
                began = time.perf_counter()
                event = await here.speaker.say(room, f"em000, good day {place}")
                await here.watcher.until(
                    lambda event=event: event in (here.watcher.whole if ems else here.watcher.seen)
                )
                await settled(mesh)
            reply = here.watcher.whole[event] - began if ems else None
            return Weight(alone, (joined, rss(pid)), tap.carrying(event), reply)


def show_weights(found: dict[int, Weight]) -> None:
    table = Table(title="ems in one room, by appservice: memory of the node in MB, and one message to all of them")
    columns = ("ems", "without Matrix", "after replies", "in a room", "after replies", "Matrix, each em", "at most")
    for column in (*columns, "pushes", "reply ms"):
        table.add_column(column, justify="right")
    base = found[0].joined[0] - found[0].alone[0]
    for ems, one in found.items():
        added = [(joined - alone - base) / max(ems, 1) for joined, alone in zip(one.joined, one.alone, strict=True)]
        table.add_row(
            f"{ems}",
            *(f"{mb:.1f}" for mb in (*one.alone, *one.joined)),
            f"{added[0]:.3f}, {added[1]:.3f}" if ems else "",
            f"{EM_MB}" if ems else "",
            f"{one.pushes}",
            "" if one.reply is None else f"{one.reply * 1e3:.0f}",
        )
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=200, help="how many to time in each room")
    parser.add_argument("--load", action="store_true", help="many mentions at once, and all of them pushed again")
    parser.add_argument("--mentions", type=int, default=100, help="of --load")
    parser.add_argument("--ems", type=int, help="weigh up to so many ems in a room")
    options = parser.parse_args()

    async def all_of_it() -> None:
        if options.load:
            show_load({each: await load(options.mentions, each) for each in (1, 2)}, options.mentions)
        elif options.ems is not None:
            show_weights({ems: await weigh(ems) for ems in sorted({0, 10, options.ems})})
        else:
            await latency(options.messages)

    run_loop(all_of_it())


if __name__ == "__main__":
    main()
