"""Who dials a hub that does not serve everybody: a signature over the hub's fresh challenge, and the slot's name."""

from typing import Annotated, Final

import msgspec

from mesh.links.channel import Self
from protocol.certificate import MAX_DOCUMENT, read_certificate
from protocol.errors import ProtocolError
from protocol.keys import SIGNATURE_BYTES, KeyKind, MeshId, decode_public, verify

MAX_PROOF: Final = MAX_DOCUMENT + 128  # bytes
_DOMAIN: Final = b"ampmesh/hub/1\0"


class _Shown(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


def proof(who: Self, challenge: bytes, slot: str) -> bytes:
    """What shows a hub who we are, for one slot and this once."""
    return msgspec.msgpack.encode(_Shown(who.certificate, who.signer.sign(_signed(challenge, slot))))


def prover(data: bytes, challenge: bytes, slot: str, now_ms: int) -> MeshId | None:
    """The mesh whose node has proved to be there at `now_ms`; None for what proves nothing. Total."""
    try:
        shown = msgspec.msgpack.decode(data, type=_Shown)
        certificate = read_certificate(shown.certificate)
        certificate.check(now_ms)
        raw = decode_public(certificate.node, KeyKind.NODE)
    except (msgspec.MsgspecError, ProtocolError, RecursionError, UnicodeDecodeError):
        return None
    return certificate.mesh if verify(raw, _signed(challenge, slot), shown.signature) else None


def _signed(challenge: bytes, slot: str) -> bytes:
    return _DOMAIN + challenge + slot.encode()
