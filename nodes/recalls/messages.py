"""What two nodes say to each other about memories."""

from typing import Annotated, Final, Literal

import msgspec

from mesh.links.messages import BadMessage
from protocol.acts import Id
from protocol.document import MAX_DOCUMENT
from protocol.receipt import MAX_CITED

MAX_QUESTION: Final = 1_000  # characters
MAX_PROOF: Final = 58_000  # bytes of a citation in one message

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
_Basin = Annotated[str, msgspec.Meta(max_length=64)]


class Ask(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="ask"):
    """A question; `basin`: about that one alone. `number` is the asker's, for what comes back."""

    number: Number
    question: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_QUESTION)]
    basin: _Basin | None = None


class Cite(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="cite"):
    """Part of an answer: a proof (protocol.proof) of the first of these acts, whose frame holds all of them."""

    number: Number
    proof: Annotated[bytes, msgspec.Meta(max_length=MAX_PROOF)]
    acts: Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_CITED)]


class Done(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="done"):
    """The end of an answer: the receipt."""

    number: Number
    receipt: Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)]


class No(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag="no"):
    """A question is not answered."""

    number: Number
    reason: Literal["grant", "quota", "busy"]


Message = Ask | Cite | Done | No

encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Message).decode


def decode(data: bytes) -> Message:
    """What a peer said. Raises BadMessage."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise BadMessage("what a peer asks or answers cannot be read") from None
