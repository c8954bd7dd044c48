"""Rooms where peers are met, with nobody at the other end: entering them, leaving them, and what is told about them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bridged import until
from no_homeserver import OWNER, alone, said

from mesh.bridges.matrix.errors import MatrixRefused
from mesh.bridges.matrix.port import ENCRYPTION
from nodes.errors import NodeError
from nodes.matrix import hearing, seats
from nodes.matrix.doctor import check_rooms
from nodes.matrix.tables import BOT
from nodes.models.scripted import Scripted

LINKS = "!links:x"
NEW = "!new:x"
EARLY = MatrixRefused("the homeserver answered 403", "M_FORBIDDEN", 403)
UNSETTLED = MatrixRefused("the homeserver answered 404", "M_UNKNOWN", 404)


class Moody:
    """A homeserver that refuses the first requests to join, and has these states in its rooms."""

    def __init__(self, world: Any, refusals: Sequence[MatrixRefused] = (), **states: dict[str, Any]) -> None:
        self._refusals: Iterator[MatrixRefused] = iter(refusals)
        self._states, self._call, self.joins = states, world.server.call, 0
        world.bridge.port._api.call = self

    async def __call__(self, method: str, path: Sequence[str], body: Any = None, **more: Any) -> dict[str, Any]:
        if method == "GET" and len(path) > 5 and (found := self._states.get(path[5].replace(".", "_"))):
            return found
        if "join" in path:
            self.joins += 1
            if refusal := next(self._refusals, None):
                raise refusal
        return await self._call(method, path, body, **more)


@pytest.mark.parametrize("refusals", [[EARLY, EARLY], [UNSETTLED, UNSETTLED], [UNSETTLED, EARLY]])
async def test_an_invitation_that_does_not_count_yet_is_taken_a_moment_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: list[MatrixRefused]
) -> None:
    """Another server keeps its invitation after it sent it; ours may not know a room yet that it has just come to."""
    monkeypatch.setattr(seats, "EARLY_S", (0.01, 0.01))
    monkeypatch.setattr(hearing, "AGAIN_S", (0.01, 0.01))
    async with alone(tmp_path, Scripted([])) as world:
        server = Moody(world, refusals)
        invitation = {"type": "m.room.member", "state_key": world.user("ada"), "content": {"membership": "invite"}}
        world.hears(said("$come") | invitation | {"room_id": NEW})
        await until(lambda: world.bridge.tables.sits("ada", NEW))
        assert server.joins == 1 + len(refusals)


async def test_a_room_of_links_needs_no_basin_moves_with_its_links_and_can_be_left(tmp_path: Path) -> None:
    """It is entered, told apart from rooms of basins, followed when it is upgraded, and forgotten when it is left."""
    moves = list[tuple[str, str]]()
    async with alone(tmp_path, Scripted([])) as world:
        ways, tables = world.bridge.ways, world.bridge.tables
        ways.has_moved = lambda old, new: moves.append((old, new))
        assert await ways.enter(LINKS) == LINKS
        ways.way(LINKS, b"s" * 32, calls=True)
        (status,) = [one for one in world.bridge.lobby.status() if one["room"] == LINKS]
        assert (status["basin"], status["links"], tables.basin_of(LINKS)) == ("", True, None)
        Moody(world, m_room_create={"predecessor": {"room_id": LINKS}})
        tombstone = {"type": "m.room.tombstone", "state_key": "", "content": {"replacement_room": NEW}}
        world.hears(said("$grave", sender="@eve:y") | tombstone | {"room_id": LINKS})
        await until(lambda: moves == [(LINKS, NEW)])
        assert (tables.joined(LINKS), tables.joined(NEW), ways.rooms()) == ([], [BOT], [])
        room = await world.bridge.lobby.known(NEW)
        assert await world.bridge.lobby.leave(room, None) == [BOT]
        assert NEW not in tables.seated()


async def test_a_room_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """Nobody has invited the node, or the room is encrypted: then it does not stay there."""
    async with alone(tmp_path, Scripted([])) as world:
        Moody(world, [EARLY])
        with pytest.raises(NodeError, match=f"invite {world.user(BOT)} to the room in your client"):
            await world.bridge.ways.enter(LINKS)
        Moody(world, **{ENCRYPTION.replace(".", "_"): {"algorithm": "m.megolm.v1.aes-sha2"}})
        with pytest.raises(NodeError, match="is encrypted, and links need a room that is not"):
            await world.bridge.ways.enter(LINKS)
        assert ("POST", "leave") in [(method, path[-1]) for method, path, _ in world.server.calls]
        assert LINKS not in world.bridge.tables.seated()


def test_what_is_told_of_rooms_of_links() -> None:
    """Where peers are met no em need sit; encrypted, it is of no use; whoever put the node out is named."""
    bot = {"em": BOT, "user": "@_mesh__bot:x", "state": "joined", "reason": ""}
    out = bot | {"state": "out", "reason": f"kicked by {OWNER}"}
    rooms = [
        {"room": f"!{number}", "name": "", "basin": "", "encrypted": encrypted, "links": True, "members": [who]}
        for number, (encrypted, who) in enumerate([(False, bot), (True, bot), (False, out)])
    ]
    checks = check_rooms(rooms)
    assert [check.state for check in checks] == ["ok", "warn", "ok", "warn"]
    assert all("peers are met there" in check.told for check in checks[:3])
    assert "without encryption: mesh peer room" in checks[1].told
    assert checks[3].told.startswith("the node is not in !2: kicked by @mara:x")
