"""The archive format: one stream of MessagePack values, written and read piece by piece. The home of `msgpack`.

    {"format": "ampmesh-home", "version": 1, "name": text, "created_ms": Unix milliseconds}
    {"path": text, "mode": int, "size": int}, then `size` bytes in chunks of 1 to MAX_CHUNK bytes, for every file
    {"blake2b-256": 32 bytes} over everything before it

An archive is never believed: the digest is checked before a value is read, and every value has a bound.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import msgpack

from nodes.errors import NodeError

FORMAT: Final = "ampmesh-home"
EM_FORMAT: Final = "ampmesh-em"  # an em that goes to somebody else, with its passport (nodes.lending)
VERSION: Final = 1
MAX_CHUNK: Final = 1 << 20  # bytes of a file read or written at a time
MAX_PATH: Final = 1_024  # characters; ours have about 100
MAX_PART: Final = 255  # bytes of one name: what file systems take
MAX_FILES: Final = 1_000_000  # a thousand ems with a thousand memory files each
MAX_MAP: Final = 8  # keys of one entry; more is no archive of ours

_WRITTEN_BY: Final = {FORMAT: "export", EM_FORMAT: "em lend"}
_TRAILER_KEY: Final = "blake2b-256"
_DIGEST_BYTES: Final = 32
_MSGPACK: Final[Any] = msgpack  # it carries no types
_pack: Final = _MSGPACK.packb


@dataclass(frozen=True, slots=True)
class Header:
    """What an archive says of itself: whose it is, when it was written (Unix milliseconds), and what is in it."""

    name: str
    created_ms: int
    format: str = FORMAT


@dataclass(frozen=True, slots=True)
class File:
    """One file of an archive: its path within the home, with `/`; its permission bits; its bytes."""

    path: str
    mode: int
    size: int


def check_path(path: str) -> None:
    """Raise NodeError unless a path stays within its folder on every system that ampmesh runs on."""
    parts = path.split("/")
    good = len(path) <= MAX_PATH and path.isprintable() and "\\" not in path
    good = good and all(part.strip(" .") and len(part.encode("utf-8", "replace")) <= MAX_PART for part in parts)
    if not good or (os.name == "nt" and ":" in path):
        raise NodeError(f"an archive cannot hold a file with the name {path[:MAX_PATH]!a}; rename it")


class Writer:
    """Writes an archive; call `add` for every file, and `close` at the end."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        named = {"format": header.format, "version": VERSION, "name": header.name, "created_ms": header.created_ms}
        self._put(named)

    def add(self, entry: File, source: BinaryIO) -> None:
        """Add a file of exactly `entry.size` bytes. Raises NodeError when `source` has another number of them."""
        check_path(entry.path)
        self._put({"path": entry.path, "mode": entry.mode, "size": entry.size})
        left = entry.size
        while chunk := source.read(min(MAX_CHUNK, left)):
            self._put(chunk)
            left -= len(chunk)
        if left or source.read(1):
            raise NodeError(f"{entry.path} changed while it was read; try again")

    def close(self) -> None:
        """Write the digest. The file stays open."""
        self._file.write(_trailer(self._digest.digest()))

    def _put(self, value: object) -> None:
        data = _pack(value)
        self._digest.update(data)
        self._file.write(data)


class Reader:
    """Reads an archive from a file that can be rewound.

    Made, it has verified the digest of the whole. Raises NodeError, one sentence, for everything that is no archive.
    """

    def __init__(self, file: BinaryIO, expected: str = FORMAT) -> None:
        self.size, self._expected = _verify(file), expected
        self._unpacker: Any = _MSGPACK.Unpacker(
            file,
            read_size=MAX_CHUNK,
            max_buffer_size=4 * MAX_CHUNK,
            max_bin_len=MAX_CHUNK,
            max_str_len=4 * MAX_PATH,
            max_map_len=MAX_MAP,
            max_array_len=0,
            max_ext_len=0,
        )
        self.header = self._header()

    def files(self) -> Iterator[tuple[File, Iterator[bytes]]]:
        """Every file with its content, in order. Read all of a content before you go on to the next file."""
        room = self.size  # nothing is compressed: the files together are smaller than the archive
        for _ in range(MAX_FILES):
            entry = self._next(dict)
            if _TRAILER_KEY in entry:
                return
            file = _file(entry)
            room -= file.size
            if room < 0:
                raise damaged()
            yield file, self._content(file.size)
        raise NodeError(f"the archive holds more than {MAX_FILES:,} files; it is not a home of ours")

    def _header(self) -> Header:
        header = self._next(dict)
        if header.get("format") != self._expected:
            raise NodeError(f"this is not an archive of `mesh {_WRITTEN_BY[self._expected]}`")
        if header.get("version") != VERSION:
            raise NodeError("this archive was written by another version of ampmesh; import it with that one")
        name, created = header.get("name"), header.get("created_ms")
        if not isinstance(name, str) or not isinstance(created, int):
            raise damaged()
        return Header(name, created, self._expected)

    def _content(self, size: int) -> Iterator[bytes]:
        while size:
            chunk = self._next(bytes)
            size -= len(chunk)
            if size < 0 or not chunk:
                raise damaged()
            yield chunk

    def _next(self, kind: type) -> Any:  # noqa: ANN401 - of `kind`, which was checked
        try:
            value: object = self._unpacker.unpack()
        except (_MSGPACK.UnpackException, ValueError, RecursionError):
            raise damaged() from None
        if not isinstance(value, kind):
            raise damaged()
        return value


def damaged() -> NodeError:
    """The one sentence for an archive that breaks its own format."""
    return NodeError("the archive is damaged or cut short; nothing was restored. Use another copy of it")


def _verify(file: BinaryIO) -> int:
    """Compare the digest; rewinds the file and returns its size in bytes."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    left = size - len(_trailer(b"\0" * _DIGEST_BYTES))
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    while left > 0 and (chunk := file.read(min(MAX_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    trailer = _trailer(digest.digest())
    if left or file.read(len(trailer)) != trailer:
        raise damaged()
    file.seek(0)
    return size


def _trailer(digest: bytes) -> bytes:
    return _pack({_TRAILER_KEY: digest})


def _file(entry: dict[str, object]) -> File:
    path, mode, size = entry.get("path"), entry.get("mode"), entry.get("size")
    if not isinstance(path, str) or not isinstance(mode, int) or not isinstance(size, int) or size < 0:
        raise damaged()
    check_path(path)
    return File(path, mode, size)
