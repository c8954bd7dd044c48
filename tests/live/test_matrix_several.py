"""A node with one way for all its ems and accounts of their own for some, on a real Synapse."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from homeserver import Synapse
from matrix_rig import LIVE, Human, Shared, new_session, person, running, take, take_until
from nio import AsyncClient, AsyncClientConfig, MessageDirection, RoomMessageText

from mesh.bridges.matrix.account import Account, Session
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.common import Own
from mesh.bridges.matrix.content import Relation, later, message, reaction, redaction
from mesh.bridges.matrix.errors import MatrixLoggedOut
from mesh.bridges.matrix.port import ENCRYPTION, MESSAGE, REACTION, REDACTION, Speaker
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.bridges.matrix.several import Several
from mesh.clock import now_ms
from mesh.store import Store

pytestmark = LIVE

ADA, BOB, EVE = Speaker("ada", "Ada"), Speaker("bob", "Bob"), Speaker("eve", "Eve")


class Rig:
    """Ada has an account of her own; Bob and Eve share the primary way."""

    def __init__(self, synapse: Synapse, store: Store, port: Several, session: Session) -> None:
        self.synapse, self.store, self.port, self.session = synapse, store, port, session
        self.lost = list[tuple[str, str]]()

    async def room(self, human: Human) -> str:
        """A room where the person and all three are."""
        users = {key: self.port.user_id(key) for key in ("ada", "bob", "eve")}
        for speaker in (ADA, BOB, EVE):
            assert await self.port.ensure(speaker) == users[speaker.key]
        room = await human.room(*set(users.values()))
        for key in users:
            await self.port.join(key, room)
        return room

    def put(self, room: str, *said: tuple[Speaker, str]) -> None:
        with self.store.transaction():
            for speaker, text in said:
                assert self.port.put(speaker, room, MESSAGE, message(text), f"{room} {text}")
        self.port.outbox.wake()

    async def revoke(self) -> None:
        client = AsyncClient(self.session.homeserver, self.session.user_id)
        client.restore_login(self.session.user_id, self.session.device_id, self.session.token)
        await client.logout()
        await client.close()


@pytest.fixture(params=["appservice", "account"])
async def rig(request: pytest.FixtureRequest, shared: Shared, tmp_path: Path) -> AsyncIterator[Rig]:
    """Both primaries, one after the other."""
    synapse, spare = shared
    store = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    if request.param == "appservice":
        registration, listen = spare.pop()
        primary = AppService(synapse.url, registration, ("127.0.0.1", listen), store, now_ms)
    else:
        primary = Account(await new_session(synapse), store, now_ms)
    session = await new_session(synapse)
    lost = list[tuple[str, str]]()
    own = Account(session, store, now_ms, own=Own("ada", primary))
    port = Several(primary, {"ada": own}, lambda key, reason: lost.append((key, reason)))
    rig = Rig(synapse, store, port, session)
    rig.lost = lost
    yield rig
    store.close()


async def test_each_speaks_as_its_own_and_all_in_one_order(rig: Rig) -> None:
    """What three put at once in turns appears in that order, Ada's under her own user and without a prefix."""
    async with person(rig.synapse) as human, running(rig.port):
        room = await rig.room(human)
        said = [((ADA, BOB, EVE)[n % 3], str(n)) for n in range(24)]
        rig.put(room, *said)
        for speaker, text in said:
            assert (await rig.port.outbox.wait(speaker.key, f"{room} {text}")).event_id
        events = await human.events(room)
        assert [event["content"]["body"].split(": ")[-1] for event in events] == [text for _, text in said]
        senders = [event["sender"] for event in events]
        assert senders == [rig.port.user_id(speaker.key) for speaker, _ in said]
        assert [event["content"]["body"] for event in events[::3]] == [text for _, text in said[::3]]
        shared_user = rig.port.user_id("bob") == rig.port.user_id("eve")
        assert shared_user != rig.port.caps.separate_identities
        assert (await human.client.get_profile(rig.port.user_id("ada"))).displayname == "Ada"


