"""What people do in rooms, taken out of the inbox and handled: room by room, in order, each event once."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec
import structlog

from mesh.bridges.matrix import link
from mesh.bridges.matrix.attachments import unseal
from mesh.bridges.matrix.errors import (
    BadContent,
    MatrixError,
    MatrixFull,
    MatrixLoggedOut,
    MatrixRefused,
    MatrixUnavailable,
)
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.port import ENCRYPTED, MESSAGE, REACTION, REDACTION, MatrixPort
from mesh.bridges.matrix.reading import Heard, read
from mesh.bridges.matrix.rooms import read_membership, read_name, read_tombstone
from mesh.entries import find
from mesh.errors import MeshError, StoreFailed
from mesh.words import plain
from nodes.chains import STOPPED
from nodes.errors import NodeError
from nodes.matrix import house
from nodes.matrix.inward import Inward, Scene
from nodes.matrix.lobby import Lobby
from nodes.matrix.outward import Outward
from nodes.matrix.page import Pages
from nodes.matrix.settings import Matrix
from nodes.media import Media
from nodes.node import Node
from nodes.picture import MAX_BYTES
from protocol.acts import Act, ActId
from protocol.errors import ProtocolError

MAX_LANES: Final = 1_024  # events read from the inbox and not handled yet; the others wait in the database
MAX_UNSENT: Final = 4_096  # acts that wait for the bus; until it takes them, people's words wait in the inbox
UNSENT_S: Final = 0.2  # between two looks whether it does
AGAIN_S: Final = (1.0, 60.0)  # first and longest wait for a homeserver that does not do what a room needs
FETCH_S: Final = 10.0  # for a picture; its room waits so long
SLOW_S: Final = 600.0  # that a server is not asked for pictures after one took longer

log = structlog.get_logger(__name__)

Party = Callable[[str, str, str, str], tuple[list[ActId], dict[str, Any]] | str]
"""What an act in a dispute refers to and says, asked for with `!mesh`: by whom, in which basin, which kind and text.

