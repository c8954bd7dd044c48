"""What every bus promises, checked on the one in memory and on a real nats-server alike."""

import asyncio
from collections.abc import Sequence

import pytest
from buses import Place
from hypothesis import given
from hypothesis import strategies as st

from mesh.bus.base import MAX_BATCH, MAX_MESSAGE, Bus, Consumer, Message, Stored, check_subject
from mesh.bus.memory import MemoryBroker, matches
from mesh.errors import BusRefused, BusUnavailable


async def take(consumer: Consumer, count: int) -> list[Stored]:
    """The next `count` messages, however they are batched, and none acked."""
    found: list[Stored] = []
    while len(found) < count:
        found += await consumer.batch()
    return found


async def fill(bus: Bus, count: int, start: int = 0) -> None:
    async with asyncio.TaskGroup() as tasks:
        for n in range(start, start + count):
            tasks.create_task(bus.publish(f"b.yappings.m.em{n % 3}", b"%d" % n, f"id{n}"))


def seqs(messages: Sequence[Stored]) -> list[int]:
    return [message.seq for message in messages]


async def test_the_same_id_is_stored_once(place: Place) -> None:
    bus = await place.connect()
    first = await bus.publish("b.x.m.a", b"one", "id-1")
    again = await bus.publish("b.x.m.a", b"one", "id-1")
    other = await bus.publish("b.x.m.a", b"two", "id-2")
    assert (first, again, other) == (1, 1, 2)
    assert await bus.last_seq() == 2


async def test_an_id_is_known_to_every_connection(place: Place) -> None:
    one, two = await place.connect(), await place.connect()
    assert await one.publish("b.x.m.a", b"x", "same") == await two.publish("b.x.m.a", b"x", "same")


async def test_many_publishes_at_once_get_sequences_of_their_own(place: Place) -> None:
    bus = await place.connect()
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(bus.publish("b.x.m.a", b"%d" % n, f"id{n}")) for n in range(200)]
    assert sorted(task.result() for task in started) == list(range(1, 201))
    stored = await bus.read(1, 200)
    assert {(m.seq, m.data) for m in stored} == {(t.result(), b"%d" % n) for n, t in enumerate(started)}


async def test_a_consumer_gives_everything_in_stream_order(place: Place) -> None:
    bus = await place.connect()
    consumer = await bus.consume("node", 0)
    await fill(bus, 3 * MAX_BATCH)
    found: list[Stored] = []
    while len(found) < 3 * MAX_BATCH:
        batch = await consumer.batch()
        assert 0 < len(batch) <= MAX_BATCH
        found += batch
        await consumer.ack(found[-1].seq)
    assert seqs(found) == list(range(1, 3 * MAX_BATCH + 1))
    assert [m.data for m in found] == [m.data for m in await bus.read(1, 3 * MAX_BATCH)]


async def test_a_consumer_begins_behind_the_sequence_it_was_told(place: Place) -> None:
    bus = await place.connect()
    await fill(bus, 10)
    assert seqs(await take(await bus.consume("node", 6), 4)) == [7, 8, 9, 10]


async def test_a_cursor_from_another_stream_begins_at_the_beginning(place: Place) -> None:
    """A cursor beyond the end belongs to a stream that is gone; waiting for its sequence would lose messages."""
    bus = await place.connect()
    await fill(bus, 3)
    assert seqs(await take(await bus.consume("node", 5000), 3)) == [1, 2, 3]


async def test_a_consumer_waits_for_the_first_message(place: Place) -> None:
    bus = await place.connect()
    consumer = await bus.consume("node", 0)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(consumer.batch())
        await bus.publish("b.x.m.a", b"here", "1")
    assert waiting.result() == [Stored(1, "b.x.m.a", b"here")]


async def test_a_consumer_goes_on_behind_its_last_ack(place: Place) -> None:
    """What was given but never acked comes again at once, what was acked does not, whatever `after` says now."""
    bus = await place.connect()
    await fill(bus, 10)
    consumer = await bus.consume("node", 0)
    await take(consumer, 10)
    await consumer.ack(4)
    await consumer.close()
    other = await place.connect()
    again = await other.consume("node", 0)
    assert seqs(await take(again, 6)) == [5, 6, 7, 8, 9, 10]


