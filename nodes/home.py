"""The home folder: everything one node is, in one place.

mesh.yaml   the person's settings
ems/        a folder an em
keys/       secrets, 0600: mesh.seed, node.seed, client.seed, system.seed; and what they signed
data/       nats/ (the stream), node.db, node.json (where the running node is reached)
"""

import os
import re
import secrets
import shutil
import stat
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from mesh.clock import Clock
from mesh.errors import StoreFailed
from mesh.store import Hold
from mesh.trust import Trust
from nodes.config import MeshConfig, starter_mesh_yaml
from nodes.errors import HomeError
from nodes.settings import load
from protocol.certificate import Certificate, Revocation, issue, read_certificate, read_revocation, revoke
from protocol.errors import ProtocolError
from protocol.keys import KEY_BYTES, KeyKind, MeshId, NodeId, Signer

CERTIFICATE_MS: Final = 365 * 86_400_000  # a node is certified for a year; `mesh keys rotate` begins another
BACKDATED_MS: Final = 300_000  # for a clock that is put right after the certificate was made

_SEEDS: Final = {"mesh": KeyKind.MESH, "node": KeyKind.NODE, "client": KeyKind.NODE, "system": KeyKind.NODE}
_NOT_A_NAME = re.compile(r"[^a-z0-9_-]+")


class Running(msgspec.Struct, frozen=True):
    """Where the running node is reached: its process, its bus."""

    pid: int
    url: str
    started_ms: int


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder that exists."""

    path: Path

    @property
    def ems(self) -> Path:
        """Where the em folders are."""
        return self.path / "ems"

    @property
    def data(self) -> Path:
        """Where everything is that can be kept apart from what a person wrote."""
        return self.path / "data"

    @property
    def keys(self) -> Path:
        """Where the secrets are."""
        return self.path / "keys"

    @property
    def database(self) -> Path:
        """The node's database."""
        return self.data / "node.db"

    def config(self) -> MeshConfig:
        """Read mesh.yaml. Raises ConfigError with every mistake in it."""
        return load(self.path / "mesh.yaml", MeshConfig)

    def signer(self, name: str) -> Signer:
        """Read a key: `mesh`, `node`, `client` or `system`. Raises HomeError, never with key material in it."""
        path = self.keys / f"{name}.seed"
        try:
            mode = path.stat().st_mode
            seed = path.read_text("ascii").strip()
            signer = Signer.from_seed(seed)
        except FileNotFoundError:
            raise HomeError(f"{path} is missing; restore it from a backup of the home folder") from None
        except (OSError, UnicodeDecodeError, ProtocolError) as error:
            raise HomeError(f"{path} cannot be read as a key: {error}") from None
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise HomeError(f"{path} can be read by other people on this machine; run: chmod 600 {path}")
        if signer.kind != _SEEDS[name]:
            raise HomeError(f"{path} holds the key of something else; restore it from a backup")
        return signer

    def mesh_id(self) -> MeshId:
        """Whose home this is: what the node's certificate says, so that the mesh key may be kept elsewhere."""
        return self.certificate().mesh

    def certificate(self) -> Certificate:
        """The certificate of this home's node. Raises HomeError."""
        node = self.signer("node").public
        path = self._certificate(NodeId(node))
        try:
            return read_certificate(path.read_bytes())
        except (OSError, ProtocolError) as error:
            raise HomeError(f"{path} is no certificate for this node's key: {error}; run: mesh keys rotate") from None

    def trust(self) -> Trust:
        """Everything this home has certified and revoked."""
        try:
            certificates = [read_certificate(path.read_bytes()) for path in sorted(self.keys.glob("*.certificate"))]
            revocations = [read_revocation(path.read_bytes()) for path in sorted(self.keys.glob("*.revocation"))]
        except (OSError, ProtocolError) as error:
            raise HomeError(f"a document in {self.keys} cannot be read: {error}; restore it from a backup") from None
        return Trust(certificates, revocations)

    def rotate(self, now_ms: int, mesh: Signer | None, *, revoke_old: bool) -> NodeId:
        """Put a new node key into service; with `revoke_old` the old one's words no longer count. Gives the new id.

        `mesh` is the mesh key where it is kept elsewhere. The node must not be running.
        """
        signer, old = mesh or self.signer("mesh"), self.signer("node")
        if signer.public != self.mesh_id():
            raise HomeError("this is the key of another mesh")
        node = self.certify(signer, now_ms)
        if revoke_old:
            held = self.revocation()
            after = Revocation(held.mesh, held.serial + 1, [*held.nodes, NodeId(old.public)])
            _write(self.keys / "mesh.revocation", revoke(signer, after))
        return node

    def revocation(self) -> Revocation:
        """The nodes that this mesh has revoked. Raises HomeError."""
        path = self.keys / "mesh.revocation"
        try:
            return read_revocation(path.read_bytes()) if path.exists() else Revocation(self.mesh_id(), 0, [])
        except (OSError, ProtocolError) as error:
            raise HomeError(f"{path} cannot be read: {error}; restore it from a backup") from None

    def running(self) -> Running | None:
        """Where the node of this home said it is; it may have died since."""
        try:
            return msgspec.json.decode((self.data / "node.json").read_bytes(), type=Running)
        except (OSError, msgspec.MsgspecError):
            return None

    def announce(self, running: Running | None) -> None:
        """Say where the node is reached; None: no longer."""
        path = self.data / "node.json"
        if running is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, msgspec.json.encode(running))

    def hold(self) -> Hold:
        """Take the home for this process. Raises HomeError that names the node which has it."""
        try:
            return Hold(self.data / "lock.db")
        except BlockingIOError:
            running = self.running()
            who = f"the node with process id {running.pid}" if running else "another process"
            raise HomeError(f"{self.path} is in use by {who}; stop it first, or use another home (--home)") from None
        except StoreFailed as error:
            raise HomeError(str(error)) from None

    def _certificate(self, node: NodeId) -> Path:
        return self.keys / f"{node}.certificate"

    def certify(self, mesh: Signer, now_ms: int) -> NodeId:
        """Make a node key and the mesh's certificate for it; gives its id."""
        signer = _new_signer(KeyKind.NODE)
        node = NodeId(signer.public)
        times = (now_ms - BACKDATED_MS, now_ms + CERTIFICATE_MS)
        document = issue(mesh, Certificate(MeshId(mesh.public), node, *times, ["speak"]))
        _write(self._certificate(node), document)
        _write(self.keys / "node.seed", signer.seed().encode())
        return node


