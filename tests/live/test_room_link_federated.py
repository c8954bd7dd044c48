"""Two persons' nodes, linked through a room of two Synapses that federate; an appservice here, an account there."""

import asyncio
import base64
import json
import os
import signal
import sqlite3
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bridged import upgrade
from homeserver import Synapse, federating, free_port
from matrix_rig import LIVE, Human, new_way, person
from nio import RoomPreset
from process import Process, client, make_home, mesh, up

from mesh.bridges.matrix.account import log_in
from mesh.bridges.matrix.link import FRAME, frame_content, read_frame
from mesh.bridges.matrix.port import ENCRYPTION
from mesh.bridges.matrix.registration import Registration
from mesh.links.room import Packet, read_packet
from nodes.client import Client
from nodes.home import Home
from nodes.matrix.login import Listening, Login, write_login

pytestmark = LIVE

PATIENCE_S = 60
EM = "basins: [tea]\nreply_on_name: true\nreply_on_floor: false\n"
BASINS = {"tea": {"budget": {"hops": 2, "acts": 8}}}
MEGOLM = {"algorithm": "m.megolm.v1.aes-sha2"}


@dataclass(frozen=True)
class Server:
    """A homeserver, and the appservices that it knows and nobody uses yet."""

    synapse: Synapse
    name: str
    ways: list[tuple[Registration, int]]
    folder: Path

    def limit(self, user: str, per_second: int, burst: int) -> None:
        """Let a user say little, or for 0 anything; before it has said something, or the homeserver is started anew."""
        with closing(sqlite3.connect(self.folder / "hs.db")) as database, database:
            database.execute("INSERT OR REPLACE INTO ratelimit_override VALUES (?, ?, ?)", (user, per_second, burst))


@dataclass
class Mesher:
    """A person with a node: their own client, their home, and the node's Matrix user."""

    server: Server
    login: dict[str, Any]
    home: Home
    node: str

    @asynccontextmanager
    async def human(self) -> AsyncGenerator[Human]:
        one = Human(self.server.synapse, self.login)
        try:
            yield one
        finally:
            await one.client.close()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Server, Server]]:
    """Two homeservers that federate; the first knows an appservice."""
    made = list[Server]()
    for number in range(2):
        folder, name = tmp_path_factory.mktemp("synapse"), f"localhost:{free_port()}"
        ways = [new_way(name) for _ in range(1 - number)]
        synapse = Synapse(folder, [way.text() for way, _ in ways], **federating(folder, name))
        made.append(Server(synapse, name, ways, folder))

    async def start() -> None:
        async with asyncio.TaskGroup() as group:
            for one in made:
                group.create_task(one.synapse.start())

    try:
        asyncio.run(start())
        yield made[0], made[1]
    finally:
        for one in made:
            one.synapse.stop()


async def meshers(servers: tuple[Server, Server], path: Path) -> tuple[Mesher, Mesher]:
    """Ada, whose homeserver is her own, and Bob, whose node has an account like any other."""
    made = list[Mesher]()
    for name, server in zip(("ada", "bob"), servers, strict=True):
        synapse, person = server.synapse, f"{name}{os.urandom(3).hex()}"
        config = {"name": name, "human": f"{name}-person", "basins": BASINS}
        home = make_home(path / name, {f"em-{name}": EM}, config)
        login = await synapse.register(person, "secret")
        if server.ways:
            way, listen = server.ways.pop()
            write_login(home.keys, Login(synapse.url, login["user_id"], way, Listening("127.0.0.1", listen)))
            made.append(Mesher(server, login, home, f"@{way.bot}:{server.name}"))
        else:
            await synapse.register(f"node-{person}", "secret")
            session = await log_in(synapse.url, f"node-{person}", "secret")
            write_login(home.keys, Login(synapse.url, login["user_id"], account=session))
            made.append(Mesher(server, login, home, session.user_id))
    return made[0], made[1]


async def room_of(ada: Mesher, bob: Mesher) -> str:
    """A public room that Ada made, where both persons are, and which their nodes may enter."""
    async with ada.human() as her, bob.human() as him:
        public = {"preset": RoomPreset.public_chat, "power_level_override": {"invite": 0}}
        room = await her.room(bob.login["user_id"], **public)
        await him.client.join(room)
        await until_there(her, room, bob.login["user_id"])
    return room


