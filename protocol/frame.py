"""Frames: the unit of signature, storage and de-duplication.

    byte 0        version (1)
    bytes 1-32    node public key
    bytes 33-96   Ed25519 signature over "ampmesh/frame/1", a zero byte, and the body as it travelled
    bytes 97-     MessagePack array [sequence, sent_at_ms, basin, [act, ...]]

Decoding is total: any bytes give a frame or BadFrame or BadAct. Nothing is ever encoded again to be checked.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, NewType

import msgspec

from protocol.acts import Act, check_act
from protocol.address import check_name
from protocol.budget import Count
from protocol.errors import BadAddress, BadFrame, FrameFault
from protocol.keys import KEY_BYTES, SIGNATURE_BYTES, KeyKind, NodeId, Signer, encode_public, verify

FrameId = NewType("FrameId", str)

VERSION: Final = 1
MAX_ACTS: Final = 64  # one signature for 64 acts costs less than the rest of the path (docs/design.md)
FLUSH_BYTES: Final = 65_536  # a frame that waits for more acts is sent when it holds this much
MAX_FRAME: Final = 524_288  # bytes; one act with the longest text in the widest script still fits
EPHEMERAL: Final = 0  # the sequence of frames that are never stored
_DOMAIN: Final = b"ampmesh/frame/1\0"
HEADER_BYTES: Final = 1 + KEY_BYTES + SIGNATURE_BYTES  # version, key, signature


class _Body(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    sequence: Count
    sent_at_ms: Count
    basin: str
    acts: Annotated[list[Act], msgspec.Meta(min_length=1, max_length=MAX_ACTS)]


@dataclass(frozen=True, slots=True)
class Frame:
    """A verified frame. `sequence` counts up from 1 per (node, basin)."""

    node: NodeId
    sequence: int
    sent_at_ms: int
    basin: str
    acts: Sequence[Act]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Body)
_head = msgspec.msgpack.Decoder(tuple[int, int, str, msgspec.Raw])


def encode_frame(signer: Signer, sequence: int, sent_at_ms: int, basin: str, acts: Sequence[Act]) -> bytes:
    """Sign acts into a frame. Raises ValueError when there are too many or they are too long: our own mistake."""
    if not 1 <= len(acts) <= MAX_ACTS:
        raise ValueError(f"a frame holds 1 to {MAX_ACTS} acts, not {len(acts)}")
    body = _encoder.encode((sequence, sent_at_ms, check_name(basin), acts))
    if len(body) + HEADER_BYTES > MAX_FRAME:
        raise ValueError(f"the frame would have more than {MAX_FRAME} bytes")
    return b"".join((bytes((VERSION,)), signer.raw, signer.sign(_DOMAIN + body), body))


def decode_frame(data: bytes) -> Frame:
    """Check and read a frame. Raises BadFrame, or BadAct when a signed act breaks its schema."""
    if len(data) <= HEADER_BYTES:
        raise BadFrame(FrameFault.SHORT)
    if len(data) > MAX_FRAME:
        raise BadFrame(FrameFault.LONG)
    if data[0] != VERSION:
        raise BadFrame(FrameFault.VERSION, f"version {data[0]}, this node speaks {VERSION}")
    key, signature, body = data[1 : 1 + KEY_BYTES], data[1 + KEY_BYTES : HEADER_BYTES], data[HEADER_BYTES:]
    if not verify(key, _DOMAIN + body, signature):
        raise BadFrame(FrameFault.SIGNATURE)
    frame = _read(data)
    for act in frame.acts:
        check_act(act)
    return frame


def reread_frame(data: bytes) -> Frame:
    """Read a frame that was checked when it was stored; the same errors where the store has been damaged since."""
    return _read(data)


def _read(data: bytes) -> Frame:
    try:
        fields = _decoder.decode(memoryview(data)[HEADER_BYTES:])
        check_name(fields.basin)
    except (msgspec.MsgspecError, BadAddress, RecursionError, UnicodeDecodeError, ValueError) as error:
        raise BadFrame(FrameFault.BODY, str(error)) from None
    node = _node_id(data[1 : 1 + KEY_BYTES])
    return Frame(node, fields.sequence, fields.sent_at_ms, fields.basin, fields.acts)


def sequence_of(data: bytes) -> int | None:
    """The sequence of a frame that was checked when it was stored, without reading its acts; None for what is none."""
    try:
        return _head.decode(memoryview(data)[HEADER_BYTES:])[0]
    except (msgspec.MsgspecError, ValueError):
        return None


@lru_cache(maxsize=1024)
def _node_id(raw: bytes) -> NodeId:
    return NodeId(encode_public(raw, KeyKind.NODE))


def frame_id(data: bytes) -> FrameId:
    """The name of a frame: BLAKE2b-256 of all its bytes."""
    return FrameId("b2:" + hashlib.blake2b(data, digest_size=32).hexdigest())
