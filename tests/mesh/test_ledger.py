"""The ledger: verified once, in order, each act once; what is refused is counted and never stored."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from harness import BUDGET, MESH_ID, NODE, NOW, OTHER, SCHEMAS, TRUST, certificate, frame, root, until

from mesh.bus.base import Stored
from mesh.bus.memory import MemoryBroker
from mesh.entries import Entry, find, missing, recent
from mesh.errors import StoreFailed
from mesh.ledger import Checked, Ledger
from mesh.store import TENDED, Store
from mesh.trust import CLOCK_SKEW_MS, Trust
from protocol.acts import Act, new_id
from protocol.address import parse_subject
from protocol.budget import Budget
from protocol.certificate import Revocation
from protocol.frame import decode_frame
from protocol.keys import KeyKind, NodeId, Signer


@dataclass
class Book:
    """A ledger over a store, and what its handler was given."""

    store: Store
    trust: Trust = TRUST
    heard: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(MemoryBroker().connect(), self.store, self.trust, lambda: NOW, self.heard.extend)

    def keep(self, *frames: tuple[str, bytes]) -> list[str]:
        """Feed frames as the stream would; returns the texts that were new."""
        before = len(self.heard)
        start = self.ledger.cursor
        self.ledger.keep([Stored(start + place, *one) for place, one in enumerate(frames, start=1)])
        return [entry.act.text for entry in self.heard[before:]]

    def refused(self) -> dict[str, int]:
        return dict(self.store.rows("SELECT reason, times FROM refusals"))

    def gaps(self) -> list[int]:
        ranges = self.store.rows("SELECT first, last FROM gaps ORDER BY first")
        return [sequence for first, last in ranges for sequence in range(first, last + 1)]


def checked(given: tuple[str, bytes]) -> Checked:
    """A frame as whoever has verified it hands it on."""
    return Checked(parse_subject(given[0]), decode_frame(given[1]), given[1])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", SCHEMAS)
    yield one
    one.close()


@pytest.fixture
def book(store: Store) -> Book:
    return Book(store)


def test_acts_are_kept_in_order_and_found_again(book: Book) -> None:
    assert book.keep(frame(1, root("one", 1), root("two", 2)), frame(2, root("three", 3))) == ["one", "two", "three"]
    assert [entry.act.text for entry in recent(book.store, "yappings", 2)] == ["two", "three"]
    found = find(book.store, root("two", 2).id)
    assert found is not None
    assert (found.act.text, found.mesh, found.node) == ("two", MESH_ID, NODE.public)
    assert [entry.act.text for entry in recent(book.store, "yappings", 5, before=found.n)] == ["one"]
    assert find(book.store, bytes(16)) is None


def test_an_act_framed_anew_after_a_crash_is_heard_once(book: Book) -> None:
    assert book.keep(frame(1, root("one", 1))) == ["one"]
    assert book.keep(frame(1, root("one", 1), root("two", 2), sent=NOW + 5)) == ["two"]


def test_a_redelivered_batch_changes_nothing(book: Book, store: Store) -> None:
    one = frame(1, root("one", 1))
    assert book.keep(one) == ["one"]
    assert Book(store).keep(one) == []
    assert store.one("SELECT count(*) FROM acts")[0] == 1


def forged(act: Act) -> tuple[str, bytes]:
    subject, data = frame(1, act)
    return subject, data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (("b.yappings", b"x"), "BadAddress"),
        (forged(root("x")), "BadFrame"),
        ((frame(1, root("x"))[0], b""), "BadFrame"),
        ((frame(1, root("x"))[0], frame(1, root("x"), node=OTHER)[1]), "BadCertificate"),
        ((frame(1, root("x"))[0], frame(1, root("x"), basin="private")[1]), "BadCertificate"),
        (frame(1, root("x"), node=Signer(b"s" * 32, KeyKind.NODE)), "BadCertificate"),
        (frame(1, root("x"), sent=NOW + CLOCK_SKEW_MS + 1), "BadCertificate"),
        (frame(1, root("a b", author="a b")), "BadAct"),
    ],
)
def test_what_does_not_verify_is_counted_and_the_rest_goes_on(book: Book, bad: tuple[str, bytes], reason: str) -> None:
    assert book.keep(bad, frame(1, root("good", 7))) == ["good"]
    assert book.refused() == {reason: 1}
    assert book.ledger.cursor == 2


def test_certificates_bind_in_time_and_revocation_ends_them(store: Store) -> None:
    expired = Book(store, Trust([certificate(NODE, not_after=NOW - 1)]))
    assert expired.keep(frame(1, root("late", 1))) == []
    assert expired.keep(frame(1, root("in time", 2), sent=NOW - 1)) == ["in time"]
    revoked = Trust([certificate(NODE)], [Revocation(MESH_ID, 1, []), Revocation(MESH_ID, 2, [NodeId(NODE.public)])])
    assert Book(store, revoked).keep(frame(2, root("gone", 3))) == []


def child(parent: Act, budget: Budget, number: int) -> Act:
    return Act(
        new_id(NOW + number, bytes(10)), "say", "aporia", [parent.id], parent.root, budget, NOW, {"text": "reply"}
    )


def test_a_raised_budget_is_refused_whether_the_parent_is_in_memory_or_on_disk(book: Book, store: Store) -> None:
    parent = root("hello", 1)
    lower = msgspec.structs.replace(BUDGET, hops=5)
    assert book.keep(frame(1, parent, child(parent, lower, 1), child(parent, BUDGET, 2))) == ["hello", "reply"]
    for name in ("acts", "tokens", "until_ms"):
        raised = msgspec.structs.replace(lower, **{name: getattr(BUDGET, name) + 1})
        assert Book(store).keep(frame(2, child(parent, raised, 3))) == []
    assert book.refused() == {"BudgetRaised": 4}


def test_missing_sequences_are_noted_per_node_and_basin_and_closed_when_they_come(book: Book) -> None:
    book.keep(frame(1, root("1", 1)), frame(5, root("5", 5)), frame(1, root("o", 9), node=OTHER))
    assert book.gaps() == [2, 3, 4]
    book.keep(frame(3, root("3", 3)))
    assert book.gaps() == [2, 4]
    assert book.ledger.marks_of(MESH_ID, NodeId(NODE.public)) == {"yappings": 5}
    assert book.ledger.marks_of(MESH_ID, NodeId(OTHER.public)) == {"yappings": 1}


def test_a_leap_is_one_gap_and_a_late_frame_divides_it(book: Book) -> None:
    book.keep(frame(2**40, root("far", 1)), frame(2**39, root("late", 2)))
    rows = book.store.rows("SELECT first, last FROM gaps ORDER BY first")
    assert rows == [(1, 2**39 - 1), (2**39 + 1, 2**40 - 1)]
    assert missing(book.store) == 2**40 - 2


def test_strangers_share_one_row_of_refusals(book: Book) -> None:
    for number in range(20):
        stranger = Signer(number.to_bytes(32, "big"), KeyKind.MESH)
        subject = f"b.yappings.{stranger.public}.{NODE.public}"
        book.keep((subject, frame(1, root("x", number))[1]))
    assert book.store.rows("SELECT mesh, times FROM refusals") == [("unknown", 20)]


def test_a_frame_without_anything_new_is_not_kept_again(book: Book) -> None:
    for sent in range(5):
        book.keep(frame(1, root("one", 1), sent=NOW + sent))
    assert book.store.one("SELECT count(*) FROM frames")[0] == 1


def test_a_duplicate_does_not_change_what_its_answers_may_leave(book: Book) -> None:
    parent = root("hello", 1)
    richer = msgspec.structs.replace(parent, budget=msgspec.structs.replace(BUDGET, hops=60))
    greedy = child(parent, msgspec.structs.replace(BUDGET, hops=50), 1)
    assert book.keep(frame(1, parent), frame(2, richer), frame(3, greedy)) == ["hello"]


def test_an_act_stays_in_the_chain_that_it_answers(book: Book) -> None:
    parent, other = root("hello", 1), root("other", 2)
    moved = msgspec.structs.replace(child(parent, msgspec.structs.replace(BUDGET, hops=5), 1), root=other.id)
    assert book.keep(frame(1, parent, other), frame(2, moved)) == ["hello", "other"]


async def test_a_failure_on_the_direct_way_ends_the_ledger(broker: MemoryBroker, store: Store) -> None:
    def fail(_: object) -> None:
        raise StoreFailed("the disk is full")

    ledger = Ledger(broker.connect(), store, TRUST, lambda: NOW, fail)
    ready = asyncio.Event()

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.run("node", ready.set, lambda: None))
            await ready.wait()
            await broker.connect().send(*frame(1, root("one", 1)))

    with pytest.raises(ExceptionGroup) as caught:
        await run()
    assert caught.group_contains(StoreFailed)


def test_a_handler_that_fails_leaves_nothing_behind(store: Store) -> None:
    def fail(_: object) -> None:
        raise StoreFailed("the disk is full")

    ledger = Ledger(MemoryBroker().connect(), store, TRUST, lambda: NOW, fail)
    with pytest.raises(StoreFailed):
        ledger.keep([Stored(1, *frame(1, root("one", 1)))])
    assert ledger.cursor == 0
    assert store.one("SELECT count(*) FROM acts")[0] == 0
    assert Book(store).keep(frame(1, root("one", 1))) == ["one"]


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    async with MemoryBroker() as one:
        yield one


async def test_it_catches_up_then_follows_and_continues_where_it_stopped(broker: MemoryBroker, store: Store) -> None:
    bus = broker.connect()
    for number in range(1, 4):
        await bus.publish(*frame(number, root(str(number), number)), f"m{number}")
    heard: list[str] = []
    caught: list[int] = []

    async def follow(target: int) -> None:
        def take(entries: list[Entry]) -> None:
            heard.extend(entry.act.text for entry in entries)

        ledger = Ledger(broker.connect(), store, TRUST, lambda: NOW, take)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(ledger.run("node", lambda: caught.append(len(heard)), lambda: None))
            await until(lambda: ledger.cursor == target and len(caught) > 0)
            task.cancel()

    await follow(3)
    assert caught == [3]
    await bus.publish(*frame(4, root("4", 4)), "m4")
    caught.clear()
    await follow(4)
    assert heard == ["1", "2", "3", "4"]
    assert caught == [4]


async def test_a_stream_that_was_lost_is_read_from_its_beginning(broker: MemoryBroker, store: Store) -> None:
    store.execute("UPDATE cursor SET seq = 99")
    await broker.connect().publish(*frame(1, root("again", 1)), "m")
    heard: list[Entry] = []
    ledger = Ledger(broker.connect(), store, TRUST, lambda: NOW, heard.extend)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ledger.run("node", lambda: None, lambda: None))
        await until(lambda: len(heard) == 1)
        task.cancel()
    assert ledger.cursor == 1


def test_what_comes_directly_is_heard_once_and_is_of_use_until_the_stream_has_it(book: Book) -> None:
    """From this process, then back over the bus, then from the stream."""
    one = checked(frame(1, root("hello")))
    assert not book.ledger.holds(one.subject, one.frame)
    book.ledger.take([one, one])
    book.ledger.hear(str(one.subject), one.data)
    assert not book.ledger.holds(one.subject, one.frame), "a crash now would leave the stream without it"
    assert book.keep((str(one.subject), one.data)) == []
    assert book.ledger.holds(one.subject, one.frame)
    assert [entry.act.text for entry in book.heard] == ["hello"]


def test_known_acts_under_a_number_that_is_missing_are_of_use(book: Book) -> None:
    act, again = root("hello"), frame(2, root("hello"))
    book.keep(frame(1, act), frame(4, root("later", 1)))
    assert book.gaps() == [2, 3]
    one = checked(again)
    assert not book.ledger.holds(one.subject, one.frame)
    book.keep(again)
    assert book.ledger.holds(one.subject, one.frame)


def test_what_a_node_says_after_it_was_revoked_is_not_heard_here_either(store: Store) -> None:
    book = Book(store, Trust([certificate(NODE)], [Revocation(MESH_ID, 1, [NodeId(NODE.public)])]))
    book.ledger.take([checked(frame(1, root("too late")))])
    assert (book.heard, book.refused()) == ([], {"BadCertificate": 1})


async def test_the_wal_is_moved_into_the_file_beside_the_commits(store: Store, tmp_path: Path) -> None:
    """Rows in far fewer pages than SQLite itself would wait for."""

    def moved() -> bool:
        return b"a word to find" in (tmp_path / "node.db").read_bytes()

    async with asyncio.TaskGroup() as group:
        tending = group.create_task(store.tend())
        await asyncio.sleep(0)
        with store.transaction():
            store.execute("INSERT INTO edits VALUES ('a word to find', 'x')")
        assert not moved()
        with store.transaction():
            store.many("INSERT INTO edits VALUES (?, 'x')", ((number,) for number in range(TENDED)))
        async with asyncio.timeout(20):
            while not moved():
                await asyncio.sleep(0.002)
        tending.cancel()


def test_a_transaction_that_fails_leaves_nothing_and_says_why(store: Store) -> None:
    def fail(last: Callable[[], object]) -> None:
        with store.transaction():
            store.execute("INSERT INTO edits VALUES ('a', 'b')")
            last()

    with pytest.raises(StoreFailed, match="no such table"):
        fail(lambda: store.execute("INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(KeyError):
        fail(lambda: {}["a mistake"])
    assert store.rows("SELECT * FROM edits") == []


def test_a_store_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    store = Store(path, SCHEMAS)
    store.execute("UPDATE versions SET version = 99 WHERE owner = 'mesh'")
    store.close()
    with pytest.raises(StoreFailed, match="newer"):
        Store(path, SCHEMAS)


def test_a_migration_keeps_a_copy_of_what_was(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    first, second, other = (
        "CREATE TABLE a (x INTEGER); INSERT INTO a VALUES (7)",
        "CREATE TABLE b (y)",
        "CREATE TABLE c (z)",
    )
    Store(path, {"one": [first], "two": [other]}).close()
    later = Store(path, {"one": [first, second], "two": [other]})
    assert later.rows("SELECT x FROM a") == [(7,)]
    later.close()
    backup = Store(tmp_path / "node.before-migration.db", read_only=True)
    assert backup.rows("SELECT x FROM a") == [(7,)]
    backup.close()
