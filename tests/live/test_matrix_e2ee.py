"""Encrypted rooms, both ways in, with a real Synapse and a person with an ordinary encrypting client (matrix-nio)."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from homeserver import Synapse
from matrix_rig import LIVE, Shared
from nio import ToDeviceMessage
from sealing import SEALING, Human, forward, key_request

from mesh.bridges.matrix.account import Account, Session, log_in, sign_anew
from mesh.bridges.matrix.api import As
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.common import Own
from mesh.bridges.matrix.content import Relation, edit, message
from mesh.bridges.matrix.crosssigning import is_signed
from mesh.bridges.matrix.errors import MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import SEALED, Inbound
from mesh.bridges.matrix.port import ENCRYPTED, ENCRYPTION, MEMBER, MESSAGE, REACTION, Speaker
from mesh.bridges.matrix.registration import Registration
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.bridges.matrix.several import Several
from mesh.bridges.matrix.verification import CANCEL
from mesh.bridges.matrix.verification import REQUEST as VERIFY
from mesh.clock import now_ms
from mesh.store import Store

pytestmark = LIVE

ADA, BOB, NODE = Speaker("ada", "Ada"), Speaker("bob", "Bob"), Speaker("_bot", "Amp")
PASSWORD = "secret"
ODD_WORDS: list[tuple[str, dict[str, Any]]] = [  # between devices, all but requests for verification
    ("m.room_key.withheld", {"algorithm": "m.megolm.v1.aes-sha2", "room_id": "!r:x", "code": "m.unverified"}),
    ("m.room_key_request", {"action": "request", "request_id": "r", "requesting_device_id": "D", "body": {}}),
    ("m.secret.request", {"action": "request", "name": "m.megolm_backup.v1", "request_id": "r"}),
    ("m.secret.send", {"request_id": "r", "secret": "no"}),
    ("m.key.verification.start", {"from_device": "D", "method": "m.sas.v1", "transaction_id": "t"}),
    ("m.key.verification.done", {"transaction_id": "t"}),
    ("m.dummy", {}),
    ("m.room.encrypted", {"algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": "k", "ciphertext": {}}),
    ("io.element.call.encryption_keys", {"keys": [], "room_id": "!r:x"}),
]
Port = AppService | Account


class Place:
    """One way in, with a database and keys that outlive the ports that run on them."""

    def __init__(self, path: Path, synapse: Synapse, way: Registration | Session, listen: int) -> None:
        self.path, self.synapse, self.way, self.listen = path, synapse, way, listen
        self.keys = path / "matrix"

    @asynccontextmanager
    async def port(self) -> AsyncGenerator[Port]:
        """A port that runs within the block and is cut off at its end, as a crash would."""
        store = Store(self.path / "node.db", {"matrix": MATRIX_SCHEMA})
        port = self.build(store)
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(port.run())
                ready = group.create_task(port.ready.wait())
                await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
                try:
                    yield port
                finally:
                    task.cancel()
                    ready.cancel()
        finally:
            store.close()

    def build(self, store: Store) -> Port:
        if isinstance(self.way, Registration):
            return AppService(self.synapse.url, self.way, ("127.0.0.1", self.listen), store, now_ms)
        return Account(self.way, store, now_ms)


@pytest.fixture(params=["appservice", "account"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def place(way: str, shared: Shared, tmp_path: Path) -> Place:
    """Both ways in, one after the other: what a test says of one holds for the other."""
    synapse, spare = shared
    if way == "appservice":
        return Place(tmp_path, synapse, *spare.pop())
    user = f"node{os.urandom(4).hex()}"
    await synapse.register(user, PASSWORD)
    return Place(tmp_path, synapse, await log_in(synapse.url, user, PASSWORD), 0)


@asynccontextmanager
async def person(place: Place, login: dict[str, Any] | None = None) -> AsyncGenerator[Human]:
    folder = place.path / os.urandom(4).hex()
    one = Human(place.synapse, login or await place.synapse.register(f"human{os.urandom(4).hex()}", PASSWORD), folder)
    try:
        await one.begin()
        yield one
    finally:
        await one.client.close()


async def second_device(place: Place, human: Human) -> dict[str, Any]:
    session = await log_in(place.synapse.url, human.id, PASSWORD)
    return {"user_id": session.user_id, "device_id": session.device_id, "access_token": session.token}


async def together(port: Port, human: Human, *speakers: Speaker) -> str:
    """An encrypted room where the person and the speakers are."""
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
    """The messages up to one that says `last`; `?` is one that could not be read."""
    found = list[str]()
    while last not in found:
        event = await take(port)
        if event.kind in {MESSAGE, SEALED}:
            found.append("?" if event.kind == SEALED else str(event.content["body"]))
    return found


async def on_the_server(human: Human, room: str) -> list[dict[str, Any]]:
    """The contents of a room's events by others, as the homeserver has them."""
    path = f"/_matrix/client/v3/rooms/{room}/messages?dir=f&limit=500&access_token={human.client.access_token}"
    async with await human.client.send("GET", path) as answer:
        chunk = (await answer.json())["chunk"]
    return [event for event in chunk if event["sender"] != human.id]


