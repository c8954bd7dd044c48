"""Links through Matrix rooms: what the bridge hears there is handed to them, and never shown to anybody."""

from collections.abc import Callable

from mesh.bridges.matrix.errors import MatrixError
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.link import RoomLink, read_frame
from mesh.bridges.matrix.port import MatrixPort, Speaker
from mesh.links.room import InRoom, Room
from mesh.links.ways import Way
from mesh.links.wire import WireBroken
from nodes.matrix.tables import BOT


class _Carrier:
    """Events in a room, by the node's own user."""

    def __init__(self, link: RoomLink) -> None:
        self._link = link

    async def send(self, data: bytes, key: str) -> None:
        """Put a packet into the outbox, and wait until the homeserver has it. Raises WireBroken."""
        try:
            await self._link.send(data, key)
        except MatrixError as error:
            raise WireBroken(f"the room takes nothing: {error}") from error


class RoomWays:
    """All rooms in which links of this node are. `who` makes a speaker of a key."""

    def __init__(self, port: MatrixPort, who: Callable[[str], Speaker]) -> None:
        self._port, self._who = port, who
        self._rooms: dict[str, Room] = {}

    async def enter(self, room: str) -> str:
        """Join a room as the node's own user; returns its id. Raises MatrixError."""
        server = room.partition(":")[2]
        return await self._port.join(BOT, room, server or None)

    def way(self, room: str, slot: bytes, *, calls: bool) -> Way:
        """A way through a room that was entered."""
        if room not in self._rooms:
            self._rooms[room] = Room(_Carrier(RoomLink(self._port, self._who(BOT), room)))
        return InRoom(self._rooms[room], slot, calls)

    def heard(self, event: Inbound) -> None:
        """An event of the kind that links are made of."""
        room, data = self._rooms.get(event.room), read_frame(event.kind, event.content)
        if room is not None and data is not None:
            room.heard(data, event.sender)
