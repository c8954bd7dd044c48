"""One end of a link between two meshes of a simulation: what mesh.links does, in virtual time.

A cursor a basin moves when the peer has kept what was sent. When the wire breaks, what was on its way is lost, and the
next wire goes on behind the cursor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from mesh.links.messages import MAX_FRAMES
from mesh.links.sending import WINDOW
from mesh.trust import Trust
from nodes.peers.gates import PeerGates
from nodes.sim.clockwork import Clockwork
from protocol.frame import Frame
from protocol.keys import MeshId

AGAIN_MS: Final = 500  # until a wire that broke is dialled again


@dataclass(slots=True, frozen=True)
class Carried:
    """A frame on its way. `data` is it as signed; None: this one is not, to save time, and is believed."""

    frame: Frame
    mesh: MeshId
    data: bytes | None = None


class Message(NamedTuple):
    """Frames of one basin; `number` counts an end's messages."""

    number: int
    basin: str
    frames: Sequence[Carried]


class Sent(NamedTuple):
    """A message on its way, and where the basin's cursor is once it is kept; None for none."""

    number: int
    basin: str
    place: int | None


class Net(Protocol):
    """What carries messages."""

    clockwork: Clockwork
    messages: int

    def delay_ms(self) -> int | None:
        """How long a message takes; None: the wire breaks under it."""
        ...

    def carried(self, session: "Session", message: Message) -> None:
        """A message has come to the other end."""
        ...


class Holder(Protocol):
    """The mesh whose end a session is."""

    number: int
    gates: PeerGates
    trust: Trust
    frames: dict[str, list[Carried]]

    def take(self, peer: MeshId, carried: Carried) -> float:
        """Take what a peer sent, or tell how many seconds its quota wants it to wait."""
        ...


class Session:
    """One end. `far` is the other one; both are `up` or down together."""

    __slots__ = (
        "_ahead",
        "_arrival_ms",
        "_done",
        "_inbox",
        "_kept",
        "_net",
        "_number",
        "_on_the_way",
        "_since",
        "cut",
        "era",
        "far",
        "mesh",
        "peer",
        "up",
    )
    far: "Session"

    def __init__(self, mesh: Holder, peer: MeshId, net: Net) -> None:
        self.mesh, self.peer, self._net = mesh, peer, net
        self.up = self.cut = False  # a link that is `cut` cannot be dialled
        self.era = 0  # counts wires: what was sent over an earlier one never arrives
        self._kept: dict[str, int] = {}
        self._ahead: dict[str, int] = {}
        self._since: dict[str, tuple[int, int]] = {}
        self._on_the_way: list[Sent] = []
        self._inbox: list[Message] = []
        self._number = self._done = self._arrival_ms = 0

    def open(self) -> None:
        """There is a wire: go on where the last one stopped."""
        self.up = True
        self._ahead = dict(self._kept)
        _, *shared = self.mesh.gates.sent(self.peer)  # the first is their own, where nothing is said here
        self._since = {sent.basin: (sent.since_ms, sent.oldest_ms) for sent in shared}
        for basin in self._since:
            self.look(basin)

    def close(self) -> None:
        """The wire is gone, with all that was on it."""
        self.up = False
        self.era += 1
        self._on_the_way.clear()
        self._inbox.clear()
        self._done = 0

    def look(self, basin: str) -> None:
        """Send what the peer may have of a basin and was not sent yet, as far as there is room on the way."""
        if not self.up or basin not in self._since:
            return
        frames = self.mesh.frames.get(basin, [])
        while self.up and (place := self._ahead.get(basin, 0)) < len(frames) and len(self._on_the_way) < WINDOW:
            page = frames[place : place + MAX_FRAMES]
            found = [one for one in page if self.may_have(basin, one)]
            self._ahead[basin] = place + len(page)
            if found:
                self.send(basin, found, place + len(page))
            elif not self._on_the_way:
                self._kept[basin] = place + len(page)

    def may_have(self, basin: str, one: Carried) -> bool:
        """Whether a frame may go to the peer: in the words of mesh.links.sending."""
        since_ms, oldest_ms = self._since[basin]
        if one.mesh == self.peer or one.frame.sent_at_ms < max(since_ms, oldest_ms):
            return False
        gates = self.mesh.gates
        return all(gates.may_have(self.peer, one.mesh, basin, act) for act in one.frame.acts)

    def send(self, basin: str, frames: Sequence[Carried], place: int | None = None) -> None:
        """Send a message, whatever is in it."""
        delay_ms = self._net.delay_ms()
        self._number += 1
        self._on_the_way.append(Sent(self._number, basin, place))
        if delay_ms is None:
            self.snap()
            return
        self._net.messages += 1
        self._arrival_ms = max(self._arrival_ms, self._net.clockwork.now_ms + delay_ms)  # a wire keeps the order
        message = Message(self._number, basin, frames)
        self._net.clockwork.at(self._arrival_ms, self.far.arrive, self.era, message)

    def snap(self) -> None:
        """The wire breaks, and is dialled again."""
        self.close()
        self.far.close()
        self._net.clockwork.after(AGAIN_MS, self.dial)

    def dial(self) -> None:
        """Open a wire, unless there is one, or no way."""
        if not self.up and not self.cut:
            self.open()
            self.far.open()

    def arrive(self, era: int, message: Message) -> None:
        """A message has come."""
        if era != self.era:
            return
        self._net.carried(self, message)
        self._inbox.append(message)
        if len(self._inbox) == 1:
            self._work(era)

    def _work(self, era: int) -> None:
        """Take what has come, in order; when the peer's quota is used up, go on when there is room again."""
        while era == self.era and self._inbox:
            message = self._inbox[0]
            for carried in message.frames[self._done :]:
                if (wait_s := self.mesh.take(self.peer, carried)) > 0:
                    self._net.clockwork.after(round(wait_s * 1000), self._work, era)
                    return
                if era != self.era:  # what was taken went on from here, and the wire broke under it
                    return
                self._done += 1
            self._inbox.pop(0)
            self._done = 0
            if (delay_ms := self._net.delay_ms()) is None:
                self.snap()
                return
            self._net.clockwork.after(delay_ms, self.far.kept, era, message.number)

    def kept(self, era: int, number: int) -> None:
        """The peer has kept all up to a message."""
        if era != self.era:
            return
        done = [sent for sent in self._on_the_way if sent.number <= number]
        self._on_the_way = self._on_the_way[len(done) :]
        for sent in done:
            if sent.place is not None:
                self._kept[sent.basin] = sent.place
        for basin in self._since:
            self.look(basin)
