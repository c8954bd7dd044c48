"""Ems in rooms of a real Synapse, both ways in: what people do, what they see, and that nothing is lost or doubled."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import sealing
from bridged import Bridged, Pause, Slow, begun, ephemeral, membership, messages, noticed, said, state, until, upgrade
from images import image
from matrix_rig import LIVE, Human, Shared, new_session, person
from nio import RoomPreset

from mesh.bridges.matrix.account import Session, log_in
from mesh.bridges.matrix.content import MARK
from mesh.bridges.matrix.errors import MatrixRefused
from mesh.bridges.matrix.port import MESSAGE, REACTION
from mesh.bridges.matrix.verification import CANCEL, REQUEST
from mesh.bus.memory import MemoryBroker
from mesh.entries import recent
from nodes.matrix.bridge import Bridge
from nodes.models.base import Usage
from nodes.models.scripted import Scripted
from nodes.picture import pictures
from protocol.acts import Act

pytestmark = LIVE


@pytest.fixture(params=["appservice", "account"])
async def world(request: pytest.FixtureRequest, shared: Shared, tmp_path: Path, human: Human) -> AsyncIterator[Bridged]:
    """A node on either way in, which the person may invite, with two ems that listen in `tea`."""
    synapse, spare = shared
    way = spare.pop() if request.param == "appservice" else await new_session(synapse)
    pages = f"http://127.0.0.1:{way[1] if isinstance(way, tuple) else 1}"  # nothing serves them for an account
    async with MemoryBroker() as broker:
        one = Bridged(tmp_path, broker, synapse, way, human.id, bot_messages=2, pages=pages)
        one.em("ada")
        one.em("bob")
        yield one


async def test_a_person_and_an_em_talk(world: Bridged, human: Human) -> None:
    """Who is called answers once, as a reply, and people see who it is."""
    async with world.up(Scripted(["Good day."])) as bridge:
        room = await human.room(preset=RoomPreset.public_chat)
        _, joined, problems = await bridge.lobby.join(room, "tea", None)
        assert (joined, problems) == (["ada", "bob"], [])
        asked = await human.say(room, "hello ada")
        prefix = "" if bridge.port.caps.separate_identities else "ada: "
        shown = await said(human, room, f"{prefix}Good day.")
        answer = shown[-1]
        assert answer["sender"] == bridge.port.user_id("ada")
        if bridge.port.caps.separate_identities:
            (joined,) = [one for one in await state(human, room) if one.get("state_key") == answer["sender"]]
            assert joined["content"]["displayname"] == "ada"
        assert answer["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == asked
        acts = [entry.act for entry in recent(world.here.ground.store, "tea", 10)]
        assert [(act.kind, act.author, act.text) for act in acts] == [
            ("say", human.id, "hello ada"),
            ("say", "ada", "Good day."),
        ]
        assert acts[1].refs == [acts[0].id]
        assert len(await messages(human, room)) == 2
        await until(lambda: bridge.port.inbox.waiting() == 0)


def body(bridge: Bridge, em: str, text: str) -> str:
    """What people read when an em says something."""
    return text if bridge.port.caps.separate_identities else f"{em}: {text}"


async def tea(world: Bridged, human: Human) -> str:
    """A room of the person's that stands for the basin `tea`, with both ems in it."""
    room = await human.room(preset=RoomPreset.public_chat)
    await world.bridge.lobby.join(room, "tea", None)
    return room


def acts(world: Bridged, basin: str = "tea") -> list[tuple[str, str, str]]:
    return [(entry.act.kind, entry.act.author, entry.act.text) for entry in recent(world.here.ground.store, basin, 99)]


def act(world: Bridged, text: str, basin: str = "tea") -> Act:
    return next(entry.act for entry in recent(world.here.ground.store, basin, 99) if entry.act.text == text)


async def idle(world: Bridged) -> None:
    """Until all that came is handled, answered and sent."""
    node, port = world.here, world.bridge.port
    await until(lambda: not (port.inbox.waiting() or node.outbox.waiting() or node.runtime.turns.open()))
    await until(lambda: not port.outbox.waiting())


