"""Disputes between whole nodes of several owners: who hears what, who decides what, and who gets nothing."""

from pathlib import Path
from typing import Any

import pytest
from owners import Owner, link, owners, until

from mesh.clock import now_ms
from nodes.commands.dispute import shown as page
from nodes.disputes import halls
from nodes.disputes.disputes import MAX_OPEN
from nodes.disputes.rooms import party
from nodes.errors import NodeError
from protocol.dispute import dispute_basin, is_dispute
from protocol.statement import Changes

DAY_MS = 86_400_000


async def raised(ada: Owner, bob: Owner, text: str = "that was private", **more: Any) -> str:
    """Ada raises a dispute with bob, who hears it; gives its name."""
    told = await ada.dispute("raise", peer=bob.name, text=text, **more)
    await knows(bob, told["id"])
    return str(told["id"])


async def knows(one: Owner, name: str, **expected: Any) -> dict[str, Any]:
    """Wait until a dispute is so at an owner's node."""

    def found() -> dict[str, Any] | None:
        for basin in one.disputes.halls.parties:
            read = one.disputes.halls.read(basin)
            if read is not None and read.id == name and read.raised is not None:
                told = {"state": read.state.value, "words": len(read.words), "mediators": len(read.mediators)}
                told["standings"] = [made.standing.value for made in read.commitments]
                told["willing"] = len(read.willing)
                if all(told[key] == value for key, value in expected.items()):
                    return told
        return None

    await until(lambda: found() is not None)
    return await one.dispute("show", dispute=name)


