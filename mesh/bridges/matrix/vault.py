"""The vault: the folder where one Matrix user's keys live. One process has it at a time, and only its owner reads it.

    data/matrix/<user>/device.db   which device, how far its messages are read, the keys that sign it
                       olm-….db    the keys of that device, kept by nio
                       lock.db     held while a process uses the folder

Never restore an old copy: keys that were used would be used again, and people's clients refuse that. Deleting the
folder is safe: a new device with new keys comes in its place. A damaged file counts as deleted; it is kept as
`damaged-…`, one of a name.
"""

import hashlib
import os
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

import structlog

from mesh.bridges.matrix.errors import MatrixUnavailable
from mesh.errors import StoreFailed
from mesh.store import Hold, Store

MAX_NAME: Final = 200  # bytes of a folder's name; longer users' folders are named by digest
FACTS: Final = ("CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;",)
DAMAGED: Final = ("not a database", "malformed")  # how SQLite says it

log = structlog.get_logger(__name__)


class Vault:
    """One user's folder, held until it is closed."""

    def __init__(self, base: Path, user: str) -> None:
        """Make the folder if need be and take it. Raises MatrixUnavailable when another process has it, StoreFailed."""
        self._folder = base / _name(user)
        self._folder.mkdir(parents=True, exist_ok=True)
        base.chmod(0o700)
        self._folder.chmod(0o700)
        try:
            self._hold = Hold(_private(self._folder / "lock.db"))
        except BlockingIOError as error:
            raise MatrixUnavailable(
                f"another process uses the keys in {self._folder}: stop it, two would spoil them"
            ) from error
        try:
            self._store = _facts(self._folder / "device.db")
        except BaseException:
            self._hold.release()
            raise

    def get(self, name: str) -> str | None:
        """A fact that was set, or None."""
        row = self._store.one("SELECT value FROM facts WHERE name = ?", (name,))
        return row[0] if row else None

    def set(self, **facts: str) -> None:
        """Keep facts, all at once."""
        with self._store.transaction():
            self._store.many("INSERT OR REPLACE INTO facts VALUES (?, ?)", list(facts.items()))

    def unset(self, name: str) -> None:
        """Forget a fact."""
        with self._store.transaction():
            self._store.execute("DELETE FROM facts WHERE name = ?", (name,))

    def room_for(self, device_id: str) -> Path:
        """The file of a device's keys, which exists already or is empty; those of other devices are deleted."""
        path = self._folder / f"olm-{hashlib.blake2b(device_id.encode(), digest_size=8).hexdigest()}.db"
        for old in self._folder.glob("olm-*"):
            if not old.name.startswith(path.name):
                old.unlink()
        return _private(path)

    def close(self) -> None:
        """Let the folder go. Idempotent."""
        self._store.close()
        self._hold.release()


def users(base: Path) -> list[str]:
    """The users that have a folder; those named by digest are left out."""
    return sorted(unquote(folder.name) for folder in base.glob("%40*") if (folder / "device.db").is_file())


def has_vault(base: Path, user: str) -> bool:
    """Whether a user has a folder."""
    return (base / _name(user) / "device.db").is_file()


def is_damage(error: BaseException | None) -> bool:
    """Whether an error of SQLite's says that a file is none of its own; a full disk, for one, is no damage."""
    return any(words in str(error) for words in DAMAGED)


def set_aside(path: Path) -> None:
    """Put a damaged file where nobody reads it, in place of an earlier one, and have an empty one where it was."""
    log.warning("keys of encrypted rooms are damaged and count as lost; the file is set aside", file=str(path))
    for part in path.parent.glob(f"{path.name}*"):
        part.replace(part.with_name(f"damaged-{part.name}"))
    _private(path)


def _facts(path: Path) -> Store:
    schemas = {"matrix_device": FACTS}
    try:
        return Store(_private(path), schemas)
    except StoreFailed as error:
        if not is_damage(error.__cause__):
            raise
    set_aside(path)
    return Store(path, schemas)


def _name(user: str) -> str:
    name = quote(user, safe="")
    return name if len(name) <= MAX_NAME else hashlib.blake2b(user.encode(), digest_size=16).hexdigest()


def _private(path: Path) -> Path:
    """An own file that nobody else can read, before anything is in it; SQLite gives its journals the same mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    path.chmod(0o600)
    return path
