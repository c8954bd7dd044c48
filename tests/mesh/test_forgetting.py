"""What its author takes back loses its words: in the ledger, in whatever order it comes, and in the stream."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from buses import Place
from harness import MESH_ID, NODE, NOW, OTHER, SCHEMAS, TRUST, certificate, frame, root, until

from mesh.bus.base import Bus, Stored
from mesh.bus.memory import MemoryBroker, MemoryBus
from mesh.bus.nats.bus import NatsBus
from mesh.entries import Entry, find, missing, recent
from mesh.erasing import repeated
from mesh.errors import BusRefused, BusUnavailable
from mesh.forgetting import Forgetting, Own, forgotten_among
from mesh.ledger import Ledger
from mesh.outbox import Outbox
from mesh.store import MESH_SCHEMA, Store
from protocol.acts import Act
from protocol.errors import BadFrame
from protocol.frame import decode_frame, frame_id
from protocol.husk import is_husk
from protocol.keys import KeyKind, MeshId, Signer

OWN = Own(MESH_ID, NODE)
WORDS = "the hidden harbour"
SECRET = root(WORDS, 1)
NEIGHBOUR = root("low tide", 2)


def about(act: Act, kind: str, text: str, number: int, author: str = "mara") -> Act:
    """An `edit` or `redact` of an act."""
    return msgspec.structs.replace(root(text, number, author, kind), refs=[act.id])


REDACT = about(SECRET, "redact", "said too much", 9)


@dataclass
class Book:
    """A ledger over a store, without a stream; what its handler was given, and what it was told to forget."""

    store: Store
    own: Own | None = OWN
    heard: list[Entry] = field(default_factory=list)
    told: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        forgetting = Forgetting(self.store, self.own, self.told.extend)
        bus = MemoryBroker().connect()
        self.ledger = Ledger(bus, self.store, TRUST, lambda: NOW, self.heard.extend, forgetting)

    def keep(self, *frames: tuple[str, bytes]) -> None:
        """Feed frames as the stream would."""
        start = self.ledger.cursor
        self.ledger.keep([Stored(start + place, *one) for place, one in enumerate(frames, start=1)])

    def due(self) -> list[int]:
        return [seq for (seq,) in self.store.rows("SELECT seq FROM erasures ORDER BY seq")]

    def text(self, act: Act) -> str | None:
        """What the node knows of an act's words; None when it was taken back."""
        entry = find(self.store, act.id)
        assert entry is not None
        return None if is_husk(entry.act) else entry.act.text


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", SCHEMAS)
    yield one
    one.close()


@pytest.fixture
def book(store: Store) -> Book:
    return Book(store)


def on_disk(store: Store, words: str = WORDS) -> bool:
    """Whether the words are in any file of the database, or beside it."""
    return bool(holding(store.path.parent, words))


def holding(folder: Path, words: str) -> list[Path]:
    """The files that hold some words."""
    return [path for path in folder.rglob("*") if path.is_file() and words.encode() in path.read_bytes()]


# --- the ledger ------------------------------------------------------------------------------------------------------


def test_the_words_go_and_the_act_stays_in_its_place(book: Book, store: Store) -> None:
    book.keep(frame(1, SECRET, NEIGHBOUR), frame(2, REDACT))
    kept = find(store, SECRET.id)
    assert kept is not None
    assert is_husk(kept.act)
    assert (kept.act.budget, kept.act.root, kept.basin) == (SECRET.budget, SECRET.root, "yappings")
    assert [entry.act.id for entry in recent(store, "yappings", 9)] == [SECRET.id, NEIGHBOUR.id, REDACT.id]
    assert book.text(NEIGHBOUR) == "low tide"
    assert forgotten_among(store, [SECRET.id])
    assert not forgotten_among(store, [NEIGHBOUR.id, REDACT.id])
    assert book.due() == [0, 1]
    assert store.scrub()
    assert not on_disk(store)
    (data,) = store.one("SELECT frame FROM frames WHERE n = 1")
    assert [act.text for act in decode_frame(data).acts] == ["", "low tide"]  # signed anew


