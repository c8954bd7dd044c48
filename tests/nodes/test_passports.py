"""Ems that are forked, lent, taken and given back: with the commands, on two homes, and against hostile files."""

import io
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import MESH_ID, NOW, World

from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from mesh.store import Store
from nodes.archive import EM_FORMAT, File, Header, Writer
from nodes.cli import main
from nodes.em import load_em
from nodes.home import Home, create_home
from nodes.lending import open_parcel
from nodes.models.scripted import Scripted
from nodes.passports import PASSPORT, WARNED_MS, Said, contents, lineage, stamp, standing
from nodes.peers.tables import PEERS_SCHEMA
from protocol.passport import write_lineage

DAY_MS = 86_400_000


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Home, Home]:
    """Two homes of two persons, who know each other by name."""
    monkeypatch.chdir(tmp_path)
    ada, bob = (create_home(tmp_path / name, name, now_ms) for name in ("ada", "bob"))
    for one, other, name in ((ada, bob, "bob"), (bob, ada, "ada")):
        store = Store(one.database, {"peers": PEERS_SCHEMA})
        with store.transaction():
            store.execute("INSERT INTO peers VALUES (?, ?, '[]', '', '', NULL)", (other.mesh_id(), name))
        store.close()
    return ada, bob


class Told:
    """What `mesh em` said last."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, home: Home, *words: str | Path, code: int = 0) -> str:
        done = main(["em", *map(str, words), "--home", str(home.path)])
        told = self._capsys.readouterr()
        assert done == code, told.out + told.err
        return told.out + told.err

    def json(self, home: Home, *words: str | Path) -> dict[str, Any]:
        return json.loads(self(home, *words, "--json"))


@pytest.fixture
def em(capsys: pytest.CaptureFixture[str]) -> Told:
    return Told(capsys)


def test_an_em_is_lent_changed_given_back_and_taken_beside_what_it_was(homes: tuple[Home, Home], em: Told) -> None:
    ada, bob = homes
    lent = em(ada, "lend", "ruri", "bob", "--until", "30d")
    assert "ruri.em holds ruri, lent to bob (" in lent
    before = contents(load_em(ada.ems / "ruri"))
    shutil.rmtree(bob.ems / "ruri")
    assert "person decides" in em(bob, "take", "ruri.em", code=1)
    taken = em(bob, "take", "ruri.em", "--yes")
    assert "ruri: lent by ada (" in taken
    assert contents(load_em(bob.ems / "ruri")) == before
    shown = em.json(bob, "show", "ruri")
    assert (shown["lent"]["by"], shown["changed"], len(shown["lineage"])) == (ada.mesh_id(), False, 1)
    assert "lent by ada" in em(bob, "list")
    assert "only whose it is" in em(bob, "lend", "ruri", "other.em", code=1)
    assert "there is no peer 'bobb'" in em(ada, "lend", "ruri", "bobb", code=1)
    assert "ask whether you may" in em(bob, "fork", "ruri", "mine", code=1)
    with (bob.ems / "ruri" / "chat.txt").open("a", encoding="utf-8") as chat:
        chat.write("<ruri> I have been away\n")
    assert em.json(bob, "show", "ruri")["changed"] is True
    assert "Give it to ada (" in em(bob, "return", "ruri", "back.em")
    assert not (bob.ems / "ruri").exists()
    assert "there is no em 'ruri'" in em(bob, "return", "ruri", "again.em", code=1)
    assert "here      " + str(ada.ems / "ruri-2") in em(ada, "take", "back.em", "--yes")
    assert contents(load_em(ada.ems / "ruri")) == before
    assert b"<ruri-2> I have been away" in (ada.ems / "ruri-2" / "chat.txt").read_bytes()
    events = [one["event"] for one in em.json(ada, "show", "ruri-2")["lineage"]]
    assert events == ["fork", "return", "lend"]


def test_a_fork_has_its_own_name_and_remembers_whose_child_it_is(homes: tuple[Home, Home], em: Told) -> None:
    ada, _ = homes
    em(ada, "fork", "ruri", "lapis")
    em(ada, "fork", "lapis", "lazuli")
    voice = load_em(ada.ems / "lazuli").voice
    assert any(voice.is_own(line) for scene in (*voice.chat, *voice.memory) for line in scene.lines)
    line = lineage(ada.ems / "lazuli")
    assert [(one.passport.name, one.passport.event) for one in line] == [
        ("lazuli", "fork"),
        ("lapis", "fork"),
        ("ruri", "made"),
    ]
    assert em.json(ada, "show", "lazuli")["changed"] is False
    assert "lapis: forked by you (" in em(ada, "show", "lazuli")
    assert "is there already" in em(ada, "fork", "ruri", "lapis", code=1)
    assert "is no name for an em" in em(ada, "fork", "ruri", "../lapis", code=1)
    (ada.ems / "lapis" / PASSPORT).write_bytes(b"scribble")
    assert "does not count" in em(ada, "show", "lapis")


def test_an_em_for_one_is_not_for_another_and_a_loan_ends(homes: tuple[Home, Home], em: Told, tmp_path: Path) -> None:
    ada, bob = homes
    cyd = create_home(tmp_path / "cyd", "cyd", now_ms)
    em(ada, "lend", "teapot", "bob")
    assert "is for the mesh" in em(cyd, "take", "teapot.em", "--as", "pot", "--yes", code=1)
    assert "you lent" in em(ada, "lend", "teapot", "all.em") + em(ada, "take", "all.em", "--yes", code=1)
    assert "is there already" in em(bob, "take", "teapot.em", "--as", "ruri", "--yes", code=1)
    em(bob, "take", "teapot.em", "--as", "pot", "--yes")
    made = load_em(ada.ems / "teapot")
    stamped = stamp(ada, lambda: now_ms() - 9, Said("teapot", contents(made), "lend", until_ms=now_ms() - 1))
    write(tmp_path / "late.em", {PASSPORT: write_lineage([stamped]), **contents(made)})
    assert "has ended" in em(cyd, "take", "late.em", "--yes", code=1)
    back = stamp(bob, now_ms, Said("teapot", contents(made), "return"))
    write(tmp_path / "never.em", {PASSPORT: write_lineage([back]), **contents(made)})
    assert "was not lent by this mesh" in em(ada, "take", "never.em", "--yes", code=1)
    (lent,) = lineage(bob.ems / "pot")
    back = stamp(cyd, now_ms, Said("teapot", contents(made), "return", [lent]))
    write(tmp_path / "found.em", {PASSPORT: write_lineage([back, lent]), **contents(made)})
    assert "was not lent to the mesh" in em(ada, "take", "found.em", "--yes", code=1)


def test_secrets_are_not_lent(homes: tuple[Home, Home], em: Told) -> None:
    ada, _ = homes
    (ada.ems / "ruri" / ".env").write_text("KEY=1", "utf-8")
    (ada.ems / "ruri" / "notes.txt").write_text("private", "utf-8")
    em(ada, "lend", "ruri", "ruri.em")
    assert set(open_parcel(Path("ruri.em")).files) == {"config.yaml", "chat.txt", "ruri.chr/logbook.txt"}
    (ada.ems / "ruri" / "config.yaml").write_text("max_tokens: 90\ndiscord_token: abc\n", "utf-8")
    assert "'discord_token'" in em(ada, "lend", "ruri", "again.em", code=1)
    assert not Path("again.em").exists()


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """An archive of whatever somebody likes."""
    with path.open("wb") as file:
        writer = Writer(file, Header("ruri", 1, EM_FORMAT))
        for name, data in files.items():
            writer.add(File(name, 0o777, len(data)), io.BytesIO(data))
        writer.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"evil.sh": b"x"}, "no part of an em"),
        ({"chat.txt": b"<ruri> changed\n"}, "vouches for"),
        ({"x.chr/more.txt": b"<ruri> more\n"}, "vouches for"),
        ({"x.chr/../../up.txt": b"x"}, "cannot hold a file"),
        ({".chr/a/b.txt": b"x"}, "no part of an em"),
        ({PASSPORT: b""}, "cannot be read"),
    ],
)
def test_what_is_not_the_em_that_was_vouched_for_is_not_taken(
    homes: tuple[Home, Home], em: Told, change: dict[str, bytes], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada, bob = homes
    files = contents(load_em(ada.ems / "ruri"))
    line = write_lineage([stamp(ada, now_ms, Said("ruri", files, "lend"))])
    monkeypatch.setattr("nodes.archive.Writer.add", unchecked)
    write(Path("bad.em"), {PASSPORT: line, **files, **change})
    told = em(bob, "take", "bad.em", "--as", "guest", "--yes", code=1)
    assert reason in told
    assert told.count("\n") == 1
    assert sorted(path.name for path in bob.ems.iterdir()) == ["aletheia", "aporia", "ruri", "teapot"]


def unchecked(self: Any, entry: File, source: io.BytesIO) -> None:
    """Write a file as a hostile program would: under any name."""
    self._put({"path": entry.path, "mode": entry.mode, "size": entry.size})
    if entry.size:
        self._put(source.read())


def test_an_em_in_crumbs_or_in_a_pipe_is_not_taken(homes: tuple[Home, Home], em: Told, tmp_path: Path) -> None:
    """Chunks of a byte each would take many times the memory of the file; a pipe would be waited at for ever."""
    ada, bob = homes
    em(ada, "lend", "ruri", "whole.em")
    with Path("crumbs.em").open("wb") as file:
        writer = Writer(file, Header("ruri", 1, EM_FORMAT))
        writer._put({"path": "chat.txt", "mode": 0o644, "size": 2})
        for crumb in (b"a", b"b"):
            writer._put(crumb)
        writer.close()
    assert "damaged" in em(bob, "take", "crumbs.em", "--yes", code=1)
    os.mkfifo(tmp_path / "pipe.em")
    assert "is no file" in em(bob, "take", "pipe.em", "--yes", code=1)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"PK\x03\x04"])
def test_other_files_are_no_ems(homes: tuple[Home, Home], em: Told, data: bytes) -> None:
    Path("other.em").write_bytes(data)
    assert em(homes[0], "take", "other.em", "--yes", code=1).startswith("mesh: ")


async def test_a_node_hosts_a_lent_em_until_the_loan_ends(tmp_path: Path) -> None:
    """Warned of before; then it is silent, while the node runs, and its folder stays."""
    lender = create_home(tmp_path / "lender", "ada", lambda: NOW)
    async with MemoryBroker() as broker:
        world = World(tmp_path, broker)
        shutil.copytree(lender.ems / "ruri", world.ems / "ruri")
        files = contents(load_em(world.ems / "ruri"))
        end = NOW + 2 * WARNED_MS
        stamped = stamp(lender, lambda: NOW, Said("ruri", files, "lend", until_ms=end))
        (world.ems / "ruri" / PASSPORT).write_bytes(write_lineage([stamped]))
        ems = [load_em(world.ems / "ruri")]
        assert standing(ems, MESH_ID, NOW).told == []
        assert "ask for more time" in standing(ems, MESH_ID, end - DAY_MS).told[0]
        assert standing(ems, lender.mesh_id(), end).ems == ems  # whose it is hosts it as long as they like
        async with world.node(Scripted(["hm"])) as node:
            assert set(node.runtime.ems) == {"ruri"}
            assert not await node.load()
            world.clock = lambda: end
            object.__setattr__(node.ground, "clock", world.clock)
            assert await node.load()
            assert node.runtime.ems == {}
        assert (world.ems / "ruri" / "chat.txt").exists()
