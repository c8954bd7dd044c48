"""Rooms that move: an upgraded room has a successor, and all of ours go there."""

from collections.abc import Callable

import structlog

from mesh.bridges.matrix.errors import MatrixLoggedOut, MatrixRefused
from mesh.bridges.matrix.port import ENCRYPTION, MatrixPort
from mesh.bridges.matrix.rooms import CREATE, Tombstone, is_successor
from mesh.words import plain
from nodes.matrix.seats import Seats
from nodes.matrix.space import Space
from nodes.matrix.tables import BOT, Member, Tables
from nodes.node import Node

log = structlog.get_logger(__name__)


class Moves:
    """Follows rooms to their successors. `has_moved` is told the old and the new one, within the transaction."""

    def __init__(self, node: Node, port: MatrixPort, tables: Tables, seats: Seats, space: Space) -> None:
        self._node, self._port, self._tables, self._seats, self._space = node, port, tables, seats, space
        self.has_moved: Callable[[str, str], None] = lambda _old, _new: None

    async def moved(self, tombstone: Tombstone) -> None:
        """A room has a successor: everybody of ours goes there, if the new room says the same.

        Who must be invited first is awaited. Raises MatrixRefused when the new room says otherwise.
        """
        old, new = tombstone.room, tombstone.replacement
        with self._node.ground.store.transaction():
            self._tables.set_move(old, new)
        for em in sorted(self._tables.joined(old), key=lambda em: em != BOT):
            if em != BOT and self._seats.shares(em):
                continue
            try:
                await self._port.join(em, new, tombstone.via)
            except (MatrixRefused, MatrixLoggedOut) as error:
                log.info("an em waits to be let into the room that replaces its own", em=em, reason=plain(str(error)))
                continue
            await self._settle_in(old, new, em)
            return

    async def follow(self, old: str, new: str, em: str) -> bool:
        """Take an invitation into the successor of a room; returns whether it was one."""
        await self._seats.come(em, new)
        try:
            await self._settle_in(old, new, em)
        except MatrixRefused as error:
            log.warning("an invitation led elsewhere than it said", reason=plain(str(error)))
            return False
        return True

    async def _settle_in(self, old: str, new: str, first: str) -> None:
        """Move everybody once the first is there; have it leave what is no successor. Raises MatrixRefused."""
        if wrong := await self._wrong_with(old, new, first):
            await self._port.leave(first, new)
            raise MatrixRefused(f"{new} {wrong} {old}; nothing is moved there", "NO_SUCCESSOR", 0)
        sitting = self._tables.joined(old)
        rest = [em for em in sitting if em not in {first, BOT} and not self._seats.shares(em)]
        with self._node.ground.store.transaction():
            self._tables.move(old, new)
            self.has_moved(old, new)
            for em in [first, *(em for em in sitting if self._seats.shares(em))]:
                self._seats.sit(new, em)
            for em in rest:  # with no user yet: if we are interrupted, `fill` brings them
                self._tables.set_member(new, Member(em, "joined"))
        self._node.host()
        for problem in await self._seats.enter(new, rest):
            log.warning("an em cannot follow a room that moved", problem=problem)
        self._seats.stay_out(new)
        if basin := self._tables.basin_of(new):
            await self._space.list(new, basin)

    async def _wrong_with(self, old: str, new: str, em: str) -> str | None:
        """Why nobody follows from one room to another, or None: whoever ends a room could have it go on in clear."""
        if not is_successor(await self._port.state(em, new, CREATE), old):
            return "does not say that it replaces"
        if await self._port.state(em, new, ENCRYPTION):
            self._port.inbox.note_encrypted([new])
        elif self._port.inbox.is_encrypted(old):
            return "is not encrypted, unlike"
        return None
