"""The keys of a home: who its mesh, node and client are, and what the mesh has said of its nodes."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.trust import Trust
from nodes.disk import told, write_private
from nodes.errors import HomeError
from protocol.certificate import Certificate, Revocation, issue, read_certificate, read_revocation, revoke
from protocol.errors import BadKey, ProtocolError
from protocol.keys import KEY_BYTES, KeyKind, MeshId, NodeId, Signer, decode_public

CERTIFICATE_MS: Final = 365 * 86_400_000  # a node is certified for a year; `mesh keys rotate` begins another
BACKDATED_MS: Final = 300_000  # for a clock that is put right after the certificate was made

_SEEDS: Final = {"mesh": KeyKind.MESH, "node": KeyKind.NODE, "client": KeyKind.NODE, "system": KeyKind.NODE}


class KeyLost(HomeError):
    """A key file is missing or damaged: there is nothing in it that a new one would overwrite."""


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys of the home at `path`."""

    path: Path

    @property
    def keys(self) -> Path:
        """Where the secrets are."""
        return self.path / "keys"

    def begin(self, now_ms: int) -> None:
        """Make all keys, and the mesh's certificate for the node, where there are none. Raises OSError."""
        for name in ("mesh", "client", "system"):
            self._make(name)
        self.certify(self.signer("mesh"), now_ms)

    def signer(self, name: str) -> Signer:
        """Read a key: `mesh`, `node`, `client` or `system`. Raises HomeError, never with key material in it."""
        path = self.keys / f"{name}.seed"
        try:
            mode = path.stat().st_mode
            signer = Signer.from_seed(path.read_text("ascii").strip())
        except FileNotFoundError:
            raise KeyLost(f"{path} is missing; {self._mend(name)}") from None
        except (UnicodeDecodeError, ProtocolError):
            raise KeyLost(f"{path} cannot be read as a key; {self._mend(name)}") from None
        except OSError as error:
            raise HomeError(told(f"{path} cannot be read", error, "check its owner and permissions")) from None
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise HomeError(f"{path} can be read by other people on this machine; run: chmod 600 {path}")
        if signer.kind != _SEEDS[name]:
            raise KeyLost(f"{path} holds the key of something else; {self._mend(name)}")
        return signer

    def _mend(self, name: str) -> str:
        """What to do about a key that is lost."""
        if name == "mesh":
            return "restore it from a backup, or name a copy of it: mesh keys rotate --mesh-key FILE"
        here = (self.keys / "mesh.seed").exists()
        return "run: mesh keys rotate" + ("" if here else " --mesh-key FILE, with the mesh key that is kept elsewhere")

    def mesh_id(self) -> MeshId:
        """Whose home this is: what the node's certificate says, so that the mesh key may be kept elsewhere."""
        return self.certificate().mesh

    def certificate(self) -> Certificate:
        """The certificate of this home's node. Raises HomeError."""
        node = self.signer("node").public
        path = self._certificate(NodeId(node))
        try:
            return read_certificate(path.read_bytes())
        except FileNotFoundError:
            raise HomeError(f"{path}, the node's certificate, is missing; {self._mend('node')}") from None
        except (OSError, ProtocolError) as error:
            raise HomeError(f"{path} is no certificate for this node's key: {error}; {self._mend('node')}") from None

    def paper(self, node: NodeId) -> bytes | None:
        """The certificate of a node of this mesh, as signed; None: there is none, or it cannot be read."""
        try:
            return self._certificate(node).read_bytes()
        except OSError:
            return None

    def documents(self) -> tuple[list[bytes], list[bytes]]:
        """All certificates and revocation lists of this home as they were signed.

        The node's own certificate is the first, then come the newest of others. Raises HomeError.
        """
        own = self._certificate(NodeId(self.signer("node").public))
        try:
            others = sorted((path for path in self._certificates() if path != own), key=_age, reverse=True)
            lists = sorted(self.keys.glob("*.revocation"))
            return [path.read_bytes() for path in (own, *others)], [path.read_bytes() for path in lists]
        except OSError as error:
            raise HomeError(told(f"{self.keys} cannot be read", error, "check its owner and permissions")) from None

    def trust(self) -> Trust:
        """Everything this home has certified and revoked."""
        path = self.keys
        try:
            certificates = [read_certificate((path := one).read_bytes()) for one in self._certificates()]
            revocations = [
                read_revocation((path := one).read_bytes()) for one in sorted(self.keys.glob("*.revocation"))
            ]
        except (OSError, ProtocolError) as error:
            raise HomeError(
                f"{path} cannot be read: {error}; restore it from a backup, or move it away: then what it says of a"
                " node no longer counts"
            ) from None
        return Trust(certificates, revocations)

    def rotate(self, now_ms: int, mesh: Signer | None, *, revoke_old: bool) -> NodeId:
        """Put a new node key into service; with `revoke_old` the old one's words no longer count. Gives the new id.

        Other keys, certificates of the node that are lost are made anew. `mesh` is the mesh key where it is kept
        elsewhere. The node must not be running.
        """
        signer, old = mesh or self.signer("mesh"), self.held("node")
        if self._known_mesh() not in {None, signer.public}:
            raise HomeError("this is the key of another mesh")
        if revoke_old and old is None:
            raise HomeError("the node's old key is lost, so it cannot be revoked; run it without --revoke")
        try:
            self.keys.mkdir(mode=0o700, exist_ok=True)
            for path in self._certificates():
                if _unreadable(path):
                    path.replace(path.with_name(path.name + ".damaged"))
            for name in ("client", "system"):
                if self.held(name) is None:
                    self._make(name)
            if old is not None and not self._certificate(NodeId(old.public)).exists():
                self._issue(signer, NodeId(old.public), 0, now_ms)  # what it said until now stays believed
            node = self.certify(signer, now_ms)
            if revoke_old and old is not None:
                self._revoke(signer, NodeId(old.public))
        except OSError as error:
            raise HomeError(told(f"{self.keys} cannot be written", error, "check its owner and permissions")) from None
        return node

    def revoke(self, node: NodeId, mesh: Signer | None) -> Revocation:
        """Take another node of this mesh out of service; gives the new list. The node here must not be running.

        `mesh` is the mesh key where it is kept elsewhere. Raises HomeError.
        """
        try:
            decode_public(node, KeyKind.NODE)
        except BadKey:
            raise HomeError(f"{node[:80]!a} is no node: give its whole id, which begins with U") from None
        signer, own = mesh or self.signer("mesh"), self.held("node")
        if self._known_mesh() not in {None, signer.public}:
            raise HomeError("this is the key of another mesh")
        if own is not None and own.public == node:
            raise HomeError("that is the node of this home; run: mesh keys rotate --revoke")
        held = self.revocation()
        if node in held.nodes:
            raise HomeError(f"{node} has been revoked before, by list {held.serial}")
        try:
            return self._revoke(signer, node)
        except OSError as error:
            raise HomeError(told(f"{self.keys} cannot be written", error, "check its owner and permissions")) from None

    def _revoke(self, signer: Signer, node: NodeId) -> Revocation:
        held = self.revocation()
        after = Revocation(held.mesh, held.serial + 1, [*held.nodes, node])
        write_private(self.keys / "mesh.revocation", revoke(signer, after))
        return after

    def restore(self, mesh: Signer, certificates: Iterable[bytes], revocation: bytes | None, now_ms: int) -> None:
        """Begin again with an old mesh key, and what it once signed, and new other keys. Raises OSError."""
        self.keys.mkdir(mode=0o700, parents=True)
        write_private(self.keys / "mesh.seed", mesh.seed().encode())
        for data in certificates:
            write_private(self._certificate(read_certificate(data).node), data)
        if revocation is not None:
            write_private(self.keys / "mesh.revocation", revocation)
        for name in ("client", "system"):
            self._make(name)
        self.certify(mesh, now_ms)

    def held(self, name: str) -> Signer | None:
        """A key, or None when it is lost. Raises HomeError when it is there and cannot be used."""
        try:
            return self.signer(name)
        except KeyLost:
            return None

    def _known_mesh(self) -> MeshId | None:
        """Whose home this is, by any certificate that is left."""
        with contextlib.suppress(HomeError):
            return self.mesh_id()
        left = [path for path in self._certificates() if not _unreadable(path)]
        return read_certificate(left[0].read_bytes()).mesh if left else None

    def revocation(self) -> Revocation:
        """The nodes that this mesh has revoked. Raises HomeError."""
        path = self.keys / "mesh.revocation"
        try:
            return read_revocation(path.read_bytes()) if path.exists() else Revocation(self.mesh_id(), 0, [])
        except (OSError, ProtocolError) as error:
            raise HomeError(
                f"{path} cannot be read: {error}; restore it from a backup, or move it away: then what it revoked"
                " counts again"
            ) from None

    def certify(self, mesh: Signer, now_ms: int) -> NodeId:
        """Make a node key and the mesh's certificate for it; gives its id."""
        signer = _new_signer(KeyKind.NODE)
        node = NodeId(signer.public)
        self._issue(mesh, node, now_ms - BACKDATED_MS, now_ms + CERTIFICATE_MS)
        write_private(self.keys / "node.seed", signer.seed().encode())
        return node

    def _issue(self, mesh: Signer, node: NodeId, start_ms: int, end_ms: int) -> None:
        certificate = Certificate(MeshId(mesh.public), node, start_ms, end_ms, ["speak"])
        write_private(self._certificate(node), issue(mesh, certificate))

    def _make(self, name: str) -> None:
        write_private(self.keys / f"{name}.seed", _new_signer(_SEEDS[name]).seed().encode())

    def _certificate(self, node: NodeId) -> Path:
        return self.keys / f"{node}.certificate"

    def _certificates(self) -> list[Path]:
        return sorted(self.keys.glob("*.certificate"))


def _new_signer(kind: KeyKind) -> Signer:
    return Signer(secrets.token_bytes(KEY_BYTES), kind)


def _age(certificate: Path) -> int:
    """When a certificate began to hold (Unix milliseconds); 0 for what is none."""
    try:
        return read_certificate(certificate.read_bytes()).not_before_ms
    except (OSError, ProtocolError):
        return 0


def _unreadable(certificate: Path) -> bool:
    try:
        read_certificate(certificate.read_bytes())
    except (OSError, ProtocolError):
        return True
    return False
