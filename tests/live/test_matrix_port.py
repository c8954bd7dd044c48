"""The Matrix bridge against a real Synapse and a person with an ordinary client, both ways in."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from homeserver import Synapse
from matrix_rig import LIVE, Human, Shared, new_session, new_way, person
from nio import AsyncClient

from mesh.bridges.matrix import account
from mesh.bridges.matrix.account import Account, Session, check_token
from mesh.bridges.matrix.api import As
from mesh.bridges.matrix.appservice import DEVICE, AppService
from mesh.bridges.matrix.content import Relation, edit, later, message, reaction, redaction
from mesh.bridges.matrix.errors import MatrixLoggedOut, MatrixRefused
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import MEMBER, MESSAGE, REACTION, REDACTION, Speaker
from mesh.bridges.matrix.reading import read
from mesh.bridges.matrix.registration import Registration
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.clock import now_ms
from mesh.store import Store

pytestmark = LIVE

ADA, BOB, EVE = Speaker("ada", "Ada"), Speaker("bob", "Bob"), Speaker("eve", "Eve")
Port = AppService | Account


class Place:
    """One way in, with a database that outlives the ports that run on it."""

    def __init__(self, path: Path, synapse: Synapse, way: Registration | Session, listen: int) -> None:
        self.path, self.synapse, self.way, self.listen = path, synapse, way, listen

    @asynccontextmanager
    async def port(self) -> AsyncGenerator[Port]:
        """A port that runs within the block and is cut off at its end, as a crash would."""
        store = Store(self.path, {"matrix": MATRIX_SCHEMA})
        port = self.build(store)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(port.run())
            await port.ready.wait()
            try:
                yield port
            finally:
                task.cancel()
        store.close()

    def build(self, store: Store) -> Port:
        if isinstance(self.way, Registration):
            return AppService(self.synapse.url, self.way, ("127.0.0.1", self.listen), store, now_ms)
        return Account(self.way, store, now_ms)


async def place_on(synapse: Synapse, path: Path, way: str, spare: tuple[Registration, int]) -> Place:
    if way == "appservice":
        return Place(path / "node.db", synapse, *spare)
    return Place(path / "node.db", synapse, await new_session(synapse), 0)


@pytest.fixture(params=["appservice", "account"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def place(way: str, shared: Shared, tmp_path: Path) -> Place:
    """Both ways in, one after the other: what a test says of one holds for the other."""
    synapse, spare = shared
    return await place_on(synapse, tmp_path, way, spare.pop())


@pytest.fixture
async def own_place(way: str, tmp_path: Path) -> AsyncIterator[Place]:
    """The same on a Synapse of the test's own, to be stopped, killed and started."""
    spare = new_way()
    async with Synapse(tmp_path, [spare[0].text()]) as synapse:
        yield await place_on(synapse, tmp_path, way, spare)


async def together(port: Port, human: Human, *speakers: Speaker) -> str:
    """A room where the person and the speakers are."""
    ids = {await port.ensure(speaker) for speaker in speakers}
    room = await human.room(*ids)
    while ids:
        event = await take(port)
        if event.kind == MEMBER and event.state_key in ids and event.content["membership"] == "invite":
            ids.discard(event.state_key)
            speaker = next(one for one in speakers if port.user_id(one.key) == event.state_key)
            assert await port.join(speaker.key, room) == room
    return room


async def take(port: Port) -> Inbound:
    """The next event, handled."""
    event = await anext(port.inbox)
    port.inbox.handled(event)
    return event


async def heard(port: Port, last: str) -> list[str]:
    """The messages up to one that says `last`."""
    found = list[str]()
    while last not in found:
        event = await take(port)
        if event.kind == MESSAGE:
            found.append(str(event.content["body"]))
    return found


async def put(port: Port, room: str, said: list[tuple[Speaker, str]]) -> None:
    for speaker, text in said:
        with port._store.transaction():
            assert port.put(speaker, room, MESSAGE, message(text), f"{room} {text}")
    port.outbox.wake()


