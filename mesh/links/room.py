"""Wires through a Matrix room, or whatever else takes short messages for all who are there, in any order.

A packet is a MessagePack array `[slot, calls, stream, number, data]`. The end of a slot that answers says, under number
0, which stream it has made afresh; the end that calls asks for that, and uses it. A stream's packets are numbered from
1, put in order, and dropped when they come twice; an empty one ends it. So what a homeserver brings late, or again,
never reaches a session that it is not of.
"""

import asyncio
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Final, Protocol

import msgspec

from mesh.links.pieces import Joining, cut
from mesh.links.ways import ROOM, SLOT_BYTES
from mesh.links.wire import Wire, WireBroken

BEAT_S: Final = 120.0  # a room keeps every event for ever, and homeservers take few a minute
STREAM_BYTES: Final = 8
PIECE: Final = 46_000  # bytes: with its packet's own 60 it fits an event (mesh.bridges.matrix.link.MAX_INSIDE)
MAX_HELD: Final = 256  # packets of a stream that nobody has read yet: 12 MB; a peer that sends more is hung up on
MAX_PLACES: Final = 256  # slots of one room that are waited in, or talked through
PAUSE_S: Final = 5.0  # between two answers to those who ask whether somebody is there
FAREWELL_S: Final = 1.0  # that a homeserver may take over a farewell; it may bring it later
KEY_BYTES: Final = 12
_OVER: Final = "the other end has left the room's talk, or begun it anew"

Slot = Annotated[bytes, msgspec.Meta(min_length=SLOT_BYTES, max_length=SLOT_BYTES)]


class Carrier(Protocol):
    """Brings packets into a room."""

    async def send(self, data: bytes, key: str) -> None:
        """Send a packet; returns when it is safe with the homeserver. `key` is its own. Raises WireBroken."""
        ...


