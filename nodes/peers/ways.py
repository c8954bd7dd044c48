"""By which ways each peer is reached: its addresses, the hubs of both, and a room of the two.

In a hub or a room two nodes meet in a slot. Its name comes from a secret of the link by which they first agreed; peers
who were introduced have none, and meet in one that is made of their ids alone.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from mesh.links.channel import Self
from mesh.links.ways import Direct, Meeting, Way, guest_slot, pair_slot
from mesh.store import Store
from nodes.errors import NodeError
from nodes.peers.settings import Links
from nodes.peers.tables import Peer
from protocol.invitation import Invitation, place_of
from protocol.keys import MeshId, NodeId

MAX_HOSTED: Final = 16  # invitations whose guests are waited for at once in each hub; those that hold longest
MAX_THEIRS: Final = 2  # hubs of a peer's in which we wait for it, beside our own

WAYS_SCHEMA: Final = (
    """
    CREATE TABLE peer_meetings (mesh TEXT PRIMARY KEY, shared BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE peer_rooms (mesh TEXT PRIMARY KEY, room TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE guest_rooms (guest TEXT PRIMARY KEY, room TEXT NOT NULL) WITHOUT ROWID;
    """,
)


class Rooms(Protocol):
    """What carries links in rooms."""

    async def enter(self, room: str) -> str:
        """Join a room, by id or alias; returns its id. Raises NodeError, MeshError."""
        ...

    def way(self, room: str, slot: bytes, *, calls: bool) -> Way:
        """A way through a room in which we are."""
        ...


class Ways:
    """All ways of one node. `rooms` is set where there is a bridge to Matrix."""

    def __init__(self, me: MeshId, who: Self, settings: Links, store: Store) -> None:
        self.rooms: Rooms | None = None
        self._me, self._who, self._settings, self._store = me, who, settings, store

    def to(self, peer: Peer) -> list[Way]:
        """The ways to a peer, the quickest first."""
        shared = self._store.one("SELECT shared FROM peer_meetings WHERE mesh = ?", (peer.mesh,))
        slot = pair_slot(shared[0] if shared else b"", self._me, peer.mesh)
        calls = self._me < peer.mesh
        ways = [*self._direct(peer.addresses), *self._meetings(self._hubs(peer.addresses), slot, calls=calls)]
        room = self.room_of(peer.mesh)
        return [*ways, *self._through([room] if room else [], slot, calls=calls)]

    def to_inviter(self, invitation: Invitation, room: str | None) -> list[Way]:
        """The ways to whoever made an invitation; `room`: one that was told beside the code."""
        mesh, guest = MeshId(invitation.mesh), NodeId(invitation.guest().public)
        slot = guest_slot(mesh, guest)
        hubs = [address for address in invitation.addresses if place_of(address).is_hub]
        ways = [*self._direct(invitation.addresses), *self._meetings(hubs, slot, calls=True)]
        return [*ways, *self._through([room] if room else [], slot, calls=True)]

    def for_guests(self, now_s: int, is_open: Callable[[MeshId], bool]) -> list[Way]:
        """Where those come who were given invitations; `is_open`: whether a mesh that has used one may come again."""
        sql = "SELECT guest, used_by, room FROM invitations LEFT JOIN guest_rooms USING (guest) WHERE expires_s > ?"
        rows = self._store.rows(sql + " ORDER BY expires_s DESC", (now_s,))
        waited = [(NodeId(guest), room) for guest, by, room in rows if by is None or is_open(MeshId(by))]
        ways = list[Way]()
        for guest, room in waited[:MAX_HOSTED]:
            slot = guest_slot(self._me, guest)
            ways += self._meetings(self._settings.hubs, slot, calls=False)
            ways += self._through([room] if room else [], slot, calls=False)
        return ways

    def _direct(self, addresses: Sequence[str]) -> list[Way]:
        return [Direct(place.url) for place in map(place_of, addresses) if not place.is_hub]

    def _hubs(self, addresses: Sequence[str]) -> list[str]:
        """Our own hubs and a peer's."""
        theirs = [address for address in addresses if place_of(address).is_hub][:MAX_THEIRS]
        return list(dict.fromkeys([*self._settings.hubs, *theirs]))

    def _meetings(self, hubs: Sequence[str], slot: bytes, *, calls: bool) -> list[Way]:
        return [Meeting(place_of(hub).url, slot, calls, self._who) for hub in hubs]

    def _through(self, rooms: Sequence[str], slot: bytes, *, calls: bool) -> list[Way]:
        return [self.rooms.way(room, slot, calls=calls) for room in rooms] if self.rooms else []

    # What is kept

    def met(self, mesh: MeshId, shared: bytes, guest: NodeId | None = None) -> None:
        """Keep the secret of a link by which we agreed with a mesh, and the room in which its invitation waited.

        Within a transaction of the caller's, as all that writes here.
        """
        self._store.execute("INSERT OR REPLACE INTO peer_meetings VALUES (?, ?)", (mesh, shared))
        if row := guest and self._store.one("SELECT room FROM guest_rooms WHERE guest = ?", (guest,)):
            self.set_room(mesh, row[0])

    def host_in(self, guest: NodeId, room: str | None) -> None:
        """Wait for a guest in a room as well; those whose invitations have ended are forgotten."""
        self._store.execute("DELETE FROM guest_rooms WHERE guest NOT IN (SELECT guest FROM invitations)")
        if room is not None:
            self._store.execute("INSERT INTO guest_rooms VALUES (?, ?)", (guest, room))

    def set_room(self, mesh: MeshId, room: str | None) -> None:
        """Meet a peer in a room from now on, or in none."""
        self._store.execute("DELETE FROM peer_rooms WHERE mesh = ?", (mesh,))
        if room is not None:
            self._store.execute("INSERT INTO peer_rooms VALUES (?, ?)", (mesh, room))

    def room_moved(self, old: str, new: str) -> None:
        """A room has a successor; within a transaction of the caller's."""
        for table in ("peer_rooms", "guest_rooms"):
            self._store.execute(f"UPDATE {table} SET room = ? WHERE room = ?", (new, old))  # noqa: S608 - our own words

    def room_of(self, mesh: MeshId) -> str | None:
        """The room in which a peer is met."""
        row = self._store.one("SELECT room FROM peer_rooms WHERE mesh = ?", (mesh,))
        return row[0] if row else None

    async def enter(self, room: str) -> str:
        """Join a room, by id or alias, to meet others there; returns its id. Raises NodeError, MeshError."""
        if self.rooms is None:
            raise NodeError("this node is not on Matrix; see: mesh matrix login")
        return await self.rooms.enter(room)