def test_whoever_derived_something_is_told_once_and_with_the_words(book: Book, store: Store) -> None:
    book.keep(frame(1, SECRET))
    book.keep(frame(2, REDACT))
    book.keep(frame(3, about(SECRET, "redact", "again", 10)))
    assert [entry.act for entry in book.told] == [SECRET]
    again = Book(store)
    again.keep(frame(1, SECRET), frame(2, REDACT))  # the stream from its beginning
    assert again.told == again.heard == []


def test_the_handler_never_sees_words_that_were_taken_back_in_the_same_batch(book: Book) -> None:
    book.keep(frame(1, SECRET), frame(2, REDACT))
    assert [entry.act.text for entry in book.heard] == ["", "said too much"]
    assert [entry.act for entry in book.told] == [SECRET]


def test_edits_go_with_the_act_that_they_edit(book: Book, store: Store) -> None:
    first = about(SECRET, "edit", f"{WORDS}, by night", 3)
    second = about(first, "edit", f"{WORDS}, by day", 4)
    other = about(SECRET, "edit", "somebody else's words", 5, "ada")
    book.keep(frame(1, SECRET), frame(2, first, second), frame(3, other), frame(4, REDACT))
    assert [book.text(act) for act in (SECRET, first, second, other)] == [None, None, None, "somebody else's words"]
    assert book.due() == [0, 1, 2]
    late = about(SECRET, "edit", f"{WORDS}, at last", 6)
    later = about(late, "edit", f"{WORDS}, after all", 7)
    book.keep(frame(5, late), frame(6, later))
    assert [book.text(late), book.text(later)] == [None, None]
    assert store.scrub()
    assert not on_disk(store)


def test_an_edit_alone_can_be_taken_back(book: Book) -> None:
    edit = about(NEIGHBOUR, "edit", WORDS, 3)
    book.keep(frame(1, NEIGHBOUR, edit), frame(2, about(edit, "redact", "", 4)))
    assert (book.text(NEIGHBOUR), book.text(edit)) == ("low tide", None)
    assert [entry.act for entry in book.told] == [edit]


@pytest.mark.parametrize("redact", [about(SECRET, "redact", "", 9, "ada"), root("", 9, kind="redact")])
def test_only_its_author_takes_an_act_back(book: Book, redact: Act) -> None:
    book.keep(frame(1, SECRET), frame(2, redact))
    assert (book.text(SECRET), book.due(), book.told) == (WORDS, [], [])


def test_a_namesake_in_another_mesh_takes_nothing_back(store: Store) -> None:
    """The same author's name under another mesh is somebody else, before and after the act."""
    book = Book(store)
    stranger = Signer(b"x" * 32, KeyKind.MESH)
    book.ledger._trust = type(TRUST)([certificate(NODE), certificate(OTHER, stranger)])
    subject, data = frame(1, REDACT, node=OTHER)
    foreign = (subject.replace(MESH_ID, stranger.public), data)
    book.keep(foreign, frame(1, SECRET), foreign)
    assert find(store, REDACT.id) is not None
    assert (book.text(SECRET), book.due()) == (WORDS, [])


@pytest.mark.parametrize("other", [NODE, OTHER])
def test_an_act_that_comes_after_its_redaction_is_a_husk_as_it_arrives(book: Book, store: Store, other: Signer) -> None:
    edit = about(SECRET, "edit", f"{WORDS}, by night", 3)
    book.keep(frame(1, REDACT), frame(1 if other is OTHER else 2, edit, NEIGHBOUR, SECRET, node=other))
    assert [entry.act.text for entry in book.heard] == ["said too much", "", "low tide", ""]
    assert [book.text(act) for act in (SECRET, edit, NEIGHBOUR)] == [None, None, "low tide"]
    assert forgotten_among(store, [SECRET.id])
    assert book.due() == [0, 2]
    assert not on_disk(store)


