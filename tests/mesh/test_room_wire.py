"""Wires through a room: in order and once, whatever the room does to their packets."""

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sides import Side, sides, until_heard

from mesh.bridges.matrix.link import MAX_INSIDE
from mesh.links.links import Links
from mesh.links.room import MAX_HELD, MAX_PLACES, InRoom, Packet, Room, name_of, read_packet
from mesh.links.wire import MAX_SEALED, Wire, WireBroken

SLOT, OTHER = b"s" * 32, b"o" * 32


class Homeserver:
    """A room of several nodes: what one sends all others hear, by the rules of `mischief`."""

    def __init__(self, mischief: Callable[[list[bytes]], Iterator[bytes]] = iter) -> None:
        self.rooms: dict[str, Room] = {}
        self.sent: list[bytes] = []
        self._mischief = mischief
        self._clock = itertools.count(1_800_000_000_000).__next__  # nobody begins twice within a millisecond
        self._held: list[tuple[str, bytes]] = []

    def join(self, user: str) -> Room:
        self.rooms[user] = Room(_End(self, user), self._clock)
        return self.rooms[user]

    def take(self, user: str, data: bytes) -> None:
        self.sent.append(data)
        self._held.append((user, data))
        if len(self._held) == 1:
            asyncio.get_running_loop().call_soon(self._bring)

    def _bring(self) -> None:
        held, self._held = self._held, []
        for user in list(self.rooms):
            for data in self._mischief([data for sender, data in held if sender == user]):
                for other, room in self.rooms.items():
                    if other != user:
                        room.heard(data)


class _End:
    def __init__(self, server: Homeserver, user: str) -> None:
        self._server, self._user = server, user

    async def send(self, data: bytes, key: str) -> None:
        assert key
        self._server.take(self._user, data)


async def met(one: Room, other: Room, slot: bytes = SLOT) -> tuple[Wire, Wire]:
    """Both ends of a slot; the end that calls has said hello, since that is how the other one knows."""
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(other.open(slot, calls=False))
        calling = await one.open(slot, calls=True)
        await calling.send(b"hello")
    assert await answering.result().receive() == b"hello"
    return calling, answering.result()


