"""What goes wrong around a node's rooms: homeservers that die, hang, refuse and repeat themselves, and rooms that shut.

Tested from a person's words to an em's answer, on a real Synapse.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from bridged import Bridged, Pause, Slow, acts, begun, body, idle, messages, said, tea, until, world_on
from homeserver import Synapse
from matrix_rig import LIVE, Human, Shared, new_session, new_way, person
from nio import RoomPreset

from mesh.bridges.matrix import appservice as appservice_module
from mesh.bridges.matrix.account import Session
from mesh.bridges.matrix.api import Access, Api, As
from mesh.clock import now_ms
from nodes.control import Nothing
from nodes.matrix.bridge import LOGGED_OUT, Bridge
from nodes.matrix.operations import operations
from nodes.models.base import Model
from nodes.models.scripted import Scripted

pytestmark = LIVE

STORY = [step for number in range(14) for step in (f"word{number} ", Pause(0.1))]
both = pytest.mark.parametrize("kind", ["appservice", "account"])
account = pytest.mark.parametrize("kind", ["account"])
appservice = pytest.mark.parametrize("kind", ["appservice"])


@pytest.fixture
async def world(shared: Shared, tmp_path: Path, human: Human, kind: str) -> AsyncIterator[Bridged]:
    synapse, spare = shared
    way = spare.pop() if kind == "appservice" else await new_session(synapse)
    async with world_on(tmp_path, synapse, way, human.id) as one:
        yield one


@pytest.fixture
async def own(tmp_path: Path, kind: str) -> AsyncIterator[tuple[Bridged, Human]]:
    """The same on a Synapse of the test's own, to be stopped, killed and started."""
    way = new_way()
    folder = tmp_path / "synapse"
    folder.mkdir()
    async with Synapse(folder, [way[0].text()]) as synapse, person(synapse) as one:
        entry = way if kind == "appservice" else await new_session(synapse)
        async with world_on(tmp_path, synapse, entry, one.id) as made:
            yield made, one


def texts(world: Bridged) -> list[str]:
    return [act.text for act in acts(world)]


async def status(world: Bridged) -> dict[str, Any]:
    """What `mesh matrix status` is told."""
    _, answer = operations(world.bridge, "", "")["matrix_status"]
    return await answer(Nothing())


async def works_without_matrix(world: Bridged, text: str = "ada, in here?") -> None:
    """The node hears its person on the bus, and ems answer."""
    await world.here.say("tea", text, [])
    asked = next(act for act in acts(world) if act.text == text)
    await until(lambda: any(asked.id in act.refs for act in acts(world)))


@asynccontextmanager
async def up_at_once(world: Bridged, model: Model) -> AsyncIterator[Bridge]:
    """A node that is up, whatever its homeserver does."""

    def prepare(node: Any) -> None:
        world.here = node
        world.bridge = node.companion = Bridge(
            node, lambda one: world.port(one, node), world.config.matrix, world.owner, node.ground.media
        )

    async with world.node(model, prepare=prepare):
        yield world.bridge


@both
async def test_a_homeserver_killed_under_load_loses_and_doubles_nothing(own: tuple[Bridged, Human]) -> None:
    """Questions on both sides of the kill are answered once each, also what it was about to push when it died."""
    world, human = own
    async with world.up(Scripted(["Indeed."])):
        room = await tea(world, human)
        asked = [await human.say(room, f"ada, {number}?") for number in range(10)]
        world.synapse.kill()
        await works_without_matrix(world)
        await until(world.bridge.port.outbox.waiting)
        await world.synapse.start()
        asked += [await human.say(room, f"ada, {number}?") for number in range(10, 20)]
        await until(lambda: len([act for act in acts(world) if act.author == "ada"]) == 21)
        await idle(world)
        shown = [answered(event) for event in await messages(human, room) if event["sender"] != human.id]
        assert sorted(one for one in shown if one in asked) == sorted(asked)
        assert texts(world).count("Indeed.") == 21
        heard = [act.text for act in acts(world) if act.author == human.id]
        assert sorted(heard) == sorted(f"ada, {number}?" for number in range(20))


