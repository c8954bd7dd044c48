"""Acts of different meshes under one id: each is heard, whichever comes first, and each is only its own mesh's."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from harness import MESH, MESH_ID, NODE, NOW, OTHER, SCHEMAS, certificate, root

from mesh.bus.base import Stored
from mesh.bus.memory import MemoryBroker
from mesh.entries import Entry, count, every, find, recent
from mesh.forgetting import Forgetting, Own, forgotten_among
from mesh.ledger import Ledger
from mesh.store import MESH_SCHEMA, Store
from mesh.trust import Trust
from protocol.acts import Act, new_id
from protocol.address import Subject, parse_subject
from protocol.frame import decode_frame, encode_frame
from protocol.husk import is_husk
from protocol.keys import KeyKind, MeshId, NodeId, Signer

HERS, HIS = Signer(b"t" * 32, KeyKind.MESH), Signer(b"x" * 32, KeyKind.MESH)
NODES = {MESH_ID: NODE, HERS.public: Signer(b"u" * 32, KeyKind.NODE), HIS.public: Signer(b"y" * 32, KeyKind.NODE)}
TRUST = Trust(certificate(NODES[mesh.public], mesh) for mesh in (MESH, HERS, HIS))
Said = tuple[str, bytes]


def frame(mesh: Signer, sequence: int, *acts: Act) -> Said:
    """What the node of a mesh says."""
    node = NODES[mesh.public]
    subject = Subject(True, "yappings", MeshId(mesh.public), NodeId(node.public))
    return str(subject), encode_frame(node, sequence, NOW, "yappings", acts)


def about(act: Act, kind: str, text: str, number: int) -> Act:
    return msgspec.structs.replace(root(text, number, kind=kind), refs=[act.id])


def answer(parent: Act, number: int, hops: int) -> Act:
    budget = msgspec.structs.replace(parent.budget, hops=hops)
    return Act(
        new_id(NOW, number.to_bytes(10, "big")), "say", "ada", [parent.id], parent.root, budget, NOW, {"text": "yes"}
    )


@dataclass
class Book:
    """A ledger over a store; what its handler was given, and what it was told to forget."""

    store: Store
    heard: list[Entry] = field(default_factory=list)
    told: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        forgetting = Forgetting(self.store, Own(MESH_ID, NODE), self.told.extend)
        self.ledger = Ledger(MemoryBroker().connect(), self.store, TRUST, lambda: NOW, self.heard.extend, forgetting)

    def keep(self, *frames: Said) -> list[str]:
        """Feed frames as the stream would; returns the texts that were new."""
        before, start = len(self.heard), self.ledger.cursor
        self.ledger.keep([Stored(start + place, *one) for place, one in enumerate(frames, start=1)])
        return [entry.act.text for entry in self.heard[before:]]

    def hear(self, *frames: Said) -> list[str]:
        """The same, directly."""
        before = len(self.heard)
        for one in frames:
            self.ledger.hear(*one)
        return [entry.act.text for entry in self.heard[before:]]

    def text(self, act: Act, mesh: Signer) -> str | None:
        """What the node knows of the words that a mesh said under an id; None when they were taken back."""
        entry = find(self.store, act.id, MeshId(mesh.public))
        assert entry is not None
        return None if is_husk(entry.act) else entry.act.text

    def refused(self) -> dict[str, int]:
        return dict(self.store.rows("SELECT reason, times FROM refusals"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", SCHEMAS)
    yield one
    one.close()


@pytest.fixture
def book(store: Store) -> Book:
    return Book(store)


HER, COPY = root("hers", 1), root("his", 1)
BOTH = {"hers": frame(HERS, 1, HER), "his": frame(HIS, 1, COPY)}


@pytest.mark.parametrize("order", list(itertools.permutations(BOTH)))
@pytest.mark.parametrize("way", ["stream", "direct", "early"])
def test_both_are_heard_each_once_whoever_comes_first(store: Store, order: tuple[str, str], way: str) -> None:
    """Also when they come again, by either way, to this process and to the next one."""
    book, frames = Book(store), [BOTH[name] for name in order]
    assert (book.keep if way == "stream" else book.hear)(*frames) == list(order)
    if way != "direct":
        assert book.keep(*frames) == []
    for one in (book, Book(store)):
        assert (one.keep(*frames), one.hear(*frames)) == ([], [])
    assert [entry.act.text for entry in recent(store, "yappings", 9)] == list(order)
    assert (book.text(HER, HERS), book.text(HER, HIS), count(store)) == ("hers", "his", 2)
    first = find(store, HER.id)
    assert first is not None
    assert (first.act.text, find(store, HER.id, MESH_ID)) == (order[0], None)
    assert [entry.act.text for entry in every(store, HER.id)] == list(order)
    assert book.refused() == {}


def test_they_are_heard_out_of_one_batch_and_beside_other_acts(book: Book) -> None:
    more = root("more", 2)
    assert book.keep(BOTH["his"], frame(HERS, 1, HER, more), frame(HIS, 2, COPY, more)) == [
        "his",
        "hers",
        "more",
        "more",
    ]
    assert book.keep(frame(HERS, 1, HER, more), frame(HIS, 2, COPY, more)) == []


def test_a_frame_is_of_use_until_its_own_mesh_was_heard(book: Book) -> None:
    """What a peer sends is not passed over because somebody else has used its ids."""

    def holds(given: Said) -> bool:
        return book.ledger.holds(parse_subject(given[0]), decode_frame(given[1]))

    book.keep(BOTH["his"])
    assert holds(BOTH["his"])
    hers = frame(HERS, 0, HER)  # a number that is never new
    assert not holds(hers)
    book.keep(hers)
    assert holds(hers)


@pytest.mark.parametrize("order", list(itertools.permutations(BOTH)))
def test_each_takes_back_only_its_own(store: Store, order: tuple[str, str]) -> None:
    for taken, mesh, left, other in (("hers", HERS, "his", HIS), ("his", HIS, "hers", HERS)):
        one = Store(store.path.with_name(f"{taken}.db"), SCHEMAS)
        book = Book(one)
        book.keep(*(BOTH[name] for name in order))
        book.keep(frame(mesh, 2, about(HER, "redact", "", 9)))
        assert (book.text(HER, mesh), book.text(HER, other)) == (None, left)
        assert [entry.act.text for entry in book.told] == [taken]
        assert forgotten_among(one, [HER.id])
        assert not forgotten_among(one, [HER.id], MeshId(other.public))
        assert one.rows("SELECT seq FROM erasures WHERE seq != 0") == [(1 + order.index(taken),)]
        book.keep(frame(other, 2, about(HER, "redact", "", 9)))
        assert (book.text(HER, HERS), book.text(HER, HIS)) == (None, None)
        one.close()


def test_a_redaction_that_comes_first_takes_back_only_its_own(book: Book) -> None:
    gone = about(HER, "redact", "", 9)
    assert book.keep(frame(HERS, 2, gone), BOTH["his"], BOTH["hers"]) == ["", "his", ""]
    assert (book.text(HER, HERS), book.text(HER, HIS)) == (None, "his")


def test_one_batch_with_both_and_a_redaction_hands_on_the_words_that_stand(book: Book) -> None:
    assert book.keep(BOTH["his"], BOTH["hers"], frame(HIS, 2, about(HER, "redact", "", 9))) == ["", "hers", ""]


def test_redactions_under_one_id_both_count(book: Book) -> None:
    """To say something else under the id of a redaction does not undo it."""
    book.keep(BOTH["hers"], frame(HIS, 1, root("nothing to see", 9)), frame(HERS, 2, about(HER, "redact", "", 9)))
    assert book.text(HER, HERS) is None


def test_edits_go_with_what_their_own_mesh_took_back(book: Book) -> None:
    edit, copy = about(HER, "edit", "better", 5), root("his again", 5)
    book.keep(frame(HIS, 1, copy), BOTH["hers"], frame(HERS, 2, edit), frame(HERS, 3, about(HER, "redact", "", 9)))
    assert (book.text(edit, HERS), book.text(edit, HIS)) == (None, "his again")


@pytest.mark.parametrize("order", list(itertools.permutations(BOTH)))
def test_a_meagre_copy_of_an_act_does_not_bar_what_answers_it(store: Store, order: tuple[str, str]) -> None:
    """An answer holds when any act of that id leaves so much; it is refused when none does."""
    book = Book(store)
    meagre = msgspec.structs.replace(COPY, budget=msgspec.structs.replace(COPY.budget, hops=0))
    both = {"hers": BOTH["hers"], "his": frame(HIS, 1, meagre)}
    book.keep(*(both[name] for name in order))
    most = HER.budget.hops - 1
    assert book.keep(frame(MESH, 1, answer(HER, 7, most))) == ["yes"]
    assert Book(store).keep(frame(MESH, 2, answer(HER, 8, most))) == ["yes"]
    assert book.keep(frame(MESH, 3, answer(HER, 10, most + 1))) == []
    assert book.refused() == {"BudgetRaised": 1}


def test_what_others_say_under_our_ids_leaves_our_outbox_alone(book: Book, store: Store) -> None:
    """Neither said, as far as the stream is concerned, nor taken back."""
    ours = msgspec.msgpack.encode(HER)
    store.execute("INSERT INTO outbox (id, basin, act) VALUES (?, ?, ?)", (HER.id, "yappings", ours))
    book.keep(BOTH["his"], frame(HIS, 2, about(HER, "redact", "", 9)))
    assert store.rows("SELECT act FROM outbox") == [(ours,)]
    book.keep(frame(MESH, 1, HER))
    assert store.rows("SELECT act FROM outbox") == []


def test_a_database_from_before_knows_whose_words_were_forgotten(tmp_path: Path) -> None:
    old = Store(tmp_path / "node.db", {"mesh": MESH_SCHEMA[:2]})
    old.execute("INSERT INTO origins VALUES (1, ?, ?)", (HERS.public, OTHER.public))
    old.execute("INSERT INTO frames VALUES (3, 'yappings', 1, 0, x'')")
    old.execute("INSERT INTO acts VALUES (?, ?)", (HER.id, 3 * 64 + 5))
    old.execute("INSERT INTO forgotten VALUES (?)", (HER.id,))
    old.close()
    new = Store(tmp_path / "node.db", SCHEMAS)
    assert forgotten_among(new, [HER.id], MeshId(HERS.public))
    assert not forgotten_among(new, [HER.id], MeshId(HIS.public))
    new.close()
