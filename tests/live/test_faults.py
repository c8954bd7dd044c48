"""A person's bad day: every fault ends in a clear sentence, nothing lost, no traceback."""

import asyncio
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from openai_server import Answer, FakeOpenAI
from process import MESH, client, lines, make_home, mesh, replies, settled, until, up

from nodes.prompt import MAX_REPLY

APORIA = {"aporia": "reply_on_name: true\n"}


def clean(text: str) -> bool:
    return "Traceback" not in text and "Exception" not in text


def refused(home: Path, code: int, *words: str) -> str:
    """`mesh up` ends at once with this code and a sentence that holds these words."""
    ended = mesh("up", "--home", home)
    assert ended.returncode == code, ended.stderr
    assert all(word in ended.stderr for word in words), ended.stderr
    assert clean(ended.stderr)
    return ended.stderr


def test_every_mistake_in_mesh_yaml_is_reported_with_line_and_suggestion(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    (home.path / "mesh.yaml").write_text(
        "name: amp\nhumann: mara\nserver:\n  port: many\nbasins:\n  yappings:\n    budget:\n      hopps: 3\n", "utf-8"
    )
    told = refused(home.path, 2, "mesh.yaml:2:", "human", "mesh.yaml:4:", "server.port", "mesh.yaml:8:", "hops")
    assert len(told.splitlines()) == 3


def test_a_missing_home_says_how_to_make_one(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", 3, "there is no mesh home", "mesh init")


async def test_a_second_node_refuses_and_names_the_first(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    async with up(home) as node:
        told = await asyncio.to_thread(refused, home.path, 3, "in use", str(node.process.pid))
        assert "--home" in told
        async with client(home) as one:
            act = await one.say("yappings", "aporia, still there?")
            assert replies(await settled(one), act["id"]) == ["aporia"]


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        home = make_home(tmp_path / "home", APORIA, {"server": {"port": port}})
        refused(home.path, 1, str(port))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    (home.keys / "node.seed").chmod(0o644)
    seed = (home.keys / "node.seed").read_text("ascii").strip()
    assert seed not in refused(home.path, 3, "chmod 600")


def test_a_damaged_key_is_named_and_not_shown(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    seed = (home.keys / "node.seed").read_text("ascii").strip()
    (home.keys / "node.seed").write_text(seed[:-1], "ascii")
    assert seed[:-1] not in refused(home.path, 3, "node.seed")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no messages"),
        (bytes(range(256)) * 64, "not text"),
        (b"\xef\xbb\xbf<mara> hi\r\n<aporia> hello\r\n\r\n", ""),
        (b"<mara> hi\n<aporia> hello there\n" * 1_700_000, ""),
    ],
    ids=["empty", "binary", "bom and crlf", "50 MB"],
)
async def test_any_chat_log_leaves_a_node_that_answers(tmp_path: Path, content: bytes, told: str) -> None:
    home = make_home(tmp_path / "home", APORIA)
    await asyncio.to_thread((home.ems / "aporia" / "chat.txt").write_bytes, content)
    checked = await asyncio.to_thread(mesh, "em", "check", "aporia", "--home", home.path)
    assert clean(checked.stderr)
    assert told in checked.stdout + checked.stderr
    async with up(home) as node, client(home) as one:
        act = await one.say("yappings", "aporia?")
        assert replies(await settled(one), act["id"]) == ["aporia"]
        assert clean(node.said())


async def test_an_em_folder_removed_while_running_silences_that_em_alone(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA | {"ruri": "reply_on_name: true\n"})
    async with up(home) as node, client(home) as one:
        await asyncio.to_thread(shutil.rmtree, home.ems / "aporia")
        async with asyncio.timeout(20):
            await until(lambda: "the em folders changed" in node.said())
        act = await one.say("yappings", "aporia and ruri?")
        assert replies(await settled(one), act["id"]) == ["ruri"]
        assert clean(node.said())


async def test_a_broken_em_folder_stops_nobody_else(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA | {"ruri": "reply_on_nam: true\n"})
    async with up(home) as node, client(home) as one:
        act = await one.say("yappings", "aporia and ruri?")
        assert replies(await settled(one), act["id"]) == ["aporia"]
        assert any("reply_on_name" in str(line) for line in lines(node.said()))


def vendor(server: FakeOpenAI) -> dict[str, object]:
    somewhere = {"base_url": server.url, "provides": ["test-*"], "api_key_env": "TEST_VENDOR_KEY", "timeout_s": 1}
    return {"models": {"default": "test-model", "vendors": {"somewhere": somewhere}}}


def unshared(script: str) -> list[str]:
    """A command in mount and user namespaces of its own, so that a test may mount a small or read-only disk."""
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", script]


CAN_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run(unshared("mount -t tmpfs tmpfs /mnt"), capture_output=True, check=False).returncode == 0
)
needs_mounts = pytest.mark.skipif(
    not CAN_MOUNT, reason="MOUNTING IS not allowed here: full and read-only disks are NOT tested"
)


@needs_mounts
def test_a_read_only_home_is_said_plainly(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    there = home.path
    script = (
        f"mount --bind {there} {there} && mount -o remount,bind,ro {there} && exec {' '.join(MESH)} up --home {there}"
    )
    ended = subprocess.run(unshared(script), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode in (1, 3)
    assert clean(ended.stderr)
    assert str(home.path) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


FILL = """
mount -t tmpfs -o size=48m tmpfs {home} && cp -a {copy}/. {home}/
{mesh} up --home {home} & node=$!
while [ ! -e {home}/data/node.json ]; do :; done
{mesh} say --home {home} yappings 'aporia, before?' || exit 11
cat /dev/zero > {home}/filler 2>/dev/null
i=0; while [ $i -lt 400 ] && kill -0 $node 2>/dev/null; do
  {mesh} say --home {home} yappings "aporia, full $i" >> {out} 2>> {err} || break
  i=$((i+1))
done
rm {home}/filler
kill -TERM $node 2>/dev/null; wait $node; echo "node ended with $?"
{mesh} up --home {home} & node=$!
while [ ! -e {home}/data/node.json ]; do :; done
{mesh} say --home {home} yappings 'aporia, after?' >> {out} || exit 12
while ! {mesh} basin show yappings --home {home} --json --last 1000 | tee {history} | grep -q 'after'; do :; done
kill -TERM $node; wait $node
{mesh} basin show yappings --home {home} --json --last 1000 > {history}
"""


@needs_mounts
def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", APORIA)
    shutil.copytree(home.path, tmp_path / "copy")
    paths = {name: tmp_path / name for name in ("out", "err", "history")}
    script = FILL.format(mesh=" ".join(MESH), home=home.path, copy=tmp_path / "copy", **paths)
    ended = subprocess.run(unshared(script), capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    assert clean(ended.stderr), ended.stderr
    told = ended.stderr + paths["err"].read_text("utf-8")
    assert "full" in told or "room" in told, told
    history = paths["history"].read_text("utf-8")
    for act in paths["out"].read_text("utf-8").split():
        assert act in history


def faults() -> dict[str, Answer]:
    return {
        "hang": Answer(hold=asyncio.Event()),
        "429": Answer(status=429),
        "500": Answer(status=500),
        "half a stream": Answer(end="drop"),
        "invalid json": Answer(body=b"data: {nonsense\n\n"),
        "10 MB": Answer(pieces=["All the same. " * 1000] * 750),
    }


@pytest.mark.parametrize("fault", list(faults()))
async def test_a_model_endpoint_that_fails_costs_at_most_one_reply_and_is_explained(tmp_path: Path, fault: str) -> None:
    async with FakeOpenAI() as server:
        home = make_home(tmp_path / "home", APORIA, vendor(server))
        async with up(home, env={"TEST_VENDOR_KEY": "sk-very-secret"}) as node, client(home) as one:
            server.play(*[faults()[fault]] * 20)
            act = await one.say("yappings", "aporia?")
            history = await settled(one)
            answered = replies(history, act["id"])
            assert answered == (["aporia"] if fault == "10 MB" else [])
            assert all(len(entry["text"]) <= MAX_REPLY for entry in history)
            why = await asyncio.to_thread(mesh, "why", act["id"], "--home", home.path)
            assert "aporia" in why.stdout, why.stderr
            server.mend()
            server.play(Answer(pieces=("I am", " back.")))
            again = await one.say("yappings", "aporia, and now?")
            assert replies(await settled(one), again["id"]) == ["aporia"]
            assert "sk-very-secret" not in node.said() + why.stdout
            assert clean(node.said())
