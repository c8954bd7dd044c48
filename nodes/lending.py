"""Ems that go from one person to another: forks, loans, and what comes back.

A parcel is an archive (nodes.archive) of the em's passports and its files. It may come from anybody: what is in it is
bounded, only files that make an em are taken, and all of them must be those that the passport vouches for.
"""

import io
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mesh.clock import Clock
from nodes.archive import EM_FORMAT, MAX_CHUNK, File, Header, Reader, Writer, damaged
from nodes.disk import told
from nodes.em import EM_NAME, Em, load_em
from nodes.em_settings import EmSettings
from nodes.errors import NodeError
from nodes.home import Home
from nodes.passports import (
    EM_FILE,
    MAX_EM_BYTES,
    MAX_EM_FILES,
    PASSPORT,
    Said,
    contents,
    lineage,
    loan,
    require_no_secret,
    stamp,
)
from nodes.settings import load
from protocol.errors import BadPassport
from protocol.keys import MeshId, fingerprint
from protocol.passport import MAX_LINEAGE_BYTES, Stamped, digest_of_contents, read_lineage, write_lineage

MAX_PARCEL: Final = 2 * MAX_EM_BYTES  # bytes: files, and a head for each
AWAY: Final = ".returned"  # in the folder of ems: those that were given back; a node passes over hidden folders

Line = Callable[[Mapping[str, bytes]], Sequence[Stamped]]  # the passports of an em, from the files that it came to have


@dataclass(frozen=True, slots=True)
class Parcel:
    """What somebody sent, verified: an em's passports, its own first, and its files by their paths."""

    lineage: Sequence[Stamped]
    files: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))


def find_em(home: Home, name: str) -> Em:
    """An em of this home. Raises NodeError."""
    if not EM_NAME.fullmatch(name) or not (home.ems / name).is_dir():
        raise NodeError(f"there is no em {name[:80]!a} in {home.ems}")
    return load_em(home.ems / name)


def fork(home: Home, name: str, new: str, clock: Clock) -> tuple[Path, list[str]]:
    """Make a second em out of one of this home, with its lineage; gives its folder, and what a person should know.

    Raises NodeError.
    """
    em = find_em(home, name)
    _require_free(home, new)
    held, files = lineage(em.folder), contents(em)
    if lent := loan(held, home.mesh_id()):
        raise NodeError(f"{name} is lent to you by {fingerprint(lent.lender)}: ask whether you may keep a fork of it")
    parents = held or [stamp(home, clock, Said(name, files, "made"))]

    def line(made: Mapping[str, bytes]) -> Sequence[Stamped]:
        return [stamp(home, clock, Said(new, made, "fork", parents[:1])), *parents]

    return _settle(home, em.name, new, files, line)


class Terms(NamedTuple):
    """To which mesh an em is lent (None: to whoever has the file), and until when (Unix milliseconds; None: no end)."""

    to: MeshId | None = None
    until_ms: int | None = None


def lend(home: Home, name: str, terms: Terms, target: Path, clock: Clock) -> Stamped:
    """Write an em with a passport that lends it into a new file. Raises NodeError."""
    em = find_em(home, name)
    held, files = lineage(em.folder), contents(em)
    if loan(held, home.mesh_id()):
        raise NodeError(f"{name} is lent to you; only whose it is lends it on")
    require_no_secret(em, files)
    given = stamp(home, clock, Said(name, files, "lend", held[:1], terms.until_ms, terms.to))
    _write(target, Parcel([given, *held], files))
    return given


def give_back(home: Home, name: str, target: Path, clock: Clock) -> tuple[Stamped, Path]:
    """Write what a lent em has become into a new file, and move its folder aside; gives where. Raises NodeError."""
    em = find_em(home, name)
    held, files = lineage(em.folder), contents(em)
    lent = loan(held, home.mesh_id())
    if lent is None:
        raise NodeError(f"{name} is not lent to you: there is nobody to return it to")
    require_no_secret(em, files)
    back = stamp(home, clock, Said(held[0].passport.name, files, "return", held[:1], to=lent.lender))
    _write(target, Parcel([back, *held], files))
    aside = home.ems / AWAY / f"{name}-{clock()}"
    try:
        aside.parent.mkdir(mode=0o700, exist_ok=True)
        em.folder.rename(aside)
    except OSError as error:
        raise NodeError(told(f"{em.folder} cannot be moved aside", error, "move it away yourself")) from None
    return back, aside


