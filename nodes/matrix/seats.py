"""Seats in rooms: which of ours has one, and how it comes to it."""

import asyncio
from collections.abc import Iterable
from typing import Final

from mesh.bridges.matrix.errors import MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.port import MatrixPort
from mesh.words import plain
from nodes.matrix.tables import BOT, Member, Tables
from nodes.matrix.wardrobe import Wardrobe
from nodes.node import Node

UNSETTLED: Final = (404, "M_UNKNOWN")  # Synapse's, while it fetches the state of a room that it has just come to
EARLY_S: Final = (0.2, 1.0, 4.0)  # waits until an invitation that does not count yet is taken again


class Seats:
    """Has users join, and notes it."""

    def __init__(self, node: Node, port: MatrixPort, tables: Tables) -> None:
        self._node, self._port, self._tables = node, port, tables
        self.wardrobe = Wardrobe(node, port, tables)

    def shares(self, em: str) -> bool:
        """Whether an em has no Matrix user of its own."""
        return self._port.user_id(em) == self._port.user_id(BOT)

    def shares_all(self) -> bool:
        """Whether the node's account speaks for ems that have none."""
        return not self._port.caps.separate_identities

    def listeners(self, basin: str) -> list[str]:
        """The ems that listen in a basin by their settings."""
        allowed = self._node.config.basin(basin).listeners
        return sorted(em.name for em in self._node.runtime.ems.values() if em.listens(basin, allowed))

    def sit(self, room: str, em: str) -> None:
        """Note that one of ours sits in a room; within a transaction."""
        self._tables.set_member(room, Member(em, "joined", user=self._port.user_id(em)))

    async def enter(self, room: str, ems: Iterable[str]) -> list[str]:
        """Have ems sit in a room; returns a sentence for each that cannot."""
        problems = list[str]()
        entered = list[str]()
        for em in ems:
            if em not in self._node.runtime.ems:
                problems.append(f"there is no em {plain(em)} here")
                continue
            try:
                if not self.shares(em):
                    await self._bring(em, room)
            except (MatrixRefused, MatrixLoggedOut) as error:
                problems.append(f"{em} cannot join: {error}")
                continue
            with self._node.ground.store.transaction():
                self.sit(room, em)
            entered.append(em)
        if entered:
            self._node.host()
        return problems

    async def _bring(self, em: str, room: str) -> None:
        """Have an em join; if it may not by itself, somebody of ours who is there invites it."""
        await self.wardrobe.dress([em])
        try:
            await self._port.join(em, room)
        except MatrixRefused:
            inside = [one for one in self._tables.members(room) if one.state == "joined" and one.em != em]
            if not inside:
                raise
            host = min(inside, key=lambda one: (not one.user, one.em))  # who has no user there is still to follow
            await self._port.invite(host.em, room, self._port.user_id(em))
            await self._port.join(em, room)

    async def come(self, em: str, room: str) -> None:
        """Take an invitation. Raises MatrixUnavailable also where the homeserver lets nobody in just yet.

        An invitation from another server is here before that server keeps it itself, and refuses who comes too soon.
        """
        for wait_s in (*EARLY_S, None):
            try:
                await self._port.join(em, room)
            except MatrixRefused as error:
                if (error.status, error.code) == UNSETTLED:
                    raise MatrixUnavailable(str(error)) from error
                if error.code != "M_FORBIDDEN" or wait_s is None:
                    raise
                await asyncio.sleep(wait_s)
            else:
                return

    def stay_out(self, room: str) -> None:
        """Whoever was to follow into a room and was not let in stays out."""
        waiting = [one.em for one in self._tables.members(room) if one.state == "joined" and not one.user]
        left = [em for em in waiting if em in self._node.runtime.ems]
        with self._node.ground.store.transaction():
            for em in left:
                self._tables.set_member(room, Member(em, "out", "it was not let in when the room moved"))
        if left:
            self._node.host()
