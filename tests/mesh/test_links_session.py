"""Two nodes' ledgers over a wire in memory: what is shared arrives once, in order, and nothing else does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from sides import BUDGET, NOW, Side, sides, until_heard

from mesh.ledger import Checked
from mesh.links.messages import Frames, Matter, Missing, encode
from mesh.links.papers import learn
from mesh.links.session import ASIDES_A_MINUTE, Session
from mesh.links.wire import MemoryWire, Wire, WireBroken
from protocol.acts import Act, new_id
from protocol.address import Subject
from protocol.frame import decode_frame, encode_frame
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


async def test_what_was_heard_and_not_stored_before_a_crash_is_stored_when_it_comes_again(tmp_path: Path) -> None:
    """The receiver hears a frame at once; it is not acknowledged before the stream has it, and so it is sent again."""
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        await a.say("tea", "hello")
        await until(lambda: a.heard("tea") == ["hello"])
        (data,) = (row[0] for row in a.store.rows("SELECT frame FROM frames"))
        frame = decode_frame(data)
        learn(b.ground, a.mesh, a.ground.papers)
        b.ledger.take([Checked(Subject(True, "tea", a.mesh, frame.node), frame, data)])
        assert b.heard("tea") == ["hello"]
        assert await b.bus.last_seq() == 0
        async with linked(a, b):
            await until(lambda: a.store.rows("SELECT n FROM link_cursors"))
            assert [one.data for one in await b.bus.read(1, 10)] == [data]
        assert b.heard("tea") == ["hello"]


async def test_a_session_looks_where_something_was_said_and_where_more_is_shared(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea", "diary"}
        async with linked(a, b):
            (session,) = list(a.sessions)
            await a.say("tea", "begun")
            await until_heard(b, "tea", ["begun"])
            assert (session.concerns({"tea", "other"}), session.concerns({"diary", "other"})) == (True, False)
            await a.say("diary", "for later")
            await until(lambda: a.heard("diary") == ["for later"])
            a.gives["diary"] = 0
            session.wake(())
            await until_heard(b, "diary", ["for later"])


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


def gaps(side: Side) -> int:
    return side.store.one("SELECT count(*) FROM gaps")[0]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


async def test_what_is_missing_is_asked_for_and_sent_again(tmp_path: Path) -> None:
    """Frames that were lost behind the cursor: the peer finds a gap in the count, and it is closed."""
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        said = [f"line {number}" for number in range(200)]
        await a.say("tea", *said)
        await until(lambda: a.heard("tea") == said)
        middle = a.store.one("SELECT n FROM frames ORDER BY n LIMIT 1 OFFSET 149")[0]
        with a.store.transaction():
            a.store.execute("INSERT INTO link_cursors VALUES (?, 'tea', ?, 0)", (b.mesh, middle))
        async with linked(a, b):
            await until(lambda: sorted(b.heard("tea")) == sorted(said))
            await until(lambda: not gaps(b))


async def test_what_is_not_given_is_not_asked_for_for_ever(tmp_path: Path) -> None:
    """Its author says that there is no more: what was said to others first is no loss."""
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        await a.say("tea", "hello", "not for you", "not for you", "still here")
        async with linked(a, b):
            await until_heard(b, "tea", ["hello", "still here"])
            await until(lambda: not gaps(b))
        assert b.heard("tea") == ["hello", "still here"]


async def test_missing_frames_that_the_peer_may_not_have_are_not_given(tmp_path: Path) -> None:
    """Asked for by name and number, in a basin that is not shared, and what is not for the peer in one that is."""
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea", "diary"}
        await a.say("diary", "private")
        await a.say("tea", "not for you", "hello")
        async with linked(a, b) as (_, wire):
            await until_heard(b, "tea", ["hello"])
            for basin in ("diary", "tea"):
                await wire.send(encode(Missing(a.mesh, a.node.public, basin, 0, 2**62)))
            await a.say("tea", "still here")
            await until_heard(b, "tea", ["hello", "still here"])
            await until(lambda: not gaps(b))
            assert b.heard("diary") == []


async def test_what_is_too_old_is_left_out_and_told(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken, a.oldest_ms = {"tea": 0}, {"tea"}, NOW + 1
        await a.say("tea", "long ago", "and then")
        async with linked(a, b):
            await until(lambda: b.notes)
        assert b.notes == ["2 acts in tea were too old to be sent when you came back"]
        assert b.heard("tea") == []


async def test_who_may_see_more_than_before_is_sent_it(tmp_path: Path) -> None:
    """Over the same link: what was passed over for a guest is sent to whoever is none any more, each act once."""
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": NOW + 1}, {"tea"}
        await a.say("tea", "before")
        async with linked(a, b):
            await until(lambda: a.store.one("SELECT n FROM link_cursors") is not None)
            assert b.heard("tea") == []
            a.gives = {"tea": 0}
            a.proceed()
            await until_heard(b, "tea", ["before"])


async def test_parts_of_two_nodes_talk_and_nonsense_is_counted(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b), linked(a, b):
        (session,) = a.sessions
        assert session.tell("card", b"who we are")
        assert session.tell("nonsense", b"?")
        assert session.tell("card", b"again")
        await until(lambda: len(b.matters) == 2)
        assert b.matters == [("card", b"who we are"), ("card", b"again")]
        assert b.store.one("SELECT times FROM refusals WHERE mesh = ?", (a.mesh,)) == (1,)


async def test_who_says_too_much_beside_its_acts_is_not_heard(tmp_path: Path) -> None:
    """A flood of matters is dropped and counted; acts go on."""
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        async with linked(a, b) as (wire, _):
            await a.say("tea", "good day")
            await until_heard(b, "tea", ["good day"])
            for _ in range(ASIDES_A_MINUTE + 50):
                await wire.send(encode(Matter("card", b"x")))
            await a.say("tea", "hello")
            await until_heard(b, "tea", ["good day", "hello"])
            assert len(b.matters) < ASIDES_A_MINUTE
            assert b.store.one("SELECT times FROM refusals WHERE mesh = ?", (a.mesh,))[0] > 40
