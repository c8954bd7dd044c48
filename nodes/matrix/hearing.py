"""What people do in rooms, taken out of the inbox and handled: room by room, in order, each event once."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from mesh.bridges.matrix import link, verification
from mesh.bridges.matrix.errors import (
    BadContent,
    MatrixFull,
    MatrixLoggedOut,
    MatrixRefused,
    MatrixSilenced,
    MatrixUnavailable,
)
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import ENCRYPTED, MESSAGE, REACTION, REDACTION, MatrixPort
from mesh.bridges.matrix.reading import Heard, read
from mesh.bridges.matrix.rooms import Membership, read_membership, read_name, read_tombstone
from mesh.errors import MeshError, StoreFailed
from mesh.words import plain
from nodes.matrix import house
from nodes.matrix.inward import Inward, Scene
from nodes.matrix.lanes import Lanes
from nodes.matrix.lobby import Lobby
from nodes.matrix.outward import Outward
from nodes.matrix.page import Pages
from nodes.matrix.pictures import Pictures
from nodes.matrix.settings import Matrix
from nodes.matrix.steward import Steward
from nodes.media import Media
from nodes.node import Node
from protocol.acts import Act
from protocol.errors import ProtocolError

FEW: Final = 8  # people in a room; among more, nobody is soon alone with an em
LEADING: Final = frozenset({"m.room.member", "m.room.tombstone"})  # events that ask us into rooms of any server
TRIES: Final = 20  # a quarter of an hour, while our own homeserver is there: a server that never answers blocks no room
MAX_UNSENT: Final = 4_096  # acts that wait for the bus; until it takes them, people's words wait in the inbox
UNSENT_S: Final = 0.2  # between two looks whether it does
AGAIN_S: Final = (1.0, 60.0)  # first and longest wait for a homeserver that does not do what a room needs
VERIFICATIONS: Final = 3  # requests of a person in a minute that are answered
ANSWERS: Final = 20  # notices to commands in a room and minute; beyond it commands are obeyed without a word

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Hands:
    """What hearing works with. `tell` keeps a problem for a person; `media` is where pictures go.

    `has_read` shows that one of ours has read up to an event of a room.
    """

    node: Node
    port: MatrixPort
    lobby: Lobby
    inward: Inward
    outward: Outward
    settings: Matrix
    media: Media
    pages: Pages | None
    tell: Callable[[str], None]
    has_read: Callable[[str, str, str], None]


class Hearing:
    """The consumer of the inbox."""

    def __init__(self, hands: Hands) -> None:
        self._node, self._port, self._lobby = hands.node, hands.port, hands.lobby
        self._inward, self._outward = hands.inward, hands.outward
        self._tell, self._settings, self._has_read = hands.tell, hands.settings, hands.has_read
        self.carried: Callable[[Inbound], None] = lambda _event: None  # what is of a link through a room
        self._store, self._clock = hands.node.ground.store, hands.node.ground.clock
        self._tables = hands.lobby.tables
        self._lanes = Lanes(hands.port.inbox, self._settle)
        self.steward = Steward(self._node, self._inward, self._tables, hands.settings, hands.pages)
        self._pictures = Pictures(hands.port, hands.media, self._store, self._tables, self._clock)
        self._others: dict[str, int] = {}  # how many people are in a room, as far as it matters

    async def consume(self, group: asyncio.TaskGroup) -> None:
        """Handle what comes, room by room, until cancelled."""
        await self._lanes.run(group)

    async def _settle(self, event: Inbound) -> None:
        """Handle one event to its end: again and again while the homeserver is away; what is refused stays refused."""
        wait_s, tries = AGAIN_S[0], 0
        while True:
            try:
                await self._handle(event)
            except (MatrixUnavailable, MatrixFull) as error:
                tries += self._port.reached
                if event.kind in LEADING and tries >= TRIES:
                    self._tell(f"an event of {event.sender} is left alone, as another server does not answer: {error}")
                    self._port.inbox.handled(event)
                    return
                log.info("a room has to wait for the homeserver", reason=plain(str(error)))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, AGAIN_S[1])
                continue
            except StoreFailed:
                raise
            except (MatrixRefused, MatrixSilenced, BadContent, ProtocolError) as error:
                self._tell(f"an event of {event.sender} is left alone: {error}")
            except MatrixLoggedOut:  # the port will see it too: it ends all, or silences one and the next try tells
                await asyncio.sleep(AGAIN_S[0])
                continue
            except MeshError:
                raise
            except Exception as error:  # a slip of ours with one event must not silence the room for ever
                log.exception("an event could not be handled", kind=event.kind)
                self._tell(f"an event of {event.sender} is left alone: a mistake in the node, {type(error).__name__}")
            else:
                return
            self._port.inbox.handled(event)
            return

    async def _handle(self, event: Inbound) -> None:
        match event.kind:
            case "m.room.member":
                await self._member(event)
            case "m.room.tombstone":
                await self._moved(event)
            case "m.room.message" | "m.reaction" | "m.room.redaction" | "m.room.encrypted":
                await self._heard(event)
                return
            case "m.room.name":
                self._named(event)
            case link.FRAME:
                self.carried(event)
            case _:
                pass
        self._port.inbox.handled(event)

    async def _heard(self, event: Inbound) -> None:
        if event.kind == MESSAGE and verification.asks(event.content):
            self._decline(event)
            return
        scene = self._scene(event.room)
        heard = read(event.kind, event.content) if event.kind in {MESSAGE, REACTION} else None
        if scene is None or (heard is None and event.kind in {MESSAGE, REACTION}):
            self._port.inbox.handled(event)
            return
        if heard is not None and event.kind == MESSAGE and heard.edits is None:
            asked = house.command(heard.text)
            if asked is not None and self._inward.is_person(event, heard, scene):
                await self._command(event, heard, asked, scene)
                return
        media: Sequence[Mapping[str, Any]] = ()
        if heard is not None and event.kind == MESSAGE and self._inward.is_person(event, heard, scene):
            scene = await self._alone_with(event.room, scene)
            media = await self._pictures.of(event.room, heard)
        await self._say(event, lambda: self._acts(event, heard, scene, media), scene.basin)
        if event.kind == MESSAGE and (voice := self._outward.voice(event.room)):
            self._has_read(voice, event.room, event.event_id)

    def _decline(self, event: Inbound) -> None:
        """Answer a request for verification, lest the person's client waits for ten minutes."""
        em, now = self._lobby.users.get(str(event.content.get("to"))), self._clock()
        with self._store.transaction():
            is_ours = em is not None and self._tables.sits(em, event.room) and now - event.at_ms < verification.FRESH_MS
            if em and is_ours and self._tables.heed(f"verify {event.sender}", now, house.MINUTE_MS, VERIFICATIONS):
                content, name = verification.declined(event.event_id), f"decline/{event.event_id}"
                self._port.put(self._lobby.seats.wardrobe.who(em), event.room, verification.CANCEL, content, name)
            self._port.inbox.mark(event)
        self._port.outbox.wake()

    def _acts(self, event: Inbound, heard: Heard | None, scene: Scene, media: Sequence[Mapping[str, Any]]) -> list[Act]:
        retired = self._inward.opened(event, scene) if event.late else []
        if retired is None:
            return []  # it was redacted before its key came
        return [*retired, *self._new_acts(event, heard, scene, media)]

    def _new_acts(
        self, event: Inbound, heard: Heard | None, scene: Scene, media: Sequence[Mapping[str, Any]]
    ) -> list[Act]:
        if event.kind == REDACTION:
            return self._inward.redaction(event, scene)
        if event.kind == ENCRYPTED or heard is None:
            return self._inward.unreadable(event, scene)
        if event.kind == REACTION:
            return self._inward.reaction(event, heard, scene)
        return self._inward.message(event, heard, scene, media)

    async def _say(self, event: Inbound, make: Callable[[], list[Act]], basin: str) -> None:
        """Put the acts of an event into the node's outbox, and note with them that it was handled."""
        while self._node.outbox.waiting() >= MAX_UNSENT:  # noqa: ASYNC110 - it empties when another process is back
            await asyncio.sleep(UNSENT_S)
        with self._store.transaction():
            waiting = [self._node.outbox.put(basin, act) for act in make()]
            self._port.inbox.mark(event)
        for one in waiting:
            self._node.outbox.send(one)

    async def _command(self, event: Inbound, heard: Heard, asked: house.Asked | str, scene: Scene) -> None:
        """Do what a person asks of the node, and answer with a notice."""
        with self._store.transaction():
            retired = self._inward.opened(event, scene) if event.late else []
            acts, answer = self.steward.obey(event, heard, asked, scene)
            waiting = [self._node.outbox.put(scene.basin, act) for act in [*(retired or []), *acts]]
            if answer and self._tables.heed(f"answers {event.room}", scene.now_ms, house.MINUTE_MS, ANSWERS):
                with suppress(MatrixFull):  # what was asked for is done all the same
                    self._outward.notice(event.room, answer, event.event_id)
            self._port.inbox.mark(event)
        for one in waiting:
            self._node.outbox.send(one)
        self._port.outbox.wake()
        if not isinstance(asked, str) and asked.verb in {"mute", "unmute"}:
            self._node.host()

    async def _member(self, event: Inbound) -> None:
        change = read_membership(event, self._port.owns)
        self._count(event.room, change)
        em = self._lobby.users.get(change.user) if change else None
        if change is None or em is None:
            return
        if change.after == "invite":
            await self._lobby.invited(event, em)
        elif change.after in {"leave", "ban"} and await self._lobby.has_left(em, event.room):
            self._lobby.put_out(change, event.room, em)

    def _count(self, room: str, change: Membership | None) -> None:
        """Know that somebody came or went; where few are left, who is there is asked for anew."""
        came = change is not None and change.change == "joined"
        others = self._others.pop(room, 0) + (1 if came else -1)
        if others > FEW:  # a long list, that is, which a crowd could have us fetch with every coming and going
            self._others[room] = others

    async def _moved(self, event: Inbound) -> None:
        tombstone = read_tombstone(event)
        if tombstone and (self._tables.basin_of(event.room) or self._tables.joined(event.room)):
            await self._lobby.moves.moved(tombstone)

    def _named(self, event: Inbound) -> None:
        if event.state_key != "":
            return  # anybody who may speak can send that as a message
        with self._store.transaction():
            self._tables.set_name(event.room, read_name(event.content))

    async def _alone_with(self, room: str, scene: Scene) -> Scene:
        """The scene, with the em that a person is alone with; asked once until somebody comes or goes."""
        if len(scene.ems) != 1:
            return scene
        (em,) = scene.ems
        if room not in self._others:
            try:
                self._others[room] = await self._lobby.others(room, em)
            except (MatrixRefused, MatrixLoggedOut):  # its own account may be void: the others go on
                self._others[room] = 0
        return replace(scene, alone=em) if self._others[room] == 1 else scene

    def _scene(self, room: str) -> Scene | None:
        """Where a room's events happen; None for a room that stands for no basin."""
        basin = self._tables.basin_of(room)
        if basin is None:
            return None
        sitting = frozenset(em for em in self._tables.joined(room) if em in self._node.runtime.ems)
        users = {user: em for user, em in self._lobby.users.items() if em in sitting}
        place = self._node.runtime.rooms.get(basin)
        return Scene(
            basin,
            self._clock(),
            sitting,
            frozenset(em for em, one in (place.roster.ems if place else {}).items() if not one.settings.mute) & sitting,
            users,
            self._node.config.basin(basin).budget,
            self._settings,
            (lambda text: bool(place.roster.named(text.lower()))) if place else (lambda _: False),
            place.echoes if place else (lambda _: False),
        )
