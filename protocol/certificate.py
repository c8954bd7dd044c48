"""A mesh puts nodes into service and takes them out again.

Both documents are `signature (64 bytes) ‖ MessagePack array`, signed by the mesh key over a domain string, a zero byte
and the array exactly as it travelled.
"""

from typing import Annotated, Final, TypeVar

import msgspec

from protocol.errors import BadCertificate, BadKey
from protocol.keys import SIGNATURE_BYTES, KeyKind, MeshId, NodeId, Signer, decode_public, verify

MAX_DOCUMENT: Final = 65_536  # bytes; a revocation list of a thousand nodes
MAX_RIGHTS: Final = 16
_CERTIFICATE: Final = b"ampmesh/certificate/1\0"
_REVOCATION: Final = b"ampmesh/revocation/1\0"

Right = Annotated[str, msgspec.Meta(max_length=32)]
_Document = TypeVar("_Document", "Certificate", "Revocation")


class Certificate(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """`node` may act for `mesh` between two times (Unix milliseconds); `may` lists its rights."""

    mesh: MeshId
    node: NodeId
    not_before_ms: int
    not_after_ms: int
    may: Annotated[list[Right], msgspec.Meta(max_length=MAX_RIGHTS)]

    def check(self, now_ms: int) -> None:
        """Raise BadCertificate unless it is valid at `now_ms`."""
        if not self.not_before_ms <= now_ms <= self.not_after_ms:
            raise BadCertificate("the certificate is not valid at this time; check the clock, or rotate the node key")


class Revocation(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Nodes that no longer act for `mesh`. A list replaces every list with a lower serial number."""

    mesh: MeshId
    serial: int
    nodes: list[NodeId]


def issue(mesh: Signer, certificate: Certificate) -> bytes:
    """The signed bytes of a certificate. Raises ValueError when another mesh is named in it."""
    return _sign(mesh, certificate, _CERTIFICATE)


def revoke(mesh: Signer, revocation: Revocation) -> bytes:
    """The signed bytes of a revocation list. Raises ValueError when another mesh is named in it."""
    return _sign(mesh, revocation, _REVOCATION)


def read_certificate(data: bytes) -> Certificate:
    """Decode and verify; the caller checks the time. Raises BadCertificate."""
    certificate = _read(data, Certificate, _CERTIFICATE)
    try:
        decode_public(certificate.node, KeyKind.NODE)
    except BadKey as error:
        raise BadCertificate(str(error)) from None
    return certificate


def read_revocation(data: bytes) -> Revocation:
    """Decode and verify. Raises BadCertificate."""
    return _read(data, Revocation, _REVOCATION)


def _sign(mesh: Signer, document: Certificate | Revocation, domain: bytes) -> bytes:
    if mesh.public != document.mesh:
        raise ValueError("only the mesh itself can sign this document")
    body = msgspec.msgpack.encode(document)
    return mesh.sign(domain + body) + body


def _read(data: bytes, kind: type[_Document], domain: bytes) -> _Document:
    if len(data) > MAX_DOCUMENT:
        raise BadCertificate("the document is too long")
    signature, body = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    try:
        document = msgspec.msgpack.decode(body, type=kind)
        raw = decode_public(document.mesh, KeyKind.MESH)
    except (msgspec.MsgspecError, BadKey, RecursionError, UnicodeDecodeError):
        raise BadCertificate("the document cannot be read") from None
    if not verify(raw, domain + body, signature):
        raise BadCertificate("the document is not signed by the mesh it names")
    return document
