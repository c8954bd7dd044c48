"""Backups of a mesh: read back whole or refused in one line; and relationships made again from statements."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.entries import Entry
from nodes.backup import read_backup, write_backup
from nodes.cli import main
from nodes.errors import NodeError
from nodes.home import Home, create_home, open_home
from nodes.peers.recovery import rebuilt
from protocol.acts import Act, new_id
from protocol.budget import Budget
from protocol.keys import KeyKind, MeshId, NodeId, Signer
from protocol.link import Relationship, declare, next_body
from protocol.statement import Changes, Trust

NOW = 1_800_000_000_000


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(tmp_path / "home", "amp", lambda: NOW)


def run(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    done = main([*map(str, words)])
    told = capsys.readouterr()
    assert done == code, told.out + told.err
    return told.out + told.err


def test_a_mesh_begins_again_with_its_key_and_another_node(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, here = home.signer("node").public, ("--home", home.path)
    run(capsys, "keys", "rotate", "--revoke", *here)
    file = tmp_path / "amp.backup"
    told = run(capsys, "keys", "backup", file, *here)
    seed = (home.keys / "mesh.seed").read_text("ascii").strip()
    assert seed not in told
    assert seed not in repr(read_backup(file))
    assert file.stat().st_mode & 0o077 == 0
    assert "is there already" in run(capsys, "keys", "backup", file, *here, code=1)
    told = run(capsys, "init", tmp_path / "again", "--recover", file)
    assert home.signer("node").public in told
    assert lost not in told  # revoked before
    again = open_home(tmp_path / "again")
    assert again.mesh_id() == home.mesh_id()
    assert again.signer("node").public not in {lost, home.signer("node").public}
    assert again.revocation() == home.revocation()
    assert len(again.trust().nodes(again.mesh_id())) == 3
    assert "holds other things" in run(capsys, "init", tmp_path / "again", "--recover", file, code=3)


def test_a_backup_is_not_written_into_what_somebody_else_has_put_there(home: Home, tmp_path: Path) -> None:
    """In a folder that many share, a file or a link of the name under which it is begun would give away the key."""
    theirs = tmp_path / "theirs"
    theirs.write_text("", "utf-8")
    theirs.chmod(0o666)
    (tmp_path / "mesh.backup.part").symlink_to(theirs)
    (tmp_path / "other.backup.part").write_text("", "utf-8")
    (tmp_path / "other.backup.part").chmod(0o666)
    with (tmp_path / "other.backup.part").open("rb") as held:
        for name in ("mesh.backup", "other.backup"):
            write_backup(home, None, tmp_path / name)
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
            assert not (tmp_path / name).is_symlink()
        assert held.read() == theirs.read_bytes() == b""


def test_a_node_is_revoked_once_and_only_another(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--home", home.path)
    other = Signer(b"o" * 32, KeyKind.NODE).public
    assert "by list 1 of this mesh" in run(capsys, "keys", "revoke", other, *here)
    assert "before, by list 1" in run(capsys, "keys", "revoke", other, *here, code=3)
    assert "rotate --revoke" in run(capsys, "keys", "revoke", home.signer("node").public, *here, code=3)
    assert "is no node" in run(capsys, "keys", "revoke", home.mesh_id(), *here, code=3)
    assert home.revocation().nodes == [other]


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_backup_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("backup") / "file"
    path.write_bytes(data)
    with pytest.raises(NodeError, match="no backup"):
        read_backup(path)


@pytest.mark.parametrize(
    "change",
    [
        {"mesh_key": Signer(b"x" * 32, KeyKind.MESH).seed()},
        {"mesh_key": Signer(b"x" * 32, KeyKind.NODE).seed()},
        {"mesh_key": "SA"},
        {"certificates": ["AAAA"]},
        {"version": 2},
        {"peers": [{"mesh": "A", "name": "x" * 99, "addresses": []}]},
    ],
)
def test_a_changed_backup_is_refused(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    file = tmp_path / "amp.backup"
    run(capsys, "keys", "backup", file, "--home", home.path)
    file.write_text(json.dumps(json.loads(file.read_bytes()) | change), "utf-8")
    told = run(capsys, "init", tmp_path / "again", "--recover", file, code=1)
    assert "no backup" in told
    assert not (tmp_path / "again").exists()


@given(seed=st.integers(0, 2**32))
def test_a_relationship_comes_out_the_same_in_whatever_order_its_statements_come(seed: int) -> None:
    """Also where one side's clock is behind, so that an answer is dated before what it answers."""
    ada, bob = (MeshId(Signer(letter * 32, KeyKind.MESH).public) for letter in (b"a", b"b"))
    seen, entries = Relationship(ada, bob), list[Entry]()
    script: list[tuple[MeshId, str, Changes]] = [
        (ada, "invite", Changes(text="", gives={"tea": "write"}, trust=Trust.KNOWN)),
        (bob, "link", Changes(text="", takes={"tea": "write"})),
        (ada, "share", Changes(text="", basin="diary", may="read")),
        (bob, "link", Changes(text="", paused=True)),
        (bob, "leave", Changes(text="")),
        (bob, "invite", Changes(text="", gives={"pond": "read"})),
        (ada, "link", Changes(text="", takes={"pond": "read"})),
        (ada, "unshare", Changes(text="", basin="diary")),
    ]
    for number, (by, kind, changes) in enumerate(script):
        side = seen if by == ada else seen.mirrored()
        at_ms = NOW + 1_000 * number - (1_500 if by == bob else 0)
        identity = new_id(at_ms, number.to_bytes(10, "big"))
        body = next_body(side, kind, changes)
        act = Act(identity, kind, "person", [], identity, Budget(1, 8, 1_000, NOW), at_ms, body)
        side = declare(side, act, NOW + 60_000, lambda _: False)
        seen = side if by == ada else side.mirrored()
        entries.append(Entry(number, "link", by, NodeId("U"), act))
    random.Random(seed).shuffle(entries)
    numbered = [one._replace(n=number) for number, one in enumerate(entries)]
    assert rebuilt(Relationship(ada, bob), numbered, NOW + 60_000, lambda _: False) == seen