def open_parcel(path: Path) -> Parcel:
    """Read and verify what somebody sent. Raises NodeError, one sentence, for everything that is no em."""
    try:
        seen = path.stat()
        if not stat.S_ISREG(seen.st_mode) or seen.st_size > MAX_PARCEL:
            raise NodeError(f"{path} is no file, or larger than any em; it was not read")
        with path.open("rb") as file:
            reader = Reader(file, EM_FORMAT)
            files = {entry.path: data for entry, data in _bounded(reader)}
    except OSError as error:
        raise NodeError(told(f"{path} cannot be read", error, "look for a copy")) from None
    try:
        line = read_lineage(files.pop(PASSPORT, b""))
    except BadPassport as error:
        raise NodeError(f"{path} is not taken: {error}") from None
    if line[0].passport.digest != digest_of_contents(files):
        raise NodeError(f"{path} is not taken: its files are not those that its passport vouches for")
    if line[0].passport.event not in {"lend", "return"}:
        raise NodeError(f"{path} is not taken: it was neither lent nor given back")
    return Parcel(line, files)


def _bounded(reader: Reader) -> Iterator[tuple[File, bytes]]:
    """The files of an archive, as long as they could be an em's. Raises NodeError."""
    left, count = MAX_EM_BYTES + MAX_LINEAGE_BYTES, 0
    names = set[str]()
    for entry, content in reader.files():
        left, count = left - entry.size, count + 1
        if left < 0 or count > MAX_EM_FILES:
            raise NodeError("the archive holds more than an em is made of; it was not taken")
        if entry.path in names or not (entry.path == PASSPORT or EM_FILE.fullmatch(entry.path)):
            raise NodeError(f"the archive holds {entry.path[:80]!a}, which is no part of an em; it was not taken")
        names.add(entry.path)
        yield entry, b"".join(_unbroken(entry.size, content))


