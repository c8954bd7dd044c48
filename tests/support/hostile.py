"""A peer gone bad: python hostile.py ATTACK HOME VICTIM_MESH HOST:PORT [HOME_OF_THE_VICTIM].

It has all keys of HOME, whose owner was linked with the victim, and says to the victim's node what no node says. For
`raw` it runs beside the victim's nats-server, with no key, with a foreign one and with the owner's client key. On
standard output: a JSON line that it has begun, and one with what it met.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mesh.clock import now_ms
from mesh.entries import recent
from mesh.errors import MeshError
from mesh.links.channel import Sealed, Self, call
from mesh.links.messages import Beat, Frames, Hello, Kept, Matter, Missing, Note, Papers, decode, encode
from mesh.links.websocket.dialling import dial
from mesh.links.wire import MAX_MESSAGE
from nodes.home import Home
from nodes.records import records
from protocol.acts import Act, new_id
from protocol.budget import Budget
from protocol.certificate import Certificate, Revocation, issue, revoke
from protocol.frame import HEADER_BYTES, MAX_FRAME, encode_frame
from protocol.keys import KeyKind, MeshId, NodeId, Signer
from protocol.statement import own_basin

YEAR_MS = 366 * 86_400_000
FLOOD = 3_000  # messages of each kind of flood


@dataclass
class Bad:
    """Who attacks whom."""

    home: Home
    victim: MeshId
    place: str

    def __post_init__(self) -> None:
        self.node, self.key = self.home.signer("node"), self.home.signer("mesh")
        self.mesh = MeshId(self.key.public)
        self.paper = self.home.documents()[0][0]
        self.sequences = itertools.count(900_000)

    @asynccontextmanager
    async def link(self, node: Signer | None = None, paper: bytes | None = None) -> AsyncIterator[Sealed]:
        """A link on which anything can be said. Raises MeshError when it is not let in."""
        wire = await dial(f"ws://{self.place}")
        try:
            sealed, _ = await call(wire, Self(node or self.node, paper or self.paper), self.victim)
            await sealed.send(encode(Hello(1, self.mesh, "b2:0")))
            yield sealed
        finally:
            await wire.close()

    def paper_for(self, node: Signer, start_ms: int, end_ms: int, mesh: Signer | None = None, named: str = "") -> bytes:
        """A certificate; `named`: of a mesh whose key it is not signed with."""
        signer = mesh or self.key
        certificate = Certificate(MeshId(named or signer.public), NodeId(node.public), start_ms, end_ms, ["speak"])
        if not named:
            return issue(signer, certificate)
        data = msgspec.msgpack.encode(certificate)
        return signer.sign(b"ampmesh/certificate/1\0" + data) + data

    def frame(self, act: Act, basin: str = "tea", node: Signer | None = None, at_ms: int | None = None) -> bytes:
        return encode_frame(node or self.node, next(self.sequences), at_ms or now_ms(), basin, [act])

    def others(self, basin: str = "tea") -> list[bytes]:
        """Frames of others' that this home has kept, as they were signed."""
        with records(self.home) as store:
            assert store is not None
            sql = "SELECT frame FROM frames JOIN origins USING (origin) WHERE basin = ? AND mesh NOT IN (?, ?)"
            return [row[0] for row in store.rows(sql, (basin, self.mesh, self.victim))]

    def first_of_the_victim(self) -> tuple[bytes, Budget]:
        """The first act of the victim's in tea: its id, and what it began with."""
        with records(self.home) as store:
            assert store is not None
            act = next(entry.act for entry in recent(store, "tea", 1_000) if entry.mesh == self.victim)
            return act.id, act.budget


def act(text: str, *, at_ms: int | None = None, **fields: Any) -> Act:
    """An act of the bad one's person; a root, if nothing else is said."""
    now = at_ms or now_ms()
    identity = new_id(now, secrets.token_bytes(10))
    refs, root = fields.get("refs", []), fields.get("root", identity)
    budget = fields.get("budget", Budget(6, 16, 50_000, now + 600_000))
    body = {"text": text} | fields.get("body", {})
    return Act(identity, fields.get("kind", "say"), fields.get("author", "bob"), refs, root, budget, now, body)


