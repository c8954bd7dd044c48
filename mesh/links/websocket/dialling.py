"""Dialling another node, or a hub, over WebSockets.

The seal of a link is ours and does not need TLS; where there is a certificate it is used.
"""

import asyncio
import re
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from mesh.links.channel import Self
from mesh.links.hub import CHALLENGE, MET, PIECE, PROVE
from mesh.links.proof import proof
from mesh.links.websocket.wires import MEET, PATH, MetWire, SocketWire
from mesh.links.wire import MAX_SEALED, WireBroken
from protocol.reach import Reach, reach_of

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

CONNECT_S: Final = 10.0
PING_S: Final = 30.0  # between pings to a hub where one waits; routers forget a silent connection in minutes
_PROVE: Final = re.compile(rf"{PROVE}[0-9a-f]{{{2 * CHALLENGE}}}", re.ASCII)


async def dial(url: str, trusted: ssl.SSLContext | None = None) -> SocketWire:
    """Connect to `ws://…` or `wss://…`; there a certificate must hold for the name, by the system's own authorities.

    `trusted` takes the place of these. Raises WireBroken.
    """
    return await _dial(url.rstrip("/") + PATH, MAX_SEALED, None, trusted)


async def meet(url: str, slot: str, who: Self, *, calls: bool, trusted: ssl.SSLContext | None = None) -> MetWire:
    """Dial a hub, and wait in a slot until the other end has come. Raises WireBroken.

    `who` is shown to a hub that asks; `calls`: we are the end that begins. Whether it is the other one who came, or
    anybody, is not known yet.
    """
    path = MEET.format(slot=slot, end="call" if calls else "answer")
    wire = await _dial(url.rstrip("/") + path, PIECE + 1, PING_S, trusted)
    try:
        await _met(wire, who, slot)
    except BaseException:
        await wire.close()
        raise
    return MetWire(wire)


async def _met(wire: SocketWire, who: Self, slot: str) -> None:
    """Wait until the other end has come; prove who we are where the hub asks, once. Raises WireBroken."""
    word = await wire.word()
    if _PROVE.fullmatch(word):
        await wire.send(proof(who, bytes.fromhex(word.removeprefix(PROVE)), slot))
        word = await wire.word()
    if word != MET:
        raise WireBroken("the hub says what no hub says")


def _why_not(error: Exception) -> str:
    """Why a connection was not made, for a person; what the other end says in its error is not passed on."""
    import aiohttp

    match error:
        case TimeoutError():
            return "no answer came in time"
        case aiohttp.ClientConnectorDNSError():
            return "that name is not known here"
        case aiohttp.ClientSSLError() | aiohttp.ClientConnectorCertificateError():
            return "its TLS certificate does not hold for that name, or it speaks no TLS"
        case aiohttp.WSServerHandshakeError():
            return "what answers there is no node or hub"
        case aiohttp.ClientConnectorError() if isinstance(error.os_error, ConnectionRefusedError):
            return "nothing listens there"
        case _:
            return type(error).__name__


async def _dial(url: str, max_bytes: int, ping_s: float | None, trusted: ssl.SSLContext | None) -> SocketWire:
    import aiohttp

    sockets = list[socket.socket]()

    def opened(where: Any) -> socket.socket:  # noqa: ANN401 - as getaddrinfo gives it
        sockets.append(socket.socket(*where[:3]))
        return sockets[-1]

    connector = aiohttp.TCPConnector(resolver=_resolver(), socket_factory=opened)
    elsewhere = aiohttp.TraceConfig()
    elsewhere.on_request_redirect.append(_stay)
    session = aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, trace_configs=[elsewhere]
    )
    try:
        async with asyncio.timeout(CONNECT_S):
            connected = await session.ws_connect(
                url,
                max_msg_size=max_bytes,
                compress=0,
                heartbeat=ping_s,
                ssl=trusted or True,
            )
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        await session.close()
        raise WireBroken(f"nobody can be reached at {urlsplit(url).netloc}: {_why_not(error)}") from error
    except BaseException:
        await session.close()
        raise
    return SocketWire(connected, session, lambda: _shut(sockets))


async def _stay(*_: object) -> None:
    """Go nowhere else than where we dialled: whoever is there must not choose what of ours it is."""
    raise WireBroken("whoever is there sends us elsewhere")


def _shut(sockets: Iterable[socket.socket]) -> None:
    for one in sockets:
        with suppress(OSError):  # it is closed already
            one.shutdown(socket.SHUT_RDWR)


def _resolver() -> "AbstractResolver":
    """Looks up names. One that leads anywhere must not lead to this machine: its owner would say what is dialled."""
    import aiohttp

    class Resolver(aiohttp.ThreadedResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> Any:  # noqa: ANN401 - aiohttp's
            found = await super().resolve(host, port, family)
            if reach_of(host) == Reach.FAR:
                found = [one for one in found if reach_of(one["host"]) != Reach.HOST]
            if not found:
                raise OSError(None, "the name leads to this machine")
            return found

    return Resolver()
