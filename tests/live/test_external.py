"""A NATS server of one's own: one setting."""

import asyncio
import json
from pathlib import Path

from homeserver import free_port
from process import client, make_home, mesh, replies, settled, until, up

from mesh.server import find_server

APORIA = {"aporia": "reply_on_name: true\n"}


async def test_an_external_server_needs_one_setting_and_may_be_restarted(tmp_path: Path) -> None:
    ports, store = tmp_path / "ports", tmp_path / "store"
    ports.mkdir()

    async def start(port: int) -> tuple[asyncio.subprocess.Process, int]:
        program = (find_server(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", store, "--ports_file_dir", ports)
        server = await asyncio.create_subprocess_exec(*map(str, program), stderr=asyncio.subprocess.DEVNULL)
        told = ports / f"nats-server_{server.pid}.ports"
        await until(lambda: told.exists() and told.stat().st_size > 0)
        return server, int(json.loads(told.read_text("ascii"))["nats"][0].rpartition(":")[2])

    server, port = await start(free_port())  # not one that a client which dials it again could be given itself
    try:
        home = make_home(tmp_path / "home", APORIA, {"server": {"url": f"nats://127.0.0.1:{port}"}})
        async with up(home) as node, client(home) as one:
            before = await one.say("yappings", "aporia?")
            assert replies(await settled(one), before["id"]) == ["aporia"]
            server.kill()
            await server.wait()
            server, _ = await start(port)
            async with asyncio.timeout(30):
                after = await one.say("yappings", "aporia, again?")
            assert replies(await settled(one), after["id"]) == ["aporia"]
            checked = await asyncio.to_thread(mesh, "doctor", "--home", home.path)
            assert "sync" in checked.stdout
            assert await node.stop() == 0
            assert "Traceback" not in node.said()
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()


def test_an_external_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA, {"server": {"url": "nats://127.0.0.1:1"}})
    ended = mesh("up", "--home", home.path)
    assert ended.returncode == 1
    assert "127.0.0.1:1" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