async def keys_of(human: Human, user: str) -> dict[str, Any]:
    path = f"/_matrix/client/v3/keys/query?access_token={human.client.access_token}"
    async with await human.client.send("POST", path, f'{{"device_keys": {{"{user}": []}}}}') as answer:
        return dict(await answer.json())


async def test_what_is_said_is_read_by_both_and_by_nobody_else(place: Place) -> None:
    """A person and two ems talk; the homeserver sees ciphertext, with relations in clear as it needs them."""
    async with person(place) as human, place.port() as port:
        room = await together(port, human, ADA, BOB)
        hello = await human.say(room, "hello")
        assert await heard(port, "hello") == ["hello"]
        reply = await port.send(ADA, room, MESSAGE, message("*good* day", relation=Relation(reply_to=hello)), "k1")
        await port.send(ADA, room, MESSAGE, edit(reply, message("good evening")), "k2")
        await port.send(BOB, room, MESSAGE, message("same here"), "k3")
        await port.send(
            BOB, room, REACTION, {"m.relates_to": {"rel_type": "m.annotation", "event_id": hello, "key": "x"}}, "k4"
        )
        assert (await human.until(room, "same here"))[-1] == "same here"
        said = {event.event_id: event.source["content"] for event in await human.events(room)}
        assert said[reply]["m.relates_to"]["m.in_reply_to"]["event_id"] == hello
        seen = {event["event_id"]: event for event in await on_the_server(human, room)}
        assert {event["type"] for event in seen.values()} == {MEMBER, ENCRYPTED, REACTION}
        assert "day" not in str(seen)
        assert seen[reply]["unsigned"]["m.relations"]["m.replace"]["type"] == ENCRYPTED


async def test_long_messages_fit_and_repeated_ones_are_one(place: Place) -> None:
    """The longest message is cut so that it can be sealed; an attempt that is repeated is the same event."""
    async with person(place) as human, place.port() as port:
        room = await together(port, human, ADA)
        said = message("x" * 100_000)
        first = await port.send(ADA, room, MESSAGE, said, "long")
        again = "UPDATE matrix_outbox SET done_ms = NULL, event_id = NULL, content = ? WHERE key = 'long'"
        with port._store.transaction():
            port._store.execute(again, (json.dumps(said),))
        port.outbox.wake()
        assert (await port.outbox.wait("ada", "long")).event_id == first
        await port.send(ADA, room, MESSAGE, edit(first, said), "edit")
        events = [event.source for event in await human.events(room)]
        shown, changed = [event["content"] for event in events if event["type"] == MESSAGE]
        for content in (shown, changed["m.new_content"]):
            assert len(content["body"]) > 40_000
            assert content["body"].endswith("too long for one message]")


async def test_a_key_that_is_worn_out_is_replaced(place: Place) -> None:
    """Sixty messages of two speakers at once, with a key for each ten, are all read, in order."""
    from nio.crypto import sessions

    said = [((ADA, BOB)[number % 2], str(number)) for number in range(60)]
    async with person(place) as human, place.port() as port:
        room = await together(port, human, ADA, BOB)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sessions.OutboundGroupSession, "should_rotate", lambda one: one.message_count >= 10)
            with port._store.transaction():
                for speaker, text in said:
                    assert port.put(speaker, room, MESSAGE, message(text), text)
            port.outbox.wake()
            for speaker, text in said:
                assert (await port.outbox.wait(speaker.key, text)).event_id
        assert await human.heard(room) == [text for _, text in said]
        sealed = [event["content"] for event in await on_the_server(human, room) if event["type"] == ENCRYPTED]
        assert len({content["session_id"] for content in sealed}) == 6


