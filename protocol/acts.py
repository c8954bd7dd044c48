"""Acts: one thing somebody says or does.

On the wire an act is the array `[id, kind, author, refs, root, budget, at_ms, body]`; `body` is a map that always holds
a `text` a person can read, and for the kinds of the core vocabulary follows the kind's schema (protocol.vocabulary).
"""

import hashlib
import re
from functools import lru_cache
from typing import Annotated, Any, Final, NewType

import msgspec

from protocol.address import check_author
from protocol.budget import Budget, Count
from protocol.errors import BadAct, BadAddress
from protocol.keys import MeshId, Signer
from protocol.vocabulary import BODIES, MAX_TEXT, Said

ActId = NewType("ActId", bytes)

ID_BYTES: Final = 16
RANDOM_BYTES: Final = 10
MAX_REFS: Final = 16  # an act answers few others
MAX_DEPTH: Final = 8  # of nested values in a body; deeper is an attack on a reader's stack
MAX_ITEMS: Final = 1_024  # entries of one list or map in a body
_INT64: Final = 2**63

Id = Annotated[ActId, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_KIND = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class Act(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One act. `refs[0]` is the act it answers, edits or reacts to; a root answers nobody's chain: `root == id`."""

    id: Id
    kind: Annotated[str, msgspec.Meta(max_length=32)]
    author: Annotated[str, msgspec.Meta(max_length=255)]
    refs: Annotated[list[Id], msgspec.Meta(max_length=MAX_REFS)]
    root: Id
    budget: Budget
    at_ms: Count
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """What a person reads."""
        return self.body["text"]

    @property
    def is_root(self) -> bool:
        """Whether it began its chain."""
        return self.root == self.id


def check_act(act: Act) -> None:
    """Everything the types do not say. Raises BadAct."""
    try:
        _check_kind(act.kind)
        check_author(act.author)
    except BadAddress as error:
        raise BadAct(str(error)) from None
    if act.root != act.id and not act.refs:
        raise BadAct("an act within a chain must say which act it answers")
    schema = BODIES.get(act.kind, Said)
    try:
        msgspec.convert(act.body, schema)
    except msgspec.ValidationError as error:
        raise BadAct(f"the body of this {act.kind} breaks its schema: {error}") from None
    if len(act.body) > 1:
        _check_values(act.body)


def time_of(identity: ActId) -> int:
    """When an id was made, in Unix milliseconds, as whoever made it says."""
    return int.from_bytes(identity[:6], "big")


def new_id(now_ms: int, randomness: bytes) -> ActId:
    """A UUIDv7 (RFC 9562) from Unix milliseconds and 10 random bytes."""
    head = (now_ms & (2**48 - 1)).to_bytes(6, "big")
    return ActId(
        head
        + bytes([0x70 | randomness[0] & 0x0F, randomness[1], 0x80 | randomness[2] & 0x3F])
        + randomness[3:RANDOM_BYTES]
    )


def reply_key(signer: Signer) -> bytes:
    """The 32 secret bytes that make a node's reply ids: a hash of its signature over a fixed text."""
    return hashlib.blake2b(signer.sign(b"ampmesh/reply/1"), digest_size=32).digest()


def reply_id(key: bytes, author: str, mesh: MeshId, answered: Act, number: int) -> ActId:
    """The id of act `number` (from 0) of `author`'s reply to an act of `mesh`, however often the node crashed since.

    A UUIDv7 whose time is that of the act answered and whose random part is a BLAKE2b hash of (mesh, act, author,
    number) under the node's `reply_key`: nobody else can tell it beforehand and take it.
    """
    parts = b"\0".join((mesh.encode(), answered.id, author.encode(), str(number).encode()))
    return new_id(answered.at_ms, hashlib.blake2b(parts, digest_size=RANDOM_BYTES, key=key).digest())


@lru_cache(maxsize=1024)
def _check_kind(kind: str) -> None:
    if not _KIND.fullmatch(kind):
        raise BadAct(f"{kind!r} is not the name of an act")


def _check_values(body: dict[str, Any]) -> None:
    """Bodies hold MessagePack's plain values only, so that every language and JSON can say them back."""
    waiting: list[tuple[Any, int]] = [(body, 0)]
    while waiting:
        value, depth = waiting.pop()
        if not isinstance(value, dict | list):
            _check_scalar(value)
            continue
        inner: list[Any] = list(value.values() if isinstance(value, dict) else value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] - any values
        if depth == MAX_DEPTH or len(inner) > MAX_ITEMS:
            raise BadAct(
                f"the body is nested deeper than {MAX_DEPTH} or holds more than {MAX_ITEMS} things in one place"
            )
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):  # pyright: ignore[reportUnknownVariableType] - any keys
            raise BadAct("the body has a key that is not text")
        waiting.extend((item, depth + 1) for item in inner)


def _check_scalar(value: object) -> None:
    match value:
        case str() if len(value) > MAX_TEXT:
            raise BadAct(f"the body holds a text of more than {MAX_TEXT} characters")
        case float() if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124 - the test for NaN
            raise BadAct("the body holds a number that is not finite")
        case int() if not -_INT64 <= value < _INT64:
            raise BadAct("the body holds a number beyond 64 bits")
        case str() | float() | int() | bytes() | None:
            pass
        case _:
            raise BadAct("the body holds a value of a type that has no name in JSON or MessagePack")
