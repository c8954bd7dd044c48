"""Nodes and servers of three owners die by `kill -9`, at random moments: nothing lost, doubled, leaked or out of order.

A schedule is a list of blows: after a delay, one node or one nats-server is killed; a node is started again a moment
later. Everybody speaks all the while. The seed of every schedule is its number, so any one can be run again alone:
AMPMESH_KILLS=1 AMPMESH_KILLS_FROM=57 (that is: the one with seed 57). `make test` runs 20, `make test-kills` 200.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from world import AWAY, Member, World, check, figure, soon, spread, world

from nodes.client import Client

SCHEDULES = int(os.environ.get("AMPMESH_KILLS", "20"))
FIRST = int(os.environ.get("AMPMESH_KILLS_FROM", "1"))
BASINS = ("tea", "den")  # tea is everybody's; den belongs to the first two


class Blow(NamedTuple):
    """After `delay_s` somebody's node is killed (started again `away_s` later), or their nats-server alone."""

    delay_s: float
    member: int
    is_node: bool
    away_s: float


def schedule(seed: int) -> list[Blow]:
    dice = random.Random(seed)
    return [
        Blow(dice.uniform(0, 0.6), dice.randrange(3), dice.random() < 0.5, dice.choice([0, dice.uniform(0, 0.5)]))
        for _ in range(dice.randrange(1, 4))
    ]


class Voice:
    """One member's words: told to the node one after the other, whatever happens to it. `kept`: what it confirmed."""

    def __init__(self, member: Member, basins: tuple[str, ...]) -> None:
        self.member, self.basins = member, basins
        self.kept: dict[str, list[str]] = {basin: [] for basin in basins}
        self.tried = 0
        self._stop = False

    async def speak(self) -> None:
        """Speak until stopped; a node that died is asked again with other words."""
        self._stop = False
        while not self._stop:
            with contextlib.suppress(*AWAY):
                await self.member.hands(self._some)
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._stop = True

    async def _some(self, one: Client) -> None:
        while not self._stop:
            self.tried += 1
            basin = self.basins[self.tried % len(self.basins)]
            text = f"{self.member.name} {basin} {self.tried}"
            async with asyncio.timeout(1):
                await one.say(basin, text)
            self.kept[basin].append(text)
            await asyncio.sleep(0.01)


async def strike(members: list[Member], blow: Blow) -> None:
    await asyncio.sleep(blow.delay_s)
    struck = members[blow.member]
    if not blow.is_node:
        struck.kill_server()
        return
    await struck.end()
    await asyncio.sleep(blow.away_s)
    await struck.start()


def check_voices(voices: list[Voice]) -> None:
    """What a node has confirmed is there, in the order in which it was said; nothing was said twice."""
    for voice in voices:
        for basin in voice.basins:
            there = [act.text for act in voice.member.acts(basin) if act.mesh == voice.member.mesh]
            assert len(set(there)) == len(there), (voice.member.name, basin)
            confirmed = set(voice.kept[basin])
            assert [text for text in there if text in confirmed] == voice.kept[basin], (voice.member.name, basin)


@asynccontextmanager
async def linked(path: Path, *, ring: bool) -> AsyncIterator[World]:
    """Three members in a line or a triangle; the first two have a basin of their own."""
    async with world(path, "ada", "bob", "cyd") as one:
        ada, bob, cyd = one.members
        await one.start()
        await one.link(ada, bob, *BASINS)
        await one.link(bob, cyd)
        if ring:
            await one.link(cyd, ada)
        yield one


@pytest.mark.timeout(30 + 30 * SCHEDULES)
@pytest.mark.parametrize("ring", [False, True], ids=["line", "triangle"])
async def test_random_kills_lose_double_leak_and_disorder_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ring: bool
) -> None:
    seeds = [seed for seed in range(FIRST, FIRST + SCHEDULES) if seed % 2 == ring]
    async with linked(tmp_path, ring=ring) as one:
        ada, bob, cyd = one.members
        voices = [Voice(ada, BASINS), Voice(bob, BASINS), Voice(cyd, BASINS[:1])]
        for seed in seeds:
            blows = schedule(seed)
            try:
                async with asyncio.TaskGroup() as group:
                    for voice in voices:
                        group.create_task(voice.speak())
                    for blow in blows:
                        await strike(one.members, blow)
                    for voice in voices:
                        voice.stop()
                for member in one.members:
                    await soon(lambda member=member: member.ask("status"))
                await spread(one.members)
                await spread([ada, bob], "den")
                check(one.members)
                check([ada, bob], [cyd], "den")
                check_voices(voices)
            except (Exception, asyncio.CancelledError) as error:
                error.add_note(f"schedule {seed} of a {'triangle' if ring else 'line'}: {blows}")
                raise
        assert not cyd.holds(b" den ")
        for member in one.members:
            assert "Traceback" not in member.home.path.joinpath("up.log").read_text("utf-8")
        figure(capsys, f"{len(seeds)} schedules, {sum(voice.tried for voice in voices)} acts")
