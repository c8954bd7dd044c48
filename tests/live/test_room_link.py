"""Nodes that cannot be dialled, linked through a room of a real Synapse: nothing but Matrix lies between them."""

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from homeserver import Synapse
from matrix_rig import LIVE, Human, new_session, person
from nio import RoomPreset
from owners import Owner, owners, until

from mesh.bridges.matrix.account import Account, Session
from mesh.bridges.matrix.port import ENCRYPTION
from mesh.clock import now_ms
from nodes.config import MeshConfig
from nodes.matrix.bridge import Bridge
from nodes.media import Media

pytestmark = LIVE


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Generator[Synapse]:
    one = Synapse(tmp_path_factory.mktemp("synapse"))
    try:
        asyncio.run(one.start())
        yield one
    finally:
        one.stop()


@pytest.fixture
async def human(synapse: Synapse) -> AsyncIterator[Human]:
    async with person(synapse) as one:
        yield one


@asynccontextmanager
async def up(owner: Owner, session: Session) -> AsyncIterator[Bridge]:
    """An owner's node with an account on Matrix and nowhere to be dialled, within the block."""
    config = owner.config.model_dump() | {"links": {}}
    owner.config = MeshConfig.model_validate(config)
    async with owner.up():
        node = owner.node
        media = Media(owner.path / "media")
        bridge = Bridge(
            node, lambda one: Account(session, node.ground.store, now_ms, one.done), node.config.matrix, None, media
        )
        owner.peers.ways.rooms = bridge.ways
        async with asyncio.TaskGroup() as group:
            task = group.create_task(bridge.run())
            await bridge.port.ready.wait()
            owner.peers.stir()
            try:
                yield bridge
            finally:
                task.cancel()


async def test_two_link_in_a_room_and_talk_there_and_people_see_nothing(
    synapse: Synapse, human: Human, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invited, accepted, heard both ways, after a restart and after a change of mind; clients show none of it.

    Once somebody encrypts the room it is of no use any more, and the node says so.
    """
    monkeypatch.setattr("mesh.links.room.PAUSE_S", (0.1, 0.1))
    room = await human.room(preset=RoomPreset.public_chat)
    async with owners(tmp_path, "ada", "bob") as (ada, bob):
        hers, his = await new_session(synapse), await new_session(synapse)
        async with up(ada, hers) as bridge:
            async with up(bob, his):
                invited = await ada.ask(
                    "invite", gives={"tea": "write"}, takes={}, expires_s=600, trust="known", room=room
                )
                assert (invited["room"], invited["addresses"]) == (room, [])
                seen = await bob.ask("look", code=invited["code"], room=room)
                await bob.ask("accept", code=invited["code"], offer=seen["offer"], trust="known", room=room)
                await until(lambda: ada.peers.relationship(bob.mesh).state.value == "linked")
                await ada.say("good morning")
                await until(lambda: bob.heard() == ["good morning"])
                await bob.say("and to you")
                await until(lambda: ada.heard() == ["good morning", "and to you"])
                assert (await ada.ask("show", peer="bob"))["room"] == room
            await ada.say("while you were away")
            async with up(bob, his):
                await until(lambda: "while you were away" in bob.heard())
                assert (await bob.ask("room", peer="ada"))["room"] is None
                await until(lambda: not ada.peers.links.sessions and not bob.peers.links.sessions)
                await ada.say("while you were elsewhere")
                assert (await bob.ask("room", peer="ada", room=room))["room"] == room
                await until(lambda: "while you were elsewhere" in bob.heard())
                assert (ada.refused(bob), bob.refused(ada)) == ({}, {})
                await human.client.room_put_state(room, ENCRYPTION, {"algorithm": "m.megolm.v1.aes-sha2"})
                await until(lambda: bridge.port.inbox.is_encrypted(room))
                for text in ("sealed", "sealed once more"):
                    await ada.say(text)
                await until(lambda: bridge.problems)
                (told,) = [str(problem) for problem in bridge.problems]
                assert "is encrypted, and links need a room that is not" in told
                await until(lambda: not ada.peers.links.sessions)
    assert await human.bodies(room) == []
