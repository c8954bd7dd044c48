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
        self._meshes = {node: mesh for mesh, node in self._certificates}
        self._revoked: dict[str, Revocation] = {}
        for revocation in revocations:
            self.revoke(revocation)

    def learn(self, certificate: Certificate, *, proved: bool = False) -> bool:
        """Take in another certificate that was verified; returns whether it was new. One a node: the latest ending.

        A node speaks for one mesh: the one that was heard of first, unless the node itself `proved` to be another's.
        Else anybody could certify a key that is not theirs, and have its words count as their own.
        """
        key = (certificate.mesh, certificate.node)
        held = self._certificates.get(key)
        if proved:
            self._meshes[certificate.node] = certificate.mesh
        if held is not None and held.not_after_ms >= certificate.not_after_ms:
            return False
        if self._meshes.get(certificate.node, certificate.mesh) != certificate.mesh:
            return False
        self._certificates[key] = certificate
        self._meshes[certificate.node] = certificate.mesh
        return True

    def revoke(self, revocation: Revocation) -> bool:
        """Take in a revocation list that was verified; returns whether it was newer than what is held."""
        held = self._revoked.get(revocation.mesh)
        if held is not None and held.serial >= revocation.serial:
            return False
        self._revoked[revocation.mesh] = revocation
        return True

    def mesh_of(self, node: NodeId) -> MeshId | None:
        """Which mesh a node speaks for, as far as is known."""
        return self._meshes.get(node)

    def nodes(self, mesh: str) -> list[NodeId]:
        """The nodes of a mesh that have a certificate which is known here, by their ids; also those out of service."""
        return sorted(node for held, node in self._certificates if held == mesh)

    def certificate(self, mesh: str, node: str) -> Certificate | None:
        """What vouches for a node, if anything does."""
        return self._certificates.get((MeshId(mesh), NodeId(node)))

    def revoked(self, mesh: str, node: str) -> bool:
        """Whether a mesh has taken a node out of service."""
        held = self._revoked.get(mesh)
        return held is not None and node in held.nodes

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
