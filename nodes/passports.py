"""Passports of ems on this disk: which files an em is made of, where it comes from, and until when it is lent.

A passport is a file `passport` in the em's folder. It goes with the folder, and is not part of what it vouches for. It
is a word between people and no lock: who deletes it hosts a copy of which nobody can say where it is from.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from mesh.clock import Clock
from nodes.em import MAX_AVATAR_BYTES, MAX_MEMORY_FILES, MAX_TEXT_BYTES, Em
from nodes.errors import ConfigError, NodeError
from nodes.home import Home
from nodes.proofs import utc
from nodes.textfile import read_bytes
from protocol.errors import BadPassport
from protocol.keys import MeshId, fingerprint
from protocol.passport import (
    MAX_LINEAGE_BYTES,
    Event,
    Passport,
    Stamped,
    digest_of_contents,
    read_lineage,
    sign_passport,
)

PASSPORT: Final = "passport"  # the file's name within an em's folder
MAX_EM_BYTES: Final = MAX_TEXT_BYTES + MAX_AVATAR_BYTES  # of all files that make an em
MAX_EM_FILES: Final = MAX_MEMORY_FILES + 8
WARNED_MS: Final = 3 * 86_400_000  # before a loan's end: time to write to each other
EM_FILE: Final = re.compile(r"config\.yaml|chat\.txt|avatar\.png|[^/]{1,64}\.chr|[^/]{1,64}\.chr/[^/]{1,200}\.txt")

_SECRET: Final = re.compile(
    rb"^[ \t]*[\"']?([\w.-]*(?:token|api_key|secret|password|auth|vendors|airtable|proxy_url)[\w.-]*)[\"']?[ \t]*:",
    re.MULTILINE | re.IGNORECASE,
)
_NO_SECRET: Final = re.compile(rb"(?:\w+_)?max_tokens|tokens_per_day|\w+_local_tokenization", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Loan:
    """An em that is another mesh's. `until_ms`: Unix milliseconds; None: it may stay."""

    lender: MeshId
    until_ms: int | None


def contents(em: Em) -> dict[str, bytes]:
    """The files that an em is made of, by their paths in its folder. Raises ConfigError, NodeError."""
    found = dict[str, bytes]()
    left = MAX_EM_BYTES
    for path in _files(em):
        data = read_bytes(path, left, em.folder)
        left -= len(data)
        found[path.relative_to(em.folder).as_posix()] = data
    return found


def _files(em: Em) -> Iterable[Path]:
    for name in ("config.yaml", "chat.txt", "avatar.png"):
        if (em.folder / name).is_file():
            yield em.folder / name
    for name in sorted({f"{em.name}.chr", f"{em.settings.name}.chr"}):
        path = em.folder / name
        if path.is_dir():
            inner = sorted(one for one in path.iterdir() if one.name.endswith(".txt") and not one.name.startswith("."))
            yield from inner[:MAX_MEMORY_FILES]
        elif path.is_file():
            yield path


def require_no_secret(em: Em, files: Mapping[str, bytes]) -> None:
    """Raise NodeError when an em's settings hold what nobody else should have: keys of Chapter II did."""
    for found in _SECRET.finditer(files.get("config.yaml", b"")):
        if not _NO_SECRET.fullmatch(found[1]):
            raise NodeError(
                f"{em.folder / 'config.yaml'} holds {found[1].decode('ascii', 'replace')[:80]!a}, which may be a"
                " secret; ems need none here: remove it, and then try again"
            )


def lineage(folder: Path) -> list[Stamped]:
    """An em's passport and its forebears'; empty where it has none. Raises NodeError when it is damaged."""
    path = folder / PASSPORT
    if not path.exists():
        return []
    try:
        return read_lineage(read_bytes(path, MAX_LINEAGE_BYTES, folder))
    except (BadPassport, ConfigError) as error:
        raise NodeError(f"{path} does not count: {error}; restore it, or remove it") from None


def loan(line: Sequence[Stamped], me: MeshId) -> Loan | None:
    """On what terms another mesh has lent an em to this one; None: it is not lent."""
    if not line or line[0].passport.event != "lend" or line[0].passport.mesh == me:
        return None
    return Loan(line[0].passport.mesh, line[0].passport.until_ms)


class Said(NamedTuple):
    """What a passport is to say of an em that is made of `files`; see protocol.passport.Passport."""

    name: str
    files: Mapping[str, bytes]
    event: Event
    parents: Sequence[Stamped] = ()
    until_ms: int | None = None
    to: MeshId | None = None


def stamp(home: Home, clock: Clock, said: Said) -> Stamped:
    """Have this home's node sign a passport. Raises HomeError, NodeError."""
    parents = [one.digest for one in said.parents]
    digest, mesh = digest_of_contents(said.files), home.mesh_id()
    passport = Passport(said.name, digest, mesh, clock(), said.event, parents, said.until_ms, said.to)
    try:
        return sign_passport(home.signer("node"), home.documents()[0][0], passport)
    except ValueError as error:
        raise NodeError(f"a passport for {said.name} cannot be signed: {error}; see: mesh keys show") from None


@dataclass(frozen=True, slots=True)
class Standing:
    """Which ems may be hosted now, what to tell of the others, and when to look again (Unix milliseconds)."""

    ems: list[Em]
    told: list[str]
    next_ms: int | None


def standing(ems: Iterable[Em], me: MeshId, now_ms: int) -> Standing:
    """Leave out ems whose loan has ended; tell of those whose loan ends soon."""
    kept, told, moments = list[Em](), list[str](), list[int]()
    for em in ems:
        try:
            lent = loan(lineage(em.folder), me)
        except NodeError as error:
            told.append(str(error))
            lent = None
        if lent is None or lent.until_ms is None:
            kept.append(em)
            continue
        whose = f"{em.name} is lent by {fingerprint(lent.lender)}"
        if lent.until_ms <= now_ms:
            told.append(f"{whose}, and was until {utc(lent.until_ms)}: it is not hosted; run: mesh em return {em.name}")
            continue
        kept.append(em)
        moments += [moment for moment in (lent.until_ms - WARNED_MS, lent.until_ms) if moment > now_ms]
        if lent.until_ms - WARNED_MS <= now_ms:
            told.append(f"{whose} until {utc(lent.until_ms)}; ask for more time, or run: mesh em return {em.name}")
    return Standing(kept, told, min(moments, default=None))
