"""The home folder: everything one node is, in one place.

mesh.yaml   the person's settings
ems/        a folder an em
keys/       secrets, 0600: mesh.seed, node.seed, client.seed, system.seed; and what they signed
data/       nats/ (the stream), node.db, media/ (pictures), matrix/ (keys of rooms), node.json (where the node is)
"""

import contextlib
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import msgspec

from mesh.clock import Clock
from mesh.errors import StoreFailed
from mesh.store import Hold
from nodes.config import MeshConfig, starter_mesh_yaml
from nodes.disk import copy_tree, told, write_private
from nodes.errors import HomeError
from nodes.keyring import Keyring
from nodes.settings import load

_PART: Final = ".init.part"  # where a home is made before it is put in place
_CONTENT: Final = ("data", "ems", "keys", "mesh.yaml")  # in the order in which they are put in place
_NOT_A_NAME = re.compile(r"[^a-z0-9_-]+")


class Running(msgspec.Struct, frozen=True):
    """Where the running node is reached: its process, its bus.

    `external`: the bus is somebody's own server, for which `credentials` is the file; None: it wants none.
    """

    pid: int
    url: str
    started_ms: int
    external: bool = False
    credentials: str | None = None

    @property
    def alive(self) -> bool:
        """Whether there is such a process; it may be another one by now."""
        if os.name != "posix" or self.pid <= 0:  # elsewhere signal 0 is no question; the bus will tell
            return self.pid > 0
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except (PermissionError, OverflowError):
            return True
        return True


@dataclass(frozen=True, slots=True)
class Home(Keyring):
    """A home folder that exists."""

    @property
    def ems(self) -> Path:
        """Where the em folders are."""
        return self.path / "ems"

    @property
    def data(self) -> Path:
        """Where everything is that can be kept apart from what a person wrote."""
        return self.path / "data"

    @property
    def media(self) -> Path:
        """Where the pictures are that were shown in basins; see nodes.media."""
        return self.data / "media"

    @property
    def database(self) -> Path:
        """The node's database."""
        return self.data / "node.db"

    @property
    def recovered(self) -> Path:
        """The peers whom a node that lost its past is to meet again; see nodes.peers.recovery."""
        return self.data / "recovered.json"

    def leave(self, archive: Path) -> None:
        """Note that the mesh goes on elsewhere, from an archive. Raises OSError."""
        write_private(self._moved, str(archive).encode("utf-8", "surrogateescape"))

    def require_here(self) -> None:
        """Raise HomeError when the mesh has moved elsewhere: two nodes with one key contradict each other."""
        if self._moved.exists():
            raise HomeError(
                f"{self.path} was exported to move elsewhere; run it there. If it never ran there, and will not, remove"
                f" {self._moved} and start again"
            )

    @property
    def _moved(self) -> Path:
        return self.data / "moved"

    def config(self) -> MeshConfig:
        """Read mesh.yaml. Raises ConfigError with every mistake in it."""
        return load(self.path / "mesh.yaml", MeshConfig)

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
            write_private(path, msgspec.json.encode(running))

    def hold(self) -> Hold:
        """Take the home for this process. Raises HomeError that names the node which has it."""
        try:
            self.data.mkdir(mode=0o700, exist_ok=True)
            return Hold(self.data / "lock.db")
        except BlockingIOError:
            running = self.running()
            who = f"the node with process id {running.pid}" if running else "another process"
            raise HomeError(f"{self.path} is in use by {who}; stop it first, or use another home (--home)") from None
        except StoreFailed as error:
            raise HomeError(str(error)) from None
        except OSError as error:
            raise HomeError(told(f"{self.data} cannot be made", error, "check its owner and permissions")) from None


def default_home() -> Path:
    """`$AMPMESH_HOME`, or `~/.ampmesh`."""
    return Path(os.environ.get("AMPMESH_HOME") or "~/.ampmesh").expanduser()


def at_home(path: Path) -> str:
    """What a command that is to be copied needs behind it: ` --home DIR`, or nothing for the usual home."""
    return "" if path.absolute() == default_home().absolute() else f" --home {shlex.quote(str(path))}"


def open_home(path: Path) -> Home:
    """A home that is there. Raises HomeError."""
    if not (path / "mesh.yaml").is_file():
        if _has_keys(path):
            missing = path / "mesh.yaml"
            raise HomeError(f"{missing} is missing; `mesh init {path}` writes a new one beside your keys and ems")
        raise HomeError(f"there is no mesh home at {path}; make one with: mesh init {path}")
    return Home(path.absolute())


def create_home(path: Path, name: str, clock: Clock) -> Home:
    """Make a home with new keys, a commented mesh.yaml and the starter ems: all of it or nothing.

    Where there are keys and no mesh.yaml, only what is missing is put beside them. Raises HomeError; never overwrites
    anything.
    """
    home = Home(path.absolute())
    try:
        _require_room_for(home.path)
        made = [folder for folder in (home.path, *home.path.parents) if not folder.exists()]
        part = Home(home.path / _PART)
        try:
            shutil.rmtree(part.path, ignore_errors=True)  # what a kill at the wrong moment has left
            _fill(part, name, clock())
            for entry in _CONTENT:
                if not (home.path / entry).exists():
                    (part.path / entry).rename(home.path / entry)
            shutil.rmtree(part.path, ignore_errors=True)
        except BaseException:
            shutil.rmtree(part.path, ignore_errors=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise
    except OSError as error:
        raise HomeError(told(f"{path} cannot be made", error, "choose another folder")) from None
    return home


def _require_room_for(path: Path) -> None:
    """Raise HomeError unless a home can be made here: nothing is there, or keys that lack a mesh.yaml."""
    if (path / "mesh.yaml").exists():
        raise HomeError(f"{path} is a mesh home already; nothing was changed")
    if path.exists() and not _has_keys(path) and any(entry.name != _PART for entry in path.iterdir()):
        raise HomeError(f"{path} holds other things; choose an empty folder, or one that is not there yet")


def _fill(home: Home, name: str, now_ms: int) -> None:
    """All of a home, in a new folder."""
    for folder in (home.path, home.keys, home.data):
        folder.mkdir(parents=True, mode=0o777 if folder == home.path else 0o700)
    home.begin(now_ms)
    copy_tree(resources.files("nodes") / "starter" / "ems", home.ems)
    write_private(home.path / "mesh.yaml", starter_mesh_yaml(name).encode())


def _has_keys(path: Path) -> bool:
    return next((path / "keys").glob("*.seed"), None) is not None


def as_name(text: str) -> str:
    """A name for a mesh out of whatever a machine or person is called: `Mara's Laptop` gives `mara-s-laptop`."""
    return _NOT_A_NAME.sub("-", text.lower()).strip("-_")[:32] or "home"
