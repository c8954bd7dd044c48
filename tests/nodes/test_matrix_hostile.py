"""A hostile room: what its people, machines and homeservers may try against a node, without a homeserver."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from bridged import Pause, Slow, until
from no_homeserver import ROOM, Alone, alone, said

from mesh.bridges.matrix import rows
from mesh.bridges.matrix.content import MARK
from mesh.bridges.matrix.errors import MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbound, Inbox, parse_event
from mesh.bridges.matrix.port import ENCRYPTION
from mesh.bridges.matrix.schema import MATRIX_SCHEMA
from mesh.entries import recent
from mesh.store import Store
from nodes.errors import ModelRefused, NodeError
from nodes.matrix import hearing, homeserver, lanes, pictures, tables
from nodes.matrix.tables import BOT, Member
from nodes.models.answers import SAYS
from nodes.models.scripted import Scripted

PLAIN = "!plain:x"
STORY = [step for number in range(9) for step in (f"secret{number} ", Pause(0.1))]


def sit(world: Alone, room: str, basin: str = "tea") -> None:
    """Have the node and `ada` sit in one more room."""
    with world.here.ground.store.transaction():
        world.bridge.tables.set_room(room, basin, everyone=False)
        for em in (BOT, "ada"):
            world.bridge.tables.set_member(room, Member(em, "joined"))


async def sealed(*_: Any) -> dict[str, Any]:
    return {"ciphertext": "…"}


async def sealed_never(*_: Any) -> bool:
    return False


def texts(world: Alone) -> list[str]:
    return [entry.act.text for entry in recent(world.here.ground.store, "tea", 99)]


def places(world: Alone) -> set[str]:
    """The rooms where something was sent."""
    return {path[3] for _, path, _ in world.server.calls if "send" in path}


async def test_words_so_far_are_shown_where_the_whole_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one room of a basin becomes encrypted, the other ones see nothing more, also not while an em writes."""
    async with alone(tmp_path, Slow([*STORY, "end."])) as world:
        sit(world, PLAIN)
        monkeypatch.setattr(world.bridge.port.crypto, "seal", sealed)
        world.bridge.port.inbox.note_encrypted([ROOM])
        await world.here.say("tea", "hello ada", [])
        await until(lambda: any(text.endswith("end.") for text in texts(world)))
        await world.idle()
        assert places(world) == {ROOM}


async def test_words_so_far_are_taken_back_where_the_whole_is_not_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A room becomes encrypted while an em writes: what another room has seen of it does not stay there."""
    go_on = asyncio.Event()
    async with alone(tmp_path, Slow([*STORY, go_on, "end."])) as world:
        sit(world, PLAIN)
        monkeypatch.setattr(world.bridge.port.crypto, "seal", sealed)
        await world.here.say("tea", "hello ada", [])
        await until(lambda: sum("send" in path and PLAIN in path for _, path, _ in world.server.calls) > 1)
        world.bridge.port.inbox.note_encrypted([ROOM])
        go_on.set()
        await until(lambda: any(text.endswith("end.") for text in texts(world)))
        await world.idle()
        taken_back = [path[3] for _, path, _ in world.server.calls if "redact" in path]
        assert set(taken_back) == {PLAIN}
        assert "end." not in str([body for _, path, body in world.server.calls if PLAIN in path])
        assert world.here.ground.store.rows("SELECT * FROM room_drafts") == []


@pytest.mark.parametrize(("old", "new", "follows"), [(True, False, False), (True, True, True), (False, False, True)])
async def test_an_encrypted_room_does_not_go_on_in_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, old: bool, new: bool, follows: bool
) -> None:
    """Whoever may end a room leads nobody into one that is not encrypted: a person is told, and nothing more said."""

    async def state(_speaker: str, _room: str, kind: str, _key: str = "") -> dict[str, Any] | None:
        held = {"m.room.create": {"predecessor": {"room_id": ROOM}}} | ({ENCRYPTION: {"algorithm": "m"}} if new else {})
        return held.get(kind)

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        monkeypatch.setattr(world.bridge.port, "state", state)
        monkeypatch.setattr(world.bridge.port.crypto, "equip_one", sealed)
        if old:
            world.bridge.port.inbox.note_encrypted([ROOM])
        tombstone = {"type": "m.room.tombstone", "state_key": "", "content": {"replacement_room": "!new:x"}}
        world.hears(said("$end") | tombstone)
        await world.idle()
        assert (world.bridge.tables.basin_of("!new:x") == "tea") is follows
        assert (world.bridge.tables.basin_of(ROOM) is None) is follows
        assert world.bridge.port.inbox.is_encrypted("!new:x") is new
        left = [path[3] for _, path, _ in world.server.calls if path[-1] == "leave"]
        assert left == ([] if follows else ["!new:x"])
        assert any("not encrypted" in problem for problem in world.bridge.problems) is not follows


TOMBSTONE = {"type": "m.room.tombstone", "state_key": "", "content": {"replacement_room": "!new:evil"}}


def flood(number: int) -> list[dict[str, Any]]:
    return [said(f"$flood{n}", "more", "@eve:evil", odd=float("nan")) for n in range(number)]


async def test_a_room_that_waits_for_ever_keeps_no_other_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is said in a room that a hanging server holds up: others are heard, and then it is, all in order."""
    monkeypatch.setattr(lanes, "MAX_LANES", 40)
    answers = asyncio.Event()

    async def join(*_: Any) -> str:
        await answers.wait()
        raise MatrixRefused("there is no such room", "M_NOT_FOUND", 404)

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        sit(world, PLAIN, "lounge")
        monkeypatch.setattr(world.bridge.port, "join", join)
        elsewhere = said("$hello", f"as in {ROOM}", odd=ROOM) | {"room_id": PLAIN}
        world.hears(said("$end") | TOMBSTONE, *flood(100), elsewhere)
        await until(lambda: recent(world.here.ground.store, "lounge", 9))
        assert texts(world) == []
        world.hears(*({**one, "event_id": f"$again{n}"} for n, one in enumerate(flood(5))))
        answers.set()
        await world.idle()
        known = world.here.ground.store.rows("SELECT event_id FROM room_events WHERE room = ? ORDER BY n", (ROOM,))
        assert [name for (name,) in known] == [f"$flood{n}" for n in range(100)] + [f"$again{n}" for n in range(5)]


