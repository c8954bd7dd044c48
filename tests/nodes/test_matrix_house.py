"""`!mesh` in rooms, and the bridge's tables: any words are a command, a sentence or nothing."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from bridged import until
from hypothesis import given
from hypothesis import strategies as st
from no_homeserver import OWNER, ROOM, Alone, alone, said

from mesh.clock import now_ms
from mesh.entries import recent
from mesh.store import MESH_SCHEMA, Store
from nodes.em import load_ems
from nodes.matrix import tables
from nodes.matrix.house import MAX_MUTE_MINUTES, MINUTE_MS, MUTE_MINUTES, Asked, command, minutes
from nodes.matrix.schema import BRIDGE_SCHEMA
from nodes.matrix.settings import Matrix, fits
from nodes.matrix.tables import HEEDED_MS, Known, Member, Tables, missing
from nodes.models.scripted import Scripted
from nodes.turns import TURNS_SCHEMA


@given(st.text() | st.builds(lambda rest: f"!mesh {rest}", st.text()))
def test_any_text_is_a_command_a_sentence_or_ordinary_words(text: str) -> None:
    """Only what begins with !mesh is the node's; whatever follows is answered in one printable line."""
    asked = command(text)
    first = (text.split() or [""])[0].lower()
    assert (asked is None) == (first != "!mesh")
    if isinstance(asked, Asked):
        assert 0 <= minutes(asked.words) <= MAX_MUTE_MINUTES
    elif asked is not None:
        assert asked.isprintable()
        assert len(asked) < 200


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), MUTE_MINUTES),
        (("ada", "5"), 5),
        (("-5",), MUTE_MINUTES),
        (("٣",), MUTE_MINUTES),
        (("9" * 400,), MAX_MUTE_MINUTES),
        (("0",), 0),
    ],
)
def test_minutes_are_a_number_within_bounds(words: tuple[str, ...], expected: int) -> None:
    assert minutes(words) == expected


@given(st.text())
def test_a_pattern_of_users_is_no_regular_expression(user: str) -> None:
    """`*` stands for a name's characters and for nothing else; a server is never guessed."""
    assert fits(user, ("*",))
    assert fits(f"@{user.replace(':', '')}:x", ("@*:x",))
    assert not fits(f"@a:y{user}", ("@*:x", "@(a|b):y", "@.:y"))


@pytest.mark.parametrize("key", ["🛑", "🔁", "🙈", "▶️", "▶", " 🛑 "])
def test_controls_are_known_with_and_without_a_variation_selector(key: str) -> None:
    assert Matrix().controls.meant(key) is not None
    assert Matrix().controls.meant(key + "x") is None


@pytest.fixture
def store(tmp_path: Path) -> Any:
    one = Store(tmp_path / "node.db", {"mesh": MESH_SCHEMA, "turns": TURNS_SCHEMA, "rooms": BRIDGE_SCHEMA})
    yield one
    one.close()


def test_messages_are_counted_within_a_window_and_forgotten_after_it(store: Store) -> None:
    """So many of a sender in a window count; a clock that goes backwards begins a new one; a day later all is gone."""
    held = Tables(store)
    assert [held.heed("@a:x", at, 1_000, 2) for at in (0, 10, 20, 999)] == [True, True, False, False]
    assert held.heed("@b:x", 20, 1_000, 2)
    assert held.heed("@a:x", 1_000, 1_000, 2)
    assert held.heed("@a:x", 500, 1_000, 2)
    assert not held.heed("@c:x", 0, 1_000, 0)
    held.heed("@d:x", HEEDED_MS + 2_000, 1_000, 2)
    assert store.one("SELECT count(*) FROM room_heeded") == (1,)


