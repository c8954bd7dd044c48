"""The commands beside a node that runs: what they ask of it, what they refuse, and a home that moves house."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from process import client, make_home, mesh, settled, up
from pydantic import SecretStr

from mesh.store import Store
from nodes.client import Client
from nodes.doctor import Check, check_vendor
from nodes.errors import ConfigError
from nodes.home import Home

EMS = {"aporia": "reply_on_name: true\n", "ruri": ""}


async def told(*words: str | Path, code: int = 0) -> str:
    """What a command writes."""
    done = await asyncio.to_thread(mesh, *words)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


async def known(*words: str | Path, code: int = 0) -> dict[str, Any]:
    return json.loads(await told(*words, "--json", code=code))


async def ask(one: Client, text: str) -> str:
    """Say something and wait until it is answered; gives the id of what was said."""
    async with one.listening("yappings") as inbox:
        act = await one.say("yappings", text)
        async for heard in inbox:
            if heard.kept and act["id"] in [ref.hex() for ref in heard.act.refs]:
                return act["id"]
    raise AssertionError


async def test_commands_beside_a_running_node(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    here = ("--home", home.path)
    async with up(home) as node, client(home) as one:
        asked = await ask(one, "aporia, are you there?")
        history = await settled(one)
        status = await known("status", *here)
        assert (status["running"], status["pid"], status["ems"]) == (True, node.process.pid, ["aporia", "ruri"])
        assert (status["acts"], status["waiting"], status["missing"], status["refused"]) == (len(history), 0, 0, 0)
        assert "amp is running since " in await told("status", *here)
        assert [em["hosted"] for em in (await known("em", "list", *here))["ems"]] == [True, True]
        why = await known("why", history[-1]["id"], *here)
        assert (why["made"]["em"], why["made"]["rule"], why["made"]["model"]) == (
            "aporia",
            "its name was said",
            "echo",
        )
        assert f"act:{asked}" in {span["source"] for turn in why["made"]["prompt"] for span in turn["spans"]}
        assert "silent    ruri: nothing called for it" in await told("why", asked, *here)
        shown = await known("basin", "show", "yappings", *here)
        assert [act["id"] for act in shown["recent"]] == [act["id"] for act in history]
        doctor = {check["name"]: check["state"] for check in (await known("doctor", *here))["checks"]}
        assert (doctor["node"], doctor["bus"]) == ("ok", "ok")
        assert await node.stop() == 0


async def test_what_would_harm_a_running_node_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    here = ("--home", home.path)
    async with up(home) as node:
        key = home.signer("node").public
        sentence = f"is in use by the node with process id {node.process.pid}"
        assert sentence in await told("export", tmp_path / "amp.mesh", *here, code=3)
        assert sentence in await told("keys", "rotate", *here, code=3)
        assert home.signer("node").public == key
        assert not (tmp_path / "amp.mesh").exists()
        assert await node.stop() == 0
    assert "No node is running" in await told("status", *here, code=4)


async def test_a_mistake_in_mesh_yaml_locks_nobody_out(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    here = ("--home", home.path)
    async with up(home) as node:
        (home.path / "mesh.yaml").write_text("name: [\n", "utf-8")
        said = (await told("say", "yappings", "aporia?", *here)).strip()
        assert (await known("status", *here))["running"]
        checks = (await known("doctor", *here, code=1))["checks"]
        assert [check["state"] for check in checks if check["name"] == "settings"] == ["fail", "warn"]
        assert said in await told("why", said, *here)
        node.kill()
        await node.gone()
        for command in (("say", "yappings", "hello"), ("tap",), ("status",)):
            sentence = f"node with process id {node.process.pid} ended without a word; start it with: mesh up"
            assert sentence in await told(*command, *here, code=4)


async def test_what_is_said_to_nobody_or_is_too_long(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home):
        written = await told("say", "yapings", "hello", "--home", home.path)
        assert "no em of yours listens in yapings; basins where some do: yappings" in written
        assert "nobody" not in await told("say", "yappings", "hello", "--home", home.path)
        for size in (65_537, 3_000_000):
            done = await asyncio.to_thread(mesh, "say", "yappings", "-", "--home", home.path, stdin="x" * size)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == f"mesh: that is {size} characters; at most 65536 fit into one message\n"


async def test_a_lost_data_folder_and_database_are_made_anew(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node, client(home) as one:
        await ask(one, "aporia, are you there?")
        before = await settled(one)
        assert await node.stop() == 0
    for path in home.data.glob("node.db*"):
        path.unlink()
    async with up(home) as node, client(home) as one:
        while len(await one.history("yappings", 1000)) < len(before):
            await asyncio.sleep(0.02)
        assert [act["id"] for act in await settled(one)] == [act["id"] for act in before]
        assert await node.stop() == 0
    home.data.rename(tmp_path / "data")
    async with up(home) as node, client(home) as one:
        assert "what was said before is gone" in node.said()
        await ask(one, "aporia, and now?")


async def test_a_new_em_is_hosted_by_a_running_node(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home), client(home) as one:
        await told("em", "new", "ruth", "--home", home.path)
        while "ruth" not in (await one.status())["ems"]:
            await asyncio.sleep(0.02)
        await ask(one, "ruth, hello?")


def sequences(home: Home) -> dict[str, int]:
    """The last frame of each node in yappings."""
    store = Store(home.database, read_only=True)
    rows = store.rows("SELECT node, sequence FROM marks JOIN origins USING (origin) WHERE basin = 'yappings'")
    store.close()
    return dict(rows)


@pytest.mark.parametrize("end", ["stopped", "killed"])
async def test_a_restored_node_knows_what_was_said_and_goes_on(tmp_path: Path, end: str) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node, client(home) as one:
        asked = await ask(one, "aporia, are you there?")
        before = await settled(one)
        if end == "stopped":
            assert await node.stop() == 0
        else:
            node.kill()
            await node.gone()
    (home.path / "up.log").unlink()
    archive = tmp_path / "amp.mesh"
    await told("export", archive, "--home", home.path)
    marks = sequences(home)
    await told("import", archive, tmp_path / "restored")
    restored = Home(tmp_path / "restored")
    me = restored.signer("node").public
    async with up(restored) as node, client(restored) as one:
        assert await one.history("yappings", 1000) == before
        await ask(one, "aporia, and here?")
        after = await settled(one)
        status = await one.status()
        assert await node.stop() == 0
    assert after[: len(before)] == before
    assert (status["missing"], status["refused"], status["acts"]) == (0, 0, len(after))
    assert sequences(restored)[me] == marks[me] + 2
    assert "answered  aporia" in await told("why", asked, "--home", restored.path)


async def test_a_node_goes_on_with_a_new_key_after_the_old_one_is_revoked(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node, client(home) as one:
        await ask(one, "aporia, are you there?")
        before = await settled(one)
        assert await node.stop() == 0
    await told("keys", "rotate", "--revoke", "--home", home.path)
    async with up(home) as node, client(home) as one:
        await ask(one, "aporia, and now?")
        after = await settled(one)
        assert (await one.status())["refused"] == 0
        assert await node.stop() == 0
    assert after[: len(before)] == before
    assert after[-1]["node"] == home.signer("node").public != before[-1]["node"]


# --- vendors ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def vendor(status: int, **headers: str) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A vendor that answers everything in one way; gives its base_url and what it was asked."""
    seen: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(status=status, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1", seen
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "key", "state", "words"),
    [
        (200, "sk-secret", "ok", "answers and takes the key"),
        (200, None, "ok", "answers"),
        (401, "sk-secret", "fail", "refuses the key"),
        (403, None, "fail", "wants a key"),
        (404, "sk-secret", "warn", "status 404"),
        (500, "sk-secret", "warn", "status 500"),
    ],
)
async def test_the_doctor_asks_vendors(status: int, key: str | None, state: str, words: str) -> None:
    async with vendor(status) as (url, seen):
        check = await check_vendor("one", url, lambda: SecretStr(key) if key else None)
    assert (check.name, check.state) == ("vendor one", state)
    assert words in check.told
    assert "sk-secret" not in check.told
    assert [(request.path, request.headers.get("authorization")) for request in seen] == [
        ("/v1/models", f"Bearer {key}" if key else None)
    ]