async def test_what_a_held_up_room_says_is_read_past_with_pauses(tmp_path: Path) -> None:
    """Up to twenty thousand long events may wait; the node does other things between two of them."""
    turns, most = 0, 200

    async def waits(_event: Inbound) -> None:
        await asyncio.Event().wait()

    with closing(Store(tmp_path / "node.db", {"matrix": MATRIX_SCHEMA})) as store:
        inbox = Inbox(store, lambda: 0)
        inbox.take([event for one in flood(most) if (event := parse_event(one, "account"))])
        async with asyncio.TaskGroup() as group:
            held = group.create_task(lanes.Lanes(inbox, waits).run(group))
            while store.one("SELECT max(n) FROM matrix_inbox")[0] > inbox._given:
                turns += 1
                await asyncio.sleep(0)
            held.cancel()
            for task in asyncio.all_tasks():
                if task.get_name() == f"room {ROOM}":
                    task.cancel()
    assert turns > most / 2


async def test_a_server_that_never_answers_does_not_silence_the_room_that_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our homeserver is there, and the one that a room is said to have moved to is not: in the end it is left alone."""
    monkeypatch.setattr(hearing, "AGAIN_S", (0.0, 0.0))
    asked = list[str]()

    async def join(_em: str, room: str, _via: str) -> str:
        asked.append(room)
        raise MatrixUnavailable("the homeserver answered 502 M_UNKNOWN")

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        monkeypatch.setattr(world.bridge.port, "join", join)
        world.hears(said("$end") | TOMBSTONE, said("$hello", "hello"))
        await until(lambda: len(asked) > 2 * hearing.TRIES)
        assert texts(world) == []
        world.bridge.port.reached = True
        await world.idle()
        assert texts(world) == ["hello"]
        assert any("left alone" in problem for problem in world.bridge.problems)


def picture(event_id: str, server: str) -> dict[str, Any]:
    return said(event_id, "x.png", msgtype="m.image", url=f"mxc://{server}/abc", info={"mimetype": "image/png"})


async def test_servers_that_hang_under_ever_new_names_hold_a_room_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One picture may keep a room waiting; those after it are left out for a while, wherever they are said to lie."""
    monkeypatch.setattr(pictures, "FETCH_S", 0.05)
    asked = list[str]()

    async def download(mxc: str, _limit: int) -> tuple[bytes, str]:
        asked.append(mxc)
        await asyncio.Event().wait()
        return b"", ""

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        monkeypatch.setattr(world.bridge.port, "download", download)
        world.hears(*(picture(f"$p{n}", f"{n}.evil") for n in range(30)), said("$hello", "hello"))
        await until(lambda: "hello" in texts(world))
        assert asked == ["mxc://0.evil/abc"]


