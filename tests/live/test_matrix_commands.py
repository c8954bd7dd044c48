"""`mesh matrix register`, `login`, `logout` and `doctor` against a real Synapse."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from homeserver import INSTALLED, Synapse, free_port
from matrix_rig import Human
from nio import AsyncClient, AsyncClientConfig, MessageDirection, RoomMessageText, RoomPreset
from process import make_home, up

from mesh.bridges.matrix.account import check_token
from mesh.bridges.matrix.api import Access, Api
from mesh.bridges.matrix.crosssigning import SigningKeys
from mesh.bridges.matrix.errors import MatrixLoggedOut
from nodes.cli import main
from nodes.home import Home
from nodes.matrix import homeserver
from nodes.matrix.login import REGISTRATION_FILE, Login, read_login, write_login

pytestmark = pytest.mark.skipif(not INSTALLED, reason="matrix-synapse is not installed: nothing of Matrix is proved")

EMS_THERE = ("@_mesh_aporia:localhost", "@_mesh_ruri:localhost")
EMS = {"aporia": "reply_on_name: true\n", "ruri": "reply_on_name: true\n"}


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command to its end; gives its exit code and all that it wrote."""

    async def run(*words: str | Path) -> tuple[int, str]:
        code = await asyncio.to_thread(main, ["matrix", *map(str, words)])
        written = capsys.readouterr()
        return code, written.out + written.err

    return run


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home", EMS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a homeserver has its files."""
    made = tmp_path / "hs"
    made.mkdir()
    return made


@asynccontextmanager
async def federating(folder: Path) -> AsyncIterator[Synapse]:
    """A homeserver that says what it is called and which version it is, as one does that federates."""
    synapse = Synapse(folder)
    file = folder / "homeserver.yaml"
    settings = json.loads(file.read_text("utf-8"))
    settings["listeners"][0]["resources"][0]["names"] = ["client", "federation"]
    file.write_text(json.dumps(settings), "utf-8")
    async with synapse:
        yield synapse


async def restarted(synapse: Synapse, home: Home) -> None:
    """Do what `register` says: put the registration in the homeserver's settings and restart it."""
    await synapse.restart(app_service_config_files=[str(home.path / REGISTRATION_FILE)])


def login_of(home: Home) -> Login:
    login = read_login(home.keys)
    assert login is not None
    return login


async def examined(told: Any, home: Home) -> dict[str, list[tuple[str, str]]]:
    """The doctor's findings by what they are about."""
    _, written = await told("doctor", "--home", home.path, "--json")
    found: dict[str, list[tuple[str, str]]] = {}
    for check in json.loads(written)["checks"]:
        found.setdefault(check["name"], []).append((check["state"], check["told"]))
    return found


async def test_a_registration_from_nothing_to_being_known(told: Any, home: Home, folder: Path) -> None:
    """Registered, named in Synapse's settings, restarted: the doctor agrees at every step."""
    listen = f"127.0.0.1:{free_port()}"
    async with federating(folder) as synapse:
        code, written = await told("register", synapse.url, "--listen", listen, "--home", home.path)
        assert code == 0, written
        found = await examined(told, home)
        ((state, line),) = found["homeserver"]
        assert (state, "Synapse 1." in line) == ("ok", True)
        assert found["clock"][0][0] == "ok"
        ((state, line),) = found["token"]
        assert (state, "app_service_config_files" in line) == ("fail", True)
        await restarted(synapse, home)
        found = await examined(told, home)
        assert found["token"] == [("ok", "the homeserver knows the node as @_mesh__appservice:localhost")]
        assert found["push"][0][0] == "warn"
        assert "start it with: mesh up" in found["node"][0][1]
        made = login_of(home).registration
        assert made is not None
        write_login(home.keys, replace(login_of(home), registration=replace(made, server_name="elsewhere")))
        ((state, line),) = (await examined(told, home))["token"]
        assert (state, "--server-name localhost" in line) == ("fail", True)
        code, written = await told("register", synapse.url, "--force", "--home", home.path, "--json")
        assert code == 0, written
        ((state, line),) = (await examined(told, home))["token"]
        assert (state, "register --force" in line) == ("fail", True)
    found = await examined(told, home)
    assert set(found) == {"homeserver", "registration", "node", "limits"}
    ((state, line),) = found["homeserver"]
    assert (state, "cannot be reached" in line) == ("fail", True)


