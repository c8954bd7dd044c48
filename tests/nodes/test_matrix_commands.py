"""`mesh matrix` without a homeserver: what is refused, what is read, and servers that lie, hang or are none."""

import asyncio
import json
import os
import pty
import re
import signal
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from process import MESH

from mesh.bridges.matrix.account import Session
from mesh.bridges.matrix.crosssigning import SigningKeys
from mesh.bridges.matrix.registration import new_registration
from mesh.clock import now_ms
from nodes.cli import main
from nodes.commands.matrix import room_of
from nodes.commands.matrix_rooms import gone, seated
from nodes.doctor import Check
from nodes.errors import NodeError
from nodes.home import Home, create_home
from nodes.matrix import homeserver
from nodes.matrix.devices import check_user, users_with_keys
from nodes.matrix.doctor import check_bridge, check_files, check_homeserver, check_limits, check_push, check_rooms
from nodes.matrix.login import FILE, REGISTRATION_FILE, Listening, Login, read_login, write_login
from nodes.matrix.settings import Matrix

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@asynccontextmanager
async def serving(answer: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """A server on a port of its own that answers as told."""

    async def handle(request: web.Request) -> web.StreamResponse:
        said = answer(request)
        return await said if asyncio.iscoroutine(said) else said

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        (host, port), *_ = runner.addresses
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def versions(request: web.Request) -> web.StreamResponse:
    """What every homeserver answers."""
    if request.path == "/_matrix/client/versions":
        return web.json_response({"versions": ["v1.1", "v1.15", "<b>", 7]})
    return web.json_response({"errcode": "M_UNRECOGNIZED", "error": "no"}, status=404)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(tmp_path / "home", "amp", now_ms)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command to its end; gives its exit code and all that it wrote."""

    async def run(*words: str | Path) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["matrix", *map(str, words)])
        written = capsys.readouterr()
        return code, written.out + written.err

    return run


def registered(url: str = "http://127.0.0.1:8008") -> Login:
    return Login(url, None, new_registration("http://127.0.0.1:29318", "example.org"), Listening("127.0.0.1", 29318))


@pytest.mark.parametrize(
    "words",
    [
        ("join", "lounge:example.org", "--basin", "yappings"),
        ("leave", "lounge:example.org"),
        ("invite", "aporia", "lounge:example.org"),
        ("rooms",),
        ("status",),
        ("space",),
        ("logout",),
        ("doctor",),
    ],
)
async def test_without_a_login_every_command_names_the_two_ways(told: Any, home: Home, words: tuple[str, ...]) -> None:
    code, written = await told(*words, "--home", home.path)
    assert code == 1
    assert "mesh matrix register URL --server-name NAME" in written
    assert "mesh matrix login URL USER" in written


async def test_without_a_node_a_command_says_how_to_start_one(told: Any, home: Home) -> None:
    write_login(home.keys, registered())
    code, written = await told("rooms", "--home", home.path)
    assert code == 4
    assert "start it with: mesh up --home" in written


@pytest.mark.parametrize(
    ("given", "room"),
    [
        ("#lounge:example.org", "#lounge:example.org"),
        ("lounge:example.org", "#lounge:example.org"),
        ("!abc:example.org", "!abc:example.org"),
        ("!without-a-server", "!without-a-server"),
        ("https://matrix.to/#/#lounge:example.org", "#lounge:example.org"),
        ("https://matrix.to/#/%23lounge%3Aexample.org?via=example.org", "#lounge:example.org"),
    ],
)
def test_a_room_is_taken_as_people_copy_it(given: str, room: str) -> None:
    assert room_of(given) == room


def said(judge: Callable[[str], str], given: str) -> str:
    """What becomes of a text, or why it is refused."""
    try:
        return judge(given)
    except NodeError as error:
        return f"refused: {error}"


@pytest.mark.parametrize("given", ["", "lounge", "#:", ":", "!", "#lounge:", "@mara:example.org", "a b:c"])
def test_what_is_no_room_is_refused(given: str) -> None:
    assert "is no room; give its alias" in said(room_of, given)


@given(st.text(max_size=60))
def test_whatever_is_given_as_a_room_is_one_or_is_refused_in_a_printable_line(given: str) -> None:
    told = said(room_of, given)
    assert told.isprintable()
    assert told.startswith("refused: ") or (told[0] in "#!" and " " not in told)


@given(st.text(max_size=60) | st.text("htps:/@[]?#.1a", max_size=30).map(lambda text: f"http{text}"))
def test_whatever_is_given_as_an_address_is_one_or_is_refused_in_a_printable_line(given: str) -> None:
    told = said(homeserver.base_url, given)
    assert told.isprintable()
    assert told.startswith("refused: ") or (told.startswith(("http://", "https://")) and "@" not in told.split("/")[2])


async def test_a_server_name_is_resolved_by_its_well_known_file() -> None:
    body: Any = {"m.homeserver": {"base_url": "https://matrix.example.org/"}}

    def answer(request: web.Request) -> web.StreamResponse:
        assert request.path == "/.well-known/matrix/client"
        return web.json_response(body) if body is not None else web.json_response({}, status=404)

    async with serving(answer) as url:
        name = url.removeprefix("http://")
        assert await homeserver.find(name, "http") == "https://matrix.example.org"
        body = None
        assert await homeserver.find(name, "http") == url
        for wrong in ({}, {"m.homeserver": 7}, {"m.homeserver": {"base_url": "file:///etc/passwd"}}, []):
            body = wrong
            with pytest.raises(NodeError, match="does not say where the homeserver is"):
                await homeserver.find(name, "http")
    with pytest.raises(NodeError, match="cannot be reached"):
        await homeserver.find(name, "http")
    with pytest.raises(NodeError, match="is no homeserver"):
        await homeserver.find("what is this?")


async def test_register_writes_two_private_files_and_says_what_to_do(told: Any, home: Home) -> None:
    async with serving(versions) as url:
        words = ("register", url, "--server-name", "example.org", "--owner", "@mara:example.org", "--home", home.path)
        code, written = await told(*words)
        assert code == 0
        login = read_login(home.keys)
        assert login is not None
        assert login.registration is not None
        assert (login.owner, login.listening) == ("@mara:example.org", Listening("127.0.0.1", 29318))
        file = home.path / REGISTRATION_FILE
        assert json.loads(file.read_text("utf-8")) == login.registration.document()
        assert {path.stat().st_mode & 0o777 for path in (file, home.keys / FILE)} == {0o600}
        assert "app_service_config_files" in written
        assert "mesh matrix join lounge:example.org --basin yappings --home " in written
        assert login.registration.as_token not in written
        code, written = await told(*words)
        assert code == 1
        assert "--force" in written
        assert read_login(home.keys) == login
        code, written = await told(*words, "--force", "--prefix", "_two_", "--json")
        assert code == 0
        assert json.loads(written)["bot"] == "@_two__bot:example.org"
        again = read_login(home.keys)
        assert again is not None
        assert again.registration is not None
        assert again.registration.id == "ampmesh-two"
        assert again.registration.as_token != login.registration.as_token
        code, written = await told("logout", "--appservice", "--home", home.path)
        assert code == 0
        assert read_login(home.keys) is None
        assert not file.exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give --server-name NAME"),
        (("--server-name", "not a name"), "is not the name of a homeserver"),
        (("--server-name", "x", "--owner", "mara"), "is no Matrix user"),
        (("--server-name", "x", "--listen", "29318"), "is no HOST:PORT"),
        (("--server-name", "x", "--listen", "0.0.0.0:99999"), "is no HOST:PORT"),
        (("--server-name", "x", "--listen", "0.0.0.0:29318"), "--url says"),
        (("--server-name", "x", "--url", "node:29318"), "is no address"),
        (("--server-name", "x", "--prefix", "a.*"), "--prefix begins and ends with _"),
    ],
)
async def test_register_refuses_what_cannot_work(told: Any, home: Home, words: tuple[str, ...], sentence: str) -> None:
    async with serving(versions) as url:
        code, written = await told("register", url, *words, "--home", home.path)
    assert code == 1
    assert sentence in written
    assert read_login(home.keys) is None
    assert not (home.path / REGISTRATION_FILE).exists()


async def test_register_believes_the_homeserver_about_its_name(told: Any, home: Home) -> None:
    def answer(request: web.Request) -> web.StreamResponse:
        named = request.path == "/_matrix/key/v2/server"
        return web.json_response({"server_name": "example.org"}) if named else versions(request)

    async with serving(answer) as url:
        code, written = await told("register", url, "--server-name", "example.com", "--home", home.path)
        assert code == 1
        assert "is called example.org" in written
        assert (await told("register", url, "--home", home.path))[0] == 0
    login = read_login(home.keys)
    assert login is not None
    assert login.registration is not None
    assert login.registration.server_name == "example.org"


async def test_login_refuses_what_cannot_work_before_anything_is_sent(told: Any, home: Home, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    asked = list[str]()

    def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.json_response({}, status=404)

    here = ("--home", home.path)
    async with serving(answer) as url:
        for words, sentence in (
            (("mara", "--em", "aporia"), "the node itself logs in first"),
            (("mara", "--password-file", secret), "answers, but not as a homeserver does"),
            ((), "whose account?"),
            (("mara", "--owner", "mara"), "is no Matrix user"),
            (("--token-file", secret, "--new-keys"), "need the account's password"),
        ):
            code, written = await told("login", url, *words, *here)
            assert code == 1, written
            assert sentence in written
        assert set(asked) == {"/_matrix/client/versions"}
        write_login(home.keys, registered(url))
        assert "--appservice" in (await told("login", url, "mara", *here))[1]
        assert "there is no em ruth" in (await told("login", url, "mara", "--em", "ruth", *here))[1]
        assert "is not a name" in (await told("login", url, "mara", "--em", "../x", *here))[1]
        assert "no account of its own" in (await told("logout", "--em", "aporia", *here))[1]


async def test_a_secret_comes_from_the_first_line_of_a_file(told: Any, home: Home, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    async with serving(versions) as url:
        words = ("login", url, "mara", "--password-file", secret, "--home", home.path)
        assert "cannot be read" in (await told(*words))[1]
        for data, sentence in ((b"", "nothing on its first line"), (b"\xff\xfe", "is not text")):
            secret.write_bytes(data)
            assert sentence in (await told(*words))[1]
        code, written = await told("login", url, "mara", "--home", home.path)
        assert code == 1
        assert "use --password-file" in written


def only(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


async def test_servers_that_hang_lie_or_are_none_give_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homeserver, "ASK_S", 0.2)

    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    def endless(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"[" * (homeserver.MAX_ANSWER + 1))

    def nonsense(_request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\x00\xff\x1b[31m", status=200)

    def redirect(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"})

    for answer, sentence in (
        (hang, "gives no answer within 0.2 s"),
        (endless, "not as a homeserver does"),
        (nonsense, "not as a homeserver does"),
        (redirect, "not as a homeserver does (status 302)"),
    ):
        async with serving(answer) as url:
            (check,) = await check_homeserver(url, now_ms)
        assert check.state == "fail"
        assert sentence in check.told
        assert check.told.isprintable()
    (check,) = await check_homeserver(url, now_ms)
    assert "cannot be reached" in check.told


async def test_what_speaks_no_http_gives_one_line() -> None:
    async def shout(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x1b]0;hello\x07 220 mail\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        (check,) = await check_homeserver(f"http://{host}:{port}", now_ms)
    assert check.state == "fail"
    assert check.told.isprintable()


@pytest.mark.parametrize(("date", "state"), [("now", "ok"), ("Sat, 21 Nov 2020 11:00:00 GMT", "warn"), ("x", "warn")])
async def test_a_clock_that_is_off_is_told(date: str, state: str) -> None:
    def answer(request: web.Request) -> web.StreamResponse:
        said = versions(request)
        if date != "now":
            said.headers["Date"] = date
        return said

    async with serving(answer) as url:
        checks = await check_homeserver(url, now_ms)
    assert only(checks, "clock").state == state
    assert only(checks, "homeserver").told.endswith("answers: a homeserver, Matrix v1.15")


async def test_a_homeserver_that_hangs_when_asked_to_reach_us_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.matrix.doctor.PING_S", 0.2)

    async def hang(_request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(hang) as url:
        (check,) = await check_push(registered(url), running=True)
    assert check.state == "fail"
    assert "did not say within" in check.told
    async with serving(versions) as url:
        (check,) = await check_push(registered(url), running=True)
    assert check.state == "warn"
    async with serving(lambda _: web.json_response({"errcode": "M_UNKNOWN_TOKEN", "error": "no"}, status=401)) as url:
        (check,) = await check_push(registered(url), running=True)
    assert (check.state, check.told.endswith("shows when it knows the token")) == ("warn", True)
    assert await check_push(Login(url), running=True) == []


def test_files_that_others_can_read_or_that_differ_are_told(home: Home) -> None:
    login = registered()
    assert login.registration is not None
    write_login(home.keys, login)
    file = home.path / REGISTRATION_FILE
    assert only(check_files(home, login), "registration").state == "warn"
    file.write_text(login.registration.text(), "utf-8")
    file.chmod(0o644)
    assert f"chmod 600 {file}" in only(check_files(home, login), "login").told
    file.chmod(0o600)
    assert [check.state for check in check_files(home, login)] == ["ok"]
    file.write_text(json.dumps(login.registration.document() | {"url": "http://elsewhere", "rate_limited": True}))
    check = only(check_files(home, login), "registration")
    assert check.state == "fail"
    assert "in rate_limited, url;" in check.told
    file.write_text("id: ampmesh\n")
    assert "was rewritten" in only(check_files(home, login), "registration").told


def test_accounts_are_told_that_homeservers_slow_them_down() -> None:
    session = Session("https://example.org", "@amp:example.org", "D", "secret")
    assert [check.state for check in check_limits(registered())] == ["ok"]
    assert "@amp:example.org" in only(check_limits(Login("https://example.org", account=session)), "limits").told
    assert [check.state for check in check_limits(registered().with_own("aporia", session))] == ["ok", "warn"]


def seat(em: str, state: str = "joined", reason: str = "") -> dict[str, str]:
    return {"em": em, "user": f"@_mesh_{em}:example.org", "state": state, "reason": reason}


def room(*members: dict[str, str], encrypted: bool = False) -> dict[str, Any]:
    name = "lounge\x1b[31m"
    return {"room": "!a", "name": name, "basin": "yappings", "encrypted": encrypted, "members": list(members)}


def test_what_the_node_says_of_its_rooms_becomes_lines() -> None:
    checks = check_rooms(
        [
            room(
                seat("_bot"), seat("aporia"), seat("ruri", "out", "banned by @eve:example.org: \x1b[2J"), encrypted=True
            ),
            room(seat("_bot"), seat("teapot", "out", "it left")),
        ]
    )
    assert [check.state for check in checks] == ["ok", "warn", "warn"]
    assert checks[0].told.endswith("is yappings, encrypted, with aporia")
    assert "ruri is not in" in checks[1].told
    assert checks[2].told.endswith("with no em")
    assert all(check.told.isprintable() for check in checks)
    assert [check.state for check in check_rooms([])] == ["warn"]


def test_rooms_are_told_by_name_on_80_columns_and_by_id_only_where_need_be() -> None:
    long, ems = (
        "!n01fAA_P34yHSmnAfipVbNdTqouQx201P94o5otHfHM",
        [seat(em) for em in ("_bot", "aletheia", "aporia", "ruri")],
    )
    rooms = [
        room(*ems) | {"room": "!1", "name": "Lounge"},
        room(*ems, encrypted=True) | {"room": "!2", "name": "twice", "basin": "room-494655ab42"},
        room(seat("_bot"), seat("ruri", "out", "kicked by @eve:x")) | {"room": long, "name": "twice"},
        room() | {"room": "!4", "name": "x" * 99 + "\x1b[2J"},
        room(seat("_bot")) | {"room": "!5", "name": "", "basin": "", "links": True},
    ]
    assert seated(rooms) == [
        "ROOM                          BASIN            ENCRYPTED  EMS",
        "Lounge                        yappings         no         aletheia aporia ruri",
        "twice                         room-494655ab42  yes        aletheia aporia ruri",
        "  !2",
        "twice                         yappings         no         nobody",
        f"  {long}",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxx…  yappings         no         nobody",
        "  !4",
        "(no name)                     (for links)      no         nobody",
        "  !5",
    ]
    assert [line.split() for line in gone(rooms)] == [
        ["ROOM", "WHO", "LEFT", "WHY"],
        [long, "ruri", "kicked", "by", "@eve:x"],
    ]
    assert (seated([]), gone(rooms[:2])) == ([], [])
    told = [check.told for check in check_rooms(rooms) if check.name == "room"]
    assert (told[0].startswith("Lounge is yappings"), told[1].startswith("twice (!2) is ")) == (True, True)


def test_what_the_node_says_of_its_bridge_becomes_lines() -> None:
    status = {"ready": True, "waiting_in": 1, "waiting_out": 2, "problems": ["aporia\ncould not"]}
    assert [check.told for check in check_bridge(status)] == [
        "it is ready; 1 events in and 2 out are waiting",
        "aporia could not",
    ]
    assert check_bridge(status | {"ready": False})[0].state == "fail"


USER = "@_mesh_aporia:example.org"


def answered(*, signed: bool = True) -> dict[str, Any]:
    """What a homeserver answers about a user with one device."""
    keys = SigningKeys.new()
    uploaded = keys.upload(USER)
    device: dict[str, Any] = {"user_id": USER, "device_id": "D", "algorithms": [], "keys": {"ed25519:D": "x"}}
    if signed:
        device = keys.sign_device(USER, device)[USER]["D"]
    return {
        "device_keys": {USER: {"D": device}},
        "master_keys": {USER: uploaded["master_key"]},
        "self_signing_keys": {USER: uploaded["self_signing_key"]},
    }


def test_devices_count_as_signed_by_a_valid_chain_of_signatures_alone() -> None:
    good, other = answered(), answered()
    assert check_user(USER, good).state == "ok"
    assert "has not signed D," in check_user(USER, answered(signed=False)).told
    assert check_user(USER, good | {"master_keys": other["master_keys"]}).state == "warn"
    assert check_user(USER, good | {"self_signing_keys": {}}).state == "warn"
    assert check_user(USER, good | {"device_keys": {}}).state == "fail"
    assert check_user("@other:example.org", good).state == "fail"


@given(JSON, JSON, JSON)
def test_any_answer_about_devices_gives_a_line(devices: object, masters: object, own: object) -> None:
    answer = {"device_keys": {USER: devices}, "master_keys": {USER: masters}, "self_signing_keys": {USER: own}}
    check = check_user(USER, answer)
    assert check.state in {"warn", "fail"}
    assert check.told.isprintable()


def test_users_of_encrypted_rooms_are_those_that_need_keys() -> None:
    rooms = [room(seat("aporia"), seat("ruri", "out"), encrypted=True), room(seat("teapot"))]
    assert users_with_keys(rooms) == [USER]


def test_the_settings_of_the_page_are_those_that_hold_if_nothing_is_set(home: Home) -> None:
    """But for the lists, which are empty then."""
    page = (Path(__file__).parent.parent.parent / "docs" / "matrix.md").read_text("utf-8")
    (yaml,) = [
        block for block in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "matrix:" in block
    ]
    (home.path / "mesh.yaml").write_text(f"name: amp\n{yaml}", "utf-8")
    matrix = home.config().matrix
    assert matrix.model_copy(update={"inviters": (), "bots": ()}) == Matrix()
    assert set(matrix.model_fields_set) == set(Matrix.model_fields)


@pytest.mark.parametrize(
    ("typed", "code", "told_last"),
    [(None, 130, ""), (b"\x04", 1, "mesh: no password was given, so nothing was done")],
    ids=["Ctrl-C", "Ctrl-D"],
)
async def test_whoever_gives_no_password_is_let_go_at_once(
    home: Home, typed: bytes | None, code: int, told_last: str
) -> None:
    """And has a terminal again that shows what is typed."""
    master, slave = pty.openpty()
    async with serving(versions) as url:
        words = [*MESH, "matrix", "login", url, "amp", "--home", str(home.path)]
        child = await asyncio.create_subprocess_exec(
            *words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        shown = b""
        while b"Password of amp:" not in shown:
            shown += await asyncio.to_thread(os.read, master, 1000)
        if typed is None:
            child.send_signal(signal.SIGINT)
        else:
            os.write(master, typed)
        assert await child.wait() == code
    assert termios.tcgetattr(slave)[3] & termios.ECHO
    os.close(slave)
    rest = os.read(master, 1000).decode()
    os.close(master)
    assert rest.strip() == told_last
    assert read_login(home.keys) is None


async def test_whoever_logs_in_too_often_is_told_how_long_to_wait(told: Any, home: Home, tmp_path: Path) -> None:
    """Synapse allows few logins from an address, also those that fail, and then one in five minutes."""

    def answer(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/login"):
            return web.json_response({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 312_400}, status=429)
        return versions(request)

    (tmp_path / "word").write_text("secret", "utf-8")
    async with serving(answer) as url:
        words = ("login", url, "amp", "--password-file", tmp_path / "word")
        code, written = await told(*words, "--home", home.path)
    assert (code, written.rstrip().endswith("; try again in 312 s")) == (1, True), written
