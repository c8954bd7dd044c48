"""What people do in rooms while ems write, in threads, in several rooms, and in encrypted ones, on a real Synapse."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
import sealing
from bridged import Bridged, Pause, Slow, acts, begun, body, idle, messages, said, tea, until, world_on
from harness import OTHER
from matrix_rig import LIVE, Human, Shared, new_session, person

from mesh.bridges.matrix.account import Session
from mesh.bridges.matrix.port import REACTION
from nodes.matrix import manners
from nodes.matrix.inward import UNREAD
from nodes.models.scripted import Scripted
from protocol.husk import is_husk

pytestmark = LIVE

WORDS = "quillwort-and-saxifrage"


@pytest.fixture(params=["appservice", "account"])
async def world(request: pytest.FixtureRequest, shared: Shared, tmp_path: Path, human: Human) -> AsyncIterator[Bridged]:
    """A node on either way in, with two ems that listen in `tea`."""
    synapse, spare = shared
    way = spare.pop() if request.param == "appservice" else await new_session(synapse)
    async with world_on(tmp_path, synapse, way, human.id) as one:
        yield one


async def test_a_question_that_is_taken_back_is_not_answered_though_the_answer_was_begun(
    world: Bridged, human: Human
) -> None:
    """The em stops writing; what people saw of its words goes, in every room of the basin; the next one is answered."""
    go_on = asyncio.Event()
    model = Slow([f"You said {WORDS}", *(x for _ in range(8) for x in (" and", Pause(0.1))), go_on, " so on."])
    async with world.up(model):
        room, other = await tea(world, human), await tea(world, human)
        asked = await human.say(room, f"ada, {WORDS}?")
        if world.bridge.port.caps.separate_identities:
            await begun(human, other, "You said")
        await until(world.here.runtime.speaking)
        await human.client.room_redact(room, asked)
        await until(lambda: not world.here.runtime.speaking())
        await idle(world)
        assert not [act.text for act in acts(world) if act.author == "ada"]
        assert [await messages(human, one) for one in (room, other)] == [[], []]
        assert WORDS not in str(world.here.ground.store.rows("SELECT outcome, prompt FROM turns"))
        go_on.set()
        await human.say(room, "bob, then?")
        await until(lambda: acts(world)[-1].author == "bob")


async def test_words_so_far_that_a_moderator_takes_back_go_from_every_room(
    shared: Shared, tmp_path: Path, human: Human
) -> None:
    """The em stops, as it would be of no use to go on; no edit of what was begun is left either."""
    go_on = asyncio.Event()
    model = Slow([WORDS, *(x for _ in range(12) for x in (" and", Pause(0.1))), go_on, " so on."])
    async with world_on(tmp_path, shared[0], shared[1].pop(), human.id) as world, world.up(model):
        room, other = await tea(world, human), await tea(world, human)
        await human.say(room, "ada, a word?")
        await begun(human, other, WORDS)
        shown = await begun(human, room, f"{WORDS} and and")
        await human.client.room_redact(room, shown["event_id"])
        await until(lambda: not world.here.runtime.speaking())
        await idle(world)
        for one in (room, other):
            assert WORDS not in str(await human.events(one))
        assert not [act.text for act in acts(world) if act.author == "ada" and act.text and act.kind == "say"]


async def test_an_edit_of_what_is_being_answered_changes_it_and_asks_nothing_more(world: Bridged, human: Human) -> None:
    """One answer; whoever comes after sees the new words alone, also in the basin's other room."""
    go_on = asyncio.Event()
    model = Scripted([go_on, "One."], ["Two."])
    async with world.up(model):
        room, other = await tea(world, human), await tea(world, human)
        asked = await human.say(room, f"ada, {WORDS}?")
        await model.began.wait()
        new = {"msgtype": "m.text", "body": "ada, what day is it?"}
        related = {"rel_type": "m.replace", "event_id": asked}
        await human.say(room, "* ada, what day is it?", **{"m.new_content": new, "m.relates_to": related})
        await until(lambda: any(act.kind == "edit" for act in acts(world)))
        go_on.set()
        await said(human, other, f"{human.id}: ada, what day is it?", body(world, "ada", "One."))
        await human.say(room, "and you, bob?")
        await said(human, room, body(world, "bob", "Two."))
        await idle(world)
        assert len(model.requests) == 2
        assert "what day is it" in str(model.requests[1].turns)
        assert WORDS not in str(model.requests[1].turns)
        assert WORDS not in str([one["content"]["body"] for one in await messages(human, other)])