A sentence where it would not count.
"""


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
        self._settings, self._media, self._pages, self._tell = hands.settings, hands.media, hands.pages, hands.tell
        self._has_read = hands.has_read
        self.party: Party = _no_party
        self.carried: Callable[[Inbound], None] = lambda _event: None  # what is of a link through a room
        self._store, self._clock = hands.node.ground.store, hands.node.ground.clock
        self._tables = hands.lobby.tables
        self._lanes: dict[str, deque[Inbound]] = {}
        self._in_lanes = 0
        self._room_in_lanes = asyncio.Event()
        self._slow: dict[str, float] = {}  # servers whose files took too long, and until when they are not asked
        self._alone: dict[str, bool] = {}  # rooms where a person is alone with an em, or not

    async def consume(self, group: asyncio.TaskGroup) -> None:
        """Hand events to their rooms' lanes: a room that must wait for its homeserver keeps no other one waiting."""
        self._lanes.clear()
        self._in_lanes = 0
        self._port.inbox.rewind()
        async for event in self._port.inbox:
            while self._in_lanes >= MAX_LANES:
                self._room_in_lanes.clear()
                await self._room_in_lanes.wait()
            self._in_lanes += 1
            lane = self._lanes.get(event.room)
            if lane is not None:
                lane.append(event)
                continue
            self._lanes[event.room] = deque([event])
            group.create_task(self._lane(event.room), name=f"room {event.room}")

    async def _lane(self, room: str) -> None:
        lane = self._lanes[room]
        while lane:
            await self._settle(lane[0])
            lane.popleft()
            self._in_lanes -= 1
            self._room_in_lanes.set()
        del self._lanes[room]

    async def _settle(self, event: Inbound) -> None:
        """Handle one event to its end: again and again while the homeserver is away; what is refused stays refused."""
        wait_s = AGAIN_S[0]
        while True:
            try:
                await self._handle(event)
            except (MatrixUnavailable, MatrixFull) as error:
                log.info("a room has to wait for the homeserver", reason=plain(str(error)))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, AGAIN_S[1])
                continue
            except StoreFailed:
                raise
            except (MatrixRefused, BadContent, ProtocolError) as error:
                self._tell(f"an event of {event.sender} is left alone: {error}")
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
            media = await self._pictures(heard)
        await self._say(event, lambda: self._acts(event, heard, scene, media), scene.basin)
        if event.kind == MESSAGE and (voice := self._outward.voice(event.room)):
            self._has_read(voice, event.room, event.event_id)

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
            acts, answer = (list[Act](), asked) if isinstance(asked, str) else self._obey(event, heard, asked, scene)
            waiting = [self._node.outbox.put(scene.basin, act) for act in [*(retired or []), *acts]]
            if answer:
                self._outward.notice(event.room, answer, event.event_id)
            self._port.inbox.mark(event)
        for one in waiting:
            self._node.outbox.send(one)
        self._port.outbox.wake()
        if not isinstance(asked, str) and asked.verb in {"mute", "unmute"}:
            self._node.host()

    def _obey(self, event: Inbound, heard: Heard, asked: house.Asked, scene: Scene) -> tuple[list[Act], str]:
        """The acts of a command, and the answer to it."""
        em, store = house.named(asked.words, scene), self._store
        match asked.verb:
            case "stop":
                return [self._inward.command(event, "cancel", {"text": STOPPED}, scene)], "Stopped."
            case "next":
                return self._next(event, asked, em, scene)
            case "mute" | "unmute":
                if em is None:
                    return [], f"Whom? Here are {', '.join(sorted(scene.ems)) or 'no ems'}."
                span = house.minutes(asked.words) if asked.verb == "mute" else 0
                self._tables.mute(scene.basin, em, scene.now_ms + span * house.MINUTE_MS)
                return [], f"{em} keeps silent for {span} minutes." if span else f"{em} may speak."
            case "why":
                known = self._tables.event(heard.reply_to) if heard.reply_to else None
                known = known if known and known.room == event.room else None
                return [], house.reason(store, find(store, known.act) if known else None, self._pages)
            case "budget":
                return [], house.budget(store, self._node.runtime.chains, scene)
            case "respond" | "remedy" | "settle" | "withdraw":
                said = self.party(event.sender, scene.basin, asked.verb, " ".join(asked.words))
                if isinstance(said, str):
                    return [], said
                act = self._inward.command(event, asked.verb, said[1], scene)
                return [msgspec.structs.replace(act, author=self._node.config.human, refs=said[0])], "Said."
            case "help":
                return [], house.HELP.format(**self._settings.controls.model_dump())

    def _next(self, event: Inbound, asked: house.Asked, em: str | None, scene: Scene) -> tuple[list[Act], str]:
        """Have an em say something: the one that was named, or the one that has been silent longest."""
        if asked.words and em is None:
            return [], f"Whom? Here are {', '.join(sorted(scene.ems)) or 'no ems'}."
        chosen = em or house.next_speaker(self._store, scene)
        if chosen is None or not self._inward.has_turns(event, scene):
            return [], "No em sits here." if chosen is None else "That is enough for this minute."
        return [self._inward.command(event, "ask", {"text": "…", "to": [chosen]}, scene)], ""

    async def _member(self, event: Inbound) -> None:
        self._alone.pop(event.room, None)
        change = read_membership(event, self._port.owns)
        em = self._lobby.users.get(change.user) if change else None
        if change is None or em is None:
            return
        if change.after == "invite":
            await self._lobby.invited(event, em)
        elif change.after in {"leave", "ban"} and self._tables.sits(em, event.room):
            self._lobby.put_out(change, event.room, em)

    async def _moved(self, event: Inbound) -> None:
        tombstone = read_tombstone(event)
        if tombstone and self._tables.basin_of(event.room):
            await self._lobby.moved(tombstone)

    def _named(self, event: Inbound) -> None:
        with self._store.transaction():
            self._tables.set_name(event.room, read_name(event.content))

    async def _pictures(self, heard: Heard | None) -> Sequence[Mapping[str, Any]]:
        """The picture of a message, fetched and looked at; what is none, or cannot be had, is left out.

        A server that kept us waiting is not asked again for a while: its pictures must not hold up a room.
        """
        media, now = heard.media if heard else None, asyncio.get_running_loop().time()
        if media is None or not media.mime.startswith("image/"):
            return ()
        server = media.url.split("/")[2]
        if self._slow.get(server, now) > now:
            return ()
        try:
            async with asyncio.timeout(FETCH_S):
                data, mime = await self._port.download(media.url, MAX_BYTES)
            if media.seal:
                data, mime = await asyncio.to_thread(unseal, data, media.seal), media.mime
            picture = await asyncio.to_thread(self._media.put, data, media.name, mime)
        except (MatrixError, NodeError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self._slow = {one: until for one, until in self._slow.items() if until > now} | {server: now + SLOW_S}
            log.info("a picture is left out", reason=plain(str(error)) or "it took too long")
            return ()
        return (msgspec.to_builtins(picture),)

    async def _alone_with(self, room: str, scene: Scene) -> Scene:
        """The scene, with the em that a person is alone with; asked once until somebody comes or goes."""
        if len(scene.ems) != 1:
            return scene
        (em,) = scene.ems
        if room not in self._alone:
            try:
                self._alone[room] = await self._lobby.alone(room, em)
            except (MatrixRefused, MatrixLoggedOut):  # its own account may be void: the others go on
                self._alone[room] = False
        return replace(scene, alone=em) if self._alone[room] else scene

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


def _no_party(user: str, basin: str, kind: str, text: str) -> str:  # noqa: ARG001 - a Party's
    return "This room is not that of a dispute."
