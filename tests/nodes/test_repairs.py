"""Homes in which something is missing, damaged or misspelt: what is said about it, and that the advice works."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from harness import SCHEMAS

from mesh.clock import now_ms
from mesh.store import Store
from nodes import layout
from nodes.cli import main
from nodes.commands.vendors import model_problems
from nodes.em import load_ems
from nodes.errors import HomeError
from nodes.home import Home, Running, create_home
from nodes.inspection import check_changed, shared_names

Run = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(tmp_path / "home", "amp", now_ms)


@pytest.fixture
def run(home: Home, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command on the home; gives what it wrote, and checks its exit code."""

    def command(*words: str | Path, code: int = 0) -> str:
        capsys.readouterr()
        try:
            done = main([*map(str, words), "--home", str(home.path)])
        except SystemExit as end:  # argparse
            done = end.code
        written = capsys.readouterr()
        assert done == code, written.err
        return written.out + written.err

    yield command
    structlog.reset_defaults()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- making homes ----------------------------------------------------------------------------------------------------


def test_a_lost_mesh_yaml_is_written_anew_beside_everything_else(run: Run, home: Home) -> None:
    (home.ems / "aporia" / "chat.txt").write_text("<aporia> mine\n", "utf-8")
    (home.ems / "ruri").rename(home.ems / "lapis")
    (home.path / "mesh.yaml").unlink()
    before = files(home.path)
    assert f"mesh.yaml is missing; `mesh init {home.path}` writes a new one" in run("basin", "list", code=3)
    assert main(["init", str(home.path), "--name", "amp"]) == 0
    after = files(home.path)
    assert after.pop("mesh.yaml").startswith(b"# Settings of a mesh node")
    assert after == before
    assert "yappings" in run("basin", "list")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("there", [False, True], ids=["new", "empty folder"])