async def test_hears_an_event_once_and_itself_never(rig: Rig) -> None:
    """One event for a message that came through both; nothing of what any of us says."""
    async with person(rig.synapse) as human, running(rig.port):
        room = await rig.room(human)
        for text in ("one", "two"):
            await human.say(room, text)
            for speaker in (ADA, BOB):
                await rig.port.send(speaker, room, MESSAGE, message("I hear"), f"{speaker.key} {text}")
        await human.say(room, "end")
        heard = await take_until(rig.port.inbox, "end")
        assert [event.content["body"] for event in heard] == ["one", "two", "end"]
        assert all(rig.port.owns(rig.port.user_id(key)) for key in ("ada", "bob"))
        assert not rig.port.owns(human.id)
        await rig.port.leave("bob", room)  # now Ada alone is left to hear, where the way has users of its own
        await human.say(room, "still here?")
        assert [event.content["body"] for event in await take_until(rig.port.inbox, "still here?")] == ["still here?"]
        assert rig.port.inbox.waiting() == 0


async def test_refers_across_accounts_to_what_is_not_sent_yet(rig: Rig) -> None:
    """Bob replies to, reacts to and Ada takes back what was put in the same breath."""
    async with person(rig.synapse) as human, running(rig.port):
        room = await rig.room(human)
        reply = message("so do I", relation=Relation(reply_to=later("ada", "first")))
        with rig.store.transaction():
            rig.port.put(ADA, room, MESSAGE, message("I sing"), "first")
            rig.port.put(BOB, room, MESSAGE, reply, "second")
            rig.port.put(BOB, room, REACTION, reaction(later("ada", "first"), "🎵"), "third")
            rig.port.put(ADA, room, MESSAGE, message("hush"), "fourth")
            rig.port.put(ADA, room, REDACTION, redaction(later("ada", "fourth")), "fifth")
        rig.port.outbox.wake()
        assert (await rig.port.outbox.wait("ada", "fifth")).event_id
        assert (await rig.port.outbox.wait("bob", "third")).event_id
        first, second, fourth = await human.events(room)
        assert second["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == first["event_id"]
        (reacted,) = await human.events(room, REACTION)
        assert reacted["content"]["m.relates_to"]["event_id"] == first["event_id"]
        assert "body" not in fourth["content"]


async def test_the_same_calls_reach_the_speakers_own_user(rig: Rig) -> None:
    """Typing, receipts, files, invitations and leaving are those of the user that speaks."""
    async with person(rig.synapse) as human, running(rig.port):
        room = await rig.room(human)
        hello = await human.say(room, "hello")
        await rig.port.typing("ada", room, 20_000)
        await rig.port.read("ada", room, hello)
        ada = rig.port.user_id("ada")
        seen = await human.client.sync(1000, full_state=True)
        ephemeral = list(seen.rooms.join[room].ephemeral)
        assert any(ada in getattr(event, "users", ()) for event in ephemeral)
        assert any(one.user_id == ada for event in ephemeral for one in getattr(event, "receipts", ()))
        assert (await rig.port.upload("ada", b"\x89PNG", "image/png", "a.png")).startswith("mxc://")
        async with person(rig.synapse) as other:
            await rig.port.invite("ada", room, other.id)
            assert (await other.client.join(room)).room_id == room
        await rig.port.leave("ada", room)
        members = {one.user_id for one in (await human.client.joined_members(room)).members}
        assert ada not in members
        assert rig.port.user_id("bob") in members


@asynccontextmanager
async def encrypting(synapse: Synapse, folder: Path) -> AsyncGenerator[AsyncClient]:
    """A person with an encrypting client."""
    login = await synapse.register(f"human{os.urandom(4).hex()}", "secret")
    client = AsyncClient(
        synapse.url, login["user_id"], store_path=str(folder), config=AsyncClientConfig(encryption_enabled=True)
    )
    client.restore_login(login["user_id"], login["device_id"], login["access_token"])
    try:
        await client.keys_upload()
        yield client
    finally:
        await client.close()


async def catch_up(client: AsyncClient) -> None:
    """Hear everything, and do what an encrypting client does after it."""
    await client.sync(0, full_state=True)
    if client.should_query_keys:
        await client.keys_query()
    if client.should_claim_keys:
        await client.keys_claim(client.get_users_for_key_claiming())
    await client.send_to_device_messages()


async def test_in_an_encrypted_room_each_seals_its_own_and_hears_once(rig: Rig, tmp_path: Path) -> None:
    """A person reads Ada's and Bob's words under their own users, and what the person says arrives open and once."""
    sealing = {"type": ENCRYPTION, "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    async with encrypting(rig.synapse, tmp_path) as client, running(rig.port):
        await catch_up(client)
        users = [await rig.port.ensure(speaker) for speaker in (ADA, BOB)]
        room = (await client.room_create(invite=users, initial_state=[sealing])).room_id
        for speaker in (ADA, BOB):
            await rig.port.join(speaker.key, room)
        for speaker in (ADA, BOB):
            await rig.port.send(speaker, room, MESSAGE, message("sealed"), "k")
        said = dict[str, str]()
        while len(said) < 2:
            await catch_up(client)
            page = await client.room_messages(room, "", direction=MessageDirection.front, limit=50)
            said = {event.sender: event.body for event in page.chunk if isinstance(event, RoomMessageText)}
        assert said == {users[0]: "sealed", users[1]: said[users[1]]}
        assert said[users[1]].endswith("sealed")
        for text in ("one", "two"):
            await catch_up(client)
            content = {"msgtype": "m.text", "body": text}
            await client.room_send(room, MESSAGE, content, ignore_unverified_devices=True)
        assert [event.content["body"] for event in await take_until(rig.port.inbox, "two")] == ["one", "two"]


async def test_a_revoked_login_is_reported_and_silences_its_speaker_alone(rig: Rig) -> None:
    """Bob speaks and hears on after Ada's token was revoked; what Ada was to say is kept, and everybody is told why."""
    async with person(rig.synapse) as human, running(rig.port):
        room = await rig.room(human)
        await rig.port.send(ADA, room, MESSAGE, message("here"), "k")
        await rig.revoke()
        rig.put(room, (ADA, "kept"), (BOB, "on"), (ADA, "kept too"), (BOB, "and on"))
        assert (await rig.port.outbox.wait("bob", f"{room} and on")).event_id
        with pytest.raises(MatrixLoggedOut, match="logged out"):
            await rig.port.outbox.wait("ada", f"{room} kept")
        assert [key for key, _ in rig.lost] == ["ada"]
        assert "does not know the token" in rig.port.lost["ada"]
        with pytest.raises(MatrixLoggedOut, match="ada is logged out"):
            await rig.port.typing("ada", room, 1000)
        await human.say(room, "bob?")
        assert (await take_until(rig.port.inbox, "bob?"))[-1].sender == human.id
        said = [event["content"]["body"].split(": ")[-1] for event in await human.events(room)]
        assert said == ["here", "on", "and on", "bob?"]
        assert rig.port.outbox.waiting("ada") == 2


async def test_a_login_that_is_void_from_the_start_takes_nobody_down(rig: Rig) -> None:
    """Its first sync says so; the rest begins as ever."""
    await rig.revoke()
    async with person(rig.synapse) as human, running(rig.port):
        while not rig.lost:
            await asyncio.sleep(0)
        await rig.port.ensure(BOB)
        room = await human.room(rig.port.user_id("bob"))
        await rig.port.join("bob", room)
        assert await rig.port.send(BOB, room, MESSAGE, message("well"), "k")
        assert (await take(rig.port.inbox)).room == room


async def test_the_primarys_void_login_ends_it_all(rig: Rig, shared: Shared) -> None:
    """As with a port of its own: what waits is kept."""
    synapse, _ = shared
    void = Account(Session(synapse.url, "@us:localhost", "D", "void"), rig.store, now_ms)
    own = Account(rig.session, rig.store, now_ms, own=Own("ada", void))
    port = Several(void, {"ada": own})
    with rig.store.transaction():
        port.put(BOB, "!r:localhost", MESSAGE, message("hello"), "k")
    with pytest.raises(ExceptionGroup) as raised:
        await port.run()
    assert raised.group_contains(MatrixLoggedOut, match="does not know the token")
    assert port.outbox.waiting() == 1


def test_an_account_that_stands_alone_is_not_taken(rig: Rig) -> None:
    stranger = Account(rig.session, rig.store, now_ms)
    with pytest.raises(ValueError, match="not made to stand beside"):
        Several(stranger, {"ada": Account(rig.session, rig.store, now_ms)})