def default_home() -> Path:
    """`$AMPMESH_HOME`, or `~/.ampmesh`."""
    return Path(os.environ.get("AMPMESH_HOME") or "~/.ampmesh").expanduser()


def open_home(path: Path) -> Home:
    """A home that is there. Raises HomeError."""
    if not (path / "mesh.yaml").is_file():
        raise HomeError(f"there is no mesh home at {path}; make one with: mesh init {path}")
    return Home(path.absolute())


def create_home(path: Path, name: str, clock: Clock) -> Home:
    """Make a home with new keys, a commented mesh.yaml and the starter ems. Raises HomeError; never overwrites one."""
    if (path / "mesh.yaml").exists() or (path / "keys").exists():
        raise HomeError(f"{path} is a mesh home already; nothing was changed")
    home = Home(path.absolute())
    try:
        for folder in (home.path, home.keys, home.data):
            folder.mkdir(parents=True, exist_ok=True)
        home.keys.chmod(0o700)
        home.data.chmod(0o700)
        for seed in ("mesh", "client", "system"):
            _write(home.keys / f"{seed}.seed", _new_signer(_SEEDS[seed]).seed().encode())
        home.certify(home.signer("mesh"), clock())
        with resources.as_file(resources.files("nodes") / "starter" / "ems") as starters:
            shutil.copytree(starters, home.ems, dirs_exist_ok=True)
        _write(home.path / "mesh.yaml", starter_mesh_yaml(name).encode())
    except OSError as error:
        raise HomeError(f"{path} cannot be made: {error.strerror or error}; choose another folder") from None
    return home


def as_name(text: str) -> str:
    """A name for a mesh out of whatever a machine or person is called: `Mara's Laptop` gives `mara-s-laptop`."""
    return _NOT_A_NAME.sub("-", text.lower()).strip("-_")[:32] or "home"


def _new_signer(kind: KeyKind) -> Signer:
    return Signer(secrets.token_bytes(KEY_BYTES), kind)


def _write(path: Path, data: bytes) -> None:
    """Write a file for its owner alone, whole or not at all."""
    part = path.with_name(path.name + ".part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
