"""What is left of a mesh when its node is lost: its key, what it has signed, and who its peers are. One JSON file."""

import contextlib
import shutil
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from mesh.clock import Clock
from mesh.errors import StoreFailed
from nodes.disk import told, write_private
from nodes.errors import ConfigError, HomeError, NodeError
from nodes.home import Home, create_home
from nodes.peers.recovery import MAX_LIST_BYTES, Remembered, Remembering, remembered
from nodes.records import records
from nodes.textfile import read_bytes
from protocol.certificate import MAX_DOCUMENT, read_certificate, read_revocation
from protocol.errors import ProtocolError
from protocol.keys import KeyKind, MeshId, NodeId, Signer

MAX_NODES: Final = 1_000  # certificates: more than one a week for a life
MAX_BACKUP_BYTES: Final = MAX_LIST_BYTES + (4 << 20)

Document = Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)]


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds. `name`: what the mesh calls itself. Never shown: `mesh_key` is the secret."""

    format: Literal["ampmesh-backup"]
    version: Literal[1]
    name: Annotated[str, msgspec.Meta(max_length=64)]
    mesh_key: str
    certificates: Annotated[list[Document], msgspec.Meta(max_length=MAX_NODES)]
    revocation: Document | None
    peers: Remembering

    def __repr__(self) -> str:
        return f"Backup({self.name!r})"

    def signer(self) -> Signer:
        """The mesh key. Raises BadKey."""
        return Signer.from_seed(self.mesh_key)

    def mesh(self) -> MeshId:
        """Whose it is."""
        return MeshId(self.signer().public)

    def nodes(self) -> list[NodeId]:
        """The nodes that this mesh has put into service, and not taken out of it."""
        out = set[str]() if self.revocation is None else set(read_revocation(self.revocation).nodes)
        return [node for data in self.certificates if (node := read_certificate(data).node) not in out]


def write_backup(home: Home, mesh: Signer | None, target: Path) -> Backup:
    """Write a backup into a new file, for its owner's eyes alone. Raises NodeError.

    `mesh` is the mesh key where it is kept elsewhere.
    """
    signer = mesh or home.signer("mesh")
    if home.mesh_id() != signer.public:
        raise HomeError("this is the key of another mesh")
    certificates, revocations = home.documents()
    try:
        name = home.config().name
    except ConfigError:
        name = home.path.name[:64]
    peers = list[Remembered]()
    with contextlib.suppress(StoreFailed), records(home) as store:
        peers = [] if store is None else remembered(store)
    revocation = revocations[0] if revocations else None
    backup = Backup("ampmesh-backup", 1, name, signer.seed(), certificates[:MAX_NODES], revocation, peers)
    if target.exists() or target.is_symlink():
        raise NodeError(f"{target} is there already; name another file, or remove it")
    try:
        write_private(target, msgspec.json.format(msgspec.json.encode(backup)))
    except OSError as error:
        raise NodeError(told(f"{target} cannot be written", error, "name another place")) from None
    return backup


def read_backup(path: Path) -> Backup:
    """Read and verify a backup. Raises NodeError, never with key material in it."""
    try:
        backup = msgspec.json.decode(read_bytes(path, MAX_BACKUP_BYTES), type=Backup)
        signer = backup.signer()
        signed = [read_certificate(data).mesh for data in backup.certificates]
        signed += [] if backup.revocation is None else [read_revocation(backup.revocation).mesh]
    except ConfigError as error:
        raise NodeError(str(error)) from None
    except (msgspec.MsgspecError, ProtocolError, UnicodeDecodeError, RecursionError):
        raise NodeError(f"{path} is no backup of a mesh, or it is damaged; use another copy") from None
    if signer.kind != KeyKind.MESH or any(mesh != signer.public for mesh in signed):
        raise NodeError(f"{path} is no backup of one mesh; use another copy")
    return backup


def recover(path: Path, backup: Backup, name: str, clock: Clock) -> Home:
    """Make a home for the same mesh, with a new node, where there is nothing yet. Raises HomeError."""
    home = Home(path.absolute())
    if home.path.exists() and (not home.path.is_dir() or any(home.path.iterdir())):
        raise HomeError(f"{path} holds other things; choose an empty folder, or one that is not there yet")
    try:
        home.restore(backup.signer(), backup.certificates, backup.revocation, clock())
        create_home(path, name, clock)  # all that is missing beside the keys
        write_private(home.recovered, msgspec.json.encode(backup.peers))
    except BaseException as error:
        shutil.rmtree(home.path, ignore_errors=True)
        if isinstance(error, OSError):
            raise HomeError(told(f"{path} cannot be made", error, "choose another folder")) from None
        raise
    return home
