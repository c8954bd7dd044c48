"""What every link stands on: the node's own parts, and the gates through which its person lets a peer have and say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from mesh.bus.base import Bus
from mesh.clock import Clock
from mesh.ledger import Checked
from mesh.links.messages import Papers
from mesh.store import Store
from mesh.trust import Trust
from protocol.acts import Act
from protocol.address import Subject
from protocol.frame import Frame
from protocol.keys import MeshId, Signer

LINKS_SCHEMA: Final = (
    """
    CREATE TABLE link_cursors (
        peer TEXT NOT NULL, basin TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (peer, basin)
    ) WITHOUT ROWID;
    CREATE TABLE link_papers (
        mesh TEXT NOT NULL, node TEXT NOT NULL, data BLOB NOT NULL, proved INTEGER NOT NULL, PRIMARY KEY (mesh, node)
    ) WITHOUT ROWID;
    CREATE TABLE link_revocations (mesh TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;
    """,
    # From which time on a basin was sent: who may see more than before is sent the whole of it again.
    "ALTER TABLE link_cursors ADD COLUMN since_ms INTEGER NOT NULL DEFAULT 0;",
    # Who brought the certificates of other meshes: nobody alone fills the room for them.
    """
    CREATE TABLE link_carriers (
        peer TEXT NOT NULL, mesh TEXT NOT NULL, node TEXT NOT NULL, PRIMARY KEY (peer, mesh, node)
    ) WITHOUT ROWID;
    """,
)


class Sent(NamedTuple):
    """A basin that a peer is sent: what was said from `since_ms` on, and of that nothing older than `oldest_ms`.

    Both in Unix milliseconds. Before the one, nothing was ever meant for the peer; what lies between the two it has
    missed, and it is told so.
    """

    basin: str
    since_ms: int = 0
    oldest_ms: int = 0


class Gates(Protocol):
    """What a person lets a peer have and say, at this moment. Nothing here may wait."""

    def met(self, peer: MeshId) -> None:
        """A link with the peer is up."""
        ...

    def sent(self, peer: MeshId) -> Sequence[Sent]:
        """The basins of which the peer is sent what is said."""
        ...

    def may_have(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> bool:
        """Whether an act, which `origin` said, may go to the peer."""
        ...

    def as_read(self, peer: MeshId, act: Act) -> Act:
        """An act of our own in words that the peer knows: itself, or a plainer one with its id."""
        ...

    def kept(self, peer: MeshId, basin: str) -> None:
        """The peer has kept more of what it was sent of a basin."""
        ...

    def takes(self, peer: MeshId, basin: str) -> bool:
        """Whether anything in a basin is taken from the peer."""
        ...

    def refuses(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> str | None:
        """Why an act that came from the peer is not taken, or None."""
        ...

    def pace_s(self, peer: MeshId, basin: str, acts: int) -> float:
        """Seconds to wait before so many more acts are taken from the peer; 0 counts them against its quota."""
        ...

    def recovers(self, peer: MeshId) -> Sequence[str]:
        """The basins whose past this node has lost, and is to have again from the peer."""
        ...

    def recovered(self, peer: MeshId) -> None:
        """All that the peer has of these basins has come."""
        ...

    def told(self, peer: MeshId, text: str) -> None:
        """The peer's node has said something to our person."""
        ...

    def matter(self, peer: MeshId, topic: str, data: bytes) -> None:
        """The peer's node has said something to a part of ours. Raises BadMessage for nonsense."""
        ...


class Hearing(Protocol):
    """The node's ledger, as far as what peers send goes."""

    def holds(self, subject: Subject, frame: Frame) -> bool:
        """Whether a verified frame is of no use any more: its acts and its number are here, and in the stream."""
        ...

    def take(self, frames: Sequence[Checked]) -> None:
        """Keep verified frames at once; they are put into the stream beside that. What it raises ends the node."""
        ...


@dataclass(frozen=True, slots=True)
class Ground:
    """What sessions stand on. `signer` is the node's; `papers` are our own certificates and revocation lists, signed.

    `vocabulary` is the digest of the terms of version 1 that this node knows.
    """

    mesh: MeshId
    signer: Signer
    store: Store
    bus: Bus
    trust: Trust
    clock: Clock
    gates: Gates
    papers: Papers
    vocabulary: str
    ledger: Hearing


def refuse(store: Store, mesh: MeshId, reason: str, times: int = 1) -> None:
    """Count something of a peer's that was refused, by the kind of fault."""
    sql = "INSERT INTO refusals VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET times = times + excluded.times"
    with store.transaction():
        store.execute(sql, (mesh, reason, times))
