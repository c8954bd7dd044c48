"""Whom this node believes to speak for whom."""

from collections.abc import Iterable

from protocol.address import Subject
from protocol.certificate import Certificate, Revocation
from protocol.errors import BadCertificate
from protocol.frame import Frame
from protocol.keys import MeshId, NodeId

CLOCK_SKEW_MS = 300_000  # a frame from five minutes ahead is a clock that runs fast, not an attack


class Trust:
    """The certificates and revocations that a node holds."""

    def __init__(self, certificates: Iterable[Certificate], revocations: Iterable[Revocation] = ()) -> None:
        """Take documents that `protocol.certificate` has already verified."""
        self._certificates = {(certificate.mesh, certificate.node): certificate for certificate in certificates}
        self._revoked: dict[str, Revocation] = {}
        for revocation in revocations:
            held = self._revoked.get(revocation.mesh)
            if held is None or held.serial < revocation.serial:
                self._revoked[revocation.mesh] = revocation

    def certificate(self, mesh: str, node: str) -> Certificate | None:
        """What vouches for a node, if anything does."""
        return self._certificates.get((MeshId(mesh), NodeId(node)))

    def knows(self, mesh: str) -> bool:
        """Whether any certificate of a mesh is held."""
        return any(held == mesh for held, _ in self._certificates)

    def check(self, subject: Subject, frame: Frame, now_ms: int) -> None:
        """Raise BadCertificate unless the frame came by the subject of its own basin and node, and the mesh vouches.

        The certificate must have been valid when the frame was sent, and the frame must not come from the future.
        """
        if frame.node != subject.node or frame.basin != subject.basin:
            raise BadCertificate("the frame travels under a node or basin that is not its own")
        certificate = self._certificates.get((subject.mesh, frame.node))
        if certificate is None:
            raise BadCertificate("no certificate of that mesh for this node is known here")
        revoked = self._revoked.get(subject.mesh)
        if revoked is not None and frame.node in revoked.nodes:
            raise BadCertificate("the mesh has revoked this node")
        if frame.sent_at_ms > now_ms + CLOCK_SKEW_MS:
            raise BadCertificate("the frame comes from the future; check both clocks")
        certificate.check(frame.sent_at_ms)
