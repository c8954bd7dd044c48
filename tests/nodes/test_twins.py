"""What a node makes of acts of several meshes under one id: nobody's words stand in for, or take away, another's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import MESH, MESH_ID, NOW, SCHEMAS, certificate, root
from no_homeserver import alone
from owners import Owner, link, owners, until

from mesh.entries import Entry
from mesh.store import Store
from nodes.models.scripted import Scripted
from nodes.node import Node
from nodes.receipts.tables import Owed, Tables
from nodes.records import texts
from nodes.room import Room
from nodes.turn import Roster
from protocol.acts import Act
from protocol.address import Subject
from protocol.budget import Budget
from protocol.frame import encode_frame
from protocol.keys import KeyKind, MeshId, NodeId, Signer

HERS, HIS = Signer(b"t" * 32, KeyKind.MESH), Signer(b"x" * 32, KeyKind.MESH)
NODES = {HERS.public: Signer(b"u" * 32, KeyKind.NODE), HIS.public: Signer(b"y" * 32, KeyKind.NODE)}
HER, COPY, LAST = root("hers", 1), root("his", 1), root("and last", 3)


def entry(mesh: Signer, act: Act, n: int = 0) -> Entry:
    return Entry(n, "tea", MeshId(mesh.public), NodeId(NODES.get(mesh.public, MESH).public), act)


def about(act: Act, kind: str, text: str, number: int, author: str = "mara") -> Act:
    return msgspec.structs.replace(root(text, number, author, kind), refs=[act.id])


def test_a_room_shows_both_and_each_is_edited_hidden_and_taken_back_by_itself() -> None:
    room = Room("tea", Roster([]), MESH_ID)

    def lines() -> Sequence[str]:
        return [line.text for line in room.until(LAST.id)[1]]

    for one in (entry(HIS, COPY), entry(HERS, HER), entry(HERS, LAST)):
        room.hear(one)
    assert lines() == ["his", "hers", "and last"]
    assert [line.text for line in room.until(HER.id, MeshId(HIS.public))[1]] == ["his"]
    room.hear(entry(HERS, about(HER, "edit", "better", 5)))
    room.hear(entry(HIS, about(HER, "edit", "worse", 6)))
    assert lines() == ["worse", "better", "and last"]
    room.hear(entry(HIS, about(HER, "redact", "", 7)))
    assert lines() == ["better", "and last"]
    room.forget(entry(HERS, HER))
    assert lines() == ["and last"]


def test_listings_show_both() -> None:
    redact = about(HER, "redact", "gone", 5)
    assert texts([entry(HIS, COPY), entry(HERS, HER), entry(HIS, redact)]) == [None, "hers", "gone"]


def test_each_is_owed_its_receipt(tmp_path: Path) -> None:
    store = Store(tmp_path / "node.db", SCHEMAS)
    tables = Tables(store)
    for mesh in (HIS, HERS):
        tables.owe(Owed(bytes(16), MeshId(mesh.public), HER.id, True))
    for one in tables.unsigned():
        tables.sign(one, one.mesh.encode())
    assert [tables.made(MeshId(mesh.public)) for mesh in (HIS, HERS)] == [[HIS.public.encode()], [HERS.public.encode()]]
    store.close()


async def say(owner: Owner, act: Act) -> None:
    await owner.node.outbox.say("tea", act)


@pytest.mark.parametrize(("copy", "spent", "answers"), [("nothing of note", True, 1), ("em-bob, hear me", False, 2)])
async def test_a_peer_that_is_quicker_suppresses_nothing(tmp_path: Path, copy: str, spent: bool, answers: int) -> None:
    """Cyd says words of its own under the id of what ada is about to say, and is heard first by all."""
    async with owners(tmp_path, "ada", "bob", "cyd", ems=True) as (ada, bob, cyd), ada.up(), cyd.up():
        async with bob.up():
            for one, other in ((ada, bob), (bob, cyd), (ada, cyd)):
                await link(one, other)
            act = ada.node.root("tea", "ada-person", [], "say", {"text": "em-bob, are you there?"})
            budget = Budget(0, 0, 0, 0) if spent else act.budget
            hers = msgspec.structs.replace(act, author="cyd-person", body={"text": copy}, budget=budget)
            await say(cyd, hers)
            await until(lambda: all(copy in one.heard() for one in (ada, bob, cyd)))
            await say(ada, act)
            all_said = sorted([copy, act.text, *answers * ["bob's em says so"]])
            await until(lambda: all(sorted(one.heard()) == all_said for one in (ada, bob, cyd)))
            *_, last = [one.act.id for one in bob.entries() if one.mesh == bob.mesh]
            (told,) = bob.node.runtime.turns.about(last)
            prompt = str(told.prompt)
            assert 0 < prompt.rindex(copy) < prompt.rindex("are you there")
            await cyd.node.redact(act.id, "")
            await until(lambda: "" in ada.heard() and "" in bob.heard())
            assert act.text in bob.heard()
        async with bob.up():
            await say(ada, ada.node.root("tea", "ada-person", [act.id], "redact", {"text": "said too much"}))
            await until(lambda: "said too much" in bob.heard())
            assert act.text not in bob.heard()
            assert sorted(bob.heard()) == sorted(["", "", "", *answers * ["bob's em says so"], "said too much"])
            assert all(one.refused(other) == {} for one in (ada, bob, cyd) for other in (ada, bob, cyd))


async def test_rooms_are_shown_both_and_only_what_was_taken_back_goes(tmp_path: Path) -> None:
    """A person's answer there names the act itself, whichever of the two it is about."""
    async with alone(tmp_path, Scripted(["Indeed."])) as world:
        node: Node = world.here
        for mesh in (HERS, HIS):
            paper = certificate(NODES[mesh.public], mesh, not_after=2 * NOW)
            node.identity.trust.learn(paper)

        def hear(mesh: Signer, sequence: int, act: Act) -> None:
            signer = NODES[mesh.public]
            subject = Subject(True, "tea", MeshId(mesh.public), NodeId(signer.public))
            sent = min(NOW, node.ground.clock())
            node.ledger.hear(str(subject), encode_frame(signer, sequence, sent, "tea", [act]))

        def events(kind: str) -> list[Any]:
            return [body for name, body in world.server.sent() if name == kind]

        hear(HIS, 1, COPY)
        hear(HERS, 1, HER)
        await world.idle()
        assert [body["body"].rpartition(" ")[2] for body in events("m.room.message")] == ["his", "hers"]
        sql = "SELECT event_id FROM room_events ORDER BY n"
        known = [world.bridge.tables.event(event) for (event,) in node.ground.store.rows(sql)]
        assert [one and one.act for one in known] == [HER.id, HER.id]
        hear(HERS, 2, about(HER, "redact", "", 9))
        await world.idle()
        await until(lambda: events("m.room.redaction") == ["$ours2"])
        hear(HIS, 2, about(HER, "redact", "", 10))
        await world.idle()
        await until(lambda: events("m.room.redaction") == ["$ours2", "$ours1"])
