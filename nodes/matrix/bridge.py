"""The bridge between rooms and basins: a companion of the node.

What people do comes out of the port's inbox, room by room in order, and becomes acts. What is said in a basin goes into
the port's outbox in the transaction that hears it. Neither way can lose or double anything, whenever the node dies.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import structlog

from mesh.bridges.matrix.errors import MatrixError, MatrixFull, MatrixLoggedOut, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.outbox import Outcome
from mesh.bridges.matrix.port import ENCRYPTED, MESSAGE, REACTION, REDACTION, MatrixPort
from mesh.bridges.matrix.reading import Heard, read
from mesh.bridges.matrix.rooms import read_membership, read_name, read_tombstone
from mesh.entries import Entry, find
from mesh.errors import MeshError, StoreFailed
from mesh.words import plain
from nodes.errors import NodeError
from nodes.matrix import house
from nodes.matrix.inward import Inward, Scene
from nodes.matrix.lobby import Lobby
from nodes.matrix.manners import Manners
from nodes.matrix.outward import GONE, Outward, read_key
from nodes.matrix.settings import Matrix
from nodes.matrix.tables import BOT, Known, Tables
from nodes.media import Media
from nodes.node import Node
from nodes.picture import MAX_BYTES
from nodes.turns import Taken
from protocol.acts import Act, reply_key
from protocol.errors import ProtocolError

MAX_LANES: Final = 1_024  # events read from the inbox and not handled yet; the others wait in the database
MAX_UNSENT: Final = 4_096  # acts that wait for the bus; until it takes them, people's words wait in the inbox
UNSENT_S: Final = 0.2  # between two looks whether it does
AGAIN_S: Final = (1.0, 60.0)  # first and longest wait for a homeserver that does not do what a room needs
PROBLEMS: Final = 50  # newest problems that are remembered for a person
FETCH_S: Final = 20.0  # for a picture; its room waits so long, and no other one

log = structlog.get_logger(__name__)


class Bridge:
    """Joins one port to one node."""

    def __init__(
        self, node: Node, build: "Callable[[Bridge], MatrixPort]", settings: Matrix, owner: str | None, media: Media
    ) -> None:
        """`build` makes the port, whose outbox reports to `done`. `media` is where pictures go."""
        self._node, self._settings, self._media = node, settings, media
        self._store, self._clock = node.ground.store, node.ground.clock
        self.port = build(self)
        self.lobby = Lobby(node, self.port, settings, owner)
        self.tables = Tables(self._store)
        self.problems: deque[str] = deque(maxlen=PROBLEMS)
        self.ready = asyncio.Event()
        self._inward = Inward(reply_key(node.identity.signer), self.tables, self._find, node.runtime.chains.used)
        self._outward = Outward(self.port, self.tables, self._find, self.lobby.who, node.identity.mesh[:12])
        self.manners = Manners(self.port, self._rooms_with)
        self._lanes: dict[str, deque[Inbound]] = {}
        self._in_lanes = 0
        self._room_in_lanes = asyncio.Event()
        self._changed = asyncio.Event()
        self._places: set[tuple[str, str]] = set()
        self._mutes: set[tuple[str, str]] = set()
        self._alone: dict[str, bool] = {}  # rooms where a person is alone with an em, or not
        self._refresh()

    # A companion's part

    def hear(self, entries: Sequence[Entry]) -> None:
        """Show new acts in rooms."""
        for entry in entries:
            speaker = entry.act.author if entry.mesh == self._node.identity.mesh else None
            try:
                self._outward.show(entry, speaker if speaker in self._node.runtime.ems else None)
            except MatrixError as error:
                self._tell(f"an act cannot be shown in a room: {error}")

    def proceed(self) -> None:
        """Have the outbox send."""
        self.port.outbox.wake()

    def show(self, basin: str, act: Act) -> None:
        """Show the words so far, now and then, and that an em is writing."""
        rooms = self._rooms_with(act.author, basin)
        if not rooms:
            return
        if not act.text:
            self.manners.begins(act.id, act.author, basin)
            self._read_by(act)
            return
        drafts = {room: edits for room, _, edits in self.tables.drafts(act.id)}
        if not self._settings.stream or not self.manners.is_due(act.id, max(drafts.values(), default=0)):
            return
        with self._store.transaction():
            for room in rooms:
                if not self.port.outbox.is_busy(room):
                    self._outward.draft(room, act.author, act, act.text, drafts.get(room, 0))
        self.port.outbox.wake()

    def ended(self, turn: Taken, act: Act | None) -> None:
        """Stop showing that an em is writing; what it does not say after all is taken back."""
        self.manners.ends(turn.id)
        if act is None and self._outward.drop_draft(turn.id):
            asyncio.get_running_loop().call_soon(self.port.outbox.wake)

    def listens(self, em: str, basin: str) -> bool | None:
        """An em listens where it sits, and not where a person muted it."""
        if (em, basin) in self._mutes:
            return False
        return True if (em, basin) in self._places else None

    def basins(self) -> Iterable[str]:
        """The basins that have rooms."""
        self._refresh()
        return {basin for _, basin, _ in self.tables.rooms()}

    def hosted(self) -> None:
        """Other ems are here, or sit elsewhere."""
        self.lobby.hosted()
        self._changed.set()

    async def run(self) -> None:
        """Hear and speak until cancelled. What goes wrong with the homeserver is told, and ends nothing else."""
        self.lobby.hosted()
        wait_s = AGAIN_S[0]
        while True:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.port.run(), name="matrix port")
                    group.create_task(self._consume(group), name="matrix inbox")
                    group.create_task(self.manners.run(), name="matrix manners")
                    group.create_task(self._attend(), name="matrix lobby")
                    self.ready.set()
            except* MatrixLoggedOut as error:
                self._tell(f"{error.exceptions[0]}; then start the node again")
                await asyncio.get_running_loop().create_future()
            except* MatrixError as error:
                self._tell(str(error.exceptions[0]))
            self._lanes.clear()
            self._in_lanes = 0
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, AGAIN_S[1])

    # The port's part

    def done(self, outcome: Outcome) -> None:
        """An event was sent or given up; within the transaction that notes it."""
        found = read_key(outcome.key)
        if outcome.event_id is None:
            self._tell(f"{outcome.speaker} could not say something in a room: {outcome.reason}")
        elif found is not None and found[1] != GONE:
            act, _, room = found
            entry = find(self._store, act)
            target = act if entry is None or entry.act.kind != "edit" else entry.act.refs[0]
            self.tables.note(Known(outcome.event_id, room, target, outcome.speaker, None))

    def lost(self, em: str, reason: str) -> None:
        """An em's own account is logged out."""
        self._tell(f"the account of {em} is logged out: {reason}")

    # What people do

    async def _consume(self, group: asyncio.TaskGroup) -> None:
        """Hand events to their rooms' lanes: a room that must wait for its homeserver keeps no other one waiting."""
        self.port.inbox.rewind()
        async for event in self.port.inbox:
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
            except (MatrixRefused, ProtocolError) as error:
                self._tell(f"an event of {event.sender} is left alone: {error}")
            except MeshError:
                raise
            except Exception as error:  # a slip of ours with one event must not silence the room for ever
                log.exception("an event could not be handled", kind=event.kind)
                self._tell(f"an event of {event.sender} is left alone: a mistake in the node, {type(error).__name__}")
            else:
                return
            self.port.inbox.handled(event)
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
            case _:
                pass
        self.port.inbox.handled(event)

    async def _heard(self, event: Inbound) -> None:
        scene = self._scene(event.room)
        heard = read(event.kind, event.content) if event.kind in {MESSAGE, REACTION} else None
        if scene is None or (heard is None and event.kind in {MESSAGE, REACTION}):
            self.port.inbox.handled(event)
            return
        if heard is not None and event.kind == MESSAGE and heard.edits is None:
            asked = house.command(heard.text)
            if asked is not None and self._inward.is_person(event, heard, scene):
                await self._command(event, heard, asked, scene)
                return
        if heard is not None and event.kind == MESSAGE:
            scene = await self._alone_with(event.room, scene)
        media = await self._pictures(heard)
        await self._say(event, lambda: self._acts(event, heard, scene, media), scene.basin)

    def _acts(self, event: Inbound, heard: Heard | None, scene: Scene, media: Sequence[Mapping[str, Any]]) -> list[Act]:
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
            self.port.inbox.mark(event)
        for one in waiting:
            self._node.outbox.send(one)

    async def _command(self, event: Inbound, heard: Heard, asked: house.Asked | str, scene: Scene) -> None:
        """Do what a person asks of the node, and answer with a notice."""
        acts, answer = (list[Act](), asked) if isinstance(asked, str) else self._obey(event, heard, asked, scene)
        with self._store.transaction():
            waiting = [self._node.outbox.put(scene.basin, act) for act in acts]
            if answer:
                self._outward.notice(event.room, answer, event.event_id)
            self.port.inbox.mark(event)
        for one in waiting:
            self._node.outbox.send(one)
        self.port.outbox.wake()
        if not isinstance(asked, str) and asked.verb in {"mute", "unmute"}:
            self._node.host()

    def _obey(self, event: Inbound, heard: Heard, asked: house.Asked, scene: Scene) -> tuple[list[Act], str]:
        """The acts of a command, and the answer to it."""
        em, store = house.named(asked.words, scene), self._store
        match asked.verb:
            case "stop":
                return [self._inward.command(event, "cancel", {"text": "Enough for now."}, scene)], "Stopped."
            case "next":
                chosen = em or house.next_speaker(store, scene)
                if chosen is None:
                    return [], "No em sits here."
                return [self._inward.command(event, "ask", {"text": "…", "to": [chosen]}, scene)], ""
            case "mute" | "unmute":
                if em is None:
                    return [], f"Whom? Here are {', '.join(sorted(scene.ems)) or 'no ems'}."
                span = house.minutes(asked.words) if asked.verb == "mute" else 0
                with store.transaction():
                    self.tables.mute(scene.basin, em, scene.now_ms + span * house.MINUTE_MS)
                return [], f"{em} keeps silent for {span} minutes." if span else f"{em} may speak."
            case "why":
                known = self.tables.event(heard.reply_to) if heard.reply_to else None
                return [], house.reason(store, find(store, known.act) if known else None)
            case "budget":
                return [], house.budget(store, self._node.runtime.chains, scene)
            case "help":
                return [], house.HELP.format(**self._settings.controls.model_dump())

    async def _member(self, event: Inbound) -> None:
        self._alone.pop(event.room, None)
        change = read_membership(event, self.port.owns)
        em = self.lobby.users.get(change.user) if change else None
        if change is None or em is None:
            return
        if change.after == "invite":
            await self.lobby.invited(event, em)
        elif change.after in {"leave", "ban"} and self.tables.sits(em, event.room):
            self.lobby.put_out(change, event.room, em)

    async def _moved(self, event: Inbound) -> None:
        tombstone = read_tombstone(event)
        if tombstone and self.tables.basin_of(event.room):
            await self.lobby.moved(tombstone)

    def _named(self, event: Inbound) -> None:
        with self._store.transaction():
            self.tables.set_name(event.room, read_name(event.content))

    async def _pictures(self, heard: Heard | None) -> Sequence[Mapping[str, Any]]:
        """The picture of a message, fetched and looked at; what is none, or cannot be had, is left out."""
        media = heard.media if heard else None
        if media is None or not media.mime.startswith("image/"):
            return ()
        try:
            async with asyncio.timeout(FETCH_S):
                data, mime = await self.port.download(media.url, MAX_BYTES)
            picture = await asyncio.to_thread(self._media.put, data, media.name, mime)
        except (MatrixError, NodeError, TimeoutError) as error:
            log.info("a picture is left out", reason=plain(str(error)))
            return ()
        return (msgspec.to_builtins(picture),)

    async def _alone_with(self, room: str, scene: Scene) -> Scene:
        """The scene, with the em that a person is alone with; asked once until somebody comes or goes."""
        if len(scene.ems) != 1:
            return scene
        (em,) = scene.ems
        if room not in self._alone:
            try:
                self._alone[room] = await self.lobby.alone(room, em)
            except MatrixRefused:
                self._alone[room] = False
        return replace(scene, alone=em) if self._alone[room] else scene

    def _scene(self, room: str) -> Scene | None:
        """Where a room's events happen; None for a room that stands for no basin."""
        basin = self.tables.basin_of(room)
        if basin is None:
            return None
        sitting = frozenset(em for em in self.tables.joined(room) if em in self._node.runtime.ems)
        users = {user: em for user, em in self.lobby.users.items() if em in sitting}
        place = self._node.runtime.rooms.get(basin)
        return Scene(
            basin,
            self._clock(),
            sitting,
            users,
            self._node.config.basin(basin).budget,
            self._settings,
            (lambda text: bool(place.roster.named(text.lower()))) if place else (lambda _: False),
        )

    async def _attend(self) -> None:
        """Have ems come where they are to sit, and speak again when a mute is over."""
        while True:
            self._changed.clear()
            try:
                await self.lobby.fill()
            except MatrixUnavailable as error:
                log.info("ems wait to join their rooms", reason=plain(str(error)))
                self._changed.set()
                await asyncio.sleep(AGAIN_S[0])
                continue
            now = self._clock()
            until = self.tables.next_unmute(now)
            try:
                async with asyncio.timeout(None if until is None else max(0.1, (until - now) / 1000)):
                    await self._changed.wait()
            except TimeoutError:
                self._node.host()

    def _rooms_with(self, em: str, basin: str) -> list[str]:
        return [room for room in self.tables.rooms_of(basin) if self.tables.sits(em, room)]

    def _read_by(self, act: Act) -> None:
        """An em has read what it answers."""
        for known in self.tables.events(act.refs[0]) if act.refs else ():
            if not known.speaker and self.tables.sits(act.author, known.room):
                self.manners.has_read(act.author, known.room, known.event_id)

    def _find(self, identity: bytes) -> Entry | None:
        return find(self._store, identity)

    def _refresh(self) -> None:
        self._places = {(em, basin) for em, basin in self.tables.places() if em != BOT}
        self._mutes = self.tables.mutes(self._clock())

    def _tell(self, problem: str) -> None:
        told = plain(problem)
        log.warning("Matrix", problem=told)
        self.problems.append(told)
