"""What can be asked of a homeserver beside speaking: files, the state of rooms, who is there, new rooms.

Thin wrappers, made as the user of a speaker. They raise MatrixUnavailable, MatrixRefused or MatrixLoggedOut, and are
not repeated by themselves.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mesh.bridges.matrix.api import Api, As
from mesh.bridges.matrix.errors import BadContent, MatrixRefused
from mesh.bridges.matrix.payload import encode
from mesh.bridges.matrix.reading import MXC
from mesh.bridges.matrix.rooms import MAX_NAME, is_room
from mesh.bridges.matrix.shape import as_dict, as_list, text_of
from mesh.words import plain

CLIENT: Final = ("client", "v3")
CREATE_TIMEOUT_S: Final = 120.0  # invitations go out before the answer comes
MAX_MEMBERS: Final = 10_000  # users of a room that are told; more are no room to talk in
MAX_ROOMS: Final = 10_000  # rooms of a user that are told
MAX_MIME: Final = 100  # characters of a file's type
SPACE_CHILD: Final = "m.space.child"
NOT_FOUND: Final = 404  # Synapse has codes of its own for users that are not there
NOWHERE: Final = frozenset({"M_UNRECOGNIZED", "M_NOT_FOUND"})  # said of media where only the old address is known
KEEPERS: Final = 100  # the power that listing a room in a space needs


class Calls(ABC):
    """The part of a MatrixPort that asks."""

    @abstractmethod
    def user_id(self, speaker: str) -> str:
        """The Matrix user that speaks for a speaker's key."""

    @abstractmethod
    async def way(self, speaker: str | None) -> tuple[Api, As | None]:
        """Where requests of a speaker go and whom they are made for; None: any that we may make them for."""

    async def _ask(
        self,
        speaker: str | None,
        method: str,
        *path: str,
        body: Mapping[str, Any] | None = None,
        timeout_s: float = 30.0,
    ) -> dict[str, Any]:
        api, acting = await self.way(speaker)
        return await api.call(method, (*CLIENT, *path), body, acting=acting, timeout_s=timeout_s)

    async def download(self, mxc: str, limit: int) -> tuple[bytes, str]:
        """A file by its `mxc://` address, of at most `limit` bytes, and the type that is claimed for it.

        Raises BadContent when the address is none; MatrixRefused, with code TOO_LARGE when it is longer.
        """
        server, _, name = mxc.removeprefix("mxc://").partition("/")
        if not MXC.fullmatch(mxc) or not (server.strip(".") and name.strip(".")):
            raise BadContent("a file in Matrix has an address like mxc://example.org/abc")
        api, acting = await self.way(None)
        try:
            data, mime = await api.fetch(("client", "v1", "media", "download", server, name), limit, acting=acting)
        except MatrixRefused as error:
            if error.code not in NOWHERE:
                raise
            data, mime = await api.fetch(("media", "v3", "download", server, name), limit, acting=acting)
        return data, plain(mime, MAX_MIME)

    async def state(self, speaker: str, room: str, kind: str, key: str = "") -> dict[str, Any] | None:
        """The content of a state of a room; None when there is none."""
        return await self._found(speaker, "rooms", room, "state", kind, key)

    async def set_state(self, speaker: str, room: str, kind: str, content: Mapping[str, Any], key: str = "") -> str:
        """Set a state of a room, at once; returns the event's id. Raises BadContent for what is no content."""
        encode(content)
        return text_of(await self._ask(speaker, "PUT", "rooms", room, "state", kind, key, body=content), "event_id")

    async def members(self, speaker: str, room: str) -> list[str]:
        """The users that are in a room, sorted; the first MAX_MEMBERS of more."""
        joined = (await self._ask(speaker, "GET", "rooms", room, "joined_members")).get("joined")
        return sorted(as_dict(joined))[:MAX_MEMBERS]

    async def joined(self, speaker: str) -> list[str]:
        """The rooms that a speaker's user is in, at most MAX_ROOMS."""
        rooms = as_list((await self._ask(speaker, "GET", "joined_rooms")).get("joined_rooms"))
        return [room for room in rooms if is_room(room)][:MAX_ROOMS]

    async def create_space(self, speaker: str, name: str, invite: Sequence[str] = ()) -> str:
        """Make a private space, with the speaker in it, where only its keepers list rooms; returns its id."""
        body = {
            "name": plain(name, MAX_NAME),
            "preset": "private_chat",
            "visibility": "private",
            "invite": list(invite),
            "creation_content": {"type": "m.space"},
            "power_level_content_override": {"events_default": KEEPERS},
        }
        answer = await self._ask(speaker, "POST", "createRoom", body=body, timeout_s=CREATE_TIMEOUT_S)
        return text_of(answer, "room_id")

    async def space_child(self, speaker: str, space: str, room: str, *, order: str = "", listed: bool = True) -> str:
        """List a room in a space, or list it no more; returns the event's id.

        Rooms are shown by `order`, then by age; our user's own server is told as one that knows the room.
        """
        server = self.user_id(speaker).partition(":")[2]
        content: dict[str, Any] = {"via": [server]} | ({"order": order} if order else {})
        return await self.set_state(speaker, space, SPACE_CHILD, content if listed else {}, room)

    async def resolve(self, alias: str) -> str | None:
        """The id of the room that an alias leads to; None when it leads nowhere."""
        room = (await self._found(None, "directory", "room", alias) or {}).get("room_id")
        return room if is_room(room) else None

    async def _found(self, speaker: str | None, *path: str) -> dict[str, Any] | None:
        """An answer to GET; None when there is nothing."""
        try:
            return await self._ask(speaker, "GET", *path)
        except MatrixRefused as error:
            if error.status != NOT_FOUND or error.code == "M_UNRECOGNIZED":
                raise
            return None
