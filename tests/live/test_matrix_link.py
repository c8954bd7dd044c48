"""Two nodes, each with an appservice on a Synapse of its own; the Synapses federate, and a room carries frames."""

import asyncio
import os
from collections.abc import AsyncIterator, Generator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from homeserver import INSTALLED, Synapse, federating, free_port
from matrix_rig import new_way, running, take

from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.errors import BadContent, MatrixRefused
from mesh.bridges.matrix.link import FRAME, MAX_INSIDE, RoomLink, Stored, digest, stored_content
from mesh.bridges.matrix.port import MEMBER, Speaker
from mesh.bridges.matrix.registration import Registration
from mesh.bridges.matrix.rooms import read_membership
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.clock import now_ms
from mesh.store import Store
from protocol.frame import MAX_FRAME

pytestmark = pytest.mark.skipif(
    not INSTALLED, reason="matrix-synapse is not installed: NOTHING OF MATRIX IS TESTED LIVE"
)

LINK = Speaker("link", "Link")
TESTS = 5  # as many appservices on each homeserver


@dataclass
class Side:
    """A node: its homeserver, its way in, its end of the link."""

    synapse: Synapse
    way: Registration
    port: AppService
    link: RoomLink
    store: Store

    async def next_frame(self) -> bytes:
        while True:
            if found := await self.link.read(await take(self.port.inbox)):
                return found

    async def send(self, *frames: bytes) -> None:
        """Put frames at once, and wait until the own homeserver has them."""
        with self.store.transaction():
            for data in frames:
                assert self.link.put(data, data[:16].hex())
        self.port.outbox.wake()
        for data in frames:
            assert (await self.port.outbox.wait(LINK.key, data[:16].hex())).event_id


Server = tuple[Synapse, list[tuple[Registration, int]]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Server, Server]]:
    """Two homeservers that federate."""
    made = list[Server]()
    for _ in range(2):
        folder, name = tmp_path_factory.mktemp("synapse"), f"localhost:{free_port()}"
        spare = [new_way(name) for _ in range(TESTS)]
        made.append((Synapse(folder, [way.text() for way, _ in spare], **federating(folder, name)), spare))

    async def start() -> None:
        async with asyncio.TaskGroup() as group:
            for synapse, _ in made:
                group.create_task(synapse.start())

    try:
        asyncio.run(start())
        yield made[0], made[1]
    finally:
        for synapse, _ in made:
            synapse.stop()


@pytest.fixture
async def sides(servers: tuple[Server, Server], tmp_path: Path) -> AsyncIterator[tuple[Side, Side]]:
    """Two running nodes with a room between them: one made it and invited, the other was invited and joined."""
    async with AsyncExitStack() as stack:
        ports = list[tuple[Synapse, Registration, AppService, Store]]()
        for number, (synapse, spare) in enumerate(servers):
            way, listen = spare.pop()
            store = Store(tmp_path / f"{number}.db", {"matrix": MATRIX_SCHEMA})
            stack.callback(store.close)
            port = AppService(synapse.url, way, ("127.0.0.1", listen), store, now_ms)
            await stack.enter_async_context(running(port))
            await port.ensure(LINK)
            ports.append((synapse, way, port, store))
        (_, way, host, _), (_, _, guest, _) = ports
        room = await host.create_room("link", "link", invite=[guest.user_id("link")])
        found = None
        while not (found and found.ours and found.change == "invited"):
            event = await take(guest.inbox)
            found = read_membership(event, guest.owns) if event.kind == MEMBER else None
        assert found.by == host.user_id("link")
        assert await guest.join("link", room, way.server_name) == room
        left, right = (Side(*one[:3], RoomLink(one[2], LINK, room), one[3]) for one in ports)
        yield left, right


def frames(count: int, length: int = 1_000) -> list[bytes]:
    return [os.urandom(length) for _ in range(count)]


async def received(side: Side, count: int) -> list[bytes]:
    return [await side.next_frame() for _ in range(count)]