async def sent(port: Port, room: str, said: list[tuple[Speaker, str]]) -> None:
    for speaker, text in said:
        outcome = await port.outbox.wait(speaker.key, f"{room} {text}")
        assert outcome.event_id, outcome


async def test_hears_people_once_and_itself_never(place: Place) -> None:
    """What a person says arrives once, with who, where and when; what we say does not come back."""
    async with person(place.synapse) as human, place.port() as port:
        room = await together(port, human, ADA)
        first = await human.say(room, "hello")
        await port.send(ADA, room, MESSAGE, message("good day"), "k1")
        event = await take(port)
        while event.kind != MESSAGE:
            event = await take(port)
        assert (event.event_id, event.room, event.sender, event.content["body"]) == (first, room, human.id, "hello")
        assert abs(event.at_ms - now_ms()) < 60_000
        await human.say(room, "end")
        assert await heard(port, "end") == ["end"]
        assert await human.bodies(room) == ["good day"]


async def test_a_restart_repeats_what_was_not_handled_and_nothing_else(place: Place) -> None:
    """Events that were received but not handled come again after a crash; handled ones do not."""
    async with person(place.synapse) as human:
        async with place.port() as port:
            room = await together(port, human, ADA)
            await human.say(room, "one")
            await human.say(room, "two")
            assert await heard(port, "one") == ["one"]
            event = await anext(port.inbox)
            while event.kind != MESSAGE:
                event = await anext(port.inbox)
            assert event.content["body"] == "two"  # received, and not handled
        async with place.port() as port:
            await human.say(room, "three")
            assert await heard(port, "three") == ["two", "three"]