async def test_two_consumers_have_cursors_of_their_own(place: Place) -> None:
    bus = await place.connect()
    await fill(bus, 3)
    for name in ("one", "two"):
        consumer = await bus.consume(name, 0)
        assert seqs(await take(consumer, 3)) == [1, 2, 3]
        await consumer.ack(3)


async def test_a_cancelled_batch_loses_nothing(place: Place) -> None:
    bus = await place.connect()
    consumer = await bus.consume("node", 0)
    for n in range(1, 20):
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(consumer.batch())
            published = tasks.create_task(bus.publish("b.x.m.a", b"x", f"id{n}"))
            await asyncio.sleep(0)
            waiting.cancel()
        if waiting.cancelled():
            assert seqs(await take(consumer, 1)) == [published.result()]
        else:
            assert seqs(waiting.result()) == [n]


async def test_a_closed_consumer_says_so(place: Place) -> None:
    bus = await place.connect()
    consumer = await bus.consume("node", 0)
    async with asyncio.TaskGroup() as tasks:

        async def wait() -> None:
            with pytest.raises(BusUnavailable, match="closed"):
                await consumer.batch()

        tasks.create_task(wait())
        await asyncio.sleep(0)
        await consumer.close()
    await consumer.close()


async def test_reading_a_range_leaves_out_what_is_gone(place: Place) -> None:
    bus = await place.connect()
    await fill(bus, 8)
    await bus.erase(3)
    await bus.erase(4)
    assert seqs(await bus.read(2, 6)) == [2, 5, 6]
    assert seqs(await bus.read(3, 4)) == []
    assert seqs(await bus.read(0, 1)) == [1]
    assert seqs(await bus.read(8, 500)) == [8]
    assert seqs(await bus.read(9, 500)) == []
    assert seqs(await bus.read(6, 2)) == []


async def test_a_consumer_passes_over_what_is_gone(place: Place) -> None:
    bus = await place.connect()
    await fill(bus, 5)
    await bus.erase(2)
    assert seqs(await take(await bus.consume("node", 0), 4)) == [1, 3, 4, 5]


async def test_what_is_erased_is_gone_for_everybody_and_for_good(place: Place) -> None:
    bus, other = await place.connect(), await place.connect()
    await fill(bus, 3)
    consumer = await other.consume("node", 0)
    given = await take(consumer, 3)  # before any was erased, and not acked yet
    await bus.erase(2)
    await bus.erase(3)
    assert seqs(await other.read(1, 3)) == [1]
    assert await bus.last_seq() == 3
    await consumer.ack(given[-1].seq)
    assert await bus.publish("b.x.m.a", b"next", "next") == 4
    assert seqs(await take(consumer, 1)) == [4]


async def test_erasing_what_is_not_there_is_no_error(place: Place) -> None:
    bus = await place.connect()
    await bus.erase(1)
    await fill(bus, 2)
    for seq in (2, 2, 0, 99):
        await bus.erase(seq)
    assert seqs(await bus.read(1, 99)) == [1]


async def test_an_erased_message_may_be_said_again_under_another_id_only(place: Place) -> None:
    """The id stays known for the deduplication window: a late repetition of the same publish brings nothing back."""
    bus = await place.connect()
    assert await bus.publish("b.x.m.a", b"words", "id") == 1
    await bus.erase(1)
    assert await bus.publish("b.x.m.a", b"words", "id") == 1
    assert await bus.publish("b.x.m.a", b"husk", "other") == 2
    assert seqs(await bus.read(1, 9)) == [2]


async def test_a_closed_bus_erases_nothing(place: Place) -> None:
    bus = await place.connect()
    await fill(bus, 1)
    await bus.close()
    with pytest.raises(BusUnavailable):
        await bus.erase(1)
    assert seqs(await (await place.connect()).read(1, 1)) == [1]


async def test_the_last_message_of_a_subject(place: Place) -> None:
    bus = await place.connect()
    await bus.publish("b.x.m.a", b"old", "1")
    await bus.publish("b.x.m.a", b"new", "2")
    await bus.publish("b.x.m.b", b"other", "3")
    assert await bus.last("b.x.m.a") == Stored(2, "b.x.m.a", b"new")
    assert await bus.last("b.x.m") is None


