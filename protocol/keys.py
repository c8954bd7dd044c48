"""Ed25519 keys in NATS's nkey encoding: the key that signs is the key that logs in.

An nkey is base32 without padding of prefix byte(s), 32 bytes and a CRC-16 (XMODEM, little endian); see the NATS
documentation of nkeys. A mesh is an *account* key (`A…`), a node is a *user* key (`U…`), seeds begin with `SA` or `SU`.
"""

import base64
import binascii
from enum import IntEnum
from typing import Final, NewType

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from protocol.errors import BadKey

MeshId = NewType("MeshId", str)  # the public nkey of a person, `A…`
NodeId = NewType("NodeId", str)  # the public nkey of a node, `U…`

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_CRC_BYTES: Final = 2
_SEED_PREFIX: Final = 18 << 3
_FINGERPRINT: Final = 4  # characters shown to people where two meshes carry one petname


class KeyKind(IntEnum):
    """The nkey prefix byte."""

    MESH = 0  # nkey type account
    NODE = 20 << 3  # nkey type user


class Signer:
    """A private key. It shows its public half only: `repr` and `str` never hold the seed."""

    __slots__ = ("_secret", "_seed", "kind", "public", "raw")

    def __init__(self, seed: bytes, kind: KeyKind) -> None:
        """Take 32 secret bytes. Raises ValueError for another length."""
        self.raw, self._secret = crypto_sign_seed_keypair(seed)
        self._seed = seed
        self.kind = kind
        self.public = encode_public(self.raw, kind)

    @classmethod
    def from_seed(cls, text: str) -> "Signer":
        """Read an encoded seed (`SA…` or `SU…`). Raises BadKey, without the text in it."""
        data = _unarmour(text, KEY_BYTES + 2, "a seed")
        prefix = (data[0] & 7) << 5 | data[1] >> 3
        if data[0] & 0xF8 != _SEED_PREFIX or prefix not in set(KeyKind):
            raise BadKey("not the seed of a mesh or a node")
        return cls(data[2:], KeyKind(prefix))

    def seed(self) -> str:
        """The encoded seed: a secret, for the key file and the NATS login alone."""
        return _armour(bytes([_SEED_PREFIX | self.kind >> 5, (self.kind & 31) << 3]) + self._seed)

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes of an Ed25519 signature over `data`."""
        return crypto_sign(data, self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"Signer({self.public})"


def verify(raw: bytes, data: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) over `data` was made by the key whose 32 public bytes are `raw`."""
    try:
        crypto_sign_open(signature + data, raw)
    except (BadSignatureError, ValueError):
        return False
    return True


def encode_public(raw: bytes, kind: KeyKind) -> str:
    """The nkey text of 32 public bytes."""
    return _armour(bytes([kind]) + raw)


def decode_public(text: str, kind: KeyKind) -> bytes:
    """The 32 bytes of a public nkey of this kind. Raises BadKey."""
    data = _unarmour(text, KEY_BYTES + 1, "a public key")
    if data[0] != kind:
        raise BadKey(f"{text[:8]}… is not the key of a {kind.name.lower()}")
    return data[1:]


def fingerprint(public: str) -> str:
    """Four characters that tell two keys apart for a person: `A7QX`. The first character, the kind, is left out."""
    return public[1 : 1 + _FINGERPRINT]


def _armour(data: bytes) -> str:
    crc = binascii.crc_hqx(data, 0).to_bytes(_CRC_BYTES, "little")
    return base64.b32encode(data + crc).decode().rstrip("=")


def _unarmour(text: str, length: int, what: str) -> bytes:
    try:
        data = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise BadKey(f"not {what}: it is not base32") from None
    payload, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if len(payload) != length or binascii.crc_hqx(payload, 0).to_bytes(_CRC_BYTES, "little") != crc:
        raise BadKey(f"not {what}: wrong length or checksum")
    if base64.b32encode(data).decode().rstrip("=") != text:  # spare bits of the last character must be zero
        raise BadKey(f"not {what}: not in canonical form")
    return payload
