"""Who sits where: joining, inviting, leaving, being put out, and rooms that move."""

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import structlog

from mesh.bridges.matrix.errors import MatrixError, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import ENCRYPTION, MEMBER, MatrixPort, Speaker
from mesh.bridges.matrix.rooms import ALIAS, CREATE, NAME, Membership, Tombstone, is_successor, read_alias, read_name
from mesh.store import Store
from mesh.words import plain
from nodes.em import MAX_AVATAR_BYTES, Em
from nodes.errors import ConfigError
from nodes.matrix.settings import Matrix, fits
from nodes.matrix.tables import BOT, Member, Tables, missing
from nodes.node import Node
from nodes.textfile import read_bytes
from protocol.address import check_name

DIGEST_BYTES: Final = 5  # of a room's id in the name of its basin: ten letters, enough among a person's rooms
MAX_ORDER: Final = 50  # characters by which rooms of a space are put in order; the specification allows no more
UNSETTLED: Final = (404, "M_UNKNOWN")  # Synapse's, while it fetches the state of a room that it has just come to
EARLY_S: Final = (0.2, 1.0, 4.0)  # waits until an invitation that does not count yet is taken again
REASON: Final = 200  # characters of why somebody was put out

log = structlog.get_logger(__name__)


class Lobby:
    """Has the port join and leave, and remembers it."""

    def __init__(self, node: Node, port: MatrixPort, settings: Matrix, owner: str | None) -> None:
        self._node, self._port, self._settings, self._owner = node, port, settings, owner
        self._store: Store = node.ground.store
        self.tables = Tables(self._store)
        self._pictures: dict[str, str] = {}
        self.links: Callable[[], Iterable[str]] = list  # the rooms through which links go
        self.has_moved: Callable[[str, str], None] = lambda _old, _new: None  # told within the transaction
        self.users: dict[str, str] = {}  # Matrix users of ours → em, or BOT for the node's own and for a shared one

    def hosted(self) -> None:
        """Work out anew which users are whose."""
        users = {self._port.user_id(em): em for em in self._node.runtime.ems}
        self.users = users | {self._port.user_id(BOT): BOT}
        held = {em: self.tables.avatar(user) for user, em in users.items()}
        self._pictures |= {em: picture[1] for em, picture in held.items() if picture}

    def shares(self, em: str) -> bool:
        """Whether an em has no Matrix user of its own."""
        return self._port.user_id(em) == self._port.user_id(BOT)

    def may_invite(self, user: str) -> bool:
        """Whether a person may have ems come."""
        return user == self._owner or fits(user, self._settings.inviters)

    def who(self, key: str) -> Speaker:
        """A speaker as the port takes it."""
        em = self._node.runtime.ems.get(key)
        name = self._node.config.name if em is None else em.settings.name or em.name
        return Speaker(key, name, self._pictures.get(key))

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
            self._sit(joined, BOT)
        self._node.host()
        await self._list(joined, basin)
        await self._dress([BOT])
        wanted = self._listeners(basin) if ems is None else list(ems)
        problems = await self._enter(joined, [em for em in wanted if not self.tables.sits(em, joined)])
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
                self._sit(target, BOT)
        basin = self._settle(target)
        if problems := await self._enter(target, [em]):
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
            if em is None or not self.shares(one):
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
            await self._list(room, None)
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

    async def space(self, name: str) -> tuple[str, int]:
        """Make a space, or take the one that is there, and list all rooms in it; returns its id and their number.

        The node's person is invited.
        """
        space = self.tables.space()
        if space is None:
            invite = [self._owner] if self._owner else []
            space = await self._port.create_room(BOT, name or self._node.config.name, invite=invite, space=True)
            with self._store.transaction():
                self.tables.set_space(space)
        rooms = self.tables.rooms()
        for room, basin, _ in rooms:
            await self._port.space_child(BOT, space, room, order=basin[:MAX_ORDER])
        return space, len(rooms)

    async def _list(self, room: str, basin: str | None) -> None:
        """List a room in the mesh's space, or no more for None, if there is a space."""
        space = self.tables.space()
        if space is None:
            return
        try:
            await self._port.space_child(BOT, space, room, order=(basin or "")[:MAX_ORDER], listed=basin is not None)
        except MatrixError as error:
            log.warning("the space does not list a room as it should", reason=plain(str(error)))

    async def fill(self) -> None:
        """Have everybody come in who listens in a basin whose rooms are for everyone; whoever was put out stays out.

        Whoever has another Matrix user than before, such as an account of its own, comes in with that one.
        """
        for room, _, _ in self.tables.rooms():
            sitting = [one for one in self.tables.members(room) if one.state == "joined" and one.em != BOT]
            changed = [one.em for one in sitting if one.user != self._port.user_id(one.em)]
            for problem in await self._enter(room, [em for em in changed if em in self._node.runtime.ems]):
                log.warning("an em cannot sit in a room with its new user", problem=problem)
            self._stay_out(room)
        for room, basin in self.tables.for_everyone():
            absent = missing(self._listeners(basin), self.tables.members(room))
            for problem in await self._enter(room, absent):
                log.warning("an em cannot sit in a room", problem=problem)

    async def equip(self, room: str) -> None:
        """See that all who sit in a room can read what is said there: people's first words must not be lost on them."""
        for em in self.tables.joined(room):
            if em == BOT or not self.shares(em):
                with suppress(MatrixLoggedOut):
                    await self._port.equip(em, room)

    async def invited(self, event: Inbound, em: str) -> None:
        """An invitation came for one of ours: take it from those who may give it, decline it otherwise."""
        old = self.tables.moved_from(event.room)
        if old is not None and await self._follow(old, event.room, em):
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
        await self._come(em, event.room)
        self._settle(event.room)
        name = await self._called(em, event.room)
        here = list(self._node.runtime.ems) if em == BOT and self.shares_all() else []
        with self._store.transaction():
            self.tables.set_name(event.room, name)
            for one in [em, *(one for one in here if self.shares(one))]:
                self._sit(event.room, one)
        self._node.host()
        await self._dress([em])
        for problem in await self._enter(event.room, [one for one in here if not self.shares(one)]):
            log.warning("an em cannot sit in a room", problem=problem)

    async def _come(self, em: str, room: str) -> None:
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

    def _stay_out(self, room: str) -> None:
        """Whoever was to follow into a room and was not let in stays out."""
        waiting = [one.em for one in self.tables.members(room) if one.state == "joined" and not one.user]
        left = [em for em in waiting if em in self._node.runtime.ems]
        with self._store.transaction():
            for em in left:
                self.tables.set_member(room, Member(em, "out", "it was not let in when the room moved"))
        if left:
            self._node.host()

    def shares_all(self) -> bool:
        """Whether the node's account speaks for ems that have none."""
        return not self._port.caps.separate_identities

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
        leaving = [one for one in self.tables.joined(room) if self.shares(one)] if em == BOT else []
        with self._store.transaction():
            for one in {em, *leaving}:
                self.tables.set_member(room, Member(one, "out", plain(why, REASON)))
        log.warning("an em was made to leave a room", em=em, why=plain(why, REASON))
        self._node.host()

    async def moved(self, tombstone: Tombstone) -> None:
        """A room has a successor: everybody of ours goes there, if the new room says the same.

        Who must be invited first is awaited. Raises MatrixRefused when the new room says otherwise.
        """
        old, new = tombstone.room, tombstone.replacement
        with self._store.transaction():
            self.tables.set_move(old, new)
        for em in sorted(self.tables.joined(old), key=lambda em: em != BOT):
            if em != BOT and self.shares(em):
                continue
            try:
                await self._port.join(em, new, tombstone.via)
            except (MatrixRefused, MatrixLoggedOut) as error:
                log.info("an em waits to be let into the room that replaces its own", em=em, reason=plain(str(error)))
                continue
            await self._settle_in(old, new, em)
            return

    async def _follow(self, old: str, new: str, em: str) -> bool:
        """Take an invitation into the successor of a room; returns whether it was one."""
        await self._come(em, new)
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
        sitting = self.tables.joined(old)
        rest = [em for em in sitting if em not in {first, BOT} and not self.shares(em)]
        with self._store.transaction():
            self.tables.move(old, new)
            self.has_moved(old, new)
            for em in [first, *(em for em in sitting if self.shares(em))]:
                self._sit(new, em)
            for em in rest:  # with no user yet: if we are interrupted, `fill` brings them
                self.tables.set_member(new, Member(em, "joined"))
        self._node.host()
        for problem in await self._enter(new, rest):
            log.warning("an em cannot follow a room that moved", problem=problem)
        self._stay_out(new)
        if basin := self.tables.basin_of(new):
            await self._list(new, basin)

    async def _wrong_with(self, old: str, new: str, em: str) -> str | None:
        """Why nobody follows from one room to another, or None: whoever ends a room could have it go on in clear."""
        if not is_successor(await self._port.state(em, new, CREATE), old):
            return "does not say that it replaces"
        if await self._port.state(em, new, ENCRYPTION):
            self._port.inbox.note_encrypted([new])
        elif self._port.inbox.is_encrypted(old):
            return "is not encrypted, unlike"
        return None

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
            self._sit(room, BOT)

    def _sit(self, room: str, em: str) -> None:
        """Note that one of ours sits in a room; within a transaction."""
        self.tables.set_member(room, Member(em, "joined", user=self._port.user_id(em)))

    def _settle(self, room: str) -> str:
        """The basin of a room; one of its own if it had none."""
        basin = self.tables.basin_of(room)
        if basin is None:
            basin = f"room-{hashlib.blake2b(room.encode(), digest_size=DIGEST_BYTES).hexdigest()}"
            with self._store.transaction():
                self.tables.set_room(room, basin, everyone=False)
        return basin

    def _listeners(self, basin: str) -> list[str]:
        allowed = self._node.config.basin(basin).listeners
        return sorted(em.name for em in self._node.runtime.ems.values() if em.listens(basin, allowed))

    async def _enter(self, room: str, ems: Iterable[str]) -> list[str]:
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
            with self._store.transaction():
                self._sit(room, em)
            entered.append(em)
        if entered:
            self._node.host()
        return problems

    async def _bring(self, em: str, room: str) -> None:
        """Have an em join; if it may not by itself, somebody of ours who is there invites it."""
        await self._dress([em])
        try:
            await self._port.join(em, room)
        except MatrixRefused:
            inside = self.tables.joined(room)
            if not inside:
                raise
            await self._port.invite(inside[0], room, self._port.user_id(em))
            await self._port.join(em, room)

    async def _dress(self, ems: Iterable[str]) -> None:
        """Give users their names and pictures. What fails now is done at the next joining."""
        for key in ems:
            em = self._node.runtime.ems.get(key)
            try:
                if em is not None and em.avatar is not None:
                    await self._picture(em)
                await self._port.ensure(self.who(key))
            except MatrixError as error:
                log.warning("an em's name or picture could not be set", em=key, reason=plain(str(error)))

    async def _picture(self, em: Em) -> None:
        """Upload a picture that is not there yet."""
        if em.avatar is None:
            return
        try:
            data = read_bytes(em.avatar, MAX_AVATAR_BYTES, em.avatar.parent)
        except ConfigError as error:
            log.warning("a picture cannot be read", em=em.name, reason=plain(str(error)))
            return
        digest, user = hashlib.blake2b(data, digest_size=16).hexdigest(), self._port.user_id(em.name)
        held = self.tables.avatar(user)
        if held is None or held[0] != digest:
            mxc = await self._port.upload(em.name, data, "image/png", "avatar.png")
            with self._store.transaction():
                self.tables.set_avatar(user, digest, mxc)
            held = (digest, mxc)
        self._pictures[em.name] = held[1]
