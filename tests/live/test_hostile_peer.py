"""A linked peer gone bad (tests/support/hostile.py), a program of its own: refused, counted, and bearable."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from world import Member, World, figure, spread, world

from nodes.client import Client

HOSTILE = Path(__file__).parent.parent / "support" / "hostile.py"
PATIENCE_S = 60
LATER = {  # not refused at the link, but when the node hears it: it takes the chain, or the relationship, to see it
    "an answer in another chain",
    "a raised budget",
    "a raised budget, to an act nobody knows",
    "hops that were not taken",
    "a third one's statement in our own basin",
}
EMPTY = {"a statement in a common basin"}  # words without effect: of a relationship the two speak in their own basin
GROWTH = 40_000_000  # bytes that all floods together may cost the victim


@asynccontextmanager
async def attacked(path: Path) -> AsyncIterator[World]:
    """Ada, whom bob attacks; both were linked. She shares a second basin with cyd, of which bob knows nothing."""
    async with world(path) as one:
        em = "reply_on_floor: false\nreply_on_name: true\nbasins: [tea]\n"
        ada, bob, cyd = one.member("ada", {"em-ada": em}), one.member("bob"), one.member("cyd")
        await one.start()
        await one.link(ada, bob)
        await one.link(ada, cyd, "tea", "den")
        for member in one.members:
            await member.say(f"{member.name} is here")
        await spread(one.members)
        await cyd.say("deep in the den", "den")
        await spread([ada, cyd], "den")
        await bob.end()
        yield one


class Attack:
    """A hostile program at work."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def told(self) -> dict[str, Any]:
        """The next line that it writes."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            line = await self.process.stdout.readline()
        assert line, "the attack itself failed; see what it wrote on standard error"
        return json.loads(line)

    @property
    def over(self) -> bool:
        return self.process.returncode is not None


@asynccontextmanager
async def attack(name: str, one: World, *, at_home: bool = False) -> AsyncIterator[Attack]:
    """Bob attacks ada, from his machine or from hers."""
    ada, bob, _ = one.members
    place = f"{ada.machine.address}:7417"
    more = [str(ada.home.path)] if at_home else []
    process = await asyncio.create_subprocess_exec(
        *(ada if at_home else bob).machine.argv,
        *(sys.executable, str(HOSTILE), name, str(bob.home.path), ada.mesh, place, *more),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        running = Attack(process)
        assert (await running.told())["begun"] == name
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def latency_s(member: Member, times: int = 15) -> float:
    """The median time from saying something to its standing in the history."""

    async def work(one: Client) -> float:
        took: list[float] = []
        for number in range(times):
            began = time.monotonic()
            text = f"measured {number} {began}"
            await one.say("tea", text)
            while text not in [act["text"] for act in await one.history("tea", 500)]:
                pass
            took.append(time.monotonic() - began)
        return statistics.median(took)

    return await member.hands(work)


def heard(member: Member, words: str) -> list[str]:
    return [act.text for basin in ("tea", "den", "diary") for act in member.acts(basin) if words in act.text]


async def test_every_lie_of_a_linked_peer_is_refused_and_counted(tmp_path: Path) -> None:
    async with attacked(tmp_path) as one:
        ada, bob, cyd = one.members
        async with attack("lie", one) as lies:
            refused = (await lies.told())["refused"]
        assert {name for name, times in refused.items() if not times} == LATER | EMPTY
        async with asyncio.timeout(PATIENCE_S):
            while sum((await ada.refused(bob)).values()) < len(refused) - len(EMPTY) + 3:  # and three papers
                await asyncio.sleep(0.05)
        async with attack("replay", one) as replays:
            await replays.told()
        async with attack("keys", one) as keys:
            met = await keys.told()
        assert (met.pop("frames of a revoked node"), met.pop("frames of an expired node")) == ("1", "1")
        assert set(met.values()) == {"hung up on"}
        await ada.say("after all that")
        async with asyncio.timeout(PATIENCE_S):
            while "after all that" not in heard(cyd, "after"):
                await asyncio.sleep(0.05)
        for member in (ada, cyd):
            assert heard(member, "LIE") == []
            assert heard(member, "I say this once") == ["I say this once"]
            assert heard(member, "is here") == ["ada is here", "bob is here", "cyd is here"]
        assert ada.acts("den") == cyd.acts("den")
        assert (await ada.ask("peer_show", peer=bob.mesh))["their_gives"] == {}
        assert await ada.refused(cyd) == {}
        assert "Traceback" not in ada.node.said()  # type: ignore[union-attr]


async def test_chains_without_end_cost_no_more_than_the_quota(tmp_path: Path) -> None:
    """Bob may say 500 acts a minute and have three chains answered a day; he sends two thousand chains at once."""
    async with attacked(tmp_path) as one:
        ada, bob, _ = one.members
        await ada.ask("peer_quota", peer=bob.mesh, acts=500, chains=3)
        before, calm = ada.count(), await latency_s(ada)
        async with attack("roots", one):
            async with asyncio.timeout(PATIENCE_S):
                while ada.count() - before < 100:
                    await asyncio.sleep(0.05)
            assert await latency_s(ada) < 20 * calm + 0.2
            said = [act for act in ada.acts() if act.mesh == bob.mesh]
            assert len(said) <= 2 * 500 + 64  # a minute may end just now
        async with asyncio.timeout(PATIENCE_S):
            while (await ada.ask("status"))["speaking"]:
                await asyncio.sleep(0.05)
        assert len([act for act in ada.acts() if act.author == "em-ada"]) <= 3
        assert (await ada.ask("peer_show", peer=bob.mesh))["today"]["chains"] <= 3


async def test_floods_and_crowds_leave_the_victim_as_quick_and_as_small_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each flood is measured while it runs, and counted; whoever was linked before can link again meanwhile."""
    figures: list[str] = []
    async with attacked(tmp_path) as one:
        ada, bob, cyd = one.members
        calm, small = await latency_s(ada), ada.memory()
        for name in ("matters", "asides", "papers", "noise", "bulk", "forgeries"):
            counted = sum((await ada.refused(bob)).values())
            async with attack(name, one) as flood:
                during = await latency_s(ada)
                async with asyncio.timeout(PATIENCE_S):
                    while sum((await ada.refused(bob)).values()) == counted:
                        await asyncio.sleep(0.05)
                assert during < 20 * calm + 0.2, (name, during, flood.over)
            figures.append(f"{name} {during * 1000:.0f}")
        for name in ("knocks", "crowd"):
            async with attack(name, one) as crowd:
                await crowd.told()
                during = await latency_s(ada)
                assert during < 20 * calm + 0.2, (name, during)
                await cyd.end()
                began = time.monotonic()
                await cyd.start()
                await cyd.say(f"cyd is back from {name}")
                async with asyncio.timeout(PATIENCE_S):
                    while not heard(ada, f"back from {name}"):
                        await asyncio.sleep(0.05)
                figures.append(f"{name} {during * 1000:.0f} (linked anew in {time.monotonic() - began:.1f} s)")
        grown = ada.memory() - small
        assert grown < GROWTH, grown
        assert "Traceback" not in ada.node.said()  # type: ignore[union-attr]
    figure(capsys, f"say to history in ms: calm {calm * 1000:.0f}, {', '.join(figures)}; +{grown / 1e6:.0f} MB")


