"""What is taken back is nowhere in a home any more, while the node runs, after a crash, and when it is built anew."""

import asyncio
import contextlib
from pathlib import Path

from process import Process, client, make_home, mesh, settled, up

from nodes.client import Client
from nodes.home import Home
from nodes.records import records

EMS = {"aporia": "reply_on_name: true\n"}
WORDS = "quillwort-and-saxifrage"


def holding(home: Home, words: str = WORDS) -> list[str]:
    """The files of a home that hold some words."""
    found: list[str] = []
    for path in home.path.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # the server's temporary files come and go
            if words.encode() in path.read_bytes():
                found.append(str(path.relative_to(home.path)))
    return found


def is_due(home: Home) -> bool:
    """Whether anything is still to be erased."""
    with records(home) as store:
        return store is not None and bool(store.rows("SELECT * FROM erasures"))


async def talk(one: Client) -> str:
    """Say the words, have an em answer with them in its prompt, and edit them; gives the id of what was said."""
    secret = await one.say("yappings", f"I keep {WORDS} here")
    async with one.listening("yappings") as inbox:
        asked = await one.say("yappings", "aporia, are you there?")
        async for heard in inbox:
            if heard.kept and asked["id"] in [ref.hex() for ref in heard.act.refs]:
                break
    await one.say("yappings", f"I keep more {WORDS} here", kind="edit", answers=secret["id"])
    await settled(one)
    return secret["id"]


async def taken_back(home: Home, act: str) -> None:
    """Run `mesh redact`, and wait until nothing is left to erase."""
    done = await asyncio.to_thread(mesh, "redact", act[:20], "--reason", "said too much", "--home", home.path)
    assert done.returncode == 0, done.stderr
    async with client(home) as one:
        await settled(one)
    while is_due(home):
        await asyncio.sleep(0.02)


async def stop(node: Process) -> None:
    assert await node.stop() == 0


async def test_the_words_are_in_no_file_of_the_home(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node:
        async with client(home) as one:
            act = await talk(one)
            reply = (await one.history("yappings"))[-2]["id"]
        assert {"data/node.db", "data/node.db-wal"} & set(holding(home))
        assert any("nats" in path for path in holding(home))
        await taken_back(home, act)
        assert holding(home) == []
        why = await asyncio.to_thread(mesh, "why", reply, "--home", home.path)
        assert "forgotten: something that was in it has been taken back" in why.stdout
        show = await asyncio.to_thread(mesh, "basin", "show", "yappings", "--home", home.path)
        assert "mara: (taken back)" in show.stdout
        again = await asyncio.to_thread(mesh, "redact", act, "--home", home.path)
        assert (again.returncode, "taken back before" in again.stderr) == (1, True)
        await stop(node)
    assert holding(home) == []


async def test_last_is_what_the_person_said_last(tmp_path: Path) -> None:
    """An em has answered since: its words stay."""
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node:
        async with client(home) as one:
            async with one.listening("yappings") as inbox:
                asked = await one.say("yappings", f"aporia, {WORDS}?")
                async for heard in inbox:
                    if heard.kept and asked["id"] in [ref.hex() for ref in heard.act.refs]:
                        break
            await settled(one)
            done = await asyncio.to_thread(mesh, "redact", "last", "--home", home.path)
            assert "Took back what mara said in yappings" in done.stdout
            assert [act["refs"] for act in await one.history("yappings") if act["kind"] == "redact"] == [[asked["id"]]]
        await stop(node)


async def test_a_crash_in_between_delays_it_only(tmp_path: Path) -> None:
    """Killed as soon as the redaction is stored: whatever was done of it by then, the next start does the rest."""
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node:
        async with client(home) as one:
            act = await talk(one)
            await one.redact(act)
        node.kill()
        await node.gone()
    async with up(home) as node:
        async with client(home) as one:
            history = await settled(one)
        assert act not in [entry["id"] for entry in history]
        while is_due(home):
            await asyncio.sleep(0.02)
        assert holding(home) == []
        await stop(node)


async def test_a_node_built_anew_from_its_stream_does_not_know_the_words(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node:
        async with client(home) as one:
            act = await talk(one)
            before = await one.history("yappings")
        await taken_back(home, act)
        await stop(node)
    for path in home.data.glob("node.db*"):
        path.unlink()
    async with up(home) as node:
        async with client(home) as one:
            after = await settled(one)
            status = await one.status()
        assert WORDS not in str(after)
        kept = {entry["id"] for entry in before if WORDS not in entry["text"]}
        assert kept <= {entry["id"] for entry in after}
        assert (status["missing"], status["refused"]) == (0, 0)
        await stop(node)
    archive = tmp_path / "home.ampmesh"
    done = await asyncio.to_thread(mesh, "export", archive, "--home", home.path)
    assert done.returncode == 0, done.stderr
    assert WORDS.encode() not in archive.read_bytes()


async def test_what_nobody_here_said_is_refused_in_a_sentence(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", EMS)
    async with up(home) as node:
        done = await asyncio.to_thread(mesh, "redact", "abcdef", "--home", home.path)
        assert (done.returncode, "mesh: no act abcdef is known here" in done.stderr) == (1, True)
        await stop(node)
