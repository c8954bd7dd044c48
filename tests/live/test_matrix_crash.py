"""A real node, its rooms on a real Synapse, killed at every step between a person's words and an em's answer."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bridged import messages
from crashing_matrix import BOUNDARIES, DRAFTED
from homeserver import INSTALLED, Synapse, free_port
from matrix_rig import Human, new_way
from nio import RoomPreset
from openai_server import Answer, FakeOpenAI
from process import client, make_home, settled, up

from nodes.client import Client
from nodes.home import Home
from nodes.matrix.login import Listening, Login, write_login

pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="matrix-synapse is not installed: NOTHING OF MATRIX IS TESTED LIVE"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:nio"),  # of nio's own making
]

CRASHING = (sys.executable, str(Path(__file__).parents[1] / "support" / "crashing_matrix.py"))
PATIENCE_S = 40
EMS = {"ada": "reply_on_floor: false\nbasins: [tea]\n"}
WHOLE = Answer(pieces=("Indeed", " so."))
SLOW = Answer(pieces=tuple(f"word{number} " for number in range(40)), delay_s=0.05)


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


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_a_node_killed_between_a_room_and_its_em_answers_exactly_once(
    seat: Seat, human: Human, boundary: str
) -> None:
    """Two questions, a kill, a restart: two acts, two answers, in order, and not a draft is left standing."""
    async with FakeOpenAI(seat.models) as model:
        model.play(SLOW if boundary in DRAFTED else WHOLE, *[WHOLE] * 4)
        before = len(await messages(human, seat.room))
        async with up(seat.home, (*CRASHING, boundary)) as node:
            asked = [await human.say(seat.room, f"ada, {number}, {boundary}?") for number in ("one", "two")]
            async with asyncio.timeout(PATIENCE_S):
                assert await node.gone() == -signal.SIGKILL
        async with up(seat.home) as node, client(seat.home) as one:
            await idle(one, asked)
            history = (await settled(one, "tea"))[-4:]
            assert await node.stop() == 0
        shown = (await messages(human, seat.room))[before:]
        answers = [event for event in shown if event["sender"] != human.id]
        assert [event["event_id"] for event in shown if event["sender"] == human.id] == asked
        assert [answered(event) for event in answers] == asked
        assert {event["content"]["body"].split()[0] for event in answers} <= {"Indeed", "word0"}
        assert all(event["content"]["body"] in {"Indeed so.", "".join(SLOW.pieces).strip()} for event in answers)
        questions = [entry for entry in history if entry["author"] == human.id]
        replies = [entry for entry in history if entry["author"] == "ada"]
        assert [entry["text"] for entry in questions] == [f"ada, {number}, {boundary}?" for number in ("one", "two")]
        assert [entry["refs"] for entry in replies] == [[entry["id"]] for entry in questions]
        assert len(model.requests) <= 3


def answered(event: dict[str, Any]) -> str:
    return str(event["content"]["m.relates_to"]["m.in_reply_to"]["event_id"])


async def idle(one: Client, asked: list[str]) -> None:
    """Until both were heard and answered, and the homeserver has it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            history = await one.history("tea", 4)
            status = await one.request("matrix_status", {})
            waiting = status["waiting_in"] or status["waiting_out"]
            if len(history) == 2 * len(asked) and not waiting and not (await one.status())["speaking"]:
                return
            await asyncio.sleep(0.02)
