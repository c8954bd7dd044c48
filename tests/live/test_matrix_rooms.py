"""What a port asks of a real Synapse beside speaking, both ways in, and what happens to rooms around it."""

import asyncio
import gc
import json
import os
import tracemalloc
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from homeserver import Synapse
from matrix_rig import LIVE, Human, Shared, new_session, person, running, take, take_until

from mesh.bridges.matrix.account import Account
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.content import message
from mesh.bridges.matrix.errors import BadContent, MatrixRefused
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import ENCRYPTED, ENCRYPTION, MEMBER, MESSAGE, Speaker
from mesh.bridges.matrix.registration import Registration
from mesh.bridges.matrix.rooms import (
    CREATE,
    NAME,
    TOMBSTONE,
    Membership,
    is_successor,
    read_membership,
    read_name,
    read_tombstone,
)
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.clock import now_ms
from mesh.store import Store

pytestmark = LIVE

POWERS = "m.room.power_levels"
ADA = Speaker("ada", "Ada")
CROWD = 1_000
CROWD_AT_ONCE = 20  # joinings on their way
MAX_GROWTH = 1024 * 1024  # bytes that a node may take more for a thousand members: far less than a kilobyte each
Port = AppService | Account


@pytest.fixture
def synapse(shared: Shared) -> Synapse:
    return shared[0]


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


@pytest.fixture(params=["appservice", "account"])
async def port(request: pytest.FixtureRequest, shared: Shared, store: Store) -> AsyncIterator[Port]:
    """Both ways in, one after the other, running, with Ada in existence."""
    synapse, spare = shared
    if request.param == "appservice":
        registration, listen = spare.pop()
        port: Port = AppService(synapse.url, registration, ("127.0.0.1", listen), store, now_ms)
    else:
        port = Account(await new_session(synapse), store, now_ms)
    async with running(port):
        await port.ensure(ADA)
        yield port


@pytest.fixture
async def human(synapse: Synapse) -> AsyncIterator[Human]:
    async with person(synapse) as one:
        yield one


async def together(port: Port, human: Human) -> str:
    room = await human.room(port.user_id("ada"))
    await port.join("ada", room)
    return room


async def request(human: Human, method: str, path: str, body: Any = None) -> Any:
    """What an ordinary client asks for that nio has no call for."""
    headers = {"Authorization": f"Bearer {human.client.access_token}"}
    url = f"{human.client.homeserver}/_matrix/client/v3/{path}"
    async with (
        aiohttp.ClientSession(raise_for_status=True, headers=headers) as session,
        session.request(method, url, json=body) as answer,
    ):
        return await answer.json()


async def heard_of(port: Port, kind: str) -> Inbound:
    """The next event of a kind."""
    event = await take(port.inbox)
    while event.kind != kind:
        event = await take(port.inbox)
    return event


async def change_of(port: Port, change: str) -> Membership:
    """The next change of somebody's membership of this sort."""
    while True:
        found = read_membership(await heard_of(port, MEMBER), port.owns)
        assert found
        if found.change == change:
            return found


async def test_files_come_back_as_they_were_within_a_bound(port: Port, human: Human) -> None:
    data = os.urandom(300_000)
    mine = await port.upload("ada", data, "image/png", "a.png")
    assert await port.download(mine, 300_000) == (data, "image/png")
    with pytest.raises(MatrixRefused, match="longer than 299999 bytes"):
        await port.download(mine, 299_999)
    uploaded, _ = await human.client.upload(lambda *_: b"theirs", "text/plain", filesize=6)
    assert await port.download(uploaded.content_uri, 10) == (b"theirs", "text/plain")
    with pytest.raises(MatrixRefused, match="404"):
        await port.download("mxc://localhost/nothing", 10)
    for wrong in ("https://x/y", "mxc://../x", "mxc://localhost/..", "mxc://localhost/a/b", "mxc://localhost"):
        with pytest.raises(BadContent):
            await port.download(wrong, 10)


async def test_the_state_of_a_room_is_read_and_set(port: Port, human: Human) -> None:
    room = await together(port, human)
    assert await port.state("ada", room, NAME) is None
    with pytest.raises(MatrixRefused, match="M_FORBIDDEN"):
        await port.set_state("ada", room, NAME, {"name": "mine"})
    levels = await port.state("ada", room, POWERS)
    assert levels
    levels["users"][port.user_id("ada")] = 50
    await human.client.room_put_state(room, POWERS, levels)
    assert (await port.set_state("ada", room, NAME, {"name": "Tea\nhouse"})).startswith("$")
    found = await port.state("ada", room, NAME)
    assert found
    assert read_name(found) == "Tea house"
    await port.set_state("ada", room, "org.ampmesh.test", {"a": [1, {"b": None}]}, "a key/with#all?kinds")
    assert await port.state("ada", room, "org.ampmesh.test", "a key/with#all?kinds") == {"a": [1, {"b": None}]}
    with pytest.raises(BadContent):
        await port.set_state("ada", room, NAME, {"name": 0.5})


