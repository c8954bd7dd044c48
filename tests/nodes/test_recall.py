"""Asking a peer's memory: only under a grant, answered with what was signed, and remembered on both sides."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from owners import Owner, link, owners, until

from mesh.links.messages import BadMessage
from nodes.errors import NodeError
from nodes.recalls import recalls
from nodes.recalls.messages import MAX_QUESTION, Ask, Cite, Done
from nodes.recalls.recalls import A_MINUTE, _Asked
from nodes.recalls.search import search
from nodes.recalls.tables import KEPT, Recall, Tables
from protocol.acts import ActId
from protocol.errors import BadAddress
from protocol.frame import encode_frame
from protocol.proof import write_proof
from protocol.receipt import MAX_CITED, Recalled, digest_of_question, read_recalled, sign_recalled


async def recall(owner: Owner, peer: str, question: str, **more: Any) -> list[dict[str, Any]]:
    return (await owner.find("recall", peer=peer, question=question, **more))["found"]


async def often(owner: Owner, times: int) -> None:
    for _ in range(times):
        await recall(owner, "bob", "tea")


async def settle(owner: Owner, count: int, basin: str = "tea") -> None:
    await until(lambda: len(owner.heard(basin)) >= count)


async def test_what_was_said_comes_signed_where_it_is_granted(tmp_path: Path) -> None:
    """Also what a third mesh said; not of other basins; and both keep who asked what, with the receipt."""
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up(), bob.up(), cyd.up():
        await link(ada, bob, harbour="read")
        await link(bob, cyd)
        for text in ("the key is under the mat", "the tea is green", "a lorry passed by"):
            await bob.say(text)
        await cyd.say("my key is in my pocket")
        await bob.say("the key of the diary", "diary")
        await settle(bob, 4)
        await settle(bob, 1, "diary")
        with pytest.raises(NodeError, match="bob has not granted you that"):
            await recall(ada, "bob", "where is the key?")
        assert await bob.find("recall_grant", peer="ada", basins=["tea"]) == {"peer": "ada", "granted": ["tea"]}
        found = await recall(ada, "bob", "where is the key?")
        said = {(one["author"], one["text"], one["petname"], one["basin"]) for one in found}
        assert ("bob-person", "the key is under the mat", "bob", "tea") in said
        assert ("cyd-person", "my key is in my pocket", None, "tea") in said
        assert not any("diary" in one["text"] or "lorry" in one["text"] for one in found)
        with pytest.raises(NodeError, match="bob has not granted you that"):
            await recall(ada, "bob", "key", basin="diary")
        assert await recall(ada, "bob", "xylophone", basin="tea") == []
        mine = (await ada.find("recall_receipts"))["questions"]
        theirs = await bob.find("recall_receipts")
        assert [(one["here"], one["question"]) for one in mine] == [
            (False, "where is the key?"),
            (False, "where is the key?"),
            (False, "key"),
            (False, "xylophone"),
        ]
        outcomes = [(one["peer"], one["outcome"], one["acts"]) for one in theirs["questions"]]
        assert outcomes == [
            ("ada", "not granted", 0),
            ("ada", "answered", len(found)),
            ("ada", "not granted", 0),
            ("ada", "answered", 0),
        ]
        assert theirs["granted"] == {"ada": ["tea"]}
        assert mine[1]["receipt"] == theirs["questions"][1]["receipt"]
        receipt = read_recalled(bytes.fromhex(mine[1]["receipt"]), ada.mesh, ada.now())
        assert receipt.question == digest_of_question("where is the key?")
        assert [act.hex() for act in receipt.acts] == [one["id"] for one in found]
        assert (await bob.find("recall_ungrant", peer="ada", basins=[]))["granted"] == []
        with pytest.raises(NodeError, match="has not granted"):
            await recall(ada, "bob", "where is the key?")


async def test_what_was_taken_back_or_edited_never_comes(tmp_path: Path) -> None:
    """A third one's frame proves nothing any more, and stays away; of what was edited only the newer words come."""
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up(), bob.up(), cyd.up():
        await link(ada, bob, harbour="read")
        await link(bob, cyd)
        await bob.say("the secret of bob")
        await cyd.say("the secret of cyd")
        await bob.say("the secret of nobody")
        await settle(bob, 3)
        for one, text in ((bob, "the secret of bob"), (cyd, "the secret of cyd")):
            await one.node.redact(next(entry.act.id for entry in one.entries() if entry.act.text == text), "")
        await until(lambda: bob.heard().count("") >= 2)
        nobody = next(entry.act.id for entry in bob.entries() if entry.act.text == "the secret of nobody")
        await bob.node.say("tea", "the secret of all", [nobody], "edit")
        await until(lambda: "the secret of all" in bob.heard())
        await bob.find("recall_grant", peer="ada", basins=["tea"])
        assert [one["text"] for one in await recall(ada, "bob", "secret")] == ["the secret of all"]