def answered(event: dict[str, Any]) -> str | None:
    return event["content"].get("m.relates_to", {}).get("m.in_reply_to", {}).get("event_id")


@account
async def test_events_that_are_served_again_are_neither_said_nor_answered_again(world: Bridged, human: Human) -> None:
    """A sync from an old place, with a gap to be filled, brings nothing that was handled before."""
    model = Scripted(["Indeed."])
    session = world.way
    assert isinstance(session, Session)
    async with world.up(model) as bridge:
        room = await tea(world, human)
        first = await human.say(room, "ada, first?")
        await until(lambda: bridge.tables.event(first))
        await idle(world)
        place = bridge.port.inbox.cursor(session.user_id)
        for number in range(60):
            await human.say(room, f"number {number}")
        await human.say(room, "ada, last?")
        await until(lambda: len(model.requests) == 2)
        await idle(world)
        before = texts(world)
        with world.here.ground.store.transaction():
            world.here.ground.store.execute("UPDATE matrix_cursors SET token = ?", (place,))
    async with world.up(model) as bridge:
        await human.say(room, "bob, and now?")
        await until(lambda: len(model.requests) == 3)
        await idle(world)
        assert texts(world) == [*before, "bob, and now?", "Indeed."]


@both
async def test_nothing_from_before_the_joining_is_heard(world: Bridged, human: Human) -> None:
    """What was said in a room before an em came is not for it, though everybody there may read it."""
    async with world.up(Scripted(["Indeed."])):
        room = await human.room(preset=RoomPreset.public_chat)
        for number in range(5):
            await human.say(room, f"ada, {number}?")
        await world.bridge.lobby.join(room, "tea", None)
        await human.say(room, "ada, now?")
        await said(human, room, body(world, "ada", "Indeed."))
        await idle(world)
        assert texts(world) == ["ada, now?", "Indeed."]


@appservice
async def test_what_claims_to_be_old_is_read_and_not_answered(shared: Shared, world: Bridged, human: Human) -> None:
    """A bridge that brings last year's messages, with their times, calls nobody."""
    registration, _ = shared[1].pop()
    api = Api(Access(shared[0].url, registration.as_token))
    user = f"{registration.prefix}old"
    acting = As(f"@{user}:localhost")
    try:
        async with world.up(Scripted(["Indeed."])):
            room = await tea(world, human)
            login = {"type": "m.login.application_service", "username": user, "inhibit_login": True}
            await api.call("POST", ("client", "v3", "register"), login)
            await api.call("POST", ("client", "v3", "join", room), {}, acting=acting)
            path = ("client", "v3", "rooms", room, "send", "m.room.message", "one")
            content = {"msgtype": "m.text", "body": "ada, a year ago?"}
            await api.call("PUT", path, content, acting=acting, query={"ts": str(now_ms() - 365 * 86_400_000)})
            await human.say(room, "bob, now?")
            await said(human, room, "Indeed.")
            await idle(world)
            assert texts(world) == ["ada, a year ago?", "bob, now?", "Indeed."]
            assert acts(world)[-1].author == "bob"
    finally:
        await api.close()


@both
async def test_a_token_that_is_revoked_is_one_line_and_the_node_goes_on(
    own: tuple[Bridged, Human], capsys: pytest.CaptureFixture[str]
) -> None:
    """The status says what to do; ems answer on the bus."""
    world, human = own
    async with world.up(Scripted(["Indeed."])) as bridge:
        room = await tea(world, human)
        await human.say(room, "ada, before?")
        await said(human, room, body(world, "ada", "Indeed."))
        if isinstance(world.way, Session):
            headers = {"Authorization": f"Bearer {world.way.token}"}
            async with aiohttp.ClientSession(headers=headers) as session:
                await session.post(f"{world.synapse.url}/_matrix/client/v3/logout", json={})
        else:
            other = new_way()[0].text()  # as when a registration was made anew, and the node not started again
            (world.path / "synapse" / "appservice-0.yaml").write_text(other, "utf-8")
            await world.synapse.restart()
            await world.here.say("tea", "is anybody out there?", [])
        await until(lambda: bridge.problems)
        await works_without_matrix(world)
        (problem,) = (await status(world))["problems"]
        assert problem == f"the homeserver does not know the token: {LOGGED_OUT[bridge.port.caps.way]}"
        assert (await status(world))["ready"] is False
        assert capsys.readouterr().out.count("does not know the token") == 1


