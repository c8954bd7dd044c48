"""Hostile meshes: each is linked as others are, speaks as others do, and has one trick besides.

What they send is signed and checked for real, whatever the scenario says about the rest.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from nodes.sim.mesh import YEAR_MS, Mesh, World, home
from nodes.sim.session import Carried, Session
from protocol.acts import RANDOM_BYTES, Act, new_id
from protocol.frame import HEADER_BYTES, MAX_ACTS, VERSION, Frame, encode_frame
from protocol.keys import KeyKind, decode_public
from protocol.quota import MINUTE_MS, Quota

TRICKS: Final = ("forged", "raised", "replayed", "flood", "chains", "clock", "unshared", "passed on")
EVERY_MS: Final = 10 * MINUTE_MS  # between two attempts
FLOOD: Final = 3  # times what is allowed in a minute
MAX_FLOOD: Final = 2_000  # acts of a flood: enough to see that it is held back, and soon over
CHAINS: Final = 30  # chains begun at each attempt
FIRST: Final = 1_000_000  # sequence of frames that are made up: above all that were ever sent


class Hostile(Mesh):
    """A mesh with a trick."""

    def __init__(self, number: int, world: World, seed: str, skew_ms: int, trick: str) -> None:
        super().__init__(number, world, seed, skew_ms)
        self.trick = trick
        self._tries = 0
        tricks: dict[str, Callable[[], None]] = {
            "forged": self._forge,
            "raised": self._raise,
            "replayed": self._replay,
            "flood": self._flood,
            "chains": self._begin_chains,
            "clock": self._clock_off,
            "unshared": self._unshared,
            "passed on": self._pass_on,
        }
        self._do = tricks[trick]

    def attack(self, until_ms: int) -> None:
        """Try it now, and again until a time."""
        self._tries += 1
        self._do()
        if self.world.clockwork.now_ms + EVERY_MS < until_ms:
            self.world.clockwork.after(EVERY_MS, self.attack, until_ms)

    def _forge(self) -> None:
        """Put words into somebody's mouth: a frame under their key, which we cannot sign with."""
        for session, basin, taken in self._heard_of_others():
            acts = [self._new(act, body={"text": "I owe them all I have."}) for act in taken.frame.acts]
            frame = Frame(taken.frame.node, taken.frame.sequence + 1, self.clock(), basin, acts)
            body = encode_frame(self.signer, frame.sequence, frame.sent_at_ms, basin, acts)[HEADER_BYTES:]
            head = bytes((VERSION,)) + decode_public(frame.node, KeyKind.NODE) + self.signer.sign(body)
            self._throw(session, basin, Carried(frame, taken.mesh, head + body))

    def _raise(self) -> None:
        """Answer with more budget than there was."""
        for session in self.sessions.values():
            for basin, frames in self.frames.items():
                theirs = [one for one in frames if one.mesh == session.peer][-1:]
                parents = [act for one in theirs for act in one.frame.acts if act.budget.hops]
                for parent in parents[-1:]:
                    budget = msgspec.structs.replace(
                        parent.budget, hops=parent.budget.hops + 64, acts=parent.budget.acts + 4_000
                    )
                    richer = self._new(parent, author=f"rich-{self.number}", refs=[parent.id], budget=budget)
                    self._lie(session, basin, msgspec.structs.replace(richer, root=parent.root))

    def _replay(self) -> None:
        """Send what was heard once more, many times."""
        for session, basin, taken in self._heard_of_others():
            if self.gates.may_have(session.peer, taken.mesh, basin, taken.frame.acts[0]):
                for _ in range(3):
                    self._throw(session, basin, taken)

    def _flood(self) -> None:
        """Say much more than is allowed in a minute; once."""
        if self._tries > 1:
            return
        a_minute = self._allowance().acts_a_minute
        size = max(1, min(MAX_ACTS, a_minute // 4))
        for _ in range(max(1, min(FLOOD * a_minute, MAX_FLOOD) // size)):
            self.say(home(self.number), [self.root(home(self.number), (), "buy!") for _ in range(size)])

    def _begin_chains(self) -> None:
        """Begin chain after chain, each of which names ems elsewhere, who cost their owners."""
        numbers = [self.world.numbers[peer] for peer in self.sessions]
        for at in range(CHAINS):
            called = f"em0-{numbers[at % len(numbers)]}"
            self.say(home(self.number), [self.root(home(self.number), [called])])

    def _clock_off(self) -> None:
        """Speak from next year, to be the newest for ever; or from years ago."""
        for session in self.sessions.values():
            for offset_ms in (YEAR_MS // 2, -YEAR_MS):
                act = self._new(self.root(home(self.number), ()), offset_ms)
                self._lie(session, home(self.number), act, offset_ms)

    def _unshared(self) -> None:
        """Speak in basins that nobody takes."""
        for session in self.sessions.values():
            self._lie(session, "diary", self.root("diary", ()))

    def _pass_on(self) -> None:
        """Tell everybody what was said to us alone."""
        for session, basin, taken in self._heard_of_others():
            if not self.gates.may_have(session.peer, taken.mesh, basin, taken.frame.acts[0]):
                self._throw(session, basin, taken)

    def _heard_of_others(self) -> Iterator[tuple[Session, str, Carried]]:
        """For every peer, the newest frame of each basin that neither of the two said."""
        for session in self.sessions.values():
            for basin, frames in self.frames.items():
                others = (one for one in reversed(frames) if one.mesh not in (self.id, session.peer))
                if (found := next(others, None)) is not None:
                    yield session, basin, found

    def _allowance(self) -> Quota:
        """What we may use at a peer's."""
        peer = next(iter(self.gates.peers.values()))
        return peer.relationship.theirs.terms.allowance

    def _new(self, act: Act, offset_ms: int = 0, **changes: Any) -> Act:  # noqa: ANN401 - fields of an act
        """An act like another one, with an id of its own, that begins a chain."""
        at_ms = self.clock() + offset_ms
        identity = new_id(at_ms, self.dice.randbytes(RANDOM_BYTES))
        return msgspec.structs.replace(act, **{"id": identity, "root": identity, "at_ms": at_ms, **changes})

    def _lie(self, session: Session, basin: str, act: Act, offset_ms: int = 0) -> None:
        """Sign an act ourselves that nobody may take, and send it."""
        sequence, sent_at_ms = FIRST + self._tries, self.clock() + offset_ms
        data = encode_frame(self.signer, sequence, sent_at_ms, basin, [act])
        self._throw(session, basin, Carried(Frame(self.node, sequence, sent_at_ms, basin, [act]), self.id, data))

    def _throw(self, session: Session, basin: str, carried: Carried) -> None:
        """Send it past all gates of our own."""
        if not session.up:
            return
        now = self.world.clockwork.now_ms
        for act in carried.frame.acts:
            self.world.oracle.tricked(self.number, basin, act, now, self.trick)
        session.send(basin, [carried])
