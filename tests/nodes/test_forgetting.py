"""What was taken back is in no prompt, kept or to come, and `why` says so; who may take what back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import MESH_ID, NODE, World, quiet, root, until, write_em

from mesh.bus.memory import MemoryBroker
from mesh.entries import Entry, find, recent
from nodes import runtime
from nodes.errors import NodeError
from nodes.explain import as_json, as_text, why
from nodes.models.scripted import Scripted
from nodes.node import Node
from nodes.records import texts
from nodes.room import KEPT_EDITS, Room
from nodes.runtime import Runtime
from nodes.speaker import Draft
from nodes.turn import Roster
from nodes.turns import Told
from protocol.acts import Act, ActId
from protocol.husk import husk, is_husk

WORDS = "the hidden harbour"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with MemoryBroker() as broker:
        yield World(tmp_path, broker)


def reply(node: Node, asked: Act) -> Told:
    """The turn that answered an act."""
    (told,) = node.runtime.turns.about(asked.id)
    return told


async def test_prompts_that_show_what_was_taken_back_are_dropped_and_others_stay(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted(["one"], ["two"], ["three"])) as node:
        before = await node.say("yappings", "aporia?", [])
        await quiet(node)
        secret = await node.say("yappings", WORDS, [])
        after = await node.say("yappings", "aporia, and now?", [])
        await quiet(node)
        assert WORDS in str(reply(node, after).prompt)
        await node.redact(ActId(secret.id), "said too much")
        await quiet(node)
        told = reply(node, after)
        assert (told.prompt, told.forgotten, told.outcome) == (None, True, "spoken")
        assert reply(node, before).prompt
        shown = "\n".join(as_text(why(node.ground.store, told.taken.id), MESH_ID))
        assert "prompt    forgotten: something that was in it has been taken back" in shown
        assert as_json(why(node.ground.store, told.taken.id))["made"]["forgotten"] is True
        about = "\n".join(as_text(why(node.ground.store, secret.id), MESH_ID))
        assert "(taken back)" in about
        assert WORDS not in about
        last = await node.say("yappings", "aporia, once more?", [])
        await quiet(node)
        assert WORDS not in str(reply(node, last).prompt)


async def test_what_is_taken_back_while_an_em_writes_is_not_kept_in_its_prompt(world: World) -> None:
    write_em(world.ems, "aporia")
    gate = asyncio.Event()
    model = Scripted([gate, "yes"])
    async with world.node(model) as node:
        secret = await node.say("yappings", WORDS, [])
        asked = await node.say("yappings", "aporia?", [])
        await model.began.wait()
        await node.redact(ActId(secret.id), "")
        await until(lambda: is_gone(node, secret))
        gate.set()
        await quiet(node)
        told = reply(node, asked)
        assert (told.state, told.prompt, told.forgotten) == ("spoken", None, True)


@pytest.mark.parametrize("is_late", [False, True])
async def test_an_answer_to_what_is_taken_back_is_not_said(
    world: World, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """The em stops writing; if its words were just ready, they are not said."""
    if is_late:
        monkeypatch.setattr(Runtime, "_halt", lambda *_: None)
    write_em(world.ems, "aporia")
    gate = asyncio.Event()
    model = Scripted([gate, "yes"])
    async with world.node(model) as node:
        asked = await node.say("yappings", f"aporia, {WORDS}?", [])
        await model.began.wait()
        await node.redact(ActId(asked.id), "")
        await until(lambda: is_gone(node, asked))
        if is_late:
            gate.set()
        await quiet(node)
        told = reply(node, asked)
        assert (told.state, told.outcome) == ("silent", "what it would answer was taken back")
        assert not told.prompt
        assert [entry.act.author for entry in recent(node.ground.store, "yappings", 9)] == ["mara", "mara"]


@pytest.mark.parametrize("kind", ["redact", "cancel"])
async def test_what_ends_an_answer_that_is_said_leaves_the_next_one_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An em has answered and makes the prompt of its next turn, when a person ends the turn before."""
    prompted, gate, drafts = asyncio.Event(), asyncio.Event(), list[int]()
    draft = runtime.draft

    async def second_waits(*given: Any) -> Draft:
        drafts.append(len(drafts))
        if len(drafts) == 2:
            prompted.set()
            await gate.wait()
        return await draft(*given)

    monkeypatch.setattr(runtime, "draft", second_waits)
    write_em(world.ems, "aporia", "basins: [yappings, tea]")
    first = asyncio.Event()
    model = Scripted([first, "one"], ["two"])
    async with world.node(model) as node:
        asked = await node.say("yappings", f"aporia, {WORDS}?", [])
        await model.began.wait()
        after = await node.say("tea", "aporia, and now?", [])
        await until(lambda: bool(node.runtime.turns.about(after.id)))
        first.set()
        await prompted.wait()
        await node.say("yappings", "enough", [ActId(asked.id)] if kind == "redact" else [], kind)
        await until(lambda: any(one.act.kind == kind for one in recent(node.ground.store, "yappings", 9)))
        gate.set()
        await quiet(node)
        assert (reply(node, asked).state, reply(node, after).state) == ("spoken", "spoken")


