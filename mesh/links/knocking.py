"""Visiting a node with an invitation's secret: by its own addresses, at a hub, or in a room."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from mesh.errors import MeshError
from mesh.links.channel import Sealed, Self, call
from mesh.links.ways import ROOM, Way
from mesh.links.wire import WireBroken
from protocol.keys import MeshId

OPEN_S: Final = 4.0  # for a guest to reach one address or hub, before the next is tried


@asynccontextmanager
async def knocking(ways: Sequence[Way], who: Self, mesh: MeshId, secret: bytes) -> AsyncGenerator[Sealed]:
    """A wire to a node of `mesh` that was shown an invitation's secret. Raises WireBroken, NotAdmitted."""
    reason: MeshError = WireBroken("the invitation says no address to dial")
    for way in ways:
        try:
            async with asyncio.timeout(OPEN_S if way.rank != ROOM else None):
                wire = await way.open()
        except (WireBroken, TimeoutError) as error:
            reason = error if isinstance(error, WireBroken) else WireBroken("nobody waits for you there any more")
            continue
        try:
            sealed, _ = await call(wire, who, mesh, secret)
            yield sealed
        finally:
            await wire.close()
        return
    raise reason
