"""Cards: who somebody is to one peer, and where. And introductions: what a third mesh says of one peer to another.

A card tells its reader what the reader may know: where the node is dialled, which ems listen in the basins that the two
share, and which of these are awake. It is said over the link alone, and replaced before it expires. There is no
directory: what stands in a card is known to the one that it was made for.
"""

from typing import Annotated, Final

import msgspec

from protocol.address import check_name
from protocol.budget import Count
from protocol.document import Document, read_document, sign_document
from protocol.errors import BadAddress, BadDocument, BadInvitation, BadKey
from protocol.invitation import MAX_ADDRESSES, read_address
from protocol.keys import KeyKind, MeshId, Signer, decode_public

CARD_MS: Final = 900_000  # how long a card holds: who crashed is shown as away after a quarter of an hour
MAX_CARD_MS: Final = 3_600_000  # a card that claims to hold for longer is not taken
INTRODUCTION_MS: Final = 7 * 86_400_000  # two people who are asked have a week, as with an invitation
MAX_EMS: Final = 128  # of one card: the ems of a large node that listen in shared basins; the rest are left out
MAX_BASINS: Final = 256  # of one card; the rest are left out
MAX_WORDS: Final = 500  # characters of what an introducer says
_NAME: Final = 64
_CARD: Final = b"ampmesh/card/1\0"
_INTRODUCTION: Final = b"ampmesh/introduction/1\0"

_Name = Annotated[str, msgspec.Meta(max_length=_NAME)]
_Address = Annotated[str, msgspec.Meta(max_length=300)]  # a DNS name has at most 253 characters
_Addresses = Annotated[tuple[_Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]


class CardEm(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """An em: `awake` when it is there and may speak."""

    name: _Name
    awake: bool


class Card(Document, frozen=True):
    """What a mesh tells one peer of itself. `name` is what it would like to be called.

    `introducible`: whether the peer may tell others of it. No `addresses`: it dials, and cannot be dialled.
    """

    name: _Name
    addresses: _Addresses
    ems: Annotated[list[CardEm], msgspec.Meta(max_length=MAX_EMS)]
    basins: Annotated[list[_Name], msgspec.Meta(max_length=MAX_BASINS)]
    introducible: bool
    expires_ms: Count


class Introduction(Document, frozen=True):
    """`mesh` tells `to` of `other`, which it calls `name`; `text` are its person's words."""

    other: MeshId
    name: _Name
    addresses: _Addresses
    text: Annotated[str, msgspec.Meta(max_length=MAX_WORDS)]
    expires_ms: Count


def sign_card(node: Signer, card: Card) -> bytes:
    """The signed bytes. Raises ValueError for a card that nobody would take."""
    _own(card, MAX_CARD_MS, card.name, *card.basins, *(em.name for em in card.ems))
    return sign_document(node, _CARD, card)


def read_card(data: bytes, to: MeshId, now_ms: int) -> Card:
    """Verify and read a card; see `read_document`. Raises BadDocument."""
    card = read_document(data, Card, _CARD, to, now_ms)
    _check(card, MAX_CARD_MS, card.name, *card.basins, *(em.name for em in card.ems))
    _current(card, now_ms)
    return card


def sign_introduction(node: Signer, introduction: Introduction) -> bytes:
    """The signed bytes. Raises ValueError for one that nobody would take."""
    _own(introduction, INTRODUCTION_MS, introduction.name)
    return sign_document(node, _INTRODUCTION, introduction)


def read_introduction(data: bytes, to: MeshId, now_ms: int) -> Introduction:
    """Verify and read an introduction; see `read_document`. Raises BadDocument."""
    found = read_document(data, Introduction, _INTRODUCTION, to, now_ms)
    _check(found, INTRODUCTION_MS, found.name)
    _current(found, now_ms)
    try:
        decode_public(found.other, KeyKind.MESH)
    except BadKey as error:
        raise BadDocument(str(error)) from None
    if found.other in (found.mesh, found.to):
        raise BadDocument("it introduces one of the two who speak")
    return found


def _current(document: Card | Introduction, now_ms: int) -> None:
    if now_ms >= document.expires_ms:
        raise BadDocument("it has expired; check both clocks")


def _own(document: Card | Introduction, longest_ms: int, *names: str) -> None:
    try:
        _check(document, longest_ms, *names)
    except BadDocument as error:
        raise ValueError(str(error)) from None


def _check(document: Card | Introduction, longest_ms: int, *names: str) -> None:
    """What the types do not say."""
    try:
        for name in names:
            check_name(name)
        if any(read_address(address) != address for address in document.addresses):
            raise BadDocument("an address in it is not written in the one way")
    except (BadAddress, BadInvitation) as error:
        raise BadDocument(str(error)) from None
    if not 0 < document.expires_ms - document.made_ms <= longest_ms:
        raise BadDocument("it claims to hold for longer than any may")
