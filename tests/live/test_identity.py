"""Keys that change, nodes that move and nodes that are lost, while two meshes are linked: real nodes, real commands."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from homeserver import free_port
from owners import DAY_MS, Owner, link, owners, until
from process import client, make_home, mesh, up

from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from mesh.entries import missing
from mesh.links.channel import Self, call
from mesh.links.hub import Hub
from mesh.links.messages import Frames, Hello, Kept, decode, encode
from mesh.links.websocket.dialling import dial
from mesh.links.websocket.listening import Desk, listening
from mesh.links.wire import WireBroken
from mesh.store import Store
from nodes.commands.joining import SCHEMAS
from nodes.home import Home
from nodes.peers.recovery import Recovery, Remembered, remembered
from protocol.acts import Act, new_id
from protocol.budget import Budget
from protocol.certificate import Certificate, Revocation, issue, read_certificate
from protocol.frame import encode_frame
from protocol.keys import KeyKind, NodeId, Signer

PATIENCE_S = 30


def home_of(path: Path, name: str, port: int) -> Home:
    """A home without ems, whose node takes links."""
    return make_home(path / name, {}, {"name": name, "human": name, "links": {"listen": f"127.0.0.1:{port}"}})


def settings(home: Home, **changes: Any) -> None:
    """Change mesh.yaml."""
    path = home.path / "mesh.yaml"
    path.write_text(yaml.safe_dump((yaml.safe_load(path.read_text("utf-8")) or {}) | changes), "utf-8")


async def run(*words: str | Path, code: int = 0) -> str:
    """A command, to its end."""
    done = await asyncio.to_thread(mesh, *words)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def ask(home: Home, operation: str, **given: Any) -> dict[str, Any]:
    async with client(home) as one:
        return await one.request(f"peer_{operation}", given)


async def meet(one: Home, other: Home) -> None:
    """`one` invites `other`: both speak in yappings."""
    invited = await ask(one, "invite", gives={"yappings": "write"}, takes={}, expires_s=600, trust="known")
    seen = await ask(other, "look", code=invited["code"])
    told = await ask(other, "accept", code=invited["code"], offer=seen["offer"], trust="known")
    assert told["state"] == "linked", told


async def say(home: Home, text: str) -> str:
    async with client(home) as one:
        return (await one.say("yappings", text))["id"]


async def heard(home: Home, *texts: str) -> None:
    """Wait until a node has these in yappings, in any order, and each once."""
    async with asyncio.timeout(PATIENCE_S), client(home) as one:
        while sorted(said := [act["text"] for act in await one.history("yappings", 1000)]) != sorted(texts):
            assert len(said) <= len(texts), said
            await asyncio.sleep(0.02)


def put(home: Home, text: str) -> None:
    """Leave an act in the outbox of a node that is off: said, and not sent yet."""
    identity = new_id(now_ms(), b"0123456789")
    act = Act(identity, "say", "ada", [], identity, Budget(1, 8, 1_000, now_ms() + 60_000), now_ms(), {"text": text})
    store = Store(home.database, SCHEMAS)
    with store.transaction():
        row = (identity, "yappings", msgspec.msgpack.encode(act))
        store.execute("INSERT INTO outbox (id, basin, act) VALUES (?, ?, ?)", row)
    store.close()


async def test_a_node_key_is_rotated_and_then_revoked_while_peers_are_linked(tmp_path: Path) -> None:
    """Nobody does anything at the peer's; nothing is lost or doubled; the old key is believed until it is revoked."""
    ports = free_port(), free_port()
    ada, bob = home_of(tmp_path, "ada", ports[0]), home_of(tmp_path, "bob", ports[1])
    there = ("--home", bob.path)
    async with up(bob):
        async with up(ada) as node:
            await meet(ada, bob)
            first = await say(ada, "one")
            await heard(bob, "one")
            assert await node.stop() == 0
        put(ada, "waiting")
        old, paper = ada.signer("node"), ada.documents()[0][0]
        await run("keys", "rotate", "--home", ada.path)
        async with up(ada) as node:
            await heard(bob, "one", "waiting")
            await say(ada, "two")
            await heard(bob, "one", "waiting", "two")
            assert "Proved: " in await run("verify", first, *there)
            assert await node.stop() == 0
        told = await run("keys", "revoke", old.public, "--home", ada.path)
        assert "by list 1 of this mesh" in told
        async with up(ada):
            await say(ada, "three")
            await heard(bob, "one", "waiting", "two", "three")
            assert "YES, by the mesh's list number 1" in await run("verify", first, *there, code=1)
            wire = await dial(f"ws://127.0.0.1:{ports[1]}")
            with pytest.raises(WireBroken):  # whoever has the old key
                await (await call(wire, Self(old, paper), bob.mesh_id()))[0].receive()
            await wire.close()
            await say(bob, "four")
            await heard(ada, "one", "waiting", "two", "three", "four")


