"""The commands as a person types them, on homes of their own; none of these needs a running node."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import msgpack
import pytest
import structlog
from harness import SCHEMAS, quiet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from mesh.store import Store
from nodes import doctor
from nodes.archive import MAX_CHUNK, File, Header, Reader, Writer
from nodes.cli import COMMANDS, main
from nodes.em_settings import EmSettings
from nodes.errors import HomeError, ModelUnavailable, NodeError
from nodes.home import Home, Running, create_home
from nodes.models.base import Usage
from nodes.models.scripted import Scripted
from nodes.node import Ground, Identity, Node
from nodes.speaker import Models
from nodes.transfer import export_home, import_home
from protocol.keys import KeyKind, NodeId, Signer

HOSTILE = "\x1b]0;owned\x07 red\x1b[31m\u202e\x9b2J\nmesh: all is well"
APORIA = "reply_on_name: true\n"

Run = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with one em."""
    made = create_home(tmp_path / "home", "amp", now_ms)
    for folder in made.ems.iterdir():
        if folder.name != "aporia":
            folder.rename(tmp_path / folder.name)
    shutil.rmtree(made.ems / "aporia" / "aporia.chr")
    (made.ems / "aporia" / "config.yaml").write_text(APORIA, "utf-8")
    (made.ems / "aporia" / "chat.txt").write_text("<mara> hello\n<aporia> good day\n", "utf-8")
    return made


