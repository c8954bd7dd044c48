"""What linked nodes do with each other beside passing on acts: each such thing is a part of the node."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from mesh.entries import Entry
from protocol.keys import MeshId


class Part(Protocol):
    """One of them. Nothing here may wait. `topic`, 1 to 16 lower-case letters, names it on the wire."""

    topic: str

    def begin(self, peer: MeshId) -> Iterable[bytes]:
        """What is said first over every new link to a linked peer, and when a peer becomes linked."""
        ...

    def told(self, peer: MeshId, data: bytes) -> None:
        """The same part of a linked peer's node has said this. Raises BadMessage for nonsense, which is counted."""
        ...

    def hear(self, entries: Sequence[Entry]) -> None:
        """New acts, once each, in order; within the ledger's transaction."""
        ...

    def proceed(self) -> None:
        """That transaction has committed."""
        ...
