"""A hub: two nodes that cannot be dialled dial here, and what one says is carried to the other, blindly.

It keeps nothing and understands nothing. A slot is a name that only the two can know; in it one end calls and the
other answers, and whoever came last for an end takes its place. What is carried is sealed by the two: a hub can
withhold it, and neither read nor change it.
"""

import asyncio
import ipaddress
import os
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from mesh.clock import Clock, now_ms
from mesh.links.proof import MAX_PROOF, prover
from mesh.links.wire import WireBroken
from protocol.keys import MeshId

PIECE: Final = 32_768  # bytes of a message: a connection can hold no more of our memory than two of these
MET: Final = "met"  # said to both ends of a slot: from here on the other one is heard
PROVE: Final = "prove "  # said, with hex digits that are to be signed, where not everybody is let in
CHALLENGE: Final = 16  # bytes
IDLE_S: Final = 75.0  # without a word or a ping a connection is dead: nodes ping every 30 s, or beat every 10
WAIT_S: Final = 3_600.0  # that somebody waits in a slot; then they may come again, if they still live
STALL_S: Final = 60.0  # that one end may take over a piece before the pair is given up
PROVE_S: Final = 10.0
IPV6_PREFIX: Final = 64  # bits: what one household is given, and counts as one address


class End(Protocol):
    """A connection."""

    async def send(self, data: bytes) -> None:
        """Send a piece; waits while the other side is slow. Raises WireBroken."""
        ...

    async def say(self, text: str) -> None:
        """Say a word of the hub's own. Raises WireBroken."""
        ...

    async def receive(self, idle_s: float) -> bytes:
        """The next piece. Raises WireBroken, also when there was no sign of life for so long."""
        ...

    async def close(self) -> None:
        """Hang up. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a hub gives, in all: connections, and bytes a second."""

    connections: int = 4_096  # about 100 MB of memory at the most
    an_address: int = 256  # a node with 200 peers has one connection for each; 0 counts none, behind a proxy
    bytes_a_pair: float = 1e6
    bytes_in_all: float = 2e7
    burst: float = 4e6  # bytes at once before the pace holds, so that catching up begins quickly