async def test_who_is_there_and_where_we_are(port: Port, human: Human) -> None:
    room = await together(port, human)
    ada = port.user_id("ada")
    assert await port.members("ada", room) == sorted([ada, human.id])
    assert room in await port.joined("ada")
    await port.leave("ada", room)
    assert room not in await port.joined("ada")
    with pytest.raises(MatrixRefused, match="M_FORBIDDEN"):
        await port.members("ada", room)


async def test_makes_a_space_and_lists_rooms_in_it(port: Port, human: Human) -> None:
    """One space shows a mesh's rooms to whoever looks, in order; what is listed no more is gone."""
    tea, cake = [await human.room(name=name) for name in ("Tea", "Cake")]
    space = await port.create_space("ada", "My mesh", [human.id])
    await human.client.join(space)
    await port.space_child("ada", space, tea, order="b")
    await port.space_child("ada", space, cake, order="a")
    listed = await request(human, "GET", f"../v1/rooms/{space}/hierarchy")
    assert [one["name"] for one in listed["rooms"]] == ["My mesh", "Cake", "Tea"]
    assert listed["rooms"][0]["room_type"] == "m.space"
    await port.space_child("ada", space, cake, listed=False)
    listed = await request(human, "GET", f"../v1/rooms/{space}/hierarchy")
    assert [one["name"] for one in listed["rooms"]] == ["My mesh", "Tea"]
    with pytest.raises(aiohttp.ClientResponseError, match="403"):
        await request(human, "PUT", f"rooms/{space}/state/m.space.child/{cake}", {"via": ["localhost"]})


async def test_an_address_leads_to_its_room(port: Port, human: Human) -> None:
    local = f"tea{os.urandom(3).hex()}"
    room = await human.room(alias=local)
    assert await port.resolve(f"#{local}:localhost") == room
    assert await port.resolve("#nowhere:localhost") is None


async def test_never_speaks_in_clear_in_an_encrypted_room(port: Port, human: Human) -> None:
    room = await together(port, human)
    await human.client.room_put_state(room, ENCRYPTION, {"algorithm": "m.megolm.v1.aes-sha2"})
    sent = await port.send(ADA, room, MESSAGE, message("not in clear"), "k")
    assert await human.events(room) == []
    assert [event["event_id"] for event in await human.events(room, ENCRYPTED)] == [sent]


async def test_power_levels_that_forbid_are_a_reason_and_hold_up_nothing(port: Port, human: Human) -> None:
    """What may not be sent is given up with the reason; the next event of the room goes."""
    room = await together(port, human)
    levels = await port.state("ada", room, POWERS)
    assert levels
    await human.client.room_put_state(room, POWERS, levels | {"events": {**levels["events"], "m.reaction": 50}})
    await heard_of(port, POWERS)
    hello = await human.say(room, "hello")
    with port._store.transaction():
        content = {"m.relates_to": {"rel_type": "m.annotation", "event_id": hello, "key": "👍"}}
        port.put(ADA, room, "m.reaction", content, "forbidden")
        port.put(ADA, room, MESSAGE, message("then in words"), "allowed")
    port.outbox.wake()
    assert (await port.outbox.wait("ada", "allowed")).event_id
    refused = port.outbox.outcome("ada", "forbidden")
    assert refused
    assert refused.event_id is None
    assert "M_FORBIDDEN" in (refused.reason or "")
    assert "50" in (refused.reason or "")


async def test_is_told_of_a_kick_and_can_come_back(port: Port, human: Human) -> None:
    room = await together(port, human)
    ada = port.user_id("ada")
    await human.say(room, "hello")
    await take_until(port.inbox, "hello")
    await human.client.room_kick(room, ada, "enough")
    kicked = await change_of(port, "kicked")
    assert (kicked.user, kicked.by, kicked.ours, kicked.reason) == (ada, human.id, True, "enough")
    await human.client.room_invite(room, ada)
    assert (await change_of(port, "invited")).user == ada
    await port.join("ada", room)
    await human.say(room, "welcome back")
    assert [event.content["body"] for event in await take_until(port.inbox, "welcome back")] == ["welcome back"]
    assert await port.send(ADA, room, MESSAGE, message("thank you"), "k")


async def test_is_told_of_a_ban_and_gives_up_what_waits(port: Port, human: Human) -> None:
    room = await together(port, human)
    ada = port.user_id("ada")
    await human.say(room, "hello")
    await take_until(port.inbox, "hello")
    await human.client.room_ban(room, ada, "spam")
    banned = await change_of(port, "banned")
    assert (banned.user, banned.before, banned.reason) == (ada, "join", "spam")
    with pytest.raises(MatrixRefused, match="M_FORBIDDEN"):
        await port.send(ADA, room, MESSAGE, message("but"), "k")
    with pytest.raises(MatrixRefused, match="banned"):
        await port.join("ada", room)


