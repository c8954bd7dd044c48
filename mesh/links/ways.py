"""Ways to a peer: its own address, a hub, a room. Whoever carries the bytes, who is at the other end proves it.

In a hub or a room the two meet in a slot. Its name is made from a secret of theirs and does not say who they are.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Final, Protocol

from mesh.links.channel import Self
from mesh.links.websocket.dialling import dial, meet
from mesh.links.wire import Wire
from protocol.keys import MeshId, NodeId

DIRECT: Final = 0  # ranks: what is quicker is better
HUB: Final = 1
ROOM: Final = 2

SLOT_BYTES: Final = 32
_PAIR: Final = b"ampmesh/slot/1/pair\0"
_GUEST: Final = b"ampmesh/slot/1/guest\0"


class Way(Protocol):
    """One way. Two that are equal lead to the same place."""

    @property
    def rank(self) -> int:
        """DIRECT, HUB or ROOM."""
        ...

    @property
    def calls(self) -> bool:
        """Whether we are the one who begins there."""
        ...

    async def open(self) -> Wire:
        """A wire to whoever is there; in a hub or a room it waits for them. Raises WireBroken."""
        ...


@dataclass(frozen=True, slots=True)
class Direct:
    """The peer's own address."""

    url: str
    rank: int = DIRECT
    calls: bool = True

    async def open(self) -> Wire:
        """Dial it. Raises WireBroken."""
        return await dial(self.url)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A slot of a hub. `who` is shown to a hub that asks."""

    url: str
    slot: bytes = field(repr=False)
    calls: bool
    who: Self = field(repr=False)
    rank: int = HUB

    async def open(self) -> Wire:
        """Dial the hub, and wait there. Raises WireBroken."""
        return await meet(self.url, self.slot.hex(), self.who, calls=self.calls)


def pair_slot(shared: bytes, one: MeshId, other: MeshId) -> bytes:
    """The slot of two meshes with a secret of theirs, in whatever order."""
    return _slot(_PAIR, "".join(sorted((one, other))), shared)


def guest_slot(inviter: MeshId, guest: NodeId) -> bytes:
    """The slot of an invitation: whoever has the code knows it, and nobody who has not."""
    return _slot(_GUEST, inviter, guest.encode())


def _slot(domain: bytes, names: str, key: bytes) -> bytes:
    return hashlib.blake2b(domain + names.encode(), key=key, digest_size=SLOT_BYTES).digest()
