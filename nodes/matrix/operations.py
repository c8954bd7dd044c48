"""What the owner's commands may ask of the bridge in a running node."""

from typing import Any

import msgspec

from mesh.bridges.matrix.port import MatrixPort
from nodes.control import Nothing, Operations
from nodes.matrix.bridge import Bridge
from nodes.matrix.tables import BOT


class Join(msgspec.Struct, forbid_unknown_fields=True):
    """Have a room (id or alias) stand for a basin. `ems`: who is to sit there; None: whoever listens in the basin."""

    room: str
    basin: str
    ems: list[str] | None = None


class Leave(msgspec.Struct, forbid_unknown_fields=True):
    """Have an em leave a room; None: everybody."""

    room: str
    em: str | None = None


class Invite(msgspec.Struct, forbid_unknown_fields=True):
    """Have an em come to a room (id or alias)."""

    em: str
    room: str


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """Something with a name."""

    name: str


def operations(bridge: Bridge, way: str, homeserver: str) -> Operations:
    """The operations by their names. They raise MeshError, ProtocolError, ValueError."""
    port: MatrixPort = bridge.port

    async def join(request: Join) -> dict[str, Any]:
        room, joined, problems = await bridge.lobby.join(request.room, request.basin, request.ems)
        return {"room": room, "basin": request.basin, "joined": joined, "problems": problems}

    async def leave(request: Leave) -> dict[str, Any]:
        room = await bridge.lobby.known(request.room)
        return {"room": room, "left": [em for em in await bridge.lobby.leave(room, request.em) if em != BOT]}

    async def invite(request: Invite) -> dict[str, Any]:
        room, basin = await bridge.lobby.invite(request.em, request.room)
        return {"room": room, "basin": basin, "user": port.user_id(request.em)}

    async def rooms(_: Nothing) -> dict[str, Any]:
        return {"rooms": bridge.lobby.status()}

    async def space(request: Named) -> dict[str, Any]:
        room, number = await bridge.lobby.space.make(request.name)
        return {"room": room, "rooms": number}

    async def status(_: Nothing) -> dict[str, Any]:
        return {
            "way": way,
            "user": port.user_id(BOT),
            "homeserver": homeserver,
            "ready": bridge.ready.is_set() and port.ready.is_set() and port.reached,
            "waiting_in": port.inbox.waiting(),
            "waiting_out": port.outbox.waiting(),
            "problems": list(bridge.problems),
            "problems_ms": list(bridge.problems_ms),
        }

    return {
        "matrix_join": (Join, join),
        "matrix_leave": (Leave, leave),
        "matrix_invite": (Invite, invite),
        "matrix_rooms": (Nothing, rooms),
        "matrix_space": (Named, space),
        "matrix_status": (Nothing, status),
    }