async def test_questions_cost_and_are_bounded(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), bob.up():
        async with ada.up():
            await link(ada, bob)
            for number in range(20):
                await bob.say(f"tea number {number}")
            await settle(bob, 20)
            await bob.find("recall_grant", peer="ada", basins=["tea"])
            assert len(await recall(ada, "bob", "tea")) == MAX_CITED
            before = bob.peers.peers[ada.mesh].spent
            with pytest.raises(NodeError, match="answered enough for now"):
                await often(ada, 2 * A_MINUTE + 2)  # a minute may end in between
            assert before.acts >= 50
            with pytest.raises(NodeError, match=f"1 to {MAX_QUESTION}"):
                await recall(ada, "bob", "x" * (MAX_QUESTION + 1))
            await bob.ask("quota", peer="ada", acts=10)
            bob.recalls._times.clear()
            with pytest.raises(NodeError, match="answered enough for now"):
                await recall(ada, "bob", "tea")
            with pytest.raises(BadAddress):
                await bob.find("recall_grant", peer="ada", basins=["link-" + "a" * 26])
            with pytest.raises(NodeError, match="64 basins"):
                await bob.find("recall_grant", peer="ada", basins=[f"b{number}" for number in range(64)])
        await until(lambda: ada.mesh not in bob.peers.links.sessions)
        with pytest.raises(NodeError, match="ada is not here now"):
            await recall(bob, "ada", "tea")
        tables, store = Tables(bob.node.ground.store), bob.node.ground.store
        with store.transaction():
            for number in range(KEPT + 5):
                tables.put(Recall(bob.mesh, True, f"{number}", "", number, "answered"))
        assert next(one.question for one in tables.recalls(10_000) if one.mesh == bob.mesh) == "5"


