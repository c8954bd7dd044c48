"""Invitations: a short code that says who invites and where to dial, and that lets one mesh in once.

    byte 0        version (1) in the high half; the number of addresses, 0 to 4, in the low half
    bytes 1-32    the inviting mesh's public key
    bytes 33-42   the secret
    bytes 43-46   when it expires, Unix seconds, big endian
    addresses     0 and 4 bytes of IPv4, or 255 and 16 of IPv6, or a name's length and the name; then 2 of port;
                  before one of these may stand 254 and a byte that adds 1 for a hub and 2 for TLS
    2 bytes       CRC-16 (XMODEM, little endian, as in nkeys) of all before

The code is that in base32: RFC 4648, upper case, no padding. Reading is total: any text gives an Invitation or
BadInvitation. What is offered is not in it: the inviter tells, signed, whoever shows the secret (protocol.offer).
"""

import base64
import binascii
import hashlib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final

from protocol.errors import BadInvitation, InvitationFault
from protocol.keys import KEY_BYTES, KeyKind, MeshId, Signer, decode_public, encode_public

VERSION: Final = 1
SECRET_BYTES: Final = 10  # 80 bits: beyond guessing by login, and 16 characters
MAX_ADDRESSES: Final = 4  # at home, on the road, by name, by a relay
MAX_CODE: Final = 4_096  # characters that are looked at; the longest code, in groups, has 2,075
GROUP: Final = 5  # characters between dashes: what a person keeps in mind while typing
SCHEME: Final = "mesh:"

_COUNT: Final = 15
_EXPIRY_BYTES: Final = 4
_PORT_BYTES: Final = 2
_CRC_BYTES: Final = 2
_MAX_PORT: Final = 65_535
_IPV4: Final = 0  # tags of an address; those between are lengths of names
_IPV6: Final = 255
_MARKED: Final = 254  # longer than any name: a byte of marks follows, and then the address
_HUB: Final = 1
_TLS: Final = 2
_MARKS: Final = {"": 0, "hub": _HUB, "wss": _TLS, "hub+wss": _HUB | _TLS}
_SCHEMES: Final = {mark: scheme for scheme, mark in _MARKS.items()}
_TLS_PORT: Final = 443  # always dialled with TLS, which is thus not marked
_MAX_HOST: Final = 253  # characters of a name, by the rules of DNS

_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME: Final = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_NUMBER: Final = re.compile(r"\d+|0x[0-9a-f]*")  # a last label that resolvers take for an IPv4 address
_ADDRESS: Final = re.compile(r"(?:(hub|wss|hub\+wss)://)?(?:\[([0-9a-f:.]+)\]|([a-z0-9.-]+)):([1-9]\d{0,4})", re.ASCII)
_BETWEEN: Final = re.compile("[\\s\u2010-\u2015-]")  # chats and printers make long dashes of short ones
_MISREAD: Final = str.maketrans("018", "OIB")  # no digit of base32; the checksum tells whether the letter was meant


@dataclass(frozen=True, slots=True)
class Invitation:
    """Who invites, and how to reach them. Its `repr` does not show the secret.

    `addresses` are as `read_address` writes them, to be tried in order; none when the two meet in a room. Whoever
    answers there proves to be a node of `mesh` before it is told anything. `expires_s` is Unix seconds.
    """

    mesh: MeshId
    secret: bytes = field(repr=False)
    expires_s: int
    addresses: tuple[str, ...] = ()

    def check(self, now_ms: int) -> None:
        """Raise BadInvitation (expired) unless it holds at `now_ms`."""
        if now_ms >= self.expires_s * 1000:
            raise BadInvitation(InvitationFault.EXPIRED, "the invitation has expired; ask for a new one")

    def guest(self) -> Signer:
        """The key that stands for the invitation, made from the secret.

        The inviter keeps its public half alone, and knows by it the secret that it is shown.
        """
        seed = hashlib.blake2b(b"ampmesh/guest/1\0" + self.mesh.encode(), key=self.secret, digest_size=32).digest()
        return Signer(seed, KeyKind.NODE)