async def test_a_mesh_moves_to_another_machine_and_links_go_on(tmp_path: Path) -> None:
    old_port, port = free_port(), free_port()
    ada = home_of(tmp_path, "ada", old_port)
    bob = make_home(tmp_path / "bob", {}, {"name": "bob", "human": "bob"})  # it dials, and cannot be dialled
    async with up(bob):
        async with up(ada) as node:
            await meet(ada, bob)
            await say(ada, "one")
            await heard(bob, "one")
            assert await node.stop() == 0
        await say(bob, "two")
        assert "runs no more" in await run("export", tmp_path / "ada.mesh", "--move", "--home", ada.path)
        assert "to move elsewhere" in await run("up", "--home", ada.path, code=3)
        await run("import", tmp_path / "ada.mesh", tmp_path / "new")
        new = Home(tmp_path / "new")
        settings(new, links={"listen": f"127.0.0.1:{port}"})
        async with up(new):
            await say(new, "three")
            told = await run("peer", "address", "ada", f"127.0.0.1:{port}", "--home", bob.path)
            assert f"ada is dialled at 127.0.0.1:{port}." in told
            await heard(bob, "one", "two", "three")
            await heard(new, "one", "two", "three")


async def test_a_lost_node_has_its_peers_and_its_past_again(tmp_path: Path) -> None:
    """All that is left is the backup, which is older than most of what was said."""
    bob_port = free_port()
    ada, bob = home_of(tmp_path, "ada", free_port()), home_of(tmp_path, "bob", bob_port)
    backup = tmp_path / "ada.backup"
    async with up(bob):
        async with up(ada) as node:
            await meet(bob, ada)
            await run("keys", "backup", backup, "--home", ada.path)
            assert json.loads(backup.read_bytes())["peers"] != []
            await say(ada, "one")
            await ask(ada, "share", peer="bob", basin="diary")
            await say(bob, "two")
            await heard(ada, "one", "two")
            await heard(bob, "one", "two")
            node.kill()
            await node.gone()
        shutil.rmtree(ada.path)
        await say(bob, "three")
        told = await run("init", tmp_path / "again", "--recover", backup)
        assert "mesh keys revoke U" in told
        again = Home(tmp_path / "again")
        shutil.rmtree(again.ems)
        again.ems.mkdir()
        settings(again, human="ada", links={"listen": "127.0.0.1:0"})
        async with up(again) as node:
            await heard(again, "one", "two", "three")
            shown = await ask(again, "show", peer="bob")
            assert (shown["state"], shown["gives"], shown["takes"]) == (
                "linked",
                {"diary": "read"},
                {"yappings": "write"},
            )
            await say(again, "four")
            await heard(bob, "one", "two", "three", "four")
            await ask(again, "pause", peer="bob")  # its statements go on where the lost node's ended
            async with asyncio.timeout(PATIENCE_S):
                while (await ask(bob, "show", peer="ada"))["state"] != "paused":
                    await asyncio.sleep(0.02)
            assert await node.stop() == 0
        with_past = [line for line in node.said().splitlines() if "is known again" in line]
        assert len(with_past) == 1


# In one process: what is given back, and what is not


@asynccontextmanager
async def recovering(
    ada: Owner, bob: Owner, path: Path, peers: list[Remembered] | None = None, **links: object
) -> AsyncIterator[Owner]:
    """Another node of ada's mesh, which has nothing but her keys and what a backup says: by default bob's address."""
    async with MemoryBroker() as broker:
        path.mkdir()  # noqa: ASYNC240 - one folder
        again = Owner("ada", path, broker)
        again.signer = Signer(b"another node".ljust(32), KeyKind.NODE)
        start = now_ms() - 60_000
        made = Certificate(ada.mesh, NodeId(again.signer.public), start, start + DAY_MS, ["speak"])
        again.paper = issue(ada.key, made)
        if links:
            again.config = again.config.model_validate(again.config.model_dump() | {"links": links})
        async with again.up():
            again.node.identity.trust.learn(read_certificate(ada.paper))
            known = peers or [Remembered(bob.mesh, "bob", [f"127.0.0.1:{bob.port}"])]
            (path / "recovered.json").write_bytes(msgspec.json.encode(known))
            Recovery(again.node, again.peers).begin(path / "recovered.json")
            yield again


