"""What two nodes tell each other about words."""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from mesh.links.messages import BadMessage
from protocol.errors import BadTerm
from protocol.terms import MAX_HELD, MAX_TERM, check_digest
from protocol.vocabulary import Digest

ASKED: Final = 64  # terms asked for at once

_Digests = Annotated[Sequence[Digest], msgspec.Meta(max_length=MAX_HELD)]
_Term = Annotated[bytes, msgspec.Meta(max_length=MAX_TERM)]


class Use(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="use"):
    """The digests of all that the sender's mesh uses and the receiver may know of.

    `begins`: the receiver is to say the same of itself; one of the two may have spoken before the other listened.
    """

    digests: _Digests
    begins: bool


class Ask(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="ask"):
    """Digests whose terms the sender does not know."""

    digests: _Digests


class Terms(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="terms"):
    """Terms that were asked for, as many as fit, each in its canonical form."""

    terms: Annotated[list[_Term], msgspec.Meta(max_length=ASKED)]


Message = Use | Ask | Terms

encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Message).decode


def decode(data: bytes) -> Message:
    """What a peer said; its digests are well-formed. Raises BadMessage."""
    try:
        message = _decode(data)
        for one in () if isinstance(message, Terms) else message.digests:
            check_digest(one)
    except (msgspec.MsgspecError, UnicodeDecodeError, BadTerm):
        raise BadMessage("what a peer says about words cannot be read") from None
    return message