def kinds(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Who said what kind of thing; sorted, since what is said within a millisecond has no order."""
    return sorted((word["who"]["name"], word["kind"]) for word in told["words"])


async def test_two_persons_raise_respond_promise_report_and_settle(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob", ems=True) as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await bob.say("ada's diary says so", "tea")
        await until(lambda: ada.heard() == ["ada's diary says so"])
        said = ada.entries()[0].act.id.hex()
        name = await raised(ada, bob, about=[said], wish="take it back")
        shown = await bob.dispute("show", dispute=name)
        assert (shown["text"], shown["wish"], shown["state"]) == ("that was private", "take it back", "open")
        assert (shown["raised_by"]["name"], shown["with"]["me"], shown["link"]) == ("ada", True, "linked")
        assert shown["about"][0]["text"] == "ada's diary says so"
        await bob.dispute("respond", dispute=name, text="I did not know")
        promised = await bob.dispute("remedy", dispute=name[:5], text="I take it back", due_s=3600)
        made = promised["said"]
        await knows(ada, name, standings=["open"])
        ada.clock = lambda: now_ms() + 2 * 3_600_000
        await knows(ada, name, standings=["overdue"])
        with pytest.raises(NodeError, match="other side's to report"):
            await ada.dispute("report", commitment=made, text="")
        await bob.dispute("report", commitment=made, text="done it")
        await knows(ada, name, standings=["kept"])
        ada.clock = now_ms
        assert (await ada.dispute("settle", dispute=name, text=""))["state"] == "open"
        await knows(bob, name, willing=1, state="open")
        assert (await bob.dispute("settle", dispute=name, text="good"))["state"] == "settled"
        shown = await knows(ada, name, state="settled")
        assert kinds(shown) == [
            ("ada", "raise"),
            ("ada", "settle"),
            ("bob", "remedy"),
            ("bob", "report"),
            ("bob", "respond"),
            ("bob", "settle"),
        ]
        assert [word["about"] for word in shown["words"] if word["kind"] == "report"] == [[made]]
        assert (await ada.dispute("list"))["disputes"][0]["counts"] == {"kept": 1}
        assert (ada.model.requests, bob.model.requests) == ([], [])  # no em has a place in it
        assert (ada.refused(bob), bob.refused(ada)) == ({}, {})


async def test_a_commitment_is_released_by_the_other_side_and_a_dispute_withdrawn_by_its_own(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob, trust="guest")
        name = await raised(ada, bob)
        made = (await bob.dispute("remedy", dispute=name, text="I ask first, from now on"))["said"]
        await knows(ada, name, standings=["open"])
        with pytest.raises(NodeError, match="your own"):
            await bob.dispute("release", commitment=made, text="")
        await ada.dispute("release", commitment=made, text="")
        await knows(bob, name, standings=["released"], willing=0)
        with pytest.raises(NodeError, match="only who raised"):
            await bob.dispute("withdraw", dispute=name, text="")
        await ada.node.say((await ada.dispute("show", dispute=name))["basin"], "let us leave it", [])
        await ada.dispute("withdraw", dispute=name, text="never mind")
        shown = await knows(bob, name, state="withdrawn", words=5)
        assert kinds(shown)[1:] == [("ada", "say"), ("ada", "settle"), ("ada", "withdraw"), ("bob", "remedy")]


async def test_a_mediator_hears_all_of_it_once_both_agree_and_nobody_else_anything(tmp_path: Path) -> None:
    """Cyd is a guest of both and was not there when it began; dan is close to all three."""
    async with (
        owners(tmp_path, "ada", "bob", "cyd", "dan") as (ada, bob, cyd, dan),
        ada.up(),
        bob.up(),
        cyd.up(),
        dan.up(),
    ):
        await link(ada, bob, trust="guest")
        for one in (ada, bob):
            await link(one, cyd, trust="guest")
            await link(one, dan, trust="close")
        name = await raised(ada, bob)
        basin = (await ada.dispute("show", dispute=name))["basin"]
        await bob.dispute("respond", dispute=name, text="no")
        await ada.dispute("mediator", dispute=name, mesh="cyd")
        await ada.ask("share", peer="dan", basin=basin, write=True)  # a person can say so; the gate stands
        await dan.ask("take", peer="ada", basin=basin, write=True)
        await ada.say("a sign")
        await until(lambda: "a sign" in dan.heard())
        named = (await knows(bob, name, words=3))["named"]
        assert [(one["name"], [by["name"] for by in one["by"]]) for one in named] == [("cyd", ["ada"])]
        assert (await cyd.dispute("list")) == {"disputes": [], "offered": []}
        await bob.dispute("mediator", dispute=name, mesh=named[0]["fingerprint"], text="yes, cyd")
        await until(lambda: len(cyd.disputes.offered()) == 2)
        assert cyd.entries(basin) == []  # asked, and not heard before a yes
        assert [one["mediate"] for one in (await cyd.dispute("list"))["offered"]] == [True, True]
        await cyd.dispute("mediate", dispute=name)
        shown = await knows(cyd, name, words=4, mediators=1)
        assert (shown["text"], shown["link"]) == ("that was private", None)
        await cyd.dispute("respond", dispute=name, text="what would each of you need?")
        await cyd.dispute("remedy", dispute=name, text="bob might ask first")
        for one in (ada, bob):
            shown = await knows(one, name, words=6, standings=[])
            assert kinds(shown)[4:] == [("cyd", "remedy"), ("cyd", "respond")]
        with pytest.raises(NodeError, match="parties' own"):
            await cyd.dispute("settle", dispute=name, text="")
        assert all(one.refused(other) == {} for one in (ada, bob, cyd) for other in (ada, bob, cyd))
        await bob.dispute("mediator", dispute=name, mesh="cyd", consent=False)
        await knows(ada, name, mediators=0)
        await until(lambda: all(basin not in one.peers.relationship(cyd.mesh).mine.terms.gives for one in (ada, bob)))
        await bob.dispute("respond", dispute=name, text="between us again")
        await knows(ada, name, words=8)
        for one in (ada, bob):
            await one.say("another sign")
        await until(lambda: cyd.heard().count("another sign") == dan.heard().count("another sign") == 2)
        assert "between us again" not in cyd.heard(basin)
        assert dan.entries(basin) == []


async def test_complaints_are_heard_up_to_a_bound_and_not_from_who_is_silent(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        names = [await raised(ada, bob, f"complaint {number}") for number in range(MAX_OPEN)]
        with pytest.raises(NodeError, match="are open"):
            await ada.dispute("raise", peer="bob", text="one more")
        basin = dispute_basin(ada.mesh, bob.mesh, b"x" * 16)
        await ada.peers.say(ada.peers.find("bob"), "share", Changes(text="more", basin=basin, may="write"))
        await until(lambda: basin in bob.peers.relationship(ada.mesh).theirs.terms.gives)
        await bob.say("a sign")
        await until(lambda: "a sign" in ada.heard())
        assert [one["basin"] for one in (await bob.dispute("list"))["offered"]] == [basin]
        await ada.dispute("withdraw", dispute=names[0], text="")
        await until(lambda: basin in bob.peers.relationship(ada.mesh).mine.terms.takes)
        await ada.dispute("withdraw", dispute=names[1], text="")
        await bob.ask("trust", peer="ada", trust="silent")
        told = await ada.dispute("raise", peer="bob", text="unheard")
        await until(lambda: told["basin"] in bob.peers.relationship(ada.mesh).theirs.terms.gives)
        assert told["id"] not in [one["id"] for one in (await bob.dispute("list"))["disputes"]]


async def test_who_stops_hearing_a_dispute_is_not_made_to_hear_it_and_may_go_on(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        name = await raised(ada, bob)
        basin = (await bob.dispute("show", dispute=name))["basin"]
        await bob.ask("unshare", peer="ada", basin=basin)
        await until(lambda: basin not in ada.peers.relationship(bob.mesh).theirs.terms.takes)
        await ada.dispute("respond", dispute=name, text="are you there?")
        await raised(ada, bob, "another")
        assert bob.heard(basin) == ["that was private"]
        await bob.dispute("respond", dispute=name, text="I am again")
        await knows(ada, name, words=3)
        await knows(bob, name, words=3)


async def test_after_leaving_it_is_readable_and_after_linking_again_it_goes_on(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), bob.up():
        async with ada.up():
            await link(ada, bob)
            name = await raised(ada, bob)
            await bob.dispute("remedy", dispute=name, text="I go\x1b[31m\nnow")
            await knows(ada, name, words=2)
            await bob.ask("leave", peer="ada")
            await until(lambda: ada.peers.relationship(bob.mesh).state.value == "left")
            with pytest.raises(NodeError, match="has ended"):
                await ada.dispute("respond", dispute=name, text="wait")
            with pytest.raises(NodeError, match="has ended"):
                await ada.dispute("raise", peer="bob", text="and this")
        async with ada.up():
            shown = await ada.dispute("show", dispute=name)
            assert (shown["link"], shown["text"], len(shown["words"])) == ("left", "that was private", 2)
            assert page(shown)[0] == f"dispute  {name}, open; the link has ended"
            assert page(shown)[-1].endswith("bob is ready to do: I go [31m now")
            assert all(line.isprintable() for line in page(shown))
            await link(ada, bob)
            await bob.dispute("respond", dispute=name, text="here I am")
            await knows(ada, name, words=3)
            await ada.dispute("settle", dispute=name, text="")
            await knows(bob, name, words=4, willing=1)


async def test_what_is_taken_back_is_gone_on_both_sides(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        name = await raised(ada, bob)
        made = await bob.dispute("remedy", dispute=name, text="rashly")
        await knows(ada, name, standings=["open"])
        act = (await bob.dispute("show", dispute=name))["commitments"][0]["act"]
        await bob.node.redact(bytes.fromhex(act), "no")
        shown = await knows(ada, name, standings=["taken back"])
        assert [word["text"] for word in shown["words"] if word["short"] == made["said"]] == [""]
        raise_ = next(word["id"] for word in shown["words"] if word["kind"] == "raise")
        await ada.node.redact(bytes.fromhex(raise_), "no")
        await until(lambda: "that was private" not in str(bob.entries(shown["basin"])))


async def test_nobody_says_more_in_a_dispute_than_may_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond it is refused and counted, and what the other side says is not."""
    monkeypatch.setattr(halls, "MAX_SAID", 5)
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        name = await raised(ada, bob)
        for number in range(8):
            await bob.dispute("respond", dispute=name, text=f"and {number}")
        await until(lambda: sum(ada.refused(bob).values()) == 3)
        await ada.dispute("respond", dispute=name, text="enough")
        await until(lambda: "enough" in bob.heard(bob.disputes.find(name).basin))
        assert len((await ada.dispute("show", dispute=name))["words"]) == 7
        assert bob.refused(ada) == {}


async def test_in_a_room_the_nodes_person_alone_is_a_party(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        name = await raised(ada, bob)
        basin = (await bob.dispute("show", dispute=name))["basin"]
        asked = party(bob.disputes, "@bob:x")
        assert asked("@bob:x", "tea", "settle", "") == "This room is not that of a dispute."
        assert "is talk" in str(asked("@eve:x", basin, "settle", ""))
        assert "nothing to say" in str(asked("@bob:x", basin, "respond", " "))
        assert "who raised" in str(asked("@bob:x", basin, "withdraw", ""))
        assert "is talk" in str(party(bob.disputes, None)("@bob:x", basin, "settle", ""))
        said = asked("@bob:x", basin, "settle", "")
        assert not isinstance(said, str)
        await bob.node.outbox.say(basin, bob.node.root(basin, bob.node.config.human, said[0], "settle", said[1]))
        await bob.node.outbox.say(basin, bob.node.root(basin, "@eve:x", said[0], "withdraw", {"text": "no"}))
        await knows(ada, name, willing=1, state="open", words=3)
        await bob.ask("leave", peer="ada")
        assert "has ended" in str(asked("@bob:x", basin, "respond", "well"))


async def test_a_name_that_fits_nothing_or_several_is_told(tmp_path: Path) -> None:
    async with owners(tmp_path, "ada", "bob") as (ada, bob), ada.up(), bob.up():
        await link(ada, bob)
        await raised(ada, bob)
        for operation, given, told in (
            ("show", {"dispute": "nosuch"}, "there is no dispute"),
            ("show", {"dispute": ""}, "there is no dispute"),
            ("report", {"commitment": "nosuch", "text": ""}, "there is no commitment"),
            ("mediate", {"dispute": "nosuch"}, "nobody asks you"),
            ("raise", {"peer": "bob", "text": " "}, "nothing to say"),
            ("raise", {"peer": "bob", "text": "x", "about": ["00" * 16]}, "no act"),
            ("raise", {"peer": "zoe", "text": "x"}, "no peer"),
        ):
            with pytest.raises(NodeError, match=told):
                await ada.dispute(operation, **given)
        assert sum(map(is_dispute, ada.disputes.halls.parties)) == 1
