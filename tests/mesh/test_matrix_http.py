"""The appservice's door and the requests to a homeserver, without a homeserver."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from answering import answering
from homeserver import free_port
from structlog.testing import capture_logs

from mesh.bridges.matrix import account as account_module
from mesh.bridges.matrix import appservice as appservice_module
from mesh.bridges.matrix import inbox as inbox_module
from mesh.bridges.matrix.account import Account, Session
from mesh.bridges.matrix.api import Access, Api
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.content import message
from mesh.bridges.matrix.errors import BadContent, MatrixError, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.port import MESSAGE, REACTION, REDACTION, Speaker
from mesh.bridges.matrix.registration import Registration, new_registration
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.store import Store

NOW = 1_800_000_000_000
PUSH = "/_matrix/app/v1/transactions/1"
EVENT = {
    "event_id": "$1",
    "room_id": "!r:x",
    "sender": "@mara:example.org",
    "type": "m.room.message",
    "content": {"msgtype": "m.text", "body": "hello"},
    "origin_server_ts": NOW,
}


@pytest.fixture
def store(tmp_path: Path) -> Any:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


@pytest.fixture
def registration() -> Registration:
    return new_registration("http://127.0.0.1:1", "example.org")


class Door:
    """A listening appservice, and requests to it."""

    def __init__(self, port: AppService, url: str, session: aiohttp.ClientSession) -> None:
        self.port, self._url, self._session = port, url, session

    async def ask(self, method: str, path: str, data: bytes = b"", **headers: str) -> int:
        async with self._session.request(method, self._url + path, data=data, headers=headers) as answer:
            return answer.status


@pytest.fixture
async def door(store: Store, registration: Registration) -> AsyncIterator[Door]:
    listen = free_port()
    port = AppService("http://127.0.0.1:1", registration, ("127.0.0.1", listen), store, lambda: NOW)
    async with asyncio.TaskGroup() as group, aiohttp.ClientSession() as session:
        task = group.create_task(port.run())
        await port.ready.wait()
        yield Door(port, f"http://127.0.0.1:{listen}", session)
        task.cancel()


def push(*events: object) -> bytes:
    return json.dumps({"events": events}).encode()


async def test_only_the_homeserver_comes_in(door: Door, registration: Registration) -> None:
    """Without the right token nothing is taken, and what is sent is not even parsed."""
    token = registration.hs_token
    for data in (push(EVENT), b"{nonsense"):
        assert await door.ask("PUT", PUSH, data) == 401
        assert await door.ask("PUT", f"{PUSH}?access_token={token}", data) == 401
        assert await door.ask("PUT", f"{PUSH}?access_token={token}", data, Authorization=f"Bearer {token}") == 401
        assert await door.ask("PUT", PUSH, data, Authorization="Bearer wrong") == 403
        assert await door.ask("PUT", PUSH, data, Authorization=f"Bearer {registration.as_token}") == 403
        assert await door.ask("PUT", PUSH, data, Authorization=token) == 403
    assert await door.ask("GET", "/elsewhere") == 401
    assert door.port.inbox.waiting() == 0
    assert await door.ask("PUT", PUSH, push(EVENT), Authorization=f"Bearer {token}") == 200
    assert door.port.inbox.waiting() == 1


async def test_a_push_is_kept_whatever_else_is_in_it(door: Door, registration: Registration) -> None:
    """Nonsense and our own echo are dropped, the rest is kept, and the push is answered so that the queue moves on."""
    ours = EVENT | {"event_id": "$2", "sender": "@_mesh_ada:example.org"}
    alike = EVENT | {"event_id": "$3", "sender": "@_mesh_ada:example.org.evil"}
    data = push(None, 7, {"event_id": "\ud800"}, ours, alike, EVENT | {"content": "no"}, EVENT)
    authorization = f"Bearer {registration.hs_token}"
    assert await door.ask("PUT", PUSH, data, Authorization=authorization) == 200
    assert await door.ask("PUT", PUSH, data, Authorization=authorization) == 200
    assert [(await anext(door.port.inbox)).event_id for _ in range(2)] == ["$3", "$1"]
    assert door.port.inbox.waiting() == 2


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"events": 7}', b"[" * 200_000, b"\xff"])
async def test_what_is_no_push_is_refused(door: Door, registration: Registration, data: bytes) -> None:
    assert await door.ask("PUT", PUSH, data, Authorization=f"Bearer {registration.hs_token}") == 400


async def test_a_full_inbox_lets_the_homeserver_wait(
    door: Door, registration: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_module, "MAX_NEW", 0)
    assert await door.ask("PUT", PUSH, push(EVENT), Authorization=f"Bearer {registration.hs_token}") == 503


async def test_users_and_rooms_that_we_do_not_have(door: Door, registration: Registration) -> None:
    authorization = f"Bearer {registration.hs_token}"
    assert await door.ask("GET", "/_matrix/app/v1/users/@_mesh_no:example.org", Authorization=authorization) == 404
    assert await door.ask("GET", "/_matrix/app/v1/rooms/%23_mesh_no:example.org", Authorization=authorization) == 404
    assert await door.ask("POST", "/_matrix/app/v1/ping", b"{}", Authorization=authorization) == 200


async def test_asks_until_the_homeserver_reaches_it(
    store: Store, registration: Registration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its start it has what waited for it pushed at once, and asks again while the homeserver cannot.

    The log tells that once, and its end.
    """
    monkeypatch.setattr(appservice_module, "NUDGE_S", (0.0, 0.0))
    asked, pinged = list[str](), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        if len(asked) < 3:
            return web.json_response({"errcode": "M_CONNECTION_FAILED"}, status=502)
        pinged.set()
        return web.json_response({"duration_ms": 1})

    async with answering(handler) as url:
        port = AppService(url, registration, ("127.0.0.1", free_port()), store, lambda: NOW)
        async with asyncio.TaskGroup() as group:
            with capture_logs() as logs:
                task = group.create_task(port.run())
                await pinged.wait()
                while not port.reached:
                    await asyncio.sleep(0)
            task.cancel()
    assert asked == ["/_matrix/client/v1/appservice/ampmesh/ping"] * 3
    assert [one["event"] for one in logs] == [
        "nothing is heard from the homeserver; it is tried again",
        "the homeserver reaches us again",
    ]


