"""A node with its bridge to Matrix, and nobody at the other end: events are handed in, requests are written down."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bridged import Bridged, until
from homeserver import Synapse
from matrix_rig import new_way

from mesh.bridges.matrix.appservice import AppService
from mesh.bridges.matrix.errors import MatrixError, MatrixRefused
from mesh.bridges.matrix.inbox import parse_event
from mesh.bridges.matrix.port import MatrixPort
from mesh.bus.memory import MemoryBroker
from mesh.clock import now_ms
from nodes.matrix.bridge import Bridge
from nodes.matrix.tables import BOT, Member, Tables
from nodes.models.base import Model
from nodes.node import Node

ROOM = "!room:x"
OWNER = "@mara:x"


class NoServer:
    """Stands for the client to a homeserver. `members` are in every room; `refuses` are errors by a path's part.

    What is sent gets the ids `$ours1`, `$ours2`, …
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...], Any]] = []
        self.members = [OWNER]
        self._sent = 0
        self.refuses: dict[str, MatrixError] = {}

    async def call(self, method: str, path: Sequence[str], body: Any = None, **_: Any) -> dict[str, Any]:
        self.calls.append((method, tuple(path), body))
        for part in path:
            if part in self.refuses:
                raise self.refuses[part]
        if path[-1] == "joined_members":
            return {"joined": {user: {} for user in self.members}}
        if method == "GET" and "state" in path:
            raise MatrixRefused("there is none", "M_NOT_FOUND", 404)
        self._sent += "send" in path
        return {"room_id": path[-1], "event_id": f"$ours{self._sent}", "duration_ms": 1}

    async def fetch(self, *_: Any, **__: Any) -> tuple[bytes, str]:
        raise MatrixRefused("there is none", "M_NOT_FOUND", 404)

    def sent(self) -> list[tuple[str, Any]]:
        """What was sent into rooms, kind and content, in order; a redaction with the event that it takes back."""
        return [(path[5], body) for _, path, body in self.calls if "send" in path] + [
            ("m.room.redaction", path[5]) for _, path, _body in self.calls if "redact" in path
        ]


class Unheard(AppService):
    """An appservice that nobody pushes to."""

    async def run(self) -> None:
        self.ready.set()
        await self.outbox.run()


class Alone(Bridged):
    """A world whose ROOM stands for the basin `tea`, where `ada` and `bob` sit."""

    def __init__(self, path: Path, broker: MemoryBroker, **matrix: Any) -> None:
        folder = path / "unused"
        folder.mkdir()
        super().__init__(path, broker, Synapse(folder), new_way("x"), OWNER, **matrix)
        self.server = NoServer()
        self.em("ada")
        self.em("bob")

    def port(self, bridge: Bridge, node: Node) -> MatrixPort:
        registration, listen = self.way  # type: ignore[misc]
        one = Unheard("http://x", registration, ("127.0.0.1", listen), node.ground.store, now_ms, on_done=bridge.done)
        one._api.call, one._api.fetch = self.server.call, self.server.fetch  # type: ignore[method-assign,assignment]
        with node.ground.store.transaction():
            tables = Tables(node.ground.store)
            tables.set_room(ROOM, "tea", everyone=False)
            for em in (BOT, "ada", "bob"):
                tables.set_member(ROOM, Member(em, "joined"))
        return one

    def user(self, em: str) -> str:
        return self.bridge.port.user_id(em)

    def hears(self, *raw: Mapping[str, Any]) -> int:
        """Have the homeserver push these; what is no event is dropped. Gives how many were new."""
        found = [parse_event(one, "appservice") for one in raw]
        inbox = self.bridge.port.inbox
        return inbox.take([one for one in found if one and not self.bridge.port.owns(one.sender)])

    async def idle(self) -> None:
        """Until all that came is handled, answered and sent."""
        port, node = self.bridge.port, self.here
        await until(
            lambda: (
                not (
                    port.inbox.waiting() or node.outbox.waiting() or node.runtime.turns.open() or port.outbox.waiting()
                )
            )
        )


@asynccontextmanager
async def alone(path: Path, model: Model, **matrix: Any) -> AsyncIterator[Alone]:
    """A world whose node runs within the block."""
    async with MemoryBroker() as broker:
        world = Alone(path, broker, **matrix)
        async with world.up(model):
            yield world


def said(event_id: str, body: str = "hello ada", sender: str = OWNER, **more: Any) -> dict[str, Any]:
    """A message as it is pushed; `at` is when it was sent (Unix milliseconds), now by default."""
    at = more.pop("at", None)
    return {
        "event_id": event_id,
        "room_id": ROOM,
        "sender": sender,
        "type": "m.room.message",
        "origin_server_ts": now_ms() if at is None else at,
        "content": {"msgtype": "m.text", "body": body} | more,
    }
