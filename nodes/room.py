"""A basin as the node remembers it: the newest acts, with edits made and what was taken back left out."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from mesh.ledger import Entry
from nodes.chatlog import Line
from nodes.turn import Roster

TAIL: Final = 512  # acts kept in memory a basin; no em's window is longer
SHOWN: Final = frozenset({"say", "ask", "answer"})


class Room:
    """The tail of one basin and the ems that listen to it."""

    def __init__(self, basin: str, roster: Roster) -> None:
        self.basin = basin
        self.roster = roster
        self.heard = 0
        self._tail: deque[Entry] = deque(maxlen=TAIL)
        self._texts: dict[bytes, str | None] = {}

    def hear(self, entry: Entry) -> None:
        """Add an act. An `edit` or `redact` counts only from the author of the act it is about."""
        act = entry.act
        if act.kind in SHOWN:
            if len(self._tail) == TAIL:
                self._texts.pop(self._tail[0].act.id, None)
            self._tail.append(entry)
            self.heard += 1
        elif act.kind in ("edit", "redact") and act.refs:
            target = self.find(act.refs[0])
            if target is not None and (target.act.author, target.mesh) == (act.author, entry.mesh):
                self._texts[target.act.id] = act.text if act.kind == "edit" else None

    def find(self, identity: bytes) -> Entry | None:
        """The act with this id, if it is in the tail."""
        return next((entry for entry in reversed(self._tail) if entry.act.id == identity), None)

    def until(self, identity: bytes) -> tuple[int, Sequence[Line]]:
        """What was said up to and including an act, oldest first, and how many lines were ever said until then."""
        entries = list(self._tail)
        while entries and entries[-1].act.id != identity:
            entries.pop()
        lines = [
            Line(entry.act.author, text, f"act:{entry.act.id.hex()}")
            for entry in entries
            if (text := self._texts.get(entry.act.id, entry.act.text)) is not None
        ]
        return self.heard - (len(self._tail) - len(entries)), lines
