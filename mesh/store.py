"""The node's database: acts in the order they were heard, the outbox, the cursors. The home of sqlite3.

One file, one writer. Commits are a WAL append without fsync: after a power cut the last moments may be missing here,
and the stream, which is synced, delivers them again. While a node runs, `tend` moves the WAL into the file in a thread
of its own: within a commit, its fsync would hold up everything for 5 to 7 ms.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

from mesh.errors import StoreFailed

BUSY_MS: Final = 5_000  # how long to wait for another process that reads or copies the file
CACHE_KIB: Final = 8_192
PAGE_BYTES: Final = 8_192  # a fifth less CPU for frames of some kilobytes than SQLite's own 4,096, measured
STATEMENTS: Final = 512  # kept prepared: those about the acts of a frame are another one for every number of acts
TENDED: Final = 1_000  # changed rows after which the WAL is moved into the file: some megabytes
OVERFULL_PAGES: Final = 16_384  # 128 MiB of WAL: then a commit does what `tend` did not get done
AUTO_PAGES: Final = 1_000  # SQLite's own: what a commit does where nobody tends

MESH_SCHEMA: Final = (
    """
    CREATE TABLE origins (origin INTEGER PRIMARY KEY, mesh TEXT NOT NULL, node TEXT NOT NULL, UNIQUE (mesh, node));
    CREATE TABLE frames (
        n INTEGER PRIMARY KEY, basin TEXT NOT NULL, origin INTEGER NOT NULL, left_out INTEGER NOT NULL,
        frame BLOB NOT NULL
    );
    CREATE INDEX frames_of_basin ON frames (basin, n);
    CREATE TABLE acts (id BLOB PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE marks (
        origin INTEGER NOT NULL, basin TEXT NOT NULL, sequence INTEGER NOT NULL, PRIMARY KEY (origin, basin)
    ) WITHOUT ROWID;
    CREATE TABLE gaps (
        origin INTEGER NOT NULL, basin TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
        PRIMARY KEY (origin, basin, first)
    ) WITHOUT ROWID;
    CREATE TABLE refusals (
        mesh TEXT NOT NULL, reason TEXT NOT NULL, times INTEGER NOT NULL, PRIMARY KEY (mesh, reason)
    ) WITHOUT ROWID;
    CREATE TABLE cursor (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL);
    INSERT INTO cursor VALUES (1, 0);
    CREATE TABLE outbox (n INTEGER PRIMARY KEY, id BLOB NOT NULL, basin TEXT NOT NULL, act BLOB NOT NULL);
    CREATE INDEX outbox_by_id ON outbox (id);
    """,
    # Forgetting (mesh.forgetting). The stream is read once more from its beginning: what was noted nowhere until now
    # is noted, and what was redacted long ago is forgotten.
    """
    CREATE TABLE sightings (n INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (n, seq)) WITHOUT ROWID;
    CREATE TABLE edits (target BLOB NOT NULL, id BLOB NOT NULL, PRIMARY KEY (target, id)) WITHOUT ROWID;
    CREATE TABLE redactions (
        target BLOB NOT NULL, mesh TEXT NOT NULL, author TEXT NOT NULL, PRIMARY KEY (target, mesh, author)
    ) WITHOUT ROWID;
    CREATE TABLE forgotten (id BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE emptied (n INTEGER PRIMARY KEY);
    CREATE TABLE erasures (seq INTEGER PRIMARY KEY);
    CREATE INDEX frames_in_part ON frames (basin, n) WHERE left_out != 0;
    UPDATE cursor SET seq = 0;
    """,
    # Acts of several meshes under one id: `acts` has the one that was heard first, `twins` the others.
    """
    CREATE TABLE twins (
        id BLOB NOT NULL, mesh TEXT NOT NULL, place INTEGER NOT NULL, PRIMARY KEY (id, mesh)
    ) WITHOUT ROWID;
    CREATE TABLE forgotten_of (id BLOB NOT NULL, mesh TEXT NOT NULL, PRIMARY KEY (id, mesh)) WITHOUT ROWID;
    INSERT INTO forgotten_of
        SELECT id, mesh FROM forgotten JOIN acts USING (id) JOIN frames ON n = place / 64 JOIN origins USING (origin);
    DROP TABLE forgotten;
    ALTER TABLE forgotten_of RENAME TO forgotten;
    """,
)


class Store:
    """A SQLite database with migrations and plain transactions."""

    def __init__(
        self, path: Path, schemas: Mapping[str, Sequence[str]] = MappingProxyType({}), *, read_only: bool = False
    ) -> None:
        """Open, creating and migrating as needed. `schemas` has each owner's migration scripts, which only grow.

        Raises StoreFailed when the file cannot be opened, written or migrated.
        """
        self.path = path
        with _plain(path):
            uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(
                uri, uri=True, isolation_level=None, timeout=BUSY_MS / 1000, cached_statements=STATEMENTS
            )
            self._grown, self._tended = asyncio.Event(), 0
            try:
                if not read_only:
                    self._prepare(schemas)
            except BaseException:
                self._db.close()
                raise

    def _prepare(self, schemas: Mapping[str, Sequence[str]]) -> None:
        self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA secure_delete = ON")  # FAST leaves words in pages that became free: a third, measured
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute("CREATE TABLE IF NOT EXISTS versions (owner TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        held = dict[str, int](self._db.execute("SELECT owner, version FROM versions").fetchall())
        if any(version > len(schemas.get(owner, ())) for owner, version in held.items() if owner in schemas):
            raise StoreFailed(f"{self.path} was written by a newer ampmesh; use that version, or another home")
        missing = [
            (owner, number) for owner, scripts in schemas.items() for number in range(held.get(owner, 0), len(scripts))
        ]
        if any(owner in held for owner, _ in missing):
            copy_database(self.path, self._before_migration)
        for owner, number in missing:
            done = f"INSERT OR REPLACE INTO versions VALUES ('{owner}', {number + 1})"  # noqa: S608 - our own words
            self._db.executescript(f"BEGIN; {schemas[owner][number]}; {done}; COMMIT;")

    @property
    def _before_migration(self) -> Path:
        return self.path.with_suffix(".before-migration.db")

    def scrub(self) -> bool:
        """Empty the WAL into the file, and drop the copy made before a migration: both hold what was overwritten.

        Returns False while another process reads; try again later. Call it outside of transactions.
        """
        with _plain(self.path):
            self._db.execute("PRAGMA busy_timeout = 0")  # nobody is kept waiting for this
            try:
                busy = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                return False
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        self._before_migration.unlink(missing_ok=True)
        return not busy

    async def tend(self) -> None:
        """Keep the WAL short until cancelled. Raises StoreFailed."""
        self.execute(f"PRAGMA wal_autocheckpoint = {OVERFULL_PAGES}")
        try:
            while True:
                await self._grown.wait()
                self._grown.clear()
                self._tended = self._db.total_changes
                await asyncio.to_thread(self._checkpoint)
        finally:
            self.execute(f"PRAGMA wal_autocheckpoint = {AUTO_PAGES}")

    def _checkpoint(self) -> None:
        """Move what can be moved without anybody waiting."""
        with _plain(self.path), closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def transaction(self) -> "_Transaction":
        """All or nothing. Raises StoreFailed when the disk is full or the file fails; then nothing was written."""
        return _Transaction(self._db, self.path, self._committed)

    def _committed(self) -> None:
        if self._db.total_changes - self._tended > TENDED:
            self._grown.set()

    def execute(self, sql: str, values: Sequence[object] = ()) -> int:
        """Run one statement; returns how many rows it changed."""
        try:
            return self._db.execute(sql, values).rowcount
        except sqlite3.Error as error:
            raise _failed(self.path, error) from error

    def insert(self, sql: str, values: Sequence[object]) -> int | None:
        """Run `INSERT OR IGNORE`; returns the new row's number, or None when it was there already."""
        try:
            done = self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise _failed(self.path, error) from error
        return done.lastrowid if done.rowcount else None

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> int:
        """Run one statement for many rows; returns how many it changed."""
        try:
            return self._db.executemany(sql, rows).rowcount
        except sqlite3.Error as error:
            raise _failed(self.path, error) from error

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """All rows of a query."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _failed(self.path, error) from error

    def one(self, sql: str, values: Sequence[object] = ()) -> Any:  # noqa: ANN401 - a row is what the query says
        """The first row of a query, or None."""
        try:
            return self._db.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            raise _failed(self.path, error) from error

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()


class _Transaction:
    """A block within BEGIN and COMMIT. A class, since a generator takes 5 µs longer, of which an act needs several."""

    def __init__(self, db: sqlite3.Connection, path: Path, committed: Callable[[], None]) -> None:
        self._db, self._path, self._committed = db, path, committed

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error as failure:
                self._undo()
                raise _failed(self._path, failure) from failure
            self._committed()
            return
        self._undo()
        if isinstance(error, sqlite3.Error):
            raise _failed(self._path, error) from error

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


@contextmanager
def _plain(path: Path) -> Generator[None]:
    """Turn SQLite's errors into a sentence."""
    try:
        yield
    except sqlite3.Error as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: sqlite3.Error) -> StoreFailed:
    told = str(error)
    if "full" in told:
        return StoreFailed(f"the disk is full: {path} cannot be written. Nothing was lost; make room and start again")
    if "readonly" in told or "unable to open" in told:
        return StoreFailed(f"{path} cannot be written: {told}. Check the folder's permissions")
    return StoreFailed(f"{path}: {told}")


def copy_database(source: Path, target: Path) -> None:
    """Copy a database with everything that is committed, also what is still in its WAL, into one new file.

    Raises StoreFailed.
    """
    uri = f"{source.absolute().as_uri()}?mode=ro"
    with _plain(source), closing(sqlite3.connect(uri, uri=True)) as db, closing(sqlite3.connect(target)) as copy:
        db.backup(copy)


class Hold:
    """A lock that ends with its process, however that ends: an exclusive transaction on a file of its own."""

    def __init__(self, path: Path) -> None:
        """Take it. Raises BlockingIOError when another process has it, StoreFailed when the file cannot be written."""
        with _plain(path):
            self._db = sqlite3.connect(path, isolation_level=None, timeout=0)
            try:
                self._db.execute("BEGIN EXCLUSIVE")
                self._db.execute("CREATE TABLE IF NOT EXISTS held (one INTEGER)")
            except sqlite3.OperationalError as error:
                self._db.close()
                if "locked" in str(error):
                    raise BlockingIOError from error
                raise

    def release(self) -> None:
        """Let it go. Idempotent."""
        self._db.close()
