"""A basin as the node remembers it: the newest acts, with edits made and what was taken back left out."""

from collections import deque
from collections.abc import Sequence
from typing import Final

from mesh.entries import Entry
from nodes.chatlog import Line
from nodes.em import MAX_WINDOW
from nodes.picture import pictures
from nodes.turn import Roster
from protocol.acts import Act

TAIL: Final = MAX_WINDOW  # acts kept in memory a basin; no em's window is longer
SHOWN: Final = frozenset({"say", "ask", "answer"})


class Room:
    """The tail of one basin and the ems that listen to it."""

    def __init__(self, basin: str, roster: Roster) -> None:
        self.basin = basin
        self.roster = roster
        self.heard = 0
        self._tail: deque[Entry] = deque(maxlen=TAIL)
        self._lines: dict[bytes, Line | None] = {}  # made once, not for every em that reads them; None: taken back

    def hear(self, entry: Entry) -> None:
        """Add an act. An `edit` or `redact` counts only from the author of the act it is about."""
        act = entry.act
        if act.kind in SHOWN:
            if len(self._tail) == TAIL:
                self._lines.pop(self._tail[0].act.id, None)
            self._tail.append(entry)
            self._lines[act.id] = _line(act, act.text)
            self.heard += 1
        elif act.kind in ("edit", "redact") and act.refs:
            target = self.find(act.refs[0])
            if target is not None and (target.act.author, target.mesh) == (act.author, entry.mesh):
                self._lines[target.act.id] = _line(target.act, act.text) if act.kind == "edit" else None

    def find(self, identity: bytes) -> Entry | None:
        """The act with this id, if it is in the tail."""
        return next((entry for entry in reversed(self._tail) if entry.act.id == identity), None)

    def until(self, identity: bytes) -> tuple[int, Sequence[Line]]:
        """What was said up to and including an act, oldest first, and how many lines were ever said until then."""
        entries = list(self._tail)
        while entries and entries[-1].act.id != identity:
            entries.pop()
        lines = [line for entry in entries if (line := self._lines.get(entry.act.id)) is not None]
        return self.heard - (len(self._tail) - len(entries)), lines


def _line(act: Act, text: str) -> Line:
    return Line(act.author, text, f"act:{act.id.hex()}", pictures(act))