def test_a_replay_brings_nothing_back_and_is_erased_too(book: Book, store: Store) -> None:
    book.keep(frame(1, SECRET), frame(2, REDACT))
    book.ledger.hear(*frame(1, SECRET))
    book.keep(frame(1, SECRET), frame(7, NEIGHBOUR, SECRET, sent=NOW + 1))
    assert book.text(SECRET) is None
    assert book.due() == [0, 1, 3, 4]
    assert [entry.act.id for entry in book.heard] == [SECRET.id, REDACT.id, NEIGHBOUR.id]
    assert store.scrub()
    assert store.one("SELECT count(*) FROM frames WHERE n = 3")[0] == 1
    assert not on_disk(store)


def test_an_act_framed_twice_is_forgotten_in_both_frames(book: Book, store: Store) -> None:
    book.keep(frame(1, SECRET), frame(2, SECRET, NEIGHBOUR), frame(3, REDACT))
    assert book.due() == [0, 1, 2]
    assert store.scrub()
    assert not on_disk(store)


def test_a_frame_that_came_directly_is_erased_when_the_stream_has_it(book: Book) -> None:
    """Heard, taken back and forgotten before the stream has shown either."""
    book.ledger.hear(*frame(1, SECRET))
    book.ledger.hear(*frame(2, REDACT))
    assert (book.text(SECRET), book.due()) == (None, [0])
    book.keep(frame(1, SECRET), frame(2, REDACT))
    assert book.due() == [0, 1]


def test_frames_of_others_lose_their_proof_with_the_words(store: Store) -> None:
    book = Book(store)
    book.keep(frame(1, SECRET, NEIGHBOUR, node=OTHER), frame(2, REDACT, node=OTHER))
    assert (book.text(SECRET), book.text(NEIGHBOUR)) == (None, "low tide")
    with pytest.raises(BadFrame):
        decode_frame(store.one("SELECT frame FROM frames WHERE n = 1")[0])
    assert store.scrub()
    assert not on_disk(store)


def test_what_waits_in_the_outbox_is_emptied_too(book: Book, store: Store) -> None:
    outbox = Outbox(MemoryBroker().connect(), store, NODE, certificate(NODE), lambda: NOW)
    with store.transaction():
        for act in (SECRET, NEIGHBOUR):
            outbox.put("yappings", act)
    book.ledger.hear(*frame(1, SECRET))
    book.ledger.hear(*frame(2, REDACT))
    again = Outbox(MemoryBroker().connect(), store, NODE, certificate(NODE), lambda: NOW)
    again.resume({})
    assert [act.id for act in again.acts()] == [NEIGHBOUR.id]  # the other one was heard: it goes as it is kept
    assert [is_husk(again.find(act.id) or act) for act in (SECRET, NEIGHBOUR)] == [True, False]
    assert store.scrub()
    assert not on_disk(store)


@pytest.mark.parametrize("times", [1, 40, 3000])
def test_no_free_page_holds_what_waited_in_the_outbox(book: Book, store: Store, times: int) -> None:
    """What was sent long ago left its table then, not when it is taken back; long acts fill pages of their own."""
    outbox = Outbox(MemoryBroker().connect(), store, NODE, certificate(NODE), lambda: NOW)
    secret = root(WORDS * times, 1)
    with store.transaction():
        for act in (root("before", 3), secret, *(root("after", n) for n in range(10, 200))):
            outbox.put("yappings", act)
    book.keep(frame(1, secret))
    with store.transaction():
        store.execute("DELETE FROM outbox")
    book.keep(frame(2, about(secret, "redact", "", 9)))
    assert store.scrub()
    assert not on_disk(store)