async def test_a_key_is_never_sent_on() -> None:
    async with vendor(200) as (other, taken), vendor(302, location=f"{other}/models") as (url, seen):
        check = await check_vendor("one", url, lambda: SecretStr("sk-secret"))
    assert check.state == "warn"
    assert (len(seen), taken) == (1, [])


async def test_vendors_that_cannot_be_asked() -> None:
    def missing() -> SecretStr | None:
        raise ConfigError(["mesh.yaml: models.vendors.one.api_key_env: the environment has no ONE_KEY; set it"])

    async def asked(url: str, key: str | None = None) -> Check:
        return await check_vendor("one", url, lambda: SecretStr(key) if key else None)

    assert "set it" in (await check_vendor("one", "http://127.0.0.1:1", missing)).told
    odd = await asked("http://127.0.0.1:1", "sk-secret\nx")
    assert (odd.state, "sk-secret" in odd.told) == ("fail", False)
    async with vendor(200) as (url, _):
        pass
    gone = await asked(url)
    assert (gone.state, "cannot be reached" in gone.told) == ("fail", True)


async def test_a_vendor_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.doctor.VENDOR_S", 0.2)

    gone = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200")
        while await reader.read(1_000):
            pass
        writer.close()
        await writer.wait_closed()
        gone.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        check = await check_vendor("one", f"http://127.0.0.1:{port}/v1", lambda: None)
        await gone.wait()
    assert check.state == "fail"
    assert "gives no answer within 0.2 s" in check.told


async def test_the_doctor_command_asks_the_vendors_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-secret\n", "utf-8")
    async with vendor(200) as (url, _):
        vendors = {
            "good": {"base_url": url, "api_key_file": str(tmp_path / "key"), "provides": ["m-*"]},
            "keyless": {"base_url": url, "api_key_env": "AMPMESH_NO_SUCH_KEY", "provides": ["n-*"]},
        }
        home = make_home(tmp_path / "home", EMS, {"models": {"vendors": vendors}})
        checks = (await known("doctor", "--home", home.path, code=1))["checks"]
    found = {check["name"]: check for check in checks}
    assert found["vendor good"]["state"] == "ok"
    assert found["vendor keyless"]["state"] == "fail"
    assert "AMPMESH_NO_SUCH_KEY; set it" in found["vendor keyless"]["told"]
    assert "sk-secret" not in json.dumps(checks)