def is_gone(node: Node, act: Act) -> bool:
    entry = find(node.ground.store, act.id)
    return entry is not None and is_husk(entry.act)


async def test_a_node_that_starts_again_knows_nothing_of_what_was_taken_back(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted([])) as node:
        secret = await node.say("yappings", WORDS, [])
        await node.redact(ActId(secret.id), "")
        await quiet(node)
    model = Scripted(["yes"])
    async with world.node(model) as node:
        await node.say("yappings", "aporia?", [])
        await quiet(node)
        assert [line.text for line in model.requests[0].recent] == ["aporia?"]


async def test_an_em_takes_back_what_it_said_by_its_node(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted([WORDS])) as node:
        asked = await node.say("yappings", "aporia?", [])
        await quiet(node)
        said = reply(node, asked).taken.id
        act = await node.redact(ActId(said), "it was not mine to tell")
        await quiet(node)
        assert (act.author, act.kind, act.refs, act.text) == ("aporia", "redact", [said], "it was not mine to tell")
        assert WORDS not in str(recent(node.ground.store, "yappings", 9))
        with pytest.raises(NodeError, match="taken back before"):
            await node.redact(ActId(said), "")


async def test_nobody_takes_back_what_others_said(world: World) -> None:
    write_em(world.ems, "aporia")
    async with world.node(Scripted([])) as node:
        other = root(WORDS, 1, "@ada:example.org")
        await node.outbox.say("yappings", other)
        await quiet(node)
        with pytest.raises(NodeError, match=r"@ada:example\.org said that; only what you or your own ems said"):
            await node.redact(ActId(other.id), "")
        with pytest.raises(NodeError, match="no act 00000000000000000000000000000000 is known here"):
            await node.redact(ActId(bytes(16)), "")


# --- a room ----------------------------------------------------------------------------------------------------------


def entry(act: Act, n: int = 0) -> Entry:
    return Entry(n, "yappings", MESH_ID, NODE.public, act)  # type: ignore[arg-type]


def about(act: Act, kind: str, text: str, number: int) -> Act:
    return msgspec.structs.replace(root(text, number, kind=kind), refs=[act.id])


def lines(room: Room, act: Act) -> list[str]:
    return [line.text for line in room.until(act.id)[1]]


def test_an_edit_that_is_taken_back_shows_what_was_said_before_it() -> None:
    said, room = root("low tide", 1), Room("yappings", Roster([]), MESH_ID)
    first, second = about(said, "edit", "high tide", 2), about(said, "edit", WORDS, 3)
    for act in (said, first, second):
        room.hear(entry(act))
    assert lines(room, said) == [WORDS]
    room.forget(entry(second))
    assert lines(room, said) == ["high tide"]
    room.forget(entry(first))
    assert lines(room, said) == ["low tide"]
    room.forget(entry(said))
    room.hear(entry(about(said, "edit", "too late", 4)))
    assert lines(room, said) == []


def test_a_room_that_is_recalled_shows_no_husks() -> None:
    said, gone, room = root("low tide", 1), root(WORDS, 2), Room("yappings", Roster([]), MESH_ID)
    for act in (said, husk(gone), husk(about(said, "edit", WORDS, 3))):
        room.hear(entry(act))
    assert lines(room, gone) == ["low tide"]


def test_an_act_that_is_edited_often_shows_the_newest_text() -> None:
    said, room = root("0", 1), Room("yappings", Roster([]), MESH_ID)
    room.hear(entry(said))
    edits = [about(said, "edit", f"{n}", n) for n in range(2, 3 * KEPT_EDITS)]
    for edit in edits:
        room.hear(entry(edit))
    assert lines(room, said) == [edits[-1].text]
    room.forget(entry(edits[-1]))
    assert lines(room, said) == [edits[-2].text]


def test_listings_show_nothing_of_husks() -> None:
    said, gone = root("low tide", 1), root(WORDS, 2)
    edit, late = about(said, "edit", WORDS, 3), about(gone, "edit", "too late", 4)
    entries = [entry(act) for act in (said, husk(gone), husk(edit), late)]
    assert texts(entries) == ["low tide", None, None, "too late"]