def test_a_database_of_before_honours_old_redactions_when_it_has_read_the_stream_again(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    old = Store(path, {"mesh": MESH_SCHEMA[:1]})
    subject, data = frame(1, SECRET)
    with old.transaction():
        old.execute("INSERT INTO origins (mesh, node) VALUES (?, ?)", (MESH_ID, NODE.public))
        for n, (act, bytes_) in enumerate([(SECRET, data), (REDACT, frame(2, REDACT)[1])], start=1):
            old.execute("INSERT INTO frames VALUES (?, 'yappings', 1, 0, ?)", (n, bytes_))
            old.execute("INSERT INTO acts VALUES (?, ?)", (act.id, n * 64))
        old.execute("UPDATE cursor SET seq = 2")
    old.close()
    store = Store(path, SCHEMAS)
    book = Book(store)
    assert book.ledger.cursor == 0
    assert on_disk(store)
    book.keep((subject, data), frame(2, REDACT))
    assert book.heard == []
    assert [entry.act for entry in book.told] == [SECRET]
    assert book.due() == [0, 1]
    assert store.scrub()
    assert not on_disk(store)  # nor in the copy that was made before the migration
    store.close()


def test_scrubbing_waits_for_nobody(store: Store) -> None:
    with store.transaction():
        store.execute("INSERT INTO emptied VALUES (1)")
    reader = Store(store.path, read_only=True)
    reader.execute("BEGIN")
    reader.rows("SELECT * FROM emptied")
    with store.transaction():
        store.execute("INSERT INTO emptied VALUES (2)")
    assert not store.scrub()
    reader.close()
    assert store.scrub()


# --- the stream ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(store: Store, bus: Bus, own: Own | None = OWN) -> AsyncIterator[Ledger]:
    """A ledger at work, for the length of the block."""
    ledger = Ledger(bus, store, TRUST, lambda: NOW, lambda _: None, Forgetting(store, own))
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.run("node", ready.set, lambda: None))
        await ready.wait()
        try:
            yield ledger
        finally:
            task.cancel()


async def publish(bus: Bus, *frames: tuple[str, bytes]) -> None:
    for subject, data in frames:
        await bus.publish(subject, data, frame_id(data))


def is_clean(store: Store, newest: int) -> bool:
    """Everything up to a place in the stream is kept, and nothing is left to erase."""
    return store.one("SELECT seq FROM cursor")[0] >= newest and not store.rows("SELECT * FROM erasures")


async def texts(bus: Bus) -> list[list[str]]:
    """What the stream holds."""
    return [[act.text for act in decode_frame(one.data).acts] for one in await bus.read(1, await bus.last_seq())]


async def test_the_stream_loses_the_words_and_nothing_else(place: Place, tmp_path: Path) -> None:
    """A node that is built anew from the stream misses neither an act nor a number."""
    bus = await place.connect()
    store = Store(tmp_path / "one.db", SCHEMAS)
    await publish(bus, frame(1, SECRET, NEIGHBOUR), frame(2, root("dawn", 3)), frame(3, REDACT))
    async with running(store, bus):
        await until(lambda: is_clean(store, 4))
    assert await texts(bus) == [["dawn"], ["said too much"], ["", "low tide"]]
    again = Store(tmp_path / "two.db", SCHEMAS)
    async with running(again, bus):
        await until(lambda: is_clean(again, 4))
    assert await bus.last_seq() == 4
    assert missing(again) == 0
    assert {entry.act.text for entry in recent(again, "yappings", 9)} == {"dawn", "said too much", "", "low tide"}
    assert forgotten_among(again, [SECRET.id])
    store.close()
    again.close()


async def test_what_is_taken_back_live_goes_at_once(place: Place, store: Store) -> None:
    bus = await place.connect()
    async with running(store, bus):
        await publish(bus, frame(1, SECRET))
        await until(lambda: is_clean(store, 1))
        await publish(bus, frame(2, REDACT))
        await until(lambda: is_clean(store, 3))
        assert await texts(bus) == [["said too much"], [""]]
        assert not on_disk(store)


