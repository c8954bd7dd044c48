"""From acts to what people see in rooms: who speaks, how it looks, and what it hangs on.

What is put into the port's outbox is put in the transaction that hears the act, so it is said once, whatever happens.
Each event has a key, `<act>/<part>/<room>`, from which its outcome finds back to the act.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from mesh.bridges.matrix.content import Mark, Relation, edit, later, message, prefixed, reaction, redaction
from mesh.bridges.matrix.errors import MatrixFull
from mesh.bridges.matrix.port import MESSAGE, REACTION, REDACTION, MatrixPort, Speaker
from mesh.entries import Entry
from nodes.matrix.tables import BOT, Known, Tables
from nodes.runtime import RETRY
from protocol.acts import Act, ActId
from protocol.husk import is_husk
from protocol.keys import MeshId, fingerprint

FIRST: Final = "0"  # the part that is an act's first event in a room
LAST: Final = "end"  # and the one that brings the whole of what was shown while it was written
GONE: Final = "gone"
NODE_CHARS: Final = 12  # of the mesh's id in marks: enough for a person to tell nodes apart
SAID: Final = frozenset({"say", "ask", "answer"})
UNSEEN: Final = frozenset({"attend", "cancel"})  # kinds that nobody needs to read
MAX_CHAIN: Final = 8  # acts that are followed to find one with an event: a reaction to a reaction, and so on
MAX_TALK: Final = 100  # answers of ems to one another that are followed back to a person's, whose thread they are in

IsTwin = Callable[[bytes, MeshId], bool]  # whether another mesh was heard under an id before this one was
Who = Callable[[str], Speaker]  # a speaker by its key


class Find(Protocol):
    """An act by its id: that of a mesh, or the one that was heard first."""

    def __call__(self, identity: bytes, mesh: MeshId | None = None, /) -> Entry | None:
        """The act, if it is kept."""
        ...


@dataclass(frozen=True, slots=True)
class Outward:
    """Shows acts in rooms. `mesh` is whose node this is."""

    port: MatrixPort
    tables: Tables
    find: Find
    who: Who
    mesh: MeshId
    is_twin: IsTwin

    def show(self, entry: Entry, speaker: str | None) -> bool:
        """Put what an act is in the rooms of its basin; returns whether anything was put. Within a transaction.

        Raises MatrixFull when a room takes no more, once the others have it.

        `speaker` is the em of ours that said it, None for anybody else. The node's own user speaks for whoever does not
        sit in a room, and says whose words they are.
        """
        if is_husk(entry.act):
            return self.drop_draft(entry.act.id)  # it was taken back while it was on its way
        if entry.act.kind in UNSEEN or not self._may(entry):
            return False
        entry = self._told_apart(entry)
        act = entry.act
        came_from = {known.room for known in self.tables.events(act.id) if not known.speaker}
        put, rooms = False, self.rooms(entry.basin)
        for room in {room for room, _, _ in self.tables.drafts(act.id)}.difference(rooms):
            put |= self._drop_draft(room, act.id)  # since it was begun, another room of the basin became encrypted
        full: MatrixFull | None = None
        for room in self._shown_in(act.refs[0]) if act.kind == "redact" else rooms:
            if room in came_from or (act.kind == "redact" and self._came_from(act, room)):
                continue
            try:
                if act.kind == "redact":
                    reason = act.text if room in rooms else ""  # said where that room hears nothing
                    put |= self._take_back(room, act.refs[0], reason, key(act.id, GONE, room))
                elif (voice := self._voice_of(speaker, act, room)) is not None:
                    put |= self._show_in(room, entry, voice, relayed=voice != speaker)
                else:
                    self.tables.end_draft(act.id, room)  # it was put out while it wrote
            except MatrixFull as error:
                full = error  # of this room, or of its account: others may have a place
        if full is not None:
            raise full
        return put

    def _may(self, entry: Entry) -> bool:
        """Whether somebody may change what an act is about: only whoever said that, of the same mesh."""
        if entry.act.kind not in {"edit", "redact"}:
            return True
        target = self.find(entry.act.refs[0], entry.mesh) if entry.act.refs else None
        return target is not None and target.act.author == entry.act.author

    def _told_apart(self, entry: Entry) -> Entry:
        """An act with ids by which rooms can tell it from what others said under the same ones."""
        act = entry.act
        identity = self._known_as(act.id, entry.mesh)
        refs = list(act.refs)
        if act.kind in {"edit", "redact"} and refs:
            refs[0] = self._known_as(refs[0], entry.mesh)
        if identity == act.id and refs == list(act.refs):
            return entry
        root = identity if act.is_root else act.root
        return entry._replace(act=msgspec.structs.replace(act, id=identity, root=root, refs=refs))

    def _known_as(self, identity: ActId, mesh: MeshId) -> ActId:
        """Our own acts keep their ids: others may have copied them from our drafts."""
        if mesh == self.mesh or not (self.is_twin(identity, mesh) or self.tables.is_turn(identity)):
            return identity
        return ActId(self.tables.alias(identity, mesh))

    def rooms(self, basin: str) -> list[str]:
        """The rooms that are shown what is said in a basin: the encrypted ones alone, if there are any."""
        rooms = self.tables.rooms_of(basin)
        sealed = [room for room in rooms if self.port.inbox.is_encrypted(room)]
        return sealed or rooms

    def voice(self, room: str) -> str | None:
        """Who speaks in a room for the node: its own user, or any em that sits there."""
        joined = self.tables.joined(room)
        return BOT if BOT in joined else joined[0] if joined else None

    def _voice_of(self, speaker: str | None, act: Act, room: str) -> str | None:
        """Who says in a room what somebody has said, an em of ours or not; nobody for an em that was put out there.

        Whoever said there what is edited says the edit as well: no homeserver takes it from anybody else.
        """
        if speaker is not None and self.tables.knows(speaker, room) and not self.tables.sits(speaker, room):
            return None
        said = self._event(act.refs[0], room) if act.kind == "edit" and act.refs else None
        if said and said.speaker and self.tables.sits(said.speaker, room):
            return said.speaker
        return speaker if speaker is not None and self.tables.sits(speaker, room) else self.voice(room)

    def _shown_in(self, act: bytes) -> set[str]:
        """The rooms where an act was shown, or will be."""
        return {one.room for one in (*self.tables.events(act), *self.port.outbox.pending(f"{act.hex()}/"))}

    def draft(self, room: str, em: str, act: Act, text: str, edits: int) -> None:
        """Put the words so far of an act: its first event, or an edit of it. Within a transaction."""
        content = self._message(room, act, text, writing=True)
        if edits:
            content = edit(later(em, key(act.id, FIRST, room)), content)
        part = f"w{edits}" if edits else FIRST
        self.port.put(self.who(em), room, MESSAGE, content, key(act.id, part, room))
        self.tables.set_draft(act.id, room, em, edits + 1)

    def drop_draft(self, act: bytes) -> bool:
        """Take back the words so far of an act that is never said. Within a transaction."""
        found = self.tables.drafts(act)
        for room, _, _ in found:
            self._drop_draft(room, act)
        return bool(found)

    def _drop_draft(self, room: str, act: bytes) -> bool:
        self.tables.end_draft(act, room)
        # Under a key that is none of the act's: else taking it back in the next room would cancel this.
        return self._take_back(room, act, "it was not said after all", f"{GONE}/{act.hex()}/{room}")

    def notice(self, room: str, text: str, event_id: str) -> bool:
        """Put the node's own word about an event, which no machine should answer. Within a transaction."""
        voice = self.voice(room)
        if voice is None:
            return False
        content = message(text, relation=Relation(reply_to=event_id), notice=True)
        return self.port.put(self.who(voice), room, MESSAGE, content, f"notice/{event_id}")

    def _show_in(self, room: str, entry: Entry, voice: str, *, relayed: bool) -> bool:
        act, name = entry.act, self._name(entry) if relayed else None
        speaker = self.who(voice)
        if name and not self.port.caps.separate_identities:
            speaker = Speaker(voice, name)  # the port puts the name before the words
        if act.kind in {"edit", "react"}:
            target = self._event(act.refs[0], room) if act.refs else None
            if target is None:
                return False
            if act.kind == "react":
                content = reaction(target.event_id, act.text)
                return self.port.put(speaker, room, REACTION, content, key(act.id, FIRST, room))
            if target.speaker != voice:
                return False
            content = edit(target.event_id, self._message(room, act, act.text, relayed=name))
            return self.port.put(speaker, room, MESSAGE, content, key(act.refs[0], act.id.hex(), room))
        text = act.text if act.kind in SAID else f"({act.kind}) {act.text}"
        content = self._message(room, act, text, relayed=name)
        if self.tables.end_draft(act.id, room):
            begun = self.port.outbox.outcome(voice, key(act.id, FIRST, room))
            is_there = begun is None or begun.event_id is not None  # else it was refused; the whole may have more luck
            new = edit(later(voice, key(act.id, FIRST, room)), content) if is_there else content
            return self.port.put(speaker, room, MESSAGE, new, key(act.id, LAST, room))
        return self.port.put(speaker, room, MESSAGE, content, key(act.id, FIRST, room))

    def _take_back(self, room: str, act: bytes, reason: str, name: str) -> bool:
        """Take back every event that an act and its edits are in one room, or would have been.

        For one who sits there no more the node's own user does, if it may.
        """
        on_the_way = [one for one in self.port.outbox.cancel_prefix(f"{act.hex()}/") if one.room == room]
        gone = [(known.speaker, known.event_id) for known in self.tables.events(act, room) if known.speaker]
        gone += [(one.speaker, later(one.speaker, one.key)) for one in on_the_way]
        put = False
        for speaker, event_id in gone:
            content = redaction(event_id, reason)
            voice = speaker if self.tables.sits(speaker, room) else self.voice(room) or speaker
            put |= self.port.put(self.who(voice), room, REDACTION, content, f"{name}/{event_id}")
        return put

    def _came_from(self, act: Act, room: str) -> bool:
        """Whether a redaction is known in a room already: what it takes back came from there."""
        return any(not known.speaker for known in self.tables.events(act.refs[0], room)) if act.refs else False

    def _name(self, entry: Entry) -> str:
        """How somebody is called who speaks through the node's user; nobody of another mesh as one of our ems."""
        own = entry.mesh == self.mesh
        return entry.act.author if own else f"{entry.act.author}~{fingerprint(entry.mesh)}"

    def _message(
        self, room: str, act: Act, text: str, *, relayed: str | None = None, writing: bool = False
    ) -> dict[str, Any]:
        """The content of an act. `relayed`: whose words these are, when the node's user speaks them."""
        target = self._event(act.refs[0], room) if act.refs and act.kind != "edit" else None
        relation = Relation(target.event_id, self._thread(target)) if target else Relation()
        answered = self.find(act.refs[0]) if target and not target.speaker else None
        people = [answered.act.author] if answered and answered.act.author.startswith("@") else []
        is_bot = act.body.get("bot") is True
        is_person = relayed is not None and act.is_root and not is_bot
        content = message(
            text,
            relation=relation,
            mentions=people,
            mark=self._mark(act, writing=writing, person=is_person),
            bounce=None if is_person else act.budget.hops,
            notice=relayed is not None and is_bot and "quiet" in act.body,  # nor are other rooms' machines to answer it
        )
        # Somebody else's words have their name before them, where the port does not put it there.
        return prefixed(content, relayed, relayed) if relayed and self.port.caps.separate_identities else content

    def _mark(self, act: Act, *, writing: bool, person: bool) -> Mark:
        """How other nodes know the act: the root that all share, and the hops from there; to be relayed is one."""
        root, chained = self.find(act.root), self.tables.chain(act.root)
        begun = root.act.budget.hops if root else act.budget.hops
        shared, before = (chained.shared, chained.hops) if chained else (act.root, 0)
        known_as = chained.elsewhere if chained and act.is_root else act.id
        hops = before + max(0, begun - act.budget.hops) + person
        return Mark(known_as, shared, hops, self.mesh[:NODE_CHARS], writing, person)

    def _event(self, act: bytes, room: str) -> Known | None:
        """The event in a room that stands for an act; for a reaction, for what it is about or wants tried again."""
        for _ in range(MAX_CHAIN):
            entry = self.find(act)
            if entry is None or entry.act.kind != "react" or not entry.act.refs:
                return self._standing(act, room)
            act = entry.act.refs[0]
            tried = self.find(act) if entry.act.body.get("do") == RETRY else None
            if tried and tried.act.refs:
                act = tried.act.refs[0]
        return None

    def _thread(self, known: Known) -> str | None:
        """The thread that an event is in: ours are in that of what they answer."""
        for _ in range(MAX_TALK):
            entry = self.find(ActId(known.act)) if known.speaker else None
            before = self._event(entry.act.refs[0], known.room) if entry and entry.act.refs else None
            if before is None:
                break
            known = before
        return known.thread

    def _standing(self, act: bytes, room: str) -> Known | None:
        """The first event of an act in a room, or the one that waits to be sent."""
        found = self.tables.events(act, room)
        if found:
            return found[0]
        waiting = self.port.outbox.pending(key(act, FIRST, room))
        return (
            Known(later(waiting[0].speaker, waiting[0].key), room, act, waiting[0].speaker, None) if waiting else None
        )


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
