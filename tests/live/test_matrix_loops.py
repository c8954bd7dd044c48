"""Ems, machines and nodes that would answer one another for ever, in real rooms: they end within the budget."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from bridged import Bridged, messages, said, until
from harness import NODE, OTHER
from homeserver import Synapse
from matrix_rig import LIVE, Human, Shared, new_session, person
from nio import RoomPreset

from mesh.bridges.matrix.content import BOUNCE, MARK
from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from mesh.entries import recent
from nodes.models.scripted import Scripted
from protocol.acts import Act

pytestmark = LIVE

HOPS, ACTS = 4, 12  # of a chain
ALL = "reply_on_all: true\nbasins: [tea]\n"
CALLING = "ada, bob, cleo, dora, what do you say?"  # calls everybody of both nodes by name


@pytest.fixture
async def worlds(shared: Shared, tmp_path: Path, human: Human) -> AsyncIterator[list[Bridged]]:
    """Two nodes with a bus and a way in of their own, and two ems each that answer whatever they hear."""
    synapse, spare = shared
    async with AsyncExitStack() as stack:
        made = list[Bridged]()
        for number, ems in enumerate((("ada", "bob"), ("cleo", "dora"))):
            folder = tmp_path / str(number)
            folder.mkdir()
            broker = await stack.enter_async_context(MemoryBroker())
            one = Bridged(folder, broker, synapse, spare.pop(), human.id)
            one.signer = (NODE, OTHER)[number]
            one.budget("tea", hops=HOPS, acts=ACTS)
            for em in ems:
                one.em(em, ALL)
            made.append(one)
        yield made


@pytest.fixture
async def world(shared: Shared, tmp_path: Path, human: Human) -> AsyncIterator[Bridged]:
    """One node with two ems that answer whatever they hear."""
    synapse, spare = shared
    async with MemoryBroker() as broker:
        one = Bridged(tmp_path, broker, synapse, spare.pop(), human.id, bots=["@robot*:localhost"])
        one.budget("tea", hops=HOPS, acts=ACTS)
        one.em("ada", ALL)
        one.em("bob", ALL)
        yield one


def acts(world: Bridged, basin: str = "tea") -> list[Act]:
    return [entry.act for entry in recent(world.here.ground.store, basin, 500)]


def spoken(world: Bridged) -> int:
    """How often ems of this node spoke."""
    return sum(act.author in world.here.runtime.ems for act in acts(world))


async def join(world: Bridged, human: Human, room: str | None = None) -> str:
    there = room or await human.room(preset=RoomPreset.public_chat)
    await world.bridge.lobby.join(there, "tea", None)
    return there


async def idle(*worlds: Bridged) -> None:
    """Until nobody has anything to hear, say or send."""

    def busy(world: Bridged) -> bool:
        node, port = world.here, world.bridge.port
        return bool(port.inbox.waiting() or node.outbox.waiting() or node.runtime.turns.open() or port.outbox.waiting())

    await until(lambda: not any(busy(world) for world in worlds))


async def quiet(human: Human, room: str, *worlds: Bridged) -> list[dict[str, Any]]:
    """Until all have heard the last word, and nobody adds to it; gives what was said.

    A word of the person's that nobody answers goes through everything that others' words go through.
    """
    before = -1
    while len(shown := await messages(human, room)) != before:
        last = await human.say(room, ".nothing", msgtype="m.notice")
        await until(lambda last=last: all(world.bridge.tables.event(last) for world in worlds))
        await idle(*worlds)
        before = len(shown) + 1
    return [one for one in shown if one["content"]["msgtype"] != "m.notice"]


async def test_two_nodes_whose_ems_answer_everything_are_quiet_within_the_budget(
    worlds: list[Bridged], human: Human
) -> None:
    """All call all by name in one room: no chain is longer than its hops, and no node says more than its acts."""
    one, two = worlds
    model = Scripted([CALLING])
    async with one.up(model), two.up(model):
        room = await join(one, human)
        await join(two, human, room)
        await human.say(room, CALLING)
        await until(lambda: spoken(one) and spoken(two))
        shown = await quiet(human, room, one, two)
        assert spoken(one) <= ACTS
        assert spoken(two) <= ACTS
        assert len(shown) == 1 + spoken(one) + spoken(two)
        assert max(event["content"][MARK]["hops"] for event in shown[1:]) <= HOPS
        assert max(event["content"][MARK]["hops"] for event in shown[1:]) > 1, "nobody answered the other node"
        assert len({event["content"][MARK]["root"] for event in shown[1:]}) == 1
        before = len(shown)
        await human.say(room, "ada, and now?")
        await until(lambda: spoken(one) + spoken(two) >= before)
        assert len(await quiet(human, room, one, two)) > before + 1


async def test_two_ems_of_two_nodes_that_call_each_other_end_at_the_hops(worlds: list[Bridged], human: Human) -> None:
    """A chain that would go on for ever between two nodes is as long as one within a node: as its hops allow."""
    one, two = worlds
    for folder in (folder for world in worlds for folder in world.ems.iterdir()):
        (folder / "config.yaml").write_text("reply_on_floor: false\nbasins: [tea]\n", "utf-8")
    async with one.up(Scripted(["cleo, what do you say?"])), two.up(Scripted(["ada, what do you say?"])):
        room = await join(one, human)
        await join(two, human, room)
        await human.say(room, "ada, begin")
        await until(lambda: spoken(one) and spoken(two))
        shown = await quiet(human, room, one, two)
        assert [event["content"][MARK]["hops"] for event in shown[1:]] == list(range(1, HOPS + 1))


async def test_ems_of_other_nodes_that_are_not_called_are_not_answered(worlds: list[Bridged], human: Human) -> None:
    """To answer everything means people and one's own: another node's em is a machine, and must call."""
    one, two = worlds
    one.budget("tea", hops=1)
    two.budget("tea", hops=1)
    async with one.up(Scripted(["Well."])), two.up(Scripted(["Well."])):
        room = await join(one, human)
        await join(two, human, room)
        await human.say(room, "hello everybody")
        await until(lambda: spoken(one) == 2 and spoken(two) == 2)
        assert len(await quiet(human, room, one, two)) == 5


async def echoing(machine: Human, room: str, world: Bridged, **marks: Any) -> None:
    """A machine that answers each message of an em with its name, without end; until cancelled."""
    answered = set[str]()
    while True:
        for event in await messages(machine, room):
            if world.bridge.port.owns(event["sender"]) and event["event_id"] not in answered:
                answered.add(event["event_id"])
                await machine.say(room, f"ada, you said: {event['content']['body'][:50]}", **marks)
        await asyncio.sleep(0.02)


async def robot(synapse: Synapse, number: int) -> Human:
    return Human(synapse, await synapse.register(f"robot{number}x{now_ms()}", "secret"))


async def test_a_machine_that_always_answers_ends_at_its_quota(world: Bridged, human: Human) -> None:
    """It calls the em each time and tells nothing of chains; after its few messages it is read, and not answered."""
    world.config = world.config.model_copy(
        update={"matrix": world.config.matrix.model_copy(update={"bot_messages": 3})}
    )
    machine = await robot(world.synapse, 1)
    model = Scripted(["Indeed."])
    try:
        async with world.up(model), asyncio.TaskGroup() as group:
            room = await join(world, human)
            await machine.client.join(room)
            task = group.create_task(echoing(machine, room, world))
            await human.say(room, "ada, go")
            await until(lambda: any("3 messages in 10 minutes" in str(act.body.get("quiet")) for act in acts(world)))
            await quiet(human, room, world)
            calls = len(model.requests)
            assert [act.text for act in acts(world) if act.author == machine.id and "quiet" not in act.body]
            assert sum(act.author == machine.id and "quiet" not in act.body for act in acts(world)) == 3
            await human.say(room, "ada, are you still there?")
            await until(lambda: len(model.requests) > calls)
            task.cancel()
    finally:
        await machine.client.close()


async def test_a_room_costs_so_much_until_a_person_speaks(world: Bridged, human: Human) -> None:
    """A machine with a large quota ends at the room's tokens; a person's word begins them anew."""
    limits = {"bot_messages": 1_000, "room_tokens": 400}
    world.config = world.config.model_copy(update={"matrix": world.config.matrix.model_copy(update=limits)})
    machine = await robot(world.synapse, 2)
    model = Scripted(["Indeed."])

    def refused() -> int:
        return sum("tokens are spent until a person speaks" in str(act.body.get("quiet")) for act in acts(world))

    try:
        async with world.up(model), asyncio.TaskGroup() as group:
            room = await join(world, human)
            await machine.client.join(room)
            task = group.create_task(echoing(machine, room, world))
            await human.say(room, "ada, go")
            await until(lambda: refused() == 1)
            await quiet(human, room, world)
            calls = len(model.requests)
            await human.say(room, "ada, go on")
            await until(lambda: refused() > 1)
            await quiet(human, room, world)
            assert len(model.requests) > calls + 1
            task.cancel()
    finally:
        await machine.client.close()


async def test_a_person_without_pause_is_answered_so_often(world: Bridged, human: Human) -> None:
    """A machine that nobody knows to be one is held to a person's messages a minute."""
    limits = {"messages_per_minute": 5}
    world.config = world.config.model_copy(update={"matrix": world.config.matrix.model_copy(update=limits)})
    async with world.up(Scripted(["Indeed."])), person(world.synapse) as stranger, asyncio.TaskGroup() as group:
        room = await join(world, human)
        await stranger.client.join(room)
        task = group.create_task(echoing(stranger, room, world))
        await human.say(room, "ada, go")
        await until(lambda: any("5 messages a minute" in str(act.body.get("quiet")) for act in acts(world)))
        await quiet(human, room, world)
        assert sum(act.author == stranger.id and "quiet" not in act.body for act in acts(world)) == 5
        task.cancel()


