"""What two linked nodes say to each other: MessagePack arrays whose first entry names the kind. Decoding is total."""

from typing import Annotated, Final

import msgspec

from mesh.errors import MeshError
from mesh.links.wire import MAX_MESSAGE
from protocol.offer import MAX_OFFER

VERSION: Final = 1
MAX_FRAMES: Final = 64  # frames of one message
MAX_PAPERS: Final = 64  # certificates, or revocation lists, of one message
MAX_NOTE: Final = 500  # characters
MAX_MATTER: Final = 60_000  # bytes

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class BadMessage(MeshError):
    """A peer said what no node says."""


class Papers(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="papers"):
    """What proves who may speak for whom: certificates and revocation lists, each signed by its mesh."""

    certificates: Annotated[list[bytes], msgspec.Meta(max_length=MAX_PAPERS)]
    revocations: Annotated[list[bytes], msgspec.Meta(max_length=MAX_PAPERS)]


class Hello(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="hello"):
    """The first message each way. `vocabulary` is the digest of the terms that the mesh holds."""

    version: Number
    mesh: Annotated[str, msgspec.Meta(max_length=64)]
    vocabulary: Annotated[str, msgspec.Meta(max_length=128)]


class Frames(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="frames"):
    """Frames of one basin, in the order in which the sender heard them; `number` counts these messages from 1."""

    number: Number
    frames: Annotated[list[bytes], msgspec.Meta(max_length=MAX_FRAMES)]


class Kept(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="kept"):
    """Everything up to a number of this wire's is safely stored, or refused for good: `refused` frames of it."""

    number: Number
    refused: Number


class Missing(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="missing"):
    """Frames of a node that the sender lacks: who has them may send them again."""

    mesh: Annotated[str, msgspec.Meta(max_length=64)]
    node: Annotated[str, msgspec.Meta(max_length=64)]
    basin: Annotated[str, msgspec.Meta(max_length=64)]
    first: Number
    last: Number


class Gone(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="gone"):
    """The answer to a `missing`, after the frames themselves: no more of these come from here."""

    mesh: Annotated[str, msgspec.Meta(max_length=64)]
    node: Annotated[str, msgspec.Meta(max_length=64)]
    basin: Annotated[str, msgspec.Meta(max_length=64)]
    first: Number
    last: Number


class Matter(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="matter"):
    """Something for a part of the peer's node, which `topic` names; a part that is not there lets it be."""

    topic: Annotated[str, msgspec.Meta(pattern="^[a-z]{1,16}$")]
    data: Annotated[bytes, msgspec.Meta(max_length=MAX_MATTER)]


class Note(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="note"):
    """Words for the peer's person."""

    text: Annotated[str, msgspec.Meta(max_length=MAX_NOTE)]


class Offered(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="offer"):
    """A signed offer (protocol.offer): the inviter's to whoever shows an invitation's secret, and the answer to it."""

    data: Annotated[bytes, msgspec.Meta(max_length=MAX_OFFER)]


class Beat(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="beat"):
    """A sign of life."""


Said = Papers | Hello | Frames | Kept | Missing | Gone | Matter | Note | Offered | Beat

encode = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Said)


def decode(data: bytes) -> Said:
    """What a peer said. Raises BadMessage."""
    if len(data) > MAX_MESSAGE:
        raise BadMessage("the message is too long")
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadMessage("the message cannot be read") from None
