"""What is taken back travels, and every peer confirms, signed, that it is erased there."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from owners import Owner, link, owners, until

from mesh.links.messages import BadMessage
from nodes.receipts.receipts import BATCH, Given, Taken, _messages
from nodes.receipts.report import as_text, report
from nodes.receipts.tables import MAX_OWED, Owed, Tables
from protocol.acts import ActId
from protocol.keys import MeshId
from protocol.receipt import Forgotten, read_forgotten, sign_forgotten


def told(owner: Owner, act: bytes | None = None) -> list[dict[str, Any]]:
    return report(owner.node.ground.store, act)


def states(owner: Owner, act: bytes) -> dict[str, str]:
    """What is known of each peer about one act that was taken back."""
    (one,) = told(owner, act)
    return {peer["name"]: peer["state"] for peer in one["peers"]}


def said(owner: Owner, text: str) -> ActId:
    return next(entry.act.id for entry in owner.entries() if entry.act.text == text)


async def test_peers_confirm_what_they_forgot_when_it_is_erased_there(tmp_path: Path) -> None:
    """One had it, one never did, and one is away: it confirms when it is back; then nobody is owed anything."""
    async with owners(tmp_path, "ada", "bob", "cyd", "dora") as (ada, bob, cyd, dora), ada.up(), bob.up():
        async with cyd.up():
            await link(ada, bob)
            await link(ada, cyd)
            await ada.say("my secret")
            await until(lambda: "my secret" in bob.heard() and "my secret" in cyd.heard())
        secret = said(ada, "my secret")
        await until(lambda: cyd.mesh not in ada.peers.links.sessions)
        async with dora.up():
            await link(ada, dora, trust="guest")
            await ada.node.redact(secret, "")
            await until(lambda: states(ada, secret).get("bob") == "forgotten" and states(ada, secret).get("dora"))
            await until(lambda: states(ada, secret) == {"bob": "forgotten", "cyd": "held", "dora": "never"})
        assert bob.heard().count("my secret") == 0
        lines = "\n".join(as_text(told(ada)))
        assert "cyd" in lines
        assert "was sent it and has not confirmed: it may hold it still" in lines
        assert "its words are erased there" in lines
        assert "never had it" in lines
        async with cyd.up():
            await until(lambda: states(ada, secret)["cyd"] == "forgotten")
            await until(lambda: not list(cyd.receipts.begin(ada.mesh)))
        store = ada.node.ground.store
        for mesh, data in store.rows("SELECT mesh, data FROM forget_peers"):
            receipt = read_forgotten(data, ada.mesh, ada.now())
            assert (receipt.mesh, receipt.target) == (mesh, secret)
        assert not list(bob.receipts.begin(ada.mesh))


async def test_what_was_never_shared_concerns_nobody_and_others_take_nothing_back(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await ada.say("dear diary", "diary")
        await until(lambda: ada.heard("diary"))
        private = ada.entries("diary")[0].act.id
        await ada.node.redact(private, "")
        await until(lambda: told(ada))
        assert told(ada)[0]["peers"] == []
        assert "nobody but this mesh had it" in "\n".join(as_text(told(ada)))
        await bob.say("bob's own")
        await until(lambda: "bob's own" in ada.heard())
        forged = ada.node.root("tea", ada.config.human, [said(ada, "bob's own")], "redact", {"text": ""})
        await ada.node.outbox.say("tea", forged)
        await ada.say("after it")
        await until(lambda: "after it" in bob.heard())
        assert "bob's own" in bob.heard()
        assert len(told(ada)) == 1
        assert bob.node.ground.store.rows("SELECT * FROM receipts_owed") == []


async def test_a_receipt_counts_only_for_what_was_taken_back_and_by_whom_it_is(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up():
        async with bob.up():
            await link(ada, bob)
            await ada.say("gone soon")
            await until(lambda: bob.heard() == ["gone soon"])
        act = said(ada, "gone soon")
        redaction = await ada.node.redact(act, "")
        await until(lambda: told(ada))

        def receipt(**changes: Any) -> bytes:
            fields: dict[str, Any] = {
                "mesh": bob.mesh,
                "certificate": bob.paper,
                "to": ada.mesh,
                "made_ms": ada.now(),
                "target": act,
                "redaction": redaction.id,
                "held": True,
            }
            return sign_forgotten(bob.signer, Forgotten(**(fields | changes)))

        for bad in (
            receipt(target=redaction.id),
            receipt(redaction=act),
            receipt(to=bob.mesh),
            b"nonsense",
        ):
            with pytest.raises(BadMessage):
                ada.receipts.told(bob.mesh, msgspec.msgpack.encode(Given([bad])))
        with pytest.raises(BadMessage, match="own"):
            ada.receipts.told(MeshId(ada.mesh), msgspec.msgpack.encode(Given([receipt()])))
        with pytest.raises(BadMessage):
            ada.receipts.told(bob.mesh, b"nonsense")
        assert states(ada, act) == {"bob": "held"}
        with pytest.raises(BadMessage):  # what is good in it counts
            ada.receipts.told(bob.mesh, msgspec.msgpack.encode(Given([receipt(), b"bad"])))
        assert states(ada, act) == {"bob": "forgotten"}
        ada.receipts.told(bob.mesh, msgspec.msgpack.encode(Taken([act])))


async def test_what_is_owed_is_bounded_and_goes_in_messages_that_fit(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada") as (ada,), ada.up():
        tables, store = Tables(ada.node.ground.store), ada.node.ground.store
        with store.transaction():
            for number in range(MAX_OWED + 3):
                tables.owe(Owed(number.to_bytes(16, "big"), ada.mesh, b"t" * 16, True))
        owed = tables.unsigned()
        assert len(owed) == MAX_OWED
        assert owed[0].redaction == (3).to_bytes(16, "big")
        parts = [msgspec.msgpack.decode(one, type=Given) for one in _messages([b"x" * 600] * 200)]
        assert sum(len(part.receipts) for part in parts) == 200
        assert max(len(part.receipts) for part in parts) <= BATCH
        assert all(len(one) <= 60_000 for one in _messages([b"x" * 32_000] * 5))
