"""Two nodes' ledgers over a wire in memory: what is shared arrives once, in order, and nothing else does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sides import BUDGET, NOW, Side, sides, until_heard

from mesh.links.messages import Frames, encode
from mesh.links.session import Session
from mesh.links.wire import MemoryWire, Wire, WireBroken
from protocol.acts import Act, new_id
from protocol.frame import encode_frame
from protocol.keys import KeyKind, Signer


@asynccontextmanager
async def linked(a: Side, b: Side) -> AsyncIterator[tuple[Wire, Wire]]:
    """A wire between two sides, with a session at each end, broken at the end of the block."""
    ends = MemoryWire.pair()
    async with asyncio.TaskGroup() as group:
        for side, other, end in ((a, b, ends[0]), (b, a, ends[1])):
            session = Session(other.mesh, end, side.ground)
            side.sessions = [session]
            group.create_task(until_broken(session))
        yield ends
        await ends[0].close()


async def until_broken(session: Session) -> None:
    try:
        await session.run()
    except* WireBroken:
        pass


async def test_what_is_shared_arrives_in_order_and_nothing_else(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        await a.say("tea", "before")
        await a.say("diary", "private")
        async with linked(a, b):
            await until_heard(b, "tea", ["before"])
            said = [f"line {number}" for number in range(300)]
            await a.say("tea", *said)
            await until_heard(b, "tea", ["before", *said])
            assert b.heard("diary") == []
            assert b.store.one("SELECT count(*) FROM gaps")[0] == 0


async def test_a_broken_wire_is_gone_on_with_and_nothing_comes_twice(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.gives, a.taken, b.taken = {"tea": 0}, {"tea": 0}, {"tea"}, {"tea"}
        said = list[str]()
        for number in range(5):
            async with linked(a, b):
                await a.say("tea", f"live {number}")
                said.append(f"live {number}")
                await until_heard(b, "tea", said)
            await a.say("tea", f"away {number}")
            said.append(f"away {number}")
        async with linked(a, b):
            await until_heard(b, "tea", said)
        assert a.heard("tea") == said


async def test_what_is_not_taken_or_not_signed_right_is_refused_and_counted(tmp_path: Path) -> None:
    """A basin that is not taken, an act that the gates refuse, a stranger's frame: none is stored, the rest goes on."""
    stranger = Signer(b"s" * 32, KeyKind.NODE)
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0, "diary": 0}, {"tea"}
        async with linked(a, b) as (wire, _):
            await a.say("diary", "not asked for")
            await a.say("tea", "refuse me", "hello")
            await until_heard(b, "tea", ["hello"])
            identity = new_id(NOW, b"x" * 10)
            act = Act(identity, "say", "mara", [], identity, BUDGET, NOW, {"text": "forged"})
            await wire.send(encode(Frames(99, [encode_frame(stranger, 1, NOW, "tea", [act]), b"nonsense"])))
            await a.say("tea", "still here")
            await until_heard(b, "tea", ["hello", "still here"])
            assert b.heard("diary") == []
            assert b.store.one("SELECT sum(times) FROM refusals WHERE mesh = ?", (a.mesh,))[0] == 4