async def test_replies_threads_and_mentions_are_refs(world: Bridged, human: Human) -> None:
    """A reply goes to whoever said it, a thread goes on in the thread, and a mention calls without a name."""
    async with world.up(Scripted(["One."], ["Two."], ["Three."])) as bridge:
        room = await tea(world, human)
        await human.say(room, "hello ada")
        first = (await said(human, room, body(bridge, "ada", "One.")))[-1]
        reply = {"m.relates_to": {"m.in_reply_to": {"event_id": first["event_id"]}}}
        await human.say(room, "and then?", **reply)
        await said(human, room, body(bridge, "ada", "Two."))
        thread = {"rel_type": "m.thread", "event_id": first["event_id"], "is_falling_back": True}
        await human.say(room, "bob, in here", **{"m.relates_to": thread})
        third = (await said(human, room, body(bridge, "bob", "Three.")))[-1]
        assert third["content"]["m.relates_to"]["rel_type"] == "m.thread"
        assert third["content"]["m.relates_to"]["event_id"] == first["event_id"]
        assert act(world, "and then?").refs == [act(world, "One.").id]
        assert act(world, "bob, in here").refs == [act(world, "One.").id]
        if bridge.port.caps.separate_identities:
            called = {"m.mentions": {"user_ids": [bridge.port.user_id("bob")]}}
            await human.say(room, "you there", **called)
            await until(lambda: [text for _, _, text in acts(world)].count("Three.") == 2)
            assert act(world, "you there").body["to"] == ["bob"]
            assert acts(world)[-1] == ("say", "bob", "Three.")


async def test_edits_and_redactions_reach_the_ems(world: Bridged, human: Human) -> None:
    """An edit changes what ems see, a redaction takes it from them, and somebody else's edit counts for nothing."""
    model = Scripted(["Indeed."])
    async with world.up(model) as bridge, person(world.synapse) as other:
        room = await tea(world, human)
        await other.client.join(room)
        secret = await human.say(room, "the cake is under the bed")
        wrong = await human.say(room, "it is munday")
        await human.say(room, "* it is monday", **edited(wrong, "it is monday"))
        await other.say(room, "* it is doomsday", **edited(wrong, "it is doomsday"))
        await human.client.room_redact(room, secret)
        await until(lambda: ("redact", human.id, "taken back") in acts(world))
        await human.say(room, "what day is it, ada")
        await said(human, room, body(bridge, "ada", "Indeed."))
        prompt = str(model.requests[-1].turns)
        assert "it is monday" in prompt
        assert "munday" not in prompt
        assert "doomsday" not in prompt
        assert "cake" not in prompt
        assert "cake" not in str(acts(world))


def edited(event: str, text: str) -> dict[str, Any]:
    return {
        "m.new_content": {"msgtype": "m.text", "body": text},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event},
    }


async def react(human: Human, room: str, event: str, key: str) -> str:
    related = {"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": key}}
    return str((await human.client.room_send(room, REACTION, related)).event_id)