async def test_an_empty_stream(place: Place) -> None:
    bus = await place.connect()
    assert (await bus.last_seq(), await bus.read(1, 10), await bus.last("b.x.m.a")) == (0, [], None)


async def test_a_request_is_answered(place: Place) -> None:
    bus, other = await place.connect(), await place.connect()

    async def serve(message: Message) -> None:
        assert message.reply is not None
        await other.send(message.reply, b"echo " + message.data)

    await other.subscribe("c.m.status", serve)
    assert await bus.request("c.m.status", b"hello", 5) == b"echo hello"


async def test_nobody_answers(place: Place) -> None:
    bus = await place.connect()
    with pytest.raises(BusRefused, match=r"Nobody answers on c\.m\.nothing"):
        await bus.request("c.m.nothing", b"", 5)


async def test_an_answer_that_does_not_come(place: Place) -> None:
    bus = await place.connect()

    async def silent(_: Message) -> None:
        pass

    await bus.subscribe("c.m.silent", silent)
    with pytest.raises(BusUnavailable, match=r"c\.m\.silent"):
        await bus.request("c.m.silent", b"", 0.05)


async def test_a_subscription_is_there_when_subscribe_returns(place: Place) -> None:
    one, two = await place.connect(), await place.connect()
    for n in range(30):
        heard = asyncio.get_running_loop().create_future()

        async def hear(message: Message, heard: asyncio.Future = heard) -> None:
            heard.set_result(message)

        subscription = await one.subscribe(f"e.x.{n}", hear)
        await two.send(f"e.x.{n}", b"now")
        async with asyncio.timeout(5):
            assert (await heard).data == b"now"
        await subscription.close()


async def test_wildcards_select_and_stored_messages_are_heard_too(place: Place) -> None:
    bus = await place.connect()
    heard: dict[str, list[str]] = {"b.x.>": [], "b.*.m.a": [], ">": []}
    done = asyncio.Event()

    for pattern, subjects in heard.items():

        async def hear(message: Message, subjects: list[str] = subjects) -> None:
            if message.subject[0] != "_":
                subjects.append(message.subject)
            if message.subject == "e.end":
                done.set()

        await bus.subscribe(pattern, hear)
    await bus.publish("b.x.m.a", b"", "1")
    await bus.publish("b.y.m.a", b"", "2")
    await bus.publish("b.x.m.b", b"", "3")
    await bus.send("e.end", b"")
    await done.wait()
    plain = [subject for subject in heard[">"] if subject[0] in "be"]
    assert heard["b.x.>"] == ["b.x.m.a", "b.x.m.b"]
    assert heard["b.*.m.a"] == ["b.x.m.a", "b.y.m.a"]
    assert plain == ["b.x.m.a", "b.y.m.a", "b.x.m.b", "e.end"]


async def test_a_handler_is_called_one_at_a_time_and_may_fail(place: Place) -> None:
    bus = await place.connect()
    heard: list[bytes] = []
    busy, done = False, asyncio.Event()

    async def hear(message: Message) -> None:
        nonlocal busy
        assert not busy
        busy = True
        await asyncio.sleep(0)
        busy = False
        heard.append(message.data)
        if message.data == b"9":
            done.set()
        raise ValueError("a fault of the handler")

    await bus.subscribe("e.x", hear)
    for n in range(10):
        await bus.send("e.x", b"%d" % n)
    await done.wait()
    assert heard == [b"%d" % n for n in range(10)]


async def test_closing_a_subscription_lets_the_message_in_hand_finish(place: Place) -> None:
    bus = await place.connect()
    entered, leave, finished = asyncio.Event(), asyncio.Event(), False

    async def slow(_: Message) -> None:
        nonlocal finished
        entered.set()
        await leave.wait()
        finished = True

    subscription = await bus.subscribe("e.x", slow)
    await bus.send("e.x", b"")
    await entered.wait()
    async with asyncio.TaskGroup() as tasks:
        closing = tasks.create_task(subscription.close())
        await asyncio.sleep(0)
        assert not closing.done()
        leave.set()
    assert finished


