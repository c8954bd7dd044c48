"""Pictures on disk: a folder of files, each named by the SHA-256 of its bytes.

Nothing outside decides a path: names are hashes, checked before they are used. What a file is, its own bytes say.
"""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from nodes.disk import told
from nodes.errors import ConfigError, HomeError, NodeError
from nodes.picture import MAX_BYTES, MAX_PIXELS, MAX_SIDE, Picture, is_hash, look, named, same_type
from nodes.textfile import read_bytes

MAX_TOTAL_BYTES: Final = 512 << 20  # of all pictures: some hundred photos; the oldest go first
MAX_FILES: Final = 10_000  # of all sizes, so that looking through the folder stays quick
STALE_S: Final = 3_600.0  # a file that was begun an hour before another one will not be finished

_PART: Final = ".part"


class Media:
    """The pictures of one home. Several processes may use the same folder. Reads and writes files: call it in a thread.

    The folder is made with the first picture.
    """

    def __init__(self, folder: Path, max_total: int = MAX_TOTAL_BYTES, max_files: int = MAX_FILES) -> None:
        self._folder = folder
        self._max_total, self._max_files = max_total, max_files

    def put(self, data: bytes, name: str = "", claimed: str | None = None) -> Picture:
        """Keep a picture and give what an act says of it; the oldest ones make room.

        `claimed` is the type that its sender names, if any. Raises NodeError for what is too large, no PNG, JPEG, GIF
        or WebP, or of another type than claimed, and HomeError when the disk will not have it.
        """
        if len(data) > MAX_BYTES:
            raise NodeError(f"{_of(name)} has {len(data):,} bytes; at most {MAX_BYTES:,} are taken, so make it smaller")
        seen = look(data)
        if seen is None:
            raise NodeError(f"{_of(name)} is no PNG, JPEG, GIF or WebP; no other pictures are taken")
        if claimed is not None and not same_type(claimed, seen.mime):
            raise NodeError(f"{_of(name)} is not of the type that its sender names, but {seen.mime}")
        if max(seen.width, seen.height) > MAX_SIDE or seen.width * seen.height > MAX_PIXELS:
            raise NodeError(
                f"{_of(name)} has {seen.width} x {seen.height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS:,}"
                " in all are taken, so make it smaller"
            )
        picture = Picture(hashlib.sha256(data).hexdigest(), seen.mime, len(data), named(name))
        try:
            written = self._write(picture.sha256, data)
            self._prune(picture.sha256, written)
        except OSError as error:
            raise HomeError(told(f"{self._folder} cannot keep a picture", error, "check its permissions")) from None
        return picture

    def get(self, sha256: str) -> bytes | None:
        """A picture's bytes; None when there is no such picture here, or it is damaged, or the name is no hash."""
        if not is_hash(sha256):
            return None
        try:
            data = read_bytes(self._folder / sha256, MAX_BYTES, self._folder)
        except ConfigError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def forget(self, sha256: str) -> None:
        """Remove a picture; nothing happens when there is none. Raises HomeError when it cannot be removed."""
        if not is_hash(sha256):
            return
        try:
            (self._folder / sha256).unlink(missing_ok=True)
        except OSError as error:
            raise HomeError(told(f"{self._folder} cannot forget a picture", error, "check its permissions")) from None

    def _write(self, name: str, data: bytes) -> float:
        """Write a file whole or not at all, for its owner alone; gives when it was written (Unix seconds)."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(suffix=_PART, dir=self._folder)  # 0600; another process may write the same
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                written = os.fstat(file.fileno()).st_mtime
            Path(part).replace(self._folder / name)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        return written

    def _prune(self, newest: str, now_s: float) -> None:
        """Remove the oldest pictures beyond the limits, but never the newest, and what was never finished."""
        kept: list[tuple[float, int, str]] = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process was quicker
                    stat = entry.stat(follow_symlinks=False)
                    if is_hash(entry.name):
                        kept.append((stat.st_mtime, stat.st_size, entry.name))
                    elif entry.name.endswith(_PART) and stat.st_mtime < now_s - STALE_S:
                        (self._folder / entry.name).unlink(missing_ok=True)
        total, count = sum(size for _, size, _ in kept), len(kept)
        for _, size, name in sorted(kept):
            if total <= self._max_total and count <= self._max_files:
                return
            if name != newest:
                (self._folder / name).unlink(missing_ok=True)
                total, count = total - size, count - 1


def _of(name: str) -> str:
    return f"the picture {named(name)!r}"