def tell_test(met: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(met) + "\n")
    sys.stdout.flush()


async def tell(sealed: Sealed, number: int, frames: Sequence[bytes]) -> int:
    """Send frames; returns how many of them the victim says it refused."""
    await sealed.send(encode(Frames(number, list(frames))))
    while True:
        said = decode(await sealed.receive())
        if isinstance(said, Kept) and said.number >= number:
            return said.refused


# Lies, each of which must be refused and counted


def lies(bad: Bad) -> dict[str, list[bytes]]:
    """Frames by what is wrong with them. None of them may be heard at the victim's."""
    stranger = Signer(secrets.token_bytes(32), KeyKind.NODE)
    honest = bad.others()[0]
    root, budget = bad.first_of_the_victim()
    more = Budget(60, 9_999, 10**7, now_ms() + YEAR_MS)
    own = own_basin(bad.mesh, bad.victim)
    statement = {"mesh": bad.victim, "basin": "diary", "may": "read", "round": 1, "turn": 3}
    unknown = new_id(now_ms(), b"q" * 10)
    return {
        "a third one's frame, changed": [honest[:-1] + bytes([honest[-1] ^ 1])],
        "a third one's name, our signature": [honest[:1] + honest[1:33] + bad.frame(act("LIE forged"))[33:]],
        "a stranger's node": [bad.frame(act("LIE stranger"), node=stranger)],
        "a basin that is not shared": [bad.frame(act("LIE diary"), "diary")],
        "another pair's basin": [bad.frame(act("LIE own basin"), "link-" + "a" * 26)],
        "the basin of the victim and a third": [bad.frame(act("LIE den"), "den")],
        "a third one's act in another basin": [bad.frame(act("LIE elsewhere"), "den")],
        "a statement in a common basin": [bad.frame(act("what is not mine", kind="share", body=statement), "tea")],
        "a year ahead": [bad.frame(act("LIE ahead"), at_ms=now_ms() + YEAR_MS)],
        "acts dated a year ahead": [bad.frame(act("LIE later", at_ms=now_ms() + YEAR_MS))],
        "a year back, before the certificate": [bad.frame(act("LIE back"), at_ms=now_ms() - 2 * YEAR_MS)],
        "a root that is none": [bad.frame(act("LIE rootless", root=unknown))],
        "an answer in another chain": [bad.frame(act("LIE chain", refs=[root], root=unknown, budget=more))],
        "a raised budget": [bad.frame(act("LIE raised", refs=[root], root=root, budget=more))],
        "a raised budget, to an act nobody knows": [
            bad.frame(act("LIE raised too", refs=[unknown], root=root, budget=more))
        ],
        "hops that were not taken": [bad.frame(act("LIE hops", refs=[root], root=root, budget=budget))],
        "a third one's statement in our own basin": [
            bad.frame(act("LIE link", kind="link", body=statement | {"mesh": unknown.hex()}), own)
        ],
        "the largest frame and one byte": [bad.frame(act("LIE large"))[:HEADER_BYTES] + b"x" * MAX_FRAME],
        "nothing": [b""],
        "noise": [secrets.token_bytes(400)],
    }


async def lie(bad: Bad) -> dict[str, Any]:
    """Every lie by itself; what the victim refused of each at once (others it refuses when it hears its own bus)."""
    refused = dict[str, int]()
    async with bad.link() as sealed:
        for number, (name, frames) in enumerate(lies(bad).items(), 1):
            refused[name] = await tell(sealed, number, frames)
        false = bad.paper_for(bad.node, 0, now_ms() + YEAR_MS, named=bad.victim)
        await sealed.send(encode(Papers([false, b"noise"], [b"noise"])))
        await tell(sealed, 1_000, [])
    return {"refused": refused}


