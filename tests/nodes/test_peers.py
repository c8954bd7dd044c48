"""What peers may have, say and cost, without a network; settings, several companions, QR codes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from harness import BUDGET, MESH_ID, NOW, SCHEMAS, root

from mesh.entries import Entry
from mesh.store import Store
from nodes import qr
from nodes.chains import Chains
from nodes.companion import Alone, Companions
from nodes.config import MeshConfig
from nodes.peers.gates import STATEMENTS_A_MINUTE, PeerGates
from nodes.peers.settings import Links
from nodes.peers.tables import Peer
from protocol.acts import Act, new_id
from protocol.budget import Budget
from protocol.invitation import place_of
from protocol.keys import KeyKind, MeshId, NodeId, Signer
from protocol.link import Relationship, Share, Side, Standing, Terms
from protocol.quota import Quota
from protocol.statement import Trust, own_basin

PEER = MeshId(Signer(b"p" * 32, KeyKind.MESH).public)
THIRD = MeshId(Signer(b"t" * 32, KeyKind.MESH).public)
NODE = NodeId(Signer(b"q" * 32, KeyKind.NODE).public)
QUOTA = Quota(100, 2, 1_000)


@pytest.fixture
def gates(tmp_path: Path) -> Iterator[PeerGates]:
    store = Store(tmp_path / "node.db", SCHEMAS)
    made = PeerGates(MESH_ID, store, lambda: NOW, 366, lambda _: None)
    tea = {"tea": Share("write", NOW)}
    mine = Side(1, standing=Standing.INVITED, terms=Terms(gives=tea, trust=Trust.KNOWN, quota=QUOTA))
    theirs = Side(1, standing=Standing.AGREED, terms=Terms(takes=tea, trust=Trust.KNOWN))
    peer = Peer(PEER, "bob", (), Relationship(MESH_ID, PEER, 1, mine, theirs))
    made.tables.put(peer)
    made.peers[PEER] = peer
    yield made
    store.close()


def test_whoever_is_unknown_has_says_and_costs_nothing(gates: PeerGates) -> None:
    said = root("hello")
    assert gates.sent(THIRD) == []
    assert not gates.may_have(THIRD, MESH_ID, "tea", said)
    assert not gates.takes(THIRD, "tea")
    assert gates.refuses(THIRD, THIRD, "tea", said)
    assert "linked with" in str(gates.reserve(THIRD, 1, begins=True))


def test_what_is_shared_flows_and_nothing_else(gates: PeerGates) -> None:
    own = own_basin(MESH_ID, PEER)
    assert [sent.basin for sent in gates.sent(PEER)] == [own, "tea"]
    assert gates.may_have(PEER, THIRD, "tea", root("passed on"))
    assert not gates.may_have(PEER, THIRD, own, root("in our relationship"))
    assert gates.takes(PEER, "tea")
    assert not gates.takes(PEER, "diary")
    assert gates.refuses(PEER, THIRD, own, root("by a third")) is not None
    assert gates.refuses(PEER, THIRD, "tea", root("x", kind="leave")) is not None
    assert gates.refuses(PEER, THIRD, "tea", root("x")) is None


def test_a_quota_holds_back_counts_and_gives_back(gates: PeerGates) -> None:
    assert gates.pace_s(PEER, "tea", 64) == 0
    assert 0 < gates.pace_s(PEER, "tea", 64) <= 60
    assert gates.pace_s(PEER, own_basin(MESH_ID, PEER), STATEMENTS_A_MINUTE) == 0  # a farewell is not held back
    assert gates.reserve(PEER, 900, begins=True) is None
    assert "tokens today" in str(gates.reserve(PEER, 200, begins=False))
    gates.settle(PEER, 900, 100, 0.25)
    assert gates.reserve(PEER, 900, begins=True) is None
    assert "chains begun" in str(gates.reserve(PEER, 0, begins=True))
    gates.save_all()
    kept = gates.tables.peers()[0]
    assert (kept.spent.acts, kept.spent.roots, kept.spent.tokens) == (64, 2, 1_000)
    assert gates.tables.day(PEER, NOW) == (64, 1, 0.25, 0, 2)


def answer(to: Act, number: int, budget: Budget) -> Act:
    return Act(new_id(NOW, number.to_bytes(10, "big")), "say", "em", [to.id], to.root, budget, NOW, {"text": "x"})


def test_a_chain_from_elsewhere_is_held_to_what_one_of_ours_would_get() -> None:
    """Hops, acts, tokens and time; and our own answers, which carry less, do not count for more than they cost."""
    ours = Budget(3, 4, 100, NOW + 1_000)
    chains = Chains(MESH_ID, lambda _basin, _now: ours)
    start = root("x", 1, budget=Budget(30, 60, 1_000_000, NOW + 10**9))
    heard = Entry(1, "tea", PEER, NODE, start)
    chains.hear(heard)
    assert chains.charge(heard) == (PEER, False)
    assert chains.reserve(start, 101, NOW) == "too few tokens left for a reply"
    assert chains.reserve(start, 60, NOW) is None
    left = chains.settle(start, 60, 40)
    assert (left.hops, left.acts, left.tokens) == (29, 3, 60)
    said = answer(start, 2, left)
    chains.promise(said)
    chains.hear(Entry(2, "tea", MESH_ID, NODE, said))
    assert chains.used(start.id) == (1, 40)
    assert "from elsewhere" in str(chains.spent(said, NOW + 1_000))
    deep = answer(said, 3, msgspec.structs.replace(left, hops=27))
    chains.hear(Entry(3, "tea", PEER, NODE, deep))
    assert "no hops left" in str(chains.spent(deep, NOW))
    mine = root("y", 4, budget=BUDGET)
    heard = Entry(4, "tea", MESH_ID, NODE, mine)
    chains.hear(heard)
    assert chains.charge(heard) is None


class Says(Alone):
    def __init__(self, there: bool | None) -> None:
        self.there = there

    def listens(self, em: str, basin: str) -> bool | None:  # noqa: ARG002 - a Companion's
        return self.there


@pytest.mark.parametrize(
    ("told", "expected"),
    [((None, None), None), ((None, True), True), ((True, False), False), ((False, None), False), ((), None)],
)
def test_of_several_companions_a_no_wins(told: tuple[bool | None, ...], expected: bool | None) -> None:
    assert Companions(*(Says(there) for there in told)).listens("aporia", "tea") is expected


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ()),
        ({"listen": "127.0.0.1:0"}, ("127.0.0.1:4321",)),
        ({"listen": "0.0.0.0:7417"}, ()),
        ({"listen": "[::1]:7417"}, ("[::1]:4321",)),
        ({"listen": "0.0.0.0:7417", "addresses": ["mesh.example.org:443"]}, ("mesh.example.org:443",)),
    ],
)
def test_invitations_tell_addresses_that_others_can_use(settings: dict[str, object], told: tuple[str, ...]) -> None:
    assert Links.model_validate(settings).told(4321 if "listen" in settings else None) == told


def test_addresses_are_checked_and_dialled() -> None:
    for wrong in ({"listen": "7417"}, {"listen": "a:99999"}, {"addresses": ["http://a:1"]}, {"addresses": ["a:1"] * 5}):
        with pytest.raises(ValueError, match="links"):
            MeshConfig.model_validate({"links": wrong})
    assert place_of("mesh.example.org:443").url == "wss://mesh.example.org:443"
    assert place_of("127.0.0.1:7417").url == "ws://127.0.0.1:7417"


CORNER = ["#######", "#     #", "# ### #", "# ### #", "# ### #", "#     #", "#######"]


def test_a_qr_code_has_its_size_and_what_readers_find_it_by() -> None:
    for length, size in ((25, 21), (26, 25), (77, 29), (114, 33), (154, 37)):
        grid = qr.encode("A" * length)
        assert len(grid) == len(grid[0]) == size
        for top, left in ((0, 0), (0, size - 7), (size - 7, 0)):
            corner = ["".join("# "[not dark] for dark in row[left : left + 7]) for row in grid[top : top + 7]]
            assert corner == CORNER
    with pytest.raises(ValueError, match="154"):
        qr.encode("A" * 155)
    with pytest.raises(ValueError, match="capital"):
        qr.encode("mesh:a")


def test_a_qr_code_is_the_one_that_a_decoder_has_read() -> None:
    """The digest of a grid that another program read back as this link; so were codes of all five versions."""
    link = ("MESH:" + "CEU2ZOXBIG6MV4FSFYNJJU2NBPDTMHSSNUF74EWIS6KLZEZCSZW5OQ" * 2)[:95]
    assert hashlib.blake2b(repr(qr.encode(link)).encode(), digest_size=8).hexdigest() == "f271f1faa9605f33"


def test_a_drawn_code_has_lines_of_one_width() -> None:
    lines = qr.drawn(qr.encode("MESH:ABC"))
    assert len(lines) == 15
    assert {len(line) for line in lines} == {len(lines[0])}
