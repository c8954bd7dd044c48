"""What others may cost this node: asked by the runtime, answered by whoever knows the peers."""

from typing import Protocol

from protocol.keys import MeshId


class Quotas(Protocol):
    """What chains that other meshes began may cost; asked before a model is called."""

    def reserve(self, mesh: MeshId, tokens: int, *, begins: bool) -> str | None:
        """Why so many tokens more may not be spent for a mesh, or None; `begins`: in a chain not counted yet."""
        ...

    def settle(self, mesh: MeshId, reserved: int, used: int, price: float | None) -> None:
        """What was reserved and not used is given back; `price` in the vendor's currency, None where it is unknown."""
        ...

    def sharers(self, basin: str) -> int:
        """How many other meshes may speak in a basin."""
        ...


class Nobody:
    """No other mesh may cost anything."""

    def reserve(self, mesh: MeshId, tokens: int, *, begins: bool) -> str | None:  # noqa: ARG002 - a Quotas'
        """Never."""
        return "nobody here is linked with the mesh that began this talk"

    def settle(self, mesh: MeshId, reserved: int, used: int, price: float | None) -> None:
        """Nothing."""

    def sharers(self, basin: str) -> int:  # noqa: ARG002 - a Quotas'
        """None."""
        return 0
