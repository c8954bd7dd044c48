"""Wires through a Matrix room, or whatever else takes short messages for all who are there, in any order.

A packet is a MessagePack array `[name, calls, stream, number, data, tag]`. Its name and tag are made with the slot,
which only the two ends know: what others write is no packet. The end that calls asks, under number 0, with a fresh
word; the end that answers says which stream it has made afresh, with that word. A stream's packets are numbered from 1,
put in order, and dropped when they come twice; an empty one ends it. Fresh words and streams grow: so what a homeserver
brings late, or anybody once more, never reaches a session that it is not of, and interrupts none.
"""

import asyncio
import hashlib
import hmac
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Final, Protocol

import msgspec

from mesh.clock import Clock, now_ms
from mesh.links.pieces import Joining, cut
from mesh.links.ways import ROOM, SLOT_BYTES
from mesh.links.wire import Wire, WireBroken

BEAT_S: Final = 120.0  # a room keeps every event for ever, and homeservers take few a minute
FRESH_BYTES: Final = 8  # of a stream's name, or of the word of who asks: milliseconds and a count
COUNTED_BITS: Final = 16
TAG_BYTES: Final = 16
PIECE: Final = 46_000  # bytes: with its packet's own 80 it fits an event (mesh.bridges.matrix.link.MAX_INSIDE)
MAX_HELD: Final = 256  # packets of a stream that nobody has read yet: 12 MB; a peer that sends more is hung up on
MAX_PLACES: Final = 256  # slots of one room that are waited in, or talked through
PAUSE_S: Final = (0.5, 5.0)  # first and longest wait between two answers to those who ask, doubling after the first
FAREWELL_S: Final = 1.0  # that a homeserver may take over a farewell; it may bring it later
KEY_BYTES: Final = 12
_NAME: Final = b"ampmesh/room/1/name\0"
_TAG: Final = b"ampmesh/room/1/tag\0"
_OVER: Final = "the other end has left the room's talk, or begun it anew"

Name = Annotated[bytes, msgspec.Meta(min_length=SLOT_BYTES, max_length=SLOT_BYTES)]


class Carrier(Protocol):
    """Brings packets into a room."""

    async def send(self, data: bytes, key: str) -> None:
        """Send a packet; returns when it is safe with the homeserver. `key` is its own. Raises WireBroken."""
        ...