async def test_an_account_of_its_own_beside_the_appservice(shared: Shared, tmp_path: Path) -> None:
    """Ems with users of both kinds sit in one encrypted room: each has its device, and what is said is heard once."""
    synapse, spare = shared
    place, user = Place(tmp_path, synapse, *spare.pop()), f"bob{os.urandom(4).hex()}"
    await synapse.register(user, PASSWORD)
    session = await log_in(synapse.url, user, PASSWORD)

    def several(store: Store) -> Several:
        primary = Place.build(place, store)
        return Several(primary, {"bob": Account(session, store, now_ms, own=Own("bob", primary))})

    place.build = several
    async with person(place) as human, place.port() as port:
        room = await together(port, human, ADA, BOB)
        await human.say(room, "hello")
        assert await heard(port, "hello") == ["hello"]
        await port.send(ADA, room, MESSAGE, message("good day"), "k1")
        await port.send(BOB, room, MESSAGE, message("hi"), "k2")
        assert await human.until(room, "hi") == ["good day", "hi"]
        await human.say(room, "end")
        assert await heard(port, "end") == ["end"]


async def test_a_device_that_was_logged_out_is_replaced(shared: Shared, tmp_path: Path) -> None:
    """When somebody removes an em's device, another one takes its place while the node runs."""
    synapse, spare = shared
    place = Place(tmp_path, synapse, *spare.pop())
    async with person(place) as human, place.port() as port:
        room = await together(port, human, ADA)
        user = port.user_id("ada")
        (old,) = (await keys_of(human, user))["device_keys"][user]
        await port._api.call("POST", ("client", "v3", "logout"), {}, acting=As(user, old))
        while not (devices := {*(await keys_of(human, user))["device_keys"][user]}) or old in devices:
            await asyncio.sleep(0)
        await human.say(room, "still there?")
        assert await heard(port, "still there?") == ["still there?"]


async def test_what_was_said_while_it_was_down_is_read_in_order_by_the_same_devices(place: Place) -> None:
    """After a restart the devices are the same, and what was missed is opened in order."""
    async with person(place) as human:
        async with place.port() as port:
            room = await together(port, human, ADA, BOB)
            await human.say(room, "before")
            assert await heard(port, "before") == ["before"]
            await port.send(ADA, room, MESSAGE, message("indeed"), "k1")
            before = (await keys_of(human, port.user_id("ada")))["device_keys"]
        missed = [str(number) for number in range(60)]
        for text in missed:
            await human.say(room, text)
        async with place.port() as port:
            await port.ensure(ADA)
            await human.say(room, "end")
            assert await heard(port, "end") == [*missed, "end"]
            await port.send(ADA, room, MESSAGE, message("back"), "k2")
            assert await human.until(room, "back") == ["indeed", "back"]
            after = (await keys_of(human, port.user_id("ada")))["device_keys"]
    assert [*after[port.user_id("ada")]] == [*before[port.user_id("ada")]]


@pytest.mark.parametrize("speaker", [ADA, NODE], ids=["em", "node"])
async def test_a_device_that_comes_later_reads_what_is_said_from_then_on(place: Place, speaker: Speaker) -> None:
    """A person's second device, added in the middle, reads what is said afterwards, and nothing from before."""
    async with person(place) as human, place.port() as port:
        room = await together(port, human, speaker)
        await human.say(room, "hello")
        await heard(port, "hello")
        await port.send(speaker, room, MESSAGE, message("early"), "early")
        async with person(place, await second_device(place, human)) as other:
            number = 0
            while "late" not in (seen := await other.heard(room)):  # until the news of the device has come to us
                number += 1
                await port.send(speaker, room, MESSAGE, message("late"), f"late {number}")
            assert seen[0] == "?"
            assert "?" not in await human.heard(room)


async def test_who_has_left_gets_no_more_keys(place: Place) -> None:
    """What is said after somebody left is sealed with a key that they never get."""
    async with person(place) as human, person(place) as guest, place.port() as port:
        room = await together(port, human, ADA)
        await human.client.room_invite(room, guest.id)
        await guest.client.join(room)
        event = await take(port)
        while event.state_key != guest.id or event.content["membership"] != "join":
            event = await take(port)
        await port.send(ADA, room, MESSAGE, message("to both"), "k1")
        await guest.until(room, "to both")
        await guest.client.room_leave(room)
        while event.state_key != guest.id or event.content["membership"] != "leave":
            event = await take(port)
        await port.send(ADA, room, MESSAGE, message("to one"), "k2")
        await human.until(room, "to one")
        await guest.sync()
        had = [
            set(one.client.olm.inbound_group_store[room][own])
            for one in (human, guest)
            for own in [sender_key(one, port, room)]
        ]
        assert len(had[0] - had[1]) == 1


