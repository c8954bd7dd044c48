"""Documents that one mesh's node signs for one other mesh: cards, introductions, receipts.

`signature (64 bytes) ‖ MessagePack array`. The node signs a domain string, a zero byte, and the array exactly as it
travelled; the certificate within says for which mesh it may. A document names who it is for, so that it proves nothing
to anybody else and cannot be shown to a third mesh as if it were meant for it.
"""

from typing import Annotated, Final, TypeVar

import msgspec

from protocol.budget import Count
from protocol.certificate import Certificate, read_certificate
from protocol.errors import BadCertificate, BadDocument, BadKey
from protocol.keys import SIGNATURE_BYTES, KeyKind, MeshId, Signer, decode_public, verify
from protocol.statement import MAX_AHEAD_MS

MAX_DOCUMENT: Final = 32_768  # bytes; two fit into what linked nodes say to each other at once
MAX_CERTIFICATE: Final = 4_096  # bytes; one with the most and longest rights has less than 1,000


class Document(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What every one begins with: whose it is, the signing node's certificate, who it is for, and when it was made.

    `made_ms` is the signer's Unix milliseconds.
    """

    mesh: MeshId
    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_CERTIFICATE)]
    to: MeshId
    made_ms: Count


_Kind = TypeVar("_Kind", bound=Document)


def sign_document(node: Signer, domain: bytes, document: Document) -> bytes:
    """The signed bytes. Raises ValueError for a document that nobody would take: our own mistake."""
    body = msgspec.msgpack.encode(document)
    try:
        certificate = _certificate(document)
    except BadDocument as error:
        raise ValueError(str(error)) from None
    if certificate.node != node.public or len(body) + SIGNATURE_BYTES > MAX_DOCUMENT:
        raise ValueError(f"it is signed by the node in its certificate and has at most {MAX_DOCUMENT} bytes")
    return node.sign(domain + body) + body


def read_document(data: bytes, kind: type[_Kind], domain: bytes, to: MeshId, now_ms: int) -> _Kind:
    """Verify and read a document that is for `to`. Raises BadDocument.

    The caller looks at whose it is, and the certificate's node up in that mesh's revocation list, where it has one.
    """
    if not SIGNATURE_BYTES < len(data) <= MAX_DOCUMENT:
        raise BadDocument("it is too short or too long")
    signature, body = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    try:
        document = msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadDocument("it cannot be read") from None
    certificate = _certificate(document)
    if not verify(decode_public(certificate.node, KeyKind.NODE), domain + body, signature):
        raise BadDocument("it is not signed by the node in its certificate")
    if document.to != to:
        raise BadDocument("it is meant for another mesh")
    if document.made_ms > now_ms + MAX_AHEAD_MS:
        raise BadDocument("it is dated more than five minutes from now; check both clocks")
    return document


def node_of(document: Document) -> str:
    """The node that signed a document which was read, or is being signed."""
    return read_certificate(document.certificate).node


def _certificate(document: Document) -> Certificate:
    """Its certificate, which must be of its mesh and valid when it was made."""
    try:
        decode_public(document.to, KeyKind.MESH)
        certificate = read_certificate(document.certificate)
        certificate.check(document.made_ms)
    except (BadCertificate, BadKey) as error:
        raise BadDocument(str(error)) from None
    if certificate.mesh != document.mesh:
        raise BadDocument("its certificate is another mesh's")
    return certificate
