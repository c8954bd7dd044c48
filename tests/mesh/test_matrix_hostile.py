"""Hostile homeservers, and what strangers have them pass on: it is borne, bounded, and stops nothing else."""

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import vodozemac
from aiohttp import web
from answering import answering
from homeserver import free_port
from strangers import NONSENSE, say
from structlog.testing import capture_logs

from mesh import door as links_door
from mesh.bridges.matrix import device as device_module
from mesh.bridges.matrix import sealed as sealed_module
from mesh.bridges.matrix import strangers as strangers_module
from mesh.bridges.matrix.account import Account, Session, check_token
from mesh.bridges.matrix.api import Access, Api
from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.content import message, prefixed, reaction
from mesh.bridges.matrix.crosssigning import canonical
from mesh.bridges.matrix.crypto import ASKING, CATCH_UPS
from mesh.bridges.matrix.device import Device
from mesh.bridges.matrix.engine import MEGOLM, Engine
from mesh.bridges.matrix.errors import MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import MAX_DEPTH, SEALED, parse_event
from mesh.bridges.matrix.port import REACTION, Speaker
from mesh.bridges.matrix.push import PushDoor
from mesh.bridges.matrix.registration import new_registration
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.bridges.matrix.sealed import Sealed
from mesh.bridges.matrix.vault import Vault
from mesh.store import Store

NOW = 1_800_000_000_000
ROOM, EVE = "!r:x", "@eve:x"
OLM = "m.olm.v1.curve25519-aes-sha2"
HALF = "\ud800"  # a character that no UTF-8 can hold, as JSON may well write it


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": [value]}
    return value


def event(event_id: str, kind: str = "m.room.message", **content: Any) -> dict[str, Any]:
    return {"event_id": event_id, "room_id": ROOM, "sender": "@eve:x", "type": kind, "content": content}


def sync(place: str, *events: Any, **timeline: Any) -> dict[str, Any]:
    return {"next_batch": place, "rooms": {"join": {ROOM: {"timeline": {"events": events} | timeline}}}}


async def heard(store: Store, *answers: dict[str, Any], messages: Any = None) -> list[str]:
    """What an account has heard when a homeserver has given these answers to its syncs; `messages` fills its gaps."""
    left, exhausted = list(answers), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        if request.path.endswith("/messages"):
            return web.json_response(messages)
        if not request.path.endswith("/sync"):
            return web.json_response({"errcode": "M_NOT_FOUND"}, status=404)
        if not left:
            exhausted.set()
            await asyncio.Event().wait()
        return web.json_response(left.pop(0))

    async with answering(handler) as url, asyncio.TaskGroup() as group:
        account = Account(Session(url, "@us:x", "D", "t"), store, lambda: NOW)
        task = group.create_task(account.run())
        await exhausted.wait()
        task.cancel()
    rows = store.rows("SELECT event_id FROM matrix_inbox ORDER BY n")
    return [row[0] for row in rows]


