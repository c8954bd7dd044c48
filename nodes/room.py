"""A basin as the node remembers it: the newest acts, with edits made and what was taken back left out."""

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final

from mesh.entries import Entry
from nodes.chatlog import Line
from nodes.em_settings import MAX_WINDOW
from nodes.picture import pictures
from nodes.turn import Roster
from protocol.acts import Act
from protocol.husk import is_husk
from protocol.keys import MeshId, fingerprint
from protocol.terms import TERM_ACTS
from protocol.vocabulary import BODIES

TAIL: Final = MAX_WINDOW  # acts kept in memory a basin; no em's window is longer
KEPT_EDITS: Final = 16  # of one act, in case the newest is taken back
SHOWN: Final = frozenset({"say", "ask", "answer"})
ECHOES: Final = 32  # newest acts that a message is compared with
MIN_ECHO: Final = 12  # characters; people repeat shorter words too
HIDE: Final = "hide"  # what the body of a reaction says that hides what it is about
MAX_NAMES: Final = 4_096  # people from elsewhere whose names are kept in mind, of a basin


_Said = tuple[MeshId, bytes]  # who said it, and under which id: others may use the same one


def is_shown(kind: str) -> bool:
    """Whether ems read such an act: talk, what is said about words, and kinds that people have made."""
    return kind in SHOWN or kind in TERM_ACTS or kind not in BODIES


class Room:
    """The tail of one basin and the ems that listen to it. `mesh` is whose node remembers it."""

    def __init__(self, basin: str, roster: Roster, mesh: MeshId) -> None:
        self.basin = basin
        self.roster = roster
        self.heard = 0
        self._mesh = mesh
        self._hidden: dict[bytes, _Said] = {}  # reactions that hide, and what they hide
        self._names: dict[str, str] = {}  # people from elsewhere: how they stand in a transcript
        self._tail: deque[Entry] = deque(maxlen=TAIL)
        self._lines: dict[_Said, Line | None] = {}  # made once, not for every em that reads them; None: taken back
        self._edits: dict[_Said, dict[bytes, str]] = {}  # of an act in the tail: its edits and their texts, in order

    def hear(self, entry: Entry) -> None:
        """Add an act. An `edit` or `redact` counts only from the author of the act it is about.

        A person here may hide an act from the ems by a reaction, until that is taken back.
        """
        act = entry.act
        if is_shown(act.kind):
            if len(self._tail) == TAIL:
                self._lines.pop(_said(self._tail[0]), None)
                self._edits.pop(_said(self._tail[0]), None)
            self._tail.append(entry)
            self._lines[_said(entry)] = None if is_husk(act) else self._line(entry, act.text)
            self.heard += 1
        elif act.kind in ("edit", "redact") and act.refs:
            target = self.find(act.refs[0], entry.mesh)
            if target is not None and target.act.author == act.author:
                if act.kind == "redact":
                    self._lines[_said(target)] = None
                elif not is_husk(act):
                    self._edit(target, act)
            elif act.kind == "redact" and entry.mesh == self._mesh:
                self._hidden.pop(act.refs[0], None)
        elif act.kind == "react" and act.body.get("do") == HIDE and act.is_root and entry.mesh == self._mesh:
            self._hide(act)

    def _hide(self, act: Act) -> None:
        if act.refs and (target := self.find(act.refs[0])):
            self._hidden[act.id] = _said(target)
            if len(self._hidden) > TAIL:
                del self._hidden[next(iter(self._hidden))]

    def _edit(self, said: Entry, edit: Act) -> None:
        edits = self._edits.setdefault(_said(said), {})
        edits[edit.id] = edit.text
        if len(edits) > KEPT_EDITS:
            del edits[next(iter(edits))]
        if self._lines[_said(said)] is not None:
            self._lines[_said(said)] = self._line(said, edit.text)

    def forget(self, entry: Entry) -> None:
        """Let go of an act's words; of an edit's, so that the act says what it said before."""
        act = entry.act
        if _said(entry) in self._lines:
            self._lines[_said(entry)] = None
            self._edits.pop(_said(entry), None)
        said = self.find(act.refs[0], entry.mesh) if act.kind == "edit" and act.refs else None
        edits = self._edits.get(_said(said), {}) if said else {}
        if said and edits.pop(act.id, None) is not None and self._lines[_said(said)] is not None:
            self._lines[_said(said)] = self._line(said, [said.act.text, *edits.values()][-1])

    def find(self, identity: bytes, mesh: MeshId | None = None) -> Entry | None:
        """The act with this id, of this mesh or of any, if it is in the tail."""
        return next((entry for entry in reversed(self._tail) if _is_it(entry, identity, mesh)), None)

    def echoes(self, text: str) -> bool:
        """Whether an em here said exactly this lately: somebody who repeats it is no person."""
        wanted = text.strip()
        lately = itertools.islice(reversed(self._tail), ECHOES)
        return len(wanted) >= MIN_ECHO and any(
            entry.act.text.strip() == wanted and entry.act.author in self.roster.ems for entry in lately
        )

    def until(self, identity: bytes, mesh: MeshId | None = None) -> tuple[int, Sequence[Line]]:
        """What was said up to and including an act, of this mesh or of any, oldest first.

        Beside it, how many lines were ever said until then.
        """
        entries = list(self._tail)
        while entries and not _is_it(entries[-1], identity, mesh):
            entries.pop()
        hidden = set(self._hidden.values())
        seen = [said for said in map(_said, entries) if said not in hidden]
        lines = [line for one in seen if (line := self._lines.get(one)) is not None]
        return self.heard - (len(self._tail) - len(entries)), lines

    def _line(self, entry: Entry, text: str) -> Line:
        act = entry.act
        told = text if act.kind in SHOWN else f"/{act.kind} {text}"
        return Line(self._name(entry), told, f"act:{act.id.hex()}", pictures(act))

    def _name(self, entry: Entry) -> str:
        """How an author stands in a transcript: `@mara:example.org` is mara, unless somebody else is called so.

        Whoever is of another mesh is never taken for one of ours.
        """
        author = entry.act.author
        if entry.mesh != self._mesh:
            return f"{author}~{fingerprint(entry.mesh)}"
        if not author.startswith("@"):
            return author
        if author not in self._names:
            short = author[1:].partition(":")[0]
            taken = {*self._names.values(), *(entry.act.author for entry in self._tail)}
            is_free = short and short.lower() not in taken and not self.roster.named(short.lower())
            if len(self._names) >= MAX_NAMES:
                self._names.clear()
            self._names[author] = short if is_free else author
        return self._names[author]


def _said(entry: Entry) -> _Said:
    return entry.mesh, entry.act.id


def _is_it(entry: Entry, identity: bytes, mesh: MeshId | None) -> bool:
    return entry.act.id == identity and mesh in (None, entry.mesh)
