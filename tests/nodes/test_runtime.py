"""A node from act to reply, on the memory bus: exactly one reply each, whatever happens in between."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from harness import MESH_ID, NODE, NOW, World, quiet, root, until, write_em

from mesh.bus.memory import MemoryBroker, MemoryBus
from mesh.entries import find, recent
from mesh.errors import BusUnavailable
from nodes.config import MeshConfig
from nodes.errors import ModelRefused, ModelUnavailable
from nodes.models.base import Request, Usage
from nodes.models.scripted import Scripted
from nodes.node import Node
from protocol.acts import ActId, reply_id, reply_key
from protocol.errors import BadCertificate


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with MemoryBroker() as broker:
        yield World(tmp_path, broker)


def said(node: Node, basin: str = "yappings") -> list[tuple[str, str]]:
    return [(entry.act.author, entry.act.text) for entry in recent(node.ground.store, basin, 1000)]


async def test_a_named_em_answers_once_and_the_reply_refers_to_what_it_answers(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["First", ". Second.", Usage(7, 3)])) as node:
        act = await node.say("yappings", "aporia?", [])
        await quiet(node)
        assert said(node) == [("mara", "aporia?"), ("aporia", "First. Second.")]
        reply = find(node.ground.store, reply_id(reply_key(NODE), "aporia", MESH_ID, act, 0))
        assert reply is not None
        assert (reply.act.refs, reply.act.root) == ([act.id], act.id)
        assert reply.act.budget.hops == act.budget.hops - 1
        assert reply.act.budget.acts == act.budget.acts - 1
        assert reply.act.budget.tokens == act.budget.tokens - 10
        (told,) = node.runtime.turns.about(reply.act.id)
        assert (told.taken.em, told.taken.rule, told.state) == ("aporia", "its name was said", "spoken")
        assert told.usage == Usage(7, 3)
        assert told.prompt is not None
        assert f"act:{act.id.hex()}" in {span.source for turn in told.prompt for span in turn.spans}


async def test_an_asked_em_answers_with_an_answer(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["Yes."])) as node:
        await node.say("yappings", "ready?", [], "ask", to="aporia")
        await quiet(node)
        assert [entry.act.kind for entry in recent(node.ground.store, "yappings", 9)] == ["ask", "answer"]


async def test_silence_is_recorded_with_its_reason_and_never_posted(world: World) -> None:
    write_em(world.ems, "aporia")
    write_em(world.ems, "ruri", "mute: true\n")
    async with world.node(Scripted(["x"])) as node:
        act = await node.say("yappings", "nothing in particular", [])
        await quiet(node)
        assert said(node) == [("mara", "nothing in particular")]
        assert node.runtime.turns.silences(act.id) == {"nothing called for it": ["aporia"], "muted": ["ruri"]}


@pytest.mark.parametrize(("number", "expected"), [(1, 1), (2, 18), (10, 20)])
async def test_ems_that_answer_everything_fall_silent_exactly_at_the_budget(
    world: World, number: int, expected: int
) -> None:
    """Two ems end at nine hops, both of them answering the person; ten would go on longer, and end at twenty acts."""
    for place in range(number):
        write_em(world.ems, f"em{place}", "reply_on_all: true\n")
    world.config = MeshConfig.model_validate(
        {"name": "amp", "human": "mara", "basins": {"yappings": {"budget": {"hops": 9, "acts": 20}}}}
    )
    async with world.node(Scripted(["Indeed."])) as node:
        await node.say("yappings", "go", [])
        await quiet(node)
        chain = recent(node.ground.store, "yappings", 1000)
        assert len(chain) - 1 == expected
        before = len(chain)
        await quiet(node)
        assert len(recent(node.ground.store, "yappings", 1000)) == before


async def test_a_stop_ends_what_is_being_written_and_the_whole_chain(world: World) -> None:
    write_em(world.ems, "aporia", "reply_on_all: true\n")
    model = Scripted(["I was", asyncio.Event()], ["Back."])
    async with world.node(model) as node:
        act = await node.say("yappings", "aporia, speak", [])
        await model.began.wait()
        await node.say("yappings", "Enough for now.", [], "cancel")
        await quiet(node)
        (told,) = node.runtime.turns.about(act.id)
        assert (told.state, told.outcome) == ("silent", "a person stopped it")
        await node.say("yappings", "again", [])
        await quiet(node)
        assert said(node)[-1] == ("aporia", "Back.")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ModelUnavailable("the vendor is busy"), "the vendor is busy"),
        (ModelRefused("wrong key"), "wrong key"),
        (RuntimeError("a bug"), "a mistake in the node: RuntimeError"),
    ],
)
async def test_a_model_that_fails_silences_one_turn_and_nobody_else(
    world: World, error: Exception, outcome: str
) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["I beg", error], ["Recovered."])) as node:
        act = await node.say("yappings", "aporia?", [])
        await quiet(node)
        (told,) = node.runtime.turns.about(act.id)
        assert (told.state, told.outcome) == ("silent", outcome)
        await node.say("yappings", "aporia!", [])
        await quiet(node)
        assert said(node)[-1] == ("aporia", "Recovered.")


async def test_an_empty_reply_is_silence(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["<mara> I speak for mara"])) as node:
        act = await node.say("yappings", "aporia?", [])
        await quiet(node)
        assert [told.outcome for told in node.runtime.turns.about(act.id)] == ["it said nothing"]


async def test_a_node_cut_off_in_a_call_takes_the_turn_up_again_and_replies_once(world: World) -> None:
    write_em(world.ems, "aporia")
    model = Scripted(["half of", asyncio.Event()])
    async with world.node(model) as node:
        act = await node.say("yappings", "aporia?", [])
        await model.began.wait()
    async with world.node(Scripted(["Whole."])) as node:
        await quiet(node)
        assert said(node) == [("mara", "aporia?"), ("aporia", "Whole.")]
        assert find(node.ground.store, reply_id(reply_key(NODE), "aporia", MESH_ID, act, 0)) is not None


async def test_a_reply_that_waits_in_the_outbox_is_sent_at_the_next_start(world: World) -> None:
    write_em(world.ems, "aporia")

    class Deaf(MemoryBus):
        async def publish(self, subject: str, data: bytes, msg_id: str) -> int:
            if b"Kept." in data:
                raise BusUnavailable("nobody there")
            return await super().publish(subject, data, msg_id)

    async with world.node(Scripted(["Kept."]), bus=Deaf(world.broker)) as node:
        await node.say("yappings", "aporia?", [])
        await until(lambda: node.outbox.waiting() == 1)
    model = Scripted(["Never asked."])
    async with world.node(model) as node:
        await quiet(node)
        assert said(node) == [("mara", "aporia?"), ("aporia", "Kept.")]
        assert model.requests == []


async def test_a_published_reply_whose_acknowledgement_was_lost_is_not_said_twice(world: World) -> None:
    write_em(world.ems, "aporia")

    class Forgetful(MemoryBus):
        async def publish(self, subject: str, data: bytes, msg_id: str) -> int:
            seq = await super().publish(subject, data, msg_id)
            if b"Said." in data:
                await asyncio.get_running_loop().create_future()
            return seq

    async with world.node(Scripted(["Said."]), bus=Forgetful(world.broker)) as node:
        await node.say("yappings", "aporia?", [])
        await until(lambda: ("aporia", "Said.") in said(node))
    async with world.node(Scripted(["Said again."])) as node:
        await quiet(node)
        assert said(node) == [("mara", "aporia?"), ("aporia", "Said.")]
        assert await node.ground.bus.last_seq() == 2


async def test_an_em_that_falls_behind_skips_to_what_is_newer(world: World) -> None:
    write_em(world.ems, "aporia")
    world.config = MeshConfig.model_validate({"name": "amp", "human": "mara", "limits": {"queue": 2}})
    first = asyncio.Event()
    model = Scripted([first, "one"], ["later"])
    async with world.node(model) as node:
        acts = [await node.say("yappings", f"aporia {number}", []) for number in range(6)]
        await model.began.wait()
        await until(lambda: node.ledger.cursor == 6)
        first.set()
        await quiet(node)
        states = [node.runtime.turns.about(act.id)[0].state for act in acts]
        assert states == ["spoken", "silent", "silent", "silent", "spoken", "spoken"]
        assert "skipped" in str(node.runtime.turns.about(acts[1].id)[0].outcome)


async def test_partials_show_the_words_so_far_and_are_never_stored(world: World) -> None:
    write_em(world.ems, "aporia")
    shown: list[str] = []
    gate = asyncio.Event()
    async with world.node(Scripted(["I am", " thinking", gate, " done."])) as node:
        node.runtime._parts = node.runtime._parts.__class__(
            **{name: getattr(node.runtime._parts, name) for name in node.runtime._parts.__slots__}
            | {"show": lambda _, act: shown.append(act.text)}
        )
        await node.say("yappings", "aporia?", [])
        gate.set()
        await quiet(node)
        assert all("I am thinking done.".startswith(text) for text in shown)
        assert [kind for (kind,) in node.ground.store.rows("SELECT count(*) FROM acts")] == [2]


async def test_own_limits_of_an_em(world: World) -> None:
    write_em(world.ems, "aporia", "budget: {replies_per_hour: 1}\n")
    async with world.node(Scripted(["one"])) as node:
        first = await node.say("yappings", "aporia", [])
        await quiet(node)
        second = await node.say("yappings", "aporia", [])
        await quiet(node)
        outcomes = [node.runtime.turns.about(act.id)[0].outcome for act in (first, second)]
        assert outcomes == ["spoken", "its 1 replies an hour are used up"]


async def test_basins_are_apart(world: World) -> None:
    write_em(world.ems, "aporia", "basins: [study]\n")
    model = Scripted(["Studied."])
    async with world.node(model) as node:
        await node.say("yappings", "aporia, a secret", [])
        await node.say("study", "aporia?", [])
        await quiet(node)
        assert said(node, "study") == [("mara", "aporia?"), ("aporia", "Studied.")]
        assert said(node) == [("mara", "aporia, a secret")]
        assert "secret" not in str(model.requests)


async def test_edits_and_redactions_reach_the_prompt_and_only_from_their_author(world: World) -> None:
    write_em(world.ems, "aporia")
    model = Scripted(["ok"])
    async with world.node(model) as node:
        kept = await node.say("yappings", "the tide is out", [])
        gone = await node.say("yappings", "my secret", [])
        await node.say("yappings", "the tide is in", [ActId(kept.id)], "edit")
        await node.say("yappings", "said too much", [ActId(gone.id)], "redact")
        await node.say("yappings", "aporia?", [])
        await quiet(node)
        assert [line.text for line in model.requests[0].recent] == ["the tide is in", "aporia?"]


async def test_what_a_person_changes_in_the_folders_is_taken_up(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["here"])) as node:
        write_em(world.ems, "ruri")
        (world.ems / "aporia" / "config.yaml").write_text("mute: true\n", "utf-8")
        assert await node.load()
        await node.say("yappings", "aporia and ruri", [])
        await quiet(node)
        assert said(node)[1:] == [("ruri", "here")]


async def test_an_old_chain_is_not_answered(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["x"])) as node:
        await node.outbox.say("yappings", root("aporia", 1))
    world.clock = lambda: NOW + 600_000
    async with world.node(Scripted(["late"])) as node:
        act = await node.say("yappings", "aporia", [])
        await quiet(node)
        assert [author for author, _ in said(node)].count("aporia") == 2
        assert act.at_ms == NOW + 600_000


async def test_an_act_heard_directly_that_the_stream_never_got_is_sent_again(world: World) -> None:
    """Heard is not stored: only the stream's own copy takes an act out of the outbox."""
    write_em(world.ems, "aporia")

    class Broken(MemoryBus):
        async def publish(self, subject: str, data: bytes, msg_id: str) -> int:
            if b"Lost?" in data:
                await self.send(subject, data)
                raise BusUnavailable("the server died with it")
            return await super().publish(subject, data, msg_id)

    async with world.node(Scripted(["Lost?"]), bus=Broken(world.broker)) as node:
        await node.say("yappings", "aporia?", [])
        await until(lambda: ("aporia", "Lost?") in said(node))
    async with world.node(Scripted(["Never asked."])) as node:
        await quiet(node)
        assert await node.ground.bus.last_seq() == 2
        assert said(node) == [("mara", "aporia?"), ("aporia", "Lost?")]


