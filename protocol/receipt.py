"""Receipts: what one mesh confirms to another, signed, so that it can be shown later.

One for forgetting: the words of an act that its author took back are erased there. One for remembering: what was asked
of a mesh's memory, and which acts it answered with.
"""

import hashlib
from typing import Annotated, Final

import msgspec

from protocol.acts import Id
from protocol.address import check_name
from protocol.document import Document, read_document, sign_document
from protocol.errors import BadAddress, BadDocument
from protocol.keys import MeshId, Signer

MAX_CITED: Final = 8  # acts in an answer out of somebody's memory: what a person reads
DIGEST_BYTES: Final = 32
_FORGOTTEN: Final = b"ampmesh/forgotten/1\0"
_RECALLED: Final = b"ampmesh/recalled/1\0"


class Forgotten(Document, frozen=True):
    """`mesh` has honoured the `redaction` of `target`, which `to` made. `held`: its words were there until then."""

    target: Id
    redaction: Id
    held: bool


class Recalled(Document, frozen=True):
    """`to` asked a question of `mesh`'s memory, in these basins, and was answered with these acts."""

    question: Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    basins: Annotated[list[str], msgspec.Meta(max_length=64)]
    acts: Annotated[list[Id], msgspec.Meta(max_length=MAX_CITED)]


def digest_of_question(question: str) -> bytes:
    """BLAKE2b-256 of a question: a receipt shows that this was asked to whoever knows the words, and to no other."""
    return hashlib.blake2b(b"ampmesh/question/1\0" + question.encode(), digest_size=DIGEST_BYTES).digest()


def sign_forgotten(node: Signer, receipt: Forgotten) -> bytes:
    """The signed bytes. Raises ValueError for a receipt that nobody would take."""
    return sign_document(node, _FORGOTTEN, receipt)


def read_forgotten(data: bytes, to: MeshId, now_ms: int) -> Forgotten:
    """Verify and read a receipt for forgetting; see `read_document`. Raises BadDocument."""
    return read_document(data, Forgotten, _FORGOTTEN, to, now_ms)


def sign_recalled(node: Signer, receipt: Recalled) -> bytes:
    """The signed bytes. Raises ValueError for a receipt that nobody would take."""
    return sign_document(node, _RECALLED, receipt)


def read_recalled(data: bytes, to: MeshId, now_ms: int) -> Recalled:
    """Verify and read a receipt for an answer out of memory; see `read_document`. Raises BadDocument."""
    receipt = read_document(data, Recalled, _RECALLED, to, now_ms)
    try:
        for basin in receipt.basins:
            check_name(basin)
    except BadAddress as error:
        raise BadDocument(str(error)) from None
    return receipt
