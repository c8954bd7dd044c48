"""A sealed wire: two nodes prove who they are, and nobody on the way reads or changes what they say.

Whatever carries the bytes (a WebSocket, a proxy, a relay, a room) is not trusted. libsodium's `crypto_kx` makes fresh
keys, `crypto_secretstream` seals every message in order; what is ours is the proof of identity, after SIGMA-I
(Krawczyk, 2003): each end signs both fresh keys with its node key, under the seal, beside the certificate of its mesh.

    initiator → responder   fresh key, 32 bytes
    responder → initiator   fresh key, stream header, sealed [certificate, signature]
    initiator → responder   stream header, sealed [certificate, signature, secret of an invitation or nothing]
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec
from nacl.bindings import (
    crypto_kx_client_session_keys,
    crypto_kx_keypair,
    crypto_kx_server_session_keys,
    crypto_secretstream_xchacha20poly1305_HEADERBYTES,
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
)
from nacl.exceptions import CryptoError

from mesh.errors import MeshError
from mesh.links.wire import Wire
from protocol.certificate import MAX_DOCUMENT, Certificate, read_certificate
from protocol.errors import ProtocolError
from protocol.keys import KEY_BYTES, SIGNATURE_BYTES, KeyKind, MeshId, NodeId, Signer, decode_public, verify

MAX_SECRET: Final = 64  # bytes of an invitation's secret
HEADER: Final = crypto_secretstream_xchacha20poly1305_HEADERBYTES
_SHARED: Final = b"ampmesh/link/1/shared\0"
_INITIATOR: Final = b"ampmesh/link/1/initiator\0"
_RESPONDER: Final = b"ampmesh/link/1/responder\0"


class NotAdmitted(MeshError):
    """Whoever is at the other end is not who may be there."""


class _Proof(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    certificate: Annotated[bytes, msgspec.Meta(max_length=MAX_DOCUMENT)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    secret: Annotated[bytes, msgspec.Meta(max_length=MAX_SECRET)] = b""


@dataclass(frozen=True, slots=True)
class Self:
    """Who we are: the node's key, and the certificate that its mesh gave it, as signed."""

    signer: Signer
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Proved:
    """Who is at the other end, with the certificate that says so. `secret` is an invitation's, if one was shown."""

    mesh: MeshId
    node: NodeId
    certificate: bytes
    secret: bytes = field(default=b"", repr=False)


Admit = Callable[[Proved], str | None]  # why somebody is not let in, or None


class Sealed:
    """A wire on which every message is sealed. Made by `call` or `answer`.

    `shared` is a secret of its two ends, the same at both, which is never said: what they know of each other by.
    """

    def __init__(self, wire: Wire, send_key: bytes, receive_key: bytes) -> None:
        self._wire, self._receive_key = wire, receive_key
        keys = b"".join(sorted((send_key, receive_key)))
        self.shared = hashlib.blake2b(_SHARED, key=keys, digest_size=KEY_BYTES).digest()
        self._push = crypto_secretstream_xchacha20poly1305_state()
        self._pull = crypto_secretstream_xchacha20poly1305_state()
        self.header = crypto_secretstream_xchacha20poly1305_init_push(self._push, send_key)

    @property
    def beat_s(self) -> float:
        """As of the wire beneath."""
        return self._wire.beat_s

    def begin(self, header: bytes) -> None:
        """Take the other end's header. Raises NotAdmitted."""
        if len(header) != HEADER:
            raise NotAdmitted("whoever is there does not speak as a node does")
        crypto_secretstream_xchacha20poly1305_init_pull(self._pull, header, self._receive_key)

    def seal(self, data: bytes) -> bytes:
        """One message, sealed; the next one to be sent."""
        return crypto_secretstream_xchacha20poly1305_push(self._push, data)

    def open(self, data: bytes) -> bytes:
        """One message, opened; the next one that came. Raises NotAdmitted when it was changed, left out or repeated."""
        try:
            return crypto_secretstream_xchacha20poly1305_pull(self._pull, data)[0]
        except (CryptoError, RuntimeError, ValueError):
            raise NotAdmitted("a message on the link was changed on its way, or is missing") from None

    async def send(self, data: bytes) -> None:
        """Send one message. Raises WireBroken."""
        await self._wire.send(self.seal(data))

    async def receive(self) -> bytes:
        """The next message. Raises WireBroken, NotAdmitted."""
        return self.open(await self._wire.receive())

    async def close(self) -> None:
        """End it. Idempotent."""
        await self._wire.close()


