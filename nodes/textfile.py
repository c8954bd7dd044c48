"""Reading a person's files without being led astray: size, kind and place are checked before a byte is believed."""

import os
import stat
from pathlib import Path
from typing import Final

from nodes.errors import ConfigError

UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")

# A FIFO must not make the open wait, and what was resolved must not turn into a link in between.
# Not every system has every flag.
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def read_bytes(path: Path, max_bytes: int, within: Path | None = None) -> bytes:
    """Give a regular file's bytes, `max_bytes` at most.

    With `within`, a path that leads outside that folder by way of links is refused. Raises ConfigError, whose one
    problem is `PATH:1: what is wrong`, for anything that cannot be read.
    """
    try:
        real = path.resolve(strict=True)
        if within is not None and not real.is_relative_to(within.resolve(strict=True)):
            raise ConfigError([f"{path}:1: is a link that leads outside its folder; put a copy in its place"])
        _require_regular(path, real.stat().st_mode)
        with os.fdopen(os.open(real, _FLAGS), "rb") as file:
            _require_regular(path, os.fstat(file.fileno()).st_mode)
            data = file.read(max_bytes + 1)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links; ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError([f"{path}:1: cannot be read: {reason}"]) from error
    if len(data) > max_bytes:
        raise ConfigError([f"{path}:1: is larger than {_size(max_bytes)}, the most that is read; make it smaller"])
    return data


def not_text(data: bytes) -> str | None:
    """Why these bytes cannot be UTF-8 text, as the end of a sentence; None when they may be."""
    if data.startswith(UTF16_MARKS):
        return "is UTF-16; save it as UTF-8"
    if b"\x00" in data:
        return "holds NUL bytes, so it is not text; put a UTF-8 text file in its place"
    return None


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ConfigError([f"{path}:1: is a folder, and a file is needed here"])
    if not stat.S_ISREG(mode):
        raise ConfigError([f"{path}:1: is a pipe, socket or device, and an ordinary file is needed here"])


def _size(count: int) -> str:
    mebibyte = 1 << 20
    return f"{count >> 20} MiB" if count >= mebibyte and count % mebibyte == 0 else f"{count:,} bytes"