@settings(max_examples=30)
@given(st.lists(st.binary(max_size=200), max_size=12), st.integers(0, 2**32))
def test_messages_come_once_and_in_order_from_a_room_that_shuffles_and_repeats(
    messages: list[bytes], seed: int
) -> None:
    dice = random.Random(seed)

    def mischief(packets: list[bytes]) -> Iterator[bytes]:
        again = [*packets, *dice.sample(packets, len(packets) // 2)]
        dice.shuffle(again)
        return iter(again)

    async def talk() -> None:
        server = Homeserver(mischief)
        ada, bob = server.join("@ada:a"), server.join("@bob:b")
        server.join("@eve:e")
        one, other = await met(ada, bob)
        for data in messages:
            await one.send(data)
            await other.send(data[::-1])
        assert [await other.receive() for _ in messages] == messages
        assert [await one.receive() for _ in messages] == [data[::-1] for data in messages]
        await one.close()
        with pytest.raises(WireBroken):
            await other.receive()
        await other.close()

    asyncio.run(talk())


async def test_long_messages_of_two_tasks_are_not_mixed() -> None:
    server = Homeserver()
    one, other = await met(server.join("@ada:a"), server.join("@bob:b"))
    long, short = bytes(MAX_SEALED), b"s"
    async with asyncio.TaskGroup() as group:
        for data in (long, short, long):
            group.create_task(one.send(data))
        assert [await other.receive() for _ in range(3)] == [long, short, long]
    assert max(map(len, server.sent)) <= MAX_INSIDE


async def test_pairs_in_one_room_do_not_hear_each_other_and_whoever_comes_late_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.links.room.PAUSE_S", (0.01, 0.01))
    server = Homeserver()
    ada, bob, cyd = server.join("@ada:a"), server.join("@bob:b"), server.join("@cyd:c")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(bob.open(SLOT, calls=False))
        other = group.create_task(met(ada, cyd, OTHER))
        to_cyd, from_ada = await other
        assert not waiting.done()
        calling = await ada.open(SLOT, calls=True)
        await calling.send(b"to bob")
        await to_cyd.send(b"to cyd")
        assert await (await waiting).receive() == b"to bob"
        assert await from_ada.receive() == b"to cyd"


async def test_who_begins_anew_ends_the_talk_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that died says nothing; its next run is heard, and packets of its earlier streams are not."""
    monkeypatch.setattr("mesh.links.room.PAUSE_S", (0.0, 0.0))
    server = Homeserver()
    ada, bob = server.join("@ada:a"), server.join("@bob:b")
    one, other = await met(ada, bob)
    await one.send(b"first")
    assert await other.receive() == b"first"
    old = list(server.sent)
    ada = server.join("@ada:a")  # the same user, another run
    async with asyncio.TaskGroup() as group:
        calling = group.create_task(ada.open(SLOT, calls=True))
        with pytest.raises(WireBroken):
            await other.receive()
        await other.close()
        answering = group.create_task(bob.open(SLOT, calls=False))
        again = await calling
        for data in old:
            bob.heard(data)
        await again.send(b"second")
        assert await (await answering).receive() == b"second"
    bob = server.join("@bob:b")
    async with asyncio.TaskGroup() as group:
        answering = group.create_task(bob.open(SLOT, calls=False))
        with pytest.raises(WireBroken):
            await again.receive()
        third = await ada.open(SLOT, calls=True)
        await third.send(b"third")
        assert await (await answering).receive() == b"third"


async def test_whoever_waits_for_the_next_one_lets_the_present_one_finish() -> None:
    """A visit through a homeserver that limits words takes long; whoever waits for guests waits on meanwhile."""
    server = Homeserver()
    ada, bob = server.join("@ada:a"), server.join("@bob:b")
    one, other = await met(ada, bob)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(bob.open(SLOT, calls=False))
        for data in (b"first", b"second"):
            await one.send(data)
            assert await other.receive() == data
        assert not following.done()
        await one.close()
        with pytest.raises(WireBroken):
            await other.receive()
        await other.close()
        again = await ada.open(SLOT, calls=True)
        await again.send(b"third")
        assert await (await following).receive() == b"third"


def forged(server: Homeserver, dice: random.Random) -> Iterator[bytes]:
    """What somebody in the room may write who knows all that was said there, and not the slot."""
    for data in dice.sample(server.sent, min(len(server.sent), 8)):
        packet = read_packet(data)
        assert packet
        number, last = dice.choice([0, packet.number, packet.number + 1]), b"\xff" * 8
        changed = Packet(
            packet.name, dice.random() < 0.5, dice.choice([packet.stream, last]), number, b"\0forged", last * 2
        )
        yield from (
            data,
            msgspec.msgpack.encode(changed),
            msgspec.msgpack.encode(changed.tagged(packet.name)),
            data[:-1],
        )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_who_repeats_and_forges_what_was_said_interrupts_nobody(seed: int) -> None:
    """Before, while and after two meet, and meet anew: each wire lasts as long as its ends want it."""
    dice = random.Random(seed)

    async def talk() -> None:
        server = Homeserver(lambda packets: iter([*forged(server, dice), *packets, *forged(server, dice)]))
        ada, bob = server.join("@ada:a"), server.join("@bob:b")
        for number in range(3):
            one, other = await met(ada, bob)
            for text in (b"there", b"and back", bytes([number])):
                await one.send(text)
                assert await other.receive() == text
                await other.send(text)
                assert await one.receive() == text
            if number == 1:
                ada = server.join("@ada:a")  # she was killed, and begins anew
            else:
                await one.close()
            if number != 1:
                with pytest.raises(WireBroken):
                    await other.receive()
            await other.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mesh.links.room.PAUSE_S", (0.0, 0.0))
        asyncio.run(talk())


async def test_a_peer_cannot_fill_our_memory() -> None:
    server = Homeserver()
    ada, bob = server.join("@ada:a"), server.join("@bob:b")
    one, other = await met(ada, bob)
    await one.send(b"first")
    assert await other.receive() == b"first"
    stream = next(packet.stream for data in server.sent if (packet := read_packet(data)) and packet.number)
    for number in range(5, MAX_HELD + 7):
        bob.heard(msgspec.msgpack.encode(Packet(name_of(SLOT), True, stream, number, b"\0x").tagged(SLOT)))
    with pytest.raises(WireBroken):
        await other.receive()
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(bob.open(bytes([n]) * 32, calls=True)) for n in range(MAX_PLACES - 1)]
        await asyncio.sleep(0)
        with pytest.raises(WireBroken, match="too many"):
            await bob.open(b"more" * 8, calls=True)
        for wait in waits:
            wait.cancel()


@given(st.binary(max_size=100))
def test_any_bytes_are_no_packet_or_a_whole_one(data: bytes) -> None:
    packet = read_packet(data)
    assert packet is None or len(packet.name) == 32


async def test_a_session_runs_through_a_room(tmp_path: object) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.gives, a.taken, b.taken = {"tea": 0}, {"tea": 0}, {"tea"}, {"tea"}
        server = Homeserver()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_linked(side, other, server).run(None)) for side, other in ((a, b), (b, a))]
            await a.say("tea", "hello")
            await until_heard(b, "tea", ["hello"])
            await b.say("tea", "good day")
            await until_heard(a, "tea", ["hello", "good day"])
            for task in tasks:
                task.cancel()


def _linked(side: Side, other: Side, server: Homeserver) -> Links:
    links = Links(side.who, side.ground, lambda who: None if who.mesh == other.mesh else "I do not know you")
    side.sessions = links
    links.dial({other.mesh: [InRoom(server.join(f"@{side.mesh[:8]}:x"), SLOT, side.mesh < other.mesh)]})
    return links
