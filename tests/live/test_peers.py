"""Whole nodes of several owners, linked over sockets: what crosses, what does not, and who decides."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from owners import Owner, link, owners, until

from mesh.clock import now_ms
from mesh.entries import missing
from mesh.links.channel import Sealed, Self, call
from mesh.links.messages import Frames, Hello, Papers, decode, encode
from mesh.links.websocket.dialling import dial
from mesh.links.wire import WireBroken
from nodes.errors import NodeError
from protocol.acts import Act, ActId, new_id
from protocol.budget import Budget
from protocol.errors import BadLink
from protocol.frame import encode_frame
from protocol.keys import KeyKind, Signer
from protocol.statement import own_basin


async def linked_state(one: Owner, other: Owner, state: str) -> None:
    await until(lambda: one.peers.relationship(other.mesh).state.value == state)


async def test_two_persons_invite_and_accept_and_their_ems_answer_across(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", ems=True) as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await ada.say("em-bob, are you there?")
        await until(lambda: "bob's em says so" in ada.heard())
        await bob.say("em-ada, and you?")
        await until(lambda: "ada's em says so" in bob.heard())
        await until(lambda: set(ada.heard()) == set(bob.heard()))
        shown = await ada.ask("show", peer="bob")
        assert (shown["state"], shown["connected"], shown["their_takes"]) == ("linked", True, {"tea": "write"})
        assert (shown["gives"], shown["refused"], shown["today"]["chains"]) == ({"tea": "write"}, {}, 1)
        assert shown["today"]["acts"] >= 2
        assert shown["today"]["tokens"] > 0


async def test_shares_pauses_and_silence_take_effect_and_nobody_is_disconnected(tmp_path: Path) -> None:
    """Each holds as soon as the other has heard it; what is said in a pause comes after it."""
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        before = ada.peers.links.sessions[bob.mesh]
        await ada.say("one")
        await until(lambda: bob.heard() == ["one"])
        await bob.ask("pause", peer="ada")
        await linked_state(ada, bob, "paused")
        await ada.say("two")
        await ada.ask("share", peer="bob", basin="diary")  # statements cross in every state
        await until(lambda: "diary" in bob.peers.relationship(ada.mesh).theirs.terms.gives)
        assert bob.heard() == ["one"]
        await bob.ask("resume", peer="ada")
        await until(lambda: bob.heard() == ["one", "two"])
        await ada.say("private", "diary")
        await bob.ask("take", peer="ada", basin="diary")
        await until(lambda: bob.heard("diary") == ["private"])
        await ada.ask("unshare", peer="bob", basin="diary")
        await ada.say("more private", "diary")
        await bob.ask("trust", peer="ada", trust="silent")
        await until(lambda: ada.peers.relationship(bob.mesh).theirs.terms.trust.value == "silent")
        await ada.say("unheard")
        await bob.say("bob is heard still")
        await until(lambda: "bob is heard still" in ada.heard())
        assert (bob.heard("diary"), bob.heard()) == (["private"], ["one", "two", "bob is heard still"])
        assert ada.peers.links.sessions[bob.mesh] is before
        assert (ada.refused(bob), bob.refused(ada)) == ({}, {})


async def test_leaving_is_final_until_somebody_invites_again(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await ada.ask("leave", peer="bob")
        await linked_state(bob, ada, "left")
        await until(lambda: not ada.peers.links.sessions and not bob.peers.links.sessions)
        own = own_basin(ada.mesh, bob.mesh)
        await until(lambda: not ada.peers.gates.tables.untold(ada.mesh, bob.mesh, own))  # nobody dials for it any more
        with pytest.raises(BadLink):
            await bob.ask("share", peer="ada", basin="tea")
        wire = await dial(f"ws://127.0.0.1:{ada.port}")
        with pytest.raises(WireBroken):
            await (await call(wire, Self(bob.signer, bob.paper), ada.mesh))[0].receive()
        await wire.close()
        await ada.say("alone")
        await link(ada, bob)
        await ada.say("again")
        await until(lambda: "again" in bob.heard())


async def test_a_farewell_reaches_who_is_away(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up():
        async with bob.up():
            await link(ada, bob)
        await ada.ask("leave", peer="bob")
        async with bob.up():
            await linked_state(bob, ada, "left")
            own = own_basin(ada.mesh, bob.mesh)
            await until(lambda: not ada.peers.gates.tables.untold(ada.mesh, bob.mesh, own))


async def test_who_was_away_during_300_acts_catches_up_in_order(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob):
        async with ada.up():
            port = ada.port
            async with bob.up():
                await link(ada, bob)
            said = [f"line {number}" for number in range(300)]
            for text in said[:150]:
                await ada.say(text)
        async with bob.up(), ada.up(port):  # both were away in between
            for text in said[150:]:
                await ada.say(text)
            await until(lambda: len(bob.heard()) >= 300)
            assert bob.heard() == said
            assert bob.refused(ada) == {}


async def test_a_guest_hears_only_what_is_said_from_now_on(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up(), bob.up(), cyd.up():
        await ada.say("before")
        await link(ada, bob, trust="guest")
        await link(ada, cyd, trust="known")
        await ada.say("after")
        await until(lambda: bob.heard() == ["after"])
        await until(lambda: cyd.heard() == ["before", "after"])


async def test_three_who_share_a_basin_hear_everything_once(tmp_path: Path) -> None:
    """Each linked with each: every act could come by two ways. And in a line, whoever is in the middle passes on."""
    async with owners(tmp_path, "ada", "bob", "cyd") as people:
        ada, bob, cyd = people
        async with ada.up(), bob.up(), cyd.up():
            await link(ada, bob)
            await link(bob, cyd)
            await ada.say("from one end")
            await until(lambda: cyd.heard() == ["from one end"])
            assert {entry.mesh for entry in cyd.entries()} == {ada.mesh}
            await link(ada, cyd)
            for number in range(10):
                for one in people:
                    await one.say(f"{one.name} {number}")
            await until(lambda: all(len(one.heard()) >= 31 for one in people))
            assert all(len(set(one.heard())) == len(one.heard()) == 31 for one in people)
            assert all(one.refused(other) == {} for one in people for other in people)


async def test_an_invitation_is_for_one_mesh_and_its_time(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cyd") as (ada, bob, cyd), ada.up(), bob.up(), cyd.up():
        invited = await ada.ask("invite", gives={"tea": "read"}, takes={}, expires_s=600)
        offer = (await bob.ask("look", code=invited["link"]))["offer"]
        assert (await cyd.ask("look", code=invited["link"]))["offer"] == offer
        with pytest.raises(NodeError, match="something else"):
            await bob.ask("accept", code=invited["code"], offer="another")
        assert ada.peers.peers == bob.peers.peers == {}
        assert (await bob.ask("accept", code=invited["code"], offer=offer, name="adeline"))["name"] == "adeline"
        with pytest.raises(NodeError, match="used up"):
            await cyd.ask("accept", code=invited["code"], offer=offer)
        other = await ada.ask("invite", gives={}, takes={}, expires_s=600)
        with pytest.raises(NodeError, match="your own"):
            await ada.ask("look", code=other["code"])
        ada.clock = lambda: now_ms() + 601_000
        with pytest.raises(NodeError, match="expired"):
            await cyd.ask("look", code=other["code"])


# A peer that does not follow the rules


@asynccontextmanager
async def speaking(ada: Owner, bob: Owner) -> AsyncIterator[Sealed]:
    """A link to ada under bob's keys, on which anything can be said."""
    wire = await dial(f"ws://127.0.0.1:{ada.port}")
    try:
        sealed, _ = await call(wire, Self(bob.signer, bob.paper), ada.mesh)
        await sealed.send(encode(Hello(1, bob.mesh, "b2:0")))
        await sealed.send(encode(Papers([bob.paper], [])))
        yield sealed
    finally:
        await wire.close()