def sender_key(human: Human, port: Port, room: str) -> str:
    """The key of the device that Ada speaks from."""
    (device,) = human.client.olm.device_store.active_user_devices(port.user_id("ada"))
    assert device.curve25519 in human.client.olm.inbound_group_store[room]
    return str(device.curve25519)


async def test_a_room_that_becomes_encrypted_is_so_from_then_on(place: Place) -> None:
    """When somebody encrypts a room where we sit, the next thing we say is sealed, and we read what is."""
    async with person(place) as human, place.port() as port:
        me = await port.ensure(ADA)
        room = str((await human.client.room_create(invite=[me])).room_id)
        event = await take(port)
        while event.kind != MEMBER or event.state_key != me:
            event = await take(port)
        await port.join("ada", room)
        await port.send(ADA, room, MESSAGE, message("in clear"), "k1")
        assert not list(place.keys.glob("*"))
        await human.client.room_put_state(room, ENCRYPTION, SEALING["content"])
        while event.kind != ENCRYPTION:
            event = await take(port)
        await port.send(ADA, room, MESSAGE, message("sealed"), "k2")
        assert await human.until(room, "sealed") == ["in clear", "sealed"]
        await human.say(room, "hello")
        assert await heard(port, "hello") == ["hello"]
        assert [event["type"] for event in await on_the_server(human, room)] == [MEMBER, MESSAGE, ENCRYPTED]


async def test_our_devices_are_signed(place: Place) -> None:
    """The homeserver has a master key, a key signed by it, and a device signed by that: strict clients accept it."""
    async with person(place) as human, place.port() as port:
        await together(port, human, ADA)
        user = port.user_id("ada")
        keys = await keys_of(human, user)
        (device,) = keys["device_keys"][user].values()
        (master,) = keys["master_keys"][user]["keys"].values()
        signing = keys["self_signing_keys"][user]
        (public,) = signing["keys"].values()
        assert is_signed(signing, user, master)
        assert is_signed(device, user, public)
        assert not is_signed(device, user, master)