async def test_what_was_said_while_it_was_down_arrives_in_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred messages during our absence, more than a sync and a request hold, are all heard, in order and once."""
    monkeypatch.setattr(account, "GAP_PAGE", 20)
    async with person(place.synapse) as human:
        async with place.port() as port:
            room = await together(port, human, ADA)
            await human.say(room, "before")
            await heard(port, "before")
        for number in range(100):
            await human.say(room, str(number))
        async with place.port() as port:
            await human.say(room, "end")
            assert await heard(port, "end") == [*map(str, range(100)), "end"]


async def test_what_people_do_with_messages(place: Place) -> None:
    """Replies, threads, reactions, edits and redactions arrive as what they are, both ways."""
    async with person(place.synapse) as human, place.port() as port:
        room = await together(port, human, ADA)
        hello = await human.say(room, "hello")
        await heard(port, "hello")
        reply = await port.send(ADA, room, MESSAGE, message("*hm*", relation=Relation(reply_to=hello)), "reply")
        await port.send(ADA, room, REACTION, reaction(hello, "👍"), "reaction")
        await port.send(ADA, room, MESSAGE, edit(reply, message("oh")), "edit")
        wrong = await port.send(ADA, room, MESSAGE, message("wrong"), "wrong")
        await port.send(ADA, room, REDACTION, redaction(wrong, "a mistake"), "redaction")
        said = {event["event_id"]: event for event in await human.events(room)}
        assert said[reply]["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == hello
        replaced = (await human.client.room_get_event(room, reply)).event.source
        replacement = replaced["unsigned"]["m.relations"]["m.replace"]["content"]["m.new_content"]
        assert replacement["body"].endswith("oh")
        (reacted,) = await human.events(room, REACTION)
        assert reacted["content"]["m.relates_to"]["key"] == "👍"
        assert "body" not in said[wrong]["content"]

        theirs = {
            "rel_type": "m.thread",
            "event_id": hello,
            "is_falling_back": True,
            "m.in_reply_to": {"event_id": hello},
        }
        await human.say(room, "in a thread", **{"m.relates_to": theirs})
        await human.client.room_send(room, REACTION, reaction(reply, "🎉"))
        await human.client.room_redact(room, hello, "never mind")
        found = list[Inbound]()
        while not found or found[-1].kind != REDACTION:
            found.append(await take(port))
        thread, cheer, gone = (event for event in found if event.sender == human.id)
        told = read(thread.kind, thread.content)
        assert told
        assert (told.text, told.thread, told.reply_to) == ("in a thread", hello, None)
        cheered = read(cheer.kind, cheer.content)
        assert cheered
        assert (cheered.reacts_to, cheered.text) == (reply, "🎉")
        assert gone.redacts == hello


async def test_shows_that_it_types_and_reads_and_can_leave(place: Place) -> None:
    """Typing and receipts are seen by the person; after leaving, what is said is given up with the reason."""
    async with person(place.synapse) as human, place.port() as port:
        room = await together(port, human, ADA)
        hello = await human.say(room, "hello")
        await heard(port, "hello")
        me = port.user_id("ada")
        await port.typing("ada", room, 20_000)
        await port.read("ada", room, hello)
        seen = await human.client.sync(1000, full_state=True)
        ephemeral = list(seen.rooms.join[room].ephemeral)
        assert any(me in getattr(event, "users", ()) for event in ephemeral)
        receipts = [receipt for event in ephemeral for receipt in getattr(event, "receipts", ())]
        assert any(one.user_id == me and one.event_id == hello for one in receipts)
        await port.typing("ada", room, 0)
        await port.leave("ada", room)
        with pytest.raises(MatrixRefused, match="M_FORBIDDEN"):
            await port.send(ADA, room, MESSAGE, message("too late"), "late")
        kept = port.outbox.outcome("ada", "late")
        assert kept
        assert kept.event_id is None
        assert "M_FORBIDDEN" in (kept.reason or "")


async def test_is_told_when_it_is_put_out(place: Place) -> None:
    """Being kicked arrives as an event, and what waits for the room is given up."""
    async with person(place.synapse) as human, place.port() as port:
        room = await together(port, human, ADA)
        me = port.user_id("ada")
        await human.client.room_kick(room, me, "enough")
        event = await take(port)
        while event.kind != MEMBER or event.state_key != me or event.content["membership"] != "leave":
            event = await take(port)
        assert (event.room, event.sender, event.content["reason"]) == (room, human.id, "enough")
        with pytest.raises(MatrixRefused, match="M_FORBIDDEN"):
            await port.send(ADA, room, MESSAGE, message("but"), "k")


async def test_many_speakers_at_once_are_in_order_in_each_room(place: Place) -> None:
    """Thirty messages of three speakers, put at once into each of two rooms, appear in the order they were put."""
    async with person(place.synapse) as human, place.port() as port:
        rooms = [await together(port, human, ADA, BOB, EVE) for _ in range(2)]
        said = [((ADA, BOB, EVE)[number % 3], str(number)) for number in range(30)]
        for room in rooms:
            await put(port, room, said)
        for room in rooms:
            await sent(port, room, said)
            assert await human.bodies(room) == [text for _, text in said]


async def test_refers_to_what_is_not_sent_yet(place: Place) -> None:
    """A reply, an edit and a redaction can be put together with what they refer to."""
    async with person(place.synapse) as human, place.port() as port:
        room = await together(port, human, ADA, BOB)
        reply = message("and I", relation=Relation(reply_to=later("ada", "first")))
        with port._store.transaction():
            port.put(ADA, room, MESSAGE, message("I say"), "first")
            port.put(BOB, room, MESSAGE, reply, "second")
            port.put(ADA, room, MESSAGE, edit(later("ada", "first"), message("I said")), "third")
            port.put(BOB, room, REDACTION, redaction(later("bob", "second")), "fourth")
            port.put(BOB, room, REACTION, reaction(later("bob", "never"), "👍"), "fifth")
        port.outbox.wake()
        lost = await port.outbox.wait("bob", "fifth")
        assert (lost.event_id, lost.reason) == (None, "what it refers to was never sent")
        first, second, third = await human.events(room)
        assert third["content"]["m.relates_to"]["event_id"] == first["event_id"]
        assert second["content"].get("body") is None  # taken back


async def test_a_key_is_one_event_and_speakers_have_keys_of_their_own(place: Place) -> None:
    """The same key again sends nothing; the same key of another speaker is another event."""
    async with person(place.synapse) as human, place.port() as port:
        room = await together(port, human, ADA, BOB)
        first = await port.send(ADA, room, MESSAGE, message("once"), "key")
        assert await port.send(ADA, room, MESSAGE, message("twice"), "key") == first
        assert await port.send(BOB, room, MESSAGE, message("me too"), "key") != first
        assert await human.bodies(room) == ["once", "me too"]


async def test_never_speaks_in_clear_where_it_is_encrypted(place: Place) -> None:
    """What is said in an encrypted room is sealed, also if it became so just now; what cannot be read comes so."""
    state = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    async with person(place.synapse) as human, place.port() as port:
        await port.ensure(ADA)
        room = await human.room(port.user_id("ada"), initial_state=[state])
        await port.join("ada", room)
        await port.send(ADA, room, MESSAGE, message("in clear"), "k1")
        clear = await together(port, human, BOB)
        await port.send(BOB, clear, MESSAGE, message("fine"), "k2")
        await human.client.room_put_state(clear, state["type"], state["content"])
        while (await take(port)).kind != "m.room.encryption":
            pass
        await port.send(BOB, clear, MESSAGE, message("no more"), "k3")
        assert await human.bodies(room) == []
        assert await human.bodies(clear) == ["fine"]
        assert len(await human.events(room, "m.room.encrypted")) == 1
        assert len(await human.events(clear, "m.room.encrypted")) == 1
        sealed = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "session_id": "s"}
        await human.client.room_send(clear, "m.room.encrypted", sealed)
        event = await take(port)
        while event.kind != "m.room.encrypted":
            event = await take(port)
        assert event.content == sealed


async def test_a_profile_and_a_file(place: Place) -> None:
    """Names are shown as the way can, and a stored file has an address."""
    async with person(place.synapse) as human, place.port() as port:
        picture = await port.upload("ada", b"\x89PNG", "image/png", "ada.png")
        assert picture.startswith("mxc://localhost/")
        speaker = Speaker("ada", "Ada <3", picture)
        user = await port.ensure(speaker)
        assert await port.ensure(speaker) == user
        room = await together(port, human, speaker)
        event = await port.send(speaker, room, MESSAGE, message("hi"), "k")
        content = (await human.client.room_get_event(room, event)).event.source["content"]
        profile = await human.client.get_profile(user)
        if port.caps.separate_identities:
            assert (profile.displayname, profile.avatar_url, content["body"]) == ("Ada <3", picture, "hi")
        else:
            assert content["body"] == "Ada <3: hi"
            assert content["com.beeper.per_message_profile"]["displayname"] == "Ada <3"


async def test_long_messages_arrive(place: Place) -> None:
    """Sixty thousand characters pass as they are; seventy thousand are cut and say so."""
    async with person(place.synapse) as human, place.port() as port:
        room = await together(port, human, ADA)
        await port.send(ADA, room, MESSAGE, message("x" * 60_000), "k1")
        await port.send(ADA, room, MESSAGE, message("y" * 70_000), "k2")
        whole, cut = await human.bodies(room)
        assert whole == "x" * 60_000
        assert cut.endswith("too long for one message]")


async def test_the_same_request_after_the_homeservers_restart_is_the_same_event(own_place: Place) -> None:
    """An answer that was lost with the homeserver's process does not double the event."""
    async with person(own_place.synapse) as human, own_place.port() as port:
        room = await together(port, human, ADA)
        first = await port.send(ADA, room, MESSAGE, message("once"), "key")
        own_place.synapse.kill()
        await own_place.synapse.start()
        row = (
            message("once"),
            "UPDATE matrix_outbox SET done_ms = NULL, event_id = NULL, content = ? WHERE key = 'key'",
        )
        with port._store.transaction():
            port._store.execute(row[1], (json.dumps(row[0]),))
        port.outbox.wake()
        assert (await port.outbox.wait("ada", "key")).event_id == first
        assert await human.bodies(room) == ["once"]