class Packet(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What travels. Number 0 opens: asked without a stream by the end that calls, answered with one.

    Its data is the word of who asked; nothing, when the end that answers says by itself that it is there.
    """

    name: Name
    calls: bool
    stream: Annotated[bytes, msgspec.Meta(max_length=FRESH_BYTES)]
    number: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    data: Annotated[bytes, msgspec.Meta(max_length=PIECE)]
    tag: Annotated[bytes, msgspec.Meta(min_length=TAG_BYTES, max_length=TAG_BYTES)] = bytes(TAG_BYTES)

    def tagged(self, slot: bytes) -> "Packet":
        """The packet as the ends of a slot write it."""
        said = _TAG + msgspec.msgpack.encode((self.calls, self.stream, self.number, self.data))
        return msgspec.structs.replace(self, tag=hashlib.blake2b(said, key=slot, digest_size=TAG_BYTES).digest())


def name_of(slot: bytes) -> bytes:
    """What a slot is called in a room: those who do not know it cannot tell it from its name."""
    return hashlib.blake2b(_NAME, key=slot, digest_size=SLOT_BYTES).digest()


_decoder: Final = msgspec.msgpack.Decoder(Packet)


def read_packet(data: bytes) -> Packet | None:
    """The packet in what came from a room, or None. Total."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None


@dataclass(slots=True, eq=False)
class _Place:
    """One end of a slot. `asker` is the newest word of the end that calls: ours, or what was heard."""

    slot: bytes
    name: bytes
    calls: bool
    stream: bytes
    asker: bytes = b""
    is_asked: bool = False
    is_open: bool = False
    is_over: bool = False
    stirred: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
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

    def __init__(self, carrier: Carrier, clock: Clock = now_ms) -> None:
        self._carrier, self._clock, self._newest = carrier, clock, 0
        self._places: dict[tuple[bytes, bool], _Place] = {}

    async def open(self, slot: bytes, *, calls: bool) -> Wire:
        """Wait in a slot until the other end is there; one wire after the other. Raises WireBroken."""
        name = name_of(slot)
        while before := self._places.get((name, calls)):
            if before.is_over or not before.is_open:
                self.leave(before)
            await before.left.wait()  # whoever is there now may be slow: homeservers make them wait for each packet
        if len(self._places) >= MAX_PLACES:
            raise WireBroken("too many talk in that room")
        word = self._fresh()
        place = _Place(slot, name, calls, stream=b"" if calls else word, asker=word if calls else b"")
        self._places[name, calls] = place
        try:
            await self._until_open(place)
        except BaseException:
            self.leave(place)
            raise
        return RoomWire(self, place)

    async def _until_open(self, place: _Place) -> None:
        """Ask who is there, or say that we are, and again when the other end comes later: at once, then with pauses."""
        loop, pause_s = asyncio.get_running_loop(), 0.0
        said_s = loop.time()
        await self.say(place, 0, place.asker)
        while not place.is_open:
            if place.is_over:
                raise WireBroken(_OVER)
            try:
                async with asyncio.timeout_at(said_s + pause_s if place.is_asked else None):
                    await place.stirred.wait()
                place.stirred.clear()
            except TimeoutError:
                place.is_asked = False
                await self.say(place, 0, place.asker)
                said_s, pause_s = loop.time(), min(max(2 * pause_s, PAUSE_S[0]), PAUSE_S[1])

    async def say(self, place: _Place, number: int, data: bytes) -> None:
        """Send a packet of a place of ours. Raises WireBroken."""
        packet = Packet(place.name, place.calls, place.stream, number, data).tagged(place.slot)
        await self._carrier.send(msgspec.msgpack.encode(packet), os.urandom(KEY_BYTES).hex())

    def _fresh(self) -> bytes:
        """A word that is greater than all that were made here before, also by earlier runs, if the clock is right."""
        self._newest = max(self._newest + 1, self._clock() << COUNTED_BITS)
        return self._newest.to_bytes(FRESH_BYTES, "big")

    def leave(self, place: _Place) -> bool:
        """Be there no more; returns whether the other end may think that we are."""
        was_open = place.is_open and not place.is_over
        place.end()
        place.left.set()
        if self._places.get((place.name, place.calls)) is place:
            del self._places[place.name, place.calls]
        return was_open

    def heard(self, data: bytes) -> None:
        """Something came from the room; what is not for us, or not by the other end, is let be."""
        packet = read_packet(data)
        place = packet and self._places.get((packet.name, not packet.calls))
        if not packet or not place or not hmac.compare_digest(packet.tagged(place.slot).tag, packet.tag):
            return
        if packet.number == 0:
            (self._asked if packet.calls else self._here)(place, packet)
        elif packet.stream == place.stream:
            place.is_open = True
            place.take(packet.number, packet.data)
        else:
            self._ask(place)  # the other end thinks of an earlier run of ours

    def _asked(self, place: _Place, packet: Packet) -> None:
        """The end that calls asks who is there; with a newer word it has begun anew."""
        if packet.data > place.asker and place.is_open:
            place.end()
        place.asker = max(place.asker, packet.data)
        self._ask(place)

    def _here(self, place: _Place, packet: Packet) -> None:
        """The end that answers is there, as we asked or by itself; with a newer stream it has begun anew."""
        if place.is_open:
            if packet.stream > place.stream:
                place.end()
        elif packet.data == place.asker:
            place.stream, place.is_open = packet.stream, True
            place.stirred.set()
        elif not packet.data:
            self._ask(place)

    def _ask(self, place: _Place) -> None:
        if not place.is_open:
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