async def test_a_handler_may_close_its_own_subscription(place: Place) -> None:
    bus = await place.connect()
    heard: list[bytes] = []
    done = asyncio.Event()

    async def once(message: Message) -> None:
        heard.append(message.data)
        await subscription.close()

    async def end(_: Message) -> None:
        done.set()

    subscription = await bus.subscribe("e.x", once)
    await bus.subscribe("e.end", end)
    for subject in ("e.x", "e.x", "e.end"):
        await bus.send(subject, subject.encode())
    await done.wait()
    assert heard == [b"e.x"]


@pytest.mark.parametrize(
    "subject", ["", "b", "e.x.m.a", "b..a", "b.*.a", "b.>", "b.x y", "b.x\r\nPUB z", "b." + 300 * "x"]
)
async def test_only_whole_subjects_of_the_stream_are_stored(place: Place, subject: str) -> None:
    bus = await place.connect()
    with pytest.raises(BusRefused):
        await bus.publish(subject, b"", "id")
    assert await bus.last_seq() == 0


@pytest.mark.parametrize("msg_id", ["", "a b", "a\r\nb", "é", 200 * "x"])
async def test_an_id_that_could_be_mistaken_for_another_is_refused(place: Place, msg_id: str) -> None:
    bus = await place.connect()
    with pytest.raises(BusRefused, match="not a message id"):
        await bus.publish("b.x.m.a", b"", msg_id)


async def test_the_largest_message_passes_and_a_larger_one_is_refused(place: Place) -> None:
    bus = await place.connect()
    assert await bus.publish("b.x.m.a", bytes(MAX_MESSAGE), "1") == 1
    with pytest.raises(BusRefused, match="bytes"):
        await bus.publish("b.x.m.a", bytes(MAX_MESSAGE + 1), "2")
    with pytest.raises(BusRefused, match="bytes"):
        await bus.send("e.x", bytes(MAX_MESSAGE + 1))
    assert len((await bus.read(1, 1))[0].data) == MAX_MESSAGE


async def test_closing_twice_is_fine_and_a_closed_bus_says_so(place: Place) -> None:
    bus = await place.connect()
    await bus.publish("b.x.m.a", b"", "1")
    await bus.close()
    await bus.close()
    await bus.send("e.x", b"dropped")
    for call in (bus.publish("b.x.m.a", b"", "2"), bus.request("c.x", b"", 1), bus.read(1, 1), bus.last_seq()):
        with pytest.raises(BusUnavailable):
            await call
    with pytest.raises(BusUnavailable):
        await bus.consume("node", 0)


async def test_memory_forgets_the_oldest_when_it_is_full() -> None:
    async with MemoryBroker(max_stored=3) as broker:
        bus = broker.connect()
        for n in range(5):
            await bus.publish("b.x.m.a", b"", f"id{n}")
        assert [m.seq for m in await bus.read(1, 10)] == [3, 4, 5]
        assert [m.seq for m in await (await bus.consume("node", 0)).batch()] == [3, 4, 5]


TOKEN = st.text("ab1-_", min_size=1, max_size=3)


@given(st.lists(TOKEN, min_size=1, max_size=5), st.data())
def test_a_pattern_made_from_a_subject_matches_it(tokens: list[str], data: st.DataObject) -> None:
    subject = ".".join(tokens)
    pattern = [data.draw(st.sampled_from([token, "*"])) for token in tokens]
    cut = data.draw(st.integers(0, len(tokens) - 1))
    check_subject(subject)
    assert matches(".".join(pattern), subject)
    assert matches(".".join([*pattern[:cut], ">"]), subject)
    assert not matches(".".join([*pattern, ">"]), subject)
    assert not matches(".".join([*pattern, "*"]), subject)
    assert not matches(".".join([*pattern[:-1], tokens[-1] + "x"]), subject)


@given(st.text(max_size=40))
def test_a_subject_that_passes_has_no_blank_wildcard_or_empty_token(text: str) -> None:
    try:
        check_subject(text)
    except BusRefused:
        return
    assert text.isprintable()
    assert not any(c.isspace() or c in "*>" for c in text)
    assert all(text.split("."))


@pytest.mark.parametrize("pattern", ["b.>", "*", ">", "b.*.x"])
def test_patterns(pattern: str) -> None:
    assert check_subject(pattern, pattern=True) is None


@pytest.mark.parametrize("pattern", ["b.>.x", "b.x*", ">x", "b..x", ""])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(BusRefused, match="not a pattern"):
        check_subject(pattern, pattern=True)
