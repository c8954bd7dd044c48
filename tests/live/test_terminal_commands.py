"""`mesh tap`, `mesh chat` and `mesh demo` as a person has them: real processes, real pipes, a real pseudo-terminal."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
from asyncio.subprocess import DEVNULL, PIPE
from asyncio.subprocess import Process as Child
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from openai_server import Answer, FakeOpenAI
from process import MESH, client, make_home, mesh, settled, up

from mesh.bus.nats.bus import NatsBus
from nodes.home import Home

SEQUENCES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[=>])|\r")
ENVIRONMENT = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "AMPMESH_LOG": "error"}
INTERRUPTED = 130


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home", {"ruri": "reply_on_name: true\n"})


@asynccontextmanager
async def running(*arguments: str | Path, stdin: int = DEVNULL) -> AsyncIterator[Child]:
    """A `mesh` command that goes on by itself; killed at the end of the block."""
    child = await asyncio.create_subprocess_exec(
        *MESH, *map(str, arguments), stdin=stdin, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT
    )
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def line(stream: asyncio.StreamReader | None) -> str:
    assert stream
    return (await stream.readline()).decode()


async def end(child: Child, sign: int) -> tuple[int, str]:
    """Send a signal and wait; gives the exit code and what it said last on stderr."""
    child.send_signal(sign)
    _, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, errors.decode()


class Terminal:
    """A command on a pseudo-terminal of 100 columns and 30 lines."""

    def __init__(self, master: int, child: Child) -> None:
        self.master, self.child = master, child
        self._raw = b""
        self._from = 0  # in what is shown: behind what was waited for last
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self.master, 65_536)
        except OSError:  # the other side is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.master)
        self._raw += data
        self._more.set()

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    async def sees(self, text: str) -> None:
        """Wait until a text has been shown after the last one that was waited for, however it was broken into lines."""
        while (at := self._shown().find(text, self._from)) < 0:
            self._more.clear()
            await self._more.wait()
        self._from = at + len(text)

    def _shown(self) -> str:
        return " ".join(SEQUENCES.sub("", self._raw.decode("utf-8", "replace")).split())


@asynccontextmanager
async def terminal(*arguments: str | Path) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    child = await asyncio.create_subprocess_exec(
        *MESH, *map(str, arguments), stdin=slave, stdout=slave, stderr=slave, env=ENVIRONMENT
    )
    os.close(slave)
    screen = Terminal(master, child)
    try:
        yield screen
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)


def left_in(folder: Path) -> list[str]:
    """The files in a folder, and the command lines of all processes that mention it."""
    found = [str(path) for path in folder.iterdir()]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended meanwhile
            command = path.read_text("utf-8", "replace")
            found += [command] if str(folder) in command else []
    return found


async def test_tap_prints_json_of_what_was_and_what_is_said(home: Home) -> None:
    async with up(home), client(home) as one:
        before = await one.say("lab", "said before")
        async with running("tap", "--home", home.path, "--json", "--last", "1", "lab") as tap:
            assert json.loads(await line(tap.stdout))["id"] == before["id"]
            await one.say("yappings", "elsewhere")
            said = await one.say("lab", "said now\x1b[2J")
            heard = json.loads(await line(tap.stdout))
            assert await end(tap, signal.SIGINT) == (INTERRUPTED, "")
    assert said.pop("listeners") == 0
    assert {**said, "basin": "lab", "mesh": home.mesh_id()} == heard


async def test_tap_of_all_basins_shows_plain_lines_with_their_basin(home: Home) -> None:
    async with up(home), client(home) as one:
        await one.say("yappings", "first")
        async with running("tap", "--home", home.path, "--last", "5") as tap:
            assert await line(tap.stdout) == "yappings  mara      first  1 hop · 8 acts\n"
            await one.say("lab", "two\nlines \x1b[31m[red]x")
            assert await line(tap.stdout) == "lab       mara      two\n"
            assert await line(tap.stdout) == f"{' ' * 20}lines [red]x  6 hops · 16 acts\n"


async def test_tap_goes_on_when_the_node_is_back_and_tells_what_it_missed(home: Home) -> None:
    async with up(home) as node, client(home) as one:
        await one.say("lab", "first")
        async with running("tap", "--home", home.path, "--last", "1", "lab") as tap:
            assert "first" in await line(tap.stdout)
            node.kill()
            await node.gone()
            assert "the node is away" in await line(tap.stderr)
            async with up(home), client(home) as again:
                await again.say("lab", "second")
                assert "second" in await line(tap.stdout)
                await again.say("lab", "third")
                assert "third" in await line(tap.stdout)
                code, errors = await end(tap, signal.SIGINT)
    assert (code, errors) == (INTERRUPTED, "— the node is back —\n")


async def test_tap_counts_what_does_not_verify(home: Home) -> None:
    async with up(home), client(home) as one:
        await one.say("lab", "first")
        async with running("tap", "--home", home.path, "--last", "1", "lab") as tap:
            assert "first" in await line(tap.stdout)
            node = home.running()
            assert node
            bus = await NatsBus.connect(node.url, nkey_seed=home.signer("node").seed(), manage_stream=False)
            await bus.send(f"e.lab.{home.mesh_id()}.{home.signer('node').public}", b"made up")
            await bus.close()
            assert "1 that did not verify" in await line(tap.stderr)
            assert await end(tap, signal.SIGINT) == (INTERRUPTED, "")


@pytest.mark.parametrize("command", ["tap", "chat"])
async def test_without_a_node_there_is_one_sentence_and_exit_4(home: Home, command: str) -> None:
    done = await asyncio.to_thread(mesh, command, "--home", home.path, stdin="hello\n")
    assert (done.returncode, done.stdout) == (4, "")
    assert re.fullmatch(rf"mesh: .*mesh up --home {home.path}\n", done.stderr)


async def test_chat_through_pipes_says_the_lines_and_prints_the_replies(home: Home) -> None:
    async with up(home):
        lines = "ruri, hello\n\n/who\n/nonsense\n//dotted\n"
        done = await asyncio.to_thread(mesh, "chat", "--home", home.path, "--wait", "1", stdin=lines)
    assert done.returncode == 0
    printed = done.stdout.splitlines()
    assert {"mara      ruri, hello", "mara      /dotted"} < set(printed)
    assert sum(text.startswith("ruri      ") for text in printed) == 1
    assert "you are mara; ems of this node: ruri (echo)" in done.stderr
    assert "there is no /nonsense" in done.stderr
    assert not (home.data / "chat_history").exists()


async def test_chat_tells_who_cannot_answer(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", {"moss": "model: m-1\n"})
    async with up(home) as node:
        assert "no vendor in mesh.yaml provides m-1, the model of moss" in node.said()
        async with terminal("chat", "--home", home.path) as screen:
            await screen.sees("/help — mara")
            screen.type("moss?\r")
            await screen.sees("— moss cannot answer: no vendor provides the model m-1")
            screen.type("/why\r")
            await screen.sees("silent moss: its name was said, but no vendor provides the model m-1")
            screen.type("\x04")
            assert await screen.child.wait() == 0
        done = await asyncio.to_thread(mesh, "chat", "--home", home.path, "--wait", "1", stdin="moss?\n")
        assert done.stderr.count("moss cannot answer") == 1


async def test_piped_chat_ends_when_its_node_does(home: Home) -> None:
    async with up(home) as node, running("chat", "--home", home.path, stdin=PIPE) as chat:
        assert chat.stdin
        chat.stdin.write(b"hello\n")
        assert await line(chat.stdout) == "mara      hello\n"
        node.kill()
        errors = await line(chat.stderr)
        assert await chat.wait() == 4
    assert re.fullmatch(r"mesh: the node .*does not answer.*\n", errors)


async def test_chat_in_a_terminal(home: Home) -> None:
    async with up(home), client(home) as one:
        await one.say("lab", "before you came")
        async with terminal("chat", "--home", home.path, "lab") as screen:
            await screen.sees("before you came")
            await screen.sees("cannot follow instructions")
            await screen.sees("lab · ems: ruri · /help — mara")
            screen.type("never said\x03")
            screen.type("a line\x1b\rand another\r")
            await screen.sees("a line")
            await screen.sees("6 hops · 16 acts")
            screen.type("/who\r")
            await screen.sees("you are mara")
            screen.type("/stop\r")
            await screen.sees("mara (cancel)")
            screen.type("/quit\r")
            assert await screen.child.wait() == 0
        assert [act["text"] for act in await settled(one, "lab")][:2] == ["before you came", "a line\nand another"]
    history = home.data / "chat_history"
    assert history.stat().st_mode & 0o777 == 0o600
    assert "+a line\n+and another\n" in history.read_text("utf-8")


async def test_a_reply_is_shown_while_it_is_written(tmp_path: Path) -> None:
    go_on = asyncio.Event()
    async with FakeOpenAI() as server:
        vendors = {"fake": {"base_url": server.url, "provides": ["slow"]}}
        home = make_home(
            tmp_path / "home", {"ruri": "reply_on_name: true\n"}, {"models": {"default": "slow", "vendors": vendors}}
        )
        server.play(Answer(("Slowly", " growing", " sentence."), delay_s=0.15, hold=go_on, hold_at=1))
        async with up(home), terminal("chat", "--home", home.path) as screen:
            await screen.sees("/help — mara")
            screen.type("ruri?\r")
            await screen.sees("Slowly …")  # only what changed on the screen is drawn
            screen.type("typed meanwhile")
            await screen.sees("typed meanwhile")
            go_on.set()
            await screen.sees("Slowly growing sentence. 0 hops")
            screen.type("\x03/why\r")
            await screen.sees("because its name was said")
            await screen.sees("model slow")
            screen.type("\x04")
            assert await screen.child.wait() == 0


async def test_a_terminal_chat_waits_for_its_node_and_leaves_at_sigterm(home: Home) -> None:
    async with up(home) as node, terminal("chat", "--home", home.path) as screen:
        await screen.sees("/help — mara")
        node.kill()
        await node.gone()
        await screen.sees("the node is away")
        screen.type("anybody?\r")
        await screen.sees("not done: the node is away")
        async with up(home):
            await screen.sees("the node is back")
            screen.type("\r")  # the line is where it was typed
            await screen.sees("anybody? 1 hop · 8 acts")
            screen.child.terminate()
            assert await screen.child.wait() == 0


async def test_the_demo_runs_to_its_silence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = await asyncio.to_thread(mesh, "demo", "--fast")
    assert (done.returncode, done.stderr) == (0, "")
    *talk, silence, init, start, chat = done.stdout.splitlines()
    assert "the budget is spent: the room is silent" in silence
    assert "mesh init" in init
    assert "mesh up" in start
    assert "mesh chat" in chat
    assert talk[1].startswith("you       hello everyone")
    assert len(talk) > 10
    assert left_in(tmp_path) == []


async def test_a_demo_that_nobody_reads_on_ends_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path))
    read, write = os.pipe()
    child = await asyncio.create_subprocess_exec(*MESH, "demo", "--fast", stdout=write, stderr=PIPE, env=ENVIRONMENT)
    os.close(write)
    assert await asyncio.to_thread(os.read, read, 10)
    os.close(read)
    _, errors = await child.communicate()
    assert (child.returncode, errors) == (0, b"")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
async def test_a_demo_that_is_ended_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: signal.Signals
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "TMPDIR", str(tmp_path))
    async with running("demo") as demo:
        await line(demo.stdout)
        assert (await line(demo.stdout)).startswith("you       hello everyone")
        assert await end(demo, sign) == (INTERRUPTED, "")
    assert left_in(tmp_path) == []
