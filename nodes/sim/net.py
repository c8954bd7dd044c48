"""Wires between whole nodes of a simulation: late, cut, and broken as the scenario says."""

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from typing import Final

from mesh.links.ways import DIRECT
from mesh.links.wire import Wire, WireBroken

BEAT_S: Final = 60.0  # between two signs of life: nobody is kept waiting by a wire that is broken without a word
END: Final = b""  # hangs up; no message is empty


class LateWire:
    """One end. Made in pairs by `Net.meet`."""

    other: "LateWire"
    beat_s: float = BEAT_S

    def __init__(self, net: "Net", ends: frozenset[int]) -> None:
        self.ends = ends
        self._net = net
        self._come: asyncio.Queue[bytes] = asyncio.Queue()
        self._flying: deque[bytes] = deque()
        self._broken = False
        self._arrival_s = 0.0

    async def send(self, data: bytes) -> None:
        """Send one message; it comes later, in its turn. Raises WireBroken."""
        if not self._broken and self._net.breaks():
            self.snap()
        if self._broken:
            raise WireBroken("the wire is broken")
        loop = asyncio.get_running_loop()
        self._arrival_s = max(self._arrival_s, loop.time() + self._net.delay_s())
        self.other.coming(data, self._arrival_s)

    def coming(self, data: bytes, at_s: float) -> None:
        """A message will be here at a time; timers of one moment may go off in any order, messages keep theirs."""
        self._flying.append(data)
        asyncio.get_running_loop().call_at(at_s, self._land)

    def _land(self) -> None:
        self._come.put_nowait(self._flying.popleft())

    async def receive(self) -> bytes:
        """The next message. Raises WireBroken."""
        data = END if self._broken else await self._come.get()
        if data == END:
            raise WireBroken("the wire is broken")
        return data

    async def close(self) -> None:
        """Break it for both. Idempotent."""
        self.snap()

    def snap(self) -> None:
        """The same, at once."""
        for end in (self, self.other):
            end.end()
        self._net.wires.pop(self.ends, None)

    def end(self) -> None:
        """Nothing more comes here, and nothing goes."""
        self._broken = True
        self._come.put_nowait(END)


@dataclass(frozen=True, slots=True)
class NetWay:
    """How a node reaches another one of a simulation."""

    net: "Net"
    ends: frozenset[int]
    calls: bool
    rank: int = DIRECT

    async def open(self) -> Wire:
        """Meet the other one. Raises WireBroken."""
        return await self.net.meet(self.ends)


class Net:
    """All wires."""

    def __init__(self, dice: random.Random, latency_ms: int, broken: float) -> None:
        self.wires: dict[frozenset[int], LateWire] = {}
        self.messages = 0
        self._cut: frozenset[int] = frozenset()  # meshes that no other can reach
        self._waiting: dict[frozenset[int], asyncio.Future[LateWire]] = {}
        self._dice, self._latency_ms, self._broken = dice, latency_ms, broken

    async def meet(self, ends: frozenset[int]) -> LateWire:
        """A wire between two, when both are there. Raises WireBroken where there is no way."""
        if self._is_cut(ends):
            raise WireBroken("nobody can be reached there")
        there = self._waiting.pop(ends, None)
        if there is not None and not there.done():
            one, other = LateWire(self, ends), LateWire(self, ends)
            one.other, other.other = other, one
            self.wires[ends] = one
            there.set_result(other)
            return one
        here = self._waiting[ends] = asyncio.get_running_loop().create_future()
        try:
            return await here
        finally:
            if self._waiting.get(ends) is here:
                del self._waiting[ends]

    def part(self, away: frozenset[int]) -> None:
        """Cut some meshes off from all others; none, to end it."""
        self._cut = away
        for ends in [ends for ends in self.wires if self._is_cut(ends)]:
            self.wires[ends].snap()
        for ends in [ends for ends in self._waiting if self._is_cut(ends)]:
            self._waiting.pop(ends).set_exception(WireBroken("nobody can be reached there"))

    def _is_cut(self, ends: frozenset[int]) -> bool:
        """Whether a link leads from somebody who is away to somebody who is not."""
        return len(ends & self._cut) == 1

    def breaks(self) -> bool:
        """Whether the next message breaks its wire."""
        self.messages += 1
        return self._dice.random() < self._broken

    def delay_s(self) -> float:
        """Between half and one and a half of the latency."""
        return self._latency_ms * self._dice.uniform(0.5, 1.5) / 1000
