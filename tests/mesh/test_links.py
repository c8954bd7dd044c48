"""Links over real sockets: dialled, let in or not, broken and taken up again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from sides import Side, sides, until_heard

from mesh.links.links import Links
from mesh.links.websocket.wires import PATH


def linking(side: Side, *friends: Side) -> Links:
    """A side's links, which let its friends in and nobody else."""
    known = {friend.mesh for friend in friends}
    links = Links(side.who, side.ground, lambda who: None if who.mesh in known else "I do not know you")
    side.sessions = links
    return links


@asynccontextmanager
async def at_work(links: Links, *, listens: bool) -> AsyncIterator[str]:
    """Links that run within the block; gives where they listen."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(links.run(("127.0.0.1", 0) if listens else None))
        await links.ready.wait()
        try:
            yield f"ws://127.0.0.1:{links.port}"
        finally:
            task.cancel()


async def test_one_dials_and_both_are_heard(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.gives, a.taken, b.taken = {"tea": 0}, {"tea": 0}, {"tea"}, {"tea"}
        async with at_work(linking(a, b), listens=True) as address, at_work(other := linking(b, a), listens=False):
            other.dial({a.mesh: [address]})
            await a.say("tea", "hello")
            await until_heard(b, "tea", ["hello"])
            await b.say("tea", "good day")
            await until_heard(a, "tea", ["hello", "good day"])


async def test_a_link_that_was_dropped_comes_back(tmp_path: Path) -> None:
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        async with (
            at_work(one := linking(a, b), listens=True) as address,
            at_work(other := linking(b, a), listens=False),
        ):
            other.dial({a.mesh: [address]})
            said = list[str]()
            for number in range(3):
                said.append(f"line {number}")
                await a.say("tea", said[-1])
                await until_heard(b, "tea", said)
                one.drop(b.mesh)
        async with at_work(linking(a, b), listens=True) as address:
            said.append("after a restart")
            await a.say("tea", said[-1])
            async with at_work(other := linking(b, a), listens=False):
                other.dial({a.mesh: [address]})
                await until_heard(b, "tea", said)


async def test_strangers_are_not_let_in(tmp_path: Path) -> None:
    """Neither who dials without being known, nor who says nonsense; whoever is known is heard meanwhile."""
    async with sides(tmp_path) as (a, b):
        a.gives, b.taken = {"tea": 0}, {"tea"}
        async with at_work(linking(a), listens=True) as closed, at_work(other := linking(b, a), listens=False):
            other.dial({a.mesh: [closed]})
            await a.say("tea", "private")
            async with aiohttp.ClientSession() as session, session.ws_connect(closed + PATH) as socket:
                await socket.send_bytes(b"let me in")
                assert (await socket.receive()).type is not aiohttp.WSMsgType.BINARY
            assert b.heard("tea") == []
            assert other.sessions == {}
