"""Finding one another: who is here, whose ems are awake, a peer who moves, and two who are introduced by a third."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from owners import Owner, link, owners, until
from process import client, make_home, mesh, up

from nodes.errors import NodeError
from nodes.home import Home
from nodes.receipts.report import report
from nodes.records import records

TEA = {"tea": "write"}


async def who(owner: Owner) -> dict[str, dict[str, Any]]:
    """The peers, by name."""
    return {peer["name"]: peer for peer in (await owner.find("who"))["peers"]}


async def is_linked(one: Owner, other: Owner) -> None:
    await until(lambda: one.peers.relationship(other.mesh).state.value == "linked")


async def carded(*people: Owner) -> None:
    """Wait until each holds the cards of all its peers."""
    await until(lambda: all(one.presence.card(mesh) for one in people for mesh in one.peers.peers))


async def test_peers_know_who_is_here_and_which_ems_are_awake(tmp_path: Path) -> None:
    """Only of basins that they share; a peer who has gone was last seen when it went."""
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up():
        bob.em("awake")
        bob.em("asleep", "mute: true\nbasins: [tea]\n")
        bob.em("elsewhere", "basins: [diary]\n")
        assert (await ada.find("who"))["peers"] == []
        async with bob.up():
            await link(ada, bob)
            await carded(ada, bob)
            await until(lambda: ada.presence.card(bob.mesh).basins == ["tea"])
            seen = (await who(ada))["bob"]
            assert (seen["here"], seen["calls_itself"], seen["basins"]) == (True, "bob", ["tea"])
            assert seen["ems"] == [{"name": "asleep", "awake": False}, {"name": "awake", "awake": True}]
            mine = (await bob.find("who"))["ems"]
            assert mine[2] == {"name": "elsewhere", "awake": True, "basins": ["diary"]}
            await bob.ask("share", peer="ada", basin="diary")
            await ada.ask("take", peer="bob", basin="diary")
            await until(lambda: len(ada.presence.card(bob.mesh).ems) == 3)
            gone_ms = ada.now()
        await until(lambda: bob.mesh not in ada.peers.links.sessions)
        ada.presence._look.set()
        await until(lambda: ada.presence._here == set())
        seen = (await who(ada))["bob"]
        assert not seen["here"]
        assert seen["seen_ms"] >= gone_ms
        assert not any(em["awake"] for em in seen["ems"])


async def test_a_peer_who_moved_is_found_at_its_new_address(tmp_path: Path) -> None:
    """Bob invited, and so is dialled by ada; he comes again elsewhere, and tells her so."""
    async with owners(tmp_path, "ada", "bob") as (ada, bob):
        async with ada.up():
            port = ada.port
            async with bob.up():
                await link(bob, ada)
                await carded(ada, bob)
                before = ada.peers.peers[bob.mesh].addresses
                assert bob.peers.peers[ada.mesh].addresses == (f"127.0.0.1:{port}",)  # he was dialled; now he can dial
            async with bob.up():  # at another port, from where he dials
                moved = (f"127.0.0.1:{bob.port}",)
                assert moved != before
                await until(lambda: ada.peers.peers[bob.mesh].addresses == moved)
        async with ada.up():
            assert ada.peers.peers[bob.mesh].addresses == moved


async def test_two_peers_of_one_are_introduced_and_both_must_agree(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up(), bob.up(), cyd.up():
        await link(ada, bob)
        await link(ada, cyd)
        await carded(ada, bob, cyd)
        await ada.find("peer_introduce", one="bob", other="cyd", text="you both like tea")
        await until(lambda: bob.introductions.open() and cyd.introductions.open())
        (told,) = (await bob.find("who"))["introduced"]
        assert (told["name"], told["by"], told["mesh"], told["text"]) == ("cyd", "ada", cyd.mesh, "you both like tea")
        assert cyd.mesh not in bob.peers.peers
        met = await bob.find("peer_meet", name="cyd", gives=TEA)
        assert met["state"] == "invited"
        assert bob.mesh not in cyd.peers.peers
        with pytest.raises(NodeError, match="nobody has introduced"):
            await bob.find("peer_decline", name="cyd")
        await cyd.find("peer_meet", name=bob.mesh, takes=TEA, trust="known", called="bobby")
        await is_linked(bob, cyd)
        await is_linked(cyd, bob)
        await bob.say("so we meet")
        await until(lambda: "so we meet" in cyd.heard())
        assert sorted(peer.petname for peer in cyd.peers.peers.values()) == ["ada", "bobby"]
        assert cyd.introductions.open() == bob.introductions.open() == []
        with pytest.raises(NodeError, match="nobody has introduced"):
            await cyd.find("peer_meet", name="bob")


async def test_who_declines_lets_nobody_in_and_is_not_asked_again(tmp_path: Path) -> None:
    """Said again, an introduction that was declined stays so; one that nobody answers lapses after its week."""
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up(), bob.up(), cyd.up():
        await link(ada, bob)
        await link(ada, cyd)
        await carded(ada, bob, cyd)
        await ada.find("peer_introduce", one="bob", other="cyd")
        await until(lambda: bob.introductions.open() and cyd.introductions.open())
        assert (await cyd.find("peer_decline", name="bob")) == {"declined": "bob"}
        await bob.find("peer_meet", name="cyd", gives=TEA)
        await ada.find("peer_introduce", one="cyd", other="bob")
        await ada.say("heard after it", "tea")
        await until(lambda: "heard after it" in cyd.heard() and "heard after it" in bob.heard())
        assert cyd.introductions.open() == []
        assert not bob.presence._is_here(cyd.mesh)
        (told,) = bob.introductions._tables.told()
        await bob.introductions._lapse(told)
        assert bob.peers.peers[cyd.mesh].addresses == ()
        assert bob.peers.relationship(cyd.mesh).state.value == "left"
        assert bob.introductions._tables.told() == []


async def test_nobody_is_introduced_who_does_not_want_it(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd):
        links = cyd.config.links.model_copy(update={"introductions": False})
        cyd.config = cyd.config.model_copy(update={"links": links})
        async with ada.up(), bob.up():
            async with cyd.up():
                await link(ada, bob)
                await link(ada, cyd)
                await carded(ada)
                with pytest.raises(NodeError, match="does not want to be introduced"):
                    await ada.find("peer_introduce", one="bob", other="cyd")
                with pytest.raises(NodeError, match="one and the same"):
                    await ada.find("peer_introduce", one="bob", other="bob")
            ada.clock = lambda: bob.clock() + 10**7
            with pytest.raises(NodeError, match="not here now"):
                await ada.find("peer_introduce", one="cyd", other="bob")


def typed(home: Home, *words: str) -> str:
    """What a command prints; it must go well."""
    ended = mesh(*words, "--home", home.path)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout


async def forgotten(author: Home, reader: Home) -> None:
    """Something is said on both sides, and the author takes the one back; until the reader has confirmed."""
    async with client(author) as one, client(reader) as other:
        act = await one.say("yappings", "the secret")
        await other.say("yappings", "mara keeps bees")
        for side, text in ((other, "the secret"), (one, "mara keeps bees")):
            while text not in [entry["text"] for entry in await side.history("yappings")]:
                await asyncio.sleep(0.02)
        await one.redact(act["id"])
        with records(author) as store:
            assert store is not None
            while not any(peer["state"] == "forgotten" for told in report(store) for peer in told["peers"]):
                await asyncio.sleep(0.02)


async def test_mesh_who_beside_two_real_nodes(tmp_path: Path) -> None:
    """An em awake over there; what is taken back, and asked of a memory; and then the other node is stopped."""
    here = make_home(tmp_path / "here", {"ruri": ""}, {"links": {"listen": "127.0.0.1:0"}})
    there = make_home(tmp_path / "there", {"aporia": ""}, {"name": "home", "human": "bo"})

    async def run(home: Home, *words: str) -> str:
        return await asyncio.to_thread(typed, home, *words)

    async def peer() -> dict[str, Any]:
        return (await one.request("who", {}))["peers"][0]

    async with up(here), client(here) as one, asyncio.timeout(60):
        async with up(there) as other:
            code = (await run(here, "peer", "invite", "--give", "yappings:write")).splitlines()[0]
            await run(there, "peer", "accept", "--yes", code)
            while not (await peer())["ems"]:
                await asyncio.sleep(0.05)
            told = await run(here, "who")
            assert told.startswith("amp  ")
            assert "ems     ruri" in told
            assert "home" in told
            assert "here now" in told
            assert "awake: aporia" in told
            assert (await run(here, "forget", "--report")).startswith("Nothing was taken back yet")
            await forgotten(there, here)
            told = await run(there, "forget", "--report")
            assert "amp (" in told
            assert "its words are erased there" in told
            await one.request("recall_grant", {"peer": "home", "basins": ["yappings"]})
            assert "mara~" in await run(there, "recall", "amp", "who keeps bees?")
            assert "home asked you" in await run(here, "recall", "--receipts")
            await other.stop()
        while (await peer())["here"]:
            await asyncio.sleep(0.05)
        told = await run(here, "who")
        assert "last seen 20" in told
        assert "asleep: aporia" in told