async def test_an_em_that_moved_elsewhere_ends_its_open_turns(world: World) -> None:
    write_em(world.ems, "aporia")
    model = Scripted(["half", asyncio.Event()])
    async with world.node(model) as node:
        act = await node.say("yappings", "aporia?", [])
        await model.began.wait()
    (world.ems / "aporia" / "config.yaml").write_text("basins: [garden]\n", "utf-8")
    async with world.node(Scripted(["x"])) as node:
        await quiet(node)
        assert [told.state for told in node.runtime.turns.about(act.id)] == ["silent"]


async def test_a_second_stop_while_the_first_takes_effect_is_harmless(world: World) -> None:
    write_em(world.ems, "aporia")
    closing = asyncio.Event()

    class Slow(Scripted):
        async def stream(self, request: Request) -> AsyncGenerator[str | Usage]:
            try:
                async for piece in super().stream(request):
                    yield piece
            finally:
                await closing.wait()

    model = Slow(["I was", asyncio.Event()])
    async with world.node(model) as node:
        act = await node.say("yappings", "aporia?", [])
        await model.began.wait()
        for _ in range(3):
            await node.say("yappings", "enough", [], "cancel")
        closing.set()
        await quiet(node)
        assert [told.outcome for told in node.runtime.turns.about(act.id)] == ["a person stopped it"]