def test_a_home_is_made_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, there: bool
) -> None:
    def fail(_: object, target: Path) -> None:
        target.mkdir()
        raise OSError(number, os.strerror(number), str(target / "chat.txt"))

    monkeypatch.setattr("nodes.home.copy_tree", fail)
    if there:
        (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" if there else tmp_path / "deep" / "home"
    with pytest.raises(HomeError) as caught:
        create_home(path, "amp", now_ms)
    assert str(caught.value).startswith("the disk is full: " if number == errno.ENOSPC else f"{path} cannot be made: ")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*")) == ([tmp_path / "deep"] if there else [])
    monkeypatch.undo()
    assert create_home(path, "amp", now_ms).config().name == "amp"


def test_a_home_is_not_put_among_other_things(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear", "utf-8")
    with pytest.raises(HomeError, match="holds other things"):
        create_home(tmp_path, "amp", now_ms)
    assert files(tmp_path) == {"letter": b"dear"}


def test_starter_ems_let_people_read(home: Home) -> None:
    ems, problems = load_ems(home.ems)
    assert problems == []
    assert {em.settings.delay_s for em in ems} == {1.0}


# --- keys ------------------------------------------------------------------------------------------------------------


def damage(path: Path) -> None:
    path.write_text("junk\n", "ascii")


@pytest.mark.parametrize("harm", [Path.unlink, damage])
@pytest.mark.parametrize("name", ["node.seed", "client.seed", "system.seed", "*.certificate"])
def test_rotating_makes_lost_keys_and_certificates_anew(
    run: Run, home: Home, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    mesh = home.mesh_id()
    (path,) = home.keys.glob(name)
    harm(path)
    assert "run: mesh keys rotate" in run("doctor", code=1)
    if name in {"node.seed", "*.certificate"}:
        assert "run: mesh keys rotate" in run("export", tmp_path / "amp.mesh", code=3)
        assert not (tmp_path / "amp.mesh").exists()
    run("keys", "rotate")
    assert "ok    keys" in run("doctor")
    assert home.mesh_id() == mesh
    run("export", tmp_path / "amp.mesh")


def test_a_node_whose_certificate_was_lost_stays_believed(run: Run, home: Home) -> None:
    old = home.signer("node").public
    (path,) = home.keys.glob("*.certificate")
    path.unlink()
    run("keys", "rotate")
    certificate = home.trust().certificate(home.mesh_id(), old)
    assert certificate is not None
    certificate.check(now_ms() - 1_000_000)


def test_a_lost_key_cannot_be_revoked(run: Run, home: Home) -> None:
    (home.keys / "node.seed").unlink()
    assert "run it without --revoke" in run("keys", "rotate", "--revoke", code=3)


def test_a_mesh_key_elsewhere_mends_too(run: Run, home: Home, tmp_path: Path) -> None:
    (home.keys / "mesh.seed").rename(tmp_path / "mesh.seed")
    (home.keys / "client.seed").unlink()
    assert "mesh keys rotate --mesh-key FILE" in run("doctor", code=1)
    run("keys", "rotate", "--mesh-key", tmp_path / "mesh.seed")
    assert "ok    keys" in run("doctor")


# --- data ------------------------------------------------------------------------------------------------------------


def test_the_doctor_names_the_part_that_is_missing(run: Run, home: Home, tmp_path: Path) -> None:
    home.data.rename(tmp_path / "data")
    assert "data/ is missing: what was said before is gone; `mesh up` makes it anew" in run("doctor", code=1)
    home.hold().release()
    assert "ok    home" in run("doctor")


@pytest.mark.parametrize("content", [bytes(9_000), b"\xa5" * 9_000, None], ids=["zeros", "garbage", "truncated"])
def test_a_damaged_database_is_named_with_what_to_do(run: Run, home: Home, content: bytes | None) -> None:
    Store(home.database, SCHEMAS).close()
    home.database.write_bytes(home.database.read_bytes()[:20_000] if content is None else content)
    sentence = f"{home.database} is damaged; move it away and start again: it is rebuilt from the stream"
    assert sentence in run("doctor", code=1)
    assert sentence in run("basin", "list", code=1)
    assert sentence in run("up", code=1)
    home.database.unlink()
    assert "ok    database" in run("doctor")


def test_an_empty_database_is_none_yet(run: Run, home: Home) -> None:
    home.database.touch()
    assert "yappings" in run("basin", "list")
    assert "ok    database" in run("doctor")


def test_the_doctor_says_that_the_disk_is_full(run: Run, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nodes.doctor.tempfile.TemporaryFile", full)
    assert f"the disk is full: {home.data} cannot be used; make room" in run("doctor", code=1)


# --- settings and ems ------------------------------------------------------------------------------------------------


def test_models_that_nobody_provides_are_named(run: Run, home: Home) -> None:
    (home.ems / "aporia" / "config.yaml").write_text("model: m-2\n", "utf-8")
    vendors = "{v: {base_url: 'http://127.0.0.1:1/v1', provides: ['m-1*']}}"
    (home.path / "mesh.yaml").write_text(
        f"name: amp\nmodels: {{default: m-1^o200k@8000, vendors: {vendors}}}\n", "utf-8"
    )
    ems, _ = load_ems(home.ems)
    (problem,) = model_problems(home.config(), ems)
    assert problem == "no vendor in mesh.yaml provides m-2, the model of aporia: whoever has it cannot answer"
    assert f"fail  models       {problem}" in run("doctor", code=1)


def test_settings_that_changed_since_the_start_are_noticed(home: Home) -> None:
    changed_ms = (home.path / "mesh.yaml").stat().st_mtime_ns // 1_000_000
    assert check_changed(home, Running(1, "", changed_ms + 1)) == []
    (check,) = check_changed(home, Running(1, "", changed_ms - 1))
    assert "restart the node" in check.told


def test_names_that_are_not_one_ems_alone_are_noted(run: Run, home: Home) -> None:
    for name, settings in (("aporia", "nicknames: [Rose]\n"), ("ruri", "name: rose\nnicknames: [amp]\n")):
        (home.ems / name / "config.yaml").write_text(settings, "utf-8")
    both, own = shared_names(load_ems(home.ems)[0], "Amp")
    assert both.startswith("aporia and ruri both answer to 'rose'")
    assert own.startswith("ruri answers to 'Amp', which is your own name")
    assert f"note: {both}" in run("em", "check")
    assert "2 notes; run: mesh em check" in run("doctor")


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["say", "lab", "x", "--answers", "xyz"], "'xyz' is no id of an act"),
        (["say", "lab", "x", "--kind", "aks"], "'aks' is none of say, ask, answer"),
        (["say", "lab", "-x"], "before a text that begins with a dash write --"),
        (["say", "lab", "x\udcff"], "is not UTF-8 text"),
        (["tap", "--last", "-3"], "must be a whole number"),
        (["why", "last", "--brief"], "there is no --brief here; see: mesh why --help"),
    ],
)
def test_misuse_is_told_in_a_sentence(run: Run, words: list[str], told: str) -> None:
    written = run(*words, code=2)
    assert told in written
    assert written.count("\n") == 1


def program(words: list[str], shell: str = "", stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """`mesh` under a shell that closes or diverts streams first."""
    line = f'exec "$0" -m nodes.cli "$@" {shell}'
    return subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, *words], input=stdin, capture_output=True, timeout=60, check=False
    )


def test_standard_input_that_is_not_utf8(home: Home) -> None:
    done = program(["say", "lab", "-", "--home", str(home.path)], stdin=b"a\xffb")
    assert (done.returncode, done.stderr) == (2, b"mesh: standard input is not UTF-8 text from its byte 2 on\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_harm_nothing(home: Home, closed: str) -> None:
    """A loop is started, and a database opened, where a file would take the place of a standard stream."""
    done = program(["status", "--home", str(home.path)], closed)
    assert done.returncode == 4
    assert done.stderr == b""


def test_long_lines_break_between_words() -> None:
    assert layout.broken("Numbers:  twelve acts kept, and none missing", 30, 10) == [
        "Numbers:  twelve acts kept,",
        "          and none missing",
    ]
    assert layout.broken("short", 30, 10) == ["short"]
    assert layout.table(["ROOM", "EMS"], [["部屋 🎉", "ada"], ["tea", "bob"]]) == [
        "ROOM     EMS",
        "部屋 🎉  ada",
        "tea      bob",
    ]
    assert all(len(line) < 20 for line in layout.broken("Numbers:  " + "word " * 30, 20, 10))
