"""A real node, its rooms on a real Synapse, killed at every step between a person's words and an em's answer."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sealing
from bridged import messages
from crashing_matrix import DRAFTED, PARTS, SEALING
from homeserver import Synapse, free_port
from matrix_rig import LIVE, Human, new_way
from nio import RoomPreset
from openai_server import Answer, FakeOpenAI
from process import client, make_home, settled, up

from mesh.bridges.matrix.port import MESSAGE
from nodes.client import Client
from nodes.home import Home
from nodes.matrix.login import Listening, Login, write_login

pytestmark = LIVE

CRASHING = (sys.executable, str(Path(__file__).parents[1] / "support" / "crashing_matrix.py"))
PATIENCE_S = 40
MANY = 60  # answers, more than are asked for
EMS = {"ada": "reply_on_floor: false\nbasins: [tea]\n"}
WHOLE = Answer(pieces=("Indeed", " so."))
SLOW = Answer(pieces=tuple(f"word{number} " for number in range(40)), delay_s=0.05)
ENDS = {"".join(answer.pieces).strip() for answer in (WHOLE, SLOW)}


@dataclass(frozen=True)
class Seat:
    """A home whose em sits in a room of a person's."""

    synapse: Synapse
    home: Home
    login: dict[str, Any]
    room: str
    models: int  # the port of the model's server


@pytest.fixture(scope="module")
def seat(tmp_path_factory: pytest.TempPathFactory) -> Generator[Seat]:
    """One for all: a node that was killed and came back is like one that was not."""
    way, listen = new_way()
    synapse = Synapse(tmp_path_factory.mktemp("synapse"), [way.text()])
    models = free_port()
    config = {
        "matrix": {"messages_per_minute": 1_000},
        "basins": {"tea": {"budget": {"hops": 1, "acts": 8}}},
        "models": {
            "default": "stub",
            "vendors": {"stub": {"base_url": f"http://127.0.0.1:{models}/v1", "provides": ["stub"]}},
        },
    }
    home = make_home(tmp_path_factory.mktemp("node") / "home", EMS, config)

    async def prepare() -> Seat:
        await synapse.start()
        login = await synapse.register("human", "secret")
        write_login(home.keys, Login(synapse.url, login["user_id"], way, Listening("127.0.0.1", listen)))
        human = Human(synapse, login)
        room = await human.room(preset=RoomPreset.public_chat)
        async with up(home), client(home) as one:
            joined = await one.request("matrix_join", {"room": room, "basin": "tea"})
            assert joined["joined"] == ["ada"]
        await human.client.close()
        return Seat(synapse, home, login, room, models)

    try:
        yield asyncio.run(prepare())
    finally:
        synapse.stop()


@pytest.fixture
async def human(seat: Seat) -> AsyncIterator[Human]:
    one = Human(seat.synapse, seat.login)
    yield one
    await one.client.close()


@pytest.mark.parametrize("part", PARTS)
async def test_a_node_killed_between_a_room_and_its_em_answers_exactly_once(
    seat: Seat, human: Human, part: str
) -> None:
    """Killed at each step, and at the next while it recovers: one act and one answer each, in order, no draft left."""
    await killed(seat, human, seat.room, "tea", PARTS[part])


class Encrypting(sealing.Human):
    """A person in an encrypted room, with a new key for each message, who sees what others see in an open room."""

    async def say(self, room: str, text: str, **more: Any) -> str:
        self.client.invalidate_outbound_session(room)
        return await super().say(room, text, **more)

    async def events(self, room: str, kind: str = MESSAGE) -> list[dict[str, Any]]:
        return [event.source for event in await super().events(room) if event.source["type"] == kind]


async def test_a_node_killed_between_an_encrypted_room_and_its_em_answers_exactly_once(
    seat: Seat, tmp_path: Path
) -> None:
    """Killed between a key and what it opens, and between what is sealed and what is sent: all is read, and once."""
    mara = Encrypting(seat.synapse, seat.login, tmp_path / "client")
    try:
        await mara.begin()
        async with up(seat.home), client(seat.home) as one:
            members = (await one.request("matrix_rooms", {}))["rooms"][0]["members"]
            room = await mara.room(*(member["user"] for member in members if member["em"] == "ada"))
            while not (basin := await basin_of(one, room)):
                await asyncio.sleep(0.02)
        await killed(seat, mara, room, basin, SEALING)
    finally:
        await mara.client.close()


async def basin_of(one: Client, room: str) -> str | None:
    """The basin of a room, once an em sits there."""
    rooms = (await one.request("matrix_rooms", {}))["rooms"]
    return next((found["basin"] for found in rooms if found["room"] == room and found["members"]), None)


async def killed(seat: Seat, human: Human | Encrypting, room: str, basin: str, boundaries: Iterable[str]) -> None:
    """Have a node killed at each of these, with two questions each, and see how it answers."""
    async with FakeOpenAI(seat.models) as model:
        begun, asked, texts = len(await messages(human, room)), list[str](), list[str]()
        for boundary in boundaries:
            async with up(seat.home, (*CRASHING, boundary)) as node:
                async with asyncio.timeout(PATIENCE_S):
                    while node.process.returncode is None and not await all_answered(human, room, begun, asked):
                        await asyncio.sleep(0.02)
                model.mend()
                model.play(SLOW if boundary in DRAFTED else WHOLE, *[WHOLE] * MANY)
                for number in ("one", "two"):
                    texts.append(f"ada, {number}, {boundary}?")
                    asked.append(await human.say(room, texts[-1]))
                async with asyncio.timeout(PATIENCE_S):
                    assert await node.gone() == -signal.SIGKILL, boundary
        async with up(seat.home) as node, client(seat.home) as one:
            await idle(one, human, room, begun, asked)
            history = (await settled(one, basin))[-2 * len(asked) :]
            assert await node.stop() == 0
            assert "Traceback" not in node.said()
        shown = (await messages(human, room))[begun:]
        assert [event["event_id"] for event in shown if event["sender"] == human.id] == asked
        assert [answered(event) for event in shown if event["sender"] != human.id] == asked
        questions = [entry for entry in history if entry["author"] == human.id]
        replies = [entry for entry in history if entry["author"] == "ada"]
        assert [entry["text"] for entry in questions] == texts
        assert [entry["refs"] for entry in replies] == [[entry["id"]] for entry in questions]
        assert len(asked) <= len(model.requests) <= 2 * len(asked)


def answered(event: dict[str, Any]) -> str:
    return str(event["content"]["m.relates_to"]["m.in_reply_to"]["event_id"])


async def all_answered(human: Human | Encrypting, room: str, begun: int, asked: list[str]) -> bool:
    """Whether people see as many whole answers as there were questions."""
    shown = [event for event in (await messages(human, room))[begun:] if event["sender"] != human.id]
    return len(shown) >= len(asked) and all(event["content"]["body"] in ENDS for event in shown)


async def idle(one: Client, human: Human | Encrypting, room: str, begun: int, asked: list[str]) -> None:
    """Until all is answered, and nothing waits any more."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            told, status = await one.request("matrix_status", {}), await one.status()
            busy = told["waiting_in"] or told["waiting_out"] or status["speaking"] or status["waiting"]
            if not busy and await all_answered(human, room, begun, asked):
                return
            await asyncio.sleep(0.02)
