"""Ems in rooms of a real Synapse, both ways in: what people do, what they see, and that nothing is lost or doubled."""

import asyncio
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest
from bridged import Bridged, messages, said, until
from homeserver import INSTALLED, Synapse
from matrix_rig import Human, new_session, new_way, person
from nio import RoomPreset

from mesh.bridges.matrix.registration import Registration
from mesh.bus.memory import MemoryBroker
from mesh.entries import recent
from nodes.models.scripted import Scripted

pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="matrix-synapse is not installed: NOTHING OF MATRIX IS TESTED LIVE"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:nio"),  # of nio's own making
]

SPARE = 40  # registrations: one a test
Shared = tuple[Synapse, list[tuple[Registration, int]]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[Shared]:
    """A Synapse that stays up, and appservices that nobody used yet."""
    spare = [new_way() for _ in range(SPARE)]
    synapse = Synapse(tmp_path_factory.mktemp("synapse"), [one.text() for one, _ in spare])
    try:
        asyncio.run(synapse.start())
        yield synapse, spare
    finally:
        synapse.stop()


@pytest.fixture
async def human(shared: Shared) -> AsyncIterator[Human]:
    async with person(shared[0]) as one:
        yield one


@pytest.fixture(params=["appservice", "account"])
async def world(request: pytest.FixtureRequest, shared: Shared, tmp_path: Path, human: Human) -> AsyncIterator[Bridged]:
    """A node on either way in, which the person may invite, with two ems that listen in `tea`."""
    synapse, spare = shared
    way = spare.pop() if request.param == "appservice" else await new_session(synapse)
    async with MemoryBroker() as broker:
        one = Bridged(tmp_path, broker, synapse, way, human.id)
        one.em("ada")
        one.em("bob")
        yield one


async def test_a_person_and_an_em_talk(world: Bridged, human: Human) -> None:
    """Who is called answers once, as a reply, and people see who it is."""
    async with world.up(Scripted(["Good day."])) as bridge:
        room = await human.room(preset=RoomPreset.public_chat)
        _, joined, problems = await bridge.lobby.join(room, "tea", None)
        assert (joined, problems) == (["ada", "bob"], [])
        asked = await human.say(room, "hello ada")
        prefix = "" if bridge.port.caps.separate_identities else "ada: "
        shown = await said(human, room, f"{prefix}Good day.")
        answer = shown[-1]
        assert answer["sender"] == bridge.port.user_id("ada")
        assert answer["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == asked
        acts = [entry.act for entry in recent(world.here.ground.store, "tea", 10)]
        assert [(act.kind, act.author, act.text) for act in acts] == [
            ("say", human.id, "hello ada"),
            ("say", "ada", "Good day."),
        ]
        assert acts[1].refs == [acts[0].id]
        assert len(await messages(human, room)) == 2
        await until(lambda: bridge.port.inbox.waiting() == 0)
