"""Cards and introductions beyond what honest nodes say: forged, old, too many, of the same name; and what is typed."""

import re
from argparse import ArgumentParser
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from owners import Owner, link, owners, until

from mesh.links.messages import BadMessage
from nodes.commands.who import _ems, _presence, introduced
from nodes.errors import NodeError
from nodes.presence.introductions import MAX_TOLD
from nodes.presence.presence import AGAIN_MS
from protocol.card import CARD_MS, INTRODUCTION_MS, Card, Introduction, sign_card, sign_introduction
from protocol.certificate import Revocation
from protocol.keys import KeyKind, MeshId, Signer

PAGE = Path(__file__).parent.parent.parent / "docs" / "discovery.md"


def card(by: Owner, to: Owner, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "mesh": by.mesh,
        "certificate": by.paper,
        "to": to.mesh,
        "made_ms": by.now(),
        "name": by.name,
        "addresses": (),
        "ems": [],
        "basins": [],
        "introducible": True,
    } | changes
    fields.setdefault("expires_ms", fields["made_ms"] + CARD_MS)
    return sign_card(by.signer, Card(**fields))


def introduction(by: Owner, to: Owner, letter: str, name: str = "cara", **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "mesh": by.mesh,
        "certificate": by.paper,
        "to": to.mesh,
        "made_ms": by.now(),
        "other": MeshId(Signer(letter.encode().ljust(32, b"x"), KeyKind.MESH).public),
        "name": name,
        "addresses": ("127.0.0.1:9",),
        "text": "",
    } | changes
    fields.setdefault("expires_ms", fields["made_ms"] + INTRODUCTION_MS)
    return sign_introduction(by.signer, Introduction(**fields))


