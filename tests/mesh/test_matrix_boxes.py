"""The Matrix bridge's inbox and outbox, without a homeserver: what they keep, in which order, and how often."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bridges.matrix import inbox as inbox_module
from mesh.bridges.matrix import outbox as outbox_module
from mesh.bridges.matrix import rows as rows_module
from mesh.bridges.matrix.errors import BadContent, MatrixFull, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbound, Inbox, parse_event
from mesh.bridges.matrix.outbox import Outbox, Outcome, Outgoing
from mesh.bridges.matrix.payload import encode, transaction_id
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.errors import StoreFailed
from mesh.store import Store

NOW = 1_800_000_000_000
names = st.sampled_from(
    ["event_id", "room_id", "sender", "type", "content", "origin_server_ts", "state_key", "redacts"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=["L", "Cs", "Cc"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=5), inner, max_size=8),
    max_leaves=12,
)


def event(number: int, room: str = "!r", **more: Any) -> Inbound:
    return Inbound(f"$e{number}", room, "@mara:x", "m.room.message", {"body": str(number)}, NOW, "account", **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})
    yield one
    one.close()


def clock() -> int:
    return NOW


def new_outbox(store: Store, deliver: Callable[[Outgoing], Awaitable[str]], *done: list[Outcome]) -> Outbox:
    return Outbox(store, clock, deliver, done[0].append if done else None)


@contextlib.asynccontextmanager
async def running(outbox: Outbox) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(outbox.run())
        yield
        task.cancel()


def put(store: Store, outbox: Outbox, *keys: str, speaker: str = "ada", room: str = "!r") -> None:
    with store.transaction():
        for key in keys:
            outbox.put(speaker, room, "m.room.message", {"body": key}, key)
    outbox.wake()


async def test_an_event_is_taken_once_whatever_way_it_comes(store: Store) -> None:
    inbox = Inbox(store, clock)
    assert inbox.take([event(1), event(2), event(1)]) == 2
    pushed = Inbound("$e2", "!r", "@mara:x", "m.room.message", {"body": "2"}, NOW, "appservice")
    assert inbox.take([pushed, event(3)]) == 1
    assert [(await anext(inbox)).event_id for _ in range(3)] == ["$e1", "$e2", "$e3"]


async def test_handled_events_never_come_back_and_their_words_are_forgotten(store: Store) -> None:
    inbox = Inbox(store, clock)
    inbox.take([event(1), event(2)])
    inbox.handled(await anext(inbox))
    assert inbox.take([event(1)]) == 0
    again = Inbox(store, clock)
    assert again.waiting() == 1
    assert await anext(again) == event(2)
    assert store.rows("SELECT event FROM matrix_inbox WHERE event_id = '$e1'") == [(None,)]


async def test_marking_shares_the_consumers_transaction(store: Store) -> None:
    """When the consumer's transaction fails, the event is not handled and comes again."""
    inbox = Inbox(store, clock)
    inbox.take([event(1)])
    first = await anext(inbox)
    with contextlib.suppress(KeyError), store.transaction():
        inbox.mark(first)
        raise KeyError
    assert inbox.waiting() == 1
    assert await anext(Inbox(store, clock)) == first


async def test_waiting_for_an_event_can_be_cancelled(store: Store) -> None:
    inbox = Inbox(store, clock)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(inbox), 0)
    inbox.take([event(1)])
    assert await anext(inbox) == event(1)


def test_the_place_moves_with_the_events_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox(store, clock)
    inbox.take([event(1)], ("@us:x", "s1"))
    monkeypatch.setattr(inbox_module, "MAX_NEW", 1)
    with pytest.raises(MatrixFull):
        inbox.take([event(2)], ("@us:x", "s2"))
    assert inbox.cursor("@us:x") == "s1"
    assert Inbox(store, clock).waiting() == 1