@pytest.mark.parametrize("depth", [MAX_DEPTH // 2 - 1, 150, 200])
async def test_a_deeply_nested_event_does_not_keep_what_follows_it_out(store: Store, depth: int) -> None:
    """An event that nobody can open is kept or dropped, however it is nested; the next one is heard."""
    deep = event("$deep", SEALED, session_id="s", ciphertext="c", a=nested(depth))
    found = await heard(store, sync("s1"), sync("s2", deep, event("$next", msgtype="m.text", body="hello")))
    assert found == (["$deep", "$next"] if depth < MAX_DEPTH // 2 else ["$next"])


@pytest.mark.parametrize("kind", [SEALED, "m.room.message", "m.room.member"])
def test_events_nested_too_deeply_are_none(kind: str) -> None:
    """What is kept can be written and read again wherever it goes, however deep that is within our own calls."""
    assert parse_event(event("$1", kind, a=nested(MAX_DEPTH // 2 - 1)), "account") is not None
    assert parse_event(event("$1", kind, a=nested(MAX_DEPTH // 2)), "account") is None
    before = {"state_key": "", "unsigned": {"prev_content": nested(MAX_DEPTH)}}
    assert parse_event(event("$1", kind) | before, "account") is None
    broad = {str(number): [[]] for number in range(MAX_DEPTH)}
    assert parse_event(event("$1", kind, a=broad), "account") is not None


def test_an_event_that_cannot_be_opened_is_remembered_whatever_is_in_it(store: Store) -> None:
    found = parse_event(event("$1", SEALED, session_id="s", a=nested(MAX_DEPTH // 2 - 1), b=HALF), "account")
    assert found
    sealed = Sealed(store)
    assert sealed.keep(found, "s")
    assert list(sealed.waiting(ROOM, "s")) == [[found]]


async def test_half_characters_from_a_homeserver_stop_nothing(store: Store) -> None:
    """Wherever they stand, in places, gaps or words, the sync goes on, and so it does after a restart."""
    limited = sync("s2", event("$late", msgtype="m.text", body=HALF), limited=True, prev_batch=HALF)
    gap = {"chunk": [event("$gap", msgtype="m.text", body="hello")], "end": f"{HALF}end"}
    found = await heard(store, sync(f"s1{HALF}"), limited, sync("s3", event("$last")), messages=gap)
    assert found == ["$gap", "$late", "$last"]


async def test_a_homeserver_that_asks_for_more_patience_than_there_is_time_is_borne() -> None:
    """However long it wants us to wait, it is one that is to be tried again."""

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=429, text=f'{{"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": {10**400}}}')

    async with answering(handler) as url:
        api = Api(Access(url, "t"))
        with pytest.raises(MatrixUnavailable) as raised:
            await api.call("GET", ("client", "v3", "sync"))
        await api.close()
    assert raised.value.retry_after_s
    assert raised.value.retry_after_s < 10**6


NOBODY = ["..", ".", "", "mara", "@mara", "@:", "@a\x1b[2J:x", "@a:" + "x" * 300, 7]


@pytest.mark.parametrize("user", NOBODY)
async def test_a_homeserver_that_calls_us_what_nobody_is_called_is_none(user: object) -> None:
    """Its name for us becomes a folder, and stands in sentences: only a user's id is taken for one."""

    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"user_id": user, "device_id": "D"})

    async with answering(handler) as url:
        with pytest.raises(MatrixUnavailable, match="names no user"):
            await check_token(url, "t")


@asynccontextmanager
async def listening(pages: Any = lambda _act, _seal: None) -> AsyncGenerator[int]:
    async def push(_events: list[object], _txn: str) -> None:
        """Nothing comes of it."""

    port = free_port()
    async with PushDoor(("127.0.0.1", port), "token", push, lambda _user: False, pages).open():
        yield port


async def test_what_strangers_send_to_the_door_writes_nothing_on_the_terminal(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A request that is none is refused without a line: else whoever reaches the port fills the log, in their words."""
    async with listening() as port:
        for data in NONSENSE:
            assert (await say(port, data)).startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 404 "))
    assert caplog.records == []
    assert "".join(capfd.readouterr()) == ""


async def test_a_page_that_cannot_be_made_is_told_of() -> None:
    """Nobody reads what the HTTP server tells, as strangers' words would be in it; a slip of ours is another thing."""

    def slip(_act: str, _seal: str) -> str:
        raise KeyError("nobody thought of that")

    with capture_logs() as logs:
        async with listening(slip) as port:
            assert (await say(port, b"GET /why/a/b HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 500 ")
    assert [one["log_level"] for one in logs] == ["error"]


async def test_strangers_cannot_hold_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that never asked make room, and those of strangers are not kept; the homeserver's is."""
    monkeypatch.setattr(links_door, "MAX_WAITING", 3)
    ping = b"POST /_matrix/app/v1/ping HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer token\r\nContent-Length: 0\r\n\r\n"
    async with listening() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ping)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(9)]
        assert [await one.read() for one, _ in held[:6]] == [b""] * 6
        writer.write(ping)
        while b"HTTP/1.1 200" not in await reader.readline():  # behind the first answer, which ends without a line
            pass
        for path in (b"/why/a/b", b"/_matrix/app/v1/ping"):
            refused = await say(port, b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert refused.startswith((b"HTTP/1.1 404", b"HTTP/1.1 401"))
        for one in (writer, *(there for _, there in held)):
            one.close()


async def test_a_page_is_kept_nowhere_and_tells_nobody_its_address() -> None:
    async with listening(lambda act, seal: f"{act} {seal}") as port:
        answer = await say(port, b"GET /why/a/b HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"a b"
    for line in (b"Cache-Control: no-store", b"Referrer-Policy: no-referrer", b"X-Content-Type-Options: nosniff"):
        assert line in head


NORMAL = b"\x03\n\x20" + b"k" * 32 + b"\x10\x00\x22\x10" + b"c" * 16 + b"m" * 8  # as of a session that there never was


class Victim:
    """Our device, and strangers who know of it what its homeserver tells everybody."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "keys.db"
        self.open()
        body = self.engine.upload(0, fallback=False)
        assert body
        (fallback,) = body["fallback_keys"].values()
        self.fallback = vodozemac.Curve25519PublicKey.from_base64(fallback["key"])
        self.engine.uploaded(50)

    def open(self) -> None:
        self.engine = Engine("@us:x", "D", self._path, lambda _room, _session: False)
        self.keys = self.engine.device_keys()["keys"]

    def message(self, account: vodozemac.Account, kind: int, body: bytes) -> dict[str, Any]:
        ciphertext = {self.keys["curve25519:D"]: {"type": kind, "body": base64.b64encode(body).decode().rstrip("=")}}
        content = {"algorithm": OLM, "sender_key": account.curve25519_key.to_base64(), "ciphertext": ciphertext}
        return {"type": SEALED, "sender": EVE, "content": content}

    def key(self, account: vodozemac.Account, room: str = ROOM) -> dict[str, Any]:
        """A message that begins a session, and brings a new key of a room."""
        group = vodozemac.GroupSession()
        session = {"session_id": group.session_id, "session_key": group.session_key.to_base64()}
        told = {
            "type": "m.room_key",
            "sender": EVE,
            "recipient": "@us:x",
            "recipient_keys": {"ed25519": self.keys["ed25519:D"]},
            "keys": {"ed25519": account.ed25519_key.to_base64()},
            "content": {"algorithm": MEGOLM, "room_id": room} | session,
        }
        ours = vodozemac.Curve25519PublicKey.from_base64(self.keys["curve25519:D"])
        sealed = account.create_outbound_session(ours, self.fallback).encrypt(json.dumps(told).encode())
        return self.message(account, *sealed.to_parts())

    def held(self) -> tuple[int, int, int]:
        """Devices that have sessions with ours, sessions, and keys of rooms, in memory."""
        olm = self.engine._olm
        return len(olm.session_store._entries), len(list(olm.session_store)), len(list(olm.inbound_group_store))

    def again(self) -> tuple[int, int, int]:
        """What is held after a restart."""
        self.engine.close()
        self.open()
        return self.held()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    one = Victim(tmp_path)
    yield one
    one.engine.close()


def device(account: vodozemac.Account, name: str, user: str = EVE, **more: Any) -> dict[str, Any]:
    keys = {
        f"curve25519:{name}": account.curve25519_key.to_base64(),
        f"ed25519:{name}": account.ed25519_key.to_base64(),
    }
    told = {"algorithms": [], "device_id": name, "user_id": user, "keys": keys}
    signature = account.sign(canonical(told).encode()).to_base64()
    return told | {"signatures": {user: {f"ed25519:{name}": signature}}} | more


def test_messages_of_strangers_that_open_nothing_leave_nothing(victim: Victim) -> None:
    """Whoever sends noise under ever new names fills no table."""
    noise = [victim.message(vodozemac.Account(), 1, NORMAL) for _ in range(20)]
    long = victim.message(vodozemac.Account(), 1, NORMAL)
    long["content"]["sender_key"] *= 1_000
    assert victim.engine.receive([*noise, long]) == []
    assert victim.held() == (0, 0, 0)


def test_devices_that_begin_sessions_with_us_are_so_many(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it only devices of our rooms are listened to; those that had a session keep theirs."""
    monkeypatch.setattr(strangers_module, "MAX_PEERS", 5)
    crowd = [vodozemac.Account() for _ in range(9)]
    assert len(victim.engine.receive([victim.key(one) for one in crowd])) == 5
    assert victim.held() == victim.again() == (5, 5, 5)
    victim.engine.learn({"device_keys": {EVE: {"E": device(crowd[8], "E")}}})
    assert len(victim.engine.receive([victim.key(one) for one in crowd])) == 6


def test_a_device_has_so_many_sessions_with_ours(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest are kept, on disk as well: every one is tried for each of its messages."""
    monkeypatch.setattr(strangers_module, "MAX_SESSIONS", 3)
    eve = vodozemac.Account()
    assert len(victim.engine.receive([victim.key(eve) for _ in range(9)])) == 9
    assert victim.held()[:2] == victim.again()[:2] == (1, 3)


def test_keys_of_rooms_are_so_many(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's newest are kept; strangers' are few in all, and do not keep out those of our rooms."""
    monkeypatch.setattr(strangers_module, "MAX_KEYS", 4)
    monkeypatch.setattr(strangers_module, "STRANGE_KEYS", 6)
    eve, mallory, friend = (vodozemac.Account() for _ in range(3))
    given = victim.engine.receive([victim.key(eve, f"!{n}:evil") for n in range(9)])
    kept = {one.id for one in victim.engine._olm.inbound_group_store}
    assert kept == {session for _, session in given[-4:]}
    victim.engine.receive([victim.key(mallory) for _ in range(9)])
    assert victim.held()[2] == victim.again()[2] == 6
    victim.engine.learn({"device_keys": {EVE: {"F": device(friend, "F")}}})
    victim.engine.receive([victim.key(friend) for _ in range(3)])
    assert victim.held()[2] == 9


def test_a_user_has_so_many_devices(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are known stay; the others get no keys. Names that people give them are not kept, nor what is gone."""
    monkeypatch.setattr(strangers_module, "MAX_DEVICES", 5)
    monkeypatch.setattr(strangers_module, "MAX_DELETED", 10)
    eve = vodozemac.Account()
    many = {name: device(eve, name, unsigned={"device_display_name": "x" * 9}) for name in ("Z1", "Z2", "x" * 300)}
    victim.engine.learn({"device_keys": {EVE: many}})
    more = {f"A{n}": device(eve, f"A{n}") for n in range(30)}
    victim.engine.learn({"device_keys": {EVE: many | more}})
    assert {name for _, name, _ in victim.engine.devices([EVE])} == {"Z1", "Z2", "A0", "A1", "A10"}
    assert "xxxx" not in str([one.display_name for one in victim.engine._olm.device_store])
    for turn in range(20):
        new = {f"N{turn}-{n}": device(eve, f"N{turn}-{n}") for n in range(5)}
        victim.engine.learn({"device_keys": {EVE: new}})
        assert {name for _, name, _ in victim.engine.devices([EVE])} == set(new)
    assert len(list(victim.engine._olm.device_store)) <= 15
    victim.again()
    assert {name for _, name, _ in victim.engine.devices([EVE])} == set(new)
    assert len(list(victim.engine._olm.device_store)) <= 15


class Crowded(Api):
    """A homeserver where everybody has three devices, and none has a key left."""

    def __init__(self) -> None:
        super().__init__(Access("", ""))
        self.claims = list[dict[str, Any]]()
        self.accounts = dict[str, vodozemac.Account]()

    async def call(self, _method: str, path: Any, body: Any = None, **_: Any) -> dict[str, Any]:
        if path[-1] == "claim":
            self.claims.append(body["one_time_keys"])
        if path[-1] != "query":
            return {}
        return {"device_keys": {user: self.devices(user) for user in [*body["device_keys"], "@unasked:x"]}}

    def devices(self, user: str) -> dict[str, Any]:
        account = self.accounts.setdefault(user, vodozemac.Account())
        return {name: device(account, name, user) for name in (f"{n}{user[1]}" for n in range(3))}


async def test_a_room_of_very_many_devices_is_not_spoken_in_and_any_other_little_by_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions are begun with a few devices at a time; where there are too many, nothing is said, and that is said."""
    monkeypatch.setattr(device_module, "CLAIMED", 4)
    monkeypatch.setattr(device_module, "MAX_REACHED", 12)
    api, people = Crowded(), frozenset(f"@{name}:evil" for name in "abcd")
    with closing(Vault(tmp_path / "v", "@us:x")) as vault:
        ours = Device(api, "@us:x", "D", acting=None, vault=vault, wanted=lambda _room, _session: False)
        sealed = await ours.seal(ROOM, people, "m.room.message", {"msgtype": "m.text", "body": "hello"})
        assert "hello" not in str(sealed)
        assert [sum(map(len, one.values())) for one in api.claims] == [4, 4, 4]
        assert ours._engine.devices(["@unasked:x"]) == frozenset()
        with pytest.raises(MatrixRefused, match="15 devices"):
            await ours.seal(ROOM, people | {"@e:evil"}, "m.room.message", {"msgtype": "m.text", "body": "hello"})
        ours.close()


GOES = {"👍🏽": True, "1️⃣": True, "🏴󠁧󠁢󠁥󠁮󠁧󠁿": True, "meet at nine": False, "明天见": False}


@pytest.mark.parametrize(("key", "goes"), GOES.items())
async def test_a_reaction_brings_no_words_into_an_encrypted_room(store: Store, key: str, *, goes: bool) -> None:
    """Reactions go in clear, as clients send them: an em's or a peer's could be sixty characters of anything."""
    sent = list[str]()

    async def handler(request: web.Request) -> web.Response:
        sent.append(await request.text())
        return web.json_response({"event_id": "$1"})

    async with answering(handler) as url, asyncio.TaskGroup() as group:
        account = Account(Session(url, "@us:x", "D", "t"), store, lambda: NOW)
        account.inbox.note_encrypted([ROOM])
        sending = group.create_task(account.outbox.run())
        try:
            await account.send(Speaker("ada", "Ada"), ROOM, REACTION, reaction("$e", key), "k")
            assert goes
        except MatrixRefused:
            assert not goes
        sending.cancel()
        await account._api.close()
    assert len(sent) == goes


def test_no_terminal_acts_on_what_we_send_and_no_name_turns_round() -> None:
    """Some clients are programs in a terminal, which take a single character for an escape; names stay one line."""
    content = message("a\x9b31mred\x1b[2J\x85b")
    assert content["body"] == "a31mred[2Jb"
    said = prefixed(content, "key", "@eve\u202e:x\u2028\x9b1m")
    assert said["body"].startswith("@eve :x 1m: a31m")
    assert said["com.beeper.per_message_profile"]["displayname"] == "@eve :x 1m"


async def test_events_that_nobody_opens_have_few_devices_asked_and_seldom(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes up sealed events does not have a hundred devices ask the homeserver for each of them."""
    port = AppService("http://x", new_registration("http://y", "x"), ("127.0.0.1", 1), store, lambda: NOW)
    asked = list[list[str]]()

    async def catch_up(users: Any) -> None:
        asked.append(list(users))

    async def push(number: int, session: str) -> None:
        one = parse_event(event(f"$e{number}", SEALED, session_id=session, ciphertext="c"), "appservice")
        assert one
        assert await port.crypto.opened([one], catch_up=True) == [one]

    monkeypatch.setattr(port.crypto.fleet, "catch_up", catch_up)
    port.crypto._seats[ROOM] = [f"@_mesh_{number}:x" for number in range(100)]
    for number in range(30):
        await push(number, "the same")
    assert asked == [[f"@_mesh_{number}:x" for number in range(ASKING)]]
    for number in range(30, 90):
        await push(number, f"made up {number}")
    assert len(asked) == CATCH_UPS


def test_events_that_wait_for_one_key_are_read_a_few_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_module, "PAGE", 4)
    sealed = Sealed(store)
    for number in range(9):
        one = parse_event(event(f"$e{number}", SEALED, session_id="s"), "account")
        assert one
        sealed.keep(one, "s")
    read = list[int]()
    for page in sealed.waiting(ROOM, "s"):
        read.append(len(page))
        sealed.forget([one.event_id for one in page])
    assert read == [4, 4, 1]
