"""Writing a person's files: whole, for their owner alone, and with a sentence when the disk will not."""

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # every command loads this module
    from importlib.resources.abc import Traversable

FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})  # Windows has no quotas of this name


def write_private(path: Path, data: bytes) -> None:
    """Write a file for its owner alone, whole or not at all."""
    part = path.with_name(path.name + ".part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        part.unlink(missing_ok=True)  # what a crash left; or somebody else's, or a link, in a folder that many share
        with os.fdopen(os.open(part, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the first one says more
            part.unlink(missing_ok=True)
        raise


def copy_tree(source: "Traversable", target: Path) -> None:
    """Copy a folder of ours with ordinary permissions; the first error ends it, as shutil's would not."""
    target.mkdir()
    for entry in source.iterdir():
        if entry.is_dir():
            copy_tree(entry, target / entry.name)
        else:
            (target / entry.name).write_bytes(entry.read_bytes())


def told(what: str, error: OSError, advice: str) -> str:
    """One sentence for an error of the disk: `what` could not be done; `advice` for all but a full disk."""
    if error.errno in FULL:
        return f"the disk is full: {what}; make room and try again"
    return f"{what}: {error.strerror or error}; {advice}"
