"""Events of any shape, through the whole bridge: nothing is an error, and nothing is left lying."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from no_homeserver import OWNER, ROOM, alone

from mesh.bridges.matrix.content import BOUNCE, MARK
from mesh.clock import now_ms
from mesh.entries import recent
from nodes.models.scripted import Scripted
from protocol.acts import check_act

TEXT = st.text(max_size=20) | st.sampled_from(
    ["ada", "hello ada", "!mesh help", "!mesh next ada", "!mesh mute ada ٣", "!mesh why", "!mesh \x1b[2J", "\ud800 ada"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
IDS = st.sampled_from([f"$e{number}" for number in range(2, 20)])
USERS = st.sampled_from([OWNER, "@eve:x", "ada", "bob", "_bot", "@\x1b[2J:x", "nobody"])
HEX = st.sampled_from(["ab" * 16, "cd" * 16, "xy" * 16, "AB" * 16])


def some(**right: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """An object with any of these members, each as it should be or anything else."""
    return st.fixed_dictionaries({}, optional={name: value | JSON for name, value in right.items()})


RELATION = some(
    rel_type=st.sampled_from(["m.replace", "m.thread", "m.annotation", "x"]),
    event_id=IDS,
    key=st.sampled_from(["👍", "🛑", "🔁", "🙈", "▶️", ""]),
    is_falling_back=st.booleans(),
    **{"m.in_reply_to": some(event_id=IDS)},
)
TOLD = {
    "msgtype": st.sampled_from(["m.text", "m.notice", "m.emote", "m.image", "m.location"]),
    "body": TEXT,
    "format": st.just("org.matrix.custom.html"),
    "formatted_body": TEXT | st.sampled_from(["<mx-reply>x", "<b>ada</b>", "<" * 50, "<a href='javascript:x'>ada</a>"]),
    "m.mentions": some(user_ids=st.lists(USERS | JSON, max_size=3), room=st.booleans()),
    "url": st.just("mxc://x/abc"),
    "info": some(mimetype=st.sampled_from(["image/png", "image/\x00"]), size=st.integers()),
    "filename": TEXT,
}
CONTENT = some(
    **TOLD,
    **{
        "m.relates_to": RELATION,
        "m.new_content": some(**TOLD),
        MARK: some(v=st.just(1), act=HEX, root=HEX, hops=st.integers(0, 9), node=TEXT, writing=st.booleans()),
        BOUNCE: st.integers(-1, 3),
    },
    membership=st.sampled_from(["invite", "join", "leave", "ban", "knock"]),
    displayname=TEXT,
    reason=TEXT,
    replacement_room=st.sampled_from([ROOM, "!other:x"]),
    name=TEXT,
    redacts=IDS,
    algorithm=st.just("m.megolm.v1.aes-sha2"),
)
WHOLE = st.fixed_dictionaries({"msgtype": TOLD["msgtype"], "body": TEXT})
KINDS = [
    "m.room.message",
    "m.reaction",
    "m.room.redaction",
    "m.room.encrypted",
    "m.room.member",
    "m.room.tombstone",
    "m.room.name",
    "m.room.encryption",
    "x",
]
EVENT = st.fixed_dictionaries(
    {
        "event_id": IDS,
        "room_id": st.sampled_from([ROOM, ROOM, ROOM, "!other:x"]),
        "sender": USERS,
        "type": st.sampled_from(KINDS),
        "content": st.builds(lambda whole, more: whole | more, st.just({}) | WHOLE, CONTENT),
    },
    optional={
        "origin_server_ts": st.just(0) | st.integers() | JSON,
        "state_key": st.just("") | USERS | JSON,
        "redacts": IDS | JSON,
        "unsigned": some(prev_content=some(membership=st.just("join"))),
    },
)


PAST = st.sampled_from(["$e0", "$e1", "$e2", "$e3", "$ours1", "$ours2", "$ours3"])
LIKELY: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "m.room.message": WHOLE
    | st.builds(
        lambda whole, event: (
            whole | {"m.new_content": whole, "m.relates_to": {"rel_type": "m.replace", "event_id": event}}
        ),
        WHOLE,
        PAST,
    )
    | st.builds(lambda whole, event: whole | {"m.relates_to": {"m.in_reply_to": {"event_id": event}}}, WHOLE, PAST),
    "m.reaction": st.builds(
        lambda event, key: {"m.relates_to": {"rel_type": "m.annotation", "event_id": event, "key": key}},
        PAST,
        st.sampled_from(["👍", "🛑", "🔁", "🙈", "▶️"]),
    ),
    "m.room.redaction": st.builds(lambda event: {"redacts": event}, PAST),
    "m.room.encrypted": st.just({"algorithm": "m.megolm.v1.aes-sha2"}),
    "m.room.member": st.builds(
        lambda after: {"membership": after}, st.sampled_from(["invite", "leave", "ban", "join", "knock"])
    ),
}


@st.composite
def plausible(draw: st.DrawFn) -> dict[str, Any]:
    """An event as people make them, with one member of its content as it should never be, now and then."""
    kind = draw(st.sampled_from([*LIKELY, "m.room.message", "m.room.message", "m.reaction"]))
    content = dict(draw(LIKELY[kind]))
    if content and draw(st.integers(0, 3)) == 0:
        content[draw(st.sampled_from(sorted(content)))] = draw(JSON)
    event = {
        "event_id": draw(IDS),
        "room_id": ROOM,
        "sender": draw(st.sampled_from([OWNER, OWNER, "@eve:x"])),
        "type": kind,
        "content": content,
    }
    return event | ({"state_key": draw(st.sampled_from(["ada", "bob", "_bot"]))} if kind == "m.room.member" else {})


async def play(path: Path, events: list[dict[str, Any]]) -> None:
    async with alone(path, Scripted(["Yes."])) as world:
        users = {em: world.user(em) for em in ("ada", "bob", "_bot")}
        now = now_ms()
        world.hears(*({**SANE, "event_id": f"$e{n}", "sender": OWNER, "origin_server_ts": now} for n in range(2)))
        await world.idle()
        world.hears(*(named({"origin_server_ts": now} | event, users) for event in events))
        await world.idle()
        assert not [problem for problem in world.bridge.problems if "a mistake in the node" in problem]
        for entry in recent(world.here.ground.store, "tea", 100):
            check_act(entry.act)
        world.hears({**SANE, "origin_server_ts": now_ms()})
        await world.idle()
        authors = [entry.act.author for entry in recent(world.here.ground.store, "tea", 100)]
        assert "@somebody:x" in authors


SANE: Mapping[str, Any] = {
    "event_id": "$last",
    "room_id": ROOM,
    "sender": "@somebody:x",
    "type": "m.room.message",
    "content": {"msgtype": "m.text", "body": "still there, ada?"},
}


def named(value: Any, users: Mapping[str, str]) -> Any:
    """The same with our users' names in place of the short ones."""
    if isinstance(value, dict):
        return {key: value[key] if key == "body" else named(value[key], users) for key in value}
    if isinstance(value, list):
        return [named(one, users) for one in value]
    return users.get(value, value) if isinstance(value, str) else value


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(plausible() | EVENT, max_size=20, unique_by=lambda event: event["event_id"]))
def test_no_event_is_an_error_and_none_is_left_lying(events: list[dict[str, Any]]) -> None:
    """Whatever a homeserver pushes is handled to its end, and the room goes on."""
    with TemporaryDirectory() as folder:
        asyncio.run(play(Path(folder), events))