async def replay(bad: Bad) -> dict[str, Any]:
    """All that a third one ever said, again and again; and an act of ours that was heard already, framed anew."""
    old, again = bad.others(), act("I say this once")
    async with bad.link() as sealed:
        for number in range(1, 41):
            await tell(sealed, number, [*(old * 64)[:48], bad.frame(again)])
    return {}


# Keys that do not count any more


async def keys(bad: Bad) -> dict[str, Any]:
    """A certificate that has expired, a node that its mesh revoked, one that nobody knows: none is let in."""
    met = dict[str, str]()
    now, day = now_ms(), 86_400_000
    old, gone, unknown = (Signer(secrets.token_bytes(32), KeyKind.NODE) for _ in range(3))
    stranger = Signer(secrets.token_bytes(32), KeyKind.MESH)
    async with bad.link() as sealed:
        await sealed.send(encode(Papers([bad.paper_for(gone, now - day, now + day)], [])))
        listed = revoke(bad.key, Revocation(bad.mesh, 5, [NodeId(gone.public)]))
        await sealed.send(encode(Papers([bad.paper_for(old, now - 2 * day, now - day)], [listed])))
        met["frames of a revoked node"] = str(await tell(sealed, 1, [bad.frame(act("LIE revoked"), node=gone)]))
        met["frames of an expired node"] = str(await tell(sealed, 2, [bad.frame(act("LIE expired"), node=old)]))
    for name, node, paper in (
        ("expired", old, bad.paper_for(old, now - 2 * day, now - day)),
        ("not yet", unknown, bad.paper_for(unknown, now + day, now + 2 * day)),
        ("revoked", gone, bad.paper_for(gone, now - day, now + day)),
        ("a stranger", unknown, bad.paper_for(unknown, now - day, now + day, stranger)),
        ("another's name", unknown, bad.paper_for(unknown, now - day, now + day, stranger, named=bad.mesh)),
    ):
        met[name] = "let in"
        with contextlib.suppress(MeshError):
            async with bad.link(node, paper) as sealed:
                await sealed.send(encode(Beat()))
                while True:
                    decode(await sealed.receive())
                    met[name] = "talked with"
        met[name] = met[name].replace("let in", "hung up on")
    return met


# Floods: everything a link takes, as fast as it goes


async def pour(bad: Bad, messages: Callable[[], Iterable[bytes]]) -> dict[str, Any]:
    """Say all of it, and come back whenever the victim hangs up."""
    said, hung_up = 0, 0
    waiting = iter(messages())
    data: bytes | None = next(waiting)
    while data is not None:
        try:
            async with bad.link() as sealed, asyncio.TaskGroup() as group:
                reading = group.create_task(_read(sealed))
                while data is not None:
                    await sealed.send(data)
                    said, data = said + 1, next(waiting, None)
                reading.cancel()
        except* (MeshError, OSError):
            hung_up, data = hung_up + 1, next(waiting, None)
    return {"said": said, "hung_up": hung_up}


async def _read(sealed: Sealed) -> None:
    while True:
        await sealed.receive()


async def matters(bad: Bad) -> dict[str, Any]:
    return await pour(bad, lambda: [encode(Matter("nobody", b"x" * 20_000))] * FLOOD)