async def test_leaves_and_is_invited_again(port: Port, human: Human) -> None:
    """What is said while it is away is not for it."""
    room = await together(port, human)
    await human.say(room, "hello")
    await take_until(port.inbox, "hello")
    await port.leave("ada", room)
    await human.say(room, "between us")
    await human.client.room_invite(room, port.user_id("ada"))
    assert (await change_of(port, "invited")).by == human.id
    await port.join("ada", room)
    await human.say(room, "again")
    assert [event.content["body"] for event in await take_until(port.inbox, "again")] == ["again"]


async def test_sees_others_come_and_go(port: Port, human: Human, synapse: Synapse) -> None:
    room = await together(port, human)
    await human.say(room, "hello")
    await take_until(port.inbox, "hello")
    async with person(synapse) as other:
        await human.client.room_invite(room, other.id)
        invited = await change_of(port, "invited")
        await other.client.join(room)
        joined = await change_of(port, "joined")
        await other.client.room_leave(room)
        left = await change_of(port, "left")
    assert {one.user for one in (invited, joined, left)} == {other.id}
    assert (joined.before, left.before) == ("invite", "join")
    assert not joined.ours


async def test_follows_a_room_that_was_upgraded(port: Port, human: Human) -> None:
    """The tombstone leads to a room that says whom it follows; there it goes on."""
    room = await together(port, human)
    await human.say(room, "hello")
    await take_until(port.inbox, "hello")
    await request(human, "POST", f"rooms/{room}/upgrade", {"new_version": "11"})
    grave = read_tombstone(await heard_of(port, TOMBSTONE))
    assert grave
    assert (grave.room, grave.via) == (room, "localhost")
    with pytest.raises(MatrixRefused, match="M_FORBIDDEN"):
        await port.send(ADA, room, MESSAGE, message("still here"), "k1")
    await human.client.room_invite(grave.replacement, port.user_id("ada"))
    await port.join("ada", grave.replacement, grave.via)
    assert is_successor(await port.state("ada", grave.replacement, CREATE), room)
    assert not is_successor(await port.state("ada", grave.replacement, CREATE), "!other:localhost")
    assert await port.send(ADA, grave.replacement, MESSAGE, message("here now"), "k2")


@pytest.fixture(scope="module")
def crowded(shared: Shared) -> str:
    """A public room with a thousand members, users of an appservice."""
    synapse, spare = shared
    registration, _ = spare.pop()
    return asyncio.run(gather_crowd(synapse, registration))


async def gather_crowd(synapse: Synapse, registration: Registration) -> str:
    base = f"{synapse.url}/_matrix/client/v3"
    headers = {"Authorization": f"Bearer {registration.as_token}"}
    async with aiohttp.ClientSession(raise_for_status=True, headers=headers) as session:

        async def post(path: str, body: dict[str, Any], **query: str) -> dict[str, Any]:
            async with session.post(f"{base}/{path}", json=body, params=query) as answer:
                return dict(await answer.json())

        host = f"{registration.prefix}host"
        await post("register", {"type": "m.login.application_service", "username": host, "inhibit_login": True})
        room = (await post("createRoom", {"preset": "public_chat"}, user_id=f"@{host}:localhost"))["room_id"]
        free = asyncio.Semaphore(CROWD_AT_ONCE)

        async def come(number: int) -> None:
            async with free:
                name = f"{registration.prefix}{number}"
                await post("register", {"type": "m.login.application_service", "username": name, "inhibit_login": True})
                await post(f"rooms/{room}/join", {}, user_id=f"@{name}:localhost")

        async with asyncio.TaskGroup() as group:
            for number in range(CROWD - 1):
                group.create_task(come(number))
    return str(room)


def kept_since(before: int) -> int:
    """Bytes that are kept beyond those before."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


@pytest.mark.timeout(300)
async def test_a_room_with_a_thousand_members_costs_no_more_than_a_small_one(
    port: Port, human: Human, crowded: str
) -> None:
    """It hears and speaks there as anywhere, and keeps nothing of the members."""
    small = await together(port, human)
    await human.client.join(crowded)

    async def talk(room: str, turn: int) -> None:
        await human.say(room, f"{room} {turn}")
        assert [event.room for event in await take_until(port.inbox, f"{room} {turn}")] == [room]
        assert await port.send(ADA, room, MESSAGE, message("hm"), f"{room} {turn}")

    await talk(small, 0)
    tracemalloc.start()
    try:
        await port.join("ada", crowded)
        await talk(crowded, 0)
        before, _ = tracemalloc.get_traced_memory()
        for turn in range(1, 11):
            await talk(crowded, turn)
        assert before < MAX_GROWTH
        while kept_since(before) >= MAX_GROWTH:  # an answer that is being read may hold them all for a moment
            await asyncio.sleep(0.05)
    finally:
        tracemalloc.stop()
    kept = port._store.rows("SELECT event FROM matrix_inbox")
    assert len(json.dumps(kept)) < MAX_GROWTH
    members = await port.members("ada", crowded)
    assert len(members) >= CROWD + 2
    assert {human.id, port.user_id("ada")} <= set(members)