async def test_a_bounce_limit_is_kept_and_counts_down(world: Bridged, human: Human) -> None:
    """What may bounce once more is answered with what may bounce no more, and then nobody answers."""
    async with world.up(Scripted([CALLING])), person(world.synapse) as machine:
        room = await join(world, human)
        await machine.client.join(room)
        await machine.say(room, "ada?", **{BOUNCE: 1})
        (answer,) = [one for one in await said(human, room, CALLING) if one["content"]["body"] == CALLING]
        assert answer["content"][BOUNCE] == 0
        await quiet(human, room, world)
        assert spoken(world) == 1


@pytest.mark.parametrize("way", ["appservice", "account"])
async def test_ems_of_one_node_in_two_rooms_of_a_basin_do_not_echo(
    shared: Shared, tmp_path: Path, human: Human, way: str
) -> None:
    """What is said in one room is shown in the other once, and heard from neither a second time."""
    synapse, spare = shared
    async with MemoryBroker() as broker:
        one = Bridged(
            tmp_path, broker, synapse, spare.pop() if way == "appservice" else await new_session(synapse), human.id
        )
        one.budget("tea", hops=HOPS, acts=ACTS)
        one.em("ada", ALL)
        one.em("bob", ALL)
        async with one.up(Scripted([CALLING])):
            rooms = [await join(one, human), await join(one, human)]
            await human.say(rooms[0], "hello")
            await until(lambda: spoken(one) > 1)
            for room in rooms:
                await quiet(human, room, one)
            assert spoken(one) <= ACTS
            said_once = [act for act in acts(one) if act.body.get("quiet") is None]
            assert len(said_once) == 1 + spoken(one)
            for room in rooms:
                shown = [event for event in await messages(human, room) if event["content"]["msgtype"] != "m.notice"]
                assert len(shown) == len(said_once)


async def test_two_nodes_that_share_two_rooms_do_not_relay_for_ever(worlds: list[Bridged], human: Human) -> None:
    """Both nodes tell each room what is said in the other: a person's line reaches each once from each, and no more."""
    one, other = worlds
    for folder in (folder for world in worlds for folder in world.ems.iterdir()):
        (folder / "config.yaml").write_text("basins: [tea]\nmute: true\n", "utf-8")
    async with one.up(Scripted(["Hm."])), other.up(Scripted(["Hm."])):
        rooms = [await join(one, human), await join(one, human)]
        for room in rooms:
            await join(other, human, room)
        await human.say(rooms[0], "hello in here")
        await quiet(human, rooms[1], one, other)
        await human.say(rooms[1], "and in here")
        await quiet(human, rooms[0], one, other)
        shown = [one["content"]["body"] for room in rooms for one in await messages(human, room)]
        for text in ("hello in here", "and in here"):
            assert sum(text in line for line in shown) == 3, shown  # once said, and told by each node
            assert [sum(act.text == text for act in acts(world)) for world in worlds] == [1, 1]