def write_code(invitation: Invitation) -> str:
    """The code in groups with dashes. Raises ValueError for an invitation that cannot be written: our own mistake."""
    code = _encode(invitation)
    return "-".join(code[at : at + GROUP] for at in range(0, len(code), GROUP))


def write_link(invitation: Invitation) -> str:
    """`mesh:CODE`, without groups; its upper case is what a QR code holds in alphanumeric mode. Raises ValueError."""
    return SCHEME + _encode(invitation)


def read_invitation(text: str) -> Invitation:
    """Read a code or a link, however it is spaced and in either case. Raises BadInvitation; see `Invitation.check`."""
    if len(text) > MAX_CODE:
        raise _mistyped("it is too long")
    code = _BETWEEN.sub("", text)
    if code[: len(SCHEME)].lower() == SCHEME:
        code = code[len(SCHEME) :]
    if not code.isascii():
        raise _mistyped("it holds a character that no code has")
    code = code.upper().translate(_MISREAD)
    data = _unarmour(code)
    if data[0] >> 4 != VERSION:
        raise BadInvitation(
            InvitationFault.VERSION, f"the code is of version {data[0] >> 4}, and this node reads version {VERSION}"
        )
    invitation = _decode(data)
    if invitation is None or _encode(invitation) != code:
        raise BadInvitation(InvitationFault.CONTENT, "the code is whole, but its content breaks the protocol's rules")
    return invitation


def read_address(text: str) -> str:
    """The one way to write an address: `host:port`, IPv6 in brackets. Raises BadInvitation (content).

    `wss://` before it says that it is dialled with TLS, as port 443 always is; `hub://` or `hub+wss://` that a hub is
    there, where the two meet.
    """
    lower = text.lower() if text.isascii() else ""
    match = _ADDRESS.fullmatch(lower)
    host = match and (_ip(match[2], 6) if match[2] else _ip(match[3], 4) or _name(match[3]))
    if not match or not host or int(match[4]) > _MAX_PORT:
        raise BadInvitation(
            InvitationFault.CONTENT, f"{text[:80]!r} is no address to dial: write host:port, or [IPv6]:port"
        )
    marks = _MARKS[match[1] or ""] & (_HUB if int(match[4]) == _TLS_PORT else _HUB | _TLS)
    return _marked(marks, f"{host}:{match[4]}")


@dataclass(frozen=True, slots=True)
class Place:
    """What an address says. `host` is `host:port`."""

    host: str
    is_hub: bool
    tls: bool

    @property
    def url(self) -> str:
        """What is dialled."""
        return f"{'wss' if self.tls else 'ws'}://{self.host}"


def place_of(address: str) -> Place:
    """Take an address apart that `read_address` has written."""
    marks, host = _unmarked(address)
    return Place(host, bool(marks & _HUB), bool(marks & _TLS) or host.endswith(f":{_TLS_PORT}"))


def _marked(marks: int, host: str) -> str:
    return f"{_SCHEMES[marks]}://{host}" if marks else host


def _unmarked(address: str) -> tuple[int, str]:
    scheme, _, host = address.rpartition("://")
    return _MARKS[scheme], host


def _ip(host: str, version: int) -> str | None:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):  # an IPv4 address in IPv6's clothes has several spellings
        return f"[{found}]" if version == 6 and found.ipv4_mapped is None else None  # noqa: PLR2004 - IP's own name
    return str(found) if version == 4 else None  # noqa: PLR2004 - IP's own name


def _name(host: str) -> str | None:
    last = host.rpartition(".")[2]
    return host if len(host) <= _MAX_HOST and _NAME.fullmatch(host) and not _NUMBER.fullmatch(last) else None