class Pace:
    """How long to wait so that no more than `rate` bytes a second pass, after a first `burst`."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._ahead_s, self._due_s = rate, burst / rate, 0.0

    def wait_s(self, now_s: float, size: int) -> float:
        """Seconds to wait before `size` more bytes are carried."""
        self._due_s = max(self._due_s, now_s - self._ahead_s) + size / self._rate
        return max(0.0, self._due_s - now_s)


@dataclass(slots=True)
class Counts:
    """All that a hub tells of itself."""

    connections: int = 0
    pairs: int = 0
    met: int = 0
    turned_away: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Waiting:
    end: End
    met: "asyncio.Future[_Pair]"


@dataclass(slots=True)
class _Pair:
    ends: tuple[End, End]
    pace: Pace


class Hub:
    """Joins the ends of slots. `allow` says which meshes may come; None: all, and nobody is asked who they are."""

    def __init__(
        self, limits: Limits | None = None, allow: Callable[[MeshId], bool] | None = None, clock: Clock = now_ms
    ) -> None:
        self.counts = Counts()
        self._limits, self._allow, self._clock = limits or Limits(), allow, clock
        self._pace = Pace(self._limits.bytes_in_all, self._limits.burst)
        self._waiting: dict[tuple[str, bool], _Waiting] = {}
        self._addresses = Counter[str]()
        self._ends = set[End]()

    def has_room(self, address: str) -> bool:
        """Whether one more connection from an IP address is taken; one that is not is counted."""
        held = self._addresses[_counted_as(address)]
        full = self.counts.connections >= self._limits.connections
        if full or 0 < self._limits.an_address <= held:
            self.counts.turned_away += 1
            return False
        return True

    async def serve(self, end: End, address: str, slot: str, calls: bool) -> None:  # noqa: FBT001 - which end it is
        """Have a connection until it returns; `calls`: it is the end that begins."""
        with self._counting(address):
            self._ends.add(end)
            try:
                if self._allow is None or await self._is_allowed(end, slot):
                    await self._meet(end, (slot, calls))
                else:
                    self.counts.turned_away += 1
            except WireBroken:
                pass
            finally:
                self._ends.discard(end)
                await end.close()

    async def close(self) -> None:
        """Hang up on everybody."""
        for end in list(self._ends):
            await end.close()

    @contextmanager
    def _counting(self, address: str) -> Generator[None]:
        key = _counted_as(address)
        self.counts.connections += 1
        self._addresses[key] += 1
        try:
            yield
        finally:
            self.counts.connections -= 1
            self._addresses[key] -= 1
            if not self._addresses[key]:
                del self._addresses[key]

    async def _is_allowed(self, end: End, slot: str) -> bool:
        """Ask who is there. Raises WireBroken."""
        challenge = os.urandom(CHALLENGE)
        await end.say(PROVE + challenge.hex())
        data = await end.receive(PROVE_S)
        mesh = prover(data, challenge, slot, self._clock()) if len(data) <= MAX_PROOF else None
        return mesh is not None and self._allow is not None and self._allow(mesh)

    async def _meet(self, end: End, place: tuple[str, bool]) -> None:
        slot, calls = place
        other = self._waiting.pop((slot, not calls), None)
        if other is None:
            await self._wait(end, place)
            return
        pair = _Pair((other.end, end), Pace(self._limits.bytes_a_pair, self._limits.burst))
        other.met.set_result(pair)  # before anybody is told: whoever is told may speak at once
        self.counts.pairs += 1
        self.counts.met += 1
        try:
            await other.end.say(MET)
            await end.say(MET)
            await self._carry(pair, end, other.end)
        finally:
            self.counts.pairs -= 1
            await other.end.close()

    async def _wait(self, end: End, place: tuple[str, bool]) -> None:
        """Wait for the other end, and carry what this one says then."""
        if before := self._waiting.pop(place, None):
            before.met.cancel()
        waiting = self._waiting[place] = _Waiting(end, asyncio.get_running_loop().create_future())
        try:
            first = await _first_word(end, waiting.met)
        finally:
            if self._waiting.get(place) is waiting:
                del self._waiting[place]
        if waiting.met.done() and not waiting.met.cancelled():
            pair = waiting.met.result()
            try:
                await self._carry(pair, end, pair.ends[1], first)
            finally:
                await pair.ends[1].close()

    async def _carry(self, pair: _Pair, source: End, target: End, first: bytes | None = None) -> None:
        """Carry pieces one way until either end is gone. Raises WireBroken."""
        loop = asyncio.get_running_loop()
        while True:
            data = await source.receive(IDLE_S) if first is None else first
            first = None
            now_s = loop.time()
            wait_s = max(pair.pace.wait_s(now_s, len(data)), self._pace.wait_s(now_s, len(data)))
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            try:
                async with asyncio.timeout(STALL_S):
                    await target.send(data)
            except TimeoutError:
                raise WireBroken("the other end takes nothing") from None
            self.counts.bytes += len(data)


async def _first_word(end: End, met: "asyncio.Future[_Pair]") -> bytes | None:
    """Listen to an end that waits until it meets the other; what it says before that ends the waiting.

    Returns what it has said after they met, if that was heard already; None otherwise.
    """

    async def listen() -> bytes | None:
        with suppress(WireBroken):
            return await end.receive(IDLE_S)
        return None

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen(), name="hub waits")
        await asyncio.wait([listening, met], timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
    if not met.done():
        met.cancel()
    return None if listening.cancelled() else listening.result()


def _counted_as(address: str) -> str:
    """What counts as one address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((found, IPV6_PREFIX), strict=False))