def test_old_events_are_forgotten_and_new_ones_known(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has a bound; what falls out of it answers nobody."""
    monkeypatch.setattr(tables, "KEPT_EVENTS", 10)
    monkeypatch.setattr(tables, "PRUNE_EVERY", 5)
    held = Tables(store)
    for number in range(40):
        held.note(Known(f"$e{number}", ROOM, bytes([number]) * 16, "", None))
    assert held.event("$e0") is None
    assert held.event("$e39") == Known("$e39", ROOM, bytes([39]) * 16, "", None)
    assert store.one("SELECT count(*) FROM room_events")[0] <= 15


def test_a_room_that_moves_keeps_its_basin_and_an_ordinary_one_is_left_alone(store: Store) -> None:
    held = Tables(store)
    held.set_room("!old:x", "tea", everyone=True)
    held.set_name("!old:x", "Tea")
    held.move("!old:x", "!new:x")
    assert held.rooms() == [("!new:x", "tea", "Tea")]
    assert held.for_everyone() == [("!new:x", "tea")]
    assert missing(["ada", "bob"], [Member("ada", "out", "kicked")]) == ["bob"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Alone]:
    async with alone(tmp_path, Scripted(["Yes."]), bots=["@robot:x"]) as one:
        yield one


def notices(world: Alone) -> list[str]:
    return [body["body"] for kind, body in world.server.sent() if kind != "m.room.redaction" and _is_notice(body)]


def _is_notice(body: Any) -> bool:
    return isinstance(body, dict) and body.get("msgtype") == "m.notice"


async def test_machines_give_no_commands(world: Alone) -> None:
    """What a machine says is never the node's to do, and neither does the node answer it with a notice."""
    world.hears(said("$one", "!mesh stop", "@robot:x"), said("$two", "!mesh mute ada", msgtype="m.notice"))
    await world.idle()
    assert notices(world) == []
    assert world.bridge.tables.mutes(now_ms()) == set()


@pytest.mark.parametrize("now", ["join", "leave"])
async def test_who_was_let_in_again_is_not_put_out_by_old_news(
    world: Alone, now: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A room that is looked through again tells once more of a leaving that is over: the homeserver knows."""
    answer, user = world.server.call, world.user("ada")

    async def call(method: str, path: Any, body: Any = None, **more: Any) -> dict[str, Any]:
        if method == "GET" and tuple(path[-2:]) == ("m.room.member", user):
            return {"membership": now}
        return await answer(method, path, body, **more)

    monkeypatch.setattr(world.bridge.port._api, "call", call)  # type: ignore[attr-defined]
    world.hears(said("$kick") | {"type": "m.room.member", "state_key": user, "content": {"membership": "leave"}})
    await world.idle()
    assert world.bridge.tables.sits("ada", ROOM) == (now == "join")


async def test_whoever_is_heard_in_a_room_can_be_muted_there(world: Alone) -> None:
    """The node's own user tells what an em says that does not sit there: nobody has to hear it, either."""
    world.em("cleo")
    world.here.host(load_ems(world.ems)[0])
    world.hears(said("$one", "!mesh mute cleo"))
    await world.idle()
    world.hears(said("$two", "cleo?"))
    await world.idle()
    assert {em for em, _ in world.bridge.tables.mutes(now_ms())} == {"cleo"}
    world.hears(said("$three", "!mesh unmute cleo"), said("$four", "cleo?"))
    await world.idle()
    told = [body["body"] for kind, body in world.server.sent() if kind == "m.room.message"]
    assert told == ["cleo keeps silent for 60 minutes.", "cleo may speak.", "cleo: Yes."]


async def test_a_command_is_obeyed_once_and_says_so_once(world: Alone) -> None:
    """A mute lasts so long, and the same event again does not lengthen it; names are checked."""
    event = said("$one", "!mesh mute ADA 5")
    world.hears(event)
    await world.idle()
    world.hears(event, said("$two", "!mesh mute '; DROP TABLE rooms; --"))
    await world.idle()
    assert notices(world) == ["ada keeps silent for 5 minutes.", "Whom? Here are ada, bob."]
    assert world.bridge.tables.mutes(now_ms() + 4 * MINUTE_MS) == {("ada", "tea")}
    assert world.bridge.tables.mutes(now_ms() + 6 * MINUTE_MS) == set()
    world.hears(said("$three", "ada?"), said("$four", "bob?"))
    await world.idle()
    assert [entry.act.author for entry in recent(world.here.ground.store, "tea", 9)] == [OWNER, OWNER, "bob"]


async def test_what_is_asked_for_in_a_disputes_room_is_said_in_the_persons_name(world: Alone) -> None:
    """And is shown there by the message itself; who is no party gets a sentence, and so does whoever asks elsewhere."""
    world.hears(said("$one", "!mesh settle"))
    await world.idle()
    begun = await world.here.say("tea", "what went wrong", [])
    world.bridge.hearing.steward.party = lambda user, _, kind, text: (
        ([begun.id], {"text": f"{kind}: {text}"}) if user == OWNER else "No."
    )
    event = said("$two", "!mesh settle all   is well")
    world.hears(event, said("$three", "!mesh settle", "@eve:x"))
    await world.idle()
    world.hears(event)
    await world.idle()
    assert notices(world) == ["This room is not that of a dispute.", "Said.", "No."]
    last = recent(world.here.ground.store, "tea", 9)[1:]
    assert [(one.act.author, one.act.kind, one.act.text, one.act.refs) for one in last] == [
        ("mara", "settle", "settle: all is well", [begun.id])
    ]
    assert not any("settle: all" in str(content) for _, content in world.server.sent())


async def test_what_can_be_asked_for_without_anything_having_been_said(world: Alone) -> None:
    """Why, budget and next in a room where nothing was ever said."""
    world.hears(said("$one", "!mesh why"), said("$two", "!mesh budget"), said("$three", "!mesh next"))
    await world.idle()
    told = notices(world)
    assert told[0].startswith("Write it as a reply")
    assert told[1].startswith("A message begins with 1 hops")
    await until(lambda: len(recent(world.here.ground.store, "tea", 9)) == 2)
    assert recent(world.here.ground.store, "tea", 9)[-1].act.kind == "answer"
