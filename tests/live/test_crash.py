"""Real nodes and servers that die at the worst moment: exactly one reply each, nothing lost, nobody intervenes."""

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest
from crashing import BOUNDARIES
from process import CRASHING, client, make_home, mesh, replies, settled, until, up

from nodes.errors import NodeError

APORIA = {"aporia": "reply_on_name: true\n"}


@pytest.mark.parametrize("boundary", BOUNDARIES)
async def test_a_node_killed_at_a_boundary_of_a_turn_replies_exactly_once(tmp_path: Path, boundary: str) -> None:
    home = make_home(tmp_path / "home", APORIA)
    async with up(home, (*CRASHING, boundary)) as node:
        try:
            async with asyncio.timeout(20), client(home) as one:
                await one.say("yappings", "aporia, are you there?")
        except (NodeError, TimeoutError):
            pass  # it died before it could say that the act is stored
        assert await node.gone() == -signal.SIGKILL
    for _ in range(2):  # the second start finds nothing left to do
        async with up(home) as node, client(home) as one:
            async with asyncio.timeout(20):
                while not any(entry["refs"] for entry in await one.history("yappings")):
                    await asyncio.sleep(0.02)
            history = await settled(one)
            assert [entry["author"] for entry in history] == ["mara", "aporia"]
            assert await node.stop() == 0


async def test_random_kills_under_load_lose_and_double_nothing(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    dice = random.Random(7)
    asked: list[str] = []

    async def ask(number: int) -> None:
        async with client(home) as one:
            for place in range(20):
                act = await one.say("yappings", f"aporia, {number} {place}?")
                asked.append(act["id"])

    for round_number in range(5):
        async with up(home) as node:
            task = asyncio.ensure_future(ask(round_number))  # noqa: TID251 - ended three lines below
            target = len(asked) + dice.randrange(1, 15)
            await until(lambda target=target: len(asked) >= target)
            node.kill()
            await node.gone()
            task.cancel()
            await asyncio.wait([task])
    async with up(home), client(home) as one:
        history = await settled(one)
        ids = [entry["id"] for entry in history]
        assert len(ids) == len(set(ids))
        for act in asked:
            assert replies(history, act) == ["aporia"]
        assert all(replies(history, entry["id"]) == ["aporia"] for entry in history if not entry["refs"])


async def test_a_killed_server_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    async with up(home) as node, client(home) as one:
        acts = [(await one.say("yappings", "aporia, before"))["id"]]
        for number in range(3):
            killed = node.server_pid
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(30):
                while True:
                    try:
                        acts.append((await one.say("yappings", f"aporia, after {number}"))["id"])
                        break
                    except NodeError:
                        await asyncio.sleep(0.05)
            assert node.server_pid != killed
        history = await settled(one)
        for act in acts:
            assert replies(history, act) == ["aporia"]
        assert await node.stop() == 0
        assert "Traceback" not in node.said()


async def test_the_server_dies_with_its_node(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    async with up(home) as node:
        server = node.server_pid
        node.kill()
        await node.gone()
        async with asyncio.timeout(10):
            await until(lambda: not Path(f"/proc/{server}").exists())


async def test_sigterm_drains_and_exits_with_0(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", {"aporia": "reply_on_name: true\ndelay_s: 0.3\n"})
    async with up(home) as node:
        async with client(home) as one:
            act = await one.say("yappings", "aporia?")
            while not (await one.status())["speaking"]:
                await asyncio.sleep(0)
        assert await node.stop() == 0
        assert home.running() is None
    shown = mesh("basin", "show", "yappings", "--home", home.path, "--json")
    assert act["id"] in shown.stdout
    assert '"author": "aporia"' in shown.stdout


@pytest.mark.parametrize("number", [2, 10])
async def test_ems_that_answer_everything_are_quiet_within_the_budget(tmp_path: Path, number: int) -> None:
    ems = {f"em{place}": "reply_on_all: true\n" for place in range(number)}
    home = make_home(tmp_path / "home", ems, {"basins": {"yappings": {"budget": {"hops": 12, "acts": 30}}}})
    async with up(home) as node, client(home) as one:
        await one.say("yappings", "go on, all of you")
        first = await settled(one)
        assert 1 < len(first) <= 1 + 30
        assert await settled(one) == first
        assert await node.stop() == 0
