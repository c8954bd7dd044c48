"""How far an address leads: to one's own machine, to the network that it is in, or to anywhere.

A peer says where it is dialled. It must not thereby have us dial what only we can reach: a service of this machine, or
the router at home. So of what others say, only such addresses are believed as lead as far as one that the person named.
"""

import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from protocol.invitation import place_of

_OWN: Final = "localhost"
_NEAR: Final = frozenset({"local", "lan", "internal", "intranet", "home", "arpa", "localdomain"})  # last labels


class Reach(IntEnum):
    """The farther, the more."""

    HOST = 0
    NEAR = 1
    FAR = 2


def reach_of(host: str) -> Reach:
    """How far an IP address (IPv6 without brackets) or a name leads, as far as it tells by itself."""
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name, _, last = host.rstrip(".").rpartition(".")
        if last == _OWN:
            return Reach.HOST
        return Reach.FAR if name and last not in _NEAR else Reach.NEAR
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    if found.is_loopback or found.is_unspecified or found.is_link_local or found.is_multicast:
        return Reach.HOST
    return Reach.FAR if found.is_global else Reach.NEAR


def believed(told: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Those of the addresses that somebody has `told` which lead as far as the nearest of those that are `known`.

    Where none is known: those that lead anywhere. All are as `protocol.invitation.read_address` writes them.
    """
    nearest = min(map(_reach, known), default=Reach.FAR)
    return tuple(address for address in told if _reach(address) >= nearest)


def _reach(address: str) -> Reach:
    return reach_of(place_of(address).host.rpartition(":")[0].strip("[]"))
