"""Statements: acts by which a mesh's person invites, links, shares, takes back and leaves.

They travel in the relationship's own basin and are ordinary acts of the core vocabulary. What they change stands in
further keys of their body, which every schema allows: to a reader without this file they are still text.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Final, Literal

import msgspec

from protocol.acts import Act
from protocol.address import check_name
from protocol.budget import Count
from protocol.errors import BadAddress, BadLink, LinkFault
from protocol.keys import MeshId
from protocol.quota import Quota
from protocol.vocabulary import Link

May = Literal["read", "write"]

STATEMENTS: Final = frozenset({"invite", "link", "share", "unshare", "leave"})
MAX_BASINS: Final = 64  # that one statement, or one offer, names; a person reads the list before they agree
MAX_AHEAD_MS: Final = 300_000  # an act from further ahead is dated wrongly, on purpose or not
_OWN: Final = "link-"
_OWN_BYTES: Final = 16
_OWN_BASIN: Final = re.compile(r"link-[a-z2-7]{26}")


class Trust(StrEnum):
    """How one mesh sees another."""

    CLOSE = "close"  # a large quota
    KNOWN = "known"
    GUEST = "guest"  # sees only what is said from now on
    SILENT = "silent"  # I no longer listen


class Changes(Link, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a statement, without its place. Of each field, None or nothing means: as it was.

    `basin` and `may` are those of a `share` or `unshare`. An `invite` or `link` may carry the others: basins to give
    and to take (`null`: take no longer), trust in the other mesh, its quota, and whether nothing is to flow for now.
    An `invite` may end: no `link` dated after `until_ms` answers it.
    """

    gives: Annotated[dict[str, May], msgspec.Meta(max_length=MAX_BASINS)] = msgspec.field(default_factory=dict)
    takes: Annotated[dict[str, May | None], msgspec.Meta(max_length=MAX_BASINS)] = msgspec.field(default_factory=dict)
    trust: Trust | None = None
    quota: Quota | None = None
    paused: bool | None = None
    until_ms: Count | None = None


class Statement(Changes, frozen=True, kw_only=True, omit_defaults=True):
    """The body of a statement. `turn` counts the speaker's statements to this mesh, from 1.

    `round` counts how often the two have begun: an `invite` after a `leave` opens the next.
    """

    round: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    turn: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]


@lru_cache(maxsize=1024)  # it is asked for every act that crosses
def own_basin(one: MeshId, other: MeshId) -> str:
    """The name of the basin in which two meshes speak about their relationship; the same in either order."""
    hashed = hashlib.blake2b("\0".join(sorted((one, other))).encode(), digest_size=_OWN_BYTES).digest()
    return _OWN + base64.b32encode(hashed).decode().rstrip("=").lower()


def is_own(basin: str) -> bool:
    """Whether a basin is the own one of some relationship."""
    return _OWN_BASIN.fullmatch(basin) is not None


def check_shareable(basin: str) -> str:
    """Return a basin's name unchanged. Raises BadAddress for no name, and for the own basin of any relationship."""
    if is_own(check_name(basin)):
        raise BadAddress(f"the basin {basin} belongs to two meshes alone and cannot be shared")
    return basin


def read_statement(act: Act, now_ms: int, is_em: Callable[[str], bool]) -> Statement:
    """The typed body of a statement, checked for itself. Raises BadLink.

    Ems may ask for a change; only the mesh's own person makes one, and not one who speaks through a bridge.
    """
    if act.kind not in STATEMENTS:
        raise BadLink(LinkFault.BODY, f"{act.kind} says nothing about a relationship")
    if is_em(act.author) or act.author.startswith("@"):
        raise BadLink(LinkFault.AUTHOR, f"{act.author} may ask for this change, but only the mesh's person can make it")
    if act.at_ms > now_ms + MAX_AHEAD_MS:
        raise BadLink(LinkFault.CLOCK, f"the {act.kind} is dated more than five minutes from now; check both clocks")
    try:
        said = msgspec.convert(act.body, Statement)
        for basin in (*said.gives, *said.takes, *([said.basin] if said.basin is not None else [])):
            check_shareable(basin)
    except (msgspec.ValidationError, BadAddress) as error:
        raise BadLink(LinkFault.BODY, f"the {act.kind} cannot be read: {error}") from None
    if (act.kind in ("share", "unshare") and said.basin is None) or (act.kind == "share" and said.may is None):
        raise BadLink(LinkFault.BODY, f"the {act.kind} does not say which basin, or whether to read or to write")
    return said