async def test_a_taken_port_is_said_plainly(door: Door, store: Store, registration: Registration) -> None:
    port = AppService("http://127.0.0.1:1", registration, door.port.door.listen, store, lambda: NOW)
    with pytest.raises(MatrixError, match=r"[0-9]: Address already in use; end what .* or choose another port"):
        await port.run()


def test_secrets_are_not_shown(registration: Registration) -> None:
    shown = repr((registration, Session("https://x", "@a:x", "D", "syt_secret"), Access("https://x", "syt_secret")))
    assert registration.as_token not in shown
    assert registration.hs_token not in shown
    assert "syt_secret" not in shown


def test_a_registration_holds_its_own_users_only(registration: Registration) -> None:
    document = json.loads(registration.text())
    assert document["namespaces"]["users"] == [{"exclusive": True, "regex": r"@_mesh_.*:example\.org"}]
    assert registration.as_token != registration.hs_token != new_registration("u", "example.org").hs_token
    assert registration.owns("@_mesh_ada:example.org")
    assert not registration.owns("@mara:example.org")
    with pytest.raises(ValueError, match="not the name of a homeserver"):
        new_registration("http://x", "ex ample")


def test_a_speaker_that_no_user_can_be_is_refused(store: Store, registration: Registration) -> None:
    port = AppService("http://127.0.0.1:1", registration, ("127.0.0.1", 0), store, lambda: NOW)
    for name in ("Ada", "a:evil.org", "", "a" * 101, "a/b"):
        with pytest.raises(BadContent):
            port.user_id(name)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (REDACTION, {}),
        (REDACTION, {"redacts": 7}),
        (MESSAGE, {"body": "b"}),
        (MESSAGE, message("m") | {"body": 7}),
        (MESSAGE, message("m") | {"m.relates_to": 7}),
        (MESSAGE, message("m") | {"m.relates_to": {"m.in_reply_to": []}}),
        (MESSAGE, message("m") | {"m.relates_to": {"event_id": {}}}),
        (REACTION, {"m.relates_to": "e"}),
    ],
)
def test_what_could_not_be_sent_later_is_refused_at_once(store: Store, kind: str, content: dict[str, Any]) -> None:
    account = Account(Session("http://127.0.0.1:1", "@us:x", "D", "t"), store, lambda: NOW)
    with pytest.raises(BadContent), store.transaction():
        account.put(Speaker("ada", "Ada"), "!r:x", kind, content, "k")
    assert account.outbox.waiting() == 0


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, '{"errcode": "M_UNKNOWN"}', MatrixUnavailable),
        (502, "<html>", MatrixUnavailable),
        (404, "<html>not here</html>", MatrixUnavailable),
        (200, "<html>a captive portal</html>", MatrixUnavailable),
        (200, "[]", MatrixUnavailable),
        (302, "{}", MatrixUnavailable),
        (429, '{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 2000}', MatrixUnavailable),
        (403, '{"errcode": "M_RESOURCE_LIMIT_EXCEEDED"}', MatrixUnavailable),
        (403, '{"errcode": "M_FORBIDDEN", "error": "no"}', MatrixRefused),
        (413, '{"errcode": "M_TOO_LARGE"}', MatrixRefused),
        (413, "<html>", MatrixRefused),
        (400, '{"errcode": "M_BAD_JSON", "error": {"odd": 1}}', MatrixRefused),
        (401, '{"errcode": "M_UNKNOWN_TOKEN"}', MatrixLoggedOut),
    ],
)
async def test_answers_are_told_apart(status: int, body: str, error: type[Exception]) -> None:
    """What heals is tried again, what does not is given up, and a void token is a person's business."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    async with answering(handler) as url:
        api = Api(Access(url, "t"))
        with pytest.raises(error) as raised:
            await api.call("GET", ("client", "v3", "sync"))
        await api.close()
    if isinstance(raised.value, MatrixUnavailable):
        assert raised.value.retry_after_s == (2.0 if status == 429 else None)
        assert raised.value.unsent == ("LIMIT_EXCEEDED" in body)  # else nobody knows what became of it


async def test_a_homeserver_that_hangs_or_is_gone_is_unavailable() -> None:
    forever = asyncio.Event()

    async def handler(_: web.Request) -> web.Response:
        await forever.wait()
        return web.Response()

    async with answering(handler) as url:
        api = Api(Access(url, "t"))
        with pytest.raises(MatrixUnavailable) as hanging:
            await api.call("GET", ("client", "v3", "sync"), timeout_s=0.05)
    with pytest.raises(MatrixUnavailable) as gone:
        await api.call("GET", ("client", "v3", "sync"))
    await api.close()
    assert (hanging.value.unsent, gone.value.unsent) == (False, True)
    assert str(hanging.value) == "the homeserver did not answer: it took too long"
    assert str(gone.value) == "the homeserver is not there: nothing listens at its address"


async def test_identifiers_are_escaped_in_addresses() -> None:
    """A room's id cannot leave its place in the address, whatever is in it."""
    seen = list[str]()

    async def handler(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.json_response({})

    async with answering(handler) as url:
        api = Api(Access(url, "t"))
        await api.call("GET", ("client", "v3", "rooms", "!a/../b?c#d%2F:x", "state"), query={"since": "a&b"})
        await api.close()
    assert seen == ["/_matrix/client/v3/rooms/%21a%2F..%2Fb%3Fc%23d%252F%3Ax/state?since=a%26b"]


class Script:
    """A homeserver that answers syncs from a list, and then lets them wait."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.asked = list(answers), list[dict[str, str]]()
        self.exhausted = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        if "sync" not in request.path:
            return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)
        self.asked.append(dict(request.query))
        if not self.answers:
            self.exhausted.set()
            await asyncio.Event().wait()
        status, body = self.answers.pop(0)
        return web.json_response(body, status=status)


async def listen(store: Store, script: Script) -> Account:
    """Let an account hear all that the script says."""
    async with answering(script.answer) as url:
        account = Account(Session(url, "@us:x", "D", "t"), store, lambda: NOW)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(account.run())
            await script.exhausted.wait()
            task.cancel()
    return account


def timeline(*events: object, room: str = "!r:x", **more: Any) -> dict[str, Any]:
    return {"rooms": {"join": {room: {"timeline": {"events": events} | more}}}}


async def test_failures_of_a_sync_are_waited_out_and_a_lost_place_begins_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of the homeserver and answers of any shape neither end the loop nor move the place."""
    monkeypatch.setattr(account_module, "BACKOFF_S", (0.0, 0.0))
    monkeypatch.setattr(account_module, "EARLY_S", 0.0)
    script = Script(
        (500, {}),
        (500, {}),
        (200, {"next_batch": 7}),
        (200, {"next_batch": "s1"} | timeline(EVENT)),  # the first time: history
        (200, {"next_batch": "s2", "rooms": {"join": {"!r:x": {"timeline": 7, "state": []}, "!q:x": None}}}),
        (200, {"next_batch": "s3", "rooms": []} | timeline(EVENT, EVENT, None, {"type": []})),
        (400, {"errcode": "M_UNKNOWN_POS"}),
        (200, {"next_batch": "s9"} | timeline(EVENT)),
    )
    with capture_logs() as logs:
        account = await listen(store, script)
    assert [one["event"] for one in logs if one["log_level"] == "info"][:3] == [
        "nothing can be heard from Matrix just now; it is tried again",
        "nothing can be heard from Matrix just now; it is tried again",
        "Matrix is heard again",
    ]
    assert [asked.get("since") for asked in script.asked] == [None, None, None, None, "s1", "s2", "s3", None, "s9"]
    assert account.inbox.waiting() == 1
    assert (await anext(account.inbox)).event_id == "$1"


async def test_what_was_said_before_we_joined_is_not_for_us(store: Store) -> None:
    """A room that we joined comes with its history: only what followed our joining is heard."""
    joining = EVENT | {
        "event_id": "$j",
        "type": "m.room.member",
        "sender": "@us:x",
        "state_key": "@us:x",
        "content": {"membership": "join"},
    }
    after = EVENT | {"event_id": "$after"}
    section = timeline(EVENT, joining, after, limited=True, prev_batch="p")
    account = await listen(store, Script((200, {"next_batch": "s1"}), (200, {"next_batch": "s2"} | section)))
    assert account.inbox.waiting() == 1
    assert (await anext(account.inbox)).event_id == "$after"


async def test_an_invitation_is_what_our_homeserver_says_and_not_what_the_inviting_one_made_up(store: Store) -> None:
    """What another server shows of its room comes first and may hold anything; the invitation comes last."""
    member = {"type": "m.room.member", "state_key": "@us:x", "content": {"membership": "invite"}}
    forged, true = member | {"sender": "@owner:x"}, member | {"sender": "@evil:evil"}
    for number, (shown, heard) in enumerate((([forged, true], "@evil:evil"), ([true, forged | {"content": {}}], None))):
        room = f"!{number}:evil"
        invited = {"rooms": {"invite": {room: {"invite_state": {"events": shown}}}}}
        account = await listen(store, Script((200, {"next_batch": f"s{number}"} | invited)))
        assert account.inbox.waiting() == (heard is not None)
        if heard:
            event = await anext(account.inbox)
            assert (event.room, event.sender) == (room, heard)
            account.inbox.handled(event)


async def test_an_invitation_without_an_id_is_heard_once(store: Store) -> None:
    member = {"type": "m.room.member", "sender": "@mara:x", "state_key": "@us:x", "content": {"membership": "invite"}}
    invited = {"rooms": {"invite": {"!r:x": {"invite_state": {"events": [member, {"type": "m.room.name"}]}}}}}
    account = await listen(store, Script((200, {"next_batch": "s1"} | invited)))
    event = await anext(account.inbox)
    assert (event.room, event.sender, event.state_key) == ("!r:x", "@mara:x", "@us:x")
    assert account.inbox.waiting() == 1
