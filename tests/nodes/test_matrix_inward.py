"""From rooms to acts, without a homeserver: who is heard, who is answered, what stays the same however it comes."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bridged import until
from no_homeserver import OWNER, ROOM, Alone, alone, said

from mesh.bridges.matrix.content import BOUNCE, MARK
from mesh.bridges.matrix.errors import MatrixUnavailable
from mesh.clock import now_ms
from mesh.entries import recent
from nodes.matrix import hearing
from nodes.matrix.tables import Member
from nodes.models.scripted import Scripted
from protocol.acts import Act

MINUTE_MS = 60_000


@pytest.fixture
def model() -> Scripted:
    return Scripted(["Yes."])


@pytest.fixture
async def world(tmp_path: Path, model: Scripted) -> AsyncIterator[Alone]:
    settings: dict[str, Any] = {"bot_messages": 3, "messages_per_minute": 4, "bots": ["@robot:x"]}
    async with alone(tmp_path, model, **settings) as one:
        yield one


def acts(world: Alone) -> list[Act]:
    return [entry.act for entry in recent(world.here.ground.store, "tea", 200)]


def replies(world: Alone) -> int:
    return sum(act.author in {"ada", "bob"} for act in acts(world))


def act(world: Alone, text: str) -> Act:
    return next(one for one in acts(world) if one.text == text)


def mark(root: str = "cd" * 16, hops: int = 0, node: str = "elsewhere", **more: Any) -> dict[str, Any]:
    return {MARK: {"v": 1, "act": os.urandom(16).hex(), "root": root, "hops": hops, "node": node, **more}}


async def test_the_same_event_is_one_act_however_often_it_comes(world: Alone, model: Scripted) -> None:
    """Pushed again, within one push and in later ones, it is neither said nor answered twice."""
    event = said("$one")
    assert world.hears(event, event) == 1
    await world.idle()
    assert world.hears(event) == 0
    await world.idle()
    assert [one.author for one in acts(world)] == [OWNER, "ada"]
    assert len(model.requests) == 1


async def test_what_is_too_old_or_claims_no_time_is_read_and_not_answered(world: Alone, model: Scripted) -> None:
    """An hour is the limit; a time in the future counts as now, and no time at all as long ago."""
    hour = 60 * MINUTE_MS
    world.hears(
        said("$old", "ada, long ago", at=now_ms() - hour - 1_000),
        said("$none", "ada, at no time", at=0),
        said("$odd", "ada, at an odd time", at="yesterday"),
        said("$soon", "ada, tomorrow", at=now_ms() + 24 * hour),
        said("$young", "ada, just now", at=now_ms() - hour + MINUTE_MS),
    )
    await world.idle()
    for text in ("ada, long ago", "ada, at no time", "ada, at an odd time"):
        assert act(world, text).body["quiet"] == "it was said too long ago"
    assert "quiet" not in act(world, "ada, tomorrow").body
    assert act(world, "ada, tomorrow").at_ms <= now_ms()
    assert len(model.requests) == 2


async def test_what_people_do_with_old_reactions_and_commands_counts_for_nothing(world: Alone) -> None:
    """A stop, a retry and a command that were kept back for an hour do nothing when they come."""
    world.hears(said("$one"))
    await world.idle()
    ours = next(known.event_id for known in world.bridge.tables.events(acts(world)[1].id))
    old = now_ms() - 61 * MINUTE_MS
    for number, key in enumerate(("🛑", "🔁")):
        related = {"rel_type": "m.annotation", "event_id": ours, "key": key}
        reaction = {"type": "m.reaction", "content": {"m.relates_to": related}}
        world.hears(said(f"$reaction{number}", at=old) | reaction)
    world.hears(said("$command", "!mesh stop", at=old))
    await world.idle()
    kinds = [one.kind for one in acts(world)]
    assert "cancel" not in kinds
    assert "redact" not in kinds
    assert replies(world) == 1


async def test_a_person_is_answered_so_often_a_minute(world: Alone, model: Scripted) -> None:
    """More is read, and not answered; others are not kept waiting by it."""
    world.hears(*(said(f"$e{number}", f"ada, {number}?") for number in range(7)))
    world.hears(said("$other", "ada, and me?", "@other:x"))
    await world.idle()
    assert len(model.requests) == 5
    assert act(world, "ada, 4?").body["quiet"] == "more than 4 messages a minute, or 500 a day"
    assert "quiet" not in act(world, "ada, and me?").body


@pytest.mark.parametrize("how", ["marked", "listed", "notice", "bounce"])
async def test_a_machine_is_heard_when_it_mentions_and_within_its_quota(
    world: Alone, model: Scripted, how: str
) -> None:
    """Three in ten minutes for a machine, however it is known as one; a notice is never answered."""
    more: dict[str, Any] = {"notice": {"msgtype": "m.notice"}, "bounce": {BOUNCE: 9}}.get(how, {})
    for number in range(6):
        marked = mark(f"{number:032x}") if how == "marked" else {}
        world.hears(said(f"$e{number}", f"ada, {number}?", "@robot:x", **marked, **more))
    world.hears(said("$nobody", "just saying", "@robot:x", **mark("ef" * 16)))
    await world.idle()
    assert len(model.requests) == (0 if how == "notice" else 3)
    assert all(one.body["bot"] is True for one in acts(world) if one.author == "@robot:x")


async def test_machines_share_a_chain_by_its_root_whoever_continues_it(world: Alone, model: Scripted) -> None:
    """Two machines that answer within one chain have one chain's acts between them, and no more hops than are left."""
    root = "12" * 16
    world.hears(said("$one", "ada, one?", "@a:x", **mark(root, hops=0)))
    await world.idle()
    first = act(world, "ada, one?")
    world.hears(said("$two", "ada, two?", "@b:x", **mark(root, hops=1)))
    await world.idle()
    second = act(world, "ada, two?")
    assert first.budget.hops == 1
    assert second.budget.hops == 0
    assert second.budget.acts == first.budget.acts - 2
    assert second.budget.tokens < first.budget.tokens
    assert len(model.requests) == 1


