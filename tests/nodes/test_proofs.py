"""`mesh verify`: what a home has kept is proved, also elsewhere, and what does not hold is said in one line."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from harness import SCHEMAS

from mesh.bus.memory import MemoryBroker
from mesh.forgetting import Forgetting, Own
from mesh.ledger import Ledger
from mesh.links.papers import learn_papers
from mesh.store import Store
from nodes.cli import main
from nodes.home import Home, create_home
from protocol.acts import Act, new_id
from protocol.address import Subject
from protocol.budget import Budget
from protocol.certificate import Certificate, Revocation, issue, revoke
from protocol.frame import encode_frame
from protocol.keys import KeyKind, MeshId, NodeId, Signer

NOW = 1_800_000_000_000
PEER, PEER_NODE = Signer(b"p" * 32, KeyKind.MESH), Signer(b"q" * 32, KeyKind.NODE)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home, which is not the default one."""
    monkeypatch.setenv("AMPMESH_HOME", str(tmp_path / "nowhere"))
    return create_home(tmp_path / "home", "amp", lambda: NOW)


@contextmanager
def store_of(home: Home) -> Iterator[Store]:
    with closing(Store(home.database, SCHEMAS)) as store:
        yield store


def act(number: int, text: str, **more: object) -> Act:
    identity = new_id(NOW, number.to_bytes(10, "big"))
    budget = Budget(6, 16, 50_000, NOW + 600_000)
    fields = {"id": identity, "kind": "say", "author": "mara", "refs": [], "root": identity, "budget": budget}
    return Act(**fields | {"at_ms": NOW, "body": {"text": text}} | more)  # type: ignore[arg-type] - as each test needs


async def keep(home: Home, signer: Signer, mesh: str, *frames: list[Act]) -> None:
    """Have a ledger keep frames as if they came from the stream, for a home without a node."""
    async with MemoryBroker() as broker:
        with store_of(home) as store:
            trust = home.trust()
            learn_papers(store, trust)
            forgetting = Forgetting(store, Own(home.mesh_id(), home.signer("node")))
            ledger = Ledger(broker.connect(), store, trust, lambda: NOW, lambda _: None, forgetting)
            for number, acts in enumerate(frames, 1):
                subject = Subject(True, "tea", MeshId(mesh), NodeId(signer.public))
                ledger.hear(str(subject), encode_frame(signer, number, NOW, "tea", acts))


def verify(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    code = main(["verify", *map(str, words)])
    told = capsys.readouterr()
    return code, told.out + told.err


async def test_an_act_is_proved_here_and_its_file_anywhere(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said, other = act(1, "I said this\x1b[2J\nand this"), act(2, "beside it")
    await keep(home, home.signer("node"), home.mesh_id(), [said, other])
    proof = tmp_path / "said.proof"
    code, told = verify(capsys, said.id.hex(), "--home", home.path, "--save", proof)
    assert code == 0
    for part in (
        "mara",
        home.mesh_id(),
        "(this mesh)",
        "tea",
        "I said this [2J",
        "             and this",
        "2027-01-15",
    ):
        assert part in told
    assert "1 other act in it" in told
    assert "\x1b" not in told
    code, told = verify(capsys, proof, "--json")  # no home at all
    seen = json.loads(told)
    assert (code, seen["proved"], seen["text"], seen["own"]) == (0, True, said.text, False)
    assert verify(capsys, said.id.hex(), "--home", home.path, "--save", proof)[0] == 1  # never overwrites
    assert verify(capsys, "last", "--home", home.path)[0] == 0


async def test_what_a_peer_said_is_proved_until_its_mesh_revokes_the_node(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh, node = MeshId(PEER.public), NodeId(PEER_NODE.public)
    paper = issue(PEER, Certificate(mesh, node, NOW - 9, NOW + 9, ["speak"]))
    with store_of(home) as store, store.transaction():
        store.execute("INSERT INTO link_papers VALUES (?, ?, ?, 1)", (mesh, node, paper))
        store.execute("INSERT INTO peers VALUES (?, 'bob', '[]', '', '', NULL)", (mesh,))
    said = act(1, "from bob")
    await keep(home, PEER_NODE, mesh, [said])
    proof = tmp_path / "bob.proof"
    code, told = verify(capsys, said.id.hex()[:32], "--home", home.path, "--save", proof)
    assert (code, "(bob here)" in told, "revoked nobody" in told) == (0, True, True)
    with store_of(home) as store, store.transaction():
        listed = revoke(PEER, Revocation(mesh, 4, [node]))
        store.execute("INSERT INTO link_revocations VALUES (?, ?)", (mesh, listed))
    for what in (said.id.hex(), proof):  # the newest list that the home knows counts for a file too
        code, told = verify(capsys, what, "--home", home.path)
        assert (code, "list number 4" in told, "its date alone does not prove it" in told) == (1, True, True)
    assert verify(capsys, proof)[0] == 0  # whoever knows of no list
    assert verify(capsys, said.id.hex(), "--home", home.path, "--save", tmp_path / "again")[0] == 1
    assert not (tmp_path / "again").exists()


async def test_taken_back_words_are_said_to_be(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    """Our own frames were signed anew round the husk; of a peer's the signature went with the words."""
    said = act(1, "regrets")
    redaction = act(2, "sorry", kind="redact", refs=[said.id])
    await keep(home, home.signer("node"), home.mesh_id(), [said], [redaction])
    code, told = verify(capsys, said.id.hex(), "--home", home.path)
    assert (code, "the words were taken back" in told, "regrets" in told) == (0, True, False)


async def test_a_peers_words_that_were_taken_back_are_not_proved(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    mesh, node = MeshId(PEER.public), NodeId(PEER_NODE.public)
    paper = issue(PEER, Certificate(mesh, node, NOW - 9, NOW + 9, ["speak"]))
    with store_of(home) as store, store.transaction():
        store.execute("INSERT INTO link_papers VALUES (?, ?, ?, 1)", (mesh, node, paper))
    said = act(1, "regrets")
    redaction = act(2, "sorry", kind="redact", refs=[said.id])
    await keep(home, PEER_NODE, mesh, [said], [redaction])
    code, told = verify(capsys, said.id.hex(), "--home", home.path)
    assert (code, "changed or taken back" in told, "regrets" in told) == (1, True, False)


def test_what_is_no_proof_ends_in_one_line(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").write_bytes(b"\xff" * 99)
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    for what in (tmp_path / "other", tmp_path / "large", "no-file", "abcdef", "zz" * 16):
        code, told = verify(capsys, what, "--home", home.path)
        assert code == 1
        assert told.count("\n") == 1
        assert told.startswith("mesh: ")
