"""Passports: where an em comes from, and on what terms it is with whom.

A passport is what one mesh says of an em: its name, the digest of its files, which passports it descends from. It is
MessagePack `[certificate, signature, body]`; `body` is `[name, digest, mesh, made_ms, event, parents, until_ms, to]` as
it was signed, over `ampmesh/passport/1`, a zero byte and itself, by a node that the certificate put into service. The
node signs, so that the mesh key may be kept off the machine.

A lineage `["ampmesh-lineage", 1, [passport, ...]]` is an em's passport and those of its forebears, children first.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from protocol.budget import Count
from protocol.certificate import MAX_DOCUMENT, read_certificate
from protocol.errors import BadCertificate, BadKey, BadPassport
from protocol.keys import SIGNATURE_BYTES, KeyKind, MeshId, NodeId, Signer, decode_public, verify

VERSION: Final = 1
MAX_PASSPORT: Final = 8_192  # bytes; one has some hundreds, most of them its certificate
MAX_PARENTS: Final = 8  # an em is made from few others
MAX_LINEAGE: Final = 64  # passports that are carried along; older forebears are left out
MAX_LINEAGE_BYTES: Final = MAX_LINEAGE * (MAX_PASSPORT + 8) + 64
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")  # of an em: also a folder's name
_TAG: Final = "ampmesh-lineage"
_DOMAIN: Final = b"ampmesh/passport/1\0"
_DIGEST: Final = r"^b2:[0-9a-f]{64}$"

Event = Literal["made", "fork", "lend", "return"]
Digest = Annotated[str, msgspec.Meta(pattern=_DIGEST)]


class Passport(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What `mesh` says of an em, at `made_ms`: that it was made, forked, is lent, or is given back.

    `digest` is of its files (`digest_of_files`), `parents` are the digests of the passports that it descends from.
    A loan ends at `until_ms` (Unix milliseconds; None: it has no end) and is to one mesh (None: to whoever has it).
    """

    name: Annotated[str, msgspec.Meta(max_length=32)]
    digest: Digest
    mesh: MeshId
    made_ms: Count
    event: Event
    parents: Annotated[list[Digest], msgspec.Meta(max_length=MAX_PARENTS)]
    until_ms: Count | None = None
    to: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class _Signed(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_PASSPORT)]


class _Lineage(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, tag=_TAG):
    version: int
    passports: Annotated[list[bytes], msgspec.Meta(min_length=1, max_length=MAX_LINEAGE)]


@dataclass(frozen=True, slots=True)
class Stamped:
    """A passport that was verified: what it says, the node that signed it, its digest and its bytes."""

    passport: Passport
    node: NodeId
    digest: str
    data: bytes


def sign_passport(signer: Signer, certificate: bytes, passport: Passport) -> Stamped:
    """Sign a passport with a node's key. Raises ValueError for what no reader would take."""
    body = _encode(passport)
    data = _encode(_Signed(certificate, signer.sign(_DOMAIN + body), body))
    try:
        return read_passport(data)
    except BadPassport as error:
        raise ValueError(str(error)) from None


def read_passport(data: bytes) -> Stamped:
    """Read and verify one passport. Raises BadPassport."""
    if len(data) > MAX_PASSPORT:
        raise BadPassport("the passport is too long")
    try:
        signed = _signed.decode(data)
        passport = _passport.decode(signed.body)
        if passport.to is not None:
            decode_public(passport.to, KeyKind.MESH)
        certificate = read_certificate(signed.certificate)
        raw = decode_public(certificate.node, KeyKind.NODE)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadPassport("the passport cannot be read") from None
    except (BadCertificate, BadKey) as error:
        raise BadPassport(f"the passport proves nothing: {error}") from None
    if not NAME.fullmatch(passport.name):
        raise BadPassport("the passport names no em")
    if certificate.mesh != passport.mesh or not verify(raw, _DOMAIN + signed.body, signed.signature):
        raise BadPassport("the passport is not signed by a node of the mesh that it names")
    if not certificate.not_before_ms <= passport.made_ms <= certificate.not_after_ms:
        raise BadPassport("the passport was signed at a time at which the node was not in service")
    return Stamped(passport, certificate.node, _digest(data), data)


def write_lineage(lineage: Sequence[Stamped]) -> bytes:
    """The bytes of an em's passport and its forebears', children first; the oldest are left out beyond MAX_LINEAGE."""
    return _encode(_Lineage(VERSION, [one.data for one in lineage[:MAX_LINEAGE]]))


def read_lineage(data: bytes) -> list[Stamped]:
    """An em's passport first, then those of its forebears, each verified. Raises BadPassport.

    Every passport after the first is a parent of one before it; parents may be missing.
    """
    if len(data) > MAX_LINEAGE_BYTES:
        raise BadPassport("the lineage is too long")
    try:
        held = _lineage.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise BadPassport("the passport cannot be read") from None
    if held.version != VERSION:
        raise BadPassport(f"the passport is of version {held.version}, and version {VERSION} is read here")
    found = [read_passport(one) for one in held.passports]
    wanted = set(found[0].passport.parents)
    for one in found[1:]:
        if one.digest not in wanted:
            raise BadPassport("the lineage holds a passport that nothing in it descends from")
        wanted.update(one.passport.parents)
    return found


def digest_of_files(files: Mapping[str, bytes]) -> str:
    """The digest of an em: of its files' paths, with `/`, and the BLAKE2b-256 of each one's bytes, sorted by path."""
    return _digest(_encode([[path, files[path]] for path in sorted(files)]))


def digest_of_contents(files: Mapping[str, bytes]) -> str:
    """`digest_of_files` of files that are at hand, by path."""
    return digest_of_files({path: hashlib.blake2b(data, digest_size=32).digest() for path, data in files.items()})


def _digest(data: bytes) -> str:
    return "b2:" + hashlib.blake2b(data, digest_size=32).hexdigest()


_encode = msgspec.msgpack.Encoder().encode
_signed: Final = msgspec.msgpack.Decoder(_Signed)
_passport: Final = msgspec.msgpack.Decoder(Passport)
_lineage: Final = msgspec.msgpack.Decoder(_Lineage)