async def test_a_grant_ends_with_the_link(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await bob.find("recall_grant", peer="ada", basins=["tea"])
        await ada.ask("leave", peer="bob")
        await until(lambda: bob.peers.relationship(ada.mesh).state.value == "left")
        await link(ada, bob)
        with pytest.raises(NodeError, match="has not granted"):
            await recall(ada, "bob", "anything")
        assert (await bob.find("recall_receipts"))["granted"] == {}
        granted = await bob.find("recall_grant", peer="ada", basins=["harbour"])
        assert granted["granted"] == ["harbour"]


class Answering:
    """Bob, who answers whatever he likes."""

    def __init__(self, ada: Owner, bob: Owner) -> None:
        self.ada, self.bob = ada, bob
        self.asked = _Asked(bob.mesh, "key?", "tea")
        ada.recalls._asked[7] = self.asked

    def frame(self, basin: str = "tea", signer: Any = None) -> tuple[ActId, bytes]:
        act = self.bob.node.root(basin, "bob-person", [], "say", {"text": "under the mat"})
        return act.id, encode_frame(signer or self.bob.signer, 1, self.bob.now(), basin, [act])

    def cite(self, identity: ActId, frame: bytes, acts: list[ActId] | None = None, paper: bytes | None = None) -> None:
        proof = write_proof(identity, frame, paper or self.bob.paper, None)
        self.tell(Cite(7, proof, [identity] if acts is None else acts))

    def done(self, acts: list[ActId], **changes: Any) -> None:
        fields: dict[str, Any] = {
            "mesh": self.bob.mesh,
            "certificate": self.bob.paper,
            "to": self.ada.mesh,
            "made_ms": self.bob.now(),
            "question": digest_of_question("key?"),
            "basins": ["tea"],
            "acts": acts,
        }
        self.tell(Done(7, sign_recalled(self.bob.signer, Recalled(**(fields | changes)))))

    def tell(self, message: Any) -> None:
        self.ada.recalls.told(self.bob.mesh, msgspec.msgpack.encode(message))


FORGED: dict[str, Callable[[Answering, ActId, bytes], None]] = {
    "a frame of another basin": lambda one, *_: one.cite(*one.frame("diary")),
    "a frame that another signed": lambda one, *_: one.cite(*one.frame(signer=one.ada.signer)),
    "a frame that was changed": lambda one, identity, frame: one.cite(identity, frame[:-1] + b"x"),
    "an act that is not in the frame": lambda one, identity, frame: one.cite(identity, frame, [ActId(b"x" * 16)]),
    "a certificate of another node": lambda one, identity, frame: one.cite(identity, frame, paper=one.ada.paper),
    "more than eight": lambda one, identity, frame: one.cite(identity, frame, [identity] * 9),
    "no proof at all": lambda one, identity, _: one.tell(Cite(7, b"proof", [identity])),
    "a receipt for another question": lambda one, *_: one.done([], question=digest_of_question("tea?")),
    "a receipt for other acts": lambda one, identity, _: one.done([identity]),
    "a receipt for another": lambda one, *_: one.done([], to=one.bob.mesh),
    "no message": lambda one, *_: one.ada.recalls.told(one.bob.mesh, b"nonsense"),
    "an endless question": lambda one, *_: one.tell(["ask", 1, "x" * (MAX_QUESTION + 1), None]),
}


async def test_an_answer_that_does_not_hold_is_not_shown(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        for what, forge in FORGED.items():
            one = Answering(ada, bob)
            with pytest.raises(BadMessage):
                forge(one, *one.frame())
            if one.asked.ended.is_set():
                assert "does not hold" in str(one.asked.problem), what
        good = Answering(ada, bob)
        identity, frame = good.frame()
        good.cite(identity, frame)
        ada.recalls.told(ada.mesh, msgspec.msgpack.encode(Done(7, b"")))  # of somebody who was not asked
        ada.recalls.told(bob.mesh, msgspec.msgpack.encode(Done(8, b"")))  # to what nobody asked
        assert not good.asked.ended.is_set()
        good.done([identity])
        assert (good.asked.problem, list(good.asked.acts)) == (None, [identity])


async def test_a_slip_with_a_question_does_not_end_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await bob.say("the tea is green")
        await settle(bob, 1)
        await bob.find("recall_grant", peer="ada", basins=["tea"])

        def slips(*_: object) -> None:
            raise TypeError("nobody thought of that")

        with monkeypatch.context() as patched:
            patched.setattr(recalls, "search", slips)
            bob.recalls.told(ada.mesh, msgspec.msgpack.encode(Ask(1, "tea?")))
            await until(lambda: not bob.recalls._tasks)
        assert [one["text"] for one in await recall(ada, "bob", "tea")] == ["the tea is green"]


async def test_one_peer_has_one_place_in_the_line(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await bob.find("recall_grant", peer="ada", basins=["tea"])
        for number in range(3):
            bob.recalls.told(ada.mesh, msgspec.msgpack.encode(Ask(number, "tea?")))
        await until(lambda: not bob.recalls._tasks)
        outcomes = [one["outcome"] for one in (await bob.find("recall_receipts"))["questions"]]
        assert outcomes == ["the node was busy", "the node was busy", "answered"]
        assert search(bob.node.ground.store.path, ["nowhere"], "tea?") == []
