"""The bridge between rooms and basins: a companion of the node.

What people do comes out of the port's inbox, room by room in order, and becomes acts. What is said in a basin goes into
the port's outbox in the transaction that hears it. Neither way can lose or double anything, whenever the node dies.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

import structlog

from mesh.bridges.matrix.errors import (
    MatrixError,
    MatrixFull,
    MatrixLoggedOut,
    MatrixRefused,
    MatrixSilenced,
    MatrixUnavailable,
)
from mesh.bridges.matrix.outbox import Outcome
from mesh.bridges.matrix.port import MatrixPort
from mesh.entries import Entry, find, is_twin
from mesh.errors import StoreFailed
from mesh.words import plain
from nodes.matrix.hearing import AGAIN_S, Hands, Hearing
from nodes.matrix.inward import Inward
from nodes.matrix.lobby import Lobby
from nodes.matrix.manners import Manners
from nodes.matrix.outward import GONE, Outward, read_key
from nodes.matrix.page import Pages
from nodes.matrix.settings import Matrix
from nodes.matrix.tables import BOT, Known
from nodes.matrix.ways import PACKET, RoomWays
from nodes.media import Media
from nodes.node import Node
from nodes.turns import Taken
from protocol.acts import Act, reply_key
from protocol.keys import MeshId

PROBLEMS: Final = 50  # newest problems that are remembered for a person

LOGGED_OUT: Final = {
    "appservice": "name the registration in homeserver.yaml and restart the homeserver; it is tried every minute",
    "account": "stop the node, log in again with mesh matrix login, and start it",
}

log = structlog.get_logger(__name__)


class Bridge:
    """Joins one port to one node."""

    def __init__(
        self, node: Node, build: "Callable[[Bridge], MatrixPort]", settings: Matrix, owner: str | None, media: Media
    ) -> None:
        """`build` makes the port, whose outbox reports to `done`. `media` is where pictures go."""
        self._node, self._settings = node, settings
        self._store, self._clock = node.ground.store, node.ground.clock
        key = reply_key(node.identity.signer)
        self.pages = Pages(settings.pages, key, self._store) if settings.pages else None
        self.port = build(self)
        if self.port.caps.way != "appservice":
            self.pages = None  # an account has no door where anybody could read them
        self.lobby = Lobby(node, self.port, settings, owner)
        self.tables = self.lobby.tables
        self.problems: deque[str] = deque(maxlen=PROBLEMS)
        self.problems_ms: deque[int] = deque(maxlen=PROBLEMS)  # when each was told, by the node's clock
        self.ready = asyncio.Event()
        inward = Inward(key, self.tables, self._said, node.runtime.chains.used)
        self._outward = Outward(
            self.port, self.tables, self._find, self.lobby.seats.wardrobe.who, node.identity.mesh, self._is_twin
        )
        self.manners = Manners(self.port, self._rooms_with)
        hands = Hands(
            node,
            self.port,
            self.lobby,
            inward,
            self._outward,
            settings,
            media,
            self.pages,
            self._tell,
            self.manners.has_read,
        )
        self.hearing = Hearing(hands)
        self.ways = RoomWays(self.port, self.lobby, self._tell)
        self.lobby.links, self.lobby.moves.has_moved = self.ways.rooms, self.ways.moved
        self.hearing.carried = self.ways.heard
        self._changed = asyncio.Event()
        self._places: set[tuple[str, str]] = set()
        self._absent: set[tuple[str, str]] = set()
        self._mutes: set[tuple[str, str]] = set()
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
        try:
            with self._store.transaction():
                for room in rooms:
                    if not self.port.outbox.is_busy(room):
                        self._outward.draft(room, act.author, act, act.text, drafts.get(room, 0))
        except MatrixError as error:  # the reply itself is still to come, and may have more luck
            log.info("words so far cannot be shown", reason=plain(str(error)))
        self.port.outbox.wake()

    def ended(self, turn: Taken, act: Act | None) -> None:
        """Stop showing that an em is writing; what it does not say after all is taken back."""
        self.manners.ends(turn.id)
        try:
            if act is None and self._outward.drop_draft(turn.id):
                asyncio.get_running_loop().call_soon(self.port.outbox.wake)
        except MatrixError as error:
            self._tell(f"what {turn.em} did not say after all still stands in a room: {error}")

    def listens(self, em: str, basin: str) -> bool | None:
        """An em listens where it sits, and not where a person muted it, nor where it was put out of the room."""
        if (em, basin) in self._mutes or (em, basin) in self._absent:
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
        loop, wait_s = asyncio.get_running_loop(), AGAIN_S[0]
        while True:
            begun = loop.time()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.port.run(), name="matrix port")
                    group.create_task(self.hearing.consume(group), name="matrix inbox")
                    group.create_task(self.manners.run(), name="matrix manners")
                    group.create_task(self._attend(), name="matrix lobby")
                    group.create_task(self._look_back(), name="matrix look back")
                    group.create_task(self._welcome(), name="matrix welcome")
                    self.ready.set()
            except* MatrixLoggedOut as error:
                self.ready.clear()
                self._tell(f"{_first(error)}: {LOGGED_OUT[self.port.caps.way]}")
                wait_s = AGAIN_S[1]
            except* MatrixError as error:
                self.ready.clear()
                self._tell(str(_first(error)))
            except* StoreFailed:
                raise
            except* Exception as error:  # a slip of ours must not end the node, which has more to do than this
                self.ready.clear()
                log.exception("the bridge to Matrix failed and begins anew")
                self._tell(f"a mistake in the node, {type(_first(error)).__name__}; the bridge begins anew")
            if loop.time() - begun > AGAIN_S[1]:
                wait_s = AGAIN_S[0]  # it went well for long
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, AGAIN_S[1])

    async def _welcome(self) -> None:
        await self.port.ready.wait()
        rooms = self.tables.rooms()
        log.info("Matrix is listened to", user=self.port.user_id(BOT), rooms=len(rooms))
        for room, _, _ in rooms:
            await self.lobby.equip(room)

    # The port's part

    def done(self, outcome: Outcome) -> None:
        """An event was sent or given up; within the transaction that notes it."""
        found = read_key(outcome.key)
        if outcome.key.startswith(PACKET):
            return
        if outcome.event_id is None:
            who = "the node" if outcome.speaker == BOT else outcome.speaker
            self._tell(f"{who} could not say something in a room: {outcome.reason}")
        elif found is not None and found[1] != GONE:
            act, _, room = found
            self.tables.note(Known(outcome.event_id, room, act, outcome.speaker, None))

    def lost(self, em: str, reason: str) -> None:
        """An em's own account is logged out."""
        self._tell(f"the account of {em} is logged out: {reason}; log it in again: mesh matrix login … --em {em}")

    async def _attend(self) -> None:
        """Have ems come where they are to sit, and speak again when a mute is over."""
        wait_s = AGAIN_S[0]
        while True:
            self._changed.clear()
            try:
                await self.lobby.fill()
            except MatrixUnavailable as error:
                log.info("ems wait to join their rooms", reason=plain(str(error)))
                self._changed.set()
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, AGAIN_S[1])
                continue
            wait_s = AGAIN_S[0]
            now = self._clock()
            until = self.tables.next_unmute(now)
            try:
                async with asyncio.timeout(None if until is None else max(0.1, (until - now) / 1000)):
                    await self._changed.wait()
            except TimeoutError:
                self._node.host()

    async def _look_back(self) -> None:
        """Hear what the rooms said and nobody brought us, whenever that may be so."""
        while True:
            await self.port.missed.wait()
            self.port.missed.clear()
            for room in self.tables.seated():
                voice = self._outward.voice(room)
                await self.lobby.equip(room)
                try:
                    found = await self.port.look_back(voice, room) if voice else 0
                except (MatrixRefused, MatrixSilenced) as error:
                    log.info("a room cannot be looked through", reason=plain(str(error)))
                except (MatrixUnavailable, MatrixFull, MatrixLoggedOut) as error:
                    log.info("a room cannot be looked through now", reason=plain(str(error)))
                    self.port.missed.set()  # for one more round: the other rooms have theirs first
                    await asyncio.sleep(AGAIN_S[0])
                else:
                    if found:
                        log.info("a room said what nobody had brought us yet; it is heard now", events=found)

    def _rooms_with(self, em: str, basin: str) -> list[str]:
        """Where an em sits and its words will be shown: what it writes is not shown so far anywhere else."""
        return [room for room in self._outward.rooms(basin) if self.tables.sits(em, room)]

    def _read_by(self, act: Act) -> None:
        """An em has read what it answers."""
        for known in self.tables.events(act.refs[0]) if act.refs else ():
            if not known.speaker and self.tables.sits(act.author, known.room):
                self.manners.has_read(act.author, known.room, known.event_id)

    def _said(self, identity: bytes) -> Act | None:
        """An act that is kept, or said here and not heard yet."""
        entry = find(self._store, identity, self._node.identity.mesh) or find(self._store, identity)
        return entry.act if entry else self._node.outbox.find(identity)

    def _find(self, identity: bytes, mesh: MeshId | None = None) -> Entry | None:
        return find(self._store, identity, mesh)

    def _is_twin(self, identity: bytes, mesh: MeshId) -> bool:
        return is_twin(self._store, identity, mesh)

    def _refresh(self) -> None:
        self._places = {(em, basin) for em, basin in self.tables.places() if em != BOT}
        self._absent = set(self.tables.absences()) - self._places
        self._mutes = self.tables.mutes(self._clock())

    def _tell(self, problem: str) -> None:
        told = plain(problem)
        if self.problems and self.problems[-1] == told:
            return  # the same again, as from a port that stays taken: once is enough
        log.warning("Matrix", problem=told)
        self.problems.append(told)
        self.problems_ms.append(self._clock())


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error in groups within groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseException", error.exceptions[0])
    return error
