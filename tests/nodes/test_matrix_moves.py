"""Rooms that move while their homeserver has a bad moment: everybody of ours arrives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bridged import until
from no_homeserver import ROOM, alone, said

from mesh.bridges.matrix.errors import MatrixRefused, MatrixUnavailable
from nodes.matrix import bridge, hearing
from nodes.matrix.tables import BOT, Member
from nodes.models.scripted import Scripted

NEW = "!new:x"
TOMBSTONE = {"type": "m.room.tombstone", "state_key": "", "content": {"replacement_room": NEW}}


async def test_who_cannot_follow_at_once_follows_later(tmp_path: Path, monkeypatch: Any) -> None:
    """The homeserver is away when the second of ours joins the new room, and lets the third not in at all."""
    monkeypatch.setattr(bridge, "AGAIN_S", (0.01, 0.01))
    monkeypatch.setattr(hearing, "AGAIN_S", (0.01, 0.01))
    tried = list[str]()
    async with alone(tmp_path, Scripted(["Here."])) as world:
        call = world.server.call

        async def answers(method: str, path: Sequence[str], body: Any = None, **more: Any) -> dict[str, Any]:
            if path[-2:] == ("m.room.create", ""):
                return {"predecessor": {"room_id": ROOM}}
            if "join" in path and (acting := more.get("acting")) and path[-1] == NEW:
                tried.append(acting.user_id)
                if acting.user_id == world.user("ada") and tried.count(acting.user_id) == 1:
                    raise MatrixUnavailable("the homeserver is not there")
                if acting.user_id == world.user("bob"):
                    raise MatrixRefused("the homeserver answered 403", "M_FORBIDDEN", 403)
            return await call(method, path, body, **more)

        world.bridge.port._api.call = answers
        world.hears(said("$grave") | TOMBSTONE)
        await until(lambda: tried.count(world.user("ada")) > 1 and world.bridge.port.inbox.waiting() == 0)
        await world.idle()
        world.hears(said("$one", "ada?") | {"room_id": NEW})
        await until(lambda: any(body.get("body") == "Here." for _, body in world.server.sent()))
        assert world.bridge.tables.joined(NEW) == [BOT, "ada"]
        assert world.bridge.tables.rooms() == [(NEW, "tea", "")]


@pytest.mark.parametrize("is_away", [False, True])
async def test_whoever_is_let_in_first_brings_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_away: bool
) -> None:
    """The new room is for those who are invited; the node's own user sits in neither. The homeserver may be away."""
    monkeypatch.setattr(bridge, "AGAIN_S", (0.01, 0.01))
    monkeypatch.setattr(hearing, "AGAIN_S", (0.01, 0.01))
    invited, failures = list[str](), [MatrixUnavailable("the homeserver is not there")] if is_away else []
    async with alone(tmp_path, Scripted(["Here."])) as world:
        call, tables = world.server.call, world.bridge.tables
        bob = world.user("bob")
        with world.here.ground.store.transaction():
            tables.set_member(ROOM, Member(BOT, "out"))

        async def answers(method: str, path: Sequence[str], body: Any = None, **more: Any) -> dict[str, Any]:
            acting = more["acting"].user_id if more.get("acting") else None
            if path[-2:] == ("m.room.create", ""):
                return {"predecessor": {"room_id": ROOM}}
            if path[-2:] == ("m.room.member", bob):
                return {"membership": "join"}
            if "join" in path and path[-1] == NEW and acting not in invited:
                raise MatrixRefused("the homeserver answered 403", "M_FORBIDDEN", 403)
            if "invite" in path:
                if acting != bob:
                    raise MatrixRefused("the homeserver answered 403", "M_FORBIDDEN", 403)
                if failures:
                    raise failures.pop()
                invited.append(body["user_id"])
            return await call(method, path, body, **more)

        world.bridge.port._api.call = answers
        world.hears(said("$grave") | TOMBSTONE)
        await world.idle()
        assert tables.joined(ROOM) == ["ada", "bob"]
        invited.append(bob)
        invitation = {"type": "m.room.member", "state_key": bob, "content": {"membership": "invite"}}
        world.hears(said("$invite", sender="@eve:x") | invitation | {"room_id": NEW})
        await until(lambda: world.bridge.port.inbox.waiting() == 0)
        await until(lambda: len(invited) > 1)
        await world.idle()
        assert tables.joined(NEW) == ["ada", "bob"]
        world.hears(said("$again", sender="@eve:x") | invitation | {"room_id": NEW})
        await world.idle()
        assert not [path for _, path, _ in world.server.calls if "leave" in path]
        assert invited == [bob, world.user("ada")]
