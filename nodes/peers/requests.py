"""The arguments of what the owner's commands may ask about peers."""

from typing import Annotated, Final

import msgspec

from protocol.invitation import MAX_ADDRESSES
from protocol.statement import May, Trust

MAX_EXPIRY_S: Final = 366 * 86_400

Basins = dict[str, May]
Room = Annotated[str, msgspec.Meta(min_length=2, max_length=255)]  # a Matrix room's id or alias
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]


class Invite(msgspec.Struct, forbid_unknown_fields=True):
    """Make an invitation. `name`: what to call whoever comes; None: what they call themselves.

    `room`: a Matrix room in which they are waited for as well.
    """

    gives: Basins
    takes: Basins
    expires_s: Annotated[int, msgspec.Meta(ge=1, le=MAX_EXPIRY_S)]
    trust: Trust = Trust.GUEST
    name: str | None = None
    room: Room | None = None


class Look(msgspec.Struct, forbid_unknown_fields=True):
    """What is offered behind a code or link. `room`: a Matrix room in which the inviter waits as well."""

    code: str
    room: Room | None = None


class Accept(msgspec.Struct, forbid_unknown_fields=True):
    """Agree to what was offered: `offer` is its digest, from `peer_look`."""

    code: str
    offer: str
    trust: Trust = Trust.GUEST
    name: str | None = None
    room: Room | None = None


class Of(msgspec.Struct, forbid_unknown_fields=True):
    """About a peer, by its name here or its mesh's id."""

    peer: str


class OfBasin(msgspec.Struct, forbid_unknown_fields=True):
    """About a peer and a basin."""

    peer: str
    basin: str
    write: bool = False


class SetTrust(msgspec.Struct, forbid_unknown_fields=True):
    """How far a peer is trusted."""

    peer: str
    trust: Trust


class SetQuota(msgspec.Struct, forbid_unknown_fields=True):
    """What a peer may use; None: as it is."""

    peer: str
    acts: Count | None = None
    chains: Count | None = None
    tokens: Count | None = None


class Address(msgspec.Struct, forbid_unknown_fields=True):
    """Where a peer is dialled from now on; nowhere: it dials us."""

    peer: str
    addresses: Annotated[list[str], msgspec.Meta(max_length=MAX_ADDRESSES)]


class MeetIn(msgspec.Struct, forbid_unknown_fields=True):
    """Meet a peer in a Matrix room when there is no better way; None: in no room."""

    peer: str
    room: Room | None = None


class Rename(msgspec.Struct, forbid_unknown_fields=True):
    """Call a peer something else."""

    peer: str
    name: str


class OfWish(msgspec.Struct, forbid_unknown_fields=True):
    """About a change that an em asked for, by the beginning of its id in hex."""

    wish: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{4,32}$")]