async def test_the_bus_is_deaf_to_whoever_is_not_the_node(tmp_path: Path) -> None:
    """On the victim's own machine: without a key and with a peer's nobody is let in; a script's key may do nothing."""
    async with attacked(tmp_path) as one:
        ada, _, cyd = one.members
        calm, before = await latency_s(ada), ada.acts()
        async with attack("raw", one, at_home=True) as raw:
            met = await raw.told()
            assert await latency_s(ada) < 20 * calm + 0.2
        for name in ("nobody", "a peer"):
            assert not any("PONG" in kind for kind in met[name]), met
        assert any("Permissions Violation for Publish" in kind for kind in met["client"]), met
        assert not any(kind.startswith(("MSG", "HMSG")) for kind in met["client"]), met
        assert [act for act in ada.acts() if not act.text.startswith("measured")] == [
            act for act in before if not act.text.startswith("measured")
        ]
        await ada.say("the stream is there still")
        async with asyncio.timeout(PATIENCE_S):
            while not heard(cyd, "is there still"):
                await asyncio.sleep(0.05)
        with pytest.raises(OSError, match="Connect call failed"):
            await one.members[1].machine.do(asyncio.open_connection(ada.machine.address, bus_port(ada)))


def bus_port(member: Member) -> int:
    running = member.home.running()
    assert running is not None
    return int(running.url.rpartition(":")[2])
