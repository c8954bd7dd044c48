"""Names and subjects.

A name is what a person types: `aporia`, `yappings`. On the wire a mesh is its key.
Subjects are `b.<basin>.<mesh>.<node>` for durable acts and `e.<basin>.<mesh>.<node>` for ephemeral ones: one wildcard
is one basin, one permission is one origin.
"""

import re
from functools import lru_cache
from typing import Final, NamedTuple

from protocol.errors import BadAddress
from protocol.keys import KeyKind, MeshId, NodeId, decode_public

MAX_NAME: Final = 64  # characters of a basin or an em; longer names break tables and subjects
MAX_AUTHOR: Final = 255  # characters of an author; a Matrix user id has at most 255 bytes

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_AUTHOR = re.compile(r"[^\s\x00-\x20\x7f<>@][^\s\x00-\x20\x7f<>]{0,254}|@[^\s\x00-\x20\x7f<>]{1,254}")


class Subject(NamedTuple):
    """Where a frame travels. `stored` tells the durable subjects from the ephemeral ones."""

    stored: bool
    basin: str
    mesh: MeshId
    node: NodeId

    def __str__(self) -> str:
        return f"{'b' if self.stored else 'e'}.{self.basin}.{self.mesh}.{self.node}"


@lru_cache(maxsize=4096)
def check_name(name: str) -> str:
    """Return a basin's or em's name unchanged. Raises BadAddress unless it is 1 to 64 of `a-z 0-9 _ -`."""
    if not _NAME.fullmatch(name):
        raise BadAddress(
            f"{name[:80]!r} is not a name: use 1 to {MAX_NAME} of a-z, 0-9, _ and -, beginning with a-z or 0-9"
        )
    return name


@lru_cache(maxsize=4096)
def check_author(author: str) -> str:
    """Return an author unchanged: a name, or an id from elsewhere such as `@mara:example.org`.

    Raises BadAddress for whitespace, control characters, angle brackets, or more than 255 characters.
    """
    if not _AUTHOR.fullmatch(author) or not author.isprintable():
        raise BadAddress(
            f"{author[:80]!r} is not an author: no spaces, control characters, < or >, at most {MAX_AUTHOR}"
        )
    return author


@lru_cache(maxsize=4096)
def parse_subject(text: str) -> Subject:
    """Read the subject of a frame. Raises BadAddress for anything else."""
    parts = text.split(".")
    if len(parts) != 4 or parts[0] not in ("b", "e"):  # noqa: PLR2004 - four tokens, as documented above
        raise BadAddress(f"{text[:200]!r} is not the subject of a frame")
    kind, basin, mesh, node = parts
    decode_public(mesh, KeyKind.MESH)
    decode_public(node, KeyKind.NODE)
    return Subject(kind == "b", check_name(basin), MeshId(mesh), NodeId(node))
