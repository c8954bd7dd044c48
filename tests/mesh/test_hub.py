"""A hub between nodes: what it joins, whom it turns away, and what becomes of slow, rude and dead ends."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from authority import Authority
from hypothesis import given
from hypothesis import strategies as st
from sides import Side, sides, until_heard

from mesh.errors import MeshError
from mesh.links import hub as hubs
from mesh.links import tls as certificates
from mesh.links.channel import Self
from mesh.links.hub import PIECE, Hub, Limits, Pace
from mesh.links.links import Links
from mesh.links.pieces import Joining, cut
from mesh.links.proof import proof, prover
from mesh.links.tls import Tls
from mesh.links.ways import Direct, Meeting, guest_slot, pair_slot
from mesh.links.websocket.dialling import dial, meet
from mesh.links.websocket.listening import Desk, listening
from mesh.links.websocket.wires import MetWire
from mesh.links.wire import MAX_SEALED, WireBroken
from protocol.certificate import Certificate, issue
from protocol.keys import KeyKind, MeshId, NodeId, Signer

NOW = 1_800_000_000_000
SLOT = "5a" * 32
EVE = Signer(b"e" * 32, KeyKind.NODE)
EVE_MESH = Signer(b"f" * 32, KeyKind.MESH)
EVE_SELF = Self(EVE, issue(EVE_MESH, Certificate(MeshId(EVE_MESH.public), NodeId(EVE.public), 0, 2 * NOW, ["speak"])))


@asynccontextmanager
async def serving(hub: Hub, port: int = 0) -> AsyncIterator[str]:
    """A hub within the block; gives its URL."""
    async with listening("127.0.0.1", port, Desk(hub=hub)) as taken:
        yield f"ws://127.0.0.1:{taken}"


@asynccontextmanager
async def met(url: str, slot: str = SLOT) -> AsyncIterator[tuple[MetWire, MetWire]]:
    """Both ends of a slot, once they have met."""
    async with asyncio.TaskGroup() as group:
        one = group.create_task(meet(url, slot, EVE_SELF, calls=True))
        other = group.create_task(meet(url, slot, EVE_SELF, calls=False))
    try:
        yield one.result(), other.result()
    finally:
        await one.result().close()
        await other.result().close()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


# What is carried


@given(st.binary(max_size=400), st.integers(2, 90))
def test_a_message_in_pieces_is_whole_again(data: bytes, size: int) -> None:
    pieces, joining = list(cut(data, size)), Joining()
    assert all(len(piece) <= size for piece in pieces)
    assert [joining.add(piece) for piece in pieces] == [None] * (len(pieces) - 1) + [data]
    assert joining.add(b"\0next") == b"next"


def test_what_is_no_piece_and_what_never_ends_breaks_the_wire() -> None:
    for wrong in (b"", b"\2a"):
        with pytest.raises(WireBroken):
            Joining().add(wrong)
    joining = Joining()
    for _ in range(MAX_SEALED // (PIECE - 1)):
        joining.add(b"\1" + bytes(PIECE - 1))
    with pytest.raises(WireBroken, match="too long"):
        joining.add(b"\1" + bytes(PIECE - 1))


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50_000)), max_size=60))
def test_a_pace_lets_a_burst_pass_and_then_no_more_than_its_rate(steps: list[tuple[float, int]]) -> None:
    """In any time that it leaves, no more than the burst and the rate's share of that time."""
    pace, now, sent = Pace(10_000, 20_000), 0.0, 0
    for pause, size in steps:
        now += pause
        now += pace.wait_s(now, size)
        sent += size
        assert sent - size <= 20_000 + 10_000 * now + 1


async def test_two_ends_meet_and_hear_each_other_long_messages_too() -> None:
    hub = Hub()
    async with serving(hub) as url, met(url) as (one, other):
        for data in (b"", b"x", bytes(PIECE - 1), bytes(3 * PIECE), b"m" * MAX_SEALED):
            await one.send(data)
            assert await other.receive() == data
            await other.send(data[:7])
            assert await one.receive() == data[:7]
        assert (hub.counts.pairs, hub.counts.connections) == (1, 2)
        await other.close()
        with pytest.raises(WireBroken):
            await one.receive()
        await until(lambda: hub.counts.connections == hub.counts.pairs == 0)
        assert hub.counts.bytes > MAX_SEALED


