"""Who may hear and speak in which dispute: its parties, and the mediators that both have named. Fails closed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mesh.clock import Clock
from mesh.entries import Entry, find, recent
from mesh.store import Store
from nodes.disputes.tables import Tables
from protocol.acts import Act
from protocol.dispute import Dispute, Heard, Parties, State, follow, is_dispute, parties_of
from protocol.keys import MeshId

MAX_SAID: Final = 500  # acts of one mesh in one dispute: more is no conversation, and all of them are read to show it
MAX_READ: Final = 10_000  # newest acts of a dispute that are read: those of all members, and of bridges besides
_CHANGING: Final = frozenset({"raise", "respond", "redact", "settle", "withdraw"})  # what a Hall may change by


@dataclass(slots=True)
class Hall:
    """A dispute as its gate sees it: who may hear and speak, whether it is open, and how much each has said."""

    members: frozenset[MeshId]
    open: bool
    said: Counter[MeshId]


class Halls:
    """All disputes of a node."""

    def __init__(self, me: MeshId, store: Store, clock: Clock, is_em: Callable[[str], bool]) -> None:
        self.tables = Tables(store)
        self.parties: dict[str, Parties] = self.tables.all()
        self._me, self._store, self._clock, self._is_em = me, store, clock, is_em
        self._halls: dict[str, Hall] = {}

    def read(self, basin: str) -> Dispute | None:
        """A dispute as it is now; None when nobody has raised it."""
        parties = self.parties.get(basin)
        return self._follow(basin, parties, self._heard(basin)) if parties else None

    def hear(self, entries: Sequence[Entry]) -> bool:
        """Take in new acts, within the transaction that stores them; returns whether any is of a dispute."""
        ours = [entry for entry in entries if is_dispute(entry.basin)]
        for entry in ours:
            if parties := parties_of(entry.basin, entry.mesh, entry.act):
                self.tables.put(entry.basin, parties)
                self.parties.setdefault(entry.basin, parties)
            if hall := self._halls.get(entry.basin):
                hall.said[entry.mesh] += 1
            if entry.act.kind in _CHANGING:
                self._halls.pop(entry.basin, None)
        for entry in entries if self._halls else ():
            if entry.act.kind == "redact" and entry.act.refs and not is_dispute(entry.basin):
                # What was said in a dispute may be taken back from elsewhere.
                taken_back = find(self._store, entry.act.refs[0], entry.mesh)
                self._halls.pop(taken_back.basin if taken_back else "", None)
        return bool(ours)

    def bars(self, peer: MeshId, origin: MeshId, basin: str, act: Act) -> str | None:
        """Why an act, which `origin` said in a dispute, does not pass between us and a peer; None when it may."""
        if basin not in self.parties and (parties := parties_of(basin, origin, act)):
            self.parties[basin] = parties  # it holds for what shares its frame, before that is stored
        hall = self._hall(basin)
        if hall is None:
            return "nobody has raised that dispute here"
        if peer not in hall.members or origin not in hall.members:
            return "a dispute is spoken of by its parties, and by a mediator whom both have named"
        if hall.said[origin] >= MAX_SAID and find(self._store, act.id, origin) is None:
            return f"it has said {MAX_SAID} things in that dispute, which is all that one may say"
        return None

    def said(self, basin: str) -> int:
        """How many acts of ours are in a dispute."""
        hall = self._hall(basin)
        return hall.said[self._me] if hall else 0

    def members(self, basin: str) -> frozenset[MeshId]:
        """Who may hear a dispute and speak in it."""
        hall = self._hall(basin)
        return hall.members if hall else frozenset()

    def is_open(self, basin: str) -> bool:
        """Whether a dispute is not over, or was not raised yet."""
        hall = self._hall(basin)
        return hall is None or hall.open

    def _hall(self, basin: str) -> Hall | None:
        parties = self.parties.get(basin)
        if basin not in self._halls and parties:
            heard = self._heard(basin)
            read = self._follow(basin, parties, heard)
            self._halls[basin] = Hall(read.members, read.state == State.OPEN, Counter(mesh for mesh, _ in heard))
        return self._halls.get(basin)

    def _heard(self, basin: str) -> list[Heard]:
        return [(entry.mesh, entry.act) for entry in recent(self._store, basin, MAX_READ)]

    def _follow(self, basin: str, parties: Parties, heard: Sequence[Heard]) -> Dispute:
        return follow(basin, parties, heard, self._clock(), self._is_person)

    def _is_person(self, mesh: MeshId, author: str) -> bool:
        """Nobody who speaks through a bridge, and no em of ours; elsewhere, their node vouches for who is whom."""
        return not author.startswith("@") and not (mesh == self._me and self._is_em(author))
