"""Offers: what two meshes that are about to link hold out to each other, signed.

`signature (64 bytes) ‖ MessagePack array`. A node signs `ampmesh/offer/1`, a zero byte, and the array exactly as it
travelled; the certificate within says for which mesh it may. The inviter's offer is fetched with an invitation's guest
key; the other mesh answers with an offer of its own. Both name that key, so that an offer counts for this pair alone.
"""

from typing import Annotated, Final

import msgspec

from protocol.address import check_name
from protocol.certificate import Certificate, read_certificate
from protocol.errors import BadAddress, BadCertificate, BadInvitation, BadKey, InvitationFault
from protocol.keys import SIGNATURE_BYTES, KeyKind, MeshId, NodeId, Signer, decode_public, verify
from protocol.statement import MAX_BASINS, May
from protocol.vocabulary import Digest

MAX_OFFER: Final = 16_384  # bytes; 64 of the longest names either way and a long certificate still fit
MAX_DIGEST: Final = 128  # characters; room for a longer hash than today's 67
_DOMAIN: Final = b"ampmesh/offer/1\0"
_Basins = Annotated[dict[str, May], msgspec.Meta(max_length=MAX_BASINS)]


class Offer(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What `mesh` would give and take, per basin, until `expires_s` (Unix seconds).

    `name` is what it would like to be called; the other person decides. `guest` is the public half of the invitation's
    guest key. `certificate` is the signing node's, as it travels. `vocabulary` is the digest of all its terms.
    """

    mesh: MeshId
    name: str
    guest: NodeId
    certificate: bytes
    gives: _Basins
    takes: _Basins
    expires_s: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    vocabulary: Annotated[Digest, msgspec.Meta(max_length=MAX_DIGEST)]


def sign_offer(node: Signer, offer: Offer) -> bytes:
    """The signed bytes. Raises ValueError for an offer that nobody would accept: our own mistake."""
    body = msgspec.msgpack.encode(offer)
    try:
        certificate = _check(offer)
    except BadInvitation as error:
        raise ValueError(str(error)) from None
    if certificate.node != node.public or len(body) + SIGNATURE_BYTES > MAX_OFFER:
        raise ValueError(f"an offer is signed by the node in its certificate and has at most {MAX_OFFER} bytes")
    return node.sign(_DOMAIN + body) + body


def read_offer(data: bytes, guest: NodeId, mesh: MeshId | None, now_ms: int) -> Offer:
    """Check and read an offer made under an invitation. Raises BadInvitation.

    `mesh` is the invitation's, or None for the answer to one's own invitation, whose mesh is not known before. The
    caller looks the certificate's node up in the mesh's revocation list, where it has one.
    """
    if not SIGNATURE_BYTES < len(data) <= MAX_OFFER:
        raise _bad("the offer is too short or too long")
    signature, body = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    try:
        offer = msgspec.msgpack.decode(body, type=Offer)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise _bad("the offer cannot be read") from None
    certificate = _check(offer)
    if not verify(decode_public(certificate.node, KeyKind.NODE), _DOMAIN + body, signature):
        raise _forged("the offer is not signed by the node in its certificate")
    if offer.guest != guest or (mesh is not None and offer.mesh != mesh):
        raise _forged("the offer belongs to another invitation")
    try:
        certificate.check(now_ms)
    except BadCertificate as error:
        raise _forged(str(error)) from None
    if now_ms >= offer.expires_s * 1000:
        raise BadInvitation(InvitationFault.EXPIRED, "the offer has expired; ask for a new invitation")
    return offer


def _check(offer: Offer) -> Certificate:
    """What the types do not say; gives the certificate."""
    try:
        for name in (offer.name, *offer.gives, *offer.takes):
            check_name(name)
        decode_public(offer.guest, KeyKind.NODE)
        certificate = read_certificate(offer.certificate)
    except (BadAddress, BadKey) as error:
        raise _bad(f"the offer breaks the protocol's rules: {error}") from None
    except BadCertificate as error:
        raise _forged(str(error)) from None
    if certificate.mesh != offer.mesh:
        raise _forged("the offer's certificate is another mesh's")
    return certificate


def _bad(sentence: str) -> BadInvitation:
    return BadInvitation(InvitationFault.CONTENT, sentence)


def _forged(sentence: str) -> BadInvitation:
    return BadInvitation(InvitationFault.FORGED, sentence)
