"""Nodes that cannot be dialled: linked through a hub, through a friend's node, and the `mesh hub` process itself."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from owners import Owner, link, owners, until
from process import MESH, mesh

from mesh.links import knocking
from mesh.links.websocket.dialling import meet
from mesh.links.wire import WireBroken
from nodes.config import MeshConfig
from nodes.errors import NodeError

SLOT = "77" * 32


@asynccontextmanager
async def hub_process(*options: str, port: int = 0) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A real `mesh hub` that is ready, and its port; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *MESH, "hub", "--listen", f"127.0.0.1:{port}", *options, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        yield process, int(line.split("127.0.0.1:")[1].partition(".")[0])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def reached(owner: Owner, **links: object) -> None:
    """Have an owner's settings say how it is reached."""
    owner.config = MeshConfig.model_validate(owner.config.model_dump() | {"links": links})


async def test_two_who_cannot_be_dialled_link_and_talk_through_a_hub_that_is_killed(tmp_path: Path) -> None:
    """By its address alone, in the invitation; what was said while the hub was away follows, once and in order."""
    async with owners(tmp_path, "ada", "bob") as (ada, bob):
        async with hub_process() as (_, port):
            reached(ada, hubs=[f"127.0.0.1:{port}"])
            reached(bob)
            async with ada.up(), bob.up():
                await link(ada, bob)
                assert (await bob.ask("show", peer="ada"))["addresses"] == [f"hub://127.0.0.1:{port}"]
                said = list[str]()
                for number in range(2):
                    said.append(f"from ada {number}")
                    await ada.say(said[-1])
                    await until(lambda: bob.heard() == said)
                    said.append(f"from bob {number}")
                    await bob.say(said[-1])
                    await until(lambda: ada.heard() == said)
                assert ada.peers.links.port is bob.peers.links.port is None
        async with ada.up(), bob.up():
            said.append("while there is no hub")
            await ada.say(said[-1])
            async with hub_process(port=port) as (process, _):
                await until(lambda: bob.heard() == said)
                process.kill()
                await process.wait()
                said.append("after it was killed")
                await bob.say(said[-1])
            async with hub_process(port=port):
                await until(lambda: ada.heard() == said)
            assert (ada.refused(bob), bob.refused(ada)) == ({}, {})


async def test_an_invitation_at_a_hub_is_for_one_and_says_so_when_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knocking, "OPEN_S", 0.5)
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), hub_process() as (_, port):
        for one in (ada, bob, cyd):
            reached(one, hubs=[f"127.0.0.1:{port}"])
        async with bob.up(), cyd.up():
            async with ada.up():
                invited = await ada.ask("invite", gives={"tea": "read"}, takes={}, expires_s=600)
                offer = (await bob.ask("look", code=invited["code"]))["offer"]
                assert (await cyd.ask("look", code=invited["code"]))["offer"] == offer
                assert (await bob.ask("accept", code=invited["code"], offer=offer))["state"] == "linked"
                with pytest.raises(NodeError, match=r"used up|nobody waits"):
                    await cyd.ask("accept", code=invited["code"], offer=offer)
                waiting = await ada.ask("invite", gives={}, takes={}, expires_s=600)
            with pytest.raises(NodeError, match="nobody waits"):
                await cyd.ask("look", code=waiting["code"])


async def test_a_friend_of_both_is_their_relay_and_nobody_elses(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd):
        reached(cyd, listen="127.0.0.1:0", hub=True)
        async with cyd.up():
            reached(ada, hubs=[f"127.0.0.1:{cyd.port}"])
            reached(bob)
            async with ada.up(), bob.up():
                await link(cyd, ada)
                with pytest.raises(NodeError, match="cannot be reached"):
                    await link(ada, bob)
                await link(cyd, bob)
                await link(ada, bob, gives="write", diary="write")
                await ada.say("between us", "diary")
                await until(lambda: bob.heard("diary") == ["between us"])
                assert cyd.entries("diary") == []
                with pytest.raises(WireBroken):
                    await meet(f"ws://127.0.0.1:{cyd.port}", SLOT, _stranger(cyd), calls=True)


def _stranger(owner: Owner) -> object:
    """Somebody with a certificate of their own, whom nobody knows."""
    from mesh.links.channel import Self
    from protocol.certificate import Certificate, issue
    from protocol.keys import KeyKind, MeshId, NodeId, Signer

    key, node, now = Signer(b"x" * 32, KeyKind.MESH), Signer(b"y" * 32, KeyKind.NODE), owner.now()
    paper = issue(key, Certificate(MeshId(key.public), NodeId(node.public), now - 1000, now + 60_000, ["speak"]))
    return Self(node, paper)


async def test_the_hub_ends_on_sigterm_and_tells_counts_alone() -> None:
    async with hub_process() as (process, port):
        async with asyncio.TaskGroup() as group:
            ends = [
                group.create_task(meet(f"ws://127.0.0.1:{port}", SLOT, object(), calls=calls))  # type: ignore[arg-type]
                for calls in (True, False)
            ]
        await ends[0].result().send(b"hello")
        assert await ends[1].result().receive() == b"hello"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(WireBroken):
            await ends[1].result().receive()
        said = (await process.communicate())[0].decode()
        assert process.returncode == 0
        assert said == ("0 connections, 0 pairs now; since the start 1 pairs, 6 bytes carried, 0 turned away\n")
        for end in ends:
            await end.result().close()


async def test_what_is_wrong_with_a_hub_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch(0o600)
    async with hub_process() as (_, port):
        for options, told in (
            (["--listen", f"127.0.0.1:{port}"], "choose another port"),
            (["--allow", "nobody"], "not the id of a mesh"),
            (["--certificate", "a.pem"], "given together"),
            (["--certificate", f"{tmp_path}/empty.pem", "--key", f"{tmp_path}/empty.pem"], "not a certificate"),
        ):
            found = await asyncio.to_thread(mesh, "hub", *options)
            assert (found.returncode, found.stdout) == (1, "")
            assert told in found.stderr
            assert found.stderr.count("\n") == 1