async def test_an_account_logs_in_and_out(told: Any, home: Home, folder: Path, tmp_path: Path) -> None:
    """Passwords right and wrong, tokens right and wrong, again, for an em, revoked, and out."""
    word, wrong = tmp_path / "word", tmp_path / "wrong"
    word.write_text("right horse\n", "utf-8")
    wrong.write_text("wrong horse\n", "utf-8")
    here = ("--home", home.path)
    async with Synapse(folder) as synapse:
        for user in ("amp", "ruri"):
            await synapse.register(user, "right horse")
        code, written = await told("login", synapse.url, "amp", "--password-file", wrong, *here)
        assert (code, "does not let amp in with this password" in written) == (1, True)
        code, written = await told("login", synapse.url, "--token-file", wrong, *here)
        assert (code, "does not know this access token" in written) == (1, True)
        assert read_login(home.keys) is None
        login = ("login", synapse.url, "amp", "--password-file", word)
        code, written = await told(*login, "--owner", "@mara:localhost", *here)
        assert (code, "@mara:localhost may invite ems" in written) == (0, True)
        first = login_of(home).account
        assert first is not None
        assert first.token not in written
        code, _ = await told(*login, *here)
        second = login_of(home).account
        assert second is not None
        assert (code, login_of(home).owner, second.user_id) == (0, "@mara:localhost", "@amp:localhost")
        with pytest.raises(MatrixLoggedOut):
            await check_token(synapse.url, first.token)
        token = tmp_path / "token"
        token.write_text(second.token, "utf-8")
        code, written = await told("login", synapse.url, "ruri", "--token-file", token, *here)
        assert (code, "that of @amp:localhost" in written) == (1, True)
        assert (await told("login", synapse.url, "@amp:localhost", "--token-file", token, *here))[0] == 0
        code, written = await told(*login, "--em", "ruri", *here)
        assert (code, "is the account of the node already" in written) == (1, True)
        own = ("login", synapse.url, "ruri", "--password-file", word, "--em", "ruri")
        assert (await told(*own, *here))[0] == 0
        found = await examined(told, home)
        assert found["token"][0][0] == found["token of ruri"][0][0] == "ok"
        assert found["limits"][0][0] == "warn"
        assert "push" not in found
        code, written = await told("logout", *here)
        assert (code, "first: ruri" in written) == (1, True)
        ruri = login_of(home).own["ruri"]
        assert (await told("logout", "--em", "ruri", *here))[0] == 0
        with pytest.raises(MatrixLoggedOut):
            await check_token(synapse.url, ruri.token)
        await check_token(synapse.url, second.token)
        write_login(home.keys, replace(login_of(home), account=replace(second, token="revoked")))
        ((state, line),) = (await examined(told, home))["token"]
        assert (state, f"mesh matrix login {synapse.url} @amp:localhost" in line) == ("fail", True)
        assert (await told("logout", *here))[0] == 0
        assert read_login(home.keys) is None