async def test_reactions_are_acts_and_controls(world: Bridged, human: Human) -> None:
    """A thumb is a `react`; retry takes a reply back and has another, go on goes on, hide hides until taken back."""
    model = Scripted(["First."], ["Second."], ["Third."], ["Fourth."], ["Fifth."])
    async with world.up(model) as bridge:
        room = await tea(world, human)
        asked = await human.say(room, "hello ada")
        first = (await said(human, room, body(bridge, "ada", "First.")))[-1]
        await react(human, room, first["event_id"], "👍")
        await until(lambda: ("react", human.id, "👍") in acts(world))
        await react(human, room, first["event_id"], "🔁")
        second = (await said(human, room, body(bridge, "ada", "Second.")))[-1]
        assert second["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == asked
        assert "First." not in str(model.requests[-1].turns)
        await until(lambda: ("redact", "ada", "taken back") in acts(world))
        await idle(world)
        assert body(bridge, "ada", "First.") not in [one["content"]["body"] for one in await messages(human, room)]
        await react(human, room, second["event_id"], "▶️")
        await said(human, room, body(bridge, "ada", "Third."))
        assert "Second." in str(model.requests[-1].turns)
        hidden = await react(human, room, second["event_id"], "🙈")
        await human.say(room, "again, ada")
        await said(human, room, body(bridge, "ada", "Fourth."))
        assert "Second." not in str(model.requests[-1].turns)
        await human.client.room_redact(room, hidden)
        await human.say(room, "and again, ada")
        await said(human, room, body(bridge, "ada", "Fifth."))
        assert "Second." in str(model.requests[-1].turns)


async def test_stop_ends_what_is_written_and_takes_it_back(world: Bridged, human: Human) -> None:
    """A long reply is shown while it is written; a person stops it, and the beginning goes away."""
    go_on = asyncio.Event()
    script = ["Once upon a time", *(x for _ in range(20) for x in (" there was", Pause(0.15))), go_on]
    async with world.up(Slow(script)) as bridge:
        room = await tea(world, human)
        await human.say(room, "tell me a story, ada")
        shown = await begun(human, room, body(bridge, "ada", "Once upon a time"))
        await react(human, room, shown["event_id"], "🛑")
        await until(lambda: not world.here.runtime.speaking())
        await idle(world)
        assert [one["content"]["body"] for one in await messages(human, room)] == ["tell me a story, ada"]


async def test_a_long_reply_is_shown_in_few_edits(world: Bridged, human: Human) -> None:
    """People read along; at the end stands all of it, in one message, after at most eight edits."""
    words = [f"word{number} " for number in range(40)]
    script = [step for word in words for step in (word, Pause(0.1))]
    async with world.up(Slow(script)) as bridge:
        room = await tea(world, human)
        await human.say(room, "speak, ada")
        whole = body(bridge, "ada", "".join(words).strip())
        await said(human, room, whole)
        events = [event for event in await human.events(room) if event["sender"] != human.id]
        edits = [event for event in events if event["content"].get("m.relates_to", {}).get("rel_type") == "m.replace"]
        assert len(events) - len(edits) == 1
        assert 1 <= len(edits) <= 8
        assert [event["content"].get(MARK, {}).get("writing") for event in events] == [True] * (len(events) - 1) + [
            None
        ]


async def test_people_see_who_writes_and_what_was_read(world: Bridged, human: Human) -> None:
    """Typing shows while a model thinks, and ends; what is answered is marked as read."""
    go_on = asyncio.Event()
    async with world.up(Scripted([go_on, "Now."])) as bridge:
        room = await tea(world, human)
        asked = await human.say(room, "hello ada")
        ada = bridge.port.user_id("ada")
        typing, receipts = await ephemeral(human, room, lambda typing, receipts: ada in typing and asked in receipts)
        assert ada in receipts[asked]["m.read"]
        go_on.set()
        await said(human, room, body(bridge, "ada", "Now."))
        typing, _ = await ephemeral(human, room, lambda typing, _receipts: ada not in typing)
        assert typing == []
        unanswered = await human.say(room, "just saying")
        node = bridge.port.user_id("_bot")
        await ephemeral(human, room, lambda _typing, receipts: node in receipts.get(unanswered, {}).get("m.read", {}))


async def test_what_people_ask_of_the_node(world: Bridged, human: Human) -> None:
    """`!mesh` is answered by a notice, does what it says, and is nothing that ems hear of."""
    async with world.up(Scripted(["Yes."])) as bridge:
        room = await tea(world, human)
        asked = await human.say(room, "hello ada")
        reply = (await said(human, room, body(bridge, "ada", "Yes.")))[-1]
        notices = 0
        for command, more, answer in [
            ("!mesh help", {}, "!mesh stop"),
            ("!mesh why", {"m.relates_to": {"m.in_reply_to": {"event_id": reply["event_id"]}}}, "its name was said"),
            ("!mesh why", {"m.relates_to": {"m.in_reply_to": {"event_id": asked}}}, "answered"),
            ("!mesh budget", {}, "of 8 acts"),
            ("!mesh stop", {}, "Stopped."),
            ("!mesh mute ada 5", {}, "ada keeps silent for 5 minutes."),
            ("!mesh frobnicate", {}, "There is no `frobnicate`"),
        ]:
            await human.say(room, command, **more)
            notices += 1
            told = await noticed(human, room, notices)
            assert answer in told[-1]["content"]["body"], command
        await human.say(room, "ada, are you there")
        await human.say(room, "bob, are you there")
        await said(human, room, body(bridge, "bob", "Yes."))
        await idle(world)
        assert [author for _, author, text in acts(world) if text == "Yes."] == ["ada", "bob"]
        await human.say(room, "!mesh unmute ada")
        await noticed(human, room, notices + 1)
        await human.say(room, "!mesh next ada")
        await until(lambda: acts(world)[-1] == ("answer", "ada", "Yes."))
        assert not [text for _, _, text in acts(world) if text.startswith("!mesh")]


async def test_why_leads_to_the_prompt(world: Bridged, human: Human) -> None:
    """The notice links to a page with the prompt, as text whatever is in it; nobody makes up such a link."""
    async with world.up(Scripted(["Yes."])) as bridge:
        room = await tea(world, human)
        await human.say(room, "ada, <script>alert(1)</script>")
        reply = (await said(human, room, body(bridge, "ada", "Yes.")))[-1]
        await human.say(room, "!mesh why", **{"m.relates_to": {"m.in_reply_to": {"event_id": reply["event_id"]}}})
        told = (await noticed(human, room, 1))[-1]["content"]["body"]
        if bridge.pages is None:
            assert f"`mesh why {act(world, 'Yes.').id.hex()}`" in told
            return
        link = told.rpartition("(")[2].removesuffix(")")
        async with aiohttp.ClientSession() as session:
            async with session.get(link) as answer:
                page = await answer.text()
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
            async with session.get(link[:-1] + ("0" if link[-1] != "0" else "1")) as other:
                assert other.status == 404
        assert "&lt;script&gt;" in page
        assert "<script" not in page
        assert "its name was said" in page


async def test_people_invite_ems_if_they_may(world: Bridged, human: Human) -> None:
    """The node's person invites an em into a room of its own; a stranger's invitation is declined."""
    async with world.up(Scripted(["At your service."])) as bridge, person(world.synapse) as stranger:
        user = bridge.port.user_id("ada")
        declined = await stranger.room(user)
        room = await human.room(user)
        await until(lambda: bridge.tables.basin_of(room))
        await until(lambda: bridge.port.inbox.waiting() == 0)
        assert bridge.tables.basin_of(declined) is None
        assert await membership(stranger, declined, user) == "leave"
        assert await membership(human, room, user) == "join"
        basin = bridge.tables.basin_of(room) or ""
        called = "anybody here" if bridge.port.caps.separate_identities else "ada?"
        await human.say(room, called)  # alone with one em, one need not say its name
        await said(human, room, body(bridge, "ada", "At your service."))
        assert acts(world, basin)[-1] == ("say", "ada", "At your service.")
        assert acts(world) == []


async def test_leaving_and_being_put_out(world: Bridged, human: Human) -> None:
    """Who was kicked hears no more and stays out until invited again; who leaves is gone."""
    async with world.up(Scripted(["Yes."])) as bridge:
        room = await tea(world, human)
        ada = bridge.port.user_id("ada")
        await human.client.room_kick(room, ada, "for now")
        await until(lambda: not bridge.tables.sits("ada", room))
        assert "for now" in bridge.tables.members(room)[0 if bridge.tables.members(room)[0].em == "ada" else 1].reason
        world.here.host()
        await bridge.lobby.fill()
        assert not bridge.tables.sits("ada", room)
        await bridge.lobby.join(room, "tea", ["ada"])
        await human.say(room, "welcome back, ada")
        await said(human, room, body(bridge, "ada", "Yes."))
        left = await bridge.lobby.leave(room, None)
        assert "ada" in left
        assert await membership(human, room, ada) == "leave"
        assert bridge.tables.rooms() == []


async def test_one_basin_in_two_rooms(world: Bridged, human: Human) -> None:
    """What is said in one room is heard in the other, with the name of who said it; redactions follow."""
    async with world.up(Scripted(["Both of you."])) as bridge:
        one = await tea(world, human)
        two = await tea(world, human)
        event = await human.say(one, "hello ada")
        await said(human, one, body(bridge, "ada", "Both of you."))
        relayed = await said(human, two, f"{human.id}: hello ada", body(bridge, "ada", "Both of you."))
        assert len(relayed) == 2
        await human.client.room_redact(one, event)
        while f"{human.id}: hello ada" in [one["content"]["body"] for one in await messages(human, two)]:
            await asyncio.sleep(0.02)
        assert len(await messages(human, two)) == 1


async def test_an_upgraded_room_is_followed(world: Bridged, human: Human) -> None:
    """The tombstone leads to the new room, which stands for the same basin; a false one leads nowhere."""
    async with world.up(Scripted(["Here."])) as bridge:
        room = await tea(world, human)
        other = await human.room(preset=RoomPreset.public_chat)
        await human.client.room_put_state(room, "m.room.tombstone", {"body": "over there", "replacement_room": other})
        await until(lambda: bridge.problems)
        assert bridge.tables.basin_of(room) == "tea"
        successor = await upgrade(human, room)
        await until(lambda: bridge.tables.basin_of(successor) == "tea")
        await human.say(successor, "hello ada")
        await said(human, successor, body(bridge, "ada", "Here."))


async def test_a_picture_is_seen(world: Bridged, human: Human) -> None:
    """A picture that a person posts is kept by its hash, and the act names it."""
    async with world.up(Scripted(["A dot."])) as bridge:
        room = await tea(world, human)
        data = image("png")
        answer, _ = await human.client.upload(lambda *_: data, "image/png", "dot.png", filesize=len(data))
        info = {"mimetype": "image/png", "size": len(data)}
        posted = await human.say(room, "ada: dot.png", msgtype="m.image", url=answer.content_uri, info=info)
        await said(human, room, body(bridge, "ada", "A dot."))
        (shown,) = pictures(recent(world.here.ground.store, "tea", 9)[0].act)
        assert (world.path / "media" / shown.sha256).read_bytes() == data
        await human.client.room_redact(room, posted)
        await until(lambda: not (world.path / "media" / shown.sha256).exists())


async def test_what_is_old_or_of_machines_is_read_and_not_answered(world: Bridged, human: Human) -> None:
    """Notices, machines that mention nobody, and machines beyond their quota get no answer; the silences say why."""
    async with world.up(Scripted(["Yes."])) as bridge, person(world.synapse) as machine:
        room = await tea(world, human)
        await human.say(room, "ada: disk 91 % full", msgtype="m.notice")
        mark = {"v": 1, "act": "ab" * 16, "root": "cd" * 16, "hops": 0, "node": "elsewhere"}
        for number in range(4):
            fresh = {"act": f"{number:032x}", "root": f"{number:032x}"}
            await human.say(room, f"ada, said a machine, {number}", **{MARK: mark | fresh})
        await human.say(room, "nobody in particular, said a machine", **{MARK: mark})
        await machine.client.join(room)
        await machine.say(room, "ada, no more bounces", **{"m.bounce_limit": 0})
        await human.say(room, "bob, said a person")
        await said(human, room, body(bridge, "bob", "Yes."))
        await idle(world)
        assert len([1 for _, author, _ in acts(world) if author == "ada"]) == 2
        turns = world.here.runtime.turns
        assert turns.silences(act(world, "ada: disk 91 % full").id) == {"a notice needs no answer": ["ada", "bob"]}
        assert "a machine's 2 messages" in str(turns.silences(act(world, "ada, said a machine, 2").id))
        assert "did not mention it" in str(turns.silences(act(world, "nobody in particular, said a machine").id))
        assert "no hops left" in str(turns.silences(act(world, "ada, no more bounces").id))


async def test_a_space_lists_the_rooms(world: Bridged, human: Human) -> None:
    """One space lists a mesh's rooms; what is joined later is listed by itself."""
    async with world.up(Scripted([])) as bridge:
        one = await tea(world, human)
        space, number = await bridge.lobby.space.make("Amp")
        assert number == 1
        two = await tea(world, human)
        await human.client.join(space)
        listed = [one["state_key"] for one in await state(human, space) if one["type"] == "m.space.child"]
        assert sorted(listed) == sorted([one, two])


async def test_talk_and_pictures_in_an_encrypted_room(world: Bridged, tmp_path: Path) -> None:
    """An encrypted room is like any other to people and ems: words, pictures and answers, and nothing in clear."""
    login = await world.synapse.register(f"sealed{os.urandom(4).hex()}", "secret")
    mara = sealing.Human(world.synapse, login, tmp_path / "client")
    world.owner = mara.id
    try:
        await mara.begin()
        async with world.up(Scripted(["Indeed.", Usage(1, 1)], ["A dot."])) as bridge:
            room = await mara.room(bridge.port.user_id("ada"))
            await until(lambda: bridge.tables.basin_of(room))
            basin = bridge.tables.basin_of(room) or ""
            await mara.say(room, "hello ada")
            await mara.until(room, "Indeed.")
            data = image("png")
            answer, keys = await mara.client.upload(
                lambda *_: data, "image/png", "dot.png", encrypt=True, filesize=len(data)
            )
            file = {**keys, "url": answer.content_uri}
            info = {"mimetype": "image/png", "size": len(data)}
            await mara.say(room, "ada: dot.png", msgtype="m.image", file=file, info=info)
            await mara.until(room, "A dot.")
            (shown,) = [
                picture for entry in recent(world.here.ground.store, basin, 9) for picture in pictures(entry.act)
            ]
            assert (world.path / "media" / shown.sha256).read_bytes() == data
            spoken = [event for event in await mara.events(room) if event.source["type"] == MESSAGE]
            assert [event.decrypted for event in spoken] == [True] * 4
    finally:
        await mara.client.close()


async def test_who_lost_their_keys_has_new_ones_before_anybody_speaks(
    world: Bridged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first words in a room that was quiet meanwhile are sealed for the new device, and answered."""
    monkeypatch.setattr("mesh.bridges.matrix.appservice.LOOK_BACK_MS", 0)
    login = await world.synapse.register(f"sealed{os.urandom(4).hex()}", "secret")
    mara = sealing.Human(world.synapse, login, tmp_path / "client")
    world.owner = mara.id
    try:
        await mara.begin()
        async with world.up(Scripted(["Before."])) as bridge:
            user = bridge.port.user_id("ada")
            room = await mara.room(user)
            await until(lambda: bridge.tables.basin_of(room))
            await mara.say(room, "hello ada")
            await mara.until(room, "Before.")
            (old,) = mara.client.olm.device_store.active_user_devices(user)
            await mara.say(room, "good night", msgtype="m.notice")
            await until(lambda: "good night" in str(acts(world, bridge.tables.basin_of(room) or "")))
        shutil.rmtree(world.path / "matrix")
        if isinstance(world.way, Session):
            world.way = await log_in(world.synapse.url, world.way.user_id, "secret")
        async with world.up(Scripted(["After."])):
            while not {*await devices_of(mara, user)} - {old.id}:
                await asyncio.sleep(0.02)
            await mara.say(room, "hello again, ada")
            assert "After." in await mara.until(room, "After.")
    finally:
        await mara.client.close()


async def devices_of(person: sealing.Human, user: str) -> list[str]:
    """A user's devices that have keys."""
    path = f"/_matrix/client/v3/keys/query?access_token={person.client.access_token}"
    async with await person.client.send("POST", path, f'{{"device_keys": {{"{user}": []}}}}') as answer:
        return [*(await answer.json())["device_keys"][user]]


async def test_a_request_for_verification_is_declined_and_no_talk(world: Bridged, human: Human) -> None:
    """Alone with an em a person's words are all for it, but not what a client asks; four requests get three noes."""
    async with world.up(Scripted(["Good day."])) as bridge:
        ada = bridge.port.user_id("ada")
        room = await human.room(ada)
        await until(lambda: bridge.tables.basin_of(room))
        asking = {"msgtype": REQUEST, "to": ada, "from_device": "PHONE", "methods": ["m.sas.v1"]}
        asked = [await human.say(room, "Mara asks to verify you", **asking) for _ in range(4)]
        await human.say(room, "for bob", **(asking | {"to": "@stranger:localhost"}))
        await human.say(room, "hello ada")
        shown = await said(human, room, body(bridge, "ada", "Good day."))
        assert [one["content"]["msgtype"] for one in shown] == [REQUEST] * 5 + ["m.text"] * 2
        noes = await human.events(room, CANCEL)
        assert [one["content"]["m.relates_to"]["event_id"] for one in noes] == asked[:3]
        assert {one["sender"] for one in noes} == {ada}
        assert "verify" not in str(acts(world, bridge.tables.basin_of(room) or ""))


async def test_what_comes_in_one_breath_is_all_honoured(world: Bridged, human: Human) -> None:
    """While the node is down a message is said, edited and another redacted: it catches up with all of that at once."""
    async with world.up(Scripted(["Yes."])):
        room = await tea(world, human)
        await human.say(room, "hello ada")
        await idle(world)
    wrong = await human.say(room, "ada, it is munday")
    await human.say(room, "* ada, it is monday", **edited(wrong, "ada, it is monday"))
    secret = await human.say(room, "bob, the cake is under the bed")
    await human.client.room_redact(room, secret)
    model = Scripted(["Indeed."])
    async with world.up(model) as bridge:
        await said(human, room, body(bridge, "ada", "Indeed."))
        await idle(world)
        await human.say(room, "what day is it, ada")
        await until(lambda: "what day is it, ada" in str(model.requests[-1].turns))
        prompt = str(model.requests[-1].turns)
        assert "it is monday" in prompt
        assert "munday" not in prompt
        assert "cake" not in prompt + str(acts(world))


async def test_what_is_redacted_before_it_was_sent_is_never_seen(world: Bridged, human: Human) -> None:
    """A reply that waits for its room is taken back: nobody reads it, and an edit of it neither."""
    async with world.up(Scripted(["Secret."])) as bridge:
        room = await tea(world, human)
        bridge.port.outbox.wake = lambda: None  # nothing more is sent from now on
        await human.say(room, "hello ada")
        await until(lambda: ("say", "ada", "Secret.") in acts(world))
        await world.here.redact(act(world, "Secret.").id, "no")
        await until(lambda: ("redact", "ada", "no") in acts(world))
        assert bridge.port.outbox.waiting() == 0
    async with world.up(Scripted(["Open."])) as bridge:
        await human.say(room, "hello again, ada")
        await said(human, room, body(bridge, "ada", "Open."))
        assert "Secret" not in str(await human.events(room))


async def test_two_kinds_of_rooms_do_not_share_a_basin(world: Bridged, human: Human) -> None:
    """What is said in an encrypted room would be read in an open one: the second is refused, whichever it is."""
    async with world.up(Scripted([])) as bridge:
        await tea(world, human)
        sealed_room = await human.room(preset=RoomPreset.public_chat, initial_state=[sealing.SEALING])
        with pytest.raises(MatrixRefused, match="one kind only"):
            await bridge.lobby.join(sealed_room, "tea", None)


async def test_nobody_presses_a_button_for_ever(world: Bridged, human: Human) -> None:
    """Reactions that have an em go on spend what the talk had; when that is gone, only words begin anew."""
    model = Scripted(["More."])
    world.budget("tea", hops=6, acts=4)
    async with world.up(model) as bridge:
        room = await tea(world, human)
        await human.say(room, "hello ada")
        reply = (await said(human, room, body(bridge, "ada", "More.")))[-1]
        for number in range(8):
            await react(human, room, reply["event_id"], "▶️" + "\ufe0f" * (number % 2) + " " * number)
        await idle(world)
        assert 2 <= len(model.requests) <= 4


async def test_what_a_muted_em_said_is_not_taken_back(world: Bridged, human: Human) -> None:
    """Another try is only asked of an em that may speak; else what it said stays."""
    async with world.up(Scripted(["Mine."])) as bridge:
        room = await tea(world, human)
        await human.say(room, "hello ada")
        reply = (await said(human, room, body(bridge, "ada", "Mine.")))[-1]
        await human.say(room, "!mesh mute ada 5")
        await noticed(human, room, 1)
        await react(human, room, reply["event_id"], "🔁")
        await until(lambda: ("react", human.id, "🔁") in acts(world))
        await idle(world)
        assert body(bridge, "ada", "Mine.") in [one["content"]["body"] for one in await messages(human, room)]


async def test_an_em_that_gets_an_account_of_its_own_comes_in_with_it(
    shared: Shared, world: Bridged, human: Human
) -> None:
    """Where it sat it sits still, under its new user, and answers there."""
    async with world.up(Scripted(["Before."])) as bridge:
        room = await tea(world, human)
        await human.say(room, "hello ada")
        await said(human, room, body(bridge, "ada", "Before."))
    session = await new_session(shared[0])
    world.own = {"ada": session}
    async with world.up(Scripted(["After."])) as bridge:
        while await membership(human, room, session.user_id) != "join":
            await asyncio.sleep(0.02)
        await human.say(room, "hello again, ada")
        answer = (await said(human, room, "After."))[-1]
        assert answer["sender"] == session.user_id == bridge.port.user_id("ada")