async def test_slots_are_apart_and_an_end_that_comes_again_takes_its_own_place() -> None:
    """Two callers of one slot do not meet each other; the later one is met."""
    hub = Hub()
    async with serving(hub) as url, asyncio.TaskGroup() as group:
        first = group.create_task(_broken(meet(url, SLOT, EVE_SELF, calls=True)))
        await until(lambda: hub.counts.connections == 1)
        elsewhere = group.create_task(meet(url, "00" * 32, EVE_SELF, calls=False))
        await until(lambda: hub.counts.connections == 2)
        async with met(url) as (one, other):
            await first
            await one.send(b"to my own")
            assert await other.receive() == b"to my own"
            assert not elsewhere.done()
        elsewhere.cancel()


async def _broken(work: Awaitable[object]) -> None:
    with pytest.raises(WireBroken):
        await work


async def _for_ever(work: Callable[[], Awaitable[object]]) -> None:
    while True:
        await work()


async def test_a_slow_reader_holds_up_its_own_pair_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not take stays with the sender; and when it takes nothing for long, the pair is given up."""
    hub = Hub(Limits(bytes_a_pair=1e9, bytes_in_all=1e9))
    async with serving(hub) as url, met(url) as (fast, _slow):
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await fast.send(bytes(MAX_SEALED))
                sent += 1

        async with asyncio.TaskGroup() as group:
            flooding = group.create_task(flood())
            before = -1
            while before != (before := hub.counts.bytes) or not before:
                async with met(url, "11" * 32) as (one, other):  # others are served meanwhile
                    for _ in range(50):
                        await one.send(b"quick")
                        assert await other.receive() == b"quick"
                hub.counts.bytes -= 50 * len(b"\0quick")
            assert sent < 64
            assert not flooding.done()
            flooding.cancel()
    monkeypatch.setattr(hubs, "STALL_S", 0.05)
    async with serving(hub) as url, met(url) as (fast, _slow):
        await _broken(_for_ever(lambda: fast.send(bytes(MAX_SEALED))))
        await until(lambda: hub.counts.pairs == 0)


async def test_who_speaks_before_anybody_is_there_or_too_much_at_once_is_hung_up_on() -> None:
    hub = Hub()
    async with serving(hub) as url, aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{url}/meet/{SLOT}/call") as early:
            await early.send_bytes(b"hello?")
            assert (await early.receive()).type is not aiohttp.WSMsgType.BINARY
        for path in ("/meet/short/call", f"/meet/{SLOT}/third", f"/meet/{SLOT.upper()}/call", "/link"):
            async with session.get(url.replace("ws", "http") + path) as answer:
                assert answer.status == 404
        async with (
            session.ws_connect(f"{url}/meet/{SLOT}/call") as one,
            session.ws_connect(f"{url}/meet/{SLOT}/answer") as other,
        ):
            assert (await one.receive()).data == (await other.receive()).data == "met"
            await one.send_bytes(bytes(PIECE + 1))
            assert (await other.receive()).type is not aiohttp.WSMsgType.BINARY
        await until(lambda: hub.counts.connections == 0)


async def test_a_full_hub_turns_away_and_has_room_again() -> None:
    hub = Hub(Limits(connections=3, an_address=2))
    assert not Hub(Limits(connections=0)).has_room("192.0.2.1")
    async with serving(hub) as url:
        async with met(url):
            with pytest.raises(WireBroken):
                await meet(url, "22" * 32, EVE_SELF, calls=True)
            assert hub.counts.turned_away == 1
            assert hub.has_room("192.0.2.1")
        await until(lambda: hub.counts.connections == 0)
        async with met(url, "22" * 32):
            pass


async def test_addresses_of_one_household_count_together() -> None:
    """A household has a whole /64 of IPv6; IPv4 within IPv6 is IPv4."""
    hub = Hub(Limits(an_address=1))
    ends = {"2001:db8::1": "2001:db8::2", "192.0.2.1": "::ffff:192.0.2.1", "fe80::1%eth0": "fe80::2"}

    class Deaf:
        async def send(self, data: bytes) -> None: ...
        async def say(self, text: str) -> None: ...
        async def close(self) -> None: ...
        async def receive(self, idle_s: float) -> bytes:  # noqa: ARG002 - an end's
            return await asyncio.get_running_loop().create_future()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(hub.serve(Deaf(), one, f"{n}", calls=True)) for n, one in enumerate(ends)]
        await until(lambda: hub.counts.connections == len(ends))
        assert [hub.has_room(other) for other in ends.values()] == [False] * 3
        assert hub.has_room("2001:db8:0:1::1")
        for task in tasks:
            task.cancel()


async def test_a_hub_for_some_asks_who_is_there(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        hub = Hub(allow={a.mesh, b.mesh}.__contains__, clock=lambda: NOW)
        async with serving(hub) as url:
            with pytest.raises(WireBroken):
                await meet(url, SLOT, EVE_SELF, calls=True)
            async with asyncio.TaskGroup() as group:
                one = group.create_task(meet(url, SLOT, a.who, calls=True))
                other = group.create_task(meet(url, SLOT, b.who, calls=False))
            await one.result().send(b"hello")
            assert await other.result().receive() == b"hello"
            await one.result().close()
            await other.result().close()
            assert hub.counts.turned_away == 1


def test_a_proof_is_for_one_challenge_one_slot_and_its_own_key() -> None:
    shown = proof(EVE_SELF, b"c" * 16, SLOT)
    assert prover(shown, b"c" * 16, SLOT, NOW) == EVE_MESH.public
    stolen = Self(Signer(b"x" * 32, KeyKind.NODE), EVE_SELF.certificate)
    for data, challenge, slot, now in (
        (shown, b"d" * 16, SLOT, NOW),
        (shown, b"c" * 16, "00" * 32, NOW),
        (shown, b"c" * 16, SLOT, 3 * NOW),
        (proof(stolen, b"c" * 16, SLOT), b"c" * 16, SLOT, NOW),
        *((shown[:length], b"c" * 16, SLOT, NOW) for length in range(len(shown))),
    ):
        assert prover(data, challenge, slot, now) is None


# Links through a hub


def through(hub: str, side: Side, other: Side) -> Meeting:
    return Meeting(hub, pair_slot(b"s" * 32, side.mesh, other.mesh), side.mesh < other.mesh, side.who)


@asynccontextmanager
async def linking(side: Side, other: Side, *ways: Meeting | Direct, listens: bool = False) -> AsyncIterator[Links]:
    """A side's links, which know the other side and reach it by these ways."""
    links = Links(side.who, side.ground, lambda who: None if who.mesh == other.mesh else "I do not know you")
    side.sessions = links
    async with asyncio.TaskGroup() as group:
        task = group.create_task(links.run(("127.0.0.1", 0) if listens else None))
        await links.ready.wait()
        links.dial({other.mesh: ways})
        try:
            yield links
        finally:
            task.cancel()