def test_the_place_stays_when_the_disk_refuses_an_event(store: Store) -> None:
    inbox = Inbox(store, clock)
    inbox.take([event(1)], ("@us:x", "s1"))
    store.execute("CREATE TRIGGER full BEFORE INSERT ON matrix_inbox BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(StoreFailed):
        inbox.take([event(2)], ("@us:x", "s2"))
    assert inbox.cursor("@us:x") == "s1"


async def test_only_the_ids_of_lately_handled_events_are_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "KEPT", 5)
    monkeypatch.setattr(inbox_module, "PRUNE_EVERY", 10)
    inbox = Inbox(store, clock)
    inbox.take(event(number) for number in range(20))
    for _ in range(20):
        inbox.handled(await anext(inbox))
    assert [n for (n,) in store.rows("SELECT n FROM matrix_inbox ORDER BY n")] == [16, 17, 18, 19, 20]


def test_an_encryption_event_marks_its_room_for_good(store: Store) -> None:
    inbox = Inbox(store, clock)
    content = {"algorithm": "m.megolm.v1.aes-sha2"}
    inbox.take([Inbound("$1", "!r", "@mara:x", "m.room.encryption", content, NOW, "account", state_key="")])
    inbox.take([Inbound("$2", "!s", "@mara:x", "m.room.encryption", content, NOW, "account")])  # no state: just words
    assert Inbox(store, clock).is_encrypted("!r")
    assert not inbox.is_encrypted("!s")


@given(json_values, st.none() | st.just("!r"))
def test_any_json_is_an_event_or_none(value: object, room: str | None) -> None:
    """Whatever a homeserver serves, reading it gives an event that the database takes, or None."""
    found = parse_event(value, "account", room)
    if found:
        assert all(part.encode() for part in (found.event_id, found.room, found.sender, found.kind))


whole = {"event_id": "$1", "room_id": "!r", "sender": "@m:x", "type": "m.room.message", "content": {}}


@given(st.dictionaries(names, json_values, max_size=3))
def test_a_hostile_event_goes_through_the_database_unharmed(changes: dict[str, Any]) -> None:
    found = parse_event(whole | changes, "account")
    if found:
        assert repr(inbox_module._load(inbox_module._dump(found), "account")) == repr(found)


@pytest.mark.parametrize("sender", ["ada", "@ada", "ada:x", "@:x", "@ada:", "@ada:x\n", " @ada:x", "!r:x"])
def test_nobody_speaks_who_has_no_users_name(sender: str) -> None:
    """What names an em and no user could be taken for an act of that em."""
    assert parse_event(whole | {"sender": sender}, "account") is None
    assert parse_event(whole | {"sender": "@ada:x:8448"}, "account")


def test_an_event_of_another_room_is_not_believed() -> None:
    assert parse_event(whole, "account", "!r")
    assert parse_event(whole, "account", "!other") is None


def test_nesting_without_end_is_no_event() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    assert parse_event(whole | {"content": deep}, "account") is None
    while deep:  # so that freeing it does not recurse either
        deep = deep.pop("a", {})


def test_what_is_put_in_a_transaction_that_fails_was_never_put(store: Store) -> None:
    outbox = new_outbox(store, lambda _: asyncio.sleep(0, ""))
    with contextlib.suppress(KeyError), store.transaction():
        outbox.put("ada", "!r", "m.room.message", {"body": "b"}, "k")
        raise KeyError
    assert outbox.waiting() == 0
    put(store, outbox, "k")
    assert outbox.waiting() == 1


async def test_rooms_are_independent_and_each_keeps_its_order(store: Store) -> None:
    """While one room's first event cannot be sent, the other room's go; within a room none overtakes."""
    sent, held = list[str](), asyncio.Event()

    async def deliver(row: Outgoing) -> str:
        if row.room == "!slow":
            await held.wait()
        sent.append(row.key)
        return f"${row.key}"

    outbox = new_outbox(store, deliver)
    put(store, outbox, "s1", "s2", room="!slow")
    put(store, outbox, "f1", "f2", "f3", room="!fast")
    async with running(outbox):
        await outbox.wait("ada", "f3")
        assert sent == ["f1", "f2", "f3"]
        held.set()
        await outbox.wait("ada", "s2")
    assert sent[3:] == ["s1", "s2"]