def _encode(invitation: Invitation) -> str:
    addresses = invitation.addresses
    if len(invitation.secret) != SECRET_BYTES:
        raise ValueError(f"an invitation has a secret of {SECRET_BYTES} bytes")
    if len(addresses) > MAX_ADDRESSES or not 0 <= invitation.expires_s < 2 ** (8 * _EXPIRY_BYTES):
        raise ValueError(f"an invitation has at most {MAX_ADDRESSES} addresses and expires before the year 2106")
    data = b"".join(
        (
            bytes([VERSION << 4 | len(addresses)]),
            decode_public(invitation.mesh, KeyKind.MESH),
            invitation.secret,
            invitation.expires_s.to_bytes(_EXPIRY_BYTES, "big"),
            *(_pack(address) for address in addresses),
        )
    )
    return _armour(data)


def _pack(address: str) -> bytes:
    try:
        if read_address(address) != address:
            raise ValueError(f"{address[:80]!r} is not written as read_address writes it")
    except BadInvitation as error:
        raise ValueError(str(error)) from None
    marks, place = _unmarked(address)
    host, _, port = place.rpartition(":")
    head = bytes([_MARKED, marks]) if marks else b""
    tail = int(port).to_bytes(_PORT_BYTES, "big")
    if host.startswith("["):
        return head + bytes([_IPV6]) + ipaddress.IPv6Address(host[1:-1]).packed + tail
    if _ip(host, 4):
        return head + bytes([_IPV4]) + ipaddress.IPv4Address(host).packed + tail
    return head + bytes([len(host)]) + host.encode() + tail


class _Bytes:
    """What is left to read of a code. Reading past its end gives fewer bytes and marks it as short."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.short = False

    def take(self, count: int) -> bytes:
        self.short |= count > len(self.data)
        taken, self.data = self.data[:count], self.data[count:]
        return taken

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count), "big")

    def address(self) -> str:
        tag, marks = self.number(1), 0
        if tag == _MARKED:
            marks, tag = self.number(1), self.number(1)
        if tag == _IPV4:
            host = str(ipaddress.IPv4Address(self.number(4)))
        elif tag == _IPV6:
            host = f"[{ipaddress.IPv6Address(self.number(16))}]"
        else:
            host = self.take(tag).decode("ascii", "replace")
        if marks not in _SCHEMES:
            raise BadInvitation(InvitationFault.CONTENT, "the address has marks that nobody knows")
        return read_address(_marked(marks, f"{host}:{self.number(_PORT_BYTES)}"))


def _decode(data: bytes) -> Invitation | None:
    """The fields as they stand; None where they end too soon or too late, or an address is none."""
    rest = _Bytes(data[1:])
    mesh = rest.take(KEY_BYTES)
    secret, expires_s = rest.take(SECRET_BYTES), rest.number(_EXPIRY_BYTES)
    count = data[0] & _COUNT
    try:
        addresses = tuple(rest.address() for _ in range(min(count, MAX_ADDRESSES)))
    except BadInvitation:
        return None
    if rest.short or rest.data or count > MAX_ADDRESSES:
        return None
    return Invitation(MeshId(encode_public(mesh, KeyKind.MESH)), secret, expires_s, addresses)


def _armour(data: bytes) -> str:
    crc = binascii.crc_hqx(data, 0).to_bytes(_CRC_BYTES, "little")
    return base64.b32encode(data + crc).decode().rstrip("=")


def _unarmour(code: str) -> bytes:
    try:
        data = base64.b32decode(code + "=" * (-len(code) % 8))
    except (binascii.Error, ValueError):
        raise _mistyped("a character is wrong or missing") from None
    payload, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if not payload or binascii.crc_hqx(payload, 0).to_bytes(_CRC_BYTES, "little") != crc or _armour(payload) != code:
        raise _mistyped("a character is wrong or missing")
    return payload


def _mistyped(why: str) -> BadInvitation:
    return BadInvitation(InvitationFault.MISTYPED, f"this is not the code of an invitation: {why}; copy it again")