async def test_an_edit_that_is_taken_back_leaves_what_stood_before(world: Bridged, human: Human) -> None:
    async with world.up(model := Scripted(["Yes."])):
        room = await tea(world, human)
        first = await human.say(room, "it is monday")
        new = {"msgtype": "m.text", "body": f"it is {WORDS}"}
        related = {"rel_type": "m.replace", "event_id": first}
        edit = await human.say(room, f"* it is {WORDS}", **{"m.new_content": new, "m.relates_to": related})
        await human.client.room_redact(room, edit)
        await human.say(room, "ada, what is it?")
        await said(human, room, body(world, "ada", "Yes."))
        assert "it is monday" in str(model.requests[0].turns)
        assert WORDS not in str(model.requests[0].turns)
        assert WORDS not in str(acts(world))


async def test_what_an_em_said_and_a_moderator_takes_back_is_gone_everywhere(world: Bridged, human: Human) -> None:
    """Gone from the act, from kept prompts, from the next one, and from the basin's other room."""
    model = Scripted([WORDS], ["Indeed."], ["Again."])
    async with world.up(model), person(world.synapse) as guest:
        room, other = await tea(world, human), await tea(world, human)
        await guest.client.join(room)
        await guest.say(room, "ada, a secret")
        (reply, *_) = [e for e in await said(human, room, body(world, "ada", WORDS)) if WORDS in e["content"]["body"]]
        await guest.say(room, "bob, did you hear?")
        await said(human, other, body(world, "bob", "Indeed."))
        assert WORDS in str(model.requests[1].turns)
        refused = await guest.client.room_redact(room, reply["event_id"])
        assert getattr(refused, "status_code", "") == "M_FORBIDDEN"
        await human.client.room_redact(room, reply["event_id"])
        await until(lambda: any(act.author == "ada" and is_husk(act) for act in acts(world)))
        await idle(world)
        await guest.say(room, "ada, what was it?")
        await said(human, other, body(world, "ada", "Again."))
        await idle(world)
        assert WORDS not in str(model.requests[2].turns)
        assert WORDS not in str(acts(world)) + str(world.here.ground.store.rows("SELECT prompt FROM turns"))
        for one in (room, other):
            assert WORDS not in str([event["content"] for event in await human.events(one)])


