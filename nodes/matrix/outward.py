"""From acts to what people see in rooms: who speaks, how it looks, and what it hangs on.

What is put into the port's outbox is put in the transaction that hears the act, so it is said once, whatever happens.
Each event has a key, `<act>/<part>/<room>`, from which its outcome finds back to the act.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mesh.bridges.matrix.content import Mark, Relation, edit, later, message, prefixed, reaction, redaction
from mesh.bridges.matrix.port import MESSAGE, REACTION, REDACTION, MatrixPort, Speaker
from mesh.entries import Entry
from nodes.matrix.tables import BOT, Known, Tables
from nodes.runtime import RETRY
from protocol.acts import Act

FIRST: Final = "0"  # the part that is an act's first event in a room
LAST: Final = "end"  # and the one that brings the whole of what was shown while it was written
GONE: Final = "gone"
SAID: Final = frozenset({"say", "ask", "answer"})
UNSEEN: Final = frozenset({"attend", "cancel"})  # kinds that nobody needs to read
MAX_CHAIN: Final = 8  # acts that are followed to find one with an event: a reaction to a reaction, and so on

Find = Callable[[bytes], Entry | None]
Who = Callable[[str], Speaker]  # a speaker by its key


@dataclass(frozen=True, slots=True)
class Outward:
    """Shows acts in rooms. `node` is what other nodes in a room know this one by."""

    port: MatrixPort
    tables: Tables
    find: Find
    who: Who
    node: str

    def show(self, entry: Entry, speaker: str | None) -> bool:
        """Put what an act is in the rooms of its basin; returns whether anything was put. Within a transaction.

        `speaker` is the em of ours that said it, None for anybody else: the node's own user then says whose it is.
        """
        act = entry.act
        if act.kind in UNSEEN:
            return False
        came_from = {known.room for known in self.tables.events(act.id) if not known.speaker}
        put = False
        for room in self.tables.rooms_of(entry.basin):
            if room in came_from or (act.kind == "redact" and self._came_from(act, room)):
                continue
            voice = self.voice(room) if speaker is None else speaker if self.tables.sits(speaker, room) else None
            if voice is not None:
                put |= self._show_in(room, act, voice, relayed=speaker is None)
        return put

    def voice(self, room: str) -> str | None:
        """Who speaks in a room for the node: its own user, or any em that sits there."""
        joined = self.tables.joined(room)
        return BOT if BOT in joined else joined[0] if joined else None

    def draft(self, room: str, em: str, act: Act, text: str, edits: int) -> None:
        """Put the words so far of an act: its first event, or an edit of it. Within a transaction."""
        content = self._message(room, act, text, relayed=False, writing=True)
        if edits:
            content = edit(later(em, key(act.id, FIRST, room)), content)
        part = f"w{edits}" if edits else FIRST
        self.port.put(self.who(em), room, MESSAGE, content, key(act.id, part, room))
        self.tables.set_draft(act.id, room, em, edits + 1)

    def drop_draft(self, act: bytes) -> bool:
        """Take back the words so far of an act that is never said. Within a transaction."""
        found = self.tables.drafts(act)
        for room, em, _ in found:
            content = redaction(later(em, key(act, FIRST, room)), "it was not said after all")
            self.port.put(self.who(em), room, REDACTION, content, key(act, GONE, room))
            self.tables.end_draft(act, room)
        return bool(found)

    def notice(self, room: str, text: str, event_id: str) -> bool:
        """Put the node's own word about an event, which no machine should answer. Within a transaction."""
        voice = self.voice(room)
        if voice is None:
            return False
        content = message(text, relation=Relation(reply_to=event_id), notice=True)
        return self.port.put(self.who(voice), room, MESSAGE, content, f"notice/{event_id}")

    def _show_in(self, room: str, act: Act, voice: str, *, relayed: bool) -> bool:
        speaker = self.who(voice)
        if relayed and not self.port.caps.separate_identities:
            speaker = Speaker(voice, act.author)  # the port puts the name before the words
        if act.kind == "redact":
            return self._redact(room, act)
        if act.kind in {"edit", "react"}:
            target = self._event(act.refs[0], room) if act.refs else None
            if target is None:
                return False
            if act.kind == "react":
                content = reaction(target.event_id, act.text)
                return self.port.put(speaker, room, REACTION, content, key(act.id, FIRST, room))
            if target.speaker != voice:
                return False
            content = edit(target.event_id, self._message(room, act, act.text, relayed=relayed))
            return self.port.put(speaker, room, MESSAGE, content, key(act.id, FIRST, room))
        text = act.text if act.kind in SAID else f"({act.kind}) {act.text}"
        content = self._message(room, act, text, relayed=relayed)
        if self.tables.end_draft(act.id, room):
            new = edit(later(voice, key(act.id, FIRST, room)), content)
            return self.port.put(speaker, room, MESSAGE, new, key(act.id, LAST, room))
        return self.port.put(speaker, room, MESSAGE, content, key(act.id, FIRST, room))

    def _redact(self, room: str, act: Act) -> bool:
        """Take back every event that an act of ours and its edits were, in one room."""
        known = self.tables.events(act.refs[0], room) if act.refs else []
        gone = [(one.speaker, one.event_id) for one in known if one.speaker]
        if not known and act.refs and self.tables.sits(act.author, room):
            gone = [(act.author, later(act.author, key(act.refs[0], FIRST, room)))]  # said, and not sent yet
        put = False
        for speaker, event_id in gone:
            name = f"{key(act.id, GONE, room)}/{event_id}"
            put |= self.port.put(self.who(speaker), room, REDACTION, redaction(event_id, act.text), name)
        return put

    def _came_from(self, act: Act, room: str) -> bool:
        """Whether a redaction is known in a room already: what it takes back came from there."""
        return any(not known.speaker for known in self.tables.events(act.refs[0], room)) if act.refs else False

    def _message(self, room: str, act: Act, text: str, *, relayed: bool, writing: bool = False) -> dict[str, Any]:
        target = self._event(act.refs[0], room) if act.refs and act.kind != "edit" else None
        relation = Relation(target.event_id, target.thread) if target else Relation()
        answered = self.find(act.refs[0]) if target and not target.speaker else None
        people = [answered.act.author] if answered and answered.act.author.startswith("@") else []
        is_person = relayed and act.is_root and act.body.get("bot") is not True
        content = message(
            text,
            relation=relation,
            mentions=people,
            mark=None if is_person else self._mark(act, writing=writing),
            bounce=None if is_person else act.budget.hops,
        )
        return self._relayed(content, act) if relayed else content

    def _relayed(self, content: Mapping[str, Any], act: Act) -> dict[str, Any]:
        """Somebody else's words, with their name before them, for a port whose users have names of their own."""
        if not self.port.caps.separate_identities:
            return dict(content)
        return prefixed(content, act.author, act.author)

    def _mark(self, act: Act, *, writing: bool) -> Mark:
        """How other nodes know the act: the root that all share, and the hops from there."""
        root = self.find(act.root)
        begun = root.act.budget.hops if root else act.budget.hops
        shared, before = self.tables.chain(act.root) or (act.root, 0)
        return Mark(act.id, shared, before + max(0, begun - act.budget.hops), self.node, writing)

    def _event(self, act: bytes, room: str) -> Known | None:
        """The event in a room that stands for an act; for a reaction, for what it is about or wants tried again."""
        for _ in range(MAX_CHAIN):
            entry = self.find(act)
            if entry is None or entry.act.kind != "react" or not entry.act.refs:
                found = self.tables.events(act, room)
                return found[0] if found else None
            act = entry.act.refs[0]
            tried = self.find(act) if entry.act.body.get("do") == RETRY else None
            if tried and tried.act.refs:
                act = tried.act.refs[0]
        return None


def key(act: bytes, part: str, room: str) -> str:
    """The outbox's key of one event of an act."""
    return f"{act.hex()}/{part}/{room}"


def read_key(text: str) -> tuple[bytes, str, str] | None:
    """The act, part and room of a key; None for a key of something else."""
    act, _, rest = text.partition("/")
    part, _, room = rest.partition("/")
    try:
        return (bytes.fromhex(act), part, room) if room else None
    except ValueError:
        return None