def act(number: int, text: str, author: str = "bob-person", **more: Any) -> Act:
    now = now_ms()
    identity = ActId(new_id(now, number.to_bytes(10, "big")))
    fields: dict[str, Any] = {"refs": [], "root": identity, "budget": Budget(6, 16, 50_000, now + 600_000)} | more
    return Act(
        identity,
        fields.pop("kind", "say"),
        author,
        fields["refs"],
        fields["root"],
        fields["budget"],
        now,
        {"text": text, **fields.get("body", {})},
    )


async def test_forged_words_and_foreign_statements_and_raised_budgets_are_refused_and_counted(tmp_path: Path) -> None:
    """All that a hostile peer says is dropped, but for the one act that it may say; the victim goes on."""
    stranger = Signer(b"s" * 32, KeyKind.NODE)
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up():
        async with bob.up():
            await link(ada, bob)
            own = own_basin(ada.mesh, bob.mesh)
            states = len(ada.entries(own))
        root = act(1, "a beginning")
        raised = act(
            2, "more for all", refs=[root.id], root=root.id, budget=Budget(60, 999, 10**6, root.budget.until_ms)
        )
        bad = [
            encode_frame(stranger, 1, now_ms(), "tea", [act(3, "by a stranger")]),
            encode_frame(ada.signer, 99, now_ms(), "tea", [act(4, "by ada herself", "ada-person")])[:-1] + b"x",
            encode_frame(bob.signer, 1, now_ms(), "diary", [act(5, "where nothing is shared")]),
            encode_frame(bob.signer, 1, now_ms(), "link-" + "a" * 26, [act(6, "in another's relationship")]),
            encode_frame(
                bob.signer,
                50,
                now_ms(),
                own,
                [
                    act(
                        7,
                        "shares what is not his",
                        kind="share",
                        body={"mesh": "A" * 56, "basin": "diary", "may": "read", "round": 1, "turn": 2},
                    )
                ],
            ),
            encode_frame(bob.signer, 51, now_ms() + 3_600_000, "tea", [act(8, "from the future")]),
            b"no frame at all",
        ]
        good = [
            encode_frame(bob.signer, 10, now_ms(), "tea", [root]),
            encode_frame(bob.signer, 11, now_ms(), "tea", [raised]),
        ]
        async with speaking(ada, bob) as wire:
            await wire.send(encode(Frames(1, bad + good)))
            while type(said := decode(await wire.receive())).__name__ != "Kept":
                pass
            assert said.refused == 6
            await until(lambda: sum(ada.refused(bob).values()) == 8)
            assert ada.heard() == ["a beginning"]
            assert len(ada.entries(own)) == states + 1  # heard, and without effect
            assert ada.peers.relationship(bob.mesh).theirs.terms.gives == {}
            assert ada.refused(bob)["BudgetRaised"] == ada.refused(bob)["BadLink"] == 1
            await ada.say("still here")
            await until(lambda: "still here" in ada.heard())


