"""Links through Matrix rooms: what the bridge hears there is handed to them, and never shown to anybody.

What goes through a link is sealed from end to end. An encrypted room would add nothing but keys that may be missing:
links keep to rooms without encryption.
"""

from collections.abc import Callable
from typing import Final

from mesh.bridges.matrix.errors import MatrixError, MatrixRefused
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.link import FRAME, frame_content, read_frame
from mesh.bridges.matrix.port import ENCRYPTION, MatrixPort, Speaker
from mesh.links.room import InRoom, Room
from mesh.links.ways import Way
from mesh.links.wire import WireBroken
from mesh.words import plain
from nodes.errors import NodeError
from nodes.matrix.lobby import Lobby
from nodes.matrix.tables import BOT

PACKET: Final = "link-"  # how the keys of packets begin, which are told about here and not one by one
SEALED: Final = "is encrypted, and links need a room that is not; what they say is sealed anyway"


class _Carrier:
    """Events in a room, by the node's own user. `tell` keeps what is wrong for a person; None: nothing is."""

    def __init__(self, port: MatrixPort, speaker: Speaker, room: str, tell: Callable[[str | None], None]) -> None:
        self._port, self._speaker, self._room, self._tell = port, speaker, room, tell

    async def send(self, data: bytes, key: str) -> None:
        """Put a packet into the outbox, and wait until the homeserver has it. Raises WireBroken."""
        if self._port.inbox.is_encrypted(self._room):
            self._tell(SEALED)
            raise WireBroken("the room is encrypted")
        try:
            await self._port.send(self._speaker, self._room, FRAME, frame_content(data), PACKET + key)
        except MatrixError as error:
            if isinstance(error, MatrixRefused):
                self._tell(f"takes nothing: {plain(str(error))}")
            raise WireBroken(f"the room takes nothing: {error}") from error
        self._tell(None)


class RoomWays:
    """All rooms in which links of this node are. `tell` keeps a problem for a person."""

    def __init__(self, port: MatrixPort, lobby: Lobby, tell: Callable[[str], None]) -> None:
        self._port, self._lobby, self._tell = port, lobby, tell
        self._rooms: dict[str, Room] = {}
        self._told: dict[str, str] = {}
        self.has_moved: Callable[[str, str], None] = lambda _old, _new: None
        """Called with a room of links and its successor, within the transaction that notes it."""

    async def enter(self, room: str) -> str:
        """Join a room as the node's own user; returns its id. Raises MatrixError; NodeError for a room of no use."""
        server = room.partition(":")[2]
        try:
            entered = await self._port.join(BOT, room, server or None)
        except MatrixRefused as error:
            user = self._port.user_id(BOT)
            raise NodeError(f"{error}; invite {user} to the room in your client, then try again") from error
        if await self._port.state(BOT, entered, ENCRYPTION):
            self._port.inbox.note_encrypted([entered])
            if not self._lobby.tables.sits(BOT, entered):
                await self._port.leave(BOT, entered)
            raise NodeError(f"{plain(room)} {SEALED}; make another one, with encryption turned off")
        self._lobby.sit_for_links(entered)
        return entered

    def way(self, room: str, slot: bytes, *, calls: bool) -> Way:
        """A way through a room that was entered."""
        if room not in self._rooms:
            us = self._lobby.seats.wardrobe.who(BOT)
            self._rooms[room] = Room(_Carrier(self._port, us, room, lambda problem: self._problem(room, problem)))
        return InRoom(self._rooms[room], slot, calls)

    def rooms(self) -> list[str]:
        """The rooms through which links go, or went since the start."""
        return sorted(self._rooms)

    def heard(self, event: Inbound) -> None:
        """An event of the kind that links are made of."""
        room, data = self._rooms.get(event.room), read_frame(event.kind, event.content)
        if room is not None and data is not None:
            room.heard(data)

    def moved(self, old: str, new: str) -> None:
        """A room has a successor, and we are there; within a transaction."""
        self._rooms.pop(old, None)
        self.has_moved(old, new)

    def _problem(self, room: str, problem: str | None) -> None:
        """Tell what is wrong with a room, once as long as it is."""
        if problem is None:
            self._told.pop(room, None)
        elif self._told.get(room) != problem:
            self._told[room] = problem
            self._tell(f"the room {plain(room)}, where peers are met, {problem} (see: mesh peer room)")
