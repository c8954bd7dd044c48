"""Encrypted rooms: whose devices there are, what is sealed for them, and what is opened on its way to the inbox.

An event that no device can open is let through as it is, kept, and its key is asked for; when the key comes, the event
comes to the inbox once more, opened. If somebody takes it back before, it stays closed.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from mesh.bridges.matrix.api import Api, As
from mesh.bridges.matrix.content import fit, size
from mesh.bridges.matrix.errors import MatrixError, MatrixFull, MatrixRefused, MatrixUnavailable
from mesh.bridges.matrix.fleet import Fleet, Owner, Tidings
from mesh.bridges.matrix.inbox import MAX_ID, SEALED, Inbound, Inbox, parse_event
from mesh.bridges.matrix.port import ENCRYPTION, MEMBER, REDACTION
from mesh.bridges.matrix.sealed import Sealed
from mesh.bridges.matrix.shape import as_list
from mesh.store import Store
from mesh.words import plain

if TYPE_CHECKING:
    from mesh.bridges.matrix.device import Device

MAX_CLEAR: Final = 45_000  # bytes of a content before it is sealed: base64 makes a third more of it
ASKING: Final = 3  # of our users in a room who ask for a key: one is enough, if the sender's client knows it
CATCH_UPS: Final = 10  # times in CATCH_UP_S that devices are asked for keys which may just be arriving
CATCH_UP_S: Final = 10.0
ROOMS: Final = 10_000  # rooms whose people are remembered

log = structlog.get_logger(__name__)


class Crypto:
    """What is sealed and opened for one way in, by the devices of its users. `close` it."""

    def __init__(self, api: Api, store: Store, inbox: Inbox, base: Path, owner: Owner) -> None:
        self._api, self._inbox, self._owner = api, inbox, owner
        self._sealed = Sealed(store)
        self.fleet = Fleet(
            api, base, owner, Tidings(self._sealed.is_wanted, self._sealed.sessions, self._open_late, self._gone)
        )
        self._keys = dict[str, list[tuple[str, str]]]()  # by user: those that came in a sync that is not heard yet
        self._people = dict[str, frozenset[str]]()  # by room
        self._moves = 0  # how often somebody came or went
        self._catching = list[float]()  # when devices were asked for keys that may just be arriving, lately
        self._seats = dict[str, list[str]]()  # by room: our users in it, who have devices

    def close(self) -> None:
        """Close everything and let the folders go. Idempotent."""
        self.fleet.close()
        self._gone()

    async def hear(self, user: str, answer: Mapping[str, Any]) -> None:
        """Take what an account's own sync says to its device. Then `open_heard`, when the rest of the sync is known."""
        if device := self.fleet.get(user):
            self._keys.setdefault(user, []).extend(device.take(answer))
            try:
                await device.mend()
            except (MatrixUnavailable, MatrixRefused) as error:
                log.info("keys could not be brought to the homeserver", reason=plain(str(error)))

    def open_heard(self, user: str) -> None:
        """Open what waited for keys that `hear` took, and was not taken back (`notice`) in the same sync."""
        keys, device = self._keys.pop(user, []), self.fleet.get(user)
        if device and keys:
            self._open_late(device, keys)

    def _gone(self) -> None:
        """Some of our users may have no device now."""
        self._seats.clear()

    async def seal(self, user: str, room: str, acting: As | None, kind: str, content: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """An event's content as it goes into an encrypted room. Raises MatrixUnavailable, MatrixRefused."""
        device = await self.fleet.device(user)
        there = self._people.get(room) or await self._who(room, acting)
        people = frozenset(one for one in there if one == user or not self._owner.owns(one))
        return await device.seal(room, people, kind, shorter(content, MAX_CLEAR))

    async def _who(self, room: str, acting: As | None) -> frozenset[str]:
        """Everybody in a room or invited. Our own users need no keys of one another: they hear within the node."""
        moves = self._moves
        answer = await self._api.call("GET", ("client", "v3", "rooms", room, "members"), acting=acting)
        found = set[str]()
        for raw in as_list(answer.get("chunk")):
            event = parse_event(raw, "account", room)
            there = event is not None and event.content.get("membership") in {"join", "invite"}
            if event and event.kind == MEMBER and event.state_key and there:
                found.add(event.state_key)
        if moves == self._moves:  # else somebody came or went while we asked: it holds for this once
            if len(self._people) >= ROOMS:
                self._people.clear()
            self._people[room] = frozenset(found)
        return frozenset(found)

    def forget_people(self, room: str) -> None:
        """Ask anew who is in a room: somebody may have come or gone unnoticed."""
        self._people.pop(room, None)
        self._moves += 1

    async def opened(self, events: Iterable[Inbound], *, catch_up: bool) -> list[Inbound]:
        """The events with those opened that can be. `catch_up`: their keys may just be arriving another way.

        Raises StoreFailed.
        """
        events = list(events)
        if not any(_is_sealed(event) for event in events):
            return events
        found = [self._try(event) for event in events]
        rooms = {event.room for event in found if _is_sealed(event) and not self._waits(event)}
        if catch_up and rooms and self._may_catch_up():
            await self.fleet.catch_up(user for room in rooms for user in self._seats.get(room, [])[:ASKING])
            found = [self._try(event) for event in found]
        self._sealed.forget(new.event_id for old, new in zip(events, found, strict=True) if old is not new)
        gone = {(event.room, event.redacts) for event in found if event.kind == REDACTION}
        closed = [event for event in found if _is_sealed(event) and (event.room, event.event_id) not in gone]
        for event in [one for one in closed if self._keep(one)]:  # all are kept first: a key may come while we ask
            await self._ask(event)
        return found

    def _waits(self, event: Inbound) -> bool:
        """Whether the key of an event is known to be missing: it comes by itself, or never."""
        session = event.content.get("session_id")
        return not isinstance(session, str) or self._sealed.is_wanted(event.room, session)

    def _may_catch_up(self) -> bool:
        """Whether devices are asked once more just now: anybody in a room can make up events that nobody opens."""
        now = asyncio.get_running_loop().time()
        self._catching = [at for at in self._catching if now - at < CATCH_UP_S]
        if len(self._catching) >= CATCH_UPS:
            return False
        self._catching.append(now)
        return True

    async def notice(self, events: Iterable[Inbound]) -> None:
        """See who came and went, ours as well, and that our users in encrypted rooms have devices.

        What is taken back while it waits for its key is closed for good. Raises StoreFailed.
        """
        rooms = dict[str, None]()
        for event in events:
            if event.kind == MEMBER:
                self.forget_people(event.room)
                if self._owner.owns(event.state_key or ""):
                    self._seats.pop(event.room, None)
                    if self._inbox.is_encrypted(event.room) and event.content.get("membership") == "join":
                        rooms[event.room] = None
            elif event.kind == REDACTION and event.redacts and self._sealed.holds(event.redacts, event.room):
                self._inbox.shut(event.redacts)
                self._sealed.forget([event.redacts])
            elif event.kind in {ENCRYPTION, SEALED}:
                rooms[event.room] = None
        for room in rooms:
            await self.equip(room)

    async def equip(self, room: str) -> None:
        """Have devices for our users in an encrypted room; what fails is tried again when it is needed."""
        if room in self._seats:
            return
        try:
            seated = await self._owner.seated(room)
        except MatrixError as error:
            log.info("it is not known who of ours is in an encrypted room", room=room, reason=plain(str(error)))
            return
        if all([await self.fleet.has(user) for user in seated]):
            self._seats[room] = seated

    async def equip_one(self, user: str) -> None:
        """Have a device for one of our users who is about to enter an encrypted room."""
        await self.fleet.has(user)

    def _try(self, event: Inbound) -> Inbound:
        """The event, opened if one of our devices can."""
        if _is_sealed(event):
            for device in self.fleet:
                if opened := self._open(device, event):
                    return opened
        return event

    def _open(self, device: "Device", event: Inbound) -> Inbound | None:
        inside = device.open(event)
        if inside is None:
            return None
        kind, content, number = inside
        if not self._sealed.is_first(str(event.content["session_id"]), number, event.event_id):
            log.warning("what was said once is served as another event; it stays closed", room=event.room)
            return None
        raw = {
            "event_id": event.event_id,
            "room_id": event.room,
            "sender": event.sender,
            "type": kind,
            "content": content,
            "origin_server_ts": event.at_ms,
        }
        return parse_event(raw, event.way)

    def _keep(self, event: Inbound) -> bool:
        """Remember an event that cannot be opened; returns whether its key is to be asked for."""
        session = event.content.get("session_id")
        if not isinstance(session, str) or not session.isascii() or len(session) > MAX_ID:
            return False
        return self._sealed.keep(event, session)

    async def _ask(self, event: Inbound) -> None:
        """Have some of our devices in the room ask for the key of an event."""
        try:
            for user in self._seats.get(event.room, [])[:ASKING]:
                if device := self.fleet.get(user):
                    await device.ask(event)
        except MatrixError as error:
            log.info("a key cannot be asked for just now", reason=plain(str(error)))

    def _open_late(self, device: "Device", keys: Iterable[tuple[str, str]]) -> None:
        """Bring the events that wait for these keys to the inbox, oldest first."""
        for events in (page for key in keys for page in self._sealed.waiting(*key)):
            opened = [replace(one, late=True) for event in events if (one := self._open(device, event))]
            if not opened:
                continue
            try:
                self._inbox.take(opened)
            except MatrixFull:
                log.warning("too much waits to open what came late", events=len(opened))
                continue
            self._sealed.forget(event.event_id for event in opened)


def shorter(content: Mapping[str, Any], room: int) -> dict[str, Any]:
    """A message's content of at most `room` bytes: if need be without HTML, and then with its words cut. Pure."""
    if size(content) <= room:
        return dict(content)
    slim = {name: value for name, value in content.items() if name not in {"format", "formatted_body"}}
    new, body = slim.get("m.new_content"), slim.get("body")
    if isinstance(new, Mapping):
        left = room - size(slim | {"m.new_content": {}})
        slim["m.new_content"] = shorter(cast("Mapping[str, Any]", new), left)
    elif isinstance(body, str):
        slim["body"] = fit(body, room - size(slim | {"body": ""}))
    return slim


def _is_sealed(event: Inbound) -> bool:
    return event.kind == SEALED and event.state_key is None