async def test_a_quota_ends_the_answers_and_not_the_talk(tmp_path: Path) -> None:
    """Chains a day first, then tokens a day: the model is not called, and `why` has the reason."""
    async with owners(tmp_path, "ada", "bob", ems=True) as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await ada.ask("quota", peer="bob", chains=1)
        for number in range(3):
            await bob.say(f"em-ada, number {number}?")
        await until(lambda: len(turns(ada)) == 3)
        await until(lambda: bob.heard().count("ada's em says so") == 1)
        assert len(ada.model.requests) == 1
        assert sum("chains begun today" in outcome for outcome in turns(ada)) == 2
        assert (await ada.ask("show", peer="bob"))["today"]["barred"] == 2
        await ada.ask("quota", peer="bob", chains=100, tokens=1)
        await bob.say("em-ada, and now?")
        await until(lambda: len(turns(ada)) == 4)
        assert any("tokens today" in outcome for outcome in turns(ada))
        await ada.say("em-ada, but I may?")  # one's own talk costs no quota
        await until(lambda: len(ada.model.requests) == 2)
        assert (await ada.ask("show", peer="bob"))["today"]["tokens"] > 0


async def test_what_costs_nothing_is_not_charged_to_who_began_it(tmp_path: Path) -> None:
    """An em whose model is free answers a peer without tokens left; the reply is counted, and its price is 0."""
    async with owners(tmp_path, "ada", "bob", ems=True) as (ada, bob):
        ada.price = 0.0
        async with ada.up(), bob.up():
            await link(ada, bob)
            await ada.ask("quota", peer="bob", tokens=1)
            await bob.say("em-ada, are you there?")
            await until(lambda: "ada's em says so" in bob.heard())
            today = (await ada.ask("show", peer="bob"))["today"]
            assert (today["tokens"], today["replies"], today["price"], today["unpriced"]) == (0, 1, 0.0, 0)


