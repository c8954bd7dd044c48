"""Certificates and revocation lists of other meshes: taken in, kept, and shown to peers who need them.

A paper proves itself by its mesh's signature, whoever brought it. How many are kept is bounded: a mesh has a handful of
nodes, and whoever sends thousands wants our memory.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from mesh.links.ground import Ground, refuse
from mesh.links.messages import Papers
from mesh.store import Store
from mesh.trust import Trust
from protocol.certificate import Certificate, read_certificate, read_revocation
from protocol.errors import BadCertificate, ProtocolError
from protocol.keys import MeshId

MAX_NODES: Final = 64  # certificates that are kept of one mesh, beside those whose nodes proved to hold their key
MAX_CARRIED: Final = 20_000  # certificates kept in all of meshes that others brought: some megabytes
MAX_BROUGHT: Final = 2_000  # of them by one peer, or it would have no words of strangers heard that others pass on


def learn_papers(store: Store, trust: Trust) -> None:
    """Believe again what peers' nodes have shown: call it before anything of theirs is read from the stream."""
    for data, proved in store.rows("SELECT data, proved FROM link_papers ORDER BY proved DESC, mesh, node"):
        trust.learn(read_certificate(data), proved=bool(proved))
    for (data,) in store.rows("SELECT data FROM link_revocations ORDER BY mesh"):
        trust.revoke(read_revocation(data))


def paper(ground: Ground, mesh: str, node: str) -> bytes | None:
    """The certificate of another mesh's node, as signed."""
    row = ground.store.one("SELECT data FROM link_papers WHERE mesh = ? AND node = ?", (mesh, node))
    return row[0] if row else None


def revocations(ground: Ground, meshes: Iterable[str]) -> list[bytes]:
    """The revocation lists that are held of some meshes, as signed."""
    sql = "SELECT data FROM link_revocations WHERE mesh = ?"
    rows = (ground.store.one(sql, (mesh,)) for mesh in sorted(meshes))
    return [row[0] for row in rows if row]


def prove(ground: Ground, data: bytes) -> None:
    """Take in the certificate that a peer's node has proved to hold."""
    certificate = read_certificate(data)
    ground.trust.learn(certificate, proved=True)
    with ground.store.transaction():
        _save(ground, certificate, data, proved=True)


def learn(ground: Ground, peer: MeshId, papers: Papers) -> int:
    """Take in what a peer shows; what proves nothing or is too much is counted. Returns how much that was."""
    faults = Counter[str]()
    with ground.store.transaction():  # one for all: a commit costs as much as a check
        for take, all_of_them in ((_certificate, papers.certificates), (_revocation, papers.revocations)):
            for data in all_of_them:
                try:
                    take(ground, peer, data)
                except ProtocolError as error:
                    faults[type(error).__name__] += 1
    for reason, times in faults.items():
        refuse(ground.store, peer, reason, times)
    return faults.total()


def _certificate(ground: Ground, peer: MeshId, data: bytes) -> None:
    certificate = read_certificate(data)
    if certificate.mesh == ground.mesh:
        return
    if not _has_room(ground, peer, certificate):
        raise BadCertificate("it is one more of its mesh, of the peer that brings it, or in all, than are kept")
    if ground.trust.learn(certificate):
        _save(ground, certificate, data, proved=False)
        sql = "INSERT OR IGNORE INTO link_carriers VALUES (?, ?, ?)"
        ground.store.execute(sql, (peer, certificate.mesh, certificate.node))


def _has_room(ground: Ground, peer: MeshId, certificate: Certificate) -> bool:
    """Whether another certificate may be kept; one that takes the place of an older one always may."""
    store = ground.store
    sql = "SELECT 1 FROM link_papers WHERE mesh = ? AND node = ?"
    if store.one(sql, (certificate.mesh, certificate.node)):
        return True
    sql = "SELECT count(*) FROM link_papers WHERE mesh = ? AND NOT proved"
    if store.one(sql, (certificate.mesh,))[0] >= MAX_NODES:
        return False
    if store.one("SELECT count(*) FROM link_carriers WHERE peer = ?", (peer,))[0] >= MAX_BROUGHT:
        return False
    return store.one("SELECT count(*) FROM link_papers WHERE NOT proved")[0] < MAX_CARRIED


def _save(ground: Ground, certificate: Certificate, data: bytes, *, proved: bool) -> None:
    sql = (
        "INSERT INTO link_papers VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET data = excluded.data, proved = max(proved, excluded.proved)"
    )
    ground.store.execute(sql, (certificate.mesh, certificate.node, data, proved))


def _revocation(ground: Ground, peer: MeshId, data: bytes) -> None:  # noqa: ARG001 - as for certificates
    """Take in a list of a mesh that is known: those of others would only fill the disk."""
    revocation = read_revocation(data)
    if revocation.mesh == ground.mesh or not ground.trust.knows(revocation.mesh):
        return
    if ground.trust.revoke(revocation):
        ground.store.execute("INSERT OR REPLACE INTO link_revocations VALUES (?, ?)", (revocation.mesh, data))
