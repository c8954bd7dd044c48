"""One space lists the rooms of a mesh."""

from typing import Final

import structlog

from mesh.bridges.matrix.errors import MatrixError
from mesh.bridges.matrix.port import MatrixPort
from mesh.words import plain
from nodes.matrix.tables import BOT, Tables
from nodes.node import Node

MAX_ORDER: Final = 50  # characters by which rooms of a space are put in order; the specification allows no more

log = structlog.get_logger(__name__)


class Space:
    """Makes the space and keeps its list."""

    def __init__(self, node: Node, port: MatrixPort, tables: Tables, owner: str | None) -> None:
        self._node, self._port, self._tables, self._owner = node, port, tables, owner

    async def make(self, name: str) -> tuple[str, int]:
        """Make a space, or take the one that is there, and list all rooms in it; returns its id and their number.

        The node's person is invited.
        """
        space = self._tables.space()
        if space is None:
            invite = [self._owner] if self._owner else []
            space = await self._port.create_space(BOT, name or self._node.config.name, invite)
            with self._node.ground.store.transaction():
                self._tables.set_space(space)
        rooms = self._tables.rooms()
        for room, basin, _ in rooms:
            await self._port.space_child(BOT, space, room, order=basin[:MAX_ORDER])
        return space, len(rooms)

    async def list(self, room: str, basin: str | None) -> None:
        """List a room in the mesh's space, or no more for None, if there is a space."""
        space = self._tables.space()
        if space is None:
            return
        try:
            await self._port.space_child(BOT, space, room, order=(basin or "")[:MAX_ORDER], listed=basin is not None)
        except MatrixError as error:
            log.warning("the space does not list a room as it should", reason=plain(str(error)))