async def test_the_longest_reply_is_shown_in_eight_edits_at_most(
    shared: Shared, tmp_path: Path, human: Human, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it is written: as often as it may be shown it is, and no more."""
    monkeypatch.setattr(manners, "SHOW_AFTER_S", tuple(0.01 for _ in manners.SHOW_AFTER_S))
    written, enough = list[str](), asyncio.Event()

    def words() -> Iterator[str | Pause]:
        while not enough.is_set():
            written.append(f"word{len(written)} ")
            yield from (written[-1], Pause(0.02))
        yield "end."

    async with world_on(tmp_path, shared[0], shared[1].pop(), human.id) as world, world.up(Slow(words())):
        room = await tea(world, human)
        await human.say(room, "speak, ada")
        store = world.here.ground.store
        await until(lambda: store.rows("SELECT edits FROM room_drafts") == [(len(manners.SHOW_AFTER_S),)])
        begun = len(written)
        await until(lambda: len(written) > begun + 10 and not world.bridge.port.outbox.waiting())
        enough.set()
        await said(human, room, "".join(written) + "end.")
        events = [event for event in await human.events(room) if event["sender"] != human.id]
        related = [event["content"].get("m.relates_to", {}).get("rel_type") for event in events]
        assert related.count("m.replace") == len(manners.SHOW_AFTER_S) <= 8
        assert len(events) == 1 + related.count("m.replace")


async def test_a_thread_is_kept_by_ems_that_go_on_in_it(world: Bridged, human: Human) -> None:
    """Also by one that answers another, and by one that is asked to go on; a basin's other room has no such thread."""
    world.budget("tea", hops=3)
    async with world.up(Scripted(["bob, what do you say?"], ["I say so."], ["And more."])):
        room, other = await tea(world, human), await tea(world, human)
        root = await human.say(room, "about birds")
        thread = {"rel_type": "m.thread", "event_id": root, "is_falling_back": True}
        await human.say(room, "ada, in here", **{"m.relates_to": thread})
        shown = await said(human, room, body(world, "bob", "I say so."))
        related = {"m.relates_to": {"rel_type": "m.annotation", "event_id": shown[-1]["event_id"], "key": "▶️"}}
        await human.client.room_send(room, REACTION, related)
        shown = await said(human, room, body(world, "bob", "And more."))
        await idle(world)
        found = [one["content"].get("m.relates_to", {}) for one in shown if one["sender"] != human.id]
        assert [one.get("rel_type") for one in found] == ["m.thread"] * 3
        assert {one["event_id"] for one in found} == {root}
        told = [one["content"].get("m.relates_to", {}) for one in await messages(human, other)]
        assert not [one for one in told if "rel_type" in one]
        assert len([one for one in told if "m.in_reply_to" in one]) == 4


async def test_who_invites_an_em_whose_login_is_void_stops_nobody(shared: Shared, world: Bridged, human: Human) -> None:
    """Its account was logged out, and somebody asks it in again, or leaves it alone in a room: the others talk on."""
    world.own = {"bob": await new_session(shared[0])}
    async with world.up(Scripted(["Here."])) as bridge:
        room = await tea(world, human)
        alone = await human.room(bridge.port.user_id("bob"))
        await until(lambda: bridge.tables.basin_of(alone))
        session = world.own["bob"]
        await human.client.room_kick(room, session.user_id)
        await until(lambda: not bridge.tables.sits("bob", room))
        await log_out(session)
        await until(lambda: any("logged out" in one for one in bridge.problems))
        await human.client.room_invite(room, session.user_id)
        bridge.port.missed.set()
        await human.say(room, "ada, are you here?")
        await said(human, room, body(world, "ada", "Here."))
        await idle(world)
        assert bridge.ready.is_set()
        assert all("the account of bob is logged out" in one for one in bridge.problems)


async def log_out(session: Session) -> None:
    headers = {"Authorization": f"Bearer {session.token}"}
    async with aiohttp.ClientSession(headers=headers) as client:
        await client.post(f"{session.homeserver}/_matrix/client/v3/logout", json={})


async def test_a_message_whose_key_comes_late_is_shown_as_such_and_answered_then(
    world: Bridged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its place stands that it cannot be read; its edit counts; the answer is one, after a restart, to the words."""
    mara = sealing.Human(
        world.synapse, await world.synapse.register(f"sealed{os.urandom(4).hex()}", "secret"), tmp_path / "client"
    )
    world.owner = mara.id
    model = Scripted(["Indeed."])
    try:
        await mara.begin()
        async with world.up(model) as bridge:
            user = bridge.port.user_id("ada")
            room = await mara.room(user)
            await until(lambda: bridge.tables.basin_of(room))
            basin = bridge.tables.basin_of(room) or ""
            with monkeypatch.context() as patch:
                patch.setattr("mesh.bridges.matrix.engine.Engine.receive", lambda _engine, _events: [])
                asked = await mara.say(room, f"ada, {WORDS}?")
                new = {"msgtype": "m.text", "body": "ada, what day is it?"}
                related = {"rel_type": "m.replace", "event_id": asked}
                await mara.say(room, "* ada, what day is it?", **{"m.new_content": new, "m.relates_to": related})
                await until(lambda: [act.text for act in acts(world, basin)] == [UNREAD] * 2)
                request = await sealing.key_request(mara, user)
            await idle(world)
            assert (model.requests, request.room_id) == ([], room)
        async with world.up(model):
            await sealing.forward(mara, request)
            await mara.until(room, "Indeed.")
            await idle(world)
            said = [act for act in acts(world, basin) if act.kind == "say" and act.text]
            assert [act.author for act in said] == [mara.id, "ada"]
            assert said[1].refs == [said[0].id]
            assert len(model.requests) == 1
            answer = [event.source for event in await mara.events(room) if event.sender == user][-1]
            assert answer["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == asked
            await mara.say(room, "again, ada")
            await until(lambda: len(model.requests) == 2)
            assert WORDS not in str(model.requests[1].turns)
            assert "what day is it" in str(model.requests[1].turns)
    finally:
        await mara.client.close()


async def test_what_is_taken_back_is_forgotten_by_every_node_in_the_room(
    shared: Shared, tmp_path: Path, human: Human
) -> None:
    """A person's words and an em's: also by the node of somebody else, which heard them in the room."""
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with (
        world_on(folders[0], shared[0], shared[1].pop(), human.id) as one,
        world_on(folders[1], shared[0], shared[1].pop(), human.id) as two,
        one.up(Scripted([f"Yes, {WORDS}."])),
    ):
        two.signer = OTHER
        for folder in two.ems.iterdir():
            (folder / "config.yaml").write_text("basins: [tea]\nmute: true\n", "utf-8")
        async with two.up(Scripted(["Hm."])):
            room = await tea(one, human)
            await two.bridge.lobby.join(room, "tea", [])
            asked = await human.say(room, f"ada, {WORDS}?")
            (reply,) = [e for e in await said(human, room, f"Yes, {WORDS}.") if e["sender"] != human.id]
            await until(lambda: sum(WORDS in act.text for act in acts(two)) == 2)
            for event in (asked, reply["event_id"]):
                await human.client.room_redact(room, event)
            await until(lambda: not any(WORDS in act.text for world in (one, two) for act in acts(world)))
            assert [sum(is_husk(act) for act in acts(world)) for world in (one, two)] == [2, 2]
