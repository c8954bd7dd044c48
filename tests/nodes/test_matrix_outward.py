"""From acts to rooms, without a homeserver: what is shown, to whom it hangs, and that no act is too odd to show."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bridged import Pause, Slow, until
from hypothesis import given
from hypothesis import strategies as st
from no_homeserver import OWNER, ROOM, Alone, alone, said

from mesh.bridges.matrix import outbox, rows
from mesh.bridges.matrix.content import BOUNCE, CUT, MARK, MAX_CONTENT, size
from mesh.bridges.matrix.errors import MatrixRefused, MatrixUnavailable
from mesh.entries import recent
from nodes.em import load_ems
from nodes.matrix import manners
from nodes.matrix.outward import key, read_key
from nodes.matrix.tables import BOT, Member
from nodes.models.scripted import Scripted
from nodes.prompt import MAX_REPLY
from nodes.runtime import Runtime
from protocol.vocabulary import MAX_TEXT

PREFIX = 1_000  # bytes of a speaker's name, for which the content's limit leaves room
STORY = [step for number in range(9) for step in (f"word{number} ", Pause(0.1))]


@given(st.binary(min_size=1, max_size=32), st.text(alphabet="abc0$").filter(bool), st.text(min_size=1))
def test_a_key_finds_back_to_its_act(act: bytes, part: str, room: str) -> None:
    assert read_key(key(act, part, room)) == (act, part, room)


@given(st.text())
def test_any_other_key_is_none(text: str) -> None:
    found = read_key(text)
    assert found is None or key(*found).lower() == text.lower()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Alone]:
    async with alone(tmp_path, Scripted(["A reply of an em."])) as one:
        yield one


def shown(world: Alone) -> list[dict[str, Any]]:
    """The messages that were sent, in order."""
    return [body for kind, body in world.server.sent() if kind == "m.room.message"]


def texts(world: Alone) -> list[str]:
    return [entry.act.text for entry in recent(world.here.ground.store, "tea", 99)]


async def test_what_an_em_says_that_sits_elsewhere_is_told_with_its_name(world: Alone) -> None:
    """A room stands for all of its basin; whoever was put out of it is not heard there."""
    world.em("cleo")
    world.here.host(load_ems(world.ems)[0])
    await world.here.say("tea", "cleo?", [])
    await world.idle()
    asked, told = shown(world)
    assert (asked["body"], told["body"]) == ("mara: cleo?", "cleo: A reply of an em.")
    assert (told["msgtype"], MARK in told) == ("m.text", True)
    kick = {"type": "m.room.member", "state_key": world.user("ada"), "content": {"membership": "leave"}}
    world.hears(said("$kick") | kick)
    await until(lambda: not world.bridge.tables.sits("ada", ROOM))
    await world.here.say("tea", "ada, cleo?", [])
    await world.idle()
    assert [one["body"] for one in shown(world)[2:]] == ["mara: ada, cleo?", "cleo: A reply of an em."]


async def test_what_is_taken_back_goes_wherever_it_was_shown(world: Alone) -> None:
    """Also where its em sits no more, and in a room that is not shown what is said now; the reason stays inside."""
    sealed, tables = "!sealed:x", world.bridge.tables
    await world.here.say("tea", "ada?", [])
    await world.idle()
    (spoken,) = [entry.act for entry in recent(world.here.ground.store, "tea", 9) if entry.act.author == "ada"]
    (known,) = tables.events(spoken.id)
    with world.here.ground.store.transaction():
        tables.set_member(ROOM, Member("ada", "out", "kicked"))
        tables.set_room(sealed, "tea", everyone=False)
        tables.set_member(sealed, Member(BOT, "joined"))
    world.bridge.port.inbox.note_encrypted([sealed])
    await world.here.redact(spoken.id, "it names the harbour")
    await world.idle()
    taken = [(path, body) for _, path, body in world.server.calls if "redact" in path]
    assert [(path[3], path[5], body) for path, body in taken] == [(ROOM, known.event_id, {})]


async def test_an_edit_is_told_by_whoever_told_what_it_changes(world: Alone) -> None:
    """One of the ems told what a person said elsewhere; then the node's own user came into the room."""
    tables, store = world.bridge.tables, world.here.ground.store
    with store.transaction():
        tables.set_member(ROOM, Member(BOT, "out"))
    words = await world.here.say("tea", "hello", [])
    await world.idle()
    (known,) = tables.events(words.id)
    assert known.speaker == "ada"
    with store.transaction():
        tables.set_member(ROOM, Member(BOT, "joined"))
    await world.here.say("tea", "hello all", [words.id], "edit")
    await world.idle()
    told = shown(world)[-1]
    assert told["m.relates_to"] == {"rel_type": "m.replace", "event_id": known.event_id}
    assert told["m.new_content"]["body"] == "mara: hello all"


