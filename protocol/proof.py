"""Proofs: one act with all that it takes to check, years later and on any machine, that a node of its mesh signed it.

    MessagePack ["ampmesh-proof", 1, act id, frame, certificate, revocation list or nil]

The frame, the certificate and the list are the bytes as they were signed. A frame holds all that its node said in the
basin at one moment, so a proof shows these acts too. Reading is total: any bytes give a proof or BadProof.
"""

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from protocol.acts import Act, ActId, Id
from protocol.certificate import MAX_DOCUMENT, Certificate, Revocation, read_certificate, read_revocation
from protocol.errors import BadCertificate, BadFrame, BadProof, FrameFault, ProtocolError
from protocol.frame import MAX_FRAME, Frame, decode_frame

VERSION: Final = 1
MAX_PROOF: Final = MAX_FRAME + 2 * MAX_DOCUMENT + 128  # bytes; the rest is heads of MessagePack
_TAG: Final = "ampmesh-proof"


class Proof(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=_TAG):
    """What a proof's file holds; nothing in it has been checked."""

    version: int
    act: Id
    frame: Annotated[bytes, msgspec.Meta(max_length=MAX_FRAME)]
    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)]
    revocation: Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)] | None = None


@dataclass(frozen=True, slots=True)
class Proved:
    """An act of `frame`, whose signature holds, by a node that `certificate` put into service when the frame was sent.

    `revocation` is the newest list of the mesh that is known; None: no list is.
    """

    act: Act
    frame: Frame
    certificate: Certificate
    revocation: Revocation | None

    @property
    def revoked(self) -> bool:
        """Whether the mesh took the node out of service: who has its key could have dated anything back."""
        return self.revocation is not None and self.frame.node in self.revocation.nodes


def write_proof(act: ActId, frame: bytes, certificate: bytes, revocation: bytes | None) -> bytes:
    """The bytes of a proof. Check it before you give it to anybody."""
    return _encode(Proof(VERSION, act, frame, certificate, revocation))


def read_proof(data: bytes) -> Proof:
    """Read a proof, without checking it. Raises BadProof."""
    if len(data) > MAX_PROOF:
        raise BadProof("this is longer than any proof")
    try:
        head = _head.decode(data)
        if head.tag == _TAG and head.version != VERSION:
            raise BadProof(f"this proof is of version {head.version}, and version {VERSION} is read here")
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadProof("this is no proof of an act, or it is damaged") from None


def check_proof(proof: Proof, newer: Revocation | None = None) -> Proved:
    """Verify everything in a proof. `newer` is a list of the mesh that is known otherwise; the newest one counts.

    Raises BadProof with the first link of the chain that does not hold. Whether the node was revoked is for the caller.
    """
    frame = _frame(proof.frame)
    act = next((act for act in frame.acts if act.id == proof.act), None)
    if act is None:
        raise BadProof("the act is not in the frame that the proof shows")
    try:
        certificate = read_certificate(proof.certificate)
    except BadCertificate as error:
        raise BadProof(f"the certificate proves nothing: {error}") from None
    if certificate.node != frame.node:
        raise BadProof("the certificate is another node's than the one that signed the frame")
    if not certificate.not_before_ms <= frame.sent_at_ms <= certificate.not_after_ms:
        raise BadProof("the certificate was not valid at the time that the frame says it was sent")
    shown = None if proof.revocation is None else _revocation(proof.revocation)
    lists = [one for one in (shown, newer) if one is not None]
    if any(one.mesh != certificate.mesh for one in lists):
        raise BadProof("the revocation list is another mesh's")
    return Proved(act, frame, certificate, max(lists, key=lambda one: one.serial, default=None))


def _frame(data: bytes) -> Frame:
    try:
        return decode_frame(data)
    except BadFrame as error:
        if error.fault == FrameFault.SIGNATURE:
            raise BadProof("the signature does not hold: the words were changed or taken back after it") from None
        raise BadProof(f"the frame cannot be read: {error}") from None
    except ProtocolError as error:
        raise BadProof(f"the frame breaks the protocol: {error}") from None


def _revocation(data: bytes) -> Revocation:
    try:
        return read_revocation(data)
    except BadCertificate as error:
        raise BadProof(f"the revocation list proves nothing: {error}") from None


class _Head(msgspec.Struct, array_like=True, frozen=True):
    tag: str
    version: int


_encode = msgspec.msgpack.Encoder().encode
_decoder: Final = msgspec.msgpack.Decoder(Proof)
_head: Final = msgspec.msgpack.Decoder(_Head)
