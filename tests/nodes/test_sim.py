"""The simulator: what it promises holds, the same scenario gives the same outcome, and a broken rule is noticed."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.cli import main
from nodes.commands.sim import simulate
from nodes.errors import ConfigError
from nodes.sim.clockwork import START_MS, Clockwork
from nodes.sim.hostile import TRICKS
from nodes.sim.mesh import Mesh
from nodes.sim.oracle import Oracle, Outcome, Promises
from nodes.sim.report import Run, as_json, told
from nodes.sim.scenario import Scenario, scenario
from nodes.sim.session import Carried
from nodes.sim.shape import pairs
from nodes.sim.swarm import Make, Swarm
from nodes.sim.virtual import VirtualLoop
from protocol.acts import Act, ActId
from protocol.budget import Budget
from protocol.keys import MeshId
from protocol.quota import Quota

SMALL: dict[str, Any] = {
    "nodes": 8,
    "links": 4,
    "hours": 0.5,
    "talk": 6.0,
    "partition": 0.0,
    "hostile": 0.0,
    "history": 1,
    "seed": 3,
}


def plan(**changes: Any) -> Scenario:
    return Scenario.model_validate({**SMALL, **changes})


def outcome(make: Make = Mesh, **changes: Any) -> Outcome:
    return Swarm(plan(**changes), make).run()


# Promises


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shape": "line", "basins": "common"},
        {"shape": "ring", "basins": "common", "broken": 0.1},
        {"shape": "star", "basins": "common", "partition": 0.5, "chance": 0.5},
        {"shape": "random", "relays": 1.0},
        {"trust": "guest", "history": 3},
        {"trust": "close", "quota": None, "sign": 0.0},
        {"quota": [5, 2, 1_500]},
        {"skew": 3_600.0},
        {"hostile": 0.4, "partition": 0.4, "broken": 0.02, "hours": 1.0},
    ],
    ids=lambda changes: " ".join(changes) or "usual",
)
def test_everything_arrives_once_in_order_where_it_may_and_nowhere_else(changes: dict[str, Any]) -> None:
    found = outcome(**changes)
    assert found.breaches == []
    assert found.delivered == found.due > 0


@settings(max_examples=15, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "nodes": st.integers(2, 6),
            "links": st.integers(1, 4),
            "shape": st.sampled_from(["random", "ring", "star", "line", "small-world"]),
            "basins": st.sampled_from(["own", "common"]),
            "relays": st.floats(0, 1),
            "trust": st.sampled_from(["close", "known", "guest"]),
            "quota": st.none() | st.tuples(st.integers(1, 30), st.integers(0, 5), st.integers(0, 5_000)).map(list),
            "budget": st.tuples(st.integers(0, 6), st.integers(0, 10)).map(list),
            "hours": st.floats(0.1, 0.4),
            "ems": st.integers(0, 2),
            "chance": st.sampled_from([0.0, 0.3]),
            "hostile": st.sampled_from([0.0, 0.5, 1.0]),
            "partition": st.sampled_from([0.0, 0.5]),
            "broken": st.sampled_from([0.0, 0.01, 0.2]),
            "latency": st.sampled_from([1, 80, 5_000]),
            "skew": st.sampled_from([0.0, 2.0, 1_000.0]),
            "seed": st.integers(0, 2**32),
        }
    )
)
def test_no_scenario_breaks_a_promise(changes: dict[str, Any]) -> None:
    assert outcome(**changes).breaches == []


def test_the_same_scenario_gives_the_same_outcome_and_another_seed_another() -> None:
    digests = []
    for seed in (3, 3, 4):
        swarm = Swarm(plan(seed=seed, hostile=0.4, partition=0.4))
        swarm.run()
        digests.append(swarm.digest())
    assert digests[0] == digests[1] != digests[2]


def test_every_trick_is_tried_and_gets_nothing() -> None:
    found = outcome(nodes=16, hostile=0.5, quota=[40, 10, 5_000], hours=1.0)
    assert found.breaches == []
    assert {*found.tried} == {*TRICKS} - {"flood", "chains"}
    assert min(found.tried.values()) > 0
    assert not found.got
    assert found.most_a_minute == 40  # the flood came as fast as it may, and no faster
    assert 0 < found.most_spent <= 5_000
    assert 0 < found.most_chains <= 10


def test_guests_are_not_shown_what_was_said_before_they_came() -> None:
    known, guest = (
        outcome(trust=trust, talk=0.0, history=2, chance=0.0, basins="common") for trust in ("known", "guest")
    )
    assert (known.delivered, guest.delivered) == (8 * 7 * 2, 0)


def test_what_is_said_during_a_cut_is_caught_up_after_it() -> None:
    found = outcome(partition=0.5, talk=12.0)
    assert found.late > 0
    assert 0 < found.catch_up_ms <= 90_000  # a dialler waits for up to a minute between two attempts


def test_acts_that_are_dated_ahead_are_refused_and_told_apart_from_lost_ones() -> None:
    swarm = Swarm(plan(skew=3_600.0))
    found = swarm.run()
    assert found.unreadable > 0
    assert swarm.refusals["the frame comes from the future; check both clocks"] > 0


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_chains_end(chance: float) -> None:
    found = outcome(basins="common", shape="random", chance=chance, talk=1.0, budget=[4, 10])
    assert found.deepest <= 4
    assert found.longest <= 10 + 2 * found.overshoot_of  # each may write one more, and one may be on its way to others
    assert (found.longest > 1) == (chance == 1.0)


def test_what_a_mesh_does_depends_on_its_own_relationships_and_not_on_how_many_meshes_there_are() -> None:
    few, many, more_links = (
        Swarm(plan(nodes=nodes, links=links, chance=0.0, relays=0.0, talk=12.0, sign=0.1))
        for nodes, links in ((24, 4), (96, 4), (24, 8))
    )
    costs = []
    for swarm in (few, many, more_links):
        assert not swarm.run().broken
        costs.append(swarm.messages / swarm.plan.nodes)
    assert costs[1] == pytest.approx(costs[0], rel=0.15)
    assert costs[2] == pytest.approx(2 * costs[0], rel=0.15)


# Meshes that break a rule, each of which must be noticed


class Gossip(Mesh):
    """Tells all its peers all it hears."""

    def keep(self, carried: Carried) -> None:
        before = len(self._known)
        super().keep(carried)
        is_new = len(self._known) > before
        for session in self.sessions.values():
            if session.up and is_new and carried.mesh != session.peer:
                session.send(carried.frame.basin, [carried])


class Stammerer(Mesh):
    """Takes for new what it has heard."""

    def keep(self, carried: Carried) -> None:
        super().keep(carried)
        if carried.mesh != self.id:
            for act in carried.frame.acts:
                self._known.pop(act.id, None)
            super().keep(carried)


class Forgetful(Mesh):
    """Says that it has kept what it drops."""

    def take(self, peer: MeshId, carried: Carried) -> float:
        return 0.0 if carried.frame.acts[0].id[-1] % 4 == 0 else super().take(peer, carried)


class Disorderly(Mesh):
    """Takes every other frame after the next one."""

    held: Carried | None = None

    def keep(self, carried: Carried) -> None:
        if carried.mesh != self.id and self.held is None:
            self.held = carried
            return
        super().keep(carried)
        if carried.mesh != self.id and self.held is not None:
            super().keep(self.held)
            self.held = None


class Credulous(Mesh):
    """Believes whatever it is sent."""

    def _barred(self, peer: MeshId, carried: Carried) -> None:
        del peer, carried


class Lavish(Mesh):
    """Lets an answer leave more than there was."""

    def _lawful(self, act: Act) -> bool:
        del act
        return True


class Spender(Mesh):
    """Pays for whatever is asked of it."""

    def reserve(self, act: Act) -> str | None:
        for peer in self.gates.peers.values():
            peer.spent = type(peer.spent)()
        return super().reserve(act)


class Patient(Mesh):
    """Reads as fast as others write."""

    def take(self, peer: MeshId, carried: Carried) -> float:
        known = self.gates.peers[peer]
        known.spent = type(known.spent)()
        return super().take(peer, carried)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Gossip, "leaked"),
        (Stammerer, "doubled"),
        (Forgetful, "lost"),
        (Disorderly, "order"),
        (Credulous, "hostile"),
        (Lavish, "hostile"),
        (Spender, "quota"),
        (Patient, "quota"),
    ],
)
def test_a_mesh_that_breaks_a_rule_is_noticed(make: type[Mesh], kind: str) -> None:
    found = outcome(make, hostile=0.5, nodes=16, quota=[40, 5, 3_000], talk=12.0, broken=0.0)
    assert found.broken[kind] > 0
    assert any(line.startswith(f"{kind}: mesh ") for line in found.breaches)


def _act(number: int, root: int, hops: int) -> Act:
    ids = [ActId(bytes([at]) * 16) for at in (number, root)]
    refs = [] if number == root else [ids[1]]
    return Act(ids[0], "say", "me", refs, ids[1], Budget(hops, 2, 9, 9), START_MS, {"text": ""})


@pytest.mark.parametrize(("replies", "is_broken"), [([(2, 1), (3, 0)], False), ([(2, 1), (3, 0), (4, 0)], True)])
def test_a_chain_that_outlives_its_budget_is_noticed(replies: list[tuple[int, int]], *, is_broken: bool) -> None:
    roads = {"tea": {0: [1], 1: [0]}}
    oracle = Oracle(Promises(roads, [False, False], Quota(9, 9, 9), True, (0, 0), [0, 0], 0))
    said = [_act(1, 1, 2), *(_act(number, 1, hops) for number, hops in replies)]
    for one in said:
        oracle.said(0, "tea", one, START_MS)
        oracle.heard(0, one, START_MS)
        oracle.heard(1, one, START_MS)
    found = oracle.judge()
    assert (found.broken["budget"] > 0) == is_broken
    assert found.delivered == found.due == len(said)


# Time, shapes, settings, command


def test_events_come_by_their_time_and_those_of_one_moment_in_order() -> None:
    clockwork, seen = Clockwork(), list[str]()
    clockwork.after(5, seen.append, "later")
    clockwork.after(1, seen.append, "one")
    clockwork.after(1, seen.append, "two")
    assert not clockwork.run(START_MS + 4)
    assert clockwork.run(START_MS + 5)
    assert seen == ["one", "two", "later"]
    assert clockwork.now_ms == START_MS + 5


def test_an_hour_of_virtual_time_is_no_time_and_threads_end_where_they_began() -> None:
    async def work() -> list[float]:
        loop = asyncio.get_running_loop()
        seen = [loop.time()]
        async with asyncio.timeout(4_000):
            await asyncio.sleep(3_600)
            seen.append(await asyncio.to_thread(loop.time))
        return seen

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(work()) == [0.0, 3_600.0]


def test_a_swarm_that_waits_for_itself_is_told_so() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    loop = VirtualLoop()
    task = loop.create_task(work())
    with pytest.raises(RuntimeError, match="for ever"):
        loop.run_until_complete(task)
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.close()


@pytest.mark.parametrize(
    ("shape", "links"),
    [("line", 9), ("ring", 10), ("star", 9), ("small-world", 20), ("random", 20)],
)
def test_shapes(shape: str, links: int) -> None:
    found = pairs(plan(shape=shape, nodes=10), random.Random(1))
    assert len(found) == len(set(found)) == links
    assert all(0 <= one < other < 10 for one, other in found)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nodez: 5", "nodez: there is no such key; did you mean 'nodes'?"),
        ("nodes: many", "nodes: must be a whole number"),
        ("shape: blob", "shape: "),
        ("budget: 6", "budget: "),
        ("quota: [1, 2]", "quota"),
        ("hours: 0", "hours: "),
        ("whole: true\nnodes: 100", "whole nodes are at most 32"),
        ("whole: true\nhostile: 0.5", "whole nodes are honest"),
        ("- 5", "`key: value`"),
    ],
)
def test_mistakes_in_a_file_are_told_in_a_line(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "swarm.yaml").write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        scenario(tmp_path / "swarm.yaml", {})
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"nodes": 1}, "nodes: input should be greater than or equal to 2"),
        ({"budget": "6"}, "budget: must be HOPS,ACTS, such as 6,16"),
        ({"quota": "a,b,c"}, "quota: must be whole numbers with commas between them"),
        ({"quota": "1,2,-3"}, "quota: must be ACTS,CHAINS,TOKENS, such as 120,50,20000, or trust"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_a_line(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        scenario(None, given)
    assert caught.value.problems == [sentence]


def test_the_command_line_counts_more_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "swarm.yaml").write_text("nodes: 50\nquota: trust\nbudget: [2, 3]\n", "utf-8")
    read = scenario(tmp_path / "swarm.yaml", {"nodes": 7})
    assert (read.nodes, read.quota, read.budget, read.links) == (7, None, (2, 3), 4)
    assert scenario(None, {"whole": True}).nodes == 12


def test_the_command_shows_what_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["sim", "--nodes", "12", "--hours", "0.3", "--hostile", "0.7"]
    assert main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept"]
    assert found["delivered"] == found["due"] > 0
    assert found["hostile"] == 8
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert f"{found['delivered']:,} of {found['due']:,}" in shown
    assert "Every promise was kept." in shown


def test_a_broken_promise_is_told_and_ends_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.commands.sim._swarm", lambda plan: Swarm(plan, Forgetful))
    assert main(["sim", "--nodes", "6", "--hours", "1", "--hostile", "0"]) == 1
    shown = capsys.readouterr().out
    assert "BROKEN  lost: mesh " in shown
    assert "Promises were broken" in shown


# Whole nodes


@pytest.fixture(scope="module")
def whole() -> Callable[[str], Run]:
    runs: dict[str, Run] = {}

    def run(trust: str) -> Run:
        if trust not in runs:
            given = {"whole": True, "nodes": 5, "links": 2, "hours": 0.3, "talk": 20.0, "trust": trust, "seed": 5}
            runs[trust] = simulate(scenario(None, given))
        return runs[trust]

    return run


def test_whole_nodes_keep_every_promise_through_a_cut(whole: Callable[[str], Run]) -> None:
    run = whole("known")
    found = run.outcome
    assert found.breaches == []
    assert found.delivered == found.due > 0
    assert found.late > 0
    assert found.spent_for_others > 0
    assert as_json(run)["said"] == found.said
    assert any("whole nodes" in line for line in told(run))


def test_whole_nodes_show_guests_nothing_from_before(whole: Callable[[str], Run]) -> None:
    run = whole("guest")
    assert run.outcome.breaches == []
    assert run.outcome.due < whole("known").outcome.due


def test_whole_nodes_do_the_same_again(whole: Callable[[str], Run]) -> None:
    assert simulate(whole("known").plan).digest == whole("known").digest