async def test_a_model_that_cancels_itself_costs_one_turn(world: World) -> None:
    write_em(world.ems, "aporia")

    class GivesUp(Scripted):
        async def stream(self, request: Request) -> AsyncGenerator[str | Usage]:
            yield request.model
            raise asyncio.CancelledError

    async with world.node(GivesUp()) as node:
        act = await node.say("yappings", "aporia?", [])
        await quiet(node)
        assert [told.outcome for told in node.runtime.turns.about(act.id)] == ["the model gave the call up"]


async def test_drain_begins_nothing_new(world: World) -> None:
    for name in ("aporia", "ruri"):
        write_em(world.ems, name, "reply_on_all: true\n")
    gate = asyncio.Event()
    model = Scripted([gate, "Yes."])
    async with world.node(model) as node:
        await node.say("yappings", "go on", [])
        await until(lambda: len(node.runtime.speaking()) == 2)
        async with asyncio.TaskGroup() as group:
            drained = group.create_task(node.drain(5))
            await asyncio.sleep(0)
            gate.set()
        assert drained.result()
        assert len(model.requests) == 2
        assert len(node.runtime.turns.open()) == 2


async def test_new_ems_do_not_revive_old_stops(world: World) -> None:
    write_em(world.ems, "aporia", "basins: [study]\n")
    async with world.node(Scripted(["Yes."])) as node:
        await node.say("yappings", "begin", [])
        await node.say("yappings", "enough", [], "cancel")
        after = await node.say("yappings", "again", [])
        await quiet(node)
        write_em(world.ems, "ruri")
        assert await node.load()
        assert not node.runtime.chains.stopped(after)
        assert node.runtime.chains.spent(after, NOW) is None