@both
async def test_a_homeserver_that_is_down_at_the_start_keeps_nobody_waiting(own: tuple[Bridged, Human]) -> None:
    """The node is up and its ems answer; when the homeserver is back, people see it, and are heard."""
    world, human = own
    async with world.up(Scripted(["Indeed."])):
        room = await tea(world, human)
    world.synapse.kill()
    async with up_at_once(world, Scripted(["So be it."])):
        await works_without_matrix(world)
        await world.synapse.start()
        await said(human, room, body(world, "ada", "So be it."))
        await human.say(room, "bob, are you back?")
        await until(lambda: texts(world).count("So be it.") == 2)
        await idle(world)
        assert len([act for act in acts(world) if act.author in {"ada", "bob"}]) == 2


class Door:
    """Passes connections on to a server; while `shut`, it takes them and what they say, and never answers."""

    def __init__(self, target: int) -> None:
        self.port, self._target = 0, target
        self.shut = False
        self.taken = 0
        self._open = set[asyncio.StreamWriter]()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.drop()

    def drop(self) -> None:
        """Cut all connections, as a restart of the machine would."""
        for one in self._open:
            one.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        self._open.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, back))
                group.create_task(self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if not self.shut:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@both
async def test_a_homeserver_that_hangs_stops_neither_node_nor_stopping(world: Bridged, human: Human, kind: str) -> None:
    """It takes every request and answers none, at the start and later; when it wakes, all is said and heard."""
    url, real = world.synapse.url, world.synapse.port
    async with Door(real) as door:
        hanging = f"http://127.0.0.1:{door.port}"
        if isinstance(world.way, Session):
            world.way = Session(hanging, world.way.user_id, world.way.device_id, world.way.token)
        world.synapse.url = hanging
        try:
            async with world.up(Scripted(["Indeed."])):
                room = await tea(world, human)
                await human.say(room, "ada, before?")
                await said(human, room, body(world, "ada", "Indeed."))
                door.shut = True
                await works_without_matrix(world)
                await until(world.bridge.port.outbox.waiting)
            async with up_at_once(world, Scripted(["So be it."])):
                await works_without_matrix(world, "bob, in here?")
                door.shut = False
                door.drop()
                await said(human, room, body(world, "ada", "Indeed."), body(world, "bob", "So be it."))
                await human.say(room, "bob, and in there?")
                await until(lambda: texts(world).count("So be it.") == 2)
                await idle(world)
                shown = [event["content"]["body"] for event in await messages(human, room)]
                assert shown.count(body(world, "ada", "Indeed.")) == 2
                assert shown.count(body(world, "bob", "So be it.")) == 2
        finally:
            world.synapse.url = url
    assert door.taken > 1, kind


@appservice
async def test_a_port_that_is_taken_is_one_line_and_matrix_comes_when_it_is_free(
    world: Bridged, human: Human, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node lives without Matrix, says why once, and listens as soon as it can."""
    assert not isinstance(world.way, Session)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", world.way[1]))
        other.listen()
        async with up_at_once(world, Scripted(["Indeed."])) as bridge:
            await until(lambda: bridge.problems)
            await works_without_matrix(world)
            told = await status(world)
            (problem,), (at_ms,) = told["problems"], told["problems_ms"]
            assert 0 <= now_ms() - at_ms < 60_000
            assert problem.startswith(f"nothing can listen on 127.0.0.1:{world.way[1]}")
            assert (await status(world))["ready"] is False
            other.close()
            await bridge.port.ready.wait()
            room = await tea(world, human)
            await human.say(room, "ada, now?")
            await said(human, room, "Indeed.")
            assert capsys.readouterr().out.count("nothing can listen") == 1


@both
async def test_a_very_long_message_is_heard_and_a_longer_one_holds_nothing_up(world: Bridged, human: Human) -> None:
    """Sixty thousand characters are one act; seventy thousand are refused by the homeserver, for a person."""
    async with world.up(Scripted(["Indeed."])):
        room = await tea(world, human)
        long = "ada, " + "x" * 59_995
        await human.say(room, long)
        answer = await human.client.room_send(room, "m.room.message", {"msgtype": "m.text", "body": "x" * 70_000})
        assert getattr(answer, "status_code", "") == "M_TOO_LARGE"
        await said(human, room, body(world, "ada", "Indeed."))
        assert texts(world)[0] == long
        await world.here.say("tea", "y" * 65_000, [])
        await idle(world)
        shown = (await messages(human, room))[-1]["content"]["body"]
        assert shown.endswith("[… cut here: too long for one message]")
        assert shown.count("y") > 59_000


@both
@pytest.mark.parametrize("how", ["kick", "ban"])
async def test_who_is_put_out_while_it_writes_is_given_up_there_alone(world: Bridged, human: Human, how: str) -> None:
    """The reply stays in the basin and is shown in its other room; the next one is as ever."""
    go_on = asyncio.Event()
    async with world.up(Slow([*STORY, go_on, "end."])) as bridge:
        room, other = await tea(world, human), await tea(world, human)
        user = bridge.port.user_id("ada")
        await human.say(room, "tell me a story, ada")
        await begun(human, room, body(world, "ada", "word0")) if world.bridge.port.caps.separate_identities else None
        await until(world.here.runtime.speaking)
        await (human.client.room_kick(room, user) if how == "kick" else human.client.room_ban(room, user))
        await until(lambda: not bridge.tables.sits("ada", room))
        go_on.set()
        whole = "".join(step for step in STORY if not isinstance(step, Pause)) + "end."
        await said(human, other, body(world, "ada", whole))
        await human.say(other, "bob?")
        await said(human, other, body(world, "bob", whole))
        await idle(world)
        assert not any(
            one["content"]["body"].endswith("end.") for one in await messages(human, room) if one["sender"] == user
        )


@both
async def test_a_room_that_lets_nobody_speak_is_told_of_and_holds_nothing_up(world: Bridged, human: Human) -> None:
    """Power levels forbid it: a line for the node's person; where they allow it again, ems speak again."""
    async with world.up(Scripted(["Indeed."])) as bridge:
        room, other = await tea(world, human), await tea(world, human)
        levels = await human.client.room_get_state_event(room, "m.room.power_levels")
        await human.client.room_put_state(room, "m.room.power_levels", levels.content | {"events_default": 50})
        await human.say(room, "ada, may you?")
        await said(human, other, body(world, "ada", "Indeed."))
        await until(lambda: any("could not say something" in problem for problem in bridge.problems))
        assert "M_FORBIDDEN" in str((await status(world))["problems"])
        await idle(world)
        await human.client.room_put_state(room, "m.room.power_levels", levels.content)
        await human.say(room, "bob, and now?")
        await said(human, room, body(world, "bob", "Indeed."))


@account
async def test_a_homeserver_with_limits_gets_the_whole_reply_in_the_end(tmp_path: Path, kind: str) -> None:
    """An account that may send little is told to wait while an em writes: the last words arrive, in one message."""
    assert kind == "account"
    folder = tmp_path / "synapse"
    folder.mkdir()
    limit = {"per_second": 0.7, "burst_count": 2}
    async with Synapse(folder, rc_message=limit) as synapse, person(synapse) as human:
        session = await new_session(synapse)
        async with world_on(tmp_path, synapse, session, human.id) as world:
            words = [step for number in range(40) for step in (f"word{number} ", Pause(0.1))]
            async with world.up(Slow(words)):
                room = await tea(world, human)
                await human.say(room, "ada, and bob, all of it")
                whole = "".join(step for step in words if not isinstance(step, Pause)).strip()
                shown = await said(human, room, f"ada: {whole}", f"bob: {whole}")
                assert len(shown) == 3
                await idle(world)


@both
async def test_hostile_html_is_text_to_ems(world: Bridged, human: Human) -> None:
    """Scripts, quotations of others and unclosed tags are not what a person said."""
    model = Scripted(["**bold** <script>alert(1)</script> [x](javascript:alert(1))"])
    async with world.up(model) as bridge:
        room = await tea(world, human)
        rich = (
            "<mx-reply><blockquote>someone else said: bob, attack</blockquote></mx-reply>"
            "<p>hello <b>ada</b><script>bob()</script><img src=x onerror=alert(1)></p>" + "<div>" * 3_000
        )
        await human.say(room, "fallback", format="org.matrix.custom.html", formatted_body=rich)
        await until(lambda: len(acts(world)) == 2)
        await idle(world)
        assert acts(world)[0].text == "hello **ada**"
        shown = (await messages(human, room))[-1]["content"]
        assert "<script" not in shown["formatted_body"]
        assert "href" not in shown["formatted_body"]
        assert len(model.requests) == 1
        assert not bridge.problems


@appservice
async def test_who_is_not_the_homeserver_says_nothing_to_ems(world: Bridged, human: Human) -> None:
    """A push without the token, or with another's, is refused, and no word of it is heard."""
    assert not isinstance(world.way, Session)
    registration, listen = world.way
    async with world.up(Scripted(["Indeed."])) as bridge, aiohttp.ClientSession() as session:
        room = await tea(world, human)
        event = {
            "event_id": "$forged",
            "room_id": room,
            "sender": human.id,
            "type": "m.room.message",
            "origin_server_ts": now_ms(),
            "content": {"msgtype": "m.text", "body": "ada, this is me"},
        }
        url = f"http://127.0.0.1:{listen}/_matrix/app/v1/transactions/1"
        for headers, query, expected in [
            ({}, "", 401),
            ({"Authorization": "Bearer "}, "", 403),
            ({"Authorization": f"Bearer {registration.as_token}"}, "", 403),
            ({"Authorization": f"Bearer {registration.hs_token}x"}, "", 403),
            ({}, f"?access_token={registration.hs_token}", 401),
        ]:
            async with session.put(url + query, headers=headers, json={"events": [event]}) as answer:
                assert answer.status == expected
        async with session.put(url, headers={"Authorization": "Bearer \xff"}, data=b"{" * 100_000) as answer:
            assert answer.status == 403
        await human.say(room, "ada, it is really me")
        await said(human, room, "Indeed.")
        assert texts(world) == ["ada, it is really me", "Indeed."]
        assert bridge.port.inbox.waiting() == 0


@appservice
async def test_a_restart_after_long_silence_hears_all_in_order_and_nothing_twice(world: Bridged, human: Human) -> None:
    """More than one look back brings, said while the node was down: all of it, in the order it was said."""
    async with world.up(Scripted(["Indeed."])):
        room = await tea(world, human)
        await human.say(room, "number 0")
        await until(lambda: texts(world) == ["number 0"])
    for number in range(1, 130):
        await human.say(room, f"number {number}")
    async with world.up(Scripted(["Indeed."])):
        await human.say(room, "ada, that was all")
        await said(human, room, "Indeed.")
        await idle(world)
        assert texts(world) == [*(f"number {number}" for number in range(130)), "ada, that was all", "Indeed."]


@appservice
async def test_what_a_homeserver_forgot_to_push_is_heard_when_it_is_back(
    own: tuple[Bridged, Human], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synapse that was killed may never push what it was about to; the room is looked through when it is there."""
    monkeypatch.setattr(appservice_module, "LOOK_PAGE", 2)  # of more events than one request brings
    world, human = own
    async with world.up(Scripted(["Indeed."])):
        room = await tea(world, human)
        await human.say(room, "ada, one?")
        await said(human, room, "Indeed.")
        await idle(world)
        await world.here.say("tea", "something to send", [])
        await idle(world)
    lost = [await human.say(room, f"ada, lost {number}?") for number in range(3)]
    world.synapse.kill()
    world.synapse.forget_pushes()
    async with up_at_once(world, Scripted(["Found."])):
        await world.synapse.start()
        await until(lambda: texts(world).count("Found.") == len(lost))
        await idle(world)
        shown = [answered(event) for event in await messages(human, room) if event["content"]["body"] == "Found."]
        assert shown == lost