async def test_every_attempt_is_the_same_request(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not taken is sent again, unchanged, also by the next run, until it is; then never again."""
    monkeypatch.setattr(outbox_module, "BACKOFF_S", (0.0, 0.0))
    attempts = list[Outgoing]()

    async def deliver(row: Outgoing) -> str:
        attempts.append(row)
        if len(attempts) < 3:
            raise MatrixUnavailable("away", 0.001)
        if len(attempts) == 3:
            raise KeyError  # a crash
        return "$1"

    outbox = new_outbox(store, deliver)
    put(store, outbox, "k")
    with pytest.raises(ExceptionGroup):
        await outbox.run()
    done = list[Outcome]()
    outbox = new_outbox(store, deliver, done)
    async with running(outbox):
        assert await outbox.wait("ada", "k") == Outcome("ada", "k", "$1", None)
    assert len(attempts) == 4
    assert len(set(attempts)) == 1
    assert done == [Outcome("ada", "k", "$1", None)]


async def test_what_is_refused_is_given_up_with_the_reason_and_holds_up_nothing(store: Store) -> None:
    async def deliver(row: Outgoing) -> str:
        if row.key == "bad":
            raise MatrixRefused("the homeserver answered 403 M_FORBIDDEN: no\x1b[2J", "M_FORBIDDEN", 403)
        return "$good"

    outbox = new_outbox(store, deliver)
    put(store, outbox, "bad", "good")
    async with running(outbox):
        assert (await outbox.wait("ada", "good")).event_id == "$good"
    refused = outbox.outcome("ada", "bad")
    assert refused
    assert (refused.event_id, refused.reason) == (None, "the homeserver answered 403 M_FORBIDDEN: no [2J")
    assert outbox.waiting() == 0


async def test_a_void_token_ends_the_run_and_loses_nothing(store: Store) -> None:
    async def deliver(row: Outgoing) -> str:
        raise MatrixLoggedOut(row.key)

    outbox = new_outbox(store, deliver)
    put(store, outbox, "k")
    with pytest.raises(ExceptionGroup) as raised:
        await outbox.run()
    assert raised.group_contains(MatrixLoggedOut)
    assert new_outbox(store, deliver).waiting() == 1


async def test_patience_has_a_bound(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A homeserver that asks us to wait for ever is asked again after MAX_RETRY_AFTER_S."""
    monkeypatch.setattr(outbox_module, "MAX_RETRY_AFTER_S", 0.001)
    answers = iter([MatrixUnavailable("later", 1e9), None])

    async def deliver(_: Outgoing) -> str:
        if error := next(answers):
            raise error
        return "$1"

    outbox = new_outbox(store, deliver)
    put(store, outbox, "k")
    async with running(outbox):
        assert (await outbox.wait("ada", "k")).event_id == "$1"


def test_too_much_waiting_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "MAX_WAITING", 2)
    outbox = new_outbox(store, lambda _: asyncio.sleep(0, ""))
    put(store, outbox, "1", "2")
    with pytest.raises(MatrixFull):
        put(store, outbox, "3")


@given(st.text(min_size=1), st.text(), st.text(min_size=1), st.text())
def test_transaction_ids_differ_by_speaker_and_key(speaker: str, key: str, other: str, other_key: str) -> None:
    speaker, other = speaker.replace("\0", ""), other.replace("\0", "")
    same = (speaker, key) == (other, other_key)
    assert (transaction_id(speaker, key) == transaction_id(other, other_key)) == same


@pytest.mark.parametrize("content", [{"a": 0.5}, {"a": [{"b": 2**53}]}, {"a": "\ud800"}, {"a": object()}])
def test_what_matrix_cannot_carry_is_refused_at_once(content: dict[str, Any]) -> None:
    with pytest.raises(BadContent):
        encode(content)
