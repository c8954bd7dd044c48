"""What tests of buses share: somewhere to connect, and keys to log in with."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.bus.base import Bus
from mesh.server import ServerKeys
from protocol.keys import KeyKind, Signer


@dataclass(frozen=True)
class Logins:
    """Seeds of the users of a server, and their public keys as the server is told them."""

    node: str
    client: str
    public: ServerKeys


@dataclass(frozen=True)
class Place:
    """Somewhere to open connections to one and the same bus."""

    connect: Callable[[], Awaitable[Bus]]


def make_logins() -> Logins:
    mesh = Signer(os.urandom(32), KeyKind.MESH)
    node, client, system = (Signer(os.urandom(32), KeyKind.NODE) for _ in range(3))
    return Logins(node.seed(), client.seed(), ServerKeys(mesh.public, node.public, client.public, system.public))
