"""Requests from the owner's other programs to a node: signed, so that a bus shared with others is no way in.

bytes 0-63    Ed25519 signature by the owner's client key over the domain, the operation, a zero byte, and the rest
bytes 64-71   when it was made, Unix milliseconds, big endian
bytes 72-     the request, as JSON
"""

from typing import Final, NamedTuple

from protocol.errors import BadRequest
from protocol.keys import SIGNATURE_BYTES, Signer, verify

VALID_MS: Final = 60_000  # how far a request's time may be from the node's: clocks differ, and replays end
MAX_REQUEST: Final = 524_288  # bytes; the longest text in the widest script fits
_DOMAIN: Final = b"ampmesh/request/1\0"
_TIME_BYTES: Final = 8


class Request(NamedTuple):
    """A verified request. `seal` is unique to it: the node answers each once."""

    body: bytes
    at_ms: int
    seal: bytes


def encode_request(signer: Signer, operation: str, now_ms: int, body: bytes) -> bytes:
    """Sign a request. Raises ValueError when it is too long."""
    if len(body) > MAX_REQUEST:
        raise ValueError(f"a request holds at most {MAX_REQUEST} bytes")
    rest = now_ms.to_bytes(_TIME_BYTES, "big") + body
    return signer.sign(_DOMAIN + operation.encode() + b"\0" + rest) + rest


def decode_request(raw_key: bytes, operation: str, now_ms: int, data: bytes) -> Request:
    """Check a request against the client's 32 public bytes and the time. Raises BadRequest."""
    if not SIGNATURE_BYTES + _TIME_BYTES <= len(data) <= MAX_REQUEST + SIGNATURE_BYTES + _TIME_BYTES:
        raise BadRequest("the request is no request: too short or too long")
    seal, rest = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
    if not verify(raw_key, _DOMAIN + operation.encode() + b"\0" + rest, seal):
        raise BadRequest("the request is not signed by the owner's client key")
    at_ms = int.from_bytes(rest[:_TIME_BYTES], "big")
    if abs(now_ms - at_ms) > VALID_MS:
        raise BadRequest("the request is from another time; check the clock")
    return Request(rest[_TIME_BYTES:], at_ms, seal)
