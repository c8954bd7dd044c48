"""What is taken back in a room is nowhere in a home any more, in whatever room and file it was."""

import asyncio
import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bridged import messages
from homeserver import Synapse
from images import image
from matrix_rig import LIVE, Human, new_way, person
from nio import RoomPreset
from process import client, make_home, settled, up

from nodes.client import Client
from nodes.home import Home
from nodes.matrix.login import Listening, Login, write_login
from nodes.records import records

pytestmark = LIVE

EMS = {"ada": "reply_on_floor: false\nbasins: [tea]\n"}
WORDS = "quillwort-and-saxifrage"
PATIENCE_S = 40


@dataclass(frozen=True)
class Seat:
    """A home with a way into a Synapse, and the login of the person whose rooms they are."""

    synapse: Synapse
    home: Home
    login: dict[str, Any]


@pytest.fixture
def seat(tmp_path: Path) -> Generator[Seat]:
    way, listen = new_way()
    folder = tmp_path / "synapse"
    folder.mkdir()
    synapse = Synapse(folder, [way.text()])
    home = make_home(tmp_path / "home", EMS, {"basins": {"tea": {"budget": {"hops": 1, "acts": 8}}}})

    async def prepare() -> Seat:
        await synapse.start()
        login = await synapse.register("human", "secret")
        write_login(home.keys, Login(synapse.url, login["user_id"], way, Listening("127.0.0.1", listen)))
        return Seat(synapse, home, login)

    try:
        yield asyncio.run(prepare())
    finally:
        synapse.stop()


def holding(home: Home, words: bytes) -> list[str]:
    """The files of a home that hold some words."""
    found = list[str]()
    for path in home.path.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # the server's temporary files come and go
            if words in path.read_bytes():
                found.append(str(path.relative_to(home.path)))
    return found


def is_due(home: Home) -> bool:
    """Whether anything is still to be erased."""
    with records(home) as store:
        return store is not None and bool(store.rows("SELECT * FROM erasures"))


async def idle(one: Client) -> None:
    """Until nothing waits any more, either way."""
    while True:
        told, status = await one.request("matrix_status", {}), await one.status()
        if not (told["waiting_in"] or told["waiting_out"] or status["speaking"] or status["waiting"]):
            return
        await asyncio.sleep(0.02)


async def test_what_a_moderator_takes_back_is_in_no_file_of_the_home(seat: Seat) -> None:
    """Words with their edit, and a picture, told in a second room and in prompts: gone from there and from disk."""
    owner = Human(seat.synapse, seat.login)
    try:
        async with (
            person(seat.synapse) as guest,
            up(seat.home) as node,
            client(seat.home) as one,
            asyncio.timeout(PATIENCE_S),
        ):
            rooms = [await owner.room(preset=RoomPreset.public_chat) for _ in range(2)]
            for room in rooms:
                await one.request("matrix_join", {"room": room, "basin": "tea"})
            room = rooms[0]
            await guest.client.join(room)
            secret = await guest.say(room, f"I keep {WORDS} here")
            related = {"rel_type": "m.replace", "event_id": secret}
            new = {"msgtype": "m.text", "body": f"I keep more {WORDS} here"}
            await guest.say(room, "* more", **{"m.new_content": new, "m.relates_to": related})
            data = image("png")
            answer, _ = await guest.client.upload(lambda *_: data, "image/png", "dot.png", filesize=len(data))
            info = {"mimetype": "image/png", "size": len(data)}
            picture = await guest.say(room, "dot.png", msgtype="m.image", url=answer.content_uri, info=info)
            await owner.say(room, "ada, are you there?")
            while len([event for event in await messages(owner, rooms[1]) if event["sender"] != owner.id]) < 4:
                await asyncio.sleep(0.02)
            await idle(one)
            await settled(one, "tea")
            assert holding(seat.home, WORDS.encode())
            assert holding(seat.home, data)
            for event in (secret, picture):
                await owner.client.room_redact(room, event)
            while sum(entry["kind"] == "redact" for entry in await one.history("tea", 100)) < 2:
                await asyncio.sleep(0.02)
            await idle(one)
            await settled(one, "tea")
            while is_due(seat.home):
                await asyncio.sleep(0.02)
            assert holding(seat.home, WORDS.encode()) == []
            assert holding(seat.home, data) == []
            assert WORDS not in str(await owner.events(rooms[1]))
            assert len(await messages(owner, rooms[1])) == 2
            assert await node.stop() == 0
        assert holding(seat.home, WORDS.encode()) == []
    finally:
        await owner.client.close()
