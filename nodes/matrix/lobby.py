"""Who sits where: joining, inviting, leaving, being put out, and rooms that move."""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import structlog

from mesh.bridges.matrix.errors import MatrixLoggedOut, MatrixRefused
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import ENCRYPTION, MEMBER, MatrixPort
from mesh.bridges.matrix.rooms import ALIAS, NAME, Membership, read_alias, read_name
from mesh.store import Store
from mesh.words import plain
from nodes.matrix.moves import Moves
from nodes.matrix.seats import Seats
from nodes.matrix.settings import Matrix, fits
from nodes.matrix.space import Space
from nodes.matrix.tables import BOT, Member, Tables, missing
from nodes.node import Node
from protocol.address import check_name

DIGEST_BYTES: Final = 5  # of a room's id in the name of its basin: ten letters, enough among a person's rooms
REASON: Final = 200  # characters of why somebody was put out

log = structlog.get_logger(__name__)


class Lobby:
    """Has the port join and leave, and remembers it."""

    def __init__(self, node: Node, port: MatrixPort, settings: Matrix, owner: str | None) -> None:
        self._node, self._port, self._settings, self._owner = node, port, settings, owner
        self._store: Store = node.ground.store
        self.tables = Tables(self._store)
        self.seats = Seats(node, port, self.tables)
        self.space = Space(node, port, self.tables, owner)
        self.moves = Moves(node, port, self.tables, self.seats, self.space)
        self.links: Callable[[], Iterable[str]] = list  # the rooms through which links go
        self.users: dict[str, str] = {}  # Matrix users of ours → em, or BOT for the node's own and for a shared one

    def hosted(self) -> None:
        """Work out anew which users are whose."""
        users = {self._port.user_id(em): em for em in self._node.runtime.ems}
        self.users = users | {self._port.user_id(BOT): BOT}
        self.seats.wardrobe.hosted()

    def may_invite(self, user: str) -> bool:
        """Whether a person may have ems come."""
        return user == self._owner or fits(user, self._settings.inviters)

    async def join(self, room: str, basin: str, ems: Iterable[str] | None) -> tuple[str, list[str], list[str]]:
        """Have a room stand for a basin, and ems sit there: these, or for None all that listen in it.

        Returns the room's id, who sits there now, and what went wrong. Raises MatrixError when not even the node's own
        user could join, BadAddress.
        """
        check_name(basin)
        joined = await self._port.join(BOT, room)
        await self._check_mixing(joined, basin)
        name = await self._called(BOT, joined)
        with self._store.transaction():
            self.tables.set_room(joined, basin, everyone=ems is None)
            self.tables.set_name(joined, name)
            self.seats.sit(joined, BOT)
        self._node.host()
        await self.space.list(joined, basin)
        await self.seats.wardrobe.dress([BOT])
        wanted = self.seats.listeners(basin) if ems is None else list(ems)
        problems = await self.seats.enter(joined, [em for em in wanted if not self.tables.sits(em, joined)])
        if not wanted:
            problems.append(
                f"no em listens in {basin}: name some (--ems), or add it to the basins in their config.yaml"
            )
        return joined, [em for em in self.tables.joined(joined) if em != BOT], problems

    async def _check_mixing(self, room: str, basin: str) -> None:
        """Refuse a room that would show in clear what is said in encrypted ones. Raises MatrixRefused."""
        others = [one for one in self.tables.rooms_of(basin) if one != room]
        if not others:
            return
        if await self._port.state(BOT, room, ENCRYPTION):
            self._port.inbox.note_encrypted([room])
        kinds = {self._port.inbox.is_encrypted(one) for one in [room, *others]}
        if len(kinds) > 1:
            raise MatrixRefused(
                f"{basin} has rooms already, and of encrypted and open rooms one basin can have one kind only: what is"
                " said in the one would be read in the other; choose another basin",
                "MIXED",
                0,
            )

    async def invite(self, em: str, room: str) -> tuple[str, str]:
        """Have one em sit in a room, on behalf of the node's person; returns the room's id and its basin.

        Raises MatrixError.
        """
        target = room if room.startswith(("!", "#")) else await self.known(room)
        if room.startswith("#"):
            target = await self._port.join(BOT, room)
            with self._store.transaction():
                self.seats.sit(target, BOT)
        basin = self._settle(target)
        if problems := await self.seats.enter(target, [em]):
            raise MatrixRefused(problems[0], "NOT_JOINED", 0)
        name = await self._called(em, target)
        with self._store.transaction():
            self.tables.set_name(target, name)
        return target, basin

    async def leave(self, room: str, em: str | None) -> list[str]:
        """Have an em leave a room, or everybody; returns who left. Raises MatrixRefused for an em that is unknown."""
        members = {one.em for one in self.tables.members(room)}
        if em is not None and em not in members and em not in self._node.runtime.ems:
            raise MatrixRefused(f"there is no em {plain(em)}, here or in that room", "NO_EM", 0)
        leaving = self.tables.joined(room) if em is None else [em]
        for one in leaving:
            if em is None or not self.seats.shares(one):
                try:
                    await self._port.leave(one, room)
                except (MatrixRefused, MatrixLoggedOut) as error:  # then it is not there, or cannot say so
                    log.info("an em could not leave a room", em=one, reason=plain(str(error)))
        with self._store.transaction():
            for one in leaving:
                self.tables.set_member(room, Member(one, "out", "it left"))
            if em is None:
                self.tables.drop_room(room)
        self._node.host()
        if em is None:
            await self.space.list(room, None)
        return leaving

    async def _called(self, em: str, room: str) -> str:
        """What people know a room by: its name, or else its alias, or neither. Raises MatrixError."""
        name = read_name(await self._port.state(em, room, NAME) or {})
        return name or read_alias(await self._port.state(em, room, ALIAS) or {})

    async def known(self, room: str) -> str:
        """The id of a room that is given by id, by alias or by the name that people gave it. Raises MatrixRefused."""
        meant = await self._port.resolve(room) if room.startswith("#") else room
        rooms = self.tables.rooms()
        seats = [*(one for one, _, _ in rooms), *self.tables.seated()]
        found = [one for one in seats if one == meant][:1] or [one for one, _, name in rooms if name and name == room]
        if len(found) > 1:
            told = f"{len(found)} rooms are called {plain(room)}; give the id of one, which mesh matrix rooms shows"
            raise MatrixRefused(told, "NO_ROOM", 0)
        if not found:
            told = f"none of ours sits in {plain(room)!a}; mesh matrix rooms shows where they do"
            raise MatrixRefused(told, "NO_ROOM", 0)
        return found[0]

    async def fill(self) -> None:
        """Have everybody come in who listens in a basin whose rooms are for everyone; whoever was put out stays out.

        Whoever has another Matrix user than before, such as an account of its own, comes in with that one.
        """
        for room, _, _ in self.tables.rooms():
            sitting = [one for one in self.tables.members(room) if one.state == "joined" and one.em != BOT]
            changed = [one.em for one in sitting if one.user != self._port.user_id(one.em)]
            for problem in await self.seats.enter(room, [em for em in changed if em in self._node.runtime.ems]):
                log.warning("an em cannot sit in a room with its new user", problem=problem)
            self.seats.stay_out(room)
        for room, basin in self.tables.for_everyone():
            absent = missing(self.seats.listeners(basin), self.tables.members(room))
            for problem in await self.seats.enter(room, absent):
                log.warning("an em cannot sit in a room", problem=problem)

    async def equip(self, room: str) -> None:
        """See that all who sit in a room can read what is said there: people's first words must not be lost on them."""
        for em in self.tables.joined(room):
            if em == BOT or not self.seats.shares(em):
                with suppress(MatrixLoggedOut):
                    await self._port.equip(em, room)

    async def invited(self, event: Inbound, em: str) -> None:
        """An invitation came for one of ours: take it from those who may give it, decline it otherwise."""
        if await self._is_expected(em, event.room):
            return
        old = self.tables.moved_from(event.room)
        if old is not None and await self.moves.follow(old, event.room, em):
            return
        if not self.may_invite(event.sender):
            log.info("an invitation is declined: whoever gave it is none of matrix.inviters", em=em)
            try:
                await self._port.leave(em, event.room)
            except MatrixRefused as error:
                log.info("an invitation could not be declined", code=error.code)
            if not self.tables.members(event.room):
                self._port.inbox.forget_encrypted(event.room)
            return
        await self.seats.come(em, event.room)
        self._settle(event.room)
        name = await self._called(em, event.room)
        here = list(self._node.runtime.ems) if em == BOT and self.seats.shares_all() else []
        with self._store.transaction():
            self.tables.set_name(event.room, name)
            for one in [em, *(one for one in here if self.seats.shares(one))]:
                self.seats.sit(event.room, one)
        self._node.host()
        await self.seats.wardrobe.dress([em])
        for problem in await self.seats.enter(event.room, [one for one in here if not self.seats.shares(one)]):
            log.warning("an em cannot sit in a room", problem=problem)

    async def _is_expected(self, em: str, room: str) -> bool:
        """Whether an em sits in a room already, or was to follow the others there: then it is let in now."""
        seat = next((one for one in self.tables.members(room) if one.em == em and one.state == "joined"), None)
        if seat is None or (seat.user and await self.has_left(em, room)):
            return False
        if not seat.user:
            await self.seats.come(em, room)
            with self._store.transaction():
                self.seats.sit(room, em)
        return True

    async def has_left(self, em: str, room: str) -> bool:
        """Whether an em that sat in a room is gone: what tells so may be old news. Raises MatrixUnavailable."""
        if not self.tables.sits(em, room):
            return False
        try:
            state = await self._port.state(em, room, MEMBER, self._port.user_id(em))
        except (MatrixRefused, MatrixLoggedOut):
            return True
        return (state or {}).get("membership") != "join"

    def put_out(self, change: Membership, room: str, em: str) -> None:
        """One of ours was made to leave. Whoever shares its Matrix user leaves with it."""
        why = f"{change.change} by {change.by}{f': {change.reason}' if change.reason else ''}"
        leaving = [one for one in self.tables.joined(room) if self.seats.shares(one)] if em == BOT else []
        with self._store.transaction():
            for one in {em, *leaving}:
                self.tables.set_member(room, Member(one, "out", plain(why, REASON)))
        log.warning("an em was made to leave a room", em=em, why=plain(why, REASON))
        self._node.host()

    async def others(self, room: str, em: str) -> int:
        """With how many people an em shares a room. Raises MatrixError."""
        return sum(not self._port.owns(user) for user in await self._port.members(em, room))

    def status(self) -> list[dict[str, Any]]:
        """All rooms, for people and scripts. Those that stand for no basin are there for links alone."""
        rooms, links = self.tables.rooms(), set(self.links())
        alone = (links | set(self.tables.seated())) - {room for room, _, _ in rooms}
        return [
            {
                "room": room,
                "name": name,
                "basin": basin,
                "encrypted": self._port.inbox.is_encrypted(room),
                "links": room in links,
                "members": [
                    {"em": one.em, "user": self._port.user_id(one.em), **self._standing(one)}
                    for one in self.tables.members(room)
                ],
            }
            for room, basin, name in [*rooms, *((room, "", "") for room in sorted(alone))]
        ]

    def _standing(self, one: Member) -> dict[str, str]:
        if one.state == "joined" and one.em != BOT and one.em not in self._node.runtime.ems:
            return {"state": "out", "reason": "there is no such em here any more; mesh matrix leave --em takes it away"}
        return {"state": one.state, "reason": one.reason}

    def sit_for_links(self, room: str) -> None:
        """Note that the node's own user sits in a room where peers are met, which need stand for no basin."""
        with self._store.transaction():
            self.seats.sit(room, BOT)

    def _settle(self, room: str) -> str:
        """The basin of a room; one of its own if it had none."""
        basin = self.tables.basin_of(room)
        if basin is None:
            basin = f"room-{hashlib.blake2b(room.encode(), digest_size=DIGEST_BYTES).hexdigest()}"
            with self._store.transaction():
                self.tables.set_room(room, basin, everyone=False)
        return basin