async def test_frames_go_both_ways_as_they_are_and_in_order(sides: tuple[Side, Side]) -> None:
    """Bytes of any kind and length, many put at once on both sides."""
    left, right = sides
    there, back = [*frames(20), bytes(range(256)), *frames(2, MAX_INSIDE), b"\x00" * 17], frames(20, 300)
    async with asyncio.TaskGroup() as group:
        group.create_task(left.send(*there))
        group.create_task(right.send(*back))
        heard, answered = group.create_task(received(right, len(there))), group.create_task(received(left, len(back)))
    assert heard.result() == there
    assert answered.result() == back


async def test_long_frames_travel_as_files(sides: tuple[Side, Side]) -> None:
    """In order with the others; a file that is not what was announced is no frame."""
    left, right = sides
    long, short = os.urandom(MAX_FRAME), os.urandom(100)
    await left.link.send(long, "long")
    await left.link.send(short, "short")
    assert [await right.next_frame(), await right.next_frame()] == [long, short]
    url = await left.port.upload("link", long, "application/octet-stream", "frame")
    for number, wrong in enumerate((Stored(url, MAX_FRAME, digest(short)), Stored(url, MAX_FRAME - 1, digest(long)))):
        await left.port.send(LINK, left.link.room, FRAME, stored_content(wrong), f"wrong {number}")
    heard = [await take(right.port.inbox) for _ in range(2)]
    assert await right.link.read(heard[0]) is None
    with pytest.raises(MatrixRefused, match="longer than"):
        await right.link.read(heard[1])


async def test_what_does_not_fit_is_refused_at_once(sides: tuple[Side, Side]) -> None:
    left, _ = sides
    with pytest.raises(BadContent, match="does not fit an event"):
        left.link.put(b"x" * (MAX_INSIDE + 1), "long")
    with pytest.raises(BadContent, match="too long"):
        await left.link.send(b"x" * (MAX_FRAME + 1), "long")
    assert left.port.outbox.waiting() == 0


async def test_a_replay_is_one_event(sides: tuple[Side, Side]) -> None:
    """The same key sends nothing more, and what a homeserver serves again is not heard again."""
    left, right = sides
    (frame,) = frames(1)
    event = await left.link.send(frame, "key")
    assert await left.link.send(frame, "key") == event
    heard = await anext(right.port.inbox)
    while await right.link.read(heard) is None:
        right.port.inbox.handled(heard)
        heard = await anext(right.port.inbox)
    assert (heard.event_id, await right.link.read(heard)) == (event, frame)
    right.port.inbox.handled(heard)
    raw = {
        "event_id": heard.event_id,
        "room_id": heard.room,
        "sender": heard.sender,
        "type": heard.kind,
        "content": dict(heard.content),
        "origin_server_ts": heard.at_ms,
    }
    headers = {"Authorization": f"Bearer {right.way.hs_token}"}
    url = f"{right.way.url}/_matrix/app/v1/transactions/again"
    async with aiohttp.ClientSession(headers=headers) as session, session.put(url, json={"events": [raw, raw]}) as told:
        assert told.status == 200
    last = frames(1)[0]
    await left.link.send(last, "last")
    assert await right.next_frame() == last


async def test_what_was_sent_while_a_homeserver_was_down_arrives_once(sides: tuple[Side, Side]) -> None:
    """Twenty frames during its absence, all heard once when it is back; order is then the frames' own business."""
    left, right = sides
    before, missed, after, back = frames(1), frames(20), frames(1), frames(3)
    await left.send(*before)
    assert await right.next_frame() == before[0]
    right.synapse.stop()
    await left.send(*missed)
    await right.synapse.start()
    heard = await received(right, 20)
    assert sorted(heard) == sorted(missed)
    await right.send(*back)
    assert sorted(await received(left, 3)) == sorted(back)
    await left.send(*after)
    assert await right.next_frame() == after[0]