class Faulty(MemoryBus):
    """A bus whose `erase` fails in given ways before it works."""

    def __init__(self, broker: MemoryBroker, faults: Sequence[Exception]) -> None:
        super().__init__(broker)
        self.faults = list(faults)

    async def erase(self, seq: int) -> None:
        if self.faults:
            raise self.faults.pop(0)
        await super().erase(seq)


async def test_an_erasure_that_a_crash_cut_short_is_done_at_the_next_start(store: Store) -> None:
    """Said again before it is erased: at no point does the stream lack what shared the frame."""
    async with MemoryBroker() as broker:
        bus = Faulty(broker, [BusUnavailable("away")] * 3)
        await publish(bus, frame(1, SECRET, NEIGHBOUR), frame(2, REDACT))
        async with running(store, bus):
            await until(lambda: len(bus.faults) < 3)
        assert WORDS in str(await texts(bus))
        bus.faults.clear()
        async with running(store, bus):
            await until(lambda: is_clean(store, 3))
        assert await texts(bus) == [["said too much"], ["", "low tide"]]


async def test_a_server_that_forbids_erasing_is_asked_again_at_the_next_start(store: Store) -> None:
    async with MemoryBroker() as broker:
        bus = Faulty(broker, [BusRefused("no permission")])
        await publish(bus, frame(1, SECRET), frame(2, REDACT))
        async with running(store, bus):
            await until(lambda: not bus.faults)
            await until(lambda: store.rows("SELECT seq FROM erasures") == [(1,)])
            assert not on_disk(store)  # our own files do not wait for it
        async with running(store, bus):
            await until(lambda: is_clean(store, 3))
        assert WORDS not in str(await texts(bus))


async def test_another_stream_is_not_erased_by_the_places_of_the_old_one(store: Store) -> None:
    async with MemoryBroker() as broker:
        bus = Faulty(broker, [BusUnavailable("away")] * 100)
        await publish(bus, frame(1, root("one", 4)), frame(2, SECRET), frame(3, REDACT))
        async with running(store, bus):
            await until(lambda: len(bus.faults) < 100)
    async with MemoryBroker() as broker:
        bus = broker.connect()
        await publish(bus, frame(1, root("one", 4)), frame(2, NEIGHBOUR))
        async with running(store, bus):
            await until(lambda: is_clean(store, 2))
        assert await texts(bus) == [["one"], ["low tide"]]


def test_what_an_earlier_key_signed_is_said_again_by_this_one() -> None:
    subject, data = frame(5, SECRET, NEIGHBOUR, node=OTHER)
    message = Stored(1, subject, data)
    again = repeated(message, {SECRET.id}, OWN, NOW + 1)
    assert again is not None
    where, said = again
    read = decode_frame(said)
    assert where == subject.replace(OTHER.public, NODE.public)
    assert (read.node, read.sequence, read.sent_at_ms) == (NODE.public, 0, NOW + 1)
    assert [act.text for act in read.acts] == ["", "low tide"]
    stranger = MeshId(Signer(b"x" * 32, KeyKind.MESH).public)
    assert repeated(Stored(1, subject.replace(MESH_ID, stranger), data), {SECRET.id}, OWN, NOW) is None
    assert repeated(message, {SECRET.id}, None, NOW) is None


async def test_a_real_server_has_the_words_nowhere_on_its_disk(bus: NatsBus, store: Store, tmp_path: Path) -> None:
    """Its blocks, the last one among them, are overwritten while it runs."""
    async with running(store, bus):
        await publish(bus, frame(1, root("before", 3)), frame(2, SECRET, NEIGHBOUR), frame(3, REDACT))
        await until(lambda: is_clean(store, 4))
        assert "nats" in {folder for path in holding(tmp_path, "low tide") for folder in path.parts}
        assert holding(tmp_path, WORDS) == []