async def call(wire: Wire, who: Self, mesh: MeshId, secret: bytes = b"") -> tuple[Sealed, Proved]:
    """Begin as the one who dialled; only a node of `mesh` will do. Raises NotAdmitted, WireBroken."""
    async with _in_time(wire):
        public, private = crypto_kx_keypair()
        await wire.send(public)
        answer = await wire.receive()
        theirs, header, sealed = (
            answer[:KEY_BYTES],
            answer[KEY_BYTES : KEY_BYTES + HEADER],
            answer[KEY_BYTES + HEADER :],
        )
        receive_key, send_key = _agreed(lambda: crypto_kx_client_session_keys(public, private, theirs))
        channel = Sealed(wire, send_key, receive_key)
        channel.begin(header)
        both = _digest(public, theirs)
        proved = _check(channel.open(sealed), _RESPONDER + both)
        if proved.mesh != mesh:
            raise NotAdmitted("a node of another mesh answered there; ask for a new invitation")
        proof = _Proof(who.certificate, who.signer.sign(_INITIATOR + both + proved.node.encode()), secret)
        await wire.send(channel.header + channel.seal(msgspec.msgpack.encode(proof)))
        return channel, proved


async def answer(wire: Wire, who: Self, admit: Admit) -> tuple[Sealed, Proved]:
    """Begin as the one who was dialled. Raises NotAdmitted, with `admit`'s reason; WireBroken."""
    async with _in_time(wire):
        public, private = crypto_kx_keypair()
        theirs = await wire.receive()
        receive_key, send_key = _agreed(lambda: crypto_kx_server_session_keys(public, private, theirs))
        channel = Sealed(wire, send_key, receive_key)
        both = _digest(theirs, public)
        proof = _Proof(who.certificate, who.signer.sign(_RESPONDER + both))
        await wire.send(public + channel.header + channel.seal(msgspec.msgpack.encode(proof)))
        last = await wire.receive()
        channel.begin(last[:HEADER])
        proved = _check(channel.open(last[HEADER:]), _INITIATOR + both + who.signer.public.encode())
        if reason := admit(proved):
            raise NotAdmitted(reason)
        return channel, proved


@asynccontextmanager
async def _in_time(wire: Wire) -> AsyncGenerator[None]:
    """A time limit for strangers: as long as a node may go without a sign of life."""
    try:
        async with asyncio.timeout(wire.beat_s):
            yield
    except TimeoutError:
        raise NotAdmitted(f"whoever is there said nothing for {wire.beat_s:.0f} s") from None


def _agreed(make: Callable[[], tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The keys of both directions. Raises NotAdmitted for what is no fresh key."""
    try:
        return make()
    except (CryptoError, ValueError, TypeError, RuntimeError):
        raise NotAdmitted("whoever is there does not speak as a node does") from None


def _digest(initiator: bytes, responder: bytes) -> bytes:
    return hashlib.blake2b(initiator + responder, digest_size=KEY_BYTES).digest()


def _check(data: bytes, signed: bytes) -> Proved:
    """Who proves to be there. Raises NotAdmitted."""
    try:
        proof = msgspec.msgpack.decode(data, type=_Proof)
        certificate: Certificate = read_certificate(proof.certificate)
        raw = decode_public(certificate.node, KeyKind.NODE)
    except (msgspec.MsgspecError, ProtocolError, RecursionError, UnicodeDecodeError):
        raise NotAdmitted("whoever is there shows no certificate of a mesh") from None
    if not verify(raw, signed, proof.signature):
        raise NotAdmitted("whoever is there does not hold the key of the certificate that it shows")
    return Proved(certificate.mesh, certificate.node, proof.certificate, proof.secret)
