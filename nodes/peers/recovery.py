"""A node that lost its past has it again from its peers: first what was agreed on, then what was said.

Peers that a backup names are met as strangers. What both sides have said of the relationship is asked for, and when all
of it is here the relationship is what these statements make of it; then what was said in the shared basins comes back.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog

from mesh.entries import Entry, recent
from mesh.store import Store
from nodes.errors import ConfigError, NodeError
from nodes.node import Node
from nodes.peers.peers import Peers
from nodes.peers.tables import Peer
from nodes.textfile import read_bytes
from protocol.address import check_name
from protocol.errors import BadLink, ProtocolError
from protocol.invitation import MAX_ADDRESSES, read_address
from protocol.keys import KeyKind, MeshId, decode_public
from protocol.link import Relationship, State, apply
from protocol.statement import STATEMENTS, own_basin

RECOVERY_SCHEMA: Final = ("CREATE TABLE recovering (mesh TEXT PRIMARY KEY, stage TEXT NOT NULL) WITHOUT ROWID;",)
MAX_REMEMBERED: Final = 10_000  # peers of a backup
MAX_MEETING: Final = 64  # bytes of the secret by which two meet in a hub or a room
MAX_ROOM: Final = 255  # characters of the id of a Matrix room
MAX_LIST_BYTES: Final = 8 << 20
REREAD: Final = 10_000  # newest statements of a relationship that it is made of again

log = structlog.get_logger(__name__)


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A peer as a backup names it. What it is called and where it is are checked when it is met.

    `meeting`, a secret, and `room` are where the two meet when neither can be dialled; see `nodes.peers.ways`.
    """

    mesh: Annotated[str, msgspec.Meta(max_length=64)]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    addresses: Annotated[list[Annotated[str, msgspec.Meta(max_length=300)]], msgspec.Meta(max_length=MAX_ADDRESSES)]
    meeting: Annotated[bytes, msgspec.Meta(max_length=MAX_MEETING)] = b""
    room: Annotated[str, msgspec.Meta(max_length=MAX_ROOM)] | None = None

    def __repr__(self) -> str:
        return f"Remembered({self.mesh!r}, {self.name!r})"


Remembering = Annotated[list[Remembered], msgspec.Meta(max_length=MAX_REMEMBERED)]


class Recovery:
    """What is under way; kept in the node's database, so that it goes on after a restart."""

    def __init__(self, node: Node, peers: Peers) -> None:
        self._node, self._peers, self._store = node, peers, node.ground.store
        self._gates = peers.gates
        for mesh, stage in self._store.rows("SELECT mesh, stage FROM recovering"):
            self._gates.recovering[mesh] = stage
        self._gates.on_recovered = self._next

    def begin(self, path: Path) -> None:
        """Meet the peers that a file names, if it is there, and remove it. Raises NodeError."""
        if not path.exists():
            return
        try:
            remembered = msgspec.json.decode(read_bytes(path, MAX_LIST_BYTES), type=Remembering)
        except (msgspec.MsgspecError, ConfigError, UnicodeDecodeError):
            raise NodeError(f"{path} cannot be read; remove it, and invite your peers again") from None
        for one in remembered:
            try:
                self._meet(one)
            except ProtocolError as error:
                log.warning("a peer of the backup cannot be met", reason=str(error))
        path.unlink()

    def _meet(self, one: Remembered) -> None:
        mesh = MeshId(one.mesh)
        decode_public(mesh, KeyKind.MESH)
        if mesh == self._peers.me or mesh in self._peers.peers:
            return
        addresses = tuple(read_address(address) for address in one.addresses)
        petname = self._peers.petname(check_name(one.name), mesh)
        with self._store.transaction():
            self._store.execute("INSERT OR REPLACE INTO recovering VALUES (?, 'statements')", (mesh,))
            if one.meeting:
                self._peers.ways.met(mesh, one.meeting)
            self._peers.ways.set_room(mesh, one.room)
        self._gates.recovering[mesh] = "statements"
        self._peers.meet(Peer(mesh, petname, addresses, Relationship(self._peers.me, mesh)))

    def _next(self, mesh: MeshId) -> None:
        """All has come that was asked for last."""
        peer = self._peers.peers[mesh]
        if self._gates.recovering[mesh] == "talk":
            self._end(mesh)
            log.info("what was said with a peer is here again", peer=peer.petname)
            return
        said = recent(self._store, own_basin(self._peers.me, mesh), REREAD)
        seen = rebuilt(Relationship(self._peers.me, mesh), said, self._peers.now_ms(), self._is_em)
        if seen.state == State.STRANGER:
            log.warning("a peer has nothing of what was agreed on with it; invite it again", peer=peer.petname)
            return
        peer.relationship = seen
        if seen.state == State.LEFT:
            self._end(mesh)
        else:
            with self._store.transaction():
                self._store.execute("UPDATE recovering SET stage = 'talk' WHERE mesh = ?", (mesh,))
            self._gates.recovering[mesh] = "talk"
        self._peers.meet(peer)
        log.info("what was agreed on with a peer is known again", peer=peer.petname, state=seen.state.value)

    def _end(self, mesh: MeshId) -> None:
        with self._store.transaction():
            self._store.execute("DELETE FROM recovering WHERE mesh = ?", (mesh,))
        del self._gates.recovering[mesh]

    def _is_em(self, author: str) -> bool:
        return author in self._node.runtime.ems


def rebuilt(seen: Relationship, entries: Iterable[Entry], now_ms: int, is_em: Callable[[str], bool]) -> Relationship:
    """What statements make of a relationship, in whatever order they are had.

    By their times, which both sides' clocks gave; what does not count yet is tried again after what follows it.
    """
    left: Sequence[Entry] = sorted(
        (one for one in entries if one.act.kind in STATEMENTS), key=lambda one: (one.act.at_ms, one.n)
    )
    while left:
        later = list[Entry]()
        for one in left:
            try:
                seen = apply(seen, one.mesh, one.act, now_ms, is_em if one.mesh == seen.me else _is_none)
            except BadLink:
                later.append(one)
        if len(later) == len(left):
            break
        left = later
    return seen


def _is_none(author: str) -> bool:  # noqa: ARG001 - their node vouches for who is whom there
    return False


def remembered(store: Store) -> list[Remembered]:
    """The peers of a node, for a backup: all but those that were left."""
    rows = store.rows(
        "SELECT mesh, petname, addresses, relationship, shared, room FROM peers"
        " LEFT JOIN peer_meetings USING (mesh) LEFT JOIN peer_rooms USING (mesh) ORDER BY petname"
    )
    return [
        Remembered(mesh, petname, msgspec.json.decode(addresses, type=list[str]), shared or b"", room)
        for mesh, petname, addresses, relationship, shared, room in rows
        if msgspec.json.decode(relationship, type=Relationship).state != State.LEFT
    ]