async def test_a_flood_of_pictures_is_read_and_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many of a room are fetched in ten minutes, and then those of other rooms still."""
    monkeypatch.setattr(pictures, "PICTURES", 3)
    asked = list[str]()

    async def download(mxc: str, _limit: int) -> tuple[bytes, str]:
        asked.append(mxc)
        raise MatrixRefused("there is none", "M_NOT_FOUND", 404)

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        sit(world, PLAIN, "lounge")
        monkeypatch.setattr(world.bridge.port, "download", download)
        world.hears(*(picture(f"$p{n}", "evil") for n in range(9)))
        world.hears(picture("$other", "x") | {"room_id": PLAIN})
        await until(lambda: len(texts(world)) == 9 and recent(world.here.ground.store, "lounge", 9))
        assert sorted(asked) == ["mxc://evil/abc"] * 3 + ["mxc://x/abc"]


async def test_commands_without_end_are_answered_so_often_and_obeyed_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has the node write notices faster than a room can take them; a stop still stops."""
    monkeypatch.setattr(hearing, "ANSWERS", 3)
    async with alone(tmp_path, Scripted(["Yes."])) as world:
        world.hears(*(said(f"$h{n}", "!mesh help", f"@eve{n}:evil") for n in range(9)), said("$stop", "!mesh stop"))
        await world.idle()
        notices = [body for _, body in world.server.sent() if body["msgtype"] == "m.notice"]
        assert len(notices) == 3
        assert [entry.act.kind for entry in recent(world.here.ground.store, "tea", 9)] == ["cancel"]


async def test_a_room_whose_outbox_is_full_is_obeyed_and_silences_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be sent in one room waits to a limit of its own; the basin's other rooms are shown everything."""
    sent, go_on = list[str](), asyncio.Event()

    async def call(_method: str, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        if ROOM in path:
            await go_on.wait()
        if "send" in path:
            sent.append(path[3])
        return {"event_id": f"${len(sent)}"}

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        sit(world, "!other:x")
        monkeypatch.setattr(rows, "MAX_LANE", 5)
        monkeypatch.setattr(world.bridge.port._api, "call", call)
        monkeypatch.setattr(world.bridge.port, "_is_encrypted", sealed_never)
        for number in range(9):
            await world.here.say("tea", f"number {number}", [])
        await until(lambda: len(sent) == 9)
        assert set(sent) == {"!other:x"}
        assert world.bridge.port.outbox.waiting() == 5
        assert any("cannot be shown" in problem for problem in world.bridge.problems)
        world.hears(said("$stop", "!mesh stop"))
        await until(lambda: not world.bridge.port.inbox.waiting())
        go_on.set()
        await world.idle()


def marked(event_id: str, sender: str, body: str, *, writing: bool = False, edits: str = "") -> dict[str, Any]:
    """What an em of another node says, as words so far, or as the whole of what `edits` began."""
    value = {"v": 1, "act": "ab" * 16, "root": "cd" * 16, "hops": 1, "node": "else", "writing": writing}
    whole = {"msgtype": "m.text", "body": body}
    relation = {"rel_type": "m.replace", "event_id": edits}
    more = {"m.new_content": whole, "m.relates_to": relation} if edits else {}
    return said(event_id, body, sender, **{MARK: value}, **more)


async def test_nobody_ends_or_says_first_what_another_nodes_em_is_writing(tmp_path: Path) -> None:
    """Words so far show an act's id to the whole room: only who began it brings the whole, whoever tries before."""
    async with alone(tmp_path, Scripted(["Yes."])) as world:
        world.hears(marked("$draft", "@em:b", "I th", writing=True))
        world.hears(marked("$forged", "@eve:evil", "I am a fool", edits="$draft"))
        world.hears(marked("$same", "@eve:evil", "I am a fool", writing=True))
        world.hears(marked("$first", "@eve:evil", "I am a fool"))
        world.hears(marked("$ended", "@eve:evil", "I am a fool", edits="$same"))
        world.hears(marked("$end", "@em:b", "I think", edits="$draft"))
        await world.idle()
        told = [(entry.act.author, entry.act.text) for entry in recent(world.here.ground.store, "tea", 9)]
        assert told == [("@em:b", "I think")]


async def test_messages_that_are_begun_and_never_ended_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "KEPT_BEGUN", 5)
    async with alone(tmp_path, Scripted(["Yes."])) as world:
        world.hears(*(marked(f"$draft{n}", "@eve:evil", "I", writing=True) for n in range(50)))
        await world.idle()
        assert world.here.ground.store.one("SELECT count(*), min(n) FROM room_begun") == (5, 46)


async def test_why_tells_a_room_nothing_that_a_vendor_or_a_peer_wrote(tmp_path: Path) -> None:
    """What a vendor says of a key is for the node's person; and no reason makes a link or a heading of a notice."""
    said_by_vendor = f'the vendor v does not [accept](https://evil) the *key*{SAYS}no account for sk-proj-1234"'
    async with alone(tmp_path, Scripted([ModelRefused(said_by_vendor)])) as world:
        world.hears(said("$one", "hello ada"))
        await world.idle()
        relation = {"m.relates_to": {"m.in_reply_to": {"event_id": "$one"}}}
        world.hears(said("$why", "!mesh why", **relation))
        await world.idle()
        (notice,) = [body for kind, body in world.server.sent() if kind == "m.room.message"]
        assert "does not (accept)(https://evil) the key." in notice["body"]
        assert "sk-proj" not in str(notice)
        assert "<a " not in notice["formatted_body"]
        assert "sk-proj" in world.here.ground.store.one("SELECT outcome FROM turns")[0]