async def test_an_event_that_cannot_be_read_is_shown_and_comes_again_when_its_key_does(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that got lost is asked for; what it opens comes late, even after a restart, under the same id."""
    async with person(place) as human:
        async with place.port() as port:
            room = await together(port, human, ADA)
            user = port.user_id("ada")
            with monkeypatch.context() as patch:
                patch.setattr("mesh.bridges.matrix.engine.Engine.receive", lambda _engine, _events: [])
                said = await human.say(room, "can you read this?")
                event = await take(port)
                while event.kind != SEALED:
                    event = await take(port)
            assert (event.event_id, event.sender) == (said, human.id)
            request = await key_request(human, user)
            assert (request.room_id, request.session_id) == (room, event.content["session_id"])
        async with place.port() as port:
            await port.ensure(ADA)
            await forward(human, request)
            event = await take(port)
            while event.kind != MESSAGE:
                event = await take(port)
            assert (event.event_id, event.content["body"]) == (said, "can you read this?")
            await human.say(room, "good")
            assert await heard(port, "good") == ["good"]


async def test_what_else_devices_say_to_one_another_breaks_nothing(place: Place) -> None:
    """Of all that modern clients send, a request for verification has an answer; the talk goes on in any case."""
    async with person(place) as human, place.port() as port:
        room = await together(port, human, ADA)
        user = port.user_id("ada")
        (device,) = (await keys_of(human, user))["device_keys"][user]
        asking = {"from_device": human.client.device_id, "methods": ["m.sas.v1"], "transaction_id": "t1"}
        for kind, content in [
            *ODD_WORDS,
            *((kind, odd) for kind, _ in ODD_WORDS for odd in ({}, {"request_id": [], "algorithm": 7, "code": None})),
            (VERIFY, asking | {"from_device": "*"}),
            (VERIFY, {}),
            (VERIFY, asking),
        ]:
            await human.client.to_device(ToDeviceMessage(kind, user, device, content))
        while True:
            noes = [
                one.source for one in (await human.client.sync(1000)).to_device_events if one.source["type"] == CANCEL
            ]
            if noes:
                break
        assert [(one["sender"], one["content"]["transaction_id"]) for one in noes] == [(user, "t1")]
        await human.say(room, "still there?")
        assert await heard(port, "still there?") == ["still there?"]
        await port.send(ADA, room, MESSAGE, message("yes"), "k1")
        assert (await human.until(room, "yes"))[-1] == "yes"


async def test_a_key_that_came_just_before_the_node_ended_opens_what_waited_for_it(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept, and will not be sent again: the next start finds what it opens."""
    synapse, spare = shared
    place, came = Place(tmp_path, synapse, *spare.pop()), list[object]()
    async with person(place) as human:
        async with place.port() as port:
            room = await together(port, human, ADA)
            with monkeypatch.context() as patch:
                patch.setattr("mesh.bridges.matrix.engine.Engine.receive", lambda _engine, _events: [])
                await human.say(room, "can you read this?")
                while (await take(port)).kind != SEALED:
                    pass
            request = await key_request(human, port.user_id("ada"))
            with monkeypatch.context() as patch:
                patch.setattr(port.crypto.fleet, "_tidings", replace(port.crypto.fleet._tidings, came=keep(came)))
                await forward(human, request)
                while not came:
                    await asyncio.sleep(0)
        async with place.port() as port:
            assert await heard(port, "can you read this?") == ["can you read this?"]


def keep(came: list[object]) -> Callable[[object, Iterable[object]], None]:
    """Note keys, and do nothing with them, as a process that ends."""
    return lambda _device, keys: came.extend(keys)


@pytest.mark.parametrize("damaged", ["", "device.db", "olm-*.db"], ids=["all", "what it knows", "its keys"])
async def test_lost_keys_are_replaced(shared: Shared, tmp_path: Path, damaged: str) -> None:
    """Without its keys, or with damaged ones, an em has a new device, signed, and talks on; the old one is gone."""
    synapse, spare = shared
    place = Place(tmp_path, synapse, *spare.pop())
    async with person(place) as human:
        async with place.port() as port:
            room = await together(port, human, ADA)
            await human.say(room, "hello")
            await heard(port, "hello")
            (old,) = (await keys_of(human, port.user_id("ada")))["device_keys"][port.user_id("ada")]
        spoil(place.keys, damaged)
        async with place.port() as port:
            user = await port.ensure(ADA)
            await port.send(ADA, room, MESSAGE, message("here again"), "k1")
            await human.until(room, "here again")
            await human.say(room, "welcome back")
            assert (await heard(port, "welcome back"))[-1] == "welcome back"
            keys = await keys_of(human, user)
            (new,), (public,) = keys["device_keys"][user].values(), keys["self_signing_keys"][user]["keys"].values()
            assert new["device_id"] != old
            assert is_signed(new, user, public)


async def test_an_account_that_lost_its_keys_says_so_and_talks_again_after_a_login(
    shared: Shared, tmp_path: Path
) -> None:
    """Nothing is sent in clear or from a device that cannot read the answers; a fresh login mends it."""
    synapse, _ = shared
    user = f"node{os.urandom(4).hex()}"
    await synapse.register(user, PASSWORD)
    place = Place(tmp_path, synapse, await log_in(synapse.url, user, PASSWORD), 0)
    async with person(place) as human:
        async with place.port() as port:
            room = await together(port, human, ADA)
            await port.send(ADA, room, MESSAGE, message("hello"), "k1")
        shutil.rmtree(place.keys)
        async with place.port() as port:
            with pytest.raises(MatrixRefused, match="log this account in again"):
                await port.send(ADA, room, MESSAGE, message("lost"), "k2")
        place.way = await log_in(synapse.url, user, PASSWORD)
        async with place.port() as port:
            await port.send(ADA, room, MESSAGE, message("here again"), "k3")
            assert await human.until(room, "here again") == ["hello", "here again"]
            await human.say(room, "welcome back")
            assert (await heard(port, "welcome back"))[-1] == "welcome back"
            assert not await is_trusted(human, place.way)
            with pytest.raises(MatrixUnavailable, match="another process"):
                await sign_anew(place.way, place.keys, PASSWORD)
        with pytest.raises(MatrixRefused, match="M_FORBIDDEN"):
            await sign_anew(place.way, place.keys, "wrong")
        await sign_anew(place.way, place.keys, PASSWORD)
        async with place.port():
            assert await is_trusted(human, place.way)


def spoil(keys: Path, damaged: str) -> None:
    """Lose all keys, or have something else in the files of that name, and in nothing beside them."""
    if not damaged:
        shutil.rmtree(keys)
    for file in keys.glob(f"*/{damaged}"):
        file.write_bytes(os.urandom(5_000))


async def is_trusted(human: Human, session: Session) -> bool:
    """Whether an account's device bears the signature of its user's signing key."""
    keys, user = await keys_of(human, session.user_id), session.user_id
    (public,) = keys["self_signing_keys"][user]["keys"].values()
    return is_signed(keys["device_keys"][user][session.device_id], user, public)
