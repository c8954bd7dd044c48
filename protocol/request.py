"""Requests from the owner's other programs to a node: signed, so that a bus shared with others is no way in.

bytes 0-63    Ed25519 signature by the owner's client key over the domain, the operation, a zero byte, and the rest
bytes 64-71   when it was made, Unix milliseconds, big endian
bytes 72-79   random, so that the same request twice in a millisecond is two
bytes 80-     the request, as JSON
"""

from typing import Final, NamedTuple

from protocol.errors import BadRequest
from protocol.keys import SIGNATURE_BYTES, Signer, verify

VALID_MS: Final = 60_000  # how far a request's time may be from the node's: clocks differ, and replays end
MAX_REQUEST: Final = 524_288  # bytes; the longest text in the widest script fits
_DOMAIN: Final = b"ampmesh/request/1\0"
_TIME_BYTES: Final = 8
NONCE_BYTES: Final = 8
_LEAST: Final = SIGNATURE_BYTES + _TIME_BYTES + NONCE_BYTES


class Request(NamedTuple):
    """A verified request. `seal` is unique to it: the node answers each once."""

    body: bytes
    at_ms: int
    seal: bytes


def encode_request(signer: Signer, operation: str, now_ms: int, nonce: bytes, body: bytes) -> bytes:
    """Sign a request; `nonce` is 8 random bytes. Raises ValueError when it is too long."""
    if len(body) > MAX_REQUEST:
        raise ValueError(f"a request holds at most {MAX_REQUEST} bytes")
    rest = now_ms.to_bytes(_TIME_BYTES, "big") + nonce[:NONCE_BYTES] + body
    return signer.sign(_DOMAIN + operation.encode() + b"\0" + rest) + rest


def decode_request(raw_key: bytes, operation: str, now_ms: int, data: bytes) -> Request:
    """Check a request against the client's 32 public bytes and the time. Raises BadRequest."""
    if not _LEAST <= len(data) <= MAX_REQUEST + _LEAST:
        raise BadRequest("the request is no request: too short or too long")
    seal, rest = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    if not verify(raw_key, _DOMAIN + operation.encode() + b"\0" + rest, seal):
        raise BadRequest("the request is not signed by the owner's client key")
    at_ms = int.from_bytes(rest[:_TIME_BYTES], "big")
    if abs(now_ms - at_ms) > VALID_MS:
        raise BadRequest("the request is from another time; check the clock")
    return Request(rest[_TIME_BYTES + NONCE_BYTES :], at_ms, seal)