async def until_there(human: Human, room: str, *users: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not set(users) <= {one.user_id for one in (await human.client.joined_members(room)).members}:
            await asyncio.sleep(0.05)


async def said(one: Client) -> list[str]:
    return [entry["text"] for entry in await one.history("tea", 1000)]


async def heard(one: Client, texts: Sequence[str]) -> None:
    """Wait until so much was heard of somebody; all of it, once each, in order."""
    author = texts[0].split()[0]
    async with asyncio.timeout(PATIENCE_S):
        while len(found := [text for text in await said(one) if text.startswith(f"{author} ")]) < len(texts):
            await asyncio.sleep(0.05)
    assert found == list(texts)


async def connected(one: Client) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not all(peer["connected"] for peer in (await one.request("peer_list", {}))["peers"]):
            await asyncio.sleep(0.05)


async def command(*words: str | Path) -> str:
    """What a command says."""
    done = await asyncio.to_thread(mesh, *words)
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Pair:
    """Two who are linked by commands, the room where they meet, and what the commands said on the way."""

    ada: Mesher
    bob: Mesher
    room: str
    told: list[str]


@pytest.fixture(scope="module")
def pair(servers: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Bob, whose account may say little, invites Ada; their nodes are down afterwards."""

    async def prepare() -> Pair:
        ada, bob = await meshers(servers, tmp_path_factory.mktemp("homes"))
        bob.server.limit(bob.node, 2, 2)
        async with up(ada.home), up(bob.home):
            async with ada.human() as mara:
                sealed = [{"type": ENCRYPTION, "state_key": "", "content": MEGOLM}]
                alone = await mara.room(ada.node, initial_state=sealed)
                await until_there(mara, alone, ada.node)
            invite = ("peer", "invite", "--give", "tea:write", "--trust", "known", "--room")
            told = [await command(*invite, alone, "--home", mesher.home.path) for mesher in (ada, bob)]
            room = await room_of(ada, bob)
            code = json.loads(await command(*invite, room, "--json", "--home", bob.home.path))["code"]
            accept = ("peer", "accept", code, "--trust", "known", "--room", room, "--yes")
            told.append(await command(*accept, "--home", ada.home.path))
            for home in (ada.home, bob.home):
                async with client(home) as one, asyncio.timeout(PATIENCE_S):
                    while [peer["state"] for peer in (await one.request("peer_list", {}))["peers"]] != ["linked"]:
                        await asyncio.sleep(0.05)
            bob.server.limit(bob.node, 0, 0)  # as soon as it is started anew
        return Pair(ada, bob, room, told)

    return asyncio.run(prepare())


@dataclass
class Talk:
    """Two nodes that run, and what was said on both sides since the beginning of this talk."""

    nodes: list[Process]
    clients: list[Client]
    lines: tuple[list[str], list[str]]

    async def say(self, side: int, count: int) -> None:
        for _ in range(count):
            name = f"{('ada', 'bob')[side]}{id(self)}"
            self.lines[side].append(f"{name} says number {len(self.lines[side])}")
            await self.clients[side].say("tea", self.lines[side][-1])

    async def both(self, count: int) -> None:
        """Both speak at once."""
        async with asyncio.TaskGroup() as group:
            for side in range(2):
                group.create_task(self.say(side, count))

    async def heard(self) -> None:
        """Wait until all was heard by both: once each, in order, and nothing of the other's was refused."""
        for lines in self.lines:
            for one in self.clients:
                await heard(one, lines)
        for one, peer in zip(self.clients, ("bob", "ada"), strict=True):
            assert (await one.request("peer_show", {"peer": peer}))["refused"] == {}


@asynccontextmanager
async def talking(pair: Pair) -> AsyncGenerator[Talk]:
    """Both nodes, linked, for the block."""
    ada, bob = pair.ada.home, pair.bob.home
    async with up(ada) as one, up(bob) as other, client(ada) as her, client(bob) as him:
        await connected(her)
        yield Talk([one, other], [her, him], ([], []))
        assert "Traceback" not in one.said() + other.said()


async def frames(human: Human, room: str) -> list[dict[str, Any]]:
    return await human.events(room, FRAME)


async def test_two_persons_link_as_the_docs_say(pair: Pair) -> None:
    """By commands alone, with an account that may say little; ems answer across, and people in the room see nothing."""
    sealed, stranger, linked = pair.told
    assert "is encrypted, and links need a room that is not" in sealed
    assert f"invite {pair.bob.node} to the room in your client" in stranger
    assert "You are linked with bob." in linked or "Accepted." in linked, linked
    async with talking(pair) as talk:
        her, him = talk.clients
        await her.say("tea", "em-bob, are you there?")
        await him.say("tea", "em-ada, and you?")
        async with asyncio.timeout(PATIENCE_S):
            while len(await said(her)) < 4 or sorted(await said(her)) != sorted(await said(him)):
                await asyncio.sleep(0.05)
        assert {entry["author"] for entry in await her.history("tea")} >= {"em-ada", "em-bob"}
        long = "long " * 12_000  # more than fits into an event
        await her.say("tea", long)
        async with asyncio.timeout(PATIENCE_S):
            while long not in await said(him):
                await asyncio.sleep(0.05)
        told = await command("matrix", "doctor", "--home", pair.bob.home.path)
        assert "peers are met there" in told
        assert "Too Many Requests" in talk.nodes[1].said()
        async with pair.ada.human() as mara:
            assert await frames(mara, pair.room)
            assert await mara.bodies(pair.room) == []


async def test_what_is_said_while_homeservers_are_killed_is_heard_once_and_in_order(pair: Pair) -> None:
    """His in the middle of a talk; hers with all that it was about to push to her node, which looks for it."""
    his, hers = pair.bob.server.synapse, pair.ada.server.synapse
    async with talking(pair) as talk, pair.ada.human() as mara:
        await talk.both(4)
        his.kill()
        await talk.both(4)
        await his.start()
        await talk.both(2)
        await talk.heard()
        node = talk.nodes[0].process
        node.send_signal(signal.SIGSTOP)
        for _ in range(3):  # the first reaches what is stopped, the others wait behind it
            before = len(await frames(mara, pair.room))
            await talk.say(1, 1)
            async with asyncio.timeout(PATIENCE_S):
                while len(await frames(mara, pair.room)) == before:
                    await asyncio.sleep(0.05)
        hers.kill()
        hers.forget_pushes()
        node.send_signal(signal.SIGCONT)
        await hers.start()
        await talk.both(2)
        await talk.heard()


def nonsense(seen: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What somebody may write who has read all that went through the room."""
    packets = [packet for event in seen if (packet := read_packet(read_frame(FRAME, event["content"]) or b""))]
    assert packets
    last = packets[-1]
    forged = [
        Packet(last.name, calls, stream, number, b"\0forged", b"t" * 16)
        for calls in (True, False)
        for stream in (last.stream, b"\xff" * 8, b"")
        for number in (0, 1, last.number + 1)
    ]
    wrong: list[Any] = [{}, {"bytes": 5}, {"bytes": ["AA"]}, {"bytes": "A"}, {"bytes": "=" * 9}, {"file": 3}]
    wrong += [{"bytes": base64.urlsafe_b64encode(os.urandom(40_000)).decode().rstrip("=")}, {"bytes": {"a": [None]}}]
    return [*wrong, *(frame_content(msgspec.msgpack.encode(one)) for one in forged), *(one["content"] for one in seen)]


def links(talk: Talk) -> int:
    """How often the two were linked so far."""
    return talk.nodes[0].said().count("a link is up")


async def write(eve: Human, room: str, evil: Sequence[dict[str, Any]]) -> None:
    for content in evil:
        sent = await eve.client.room_send(room, FRAME, content)
        if not content:
            await eve.client.room_redact(room, sent.event_id)


async def test_neither_somebody_else_in_the_room_nor_a_kill_nor_an_upgrade_ends_a_link(pair: Pair) -> None:
    """Eve repeats, forges, floods and redacts, also while a link is made anew after a kill; then the room moves."""
    ada, bob = pair.ada, pair.bob
    async with talking(pair) as talk, ada.human() as mara, bob.human() as ben, person(bob.server.synapse) as eve:
        await eve.client.join(pair.room)
        evil, before = nonsense((await frames(eve, pair.room))[-30:]), links(talk)
        async with asyncio.TaskGroup() as group:
            group.create_task(write(eve, pair.room, evil))
            await talk.both(5)
            await talk.heard()
            assert links(talk) == before
            talk.nodes[1].kill()
            await talk.nodes[1].gone()
            await talk.say(0, 3)
            again = group.create_task(write(eve, pair.room, nonsense((await frames(eve, pair.room))[-30:])))
            async with up(bob.home), client(bob.home) as him:
                talk.clients[1] = him
                await talk.both(3)
                await talk.heard()
                assert await ben.bodies(pair.room) == []
                await again
                await follow(talk, mara, pair)


async def follow(talk: Talk, mara: Human, pair: Pair) -> None:
    """The room is closed and upgraded, and the nodes are invited to the new one: they meet there."""
    nodes = pair.ada.node, pair.bob.node
    await mara.client.room_put_state(pair.room, "m.room.join_rules", {"join_rule": "invite"})
    new = await upgrade(mara, pair.room)
    for user in nodes:
        await mara.client.room_invite(new, user)
    await until_there(mara, new, *nodes)
    await talk.both(2)
    await talk.heard()
    for one, peer in zip(talk.clients, ("bob", "ada"), strict=True):
        assert (await one.request("peer_show", {"peer": peer}))["room"] == new
    assert await frames(mara, new)