async def test_what_a_third_one_said_before_a_guest_came_is_not_missing(tmp_path: Path) -> None:
    """The guest hears of cy by way of ada alone: nobody can give what was before, and nothing is asked for for ever."""
    async with owners(tmp_path, "ada", "bob", "cy") as (ada, bob, cy), ada.up(), bob.up(), cy.up():
        await link(ada, cy)
        for number in range(3):
            await cy.say(f"before {number}")
        await until(lambda: len(ada.heard()) == 3)
        await link(ada, bob, trust="guest")
        await cy.say("after")
        await until(lambda: bob.heard() == ["after"])
        await until(lambda: missing(bob.node.ground.store) == 0)


async def test_a_chain_from_elsewhere_gets_no_more_here_than_one_of_ours(tmp_path: Path) -> None:
    """Bob's basin lets chains be long, ada's does not: her em answers as often as she pays for."""
    long = {"budget": {"hops": 30, "acts": 60}}
    short = {"budget": {"hops": 30, "acts": 2}}
    async with owners(tmp_path, "ada", "bob") as (ada, bob):
        ada.em("em-ada", "reply_on_all: true\nreply_on_floor: false\nbasins: [tea]\n")
        bob.em("em-bob", "reply_on_all: true\nreply_on_floor: false\nbasins: [tea]\n")
        for one, budget in ((ada, short), (bob, long)):
            one.config = type(one.config).model_validate(one.config.model_dump() | {"basins": {"tea": budget}})
        async with ada.up(), bob.up():
            await link(ada, bob)
            await bob.say("go on for ever")
            await until(lambda: any("spent" in rule for rule in silences(ada)))
            assert bob.heard().count("ada's em says so") <= 2
            assert len(ada.model.requests) <= 2


def turns(owner: Owner) -> list[str]:
    """What came of each turn that has ended."""
    return [row[0] for row in owner.node.ground.store.rows("SELECT outcome FROM turns WHERE outcome IS NOT NULL")]


def silences(owner: Owner) -> list[str]:
    return [
        bytes(row[0]).decode("utf-8", "replace") for row in owner.node.ground.store.rows("SELECT reasons FROM silences")
    ]


async def test_a_guest_who_is_trusted_more_hears_what_was_said_before(tmp_path: Path) -> None:
    """Over the same link, each act once; who is a guest again keeps what it has."""
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await ada.say("long ago")
        await link(ada, bob, trust="guest")
        await ada.say("now")
        await until(lambda: bob.heard() == ["now"])
        await ada.ask("trust", peer="bob", trust="known")
        await until(lambda: sorted(bob.heard()) == ["long ago", "now"])


async def test_an_em_asks_for_a_change_and_a_person_makes_it(tmp_path: Path) -> None:
    """Its act changes nothing and is no fault of anybody's: it waits for the person, who may let it be."""
    async with owners(tmp_path, "ada", "bob", ems=True) as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        before = ada.peers.relationship(bob.mesh)
        body = {"text": "may bob hear the diary?", "mesh": bob.mesh, "basin": "diary", "may": "read"}
        await ada.node.outbox.say("tea", ada.node.root("tea", "em-ada", [], "share", body))
        await until(ada.peers.gates.tables.wishes)
        (wish,) = (await ada.ask("wishes"))["wishes"]
        assert (wish["em"], wish["kind"], wish["text"]) == ("em-ada", "share", "may bob hear the diary?")
        assert ada.peers.relationship(bob.mesh) == before
        with pytest.raises(NodeError, match="beginning of one wish"):
            await ada.ask("dismiss", wish="ffffffff")
        await ada.ask("dismiss", wish=wish["id"][:12])
        assert (await ada.ask("wishes"))["wishes"] == []
        await until(lambda: "may bob hear the diary?" in bob.heard())
        assert bob.refused(ada) == {}
        assert bob.peers.gates.tables.wishes() == []


async def test_a_peer_is_called_what_its_person_here_likes(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", "cy") as (ada, bob, cy):
        async with ada.up(), bob.up(), cy.up():
            await link(ada, bob)
            await link(ada, cy)
            await ada.ask("rename", peer="bob", name="robert")
            assert (await ada.ask("show", peer="robert"))["mesh"] == bob.mesh
            for taken in ("cy", "ada"):
                with pytest.raises(NodeError, match="choose another name"):
                    await ada.ask("rename", peer="robert", name=taken)
        async with ada.up():
            assert ada.peers.find("robert").mesh == bob.mesh