async def test_a_crowd_that_comes_and_goes_does_not_have_its_list_fetched_each_time(tmp_path: Path) -> None:
    """A public room may have a hundred thousand people: who is there is asked for when few are left, and not before."""
    everybody = [f"@user{number}:x" for number in range(30)]

    def moves(event_id: str, user: str, after: str, before: str) -> dict[str, Any]:
        changed = {"type": "m.room.member", "state_key": user, "content": {"membership": after}}
        return said(event_id, sender=user) | changed | {"unsigned": {"prev_content": {"membership": before}}}

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        world.server.members = list(everybody)
        with world.here.ground.store.transaction():
            world.bridge.tables.set_member(ROOM, Member("bob", "out"))
        world.here.host()
        for turn in range(9):
            world.hears(said(f"$say{turn}", "hm", "@user0:x"))
            world.hears(moves(f"$go{turn}", "@eve:evil", "leave", "join"))
            world.hears(moves(f"$come{turn}", "@eve:evil", "join", "leave"))
        await world.idle()
        assert fetched(world) == 1
        for number, user in enumerate(everybody[1:]):
            world.server.members.remove(user)
            world.hears(moves(f"$left{number}", user, "leave", "join"))
        world.hears(said("$alone", "and you?", "@user0:x"))
        await world.idle()
        assert fetched(world) == 2
        assert texts(world)[-1] == "Yes."


def fetched(world: Alone) -> int:
    return sum(path[-1] == "joined_members" for _, path, _ in world.server.calls)


async def test_a_room_has_the_name_that_its_state_says(tmp_path: Path) -> None:
    """Whoever may only speak there cannot have the node's person take it for another."""
    named = {"type": "m.room.name", "content": {"name": "the other one"}}
    async with alone(tmp_path, Scripted(["Yes."])) as world:
        world.hears(said("$1") | named | {"state_key": "", "content": {"name": "lounge"}})
        world.hears(said("$2", sender="@eve:evil") | named, said("$3") | named | {"state_key": "x"})
        await world.idle()
        assert [name for _, _, name in world.bridge.tables.rooms()] == ["lounge"]


async def test_a_room_that_moves_without_end_leads_to_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the last place that it named is remembered; an invitation to an earlier one is like any other."""

    async def join(*_: Any) -> str:
        raise MatrixRefused("not invited", "M_FORBIDDEN", 403)

    async with alone(tmp_path, Scripted(["Yes."])) as world:
        monkeypatch.setattr(world.bridge.port, "join", join)
        ends = [said(f"$end{n}") | TOMBSTONE | {"content": {"replacement_room": f"!new{n}:evil"}} for n in range(9)]
        world.hears(*ends)
        await world.idle()
        assert world.here.ground.store.rows("SELECT new, old FROM room_moves") == [("!new8:evil", ROOM)]


async def test_invitations_that_are_declined_leave_nothing_behind(tmp_path: Path) -> None:
    """Strangers may invite into any number of encrypted rooms; of a room where we sit, nothing is forgotten."""
    async with alone(tmp_path, Scripted(["Yes."])) as world:
        inbox, invited = world.bridge.port.inbox, {"content": {"membership": "invite"}, "type": "m.room.member"}
        invited["state_key"] = world.user("ada")
        for room in (ROOM, "!1:evil", "!2:evil"):
            inbox.note_encrypted([room])
            world.hears(said(f"$invite{room}", sender="@eve:evil") | invited | {"room_id": room})
        await world.idle()
        assert [path[3] for _, path, _ in world.server.calls if path[-1] == "leave"] == [ROOM, "!1:evil", "!2:evil"]
        assert [inbox.is_encrypted(room) for room in (ROOM, "!1:evil", "!2:evil")] == [True, False, False]


@pytest.mark.parametrize("told", ["https://[", "https://x:port", "https://[::1", "HTTPS://@x", "https://\x1b[2J"])
async def test_a_server_that_names_no_address_gives_one_line(told: str) -> None:
    """Its `.well-known` file may say anything; a person reads one sentence of it."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"m.homeserver": {"base_url": told}})

    app = web.Application()
    app.router.add_get("/.well-known/matrix/client", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(NodeError, match=r"is no address of a server|has more than an address") as raised:
            await homeserver.find(f"127.0.0.1:{runner.addresses[0][1]}", "http")
    finally:
        await runner.cleanup()
    assert str(raised.value).isprintable()