async def test_a_homeserver_killed_under_load_gets_everything_once(own_place: Place) -> None:
    """With the homeserver gone by kill -9 amid sixty messages and back, each appears once, in order."""
    said = [((ADA, BOB)[number % 2], str(number)) for number in range(60)]
    async with person(own_place.synapse) as human, own_place.port() as port:
        room = await together(port, human, ADA, BOB)
        await put(port, room, said)
        while port.outbox.waiting() > 40:
            await asyncio.sleep(0)
        own_place.synapse.kill()
        await own_place.synapse.start()
        await sent(port, room, said)
        assert await human.bodies(room) == [text for _, text in said]


async def test_a_restarted_homeserver_drops_nothing(own_place: Place) -> None:
    """Synapse on sqlite counts its transactions from 1 again after a restart: what they hold is heard all the same."""
    async with person(own_place.synapse) as human, own_place.port() as port:
        room = await together(port, human, ADA)
        for turn in range(3):
            await human.say(room, f"before {turn}")
            assert await heard(port, f"before {turn}") == [f"before {turn}"]
            own_place.synapse.stop()
            await own_place.synapse.start()
            await human.say(room, f"after {turn}")
            assert await heard(port, f"after {turn}") == [f"after {turn}"]


async def test_patience_is_shown_when_asked_for(tmp_path: Path) -> None:
    """A homeserver that limits the rate gets everything in the end, in order."""
    said = [(ADA, str(number)) for number in range(8)]
    async with Synapse(tmp_path, rc_message={"per_second": 4, "burst_count": 2}) as synapse:
        place = await place_on(synapse, tmp_path, "account", new_way())
        async with person(synapse) as human, place.port() as port:
            room = await together(port, human, ADA)
            await put(port, room, said)
            await sent(port, room, said)
            assert await human.bodies(room) == [text for _, text in said]


