"""A wire carries messages of bytes between two nodes, in order, and may break at any time. Who is at its end is proved.

A WebSocket to the peer's node is one, two WebSockets that a hub joins another, a Matrix room a third.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Protocol, TypeVar

from mesh.errors import MeshError

T = TypeVar("T")

MAX_MESSAGE: Final = 900_000  # bytes: with their seal, what a WebSocket here takes in one message
MAX_SEALED: Final = MAX_MESSAGE + 1024  # bytes: the seal adds 17, a handshake its header
BEAT_S: Final = 10.0  # between two signs of life, where a message costs nothing


class WireBroken(MeshError):
    """The wire is gone; whatever was not acknowledged is sent again over the next one."""


class TooLong(WireBroken):
    """The other end has said more at once than any node does, and was hung up on."""


class Wire(Protocol):
    """One end. Only one task sends, and one receives.

    `beat_s`: seconds between two signs of life, and the time that a handshake may take.
    """

    @property
    def beat_s(self) -> float:
        """See above."""
        ...

    async def send(self, data: bytes) -> None:
        """Send one message of at most MAX_MESSAGE bytes; waits while the other end is slow. Raises WireBroken."""
        ...

    async def receive(self) -> bytes:
        """The next message. Raises WireBroken."""
        ...

    async def close(self) -> None:
        """End it. Idempotent."""
        ...


class MemoryWire:
    """A wire within one process, for tests and simulations."""

    beat_s: float = BEAT_S

    def __init__(self, incoming: asyncio.Queue[bytes], outgoing: asyncio.Queue[bytes], broken: asyncio.Event) -> None:
        self._incoming, self._outgoing, self._broken = incoming, outgoing, broken

    @classmethod
    def pair(cls, depth: int = 64) -> tuple["MemoryWire", "MemoryWire"]:
        """Both ends of a new wire, on which `depth` messages each way may be on their way."""
        one: asyncio.Queue[bytes] = asyncio.Queue(depth)
        other: asyncio.Queue[bytes] = asyncio.Queue(depth)
        broken = asyncio.Event()
        return cls(one, other, broken), cls(other, one, broken)

    async def send(self, data: bytes) -> None:
        """Hand a message to the other end."""
        await self._unless_broken(self._outgoing.put(data))

    async def receive(self) -> bytes:
        """The next message from the other end."""
        return await self._unless_broken(self._incoming.get())

    async def _unless_broken(self, work: Coroutine[Any, Any, T]) -> T:
        async with asyncio.TaskGroup() as group:
            working, broken = group.create_task(work), group.create_task(self._broken.wait())
            await asyncio.wait([working, broken], return_when=asyncio.FIRST_COMPLETED)
            is_done = working.done() and not self._broken.is_set()
            working.cancel()
            broken.cancel()
        if not is_done:
            raise WireBroken("the wire is broken")
        return working.result()

    async def close(self) -> None:
        """Break it for both."""
        self._broken.set()