@pytest.mark.parametrize("bounce", [0, -1, "9", 1.5, None, [], 2**80])
async def test_a_bounce_limit_binds_and_nonsense_stops_the_ball(world: Alone, bounce: Any) -> None:
    """What is no number leaves no hops; a huge one leaves no more than the basin gives."""
    world.hears(said("$one", "ada?", "@a:x", **{BOUNCE: bounce}))
    await world.idle()
    expected = 1 if bounce in (None, 2**80) else 0
    assert act(world, "ada?").budget.hops == expected
    assert replies(world) == expected


async def test_words_that_are_still_being_written_are_not_heard(world: Alone, model: Scripted) -> None:
    """Another node's draft is nothing; its last edit is what it said, known by the draft's id."""
    world.hears(said("$draft", "ada, wh", "@a:x", **mark(writing=True)))
    whole = {"m.new_content": {"msgtype": "m.text", "body": "ada, what?"}, **mark()}
    world.hears(said("$last", "* ada, what?", "@a:x", **whole, **edits("$draft")))
    world.hears(said("$reply", "I wonder too, ada", **{"m.relates_to": {"m.in_reply_to": {"event_id": "$draft"}}}))
    await world.idle()
    said_by_others = [one for one in acts(world) if one.author.startswith("@")]
    assert [one.text for one in said_by_others] == ["ada, what?", "I wonder too, ada"]
    assert said_by_others[1].refs == [said_by_others[0].id]
    assert len(model.requests) == 2