async def test_a_revoked_token_ends_it_with_one_error(place: Place) -> None:
    """When the token is void the port stops, and what waits is kept."""
    store = Store(place.path, {"matrix": MATRIX_SCHEMA})
    if isinstance(place.way, Registration):
        place.way = Registration(place.way.url, "localhost", "void", "any")
        port = place.build(store)
    else:
        port = place.build(store)
        client = AsyncClient(place.synapse.url, place.way.user_id)
        client.restore_login(place.way.user_id, place.way.device_id, place.way.token)
        await client.logout()
        await client.close()
        with pytest.raises(MatrixLoggedOut, match="does not know the token"):
            await check_token(place.synapse.url, place.way.token)
    with store.transaction():
        port.put(ADA, "!r:localhost", MESSAGE, message("hello"), "k")
    with pytest.raises(ExceptionGroup) as raised:
        await port.run()
    assert raised.group_contains(MatrixLoggedOut, match="does not know the token")
    assert port.outbox.waiting() == 1
    store.close()


async def test_the_homeserver_reaches_us(shared: Shared, tmp_path: Path) -> None:
    """A ping goes from us to the homeserver and back to us."""
    synapse, spare = shared
    async with Place(tmp_path / "node.db", synapse, *spare.pop()).port() as port:
        assert isinstance(port, AppService)
        assert await port.ping() >= 0


async def test_a_device_that_was_removed_is_made_anew_and_nothing_is_lost(shared: Shared, tmp_path: Path) -> None:
    """Homeservers may remove devices that seem unused: what is said next goes by a new one."""
    synapse, spare = shared
    async with person(synapse) as human, Place(tmp_path / "node.db", synapse, *spare.pop()).port() as port:
        room = await together(port, human, ADA)
        await port.send(ADA, room, MESSAGE, message("one"), "k1")
        await port._api.call("POST", ("client", "v3", "logout"), {}, acting=As(port.user_id("ada"), DEVICE))
        await port.send(ADA, room, MESSAGE, message("two"), "k2")
        assert await human.bodies(room) == ["one", "two"]