async def test_tokens_of_replies_that_came_to_nothing_count(world: World) -> None:
    write_em(world.ems, "aporia", "budget: {tokens_per_day: 3000}\n")
    async with world.node(Scripted(["<mara> not mine", Usage(2_000, 900)])) as node:
        outcomes: list[str | None] = []
        for number in range(3):
            act = await node.say("yappings", f"aporia {number}", [])
            await quiet(node)
            outcomes.append(node.runtime.turns.about(act.id)[0].outcome)
        assert outcomes[0] == "it said nothing"
        assert "tokens a day" in str(outcomes[2])


async def test_nothing_is_said_or_lost_while_the_certificate_is_not_valid(world: World) -> None:
    write_em(world.ems, "aporia")
    world.clock = lambda: 3 * NOW
    async with world.node(Scripted(["x"])) as node:
        with pytest.raises(BadCertificate, match="rotate"):
            await node.say("yappings", "aporia?", [])
        assert node.outbox.waiting() == 0
        assert await node.ground.bus.last_seq() == 0


async def test_a_redacted_question_is_not_answered(world: World) -> None:
    write_em(world.ems, "aporia")
    gate = asyncio.Event()
    model = Scripted([gate, "first"], ["second"])
    async with world.node(model) as node:
        await node.say("yappings", "aporia, one", [])
        await model.began.wait()
        asked = await node.say("yappings", "aporia, two", [])
        await node.say("yappings", "never mind", [ActId(asked.id)], "redact")
        gate.set()
        await quiet(node)
        assert [told.state for told in node.runtime.turns.about(asked.id)] == ["silent"]
        assert len(model.requests) == 1
