"""The `links` section of mesh.yaml: where other people's nodes reach this one."""

import re
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, model_validator

from nodes.settings import Settings
from protocol.errors import BadInvitation
from protocol.invitation import MAX_ADDRESSES, place_of, read_address

ANYWHERE: Final = frozenset({"0.0.0.0", "[::]"})  # noqa: S104 - told apart here, never bound to by itself
MAX_HUBS: Final = 2  # a node waits in each of them for every peer
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


def _hub(value: str) -> str:
    """A hub's address, however it was written."""
    place = place_of(_address(value))
    return read_address(f"hub{'+wss' if place.tls else ''}://{place.host}")


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
        " listen. Port 443, and what begins with wss://, is dialled with TLS: a proxy's, or `certificate`.",
    )
    hubs: tuple[Annotated[str, AfterValidator(_hub)], ...] = Field(
        default=(),
        max_length=MAX_HUBS,
        strict=False,
        description="Where this node meets peers who cannot dial it, such as [hub.example.org:7418]; see `mesh hub`.",
    )
    hub: bool = Field(
        default=False, description="Whether peers of this mesh may meet one another here, where links are taken."
    )
    certificate: str | None = Field(
        default=None, description="A PEM file: links are then taken with TLS. It is read again when it changes."
    )
    key: str | None = Field(default=None, description="The PEM file with the certificate's key; only you may read it.")

    introductions: bool = Field(
        default=True,
        description="Whether peers may tell other peers of theirs of this mesh and how to reach it; see `mesh peer"
        " introduce`.",
    )
    days: int = Field(
        default=366,
        ge=1,
        le=36_600,
        description="How far back a peer who was away, or who is new and may see all, is sent what was said, in days.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key are set together, or neither is")
        if self.listen is None and (self.hub or self.certificate):
            raise ValueError("hub, certificate and key say how links are taken: set listen, such as 0.0.0.0:7417")
        return self

    @property
    def place(self) -> tuple[str, int] | None:
        """Host and port to listen at."""
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    def told(self, port: int | None) -> tuple[str, ...]:
        """The addresses for an invitation when links are taken at `port`, hubs last; none that others could not use."""
        return (*self._own(port)[: MAX_ADDRESSES - len(self.hubs)], *self.hubs)

    def _own(self, port: int | None) -> tuple[str, ...]:
        if self.addresses or self.listen is None or port is None:
            return self.addresses
        host = self.listen.rpartition(":")[0]
        scheme = "wss://" if self.certificate else ""
        return () if host in ANYWHERE else (read_address(f"{scheme}{host}:{port}"),)