async def test_a_card_counts_when_it_is_the_peers_own_and_the_newest(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up():
        async with bob.up():
            await link(ada, bob)
            await until(lambda: ada.presence.card(bob.mesh))
        await until(lambda: not ada.peers.links.sessions)
        held = ada.presence.card(bob.mesh)
        for bad in (card(cyd, ada), card(bob, cyd), b"nonsense"):
            with pytest.raises(BadMessage):
                ada.presence.told(bob.mesh, bad)
        ada.presence.told(bob.mesh, card(bob, ada, name="older", made_ms=held.made_ms - 1))
        assert ada.presence.card(bob.mesh) == held
        before = ada.peers.peers[bob.mesh].addresses
        ada.presence.told(bob.mesh, card(bob, ada, name="newer"))
        assert ada.presence.card(bob.mesh).name == "newer"
        assert ada.peers.peers[bob.mesh].addresses == before  # who says no address is not lost
        ada.presence.told(bob.mesh, card(bob, ada, made_ms=bob.now() + 1, addresses=("127.0.0.1:9",)))
        assert ada.peers.peers[bob.mesh].addresses == ("127.0.0.1:9",)
        ada.node.identity.trust.revoke(Revocation(bob.mesh, 1, [bob.signer.public]))
        with pytest.raises(BadMessage, match="revoked"):
            ada.presence.told(bob.mesh, card(bob, ada, made_ms=bob.now() + 2))
        ada.clock = lambda: bob.now() + CARD_MS + 3
        assert ada.presence.card(bob.mesh) is None
        (seen,) = (await ada.find("who"))["peers"]
        assert (seen["here"], seen["ems"], seen["seen_ms"] > 0) == (False, [], True)


async def test_a_peer_does_not_have_us_dial_what_only_we_can_reach(tmp_path: Path) -> None:
    """Neither by its card nor by an introduction, once we know it, and are known, elsewhere than on this machine."""
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up():
        async with bob.up():
            await link(ada, bob)
        await until(lambda: not ada.peers.links.sessions)
        links = ada.config.links.model_copy(update={"addresses": ("mesh.example.org:443",)})
        ada.node.config = ada.config.model_copy(update={"links": links})
        known = ada.peers.peers[bob.mesh]
        known.addresses = ("192.168.1.5:7417",)
        mixed = ("127.0.0.1:4222", "169.254.169.254:80", "192.168.1.6:7417", "wss://bob.example.org:7417")
        ada.presence.told(bob.mesh, card(bob, ada, made_ms=bob.now() + 1, addresses=mixed))
        assert known.addresses == mixed[2:]
        ada.presence.told(bob.mesh, card(bob, ada, made_ms=bob.now() + 2, addresses=mixed[:2]))
        assert known.addresses == mixed[2:]
        ada.introductions.told(bob.mesh, introduction(bob, ada, "c", addresses=mixed))
        await ada.find("peer_meet", name="cara")
        assert ada.peers.find("cara").addresses == mixed[2:]


async def test_a_card_is_said_again_before_it_expires(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await until(lambda: ada.presence.card(bob.mesh) and ada.presence.card(bob.mesh).basins)
        first = ada.presence.card(bob.mesh)
        now = bob.now()
        for one in (ada, bob):
            one.clock = lambda: now + AGAIN_MS + 1_000
        bob.presence._look.set()
        await until(lambda: ada.presence.card(bob.mesh).made_ms >= now + AGAIN_MS)
        assert ada.presence.card(bob.mesh).expires_ms > first.expires_ms
        assert ada.refused(bob) == {}


async def test_introductions_are_bounded_and_told_apart_by_their_keys(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up():
        async with bob.up():
            await link(ada, bob)
        for bad in (introduction(cyd, ada, "c"), introduction(bob, cyd, "c"), b"nonsense"):
            with pytest.raises(BadMessage):
                ada.introductions.told(bob.mesh, bad)
        for number in range(MAX_TOLD):
            ada.introductions.told(bob.mesh, introduction(bob, ada, f"{number:02}"))
        with pytest.raises(BadMessage, match="more than anybody reads"):
            ada.introductions.told(bob.mesh, introduction(bob, ada, "one more"))
        found = ada.introductions.open()
        assert len(found) == MAX_TOLD
        with pytest.raises(NodeError, match="more than one was introduced as cara"):
            await ada.find("peer_meet", name="cara")
        await ada.find("peer_decline", name=found[0]["mesh"])
        met = await ada.find("peer_meet", name=found[1]["fingerprint"])
        assert (met["name"], met["state"]) == ("cara", "invited")
        assert ada.peers.peers[MeshId(found[1]["mesh"])].addresses == ("127.0.0.1:9",)
        assert len(ada.introductions.open()) == MAX_TOLD - 2
        again = next(one.data for one in ada.introductions._tables.told() if one.state == "declined")
        ada.introductions.told(bob.mesh, again)
        assert len(ada.introductions.open()) == MAX_TOLD - 2


def test_what_mesh_who_prints_is_plain() -> None:
    told = {
        "name": "cara",
        "by": "ada",
        "fingerprint": "A7QX",
        "text": "\x1b[31mred\nand a second line",
        "expires_ms": 0,
    }
    lines = introduced([told])
    assert lines[1].startswith("introduced by ada: cara (A7QX), until ")
    assert "\x1b" not in lines[1]
    assert "\n" not in lines[1]
    assert introduced([]) == []
    peer = {"state": "linked", "here": False, "seen_ms": None, "ems": [{"name": "ruri", "awake": False}]}
    assert (_presence(peer), _ems(peer)) == ("not seen yet", "asleep: ruri")
    assert _presence(peer | {"here": True, "state": "paused"}) == "paused, here now"
    assert _presence(peer | {"seen_ms": 0}).startswith("last seen 19")


def test_the_commands_of_the_page_are_ones_that_there_are() -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.partition("  #")[0] for block in blocks for line in block.splitlines()]
    assert len(lines) >= 10
    for line in lines:
        _, command, *words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)]
        parser = ArgumentParser(exit_on_error=False)
        import_module(f"nodes.commands.{command}").arguments(parser)
        assert parser.parse_args(words).run