async def test_a_hub_that_dies_and_returns_loses_and_doubles_nothing(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.gives, a.taken, b.taken = {"tea": 0}, {"tea": 0}, {"tea"}, {"tea"}
        async with serving(Hub()) as url:
            port = int(url.rpartition(":")[2])
        async with linking(a, b, through(url, a, b)), linking(b, a, through(url, b, a)):
            said = list[str]()
            for number in range(3):
                async with serving(Hub(), port):
                    said.append(f"line {number}")
                    await a.say("tea", said[-1])
                    await until_heard(b, "tea", said)
                said.append(f"said while there is no hub {number}")
                await a.say("tea", said[-1])
            async with serving(Hub(), port):
                await until_heard(b, "tea", said)


async def test_a_third_in_the_slot_is_hung_up_on_and_the_two_find_each_other(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        hub = Hub()
        async with serving(hub) as url:
            slot, said = through(url, a, b).slot.hex(), list[str]()
            for calls in (True, False):
                thirds = asyncio.ensure_future(meet(url, slot, EVE_SELF, calls=calls))  # noqa: TID251 - awaited below
                await until(lambda: hub.counts.connections == 1)
                one, other = (b, a) if calls == (a.mesh < b.mesh) else (a, b)
                async with linking(one, other, through(url, one, other)):
                    third = await thirds
                    await third.send(b"I am whoever you want")
                    await _broken(_for_ever(third.receive))
                    await third.close()
                    async with linking(other, one, through(url, other, one)):
                        said.append(f"heard by none but you {calls}")
                        await a.say("tea", said[-1])
                        await until_heard(b, "tea", said)
                await until(lambda: hub.counts.connections == 0)


async def test_a_direct_way_takes_the_place_of_a_hub(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b), serving(Hub()) as url:
        a.gives, b.taken = {"tea": 0}, {"tea"}
        async with linking(a, b, through(url, a, b), listens=True) as one, linking(b, a, through(url, b, a)) as other:
            await until(lambda: one.sessions and other.sessions)
            before = one.sessions[b.mesh]
            other.dial({a.mesh: [Direct(f"ws://127.0.0.1:{one.port}"), through(url, b, a)]})
            await until(lambda: one.sessions.get(b.mesh, before) is not before)
            await a.say("tea", "by the shorter way")
            await until_heard(b, "tea", ["by the shorter way"])


async def test_two_who_dial_each_other_at_once_keep_one_link(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        async with linking(a, b, listens=True) as one, linking(b, a, listens=True) as other:
            one.dial({b.mesh: [f"ws://127.0.0.1:{other.port}"]})
            other.dial({a.mesh: [f"ws://127.0.0.1:{one.port}"]})
            await a.say("tea", "once")
            await until_heard(b, "tea", ["once"])
            assert (len(one.sessions), len(other.sessions)) == (1, 1)


def test_slots_say_nothing_and_need_the_secret() -> None:
    ada, bob = MeshId("A" * 56), MeshId("B" * 56)
    assert pair_slot(b"s", ada, bob) == pair_slot(b"s", bob, ada) != pair_slot(b"t", ada, bob)
    assert guest_slot(ada, NodeId("U" * 56)) != guest_slot(ada, NodeId("V" * 56)) != guest_slot(bob, NodeId("V" * 56))


# TLS


async def shown_serial(url: str, trusted: ssl.SSLContext) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), ssl=trusted)
    serial = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    await writer.wait_closed()
    del reader
    return serial


async def test_tls_is_spoken_with_a_certificate_that_holds_and_taken_up_anew(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = Tls(*authority.issue())
    heard = asyncio.Queue[bytes]()

    async def taken(wire: object) -> None:
        heard.put_nowait(await wire.receive())  # type: ignore[attr-defined]

    async with listening("127.0.0.1", 0, Desk(taken, Hub(), tls.context)) as port:
        url = f"wss://127.0.0.1:{port}"
        wire = await dial(url, authority.trusted)
        await wire.send(b"sealed twice")
        assert await heard.get() == b"sealed twice"
        await wire.close()
        with pytest.raises(WireBroken):
            await dial(url)  # no authority of this system's vouches for it
        with pytest.raises(WireBroken):
            await dial(f"ws://127.0.0.1:{port}")
        before = await shown_serial(url, authority.trusted)
        assert not tls.look()
        authority.issue()
        assert tls.look()
        assert await shown_serial(url, authority.trusted) != before
        key = (tmp_path / "key.pem").read_bytes()
        authority.issue()
        (tmp_path / "key.pem").write_bytes(key)  # renewed by halves, which do not fit each other
        with pytest.raises(MeshError, match="not a certificate"):
            tls.look()
        assert await shown_serial(url, authority.trusted) != before


async def test_a_renewed_certificate_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    tls = Tls(*authority.issue())
    monkeypatch.setattr(certificates, "LOOK_S", 0.001)
    async with listening("127.0.0.1", 0, Desk(hub=Hub(), tls=tls.context)) as port, asyncio.TaskGroup() as group:
        watching = group.create_task(tls.watch())
        before = await shown_serial(f":{port}", authority.trusted)
        (tmp_path / "key.pem").unlink()
        authority.issue()
        while await shown_serial(f":{port}", authority.trusted) == before:
            pass
        watching.cancel()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue()
    key.chmod(0o644)
    with pytest.raises(MeshError, match="chmod 600"):
        Tls(certificate, key)
    with pytest.raises(MeshError, match="cannot be read"):
        Tls(certificate, tmp_path / "none.pem")