@pytest.fixture
def run(home: Home, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command on the home; gives what it wrote, and checks its exit code."""

    def command(*words: str | Path, code: int = 0, of: Path | None = home.path) -> str:
        capsys.readouterr()  # what nodes have logged
        where = [] if of is None else ["--home", str(of)]
        assert main([*map(str, words), *where]) == code
        written = capsys.readouterr()
        assert not any(char in written.out + written.err for char in "\x1b\x07\x9b\u202e")
        return written.out + written.err

    yield command
    structlog.reset_defaults()  # a command logs to what is standard error during its test


@asynccontextmanager
async def hosting(home: Home, model: Scripted) -> AsyncIterator[Node]:
    """A node of the home on a bus in memory."""
    async with MemoryBroker() as broker:
        store = Store(home.database, SCHEMAS)
        ground = Ground(broker.connect(), store, Models(model, lambda _: "chat", "scripted"), now_ms)
        client = NodeId(home.signer("client").public)
        identity = Identity(home.signer("node"), home.certificate(), home.trust(), client)
        node = Node(home.config(), home.ems, identity, ground)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(node.run())
            await node.ready.wait()
            yield node
            await quiet(node)
            task.cancel()
        store.close()


def talk(home: Home, model: Scripted, *said: tuple[str, str]) -> list[str]:
    """Have a node hear what is said (basin, text) and answer it; gives the ids of what was said."""

    async def node() -> list[str]:
        async with hosting(home, model) as one:
            return [(await one.say(basin, text, [])).id.hex() for basin, text in said]

    return asyncio.run(node())


def replied(home: Home) -> str:
    """The id of the newest reply."""
    store = Store(home.database, read_only=True)
    row = store.one("SELECT id FROM turns ORDER BY n DESC LIMIT 1")
    store.close()
    return row[0].hex()


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_of_our_commands_loads_nothing_heavy() -> None:
    ours = ["em", "basin", "why", "status", "doctor", "keys", "export", "import"]
    heavy = ["pydantic", "nats", "numpy", "openai", "yaml", "httpx2", "nodes.home"]
    program = (
        "import contextlib, io, sys\n"
        "from nodes.cli import main\n"
        f"for name in {ours}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([name, '--help'])\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
    assert set(ours) <= set(COMMANDS)


# --- em --------------------------------------------------------------------------------------------------------------


def test_a_new_em_has_every_setting_and_nothing_wrong(run: Run, home: Home) -> None:
    assert "write chat.txt" in run("em", "new", "ruth")
    config = (home.ems / "ruth" / "config.yaml").read_text("utf-8")
    assert all(f"{name}:" in config for name in EmSettings.model_fields)
    assert "<ruth> " in (home.ems / "ruth" / "chat.txt").read_text("utf-8")
    assert run("em", "check", "ruth") == "1 em read: nothing wrong\n"
    assert json.loads(run("em", "new", "ines", "--json"))["folder"] == str(home.ems / "ines")
    assert sorted(folder.name for folder in home.ems.iterdir()) == ["aporia", "ines", "ruth"]


@pytest.mark.parametrize("name", ["aporia", "Ruth", "..", "a/b", "", "x" * 33])
def test_a_new_em_needs_a_free_and_proper_name(run: Run, home: Home, name: str) -> None:
    before = (home.ems / "aporia" / "config.yaml").read_text("utf-8")
    assert run("em", "new", name, code=1).count("\n") == 1
    assert [folder.name for folder in home.ems.iterdir()] == ["aporia"]
    assert (home.ems / "aporia" / "config.yaml").read_text("utf-8") == before


def test_em_list_tells_models_basins_and_lines(run: Run, home: Home) -> None:
    (home.ems / "aporia" / "config.yaml").write_text("model: m-1\nbasins: [yappings, sea]\n", "utf-8")
    assert run("em", "list").splitlines()[1].split() == ["aporia", "m-1", "yappings", "sea", "2", "-"]
    (em,) = json.loads(run("em", "list", "--json"))["ems"]
    told = {"name": "aporia", "model": "m-1", "basins": ["yappings", "sea"], "lines": 2, "hosted": None, "from": "-"}
    assert em == told


def test_em_check_tells_errors_and_notes_with_their_place(run: Run, home: Home) -> None:
    (home.ems / "aporia" / "chat.txt").write_text("<mara> hello\n<aporia> hi\n<aporia>\n", "utf-8")
    noted = run("em", "check")
    assert f"note: {home.ems}/aporia/chat.txt:3: is a tag with no text" in noted
    assert "1 em read: 1 note" in noted
    (home.ems / "aporia" / "config.yaml").write_text("\nmodle: x\n", "utf-8")
    failed = run("em", "check", code=2)
    assert f"error: {home.ems}/aporia/config.yaml:2: modle: there is no such key; did you mean 'model'?" in failed
    assert json.loads(run("em", "check", "aporia", "--json", code=2))["errors"]


def test_em_check_takes_a_folder_anywhere_and_knows_what_is_not_there(run: Run, home: Home, tmp_path: Path) -> None:
    assert run("em", "check", home.ems / "aporia", of=None) == "1 em read: nothing wrong\n"
    assert "there is no em 'nobody'" in run("em", "check", "nobody", code=2)
    assert "there is no mesh home" in run("em", "list", of=tmp_path / "nowhere", code=3)


# --- basin -----------------------------------------------------------------------------------------------------------


def test_basins_before_anything_was_said(run: Run) -> None:
    assert run("basin", "list").splitlines()[1].split() == ["yappings", "0", "-", "aporia"]
    shown = run("basin", "show", "yappings")
    assert "24 hops, 48 acts, 200,000 tokens, 10 minutes" in shown
    assert "there is no basin sea here" in run("basin", "show", "sea", code=1)
    assert "is not a name" in run("basin", "show", "../sea", code=1)


def test_basins_tell_what_was_said_safely(run: Run, home: Home) -> None:
    talk(home, Scripted(["good day", Usage(7, 3)]), ("yappings", f"aporia? {HOSTILE}"), ("sea", "one"), ("sea", "two"))
    rows = {row["basin"]: row for row in json.loads(run("basin", "list", "--json"))["basins"]}
    assert {name: (row["acts"], row["listeners"]) for name, row in rows.items()} == {
        "sea": (2, []),
        "yappings": (2, ["aporia"]),
    }
    assert rows["sea"]["last_ms"] > 0
    shown = run("basin", "show", "yappings")
    assert "amp: aporia? ]0;owned red [31m 2J mesh: all is well" in shown
    assert shown.splitlines()[-1].endswith("aporia: good day")
    assert [act["text"] for act in json.loads(run("basin", "show", "sea", "--last", "1", "--json"))["recent"]] == [
        "two"
    ]
    with pytest.raises(SystemExit, match="2"):
        run("basin", "show", "sea", "--last", "many")


def test_what_was_taken_back_is_not_shown(run: Run, home: Home) -> None:
    async def node() -> None:
        async with hosting(home, Scripted([])) as one:
            secret, slip = await one.say("sea", "a secret", []), await one.say("sea", "a slip", [])
            await one.say("sea", "said too much", [secret.id], "redact")
            await one.say("sea", "a ship", [slip.id], "edit")

    asyncio.run(node())
    shown = run("basin", "show", "sea")
    assert "a secret" not in shown
    assert "amp: (taken back)" in shown
    assert "amp: a ship" in shown
    assert "a slip" not in shown
    assert [act["text"] for act in json.loads(run("basin", "show", "sea", "--json"))["recent"]][:2] == [None, "a ship"]


# --- why -------------------------------------------------------------------------------------------------------------


def test_why_a_reply_was_said(run: Run, home: Home) -> None:
    (asked,) = talk(home, Scripted(["good day", Usage(70, 3, 5)]), ("yappings", "aporia, what is a basin?"))
    told = run("why", replied(home)[:20])
    assert told.startswith("aporia, in yappings, ")
    assert "because   its name was said" in told
    assert "model     scripted, 70 tokens read (5 cached), 3 written" in told
    assert f"said to   amp: aporia, what is a basin?\n          {asked}" in told
    assert f"begun by amp ({asked}); left after this: 23 hops, 47 acts" in told
    assert "  chat.txt:1 " in told
    assert f"  act:{asked} " in told
    assert "  format " in told
    assert run("why", "last") == told


def test_why_shows_every_word_of_the_prompt_and_its_source(run: Run, home: Home) -> None:
    (asked,) = talk(home, Scripted(["good day", Usage(7, 3)]), ("yappings", f"aporia?  two  spaces {HOSTILE}"))
    shown = run("why", "last", "--prompt")
    assert "chat.txt:1" in shown
    assert "| <mara> hello\n" in shown
    assert "| <aporia> good day\n" in shown
    assert r"| <amp> aporia?  two  spaces \x1b]0;owned\x07 red\x1b[31m\u202e\x9b2J" in shown
    made = json.loads(run("why", "last", "--json"))["made"]
    spans = [span for turn in made["prompt"] for span in turn["spans"]]
    assert {"format", "chat.txt:1", f"act:{asked}"} <= {span["source"] for span in spans}
    assert any(HOSTILE in span["text"] for span in spans)
    assert (made["rule"], made["model"], made["prompt_tokens"]) == ("its name was said", "scripted", 7)


def test_why_an_act_was_answered_or_not(run: Run, home: Home) -> None:
    named, other = talk(home, Scripted(["good day"]), ("yappings", "aporia?"), ("yappings", "anybody?"))
    assert f"answered  aporia: its name was said; {replied(home)}" in run("why", named)
    assert "silent    aporia: nothing called for it" in run("why", other)
    assert json.loads(run("why", other, "--json"))["silent"] == {"nothing called for it": ["aporia"]}
    assert "perhaps none listens" in run("why", talk(home, Scripted([]), ("sea", "anybody?"))[0])


@pytest.mark.parametrize(
    ("model", "outcome"),
    [
        (Scripted([ModelUnavailable(f"no answer {HOSTILE}")]), "no answer ]0;owned red"),
        (Scripted(["", Usage(7, 0)]), "it said nothing"),
    ],
)
def test_why_a_turn_ended_silent(run: Run, home: Home, model: Scripted, outcome: str) -> None:
    (asked,) = talk(home, model, ("yappings", "aporia?"))
    assert f"silent    aporia: its name was said, but {outcome}" in run("why", asked)
    never_said = run("why", replied(home))
    assert f"\n  {outcome}" in never_said
    assert "about     amp: aporia?" in never_said


def test_why_a_spent_chain_is_silent(run: Run, home: Home) -> None:
    (home.path / "mesh.yaml").write_text("name: amp\nbasins: {yappings: {budget: {hops: 0}}}\n", "utf-8")
    (asked,) = talk(home, Scripted(["never"]), ("yappings", "aporia?"))
    assert "silent    aporia: the chain is spent: no hops left" in run("why", asked)


def test_why_wants_an_id_that_names_one_act(run: Run, home: Home) -> None:
    assert "nothing was said here yet" in run("why", "last", code=1)
    assert "no act aaaaaa is known here" in run("why", "aaaaaa", code=1)
    first, second = talk(home, Scripted([]), ("sea", "one"), ("sea", "two"))
    assert first[:6] == second[:6]  # the first 24 bits of a time in milliseconds last for hours
    assert "more than one act has an id that begins with" in run("why", first[:6], code=1)
    assert first in run("why", first.upper())
    assert "no act ffffffff is known here" in run("why", "ffffffff", code=1)
    for wrong in ("abc", "zzzzzz", "a" * 33, ""):
        assert "is no id of an act" in run("why", wrong, code=1)


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_of_a_home_whose_node_does_not_run(run: Run, home: Home) -> None:
    assert "0 acts kept" in run("status", code=4)
    talk(home, Scripted([]), ("sea", "one"))
    told = run("status", code=4)
    assert told.startswith(f"No node is running on {home.path}; start it with: mesh up")
    assert "1 acts kept, 0 waiting to be sent, 0 frames missing, 0 refused" in told
    known = json.loads(run("status", "--json", code=4))
    assert (known["running"], known["pid"], known["acts"]) == (False, None, 1)


def test_status_of_a_node_that_died_without_a_word(run: Run, home: Home) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    home.announce(Running(gone.pid, "nats://127.0.0.1:1", 0))
    assert f"The node with process id {gone.pid} ended without a word" in run("status", code=4)
    assert "fail  node" in run("doctor", code=1)


# --- keys ------------------------------------------------------------------------------------------------------------


def secrets_of(home: Home) -> list[str]:
    return [path.read_text("ascii").strip() for path in home.keys.glob("*.seed")]


def test_keys_are_shown_without_a_secret(run: Run, home: Home) -> None:
    shown = run("keys", "show") + run("keys", "show", "--json")
    assert home.mesh_id() in shown
    assert home.signer("node").public in shown
    assert "certificate  valid, from " in shown
    assert not any(secret in shown for secret in secrets_of(home))


def test_rotating_makes_a_new_key_and_can_revoke_the_old(run: Run, home: Home) -> None:
    first = home.signer("node").public
    assert "is not revoked" in run("keys", "rotate")
    second = home.signer("node").public
    told = json.loads(run("keys", "rotate", "--revoke", "--json"))
    third = home.signer("node").public
    assert (told["old"], told["node"], home.revocation().nodes) == (second, third, [second])
    assert len({first, second, third}) == 3
    assert f"revoked      {second[1:5]}  {second}" in run("keys", "show")
    assert home.certificate().node == third


def test_rotating_with_a_mesh_key_that_is_kept_elsewhere(run: Run, home: Home, tmp_path: Path) -> None:
    (home.keys / "mesh.seed").rename(tmp_path / "mesh.seed")
    assert "mesh key     kept elsewhere" in run("keys", "show")
    assert "mesh.seed is missing" in run("keys", "rotate", code=3)
    before = home.signer("node").public
    run("keys", "rotate", "--mesh-key", tmp_path / "mesh.seed")
    assert home.signer("node").public != before
    assert not (home.keys / "mesh.seed").exists()


def test_rotating_refuses_other_keys_and_a_home_in_use(run: Run, home: Home, tmp_path: Path) -> None:
    before = home.signer("node").public
    stranger, text = tmp_path / "stranger", tmp_path / "text"
    stranger.write_text(Signer(bytes(32), KeyKind.MESH).seed(), "ascii")
    text.write_text("SAprivate", "ascii")
    assert "the key of another mesh" in run("keys", "rotate", "--mesh-key", stranger, code=3)
    assert "the key of something else" in run("keys", "rotate", "--mesh-key", home.keys / "node.seed", code=3)
    wrong = run("keys", "rotate", "--mesh-key", text, code=3)
    assert "holds no mesh key" in wrong
    assert "SAprivate" not in wrong
    assert "cannot be read" in run("keys", "rotate", "--mesh-key", tmp_path / "nowhere", code=3)
    held = home.hold()
    assert "is in use" in run("keys", "rotate", code=3)
    held.release()
    assert home.signer("node").public == before


# --- doctor ----------------------------------------------------------------------------------------------------------


def told_by(run: Run, code: int = 1) -> dict[str, tuple[str, str]]:
    """What the doctor says, by check."""
    checks = json.loads(run("doctor", "--json", code=code))["checks"]
    return {check["name"]: (check["state"], check["told"]) for check in checks}


def test_a_new_home_is_well(run: Run, home: Home) -> None:
    told = told_by(run, code=0)
    names = "python packages nats-server home disk keys certificate settings ems clock database node bus models"
    assert list(told) == names.split()
    assert {name for name, (state, _) in told.items() if state != "ok"} <= {"node", "disk"}
    assert told["node"][0] == "warn"
    shown = run("doctor")
    assert shown.splitlines()[0].startswith("ok    python")
    assert not any(secret in shown for secret in secrets_of(home))


def _open_key(home: Home) -> None:
    (home.keys / "node.seed").chmod(0o644)


def _open_keys(home: Home) -> None:
    home.keys.chmod(0o755)


def _lost_key(home: Home) -> None:
    (home.keys / "client.seed").unlink()


def _other_mesh(home: Home) -> None:
    (home.keys / "mesh.seed").write_text(Signer(bytes(32), KeyKind.MESH).seed(), "ascii")


def _other_certificate(home: Home) -> None:
    node = home.signer("node").public
    home.certify(home.signer("mesh"), now_ms())
    other = home.signer("node").public
    (home.keys / f"{node}.certificate").replace(home.keys / f"{other}.certificate")


def _revoked(home: Home) -> None:
    seed = (home.keys / "node.seed").read_text("ascii")
    home.rotate(now_ms(), None, revoke_old=True)
    (home.keys / "node.seed").write_text(seed, "ascii")


def _settings(home: Home) -> None:
    (home.path / "mesh.yaml").write_text("name: amp\nsevrer: {}\n", "utf-8")


def _em(home: Home) -> None:
    (home.ems / "aporia" / "config.yaml").write_text("modle: x\n", "utf-8")


def _em_note(home: Home) -> None:
    (home.ems / "aporia" / "chat.log").write_text("x", "utf-8")


def _clock(home: Home) -> None:
    os.utime(home.path / "mesh.yaml", (now_ms() / 1000 + 7_200,) * 2)


def _unsynced(home: Home) -> None:
    (home.data / "nats").mkdir()
    (home.data / "nats" / "nats-server.conf").write_text('{"jetstream": {"sync_interval": "2m"}}', "utf-8")


def _elsewhere(home: Home) -> None:
    (home.path / "mesh.yaml").write_text("name: amp\nserver: {url: 'nats://10.0.0.5:4222'}\n", "utf-8")


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (_open_key, ("keys", "fail", "chmod 600")),
        (_open_keys, ("keys", "warn", "chmod 700")),
        (_lost_key, ("keys", "fail", "client.seed is missing")),
        (_other_mesh, ("keys", "fail", "another mesh")),
        (_other_certificate, ("keys", "fail", "the certificate is another node's")),
        (_revoked, ("keys", "fail", "is revoked")),
        (_settings, ("settings", "fail", "mesh.yaml:2: sevrer: there is no such key; did you mean 'server'?")),
        (_em, ("ems", "fail", "1 problem; run: mesh em check")),
        (_em_note, ("ems", "warn", "1 note; run: mesh em check")),
        (_clock, ("clock", "fail", "set the clock")),
        (_unsynced, ("bus", "warn", "sync_interval")),
        (_elsewhere, ("bus", "warn", "cannot be seen from here")),
    ],
)
def test_the_doctor_finds_what_is_wrong(
    run: Run, home: Home, harm: Callable[[Home], None], found: tuple[str, str, str]
) -> None:
    harm(home)
    check, state, words = found
    told = told_by(run, code=int(state == "fail"))[check]
    assert told[0] == state
    assert words in told[1]


def test_the_doctor_needs_no_home(run: Run, tmp_path: Path) -> None:
    told = run("doctor", of=tmp_path / "nowhere", code=1)
    assert "ok    python" in told
    assert "fail  home" in told


def test_the_doctor_sees_a_home_that_is_incomplete(run: Run, home: Home, tmp_path: Path) -> None:
    home.data.rename(tmp_path / "elsewhere")
    assert "fail  home" in run("doctor", code=1)


def test_the_doctor_knows_old_pythons_strangers_and_missing_servers(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert doctor.check_python((3, 10, 12)).state == "fail"
    owners = {"protocol": ["ampmesh", "protocol-of-others"], "mesh": ["ampmesh"]}
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: owners)
    assert doctor.check_packages().told.startswith("protocol-of-others also installs the package protocol")
    monkeypatch.setenv("NATS_SERVER_BIN", str(tmp_path / "nothing"))
    assert doctor.check_server().state == "fail"
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\nexit 3\n", "ascii")
    program.chmod(0o700)
    monkeypatch.setenv("NATS_SERVER_BIN", str(program))
    assert doctor.check_server().state == "fail"
    assert home.path.exists()


def test_the_doctor_reads_the_certificate_against_the_clock(home: Home) -> None:
    start, end = home.certificate().not_before_ms, home.certificate().not_after_ms
    states = [doctor.check_certificate(home, at)[0].state for at in (start - 1, start, end - doctor.DAY_MS, end + 1)]
    assert states == ["fail", "ok", "warn", "fail"]


# --- export and import -----------------------------------------------------------------------------------------------


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_home_survives_its_archive(run: Run, home: Home, tmp_path: Path) -> None:
    (asked,) = talk(home, Scripted(["good day"]), ("yappings", "aporia?"))
    (home.ems / "aporia" / "grüße.txt").write_bytes(os.urandom(MAX_CHUNK + 1))
    (home.ems / "aporia" / "empty").touch()
    archive, restored = tmp_path / "amp.mesh", tmp_path / "restored"
    assert "It holds all keys" in run("export", archive)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    told = json.loads(run("import", archive, restored, "--json", of=None))
    assert (told["name"], told["home"]) == ("amp", str(restored))
    before, after = tree(home.path), tree(restored)
    left_out = {"data/lock.db", "data/node.db", "data/node.db-wal", "data/node.db-shm"}
    assert {name: data for name, data in before.items() if name not in left_out} == {
        name: data for name, data in after.items() if name not in left_out
    }
    assert "data/lock.db" not in after
    assert stat.S_IMODE((restored / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((restored / "keys" / "mesh.seed").stat().st_mode) == 0o600
    assert "answered  aporia" in run("why", asked, of=restored)
    assert Home(restored).mesh_id() == home.mesh_id()
    assert sorted(path.name for path in tmp_path.glob("*.part")) == []


def test_what_a_crash_left_in_the_wal_is_exported(home: Home, tmp_path: Path) -> None:
    writer = sqlite3.connect(home.database, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE said (text)")
    writer.execute("INSERT INTO said VALUES ('only in the WAL')")
    export_home(home, tmp_path / "amp.mesh", now_ms)  # the connection stays open: nothing is moved into the main file
    writer.close()
    restored, _ = import_home(tmp_path / "amp.mesh", tmp_path / "restored")
    store = Store(restored.database, read_only=True)
    assert store.rows("SELECT text FROM said") == [("only in the WAL",)]
    store.close()


def test_a_home_in_use_and_files_that_are_there_are_left_alone(run: Run, home: Home, tmp_path: Path) -> None:
    archive = tmp_path / "amp.mesh"
    held = home.hold()
    assert "is in use" in run("export", archive, code=3)
    held.release()
    assert "is within the home" in run("export", home.path / "amp.mesh", code=1)
    assert "cannot be exported" in run("export", tmp_path / "no" / "folder", code=1)
    assert list(tmp_path.glob("*.mesh*")) == []
    archive.write_text("mine", "ascii")
    assert "is there already" in run("export", archive, code=1)
    assert archive.read_text("ascii") == "mine"
    assert "is there already" in run("import", archive, home.path, of=None, code=3)
    assert "cannot be restored" in run("import", tmp_path / "nothing", tmp_path / "new", of=None, code=1)


def _link(home: Home) -> None:
    (home.ems / "aporia" / "notes").symlink_to("/etc/hostname")


def _linked_folder(home: Home) -> None:
    (home.ems / "other").symlink_to(home.ems / "aporia")


def _pipe(home: Home) -> None:
    os.mkfifo(home.ems / "aporia" / "pipe")


def _odd_name(home: Home) -> None:
    (home.ems / "aporia" / "a\x1b[31m\\b").touch()


@pytest.mark.parametrize("make", [_link, _linked_folder, _pipe, _odd_name])
def test_what_an_archive_cannot_hold_is_named(
    run: Run, home: Home, tmp_path: Path, make: Callable[[Home], None]
) -> None:
    make(home)
    assert run("export", tmp_path / "amp.mesh", code=1).count("\n") == 1
    assert list(tmp_path.glob("*amp.mesh*")) == []


def test_a_file_that_changes_while_it_is_read_is_named() -> None:
    writer = Writer(BytesIO(), Header("amp", 0))
    for size in (2, 4):
        with pytest.raises(NodeError, match="changed while it was read"):
            writer.add(File("ems/a", 0o600, size), BytesIO(b"abc"))


def sealed(*values: object) -> bytes:
    """An archive whose digest is right, whatever it holds."""
    data = b"".join(msgpack.packb(value) for value in values)
    return data + msgpack.packb({"blake2b-256": hashlib.blake2b(data, digest_size=32).digest()})


HEADER = {"format": "ampmesh-home", "version": 1, "name": "amp", "created_ms": 0}
SETTINGS = ({"path": "mesh.yaml", "mode": 0o644, "size": 9}, b"name: amp")


def entry(path: object = "ems/a", mode: object = 0o600, size: object = 1) -> dict[str, object]:
    return {"path": path, "mode": mode, "size": size}


def refused(data: bytes, tmp_path: Path) -> str:
    """The sentence with which an archive is refused; nothing is left behind."""
    folder = tmp_path / "place"
    folder.mkdir(exist_ok=True)
    source = tmp_path / "archive"
    source.write_bytes(data)
    with pytest.raises(NodeError) as caught:
        import_home(source, folder / "new")
    assert list(folder.iterdir()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_small_archive_is_restored(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    source.write_bytes(sealed(HEADER, *SETTINGS, entry("keys/x", 0o7777, 2), b"a", b"b", entry("ems/run", 0o755), b"x"))
    home, moved = import_home(source, tmp_path / "deep" / "new")
    assert (moved.name, moved.files) == ("amp", 3)
    assert (home.keys / "x").read_bytes() == b"ab"
    assert stat.S_IMODE((home.keys / "x").stat().st_mode) == 0o700
    assert stat.S_IMODE((home.ems / "run").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "../x", "ems/../../x", "ems//x", "", ".", "ems/./x", "ems/.. /x", "C:\\x", "a\x00b", "a\nb", "a\x1b[1m",
     "x" * 256, "/".join(["x" * 200] * 6), "\ud800"],
)  # fmt: skip
def test_paths_that_lead_astray_are_refused(tmp_path: Path, path: str) -> None:
    data = sealed(HEADER, *SETTINGS) if path != "\ud800" else b""
    if path != "\ud800":
        data = sealed(HEADER, *SETTINGS, entry(path), b"x")
    refused(data, tmp_path)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "values",
    [
        (),
        (HEADER,),  # no home in it
        ([1, 2],),
        ({"format": "tar"},),
        (HEADER | {"version": 2},),
        (HEADER | {"name": 1},),
        (HEADER, *SETTINGS, entry("ems/a"), b"x", entry("ems/a"), b"x"),  # twice
        (HEADER, *SETTINGS, entry("ems/a"), b"x", entry("ems/a/b"), b"x"),  # a file as a folder
        (HEADER, *SETTINGS, entry("ems/a/b"), b"x", entry("ems/a"), b"x"),
        (HEADER, *SETTINGS, entry(size=2), b"x"),  # too little
        (HEADER, *SETTINGS, entry(size=1), b"xx"),  # too much
        (HEADER, *SETTINGS, entry(size=1), b""),
        (HEADER, *SETTINGS, entry(size=1), "x"),
        (HEADER, *SETTINGS, entry(size=-1)),
        (HEADER, *SETTINGS, entry(size=2**60)),
        (HEADER, *SETTINGS, entry(size="1"), b"x"),
        (HEADER, *SETTINGS, entry(mode=None), b"x"),
        (HEADER, *SETTINGS, entry(path=7), b"x"),
        (HEADER, *SETTINGS, entry(size=MAX_CHUNK + 1), b"x" * (MAX_CHUNK + 1)),  # one chunk that is too long
        (HEADER, *SETTINGS, {str(number): 1 for number in range(9)}),
        (HEADER, *SETTINGS, msgpack.ExtType(5, b"x")),
    ],
)
def test_archives_that_break_the_format_are_refused(tmp_path: Path, values: tuple[Any, ...]) -> None:
    assert refused(sealed(*values), tmp_path)


def test_an_archive_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.transfer.SPARE_BYTES", 2**62)
    assert "make room first" in refused(sealed(HEADER, *SETTINGS), tmp_path)


SMALL = sealed(HEADER, *SETTINGS, entry("keys/mesh.seed", 0o600, 3), b"abc")


@given(st.integers(0, len(SMALL) - 1))
def test_every_archive_that_is_cut_short_is_refused(length: int) -> None:
    with pytest.raises(NodeError, match="damaged"):
        Reader(BytesIO(SMALL[:length]))


@given(st.integers(0, len(SMALL) - 1), st.integers(1, 255))
def test_every_archive_with_a_changed_byte_is_refused(place: int, change: int) -> None:
    data = bytearray(SMALL)
    data[place] ^= change
    with pytest.raises(NodeError, match="damaged"):
        Reader(BytesIO(data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(max_size=200), st.integers(0, len(SMALL)), st.integers(0, len(SMALL)))
def test_damage_leaves_nothing_behind(tmp_path: Path, inserted: bytes, start: int, end: int) -> None:
    data = SMALL[:start] + inserted + SMALL[end:]
    if data != SMALL:
        assert "damaged" in refused(data, tmp_path)


@given(st.lists(st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5)
       | st.binary(max_size=5), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["path", "mode", "size", "format", "blake2b-256"]), inner, max_size=4)),
       max_size=6))  # fmt: skip
def test_whatever_a_sealed_archive_holds_nothing_but_a_sentence_comes_of_it(values: list[Any]) -> None:
    reader = Reader(BytesIO(sealed(HEADER, *values)))
    total = 0
    with contextlib.suppress(NodeError):
        total = sum(sum(map(len, content)) for _, content in reader.files())
    assert total <= reader.size


def test_a_home_with_broken_settings_is_worth_keeping(run: Run, home: Home, tmp_path: Path) -> None:
    (home.path / "mesh.yaml").write_text("name: [\n", "utf-8")
    run("export", tmp_path / "amp.mesh")
    restored, moved = import_home(tmp_path / "amp.mesh", tmp_path / "restored")
    assert moved.name == "home"
    assert (restored.path / "mesh.yaml").read_text("utf-8") == "name: [\n"


def test_an_import_never_touches_a_home(home: Home, tmp_path: Path) -> None:
    export_home(home, tmp_path / "amp.mesh", now_ms)
    before = tree(home.path)
    with pytest.raises(HomeError, match="nothing is ever overwritten"):
        import_home(tmp_path / "amp.mesh", home.path)
    assert tree(home.path) == before
