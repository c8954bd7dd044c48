"""The `links` section of mesh.yaml: where other people's nodes reach this one."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from nodes.settings import Settings
from protocol.errors import BadInvitation
from protocol.invitation import MAX_ADDRESSES, read_address

ANYWHERE: Final = frozenset({"0.0.0.0", "[::]"})  # noqa: S104 - told apart here, never bound to by itself
_LISTEN: Final = re.compile(r"(\[[0-9a-f:]+\]|[a-z0-9.-]+):(\d{1,5})", re.ASCII)
_MAX_PORT: Final = 65_535


def _listen(value: str) -> str:
    match = _LISTEN.fullmatch(value)
    if match is None or int(match[2]) > _MAX_PORT:
        raise ValueError("must be HOST:PORT, such as 0.0.0.0:7417; port 0 takes any free one")
    return value


def _address(value: str) -> str:
    try:
        return read_address(value)
    except BadInvitation as error:
        raise ValueError(str(error)) from None


class Links(Settings):
    """How other people's nodes reach this one."""

    listen: Annotated[str, AfterValidator(_listen)] | None = Field(
        default=None,
        description="Where links are taken, such as 0.0.0.0:7417; null: this node dials, and cannot be dialled.",
    )
    addresses: tuple[Annotated[str, AfterValidator(_address)], ...] = Field(
        default=(),
        max_length=MAX_ADDRESSES,
        strict=False,
        description="Where others reach that, such as [mesh.example.org:443], told in invitations; if not set, as in"
        " listen. Port 443 is dialled with TLS, which is your proxy's matter.",
    )

    days: int = Field(
        default=366,
        ge=1,
        le=36_600,
        description="How far back a peer who was away, or who is new and may see all, is sent what was said, in days.",
    )

    @property
    def place(self) -> tuple[str, int] | None:
        """Host and port to listen at."""
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def told(self, port: int | None) -> tuple[str, ...]:
        """The addresses for an invitation when links are taken at `port`; none where others could not use any."""
        if self.addresses or self.listen is None or port is None:
            return self.addresses
        host = self.listen.rpartition(":")[0]
        return () if host in ANYWHERE else (read_address(f"{host}:{port}"),)


def dialled(address: str) -> str:
    """The URL of an address: TLS at port 443, where a proxy has it; elsewhere the seal of the link is all."""
    return f"{'wss' if address.endswith(':443') else 'ws'}://{address}"