class Packet(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What travels. Number 0 opens: asked without a stream by the end that calls, answered with one."""

    slot: Slot
    calls: bool
    stream: Annotated[bytes, msgspec.Meta(max_length=STREAM_BYTES)]
    number: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    data: Annotated[bytes, msgspec.Meta(max_length=PIECE)]


_decoder: Final = msgspec.msgpack.Decoder(Packet)


def read_packet(data: bytes) -> Packet | None:
    """The packet in what came from a room, or None. Total."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


@dataclass(slots=True, eq=False)
class _Place:
    """One end of a slot. `sender` is the Matrix user as which the other end speaks; `asker` names who asked for it."""

    slot: bytes
    calls: bool
    stream: bytes
    sender: str = ""
    asker: bytes = b""
    is_asked: bool = False
    is_open: bool = False
    is_over: bool = False
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    early: dict[int, bytes] = field(default_factory=dict[int, bytes])
    ready: deque[bytes] = field(default_factory=deque[bytes])
    expected: int = 1

    def end(self) -> None:
        """Nothing comes any more."""
        self.is_over = True
        self.stirred.set()

    def take(self, number: int, data: bytes) -> None:
        """A packet of the stream: kept until those before it are here."""
        if number < self.expected or number in self.early:
            return
        if len(self.early) + len(self.ready) >= MAX_HELD:
            self.end()
            return
        self.early[number] = data
        while self.expected in self.early and not self.is_over:
            piece = self.early.pop(self.expected)
            self.expected += 1
            if piece:
                self.ready.append(piece)
            else:
                self.is_over = True
        self.stirred.set()


class RoomWire:
    """One end of a stream."""

    beat_s: float = BEAT_S

    def __init__(self, room: "Room", place: _Place) -> None:
        self._room, self._place, self._number, self._joining = room, place, 0, Joining()
        self._sending = asyncio.Lock()

    async def send(self, data: bytes) -> None:
        """Send one message; waits until the homeserver has it. Raises WireBroken."""
        async with self._sending:  # no other message's pieces come between
            for piece in cut(data, PIECE):
                if self._place.is_over:
                    raise WireBroken(_OVER)
                self._number += 1
                await self._room.say(self._place, self._number, piece)

    async def receive(self) -> bytes:
        """The next message. Raises WireBroken."""
        place = self._place
        while True:
            while not place.ready:
                if place.is_over:
                    raise WireBroken(_OVER)
                place.stirred.clear()
                await place.stirred.wait()
            if (whole := self._joining.add(place.ready.popleft())) is not None:
                return whole

    async def close(self) -> None:
        """Say that it is over, if the other end does not know. Idempotent."""
        if self._room.leave(self._place):
            with suppress(TimeoutError, WireBroken):
                async with asyncio.timeout(FAREWELL_S):
                    await self._room.say(self._place, self._number + 1, b"")


class Room:
    """All slots of one room. `heard` is called with everything that comes from it."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._places: dict[tuple[bytes, bool], _Place] = {}

    async def open(self, slot: bytes, *, calls: bool) -> Wire:
        """Wait in a slot until the other end is there. Raises WireBroken."""
        if before := self._places.get((slot, calls)):
            self.leave(before)
        if len(self._places) >= MAX_PLACES:
            raise WireBroken("too many talk in that room")
        place = _Place(slot, calls, b"" if calls else os.urandom(STREAM_BYTES))
        self._places[slot, calls] = place
        try:
            await self._until_open(place)
        except BaseException:
            self.leave(place)
            raise
        return RoomWire(self, place)

    async def _until_open(self, place: _Place) -> None:
        """Ask who is there, or say that we are, and again to whoever asks later."""
        loop, word = asyncio.get_running_loop(), os.urandom(STREAM_BYTES) if place.calls else b""
        await self.say(place, 0, word)
        said_s = loop.time()
        while not place.is_open:
            if place.is_over:
                raise WireBroken(_OVER)
            try:
                async with asyncio.timeout_at(said_s + PAUSE_S if place.is_asked else None):
                    await place.stirred.wait()
                place.stirred.clear()
            except TimeoutError:
                place.is_asked = False
                await self.say(place, 0, word)
                said_s = loop.time()

    async def say(self, place: _Place, number: int, data: bytes) -> None:
        """Send a packet of a place of ours. Raises WireBroken."""
        packet = Packet(place.slot, place.calls, place.stream, number, data)
        await self._carrier.send(msgspec.msgpack.encode(packet), os.urandom(KEY_BYTES).hex())

    def leave(self, place: _Place) -> bool:
        """Be there no more; returns whether the other end may think that we are."""
        was_open = place.is_open and not place.is_over
        place.end()
        if self._places.get((place.slot, place.calls)) is place:
            del self._places[place.slot, place.calls]
        return was_open

    def heard(self, data: bytes, sender: str) -> None:
        """Something came from the room, of a Matrix user's; what is not for us is let be."""
        packet = read_packet(data)
        place = packet and self._places.get((packet.slot, not packet.calls))
        if not packet or not place:
            return
        if packet.number == 0:
            (self._asked if packet.calls else self._here)(place, packet, sender)
        elif packet.stream != place.stream or sender != (place.sender or sender):
            self._ask(place)  # it was opened for an earlier run of ours
        else:
            place.sender, place.is_open = sender, True
            place.take(packet.number, packet.data)

    def _asked(self, place: _Place, packet: Packet, sender: str) -> None:
        """The end that calls asks who is there; when it asks anew it has begun anew."""
        if not place.is_open:
            place.asker = packet.data
            self._ask(place)
        elif sender == place.sender and place.asker not in (b"", packet.data):
            place.end()
        elif sender == place.sender:
            place.asker = packet.data

    def _here(self, place: _Place, packet: Packet, sender: str) -> None:
        """The end that answers is there; under another stream's name it has begun anew."""
        if not place.is_open:
            place.stream, place.sender, place.is_open = packet.stream, sender, True
            place.stirred.set()
        elif sender == place.sender and packet.stream != place.stream:
            place.end()

    def _ask(self, place: _Place) -> None:
        if not place.calls and not place.is_open:
            place.is_asked = True
            place.stirred.set()


@dataclass(frozen=True, slots=True)
class InRoom:
    """A way: a slot of a room."""

    room: Room
    slot: bytes = field(repr=False)
    calls: bool
    rank: int = ROOM

    async def open(self) -> Wire:
        """Wait there. Raises WireBroken."""
        return await self.room.open(self.slot, calls=self.calls)