async def test_words_that_were_taken_back_are_not_given_back(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), bob.up():
        async with ada.up():
            await link(bob, ada)
            await ada.say("one")
            regretted = await ada.node.say("tea", "two", [])
            await until(lambda: bob.heard() == ["one", "two"])
            await ada.node.redact(regretted.id, "")
            await until(lambda: "two" not in bob.heard())
        await bob.say("three")
        async with recovering(ada, bob, tmp_path / "again") as again:
            await until(lambda: not again.peers.gates.recovering)
            assert [text for text in again.heard() if text] == ["one", "three"]
            assert again.peers.relationship(bob.mesh).state.value == "linked"
            assert again.refused(bob) == {}
            assert missing(again.node.ground.store) == 0


async def test_a_recovered_node_finds_at_a_hub_whom_it_met_there(tmp_path: Path) -> None:
    """Nobody can be dialled: the backup has the secret by which the two meet, and shows it to nobody."""
    async with (
        owners(tmp_path, "ada", "bob") as (ada, bob),
        listening("127.0.0.1", 0, Desk(hub=Hub())) as port,
    ):
        hubs = {"hubs": [f"127.0.0.1:{port}"]}
        for one in (ada, bob):
            one.config = one.config.model_validate(one.config.model_dump() | {"links": hubs})
        async with bob.up():
            async with ada.up():
                await link(ada, bob)
                await ada.say("one")
                await until(lambda: bob.heard() == ["one"])
                known = remembered(ada.node.ground.store)
            assert len(known[0].meeting) > 16
            assert str(known[0].meeting) not in repr(known)
            async with recovering(ada, bob, tmp_path / "again", known, **hubs) as again:
                await until(lambda: not again.peers.gates.recovering)
                assert again.heard() == ["one"]
                await bob.say("two")
                await until(lambda: again.heard() == ["one", "two"])


async def test_frames_of_our_own_mesh_are_taken_only_where_they_were_asked_for(tmp_path: Path) -> None:
    """A peer who sends what an earlier node of ours said is refused, but for the basins that are being recovered."""
    earlier = Signer(b"an earlier node".ljust(32), KeyKind.NODE)
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up():
        async with bob.up():
            await link(ada, bob)
        made = Certificate(ada.mesh, NodeId(earlier.public), 0, now_ms() + DAY_MS, ["speak"])
        ada.node.identity.trust.learn(made)
        frames = [encode_frame(earlier, 1, now_ms(), basin, [act(f"in {basin}")]) for basin in ("tea", "diary")]
        for stage, refused, heard in ((None, 2, []), ("talk", 1, ["in tea"])):
            if stage:
                ada.peers.gates.recovering[bob.mesh] = stage
            wire = await dial(f"ws://127.0.0.1:{ada.port}")
            sealed, _ = await call(wire, Self(bob.signer, bob.paper), ada.mesh)
            await sealed.send(encode(Hello(1, bob.mesh, "b2:0")))
            for number, data in enumerate(frames, 1):
                await sealed.send(encode(Frames(number, [data])))
            kept = list[Kept]()
            while len(kept) < len(frames):
                if isinstance(said := decode(await sealed.receive()), Kept):
                    kept.append(said)
            await wire.close()
            assert (sum(one.refused for one in kept), ada.heard()) == (refused, heard)
            assert ada.heard("diary") == []


def act(text: str) -> Act:
    identity = new_id(now_ms(), text.encode().ljust(10)[:10])
    return Act(
        identity, "say", "ada-person", [], identity, Budget(1, 8, 9, now_ms() + 60_000), now_ms(), {"text": text}
    )


async def test_a_link_ends_when_the_node_at_its_other_end_is_revoked(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        bob.node.identity.trust.revoke(Revocation(ada.mesh, 1, [NodeId(ada.signer.public)]))
        bob.peers.links.sessions[ada.mesh].wake()
        await until(lambda: not bob.peers.links.sessions)
        await ada.say("still me")
        await until(lambda: not ada.peers.links.sessions)
        assert bob.heard() == []