async def test_a_homeserver_that_is_away_keeps_nobody_from_logging_out(
    told: Any, home: Home, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(homeserver, "ASK_S", 1.0)
    word = tmp_path / "word"
    word.write_text("right horse", "utf-8")
    async with Synapse(folder) as synapse:
        await synapse.register("amp", "right horse")
        login = ("login", synapse.url, "amp", "--password-file", word, "--home", home.path)
        assert (await told(*login))[0] == 0
    assert "cannot be reached" in (await told(*login))[1]
    assert "cannot be reached" in (await told("register", synapse.url, "--home", home.path))[1]
    code, written = await told("logout", "--home", home.path)
    assert (code, "forgotten here, and not logged out" in written) == (0, True)
    assert read_login(home.keys) is None


NAMED = [("Twice", "first"), ("Twice", "second"), (None, "third")]  # rooms, and their aliases
PAGE = Path(__file__).parent.parent.parent / "docs" / "matrix.md"


def typed() -> list[list[str]]:
    """What docs/matrix.md has a person type, as words."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    return [line.split()[1:] for block in blocks for line in block.splitlines()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:nio")  # of nio's own making
async def test_the_ten_minutes_of_the_page(told: Any, home: Home, folder: Path, tmp_path: Path) -> None:
    """Every line of docs/matrix.md in order, from nothing to talking with two ems, restart included."""
    commands = {" ".join(words[:2]) if words[0] == "matrix" else words[0]: words[1:] for words in typed()}
    listen = f"127.0.0.1:{free_port()}"

    async def do(name: str, *more: str | Path) -> str:
        words = [word.replace("http://127.0.0.1:8008", synapse.url) for word in commands[name]]
        code, written = await told(*words, *more, "--home", home.path)
        assert code == 0, written
        return written

    async with Synapse(folder) as synapse, somebody(synapse, "mara") as mara, Sealing(mara, tmp_path) as secret:
        await do("matrix register", "--listen", listen)
        await restarted(synapse, home)
        async with up(home):
            assert "fail" not in await do("matrix doctor")
            room = await mara.room(preset=RoomPreset.public_chat, alias="lounge")
            assert "aporia, ruri joined" in await do("matrix join")
            await mara.say(room, "aporia, one task for today?")
            await answers(mara, room, "@_mesh_aporia:localhost", 1)
            await mara.say(room, "ruri?")
            await answers(mara, room, "@_mesh_ruri:localhost", 1)
            assert re.search(r"#lounge:localhost +yappings +no +aporia ruri\n", await do("matrix rooms"))
            assert "is ready" in await do("matrix status")
            sealed = await secret.room(*EMS_THERE)
            await secret.say(sealed, "aporia, can you read this?")
            await secret.reads(sealed, EMS_THERE[0], 1)
            await secret.say(sealed, "ruri, and you?")
            await secret.reads(sealed, EMS_THERE[1], 1)
            found = await examined(told, home)
            assert {state for checks in found.values() for state, _ in checks} == {"ok"}, found
            assert [user for _, user in found["devices"] if "signed" in user], found
        await mara.say(room, "ruri, still there?")
        await secret.say(sealed, "aporia, still there?")
        async with up(home):
            await answers(mara, room, "@_mesh_ruri:localhost", 2)
            await secret.reads(sealed, EMS_THERE[0], 2)
            code, written = await told("leave", "lounge:localhost", "--home", home.path)
            assert (code, "aporia, ruri left" in written) == (0, True), written


@pytest.mark.filterwarnings("ignore::DeprecationWarning:nio")  # of nio's own making
async def test_who_comes_and_goes(told: Any, home: Home, folder: Path) -> None:
    """Private rooms, single ems, a space, an em that is put out, and a node that was started too early."""
    here = ("--home", home.path)
    register = ("--server-name", "localhost", "--owner", "@mara:localhost", "--listen", f"127.0.0.1:{free_port()}")
    async with Synapse(folder) as synapse, somebody(synapse, "mara") as mara:
        async with up(home):
            assert (await told("register", synapse.url, *register, *here))[0] == 0
            code, written = await told("rooms", *here)
            assert (code, "stop it and start it again: mesh up --home" in written) == (1, True)
        await restarted(synapse, home)
        async with up(home):
            assert "bring a basin into one" in (await told("doctor", *here))[1]
            room = await mara.room()
            code, written = await told("join", room, "--basin", "yappings", *here)
            assert (code, "invite @_mesh__bot:localhost to it in your client" in written) == (1, True)
            code, written = await told("join", "nowhere:localhost", "--basin", "yappings", *here)
            assert (code, len(written.splitlines())) == (1, 1)
            code, written = await told("leave", "nowhere:localhost", *here)
            assert (code, "mesh matrix rooms shows where they do" in written) == (1, True)
            await mara.client.room_invite(room, "@_mesh__bot:localhost")
            code, written = await told("join", room, "--basin", "yappings", "--ems", "aporia,nobody", *here)
            assert (code, "aporia joined" in written, "no em nobody" in written) == (0, True, True), written
            code, written = await told("leave", room, "--em", "nobody", *here)
            assert (code, "there is no em nobody" in written) == (1, True)
            code, written = await told("invite", "ruri", room, *here)
            assert (code, "ruri is in" in written, "@_mesh_ruri:localhost" in written) == (0, True, True)
            await two_of_a_name(told, mara, here)
            code, written = await told("space", "--json", *here)
            assert (code, json.loads(written)["rooms"]) == (0, 1)
            assert (await told("space", "--name", "ours", *here))[0] == 0
            assert "ruri left" in (await told("leave", room, "--em", "ruri", *here))[1]
            await mara.client.room_kick(room, "@_mesh_aporia:localhost", "enough\x1b[2J")
            while "WHO LEFT" not in (written := (await told("rooms", *here))[1]) or "enough" not in written:
                await asyncio.sleep(0.05)
            assert "\x1b" not in written
            states = {line for _, line in (await examined(told, home))["room"]}
            assert any("aporia is not in" in line and "@mara:localhost" in line for line in states)
            assert not any("ruri is not in" in line for line in states)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:nio")  # of nio's own making
async def test_the_account_of_the_page(told: Any, home: Home, folder: Path, tmp_path: Path) -> None:
    """The page's login, with the password from a file: two ems answer through one user."""
    here = ("--home", home.path)
    (words,) = [words[2:] for words in typed() if words[:2] == ["matrix", "login"]]
    (tmp_path / "word").write_text("secret", "utf-8")
    async with Synapse(folder) as synapse, somebody(synapse, "mara") as mara:
        await synapse.register("amp", "secret")
        words = [word.replace("http://127.0.0.1:8008", synapse.url) for word in words]
        assert (await told("login", *words, "--password-file", tmp_path / "word", *here))[0] == 0
        async with up(home):
            room = await mara.room(preset=RoomPreset.public_chat, alias="lounge")
            assert "aporia, ruri joined" in (await told("join", "lounge:localhost", "--basin", "yappings", *here))[1]
            await mara.say(room, "aporia, are you there?")
            await answers(mara, room, "@amp:localhost", 1)
            await mara.say(room, "ruri, and you?")
            await answers(mara, room, "@amp:localhost", 2)
            found = await examined(told, home)
            assert [state for state, _ in found["room"] + found["bridge"] + found["token"]] == ["ok", "ok", "ok"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:nio")  # of nio's own making
async def test_an_account_that_a_client_has_signed_gets_keys_of_the_nodes_own(
    told: Any, home: Home, folder: Path, tmp_path: Path
) -> None:
    here = ("--home", home.path)
    (tmp_path / "word").write_text("secret", "utf-8")
    async with Synapse(folder) as synapse, somebody(synapse, "mara") as mara, Sealing(mara, tmp_path) as secret:
        made = await synapse.register("amp", "secret")
        api = Api(Access(synapse.url, made["access_token"]))
        path = ("client", "v3", "keys", "device_signing", "upload")
        await api.call("POST", path, SigningKeys.new().upload("@amp:localhost"))
        await api.close()
        login = ("login", synapse.url, "amp", "--password-file", tmp_path / "word", *here)
        assert (await told(*login, "--owner", "@mara:localhost"))[0] == 0
        async with up(home):
            await secret.room("@amp:localhost")
            while "devices" not in (found := await examined(told, home)) or "reads nothing" in found["devices"][0][1]:
                await asyncio.sleep(0.05)
            ((state, line),) = found["devices"]
            assert (state, "--new-keys" in line) == ("warn", True)
            code, written = await told(*login, "--new-keys")
            assert (code, "another process uses the keys" in written) == (1, True)
        assert (await told(*login, "--new-keys"))[0] == 0
        async with up(home):
            room = await secret.room("@amp:localhost")
            await secret.say(room, "aporia?")
            await secret.reads(room, "@amp:localhost", 1)
            assert [state for state, _ in (await examined(told, home))["devices"]] == ["ok"]


class Sealing:
    """Another client of a person, which encrypts."""

    def __init__(self, human: Human, folder: Path) -> None:
        self.url, self.user, self.folder = human.client.homeserver, human.id, folder

    async def __aenter__(self) -> Self:
        config = AsyncClientConfig(encryption_enabled=True)
        self.client = AsyncClient(self.url, self.user, store_path=str(self.folder), config=config)
        await self.client.login("secret")
        await self.client.keys_upload()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()

    async def sync(self) -> None:
        await self.client.sync(0, full_state=True)
        if self.client.should_upload_keys:
            await self.client.keys_upload()
        if self.client.should_query_keys:
            await self.client.keys_query()

    async def room(self, *invited: str) -> str:
        """A new encrypted room, once everybody who was invited is there."""
        sealing = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
        room = str((await self.client.room_create(invite=invited, initial_state=[sealing])).room_id)
        while len((await self.client.joined_members(room)).members) <= len(invited):
            await asyncio.sleep(0.02)
        return room

    async def say(self, room: str, text: str) -> None:
        await self.sync()
        content = {"msgtype": "m.text", "body": text}
        await self.client.room_send(room, "m.room.message", content, ignore_unverified_devices=True)

    async def reads(self, room: str, user: str, number: int) -> None:
        """Wait until this client can read so many things that a user said, edits aside."""
        said = list[Any]()
        while len(said) < number:
            await self.sync()
            page = await self.client.room_messages(room, "", direction=MessageDirection.front, limit=500)
            said = [one for one in page.chunk if one.sender == user and isinstance(one, RoomMessageText)]
            said = [one for one in said if "m.new_content" not in one.source["content"]]
        assert len(said) == number


async def two_of_a_name(told: Any, mara: Human, here: tuple[str, Path]) -> None:
    """Rooms are known by their name, or else by their alias; of two with one name neither is taken for the other."""
    rooms = [await mara.room(preset=RoomPreset.public_chat, name=name, alias=alias) for name, alias in NAMED]
    for _, alias in NAMED:
        assert (await told("join", f"{alias}:localhost", "--basin", "tea", "--ems", "aporia", *here))[0] == 0
    listed = (await told("rooms", *here))[1]
    assert (listed.count("Twice"), rooms[0] in listed, rooms[1] in listed, rooms[2] in listed) == (2, True, True, False)
    await mara.room(preset=RoomPreset.public_chat, name="Fourth", alias="fourth")
    assert "ruri is in #fourth:localhost" in (await told("invite", "ruri", "#fourth:localhost", *here))[1]
    assert "ruri left Fourth" in (await told("leave", "Fourth", *here))[1]
    code, written = await told("invite", "ruri", "#third:localhost", *here)
    assert (code, "ruri is in #third:localhost" in written) == (0, True), written
    for words in (("leave", "Twice"), ("invite", "ruri", "Twice")):
        code, written = await told(*words, *here)
        assert (code, "2 rooms are called Twice; give the id of one" in written) == (1, True), written
    assert (await told("leave", rooms[1], *here))[0] == 0
    assert "ruri is in Twice" in (await told("invite", "ruri", "Twice", *here))[1]
    assert "aporia, ruri left Twice" in (await told("leave", "Twice", *here))[1]
    assert "left #third:localhost" in (await told("leave", "#third:localhost", *here))[1]


@asynccontextmanager
async def somebody(synapse: Synapse, name: str) -> AsyncIterator[Human]:
    """A person with an ordinary client."""
    human = Human(synapse, await synapse.register(name, "secret"))
    try:
        yield human
    finally:
        await human.client.close()


async def answers(human: Human, room: str, user: str, number: int) -> None:
    """Wait until a user has said so many things in a room, edits aside."""
    while True:
        events = [event["content"] for event in await human.events(room) if event["sender"] == user]
        said = [one for one in events if "m.new_content" not in one]
        assert len(said) <= number
        if len(said) == number:
            return
        await asyncio.sleep(0.02)
