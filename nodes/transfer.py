"""A whole home into one archive, and back: for a copy in a safe place, and for another machine."""

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from mesh.clock import Clock
from mesh.store import copy_database
from nodes.archive import File, Header, Reader, Writer, check_path, damaged
from nodes.errors import ConfigError, HomeError, NodeError
from nodes.home import Home

PRIVATE: Final = frozenset({"keys", "data"})  # folders that nobody else may look into
SPARE_BYTES: Final = 64 << 20  # left free on a disk that a home is restored to

# Of the running process, or made anew at every start; a database's companions are within its copy.
_LEFT_OUT: Final = frozenset(
    {"data/node.json", "data/moved", "data/lock.db", "data/nats/nats-server.conf", "data/nats/nats-server.err"}
)
_LEFT_OUT_FOLDERS: Final = frozenset({"data/nats/run"})
_SQLITE: Final = b"SQLite format 3\0"
_LEFT_OUT_ENDS: Final = ("-wal", "-shm", "-journal", ".part")


@dataclass(frozen=True, slots=True)
class Moved:
    """What was written or restored. `name`: the mesh's name. `size`: bytes of the archive."""

    name: str
    files: int
    size: int


def export_home(home: Home, target: Path, clock: Clock, *, leave: bool = False) -> Moved:
    """Write the whole home into a new file, for its owner's eyes alone: it holds all keys.

    With `leave` the home is left for good: no node runs on it any more, since another will with the same key.

    Raises HomeError while a node runs on the home: only then do its stream and its databases agree with one another.
    Raises NodeError when the file is there, or something in the home cannot be archived; nothing is left behind then.
    """
    target = target.absolute()
    if target.resolve().is_relative_to(home.path.resolve()):
        raise NodeError(f"{target} is within the home that is exported; name a file elsewhere")
    if target.exists():
        raise NodeError(f"{target} is there already; name another file, or remove it")
    try:
        with ExitStack() as stack:
            stack.callback(home.hold().release)
            handle, part = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent)  # 0600
            stack.callback(Path(part).unlink, missing_ok=True)
            with os.fdopen(handle, "wb") as file:
                files = _write(home, file, target.parent, clock())
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if leave:
                home.leave(target)
            Path(part).rename(target)
    except OSError as error:
        raise NodeError(f"{home.path} cannot be exported to {target}: {_reason(error)}") from None
    return Moved(_name(home), files, size)


def import_home(source: Path, target: Path) -> tuple[Home, Moved]:
    """Restore a home from an archive to a path where there is nothing yet; all of it or nothing.

    Raises HomeError when there is something, NodeError when the archive is damaged or not one of ours.
    """
    target = target.absolute()
    if target.exists() or target.is_symlink():
        raise HomeError(f"{target} is there already, and nothing is ever overwritten; name a folder that is not there")
    try:
        with source.open("rb") as file:
            reader = Reader(file)
            target.parent.mkdir(parents=True, exist_ok=True)
            _require_room(target.parent, reader.size)
            part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent))
            try:
                files = _restore(reader, part)
                part.rename(target)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    except OSError as error:
        raise NodeError(f"{source} cannot be restored to {target}: {_reason(error)}") from None
    return Home(target), Moved(reader.header.name, files, reader.size)


def _write(home: Home, file: BinaryIO, beside: Path, now_ms: int) -> int:
    """Write all files in the order of their paths; gives their number. Databases are copied to `beside` first."""
    writer = Writer(file, Header(_name(home), now_ms))
    count = 0
    with tempfile.TemporaryDirectory(prefix="export.", suffix=".part", dir=beside) as scratch:
        copy = Path(scratch) / "copy.db"
        for path, name in _files(home.path):
            source = path
            if name.startswith("data/") and _is_sqlite(path):  # by its content: the stream has files named .db as well
                copy.unlink(missing_ok=True)
                copy_database(path, copy)
                source = copy
            with source.open("rb") as content:
                size = os.fstat(content.fileno()).st_size
                writer.add(File(name, stat.S_IMODE(path.stat().st_mode) & 0o777, size), content)
            count += 1
    writer.close()
    return count


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    """The files of a home that belong into an archive, with their paths in it. Raises NodeError."""
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders.sort()
        here = Path(folder)
        prefix = "" if here == root else here.relative_to(root).as_posix() + "/"
        folders[:] = [name for name in folders if prefix + name not in _LEFT_OUT_FOLDERS]
        for path in (here / name for name in sorted(folders)):
            if path.is_symlink():
                raise _no_file(path)
        for name in sorted(names):
            inner = prefix + name
            if inner in _LEFT_OUT or (prefix.startswith("data/") and name.endswith(_LEFT_OUT_ENDS)):
                continue
            if not stat.S_ISREG((here / name).lstat().st_mode):
                raise _no_file(here / name)
            check_path(inner)
            yield here / name, inner


def _refuse(error: OSError) -> None:
    raise error


def _no_file(path: Path) -> NodeError:
    text = f"{path} is a link, pipe or device, which an archive cannot hold; put a copy in its place, or move it away"
    return NodeError(text.encode("utf-8", "replace").decode())


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _restore(reader: Reader, part: Path) -> int:
    """Put every file into a new folder, where nothing can be a link. Gives their number."""
    count = 0
    for name in PRIVATE:
        (part / name).mkdir(mode=0o700)
    for entry, content in reader.files():
        path = part.joinpath(*entry.path.split("/"))
        private = entry.path.partition("/")[0] in PRIVATE
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                for chunk in content:
                    file.write(chunk)
        except OSError as error:
            if error.errno in {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}:  # the same name twice, or a file as a folder
                raise damaged() from None
            raise
        path.chmod(entry.mode & (0o700 if private else 0o755) | 0o600)
        count += 1
    if not (part / "mesh.yaml").is_file():
        raise NodeError("the archive holds no home: mesh.yaml is not in it")
    return count


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + SPARE_BYTES:
        raise NodeError(f"{folder} has {free >> 20:,} MiB free, and the home needs {size >> 20:,}; make room first")


def _reason(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def _name(home: Home) -> str:
    try:
        return home.config().name
    except ConfigError:  # a home with a mistake in its settings is worth keeping too
        return home.path.name