@pytest.mark.parametrize("text", ["a" * MAX_TEXT, "\U0001f600" * (MAX_TEXT // 2), '"' * MAX_TEXT, "\n" * 70_000 + "x"])
async def test_a_text_that_is_too_long_for_a_room_is_cut_with_a_mark(world: Alone, text: str) -> None:
    """What the person says elsewhere, as long as an act may be, is shown as far as an event goes."""
    await world.here.say("tea", text[:MAX_TEXT], [])
    await world.idle()
    (content,) = shown(world)
    assert size(content) <= MAX_CONTENT + PREFIX
    assert content["body"].endswith(CUT)


async def test_hostile_words_are_words(world: Alone) -> None:
    """HTML, scripts and dangerous links in what is said leave the node as text."""
    hostile = "**hi** <script>alert(1)</script> <img src=x onerror=alert(1)> [x](javascript:alert(1)) \x1b[2J\u202e"
    await world.here.say("tea", hostile, [])
    await world.idle()
    (content,) = shown(world)
    rich = content["formatted_body"]
    assert "<strong>hi</strong>" in rich
    for tag in ("<script", "<img", "href", "\x1b"):
        assert tag not in rich
    assert "\x1b" not in content["body"]


async def test_a_persons_relayed_words_are_marked_as_such_and_an_ems_as_a_machines(world: Alone) -> None:
    """Other nodes take a person for a person, know what they have heard already, and have hops to go by."""
    await world.here.say("tea", "hello ada", [])
    await world.idle()
    person, em = shown(world)
    assert (person[MARK]["person"], person[MARK]["hops"], BOUNCE in person) == (True, 1, False)
    assert "person" not in em[MARK]
    assert em[MARK]["hops"] == 1
    assert em[BOUNCE] == 0
    assert em["m.mentions"] == {}


async def test_a_full_outbox_takes_nothing_down(world: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a dead homeserver has filled it, ems talk on; what they say is not shown, and a person is told."""
    monkeypatch.setattr(rows, "MAX_WAITING", 0)
    await world.here.say("tea", "hello ada", [])
    await until(lambda: "A reply of an em." in texts(world))
    assert any("cannot be shown" in problem for problem in world.bridge.problems)
    monkeypatch.setattr(rows, "MAX_WAITING", 10)
    await world.here.say("tea", "and now, bob", [])
    await world.idle()
    assert shown(world)[0]["body"].endswith("and now, bob")


async def test_a_full_outbox_stops_no_em_that_is_shown_while_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither words so far nor their taking back may fail a turn, or the node."""
    go_on = asyncio.Event()
    async with alone(tmp_path, Slow([*STORY, go_on, "end."])) as world:
        await world.here.say("tea", "hello ada", [])
        await until(lambda: world.bridge.port.outbox.waiting() == 0 and len(shown(world)) > 1)
        monkeypatch.setattr(rows, "MAX_WAITING", 0)
        await until(lambda: world.bridge.tables.drafts(drafted(world)))
        await world.here.say("tea", "enough", [], kind="cancel")
        await until(lambda: not world.here.runtime.speaking())
        assert any("after all" in problem for problem in world.bridge.problems)
        monkeypatch.setattr(rows, "MAX_WAITING", 10)
        go_on.set()
        await world.here.say("tea", "bob?", [])
        await until(lambda: any(text.endswith("end.") for text in texts(world)))


def drafted(world: Alone) -> bytes:
    row = world.here.ground.store.one("SELECT act FROM room_drafts")
    return row[0] if row else b""


async def test_who_may_not_speak_is_told_of_and_holds_nobody_up(world: Alone) -> None:
    """A refusal is one line for the node's person; the next act is sent as if nothing were."""
    world.server.refuses["m.room.message"] = MatrixRefused(
        "the homeserver answered 403 M_FORBIDDEN", "M_FORBIDDEN", 403
    )
    world.hears(said("$one"))
    await world.idle()
    assert any("ada could not say something in a room" in problem for problem in world.bridge.problems)
    world.server.refuses.clear()
    world.hears(said("$two", "bob?"))
    await world.idle()
    assert [body["m.relates_to"]["m.in_reply_to"]["event_id"] for body in shown(world)[-1:]] == ["$two"]


async def test_a_room_that_is_away_is_waited_for_and_nothing_is_said_twice(
    world: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was said meanwhile comes in order, each once, under one transaction id each."""
    monkeypatch.setattr(outbox, "BACKOFF_S", (0.01, 0.02))
    world.server.refuses["m.room.message"] = MatrixUnavailable("away")
    for number in range(5):
        await world.here.say("tea", f"number {number}", [])
    await until(lambda: world.bridge.port.outbox.waiting() == 5)
    await until(lambda: len(shown(world)) > 3)
    world.server.calls.clear()
    world.server.refuses.clear()
    await world.idle()
    assert [body["body"].split()[-1] for body in shown(world)] == list("01234")


async def test_an_em_that_was_put_out_while_it_wrote_says_nothing_there(tmp_path: Path) -> None:
    """Its reply stays in the basin; the draft that people saw is given up with the room."""
    go_on = asyncio.Event()
    async with alone(tmp_path, Slow([*STORY, go_on, "end."])) as world:
        world.hears(said("$one"))
        await until(lambda: shown(world))
        kick = {"type": "m.room.member", "state_key": world.user("ada"), "content": {"membership": "leave"}}
        world.hears(said("$kick") | kick)
        await until(lambda: not world.bridge.tables.sits("ada", ROOM))
        before = len(shown(world))
        go_on.set()
        await until(lambda: any(text.endswith("end.") for text in texts(world)))
        await world.idle()
        assert len(shown(world)) == before
        assert world.here.ground.store.rows("SELECT * FROM room_drafts") == []
        world.hears(said("$two", "bob?"))
        await until(lambda: len(shown(world)) > before)
        await world.idle()


async def test_an_em_says_no_more_at_once_than_it_may(tmp_path: Path) -> None:
    """Seventy thousand characters of a model are one reply of the longest length, in one message."""
    async with alone(tmp_path, Scripted(["word " * 14_000])) as world:
        world.hears(said("$one"))
        await world.idle()
        (content,) = shown(world)
        assert len(content["body"]) == MAX_REPLY == len(texts(world)[-1])
        assert world.bridge.tables.events(recent(world.here.ground.store, "tea", 1)[0].act.id)[0].speaker == "ada"
        assert OWNER in content["m.mentions"]["user_ids"]


async def test_a_reply_whose_first_words_were_refused_is_said_whole_when_it_may(tmp_path: Path) -> None:
    """Who was let speak again while the em wrote sees all of it, not an edit of what never was."""
    go_on = asyncio.Event()
    async with alone(tmp_path, Slow([*STORY, go_on, "end."])) as world:
        world.server.refuses["m.room.message"] = MatrixRefused("the homeserver answered 403", "M_FORBIDDEN", 403)
        world.hears(said("$one"))
        await until(lambda: world.bridge.problems)
        world.server.refuses.clear()
        await until(lambda: not world.bridge.port.outbox.waiting())
        go_on.set()
        await world.idle()
        assert shown(world)[-1]["body"] == texts(world)[-1]
        assert "m.new_content" not in shown(world)[-1]


@pytest.mark.parametrize("is_said", [False, True])
async def test_what_is_redacted_while_it_is_written_is_gone_with_all_that_was_shown_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_said: bool
) -> None:
    """A person takes the beginning away, and the em stops, or has just said it all: nothing is shown or remembered."""
    if is_said:
        monkeypatch.setattr(Runtime, "_halt", lambda *_: None)
    go_on = asyncio.Event()
    async with alone(tmp_path, Slow([*STORY, go_on, "end."])) as world:
        world.hears(said("$one"))
        await until(lambda: drafted(world))
        act = drafted(world)
        await until(lambda: world.bridge.tables.events(act))
        (first, *_) = world.bridge.tables.events(act)
        world.hears(said("$gone") | {"type": "m.room.redaction", "content": {}, "redacts": first.event_id})
        await until(lambda: not world.bridge.port.inbox.waiting())
        go_on.set()
        await world.idle()
        await until(lambda: len(taken_back(world)) == len(shown(world)))
        assert taken_back(world) == {f"$ours{number}" for number in range(1, len(shown(world)) + 1)}
        assert not any("end." in text for text in texts(world))
        assert not any("end." in body["body"] for body in shown(world))
        assert world.here.ground.store.rows("SELECT * FROM room_drafts") == []


def taken_back(world: Alone) -> set[str]:
    """The events that were redacted."""
    return {event for kind, event in world.server.sent() if kind == "m.room.redaction"}


async def test_typing_is_told_again_before_it_ends_and_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Homeservers show it for half a minute: whoever thinks longer is announced anew, until it has spoken."""
    monkeypatch.setattr(manners, "TYPING_AGAIN_S", 0.1)
    go_on = asyncio.Event()

    async with alone(tmp_path, Slow([go_on, "Well."])) as world:

        def typing() -> list[bool]:
            return [body["typing"] for _, path, body in world.server.calls if "typing" in path]

        world.hears(said("$one"))
        await until(lambda: len(typing()) > 2)
        go_on.set()
        await until(lambda: not typing()[-1])
        await world.idle()
        assert typing() == [True] * (len(typing()) - 1) + [False]
