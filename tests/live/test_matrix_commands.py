"""`mesh matrix register`, `login`, `logout` and `doctor` against a real Synapse."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from homeserver import INSTALLED, Synapse, free_port
from process import make_home

from mesh.bridges.matrix.account import check_token
from mesh.bridges.matrix.errors import MatrixLoggedOut
from nodes.cli import main
from nodes.home import Home
from nodes.matrix import homeserver
from nodes.matrix.login import REGISTRATION_FILE, Login, read_login, write_login

pytestmark = pytest.mark.skipif(not INSTALLED, reason="matrix-synapse is not installed: nothing of Matrix is proved")

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
    file = synapse._folder / "homeserver.yaml"
    settings = json.loads(file.read_text("utf-8"))
    settings["app_service_config_files"] = [str(home.path / REGISTRATION_FILE)]
    file.write_text(json.dumps(settings), "utf-8")
    synapse.stop()
    await synapse.start()


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
        assert found["token"] == [("ok", "the homeserver knows the node as @_mesh_bot:localhost")]
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