async def test_only_who_said_it_may_edit_it_and_only_here(world: Alone) -> None:
    """Others' edits, edits from other rooms and of what was never heard are nothing."""
    world.hears(said("$one", "it is munday"))
    new = {"m.new_content": {"msgtype": "m.text", "body": "it is doomsday"}}
    world.hears(said("$by-other", "* it is doomsday", "@eve:x", **new, **edits("$one")))
    world.hears(said("$elsewhere", "* it is doomsday", **new, **edits("$one")) | {"room_id": "!other:x"})
    world.hears(said("$of-nothing", "* it is doomsday", **new, **edits("$unheard")))
    await world.idle()
    assert [one.text for one in acts(world)] == ["it is munday"]


def edits(event: str) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.replace", "event_id": event}}


async def test_reactions_and_redactions_of_another_room_are_nothing(world: Alone) -> None:
    """An event's id names an act only in its own room."""
    tables = world.bridge.tables
    with world.here.ground.store.transaction():
        tables.set_room("!other:x", "tea", everyone=False)
    world.hears(said("$one", "a secret"))
    await world.idle()
    related = {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$one", "key": "🙈"}}
    elsewhere = {"room_id": "!other:x"}
    world.hears(said("$hide", sender="@eve:x") | {"type": "m.reaction", "content": related} | elsewhere)
    world.hears(
        said("$gone", sender="@eve:x") | {"type": "m.room.redaction", "content": {}, "redacts": "$one"} | elsewhere
    )
    await world.idle()
    assert [one.kind for one in acts(world)] == ["say"]


async def test_a_room_waits_for_its_homeserver_and_others_do_not(world: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invitation that cannot be taken just now keeps its own room's words waiting, and loses none."""
    monkeypatch.setattr(hearing, "AGAIN_S", (0.01, 0.02))
    world.server.refuses["!slow:x"] = MatrixUnavailable("away")
    invite = {"type": "m.room.member", "state_key": world.user("ada"), "content": {"membership": "invite"}}
    slow = {"room_id": "!slow:x"}
    world.hears(said("$invite") | invite | slow, said("$waits", "ada, in the new room?") | slow, said("$here"))
    await until(lambda: replies(world) == 1)
    assert world.bridge.port.inbox.waiting() == 2
    del world.server.refuses["!slow:x"]
    await until(lambda: world.bridge.port.inbox.waiting() == 0)
    basin = world.bridge.tables.basin_of("!slow:x")
    assert basin is not None
    await until(lambda: len(recent(world.here.ground.store, basin, 9)) == 2)


async def test_a_strangers_odd_name_takes_nothing_down(world: Alone) -> None:
    """Who has a name that no author may have is left alone, and the room goes on."""
    world.hears(said("$odd", "ada?", "@\x1b[2J:x"), said("$long", "ada?", "@" + "a" * 250 + ":x"), said("$one"))
    await world.idle()
    heard = [one.author for one in acts(world) if one.text in {"ada?", "hello ada"}]
    assert heard == ["@" + "a" * 250 + ":x", OWNER]
    assert replies(world) == 2
    assert not any("mistake" in problem for problem in world.bridge.problems)
    assert ROOM in [room for room, _, _ in world.bridge.tables.rooms()]


async def test_a_room_of_a_thousand_is_a_room(world: Alone, model: Scripted) -> None:
    """A thousand come in, and one of them asks: who they are is not asked for again with each word, nor kept."""
    world.server.members = [f"@user{number}:x" for number in range(1_000)]
    with world.here.ground.store.transaction():
        world.bridge.tables.set_member(ROOM, Member("bob", "out"))
    world.here.host()
    for number in range(1_000):
        came = {"type": "m.room.member", "state_key": f"@user{number}:x", "content": {"membership": "join"}}
        world.hears(said(f"$came{number}", sender=f"@user{number}:x") | came)
    world.hears(*(said(f"$e{number}", "anybody here?", f"@user{number}:x") for number in range(50)))
    world.hears(said("$asked", "ada?", "@user7:x"))
    await world.idle()
    assert len(model.requests) == 1
    assert len([path for _, path, _ in world.server.calls if path[-1] == "joined_members"]) == 1