def _unbroken(size: int, content: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks of a file, as long as our own: crumbs would take twenty times the memory. Raises NodeError."""
    for chunk in content:
        if len(chunk) != min(size, MAX_CHUNK):
            raise damaged()
        size -= len(chunk)
        yield chunk


def check_terms(parcel: Parcel, me: MeshId, now_ms: int) -> None:
    """Raise NodeError unless an em is for this mesh, now: lent by another, or what became of one that it lent."""
    passport = parcel.lineage[0].passport
    if passport.to not in (None, me):
        raise NodeError(f"{passport.name} is for the mesh {fingerprint(passport.to)}, and this is {fingerprint(me)}")
    if passport.event == "lend":
        if passport.mesh == me:
            raise NodeError("this is an em that you lent; it is in your home as it was")
        if passport.until_ms is not None and passport.until_ms <= now_ms:
            raise NodeError("the loan has ended; ask for a new one")
        return
    held = [one.passport for one in parcel.lineage[1:] if one.digest in passport.parents]
    lent = [one for one in held if one.mesh == me and one.event == "lend"]
    if not lent:
        raise NodeError("what is given back here was not lent by this mesh")
    if all(one.to not in (None, passport.mesh) for one in lent):
        raise NodeError(f"it was not lent to the mesh {fingerprint(passport.mesh)}, which gives it back")


def free_name(home: Home, wished: str) -> str:
    """A name for an em that is not taken in a home: the one that is wished for, or one like it."""
    tries = [wished, *(f"{wished[:29]}-{number}" for number in range(2, 99))]
    return next((one for one in tries if not _is_taken(home, one)), wished)


def take(home: Home, parcel: Parcel, name: str, clock: Clock) -> tuple[Path, list[str]]:
    """Make an em of a parcel, under a name that is free; gives its folder, and what a person should know.

    What was given back becomes a fork of what it was. Raises NodeError.
    """
    check_terms(parcel, home.mesh_id(), clock())
    _require_free(home, name)

    def line(files: Mapping[str, bytes]) -> Sequence[Stamped]:
        if parcel.lineage[0].passport.event == "lend":
            return parcel.lineage
        return [stamp(home, clock, Said(name, files, "fork", parcel.lineage[:1])), *parcel.lineage]

    return _settle(home, parcel.lineage[0].passport.name, name, parcel.files, line)


def _settle(home: Home, old: str, new: str, files: Mapping[str, bytes], line: Line) -> tuple[Path, list[str]]:
    """Put files into a new em's folder under another name, whole or not at all."""
    notes = list[str]()
    with _scratch(home) as scratch:
        folder = scratch / old
        _fill(folder, files)
        em = load_em(folder)  # what cannot be loaded is not taken
        if new != old:
            notes = _rename(em, new)
            folder = folder.rename(scratch / new)
            em = load_em(folder)
        (folder / PASSPORT).write_bytes(write_lineage(line(contents(em))))
        folder.rename(home.ems / new)
    return home.ems / new, [*notes, *em.notes]


@contextmanager
def _scratch(home: Home) -> Generator[Path]:
    """A hidden folder beside the ems, gone afterwards. Raises NodeError for what the disk refuses."""
    try:
        path = Path(tempfile.mkdtemp(prefix=".take.", dir=home.ems))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise NodeError(told(f"an em cannot be written to {home.ems}", error, "check its permissions")) from None


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write new files, none of which can lead elsewhere: their paths were looked at, and nothing here is a link."""
    folder.mkdir()
    for name, data in files.items():
        path = folder.joinpath(*name.split("/"))
        path.parent.mkdir(exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
            file.write(data)


def _rename(em: Em, new: str) -> list[str]:
    """Have an em's files go by another name; what the person has to do themselves is told."""
    memory, config = em.folder / f"{em.name}.chr", em.folder / "config.yaml"
    old = re.escape(em.name.encode())
    if config.is_file():
        line = rb"(?mi)^(name[ \t]*:[ \t]*)([\"']?)" + old + rb"\2(?=[ \t]*(#.*)?\r?$)"
        config.write_bytes(re.sub(line, rb"\g<1>" + new.encode(), config.read_bytes()))
        if "name" in (named := load(config, EmSettings)).model_fields_set and named.name != new:
            _move(memory, em.folder / f"{new}.chr")
            return [f"it still goes by {em.settings.name!a}: change `name` in config.yaml"]
    for path in (em.folder / "chat.txt", *(sorted(memory.glob("*.txt")) if memory.is_dir() else [memory])):
        with suppress(FileNotFoundError):
            path.write_bytes(re.sub(rb"(?mi)^<" + old + rb">", f"<{new}>".encode(), path.read_bytes()))
    _move(memory, em.folder / f"{new}.chr")
    return []


def _move(path: Path, to: Path) -> None:
    if path.exists():
        path.rename(to)


def _is_taken(home: Home, name: str) -> bool:
    return (home.ems / name).exists() or (home.ems / name).is_symlink()


def _require_free(home: Home, name: str) -> None:
    if not EM_NAME.fullmatch(name):
        raise NodeError(f"{name[:80]!a} is no name for an em; use 1 to 32 of a-z, 0-9, _ and -, no sign first")
    if _is_taken(home, name):
        raise NodeError(f"{home.ems / name} is there already; choose another name")


def _write(target: Path, parcel: Parcel) -> None:
    """Write a parcel into a new file. Raises NodeError."""
    if target.exists() or target.is_symlink():
        raise NodeError(f"{target} is there already; name another file, or remove it")
    top = parcel.lineage[0].passport
    try:
        handle, part = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                writer = Writer(file, Header(top.name, top.made_ms, EM_FORMAT))
                for name, data in ((PASSPORT, write_lineage(parcel.lineage)), *sorted(parcel.files.items())):
                    writer.add(File(name, 0o644, len(data)), io.BytesIO(data))
                writer.close()
            Path(part).rename(target)
        finally:
            Path(part).unlink(missing_ok=True)
    except OSError as error:
        raise NodeError(told(f"{target} cannot be written", error, "name another place")) from None
