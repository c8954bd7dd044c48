"""What the owner may ask of a node, and what nobody else may."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from harness import CLIENT, MESH_ID, NOW, OTHER, TRUST, World, quiet, write_em

from mesh.bus.base import Message
from mesh.bus.memory import MemoryBroker
from nodes.client import Client
from nodes.control import Control
from nodes.errors import NodeError, NotRunning
from nodes.models.scripted import Scripted
from nodes.picture import Picture
from protocol.keys import Signer
from protocol.request import encode_request


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with MemoryBroker() as broker:
        yield World(tmp_path, broker)


@asynccontextmanager
async def served(world: World) -> AsyncIterator[Client]:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["Yes."])) as node, asyncio.TaskGroup() as group:
        control = Control(node)
        task = group.create_task(control.serve())
        await control.ready.wait()
        yield client(world)
        await quiet(node)
        task.cancel()


def client(world: World, signer: Signer = CLIENT) -> Client:
    return Client(world.broker.connect(), MESH_ID, signer, TRUST, lambda: NOW)


async def test_pictures_are_said_with_the_act_and_checked_first(world: World) -> None:
    cat = Picture("ab" * 32, "image/png", 12, "cat.png")
    async with served(world) as one:
        said = await one.say("yappings", "psst", media=[cat])
        assert said["media"] == [{"sha256": "ab" * 32, "mime": "image/png", "bytes": 12, "name": "cat.png"}]
        assert (await one.history("yappings"))[0]["media"] == said["media"]
        assert "media" not in await one.say("yappings", "psst")
        for wrong in (Picture("../x", "image/png", 12), Picture("ab" * 32, "text/html", 12)):
            with pytest.raises(NodeError, match=r"media\[0\]"):
                await one.say("yappings", "psst", media=[wrong])
        with pytest.raises(NodeError, match="length <= 8"):
            await one.say("yappings", "psst", media=[cat] * 9)


async def test_the_owner_speaks_listens_and_looks_back(world: World) -> None:
    async with served(world) as one, one.listening("yappings") as inbox:
        said = await one.say("yappings", "aporia?")
        heard = [await anext(inbox) for _ in range(3)]
        assert [(entry.kept, entry.act.kind, entry.act.author, entry.act.text) for entry in heard] == [
            (True, "say", "mara", "aporia?"),
            (False, "attend", "aporia", ""),
            (True, "say", "aporia", "Yes."),
        ]
        assert heard[1].act.id == heard[2].act.id
        answer = await one.say("yappings", "thank you", answers=heard[2].act.id.hex())
        assert answer["refs"] == [heard[2].act.id.hex()]
        assert "thank you" in [entry["text"] for entry in await one.history("yappings", 2)]
        status = await one.status()
        assert (status["ems"], status["human"], status["refused"]) == (["aporia"], "mara", 0)
        assert said["budget"]["hops"] == 24


@pytest.mark.parametrize(
    ("operation", "arguments", "told"),
    [
        ("say", {"basin": "yappings", "text": " "}, "nothing to say"),
        ("say", {"basin": "yappings", "text": "x" * 70_000}, "65536"),
        ("say", {"basin": "No Basin", "text": "x"}, "not a name"),
        ("say", {"basin": "yappings", "text": "x", "kind": "Say"}, "not the name of an act"),
        ("say", {"basin": "yappings", "text": "x", "refs": ["zz"]}, "hex"),
        ("say", {"basin": "yappings", "text": "x", "refs": ["ab"]}, "length >= 16"),
        ("say", {"basin": "yappings"}, "text"),
        ("say", {"basin": "yappings", "text": "x", "author": "aporia"}, "author"),
        ("history", {"basin": 7}, "basin"),
        ("dance", {}, "no operation"),
    ],
)
async def test_what_cannot_be_done_is_one_sentence(
    world: World, operation: str, arguments: dict[str, object], told: str
) -> None:
    async with served(world) as one:
        with pytest.raises(NodeError, match=told) as caught:
            await one.request(operation, arguments)
        assert len(str(caught.value).splitlines()) == 1
        assert (await one.status())["acts"] == 0


async def test_a_request_that_the_owner_did_not_sign_is_refused(world: World) -> None:
    async with served(world) as one:
        with pytest.raises(NodeError, match="not signed"):
            await client(world, OTHER).say("yappings", "I am mara")
        assert (await one.status())["acts"] == 0


async def test_a_request_is_answered_once(world: World) -> None:
    async with served(world) as one:
        body = msgspec.json.encode({"basin": "yappings", "text": "once"})
        asked = encode_request(CLIENT, "say", NOW, bytes(8), body)
        bus = world.broker.connect()
        first, again = [await bus.request(f"c.{MESH_ID}.say", asked, 5) for _ in range(2)]
        assert b"once" in first
        assert b"answered before" in again
        assert (await one.status())["acts"] == 1


async def test_the_same_request_twice_in_a_millisecond_is_two(world: World) -> None:
    async with served(world) as one:
        await one.say("yappings", "twice")
        await one.say("yappings", "twice")
        assert (await one.status())["acts"] == 2


async def test_without_a_node_it_says_how_to_start_one(world: World) -> None:
    with pytest.raises(NotRunning, match="mesh up"):
        await client(world).status()


async def test_an_answer_that_cannot_be_sent_costs_nobody_anything(world: World) -> None:
    """Whoever may publish a request names the place for its answer, and that may be no place at all."""
    async with world.node(Scripted(["Yes."])) as node:
        for place in ("_INBOX.>", "", "a b", "x" * 100_000):
            await Control(node)._answer(Message(f"c.{MESH_ID}.nonsense", b"", place))
        assert (await node.ground.bus.last_seq()) == 0


async def test_history_gives_as_much_as_one_message_holds_the_newest_first(world: World) -> None:
    async with served(world) as one:
        for number in range(20):
            await one.say("garden", f"{number:02d}" + "x" * 65_000)
        history = await one.history("garden", 20)
        assert 10 < len(history) < 20
        assert [entry["text"][:2] for entry in history] == [f"{number:02d}" for number in range(20)][-len(history) :]