async def asides(bad: Bad) -> dict[str, Any]:
    gap = Missing(bad.victim, bad.victim, "tea", 1, 2**60)
    return await pour(bad, lambda: [encode(Note("buy! " * 90)), encode(gap)] * (FLOOD // 2))


async def papers(bad: Bad) -> dict[str, Any]:
    """Thousands of certificates: of one mesh, and of as many meshes; and revocation lists as long as they may be."""
    now = now_ms()

    def certificates() -> Iterable[bytes]:
        for _ in range(60):
            meshes = [Signer(secrets.token_bytes(32), KeyKind.MESH) for _ in range(32)]
            node = [Signer(secrets.token_bytes(32), KeyKind.NODE) for _ in range(64)]
            mine = [bad.paper_for(one, now - 1, now + YEAR_MS) for one in node[:32]]
            theirs = [
                bad.paper_for(one, now - 1, now + YEAR_MS, key) for one, key in zip(node[32:], meshes, strict=True)
            ]
            yield encode(Papers(mine + theirs, []))
        for serial in range(10, 60):
            nodes = [NodeId(Signer(secrets.token_bytes(32), KeyKind.NODE).public) for _ in range(200)]
            yield encode(Papers([], [revoke(bad.key, Revocation(bad.mesh, serial, nodes))]))

    return await pour(bad, certificates)


async def noise(bad: Bad) -> dict[str, Any]:
    """What is no message: the victim hangs up, and we come back, again and again."""
    hung_up = 0
    for _ in range(100):
        with contextlib.suppress(MeshError, OSError):
            async with bad.link() as sealed:
                await sealed.send(secrets.token_bytes(200))
                await _read(sealed)
        hung_up += 1
    return {"hung_up": hung_up}


async def bulk(bad: Bad) -> dict[str, Any]:
    """Messages of ten megabytes, and the largest that are taken, with nothing in them."""
    large = [b"x" * 10_000_000] * 20 + [encode(Frames(1, [b"y" * 400_000, b"z" * 400_000]))] * 100
    assert len(large[-1]) < MAX_MESSAGE
    return await pour(bad, lambda: large)


async def forgeries(bad: Bad) -> dict[str, Any]:
    """Frames whose signatures are wrong: each must be checked."""
    good = bad.frame(act("LIE flood " + "x" * 300))
    frames = [good[:-1] + bytes([number % 250]) for number in range(64)]
    return await pour(bad, lambda: (encode(Frames(number, frames)) for number in range(1, 301)))


async def roots(bad: Bad) -> dict[str, Any]:
    """New chains without end, each of which asks the victim's em to answer."""

    def frames() -> Iterable[bytes]:
        for number in range(1, 31):
            acts = [act(f"em-ada, what about {number} {place}?") for place in range(64)]
            yield encode(Frames(number, [encode_frame(bad.node, next(bad.sequences), now_ms(), "tea", acts)]))

    return await pour(bad, frames)


# Strangers: no key is needed for these


async def crowd(bad: Bad) -> dict[str, Any]:
    """2,000 connections: silent, slow in their request, or silent after it; each is held as long as the victim lets."""
    host, _, port = bad.place.rpartition(":")
    upgrade = (
        f"GET /link HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    held = list[asyncio.StreamWriter]()
    refused = 0
    for number in range(2_000):
        try:
            async with asyncio.timeout(5):
                _, writer = await asyncio.open_connection(host, int(port))
        except (OSError, TimeoutError):
            refused += 1
            continue
        writer.write((b"", upgrade[:30], upgrade, upgrade + b"\x82\xa0")[number % 4])
        held.append(writer)
    for place in range(30, len(upgrade) - 5):  # a byte at a time, never the last
        for writer in held[1::4]:
            writer.write(upgrade[place : place + 1])
        if place % 10 == 0:
            await asyncio.sleep(0.05)
    tell_test({"held": len(held), "refused": refused})
    await asyncio.Event().wait()  # until we are killed
    return {}


async def knocks(bad: Bad) -> dict[str, Any]:
    """Handshakes by keys that nobody invited, and what is no handshake, over and over."""
    met: dict[str, int] = {}
    stranger = Signer(secrets.token_bytes(32), KeyKind.MESH)
    node = Signer(secrets.token_bytes(32), KeyKind.NODE)
    paper = bad.paper_for(node, 0, now_ms() + YEAR_MS, stranger)
    for number in range(300):
        try:
            wire = await dial(f"ws://{bad.place}")
            try:
                if number % 3:
                    await wire.send(secrets.token_bytes((0, 32, 100_000)[number % 3]))
                    await wire.receive()
                    await wire.send(secrets.token_bytes(200))
                else:
                    sealed, _ = await call(wire, Self(node, paper), bad.victim, secrets.token_bytes(10))
                    await sealed.receive()
                await wire.receive()
                met["talked with"] = met.get("talked with", 0) + 1
            finally:
                await wire.close()
        except MeshError as error:
            met[type(error).__name__] = met.get(type(error).__name__, 0) + 1
    return met


# The victim's nats-server, from a program on the same machine


async def raw(bad: Bad, there: Home) -> dict[str, Any]:
    """What somebody does who reaches the port: without a key, with ours, and with the owner's client key."""
    from nkeys import from_seed

    running = there.running()
    assert running is not None
    port = int(running.url.rpartition(":")[2])
    seeds = {"nobody": None, "a peer": bad.node.seed(), "client": there.signer("client").seed()}
    met: dict[str, Any] = {}
    for name, seed in seeds.items():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        info = json.loads((await reader.readline())[5:])
        login: dict[str, Any] = {"verbose": False, "pedantic": False, "lang": "raw", "version": "0"}
        if seed is not None:
            key = from_seed(seed.encode())
            signed = base64.urlsafe_b64encode(key.sign(info["nonce"].encode())).rstrip(b"=").decode()
            login |= {"nkey": key.public_key.decode(), "sig": signed}
        commands = [b"CONNECT " + json.dumps(login).encode(), b"PING", *_api(there), b"PING"]
        met[name] = await _say_raw(reader, writer, commands)
    met["10 MB"] = await _say_raw(*await asyncio.open_connection("127.0.0.1", port), [b"x" * 10_000_000])
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(500)]
    met["half open"] = len(held)
    return met


def _api(there: Home) -> Iterable[bytes]:
    """JetStream's API, flow control, forged acts, and 200,000 subscriptions."""
    mesh, node = there.mesh_id(), there.signer("node").public
    for subject in (
        "$JS.API.STREAM.DELETE.MESH",
        "$JS.API.STREAM.PURGE.MESH",
        "$JS.API.STREAM.LIST",
        "$JS.API.CONSUMER.CREATE.MESH",
        f"$JS.FC.MESH.node-{node}.x",
        "$JS.ACK.MESH.x.1.1.1.1.0",
        f"b.tea.{mesh}.{node}",
        f"e.tea.{mesh}.{node}",
        f"c.{mesh}.say",
        "$SYS.REQ.SERVER.PING",
    ):
        yield f"PUB {subject} _INBOX.evil.1 2\r\n{{}}".encode()
    for number in range(200_000):
        yield f"SUB x.{number} {number}".encode()


async def _say_raw(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, commands: Iterable[bytes]
) -> dict[str, int]:
    """Say it all, as long as the server listens; returns what it answered, by kind, and how often."""
    met, waiting = dict[str, int](), iter(commands)

    async def listen() -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                kind = line.decode("utf-8", "replace").partition(" to ")[0].strip()[:48]
                met[kind] = met.get(kind, 0) + 1

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        with contextlib.suppress(OSError):
            for part in iter(lambda: list(itertools.islice(waiting, 1_000)), []):
                writer.write(b"".join(command + b"\r\n" for command in part))
                await writer.drain()
        await asyncio.wait([listening], timeout=2)
        listening.cancel()
    writer.close()
    return met


ATTACKS: dict[str, Callable[[Bad], Awaitable[dict[str, Any]]]] = {
    one.__name__: one
    for one in (
        lie,
        replay,
        keys,
        matters,
        asides,
        papers,
        noise,
        bulk,
        forgeries,
        roots,
        crowd,
        knocks,
    )
}


async def main(attack: str, home: str, victim: str, place: str, there: str = "") -> None:
    bad = Bad(Home(Path(home)), MeshId(victim), place)
    tell_test({"begun": attack})
    met = await raw(bad, Home(Path(there))) if attack == "raw" else await ATTACKS[attack](bad)
    tell_test(met)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
