"""From what people do in rooms to acts: who said what, about what, and whether anybody is to answer.

An event becomes its acts in one transaction with the note that it was handled. Nothing here waits, and nothing here
trusts an event: it may claim any time, any sender's words and any relation.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from mesh.bridges.matrix.content import ACT_BYTES
from mesh.bridges.matrix.inbox import Inbound
from mesh.bridges.matrix.reading import Heard
from nodes.chains import STOPPED
from nodes.config import Budget as Minted
from nodes.matrix.settings import WINDOW_MINUTES, Control, Matrix, fits
from nodes.matrix.tables import Chained, Known, Tables
from protocol.acts import RANDOM_BYTES, Act, ActId, new_id
from protocol.budget import Budget
from protocol.husk import is_husk
from protocol.vocabulary import MAX_TEXT

MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * 60 * MINUTE_MS
UNREAD: Final = "[an encrypted message that cannot be read here yet]"
TAKEN_BACK: Final = "taken back"

Find = Callable[[bytes], Act | None]  # an act that is kept, or said and not heard yet
Used = Callable[[bytes], tuple[int, int]]  # acts and tokens that a chain of ours has used, by its root


@dataclass(frozen=True, slots=True)
class Scene:
    """Where an event happened. `ems` sit there, the `able` may speak, `users` are their Matrix users.

    `minted` is what a chain begins with; `called` tells whether a text names one of the ems, `echoes` whether
    one of them said it just so. `alone` is the em that a person is alone with: whatever is said there is said to it.
    """

    basin: str
    now_ms: int
    ems: frozenset[str]
    able: frozenset[str]
    users: Mapping[str, str]
    minted: Minted
    settings: Matrix
    called: Callable[[str], bool]
    echoes: Callable[[str], bool]
    alone: str | None = None


@dataclass(frozen=True, slots=True)
class Inward:
    """Makes acts of events. `key` is the node's own, so that nobody else can tell an act's id beforehand."""

    key: bytes
    tables: Tables
    find: Find
    used: Used

    def message(self, event: Inbound, heard: Heard, scene: Scene, media: Sequence[Mapping[str, Any]] = ()) -> list[Act]:
        """The acts of a message: one, or none for what is not for us to know."""
        if heard.mark and heard.mark.writing:
            self.tables.begin(event.event_id, event.sender, heard.mark.act)
            return []
        known = self.tables.event(heard.edits) if heard.edits else None
        if heard.edits and known:
            return self._edit(event, heard, known, scene)
        if heard.mark and self.tables.is_anothers(heard.mark.act, event.sender):
            return []  # whoever is still writing it has shown its id to everybody
        if heard.edits and not (heard.mark and self.tables.ends(heard.edits, event.sender)):
            return []  # of something said before we came
        if heard.mark and self.tables.came(heard.mark.act):
            return []  # it came another way: heard in the room where it was said, or our own, relayed by another node
        return self._said(event, heard, scene, media)

    def _said(self, event: Inbound, heard: Heard, scene: Scene, media: Sequence[Mapping[str, Any]]) -> list[Act]:
        is_bot = self._is_bot(event, heard, scene)
        quiet = self._quiet(event, heard, scene, is_bot=is_bot)
        to = [scene.users[user] for user in heard.mentions if user in scene.users]
        if scene.alone and not to and not is_bot:
            to = [scene.alone]
        in_thread = heard.thread is not None and heard.reply_to is None
        facts = {"media": list(media), "bot": is_bot, "to": to, "quiet": quiet, "thread": in_thread}
        body = {"text": _text(heard)} | {name: value for name, value in facts.items() if value}
        act = self._act(event, "say", self._refs(heard, event.room), body, scene, "late" if event.late else "")
        act = self._chained(act, event, heard)
        self.tables.note(Known(heard.edits or event.event_id, event.room, act.id, "", heard.thread))
        if not is_bot and not quiet:
            self.tables.person_spoke(event.room, scene.now_ms)
        return [act]

    def opened(self, event: Inbound, scene: Scene) -> list[Act] | None:
        """What retires the act that stood for an event that could not be read; None when that was redacted since."""
        known = self.tables.event(event.event_id)
        stood = self.find(known.act) if known else None
        if known is None or stood is None:
            return []
        if stood.text != UNREAD:
            return None
        self.tables.forget_event(event.event_id)
        return self._taken_back(known, event, scene, "unread")

    def reaction(self, event: Inbound, heard: Heard, scene: Scene) -> list[Act]:
        """The acts of a reaction: `react`, or what it asks for as a control."""
        known = self.tables.event(heard.reacts_to or "")
        if known is None or known.room != event.room:
            return []
        asked = (
            None
            if self._is_bot(event, heard, scene) or self._age(event, scene)
            else self._asked(event, heard, known, scene)
        )
        if asked == "stop":
            return [self._act(event, "cancel", [], {"text": STOPPED}, scene)]
        more = {"do": asked} if asked else {}
        act = self._act(event, "react", [ActId(known.act)], {"text": heard.text, **more}, scene)
        if asked in {"retry", "continue"}:
            act = self._within(act, known)
            if act.budget.spent(scene.now_ms):  # nobody would write: then nothing is taken back either
                act, asked = msgspec.structs.replace(act, body={"text": heard.text}), None
        self.tables.note(Known(event.event_id, event.room, act.id, "", None))
        before = self._taken_back(known, event, scene, "retry") if asked == "retry" else []
        return [*before, act]

    def redaction(self, event: Inbound, scene: Scene) -> list[Act]:
        """The act that takes back what a redacted event stood for, in the name of whoever said it.

        The homeserver has checked who may redact; the act's author is the author of what is taken back.
        """
        known = self.tables.event(event.redacts or "")
        if known is None or known.room != event.room:
            return []
        return self._taken_back(known, event, scene, "")

    def unreadable(self, event: Inbound, scene: Scene) -> list[Act]:
        """The act that stands for an encrypted message until its key comes."""
        if self.tables.event(event.event_id):
            return []
        act = self._act(event, "say", [], {"text": UNREAD, "quiet": "it cannot be read"}, scene)
        self.tables.note(Known(event.event_id, event.room, act.id, "", None))
        return [act]

    def command(self, event: Inbound, kind: str, body: dict[str, Any], scene: Scene) -> Act:
        """The act of a command that a person gave in a room; it is nothing to be shown there."""
        act = self._act(event, kind, [], body, scene)
        self.tables.note(Known(event.event_id, event.room, act.id, "", None))
        return act

    def is_person(self, event: Inbound, heard: Heard, scene: Scene) -> bool:
        """Whether a person said it, and not too long ago to be followed."""
        return not (self._is_bot(event, heard, scene) or self._age(event, scene))

    def _edit(self, event: Inbound, heard: Heard, known: Known, scene: Scene) -> list[Act]:
        """Only the sender edits; homeservers do not check it."""
        said = self.find(known.act)
        if said is None or said.author != event.sender or known.room != event.room:
            return []
        act = self._act(event, "edit", [ActId(known.act)], {"text": _text(heard)}, scene)
        self.tables.note(Known(event.event_id, event.room, act.id, "", None))
        return [act]

    def _taken_back(self, known: Known, event: Inbound, scene: Scene, why: str) -> list[Act]:
        said = self.find(known.act)
        author = said.author if said else known.speaker  # ours is still being written: it is gone once it is said
        if not author or (said and said.kind == "redact"):
            return []
        act = self._act(event, "redact", [ActId(known.act)], {"text": TAKEN_BACK, "by": event.sender}, scene, why)
        return [_by(act, author)]

    def _asked(self, event: Inbound, heard: Heard, known: Known, scene: Scene) -> Control | None:
        """What a reaction asks for; another try and going on are for what an em of ours said."""
        asked = scene.settings.controls.meant(heard.text)
        if asked not in {"retry", "continue"}:
            return asked
        said = self.find(known.act)
        if known.speaker not in scene.able or said is None or is_husk(said) or not self.has_turns(event, scene):
            return None
        return asked

    def has_turns(self, event: Inbound, scene: Scene) -> bool:
        """Whether a person may have ems write once more this minute and this day; counts it."""
        now, settings = scene.now_ms, scene.settings
        this_minute = self.tables.heed(event.sender, now, MINUTE_MS, settings.messages_per_minute)
        return this_minute and self.tables.heed(f"today {event.sender}", now, DAY_MS, settings.messages_per_day)

    def _within(self, act: Act, known: Known) -> Act:
        """A reaction that has an em write once more spends what the talk that it is about has left, and no more."""
        said = self.find(known.act)
        chained = self.tables.chain(said.root) if said else None
        if said is None:
            return act
        shared = chained or Chained(said.root, 0, said.root)
        self.tables.set_chain(said.root, shared)
        self.tables.set_chain(act.id, Chained(shared.shared, 0, act.id))
        return self._limited(act, shared.shared)

    def _refs(self, heard: Heard, room: str) -> list[ActId]:
        """What a message answers: the event it replies to, else the first of its thread."""
        for event_id in (heard.reply_to, heard.thread):
            known = self.tables.event(event_id) if event_id else None
            if known and known.room == room:
                return [ActId(known.act)]
        return []

    def _is_bot(self, event: Inbound, heard: Heard, scene: Scene) -> bool:
        machine = heard.notice or heard.bounce is not None or (heard.mark is not None and not heard.mark.person)
        return machine or fits(event.sender, scene.settings.bots) or scene.echoes(heard.text)

    def _age(self, event: Inbound, scene: Scene) -> str | None:
        if event.at_ms < scene.now_ms - scene.settings.answer_within_minutes * MINUTE_MS:
            return "it was said too long ago"
        return None

    def _quiet(self, event: Inbound, heard: Heard, scene: Scene, *, is_bot: bool) -> str | None:
        """Why nobody is to answer a message, or None."""
        if heard.notice:
            return "a notice needs no answer"
        if age := self._age(event, scene):
            return age
        settings, now = scene.settings, scene.now_ms
        if not is_bot:
            if self.has_turns(event, scene):
                return None
            return f"more than {settings.messages_per_minute} messages a minute, or {settings.messages_per_day} a day"
        if not any(user in scene.users for user in heard.mentions) and not scene.called(heard.text):
            return None  # nobody is called: `decide` says so, and it costs the machine nothing
        if not self.tables.heed(f"machine {event.sender}", now, WINDOW_MINUTES * MINUTE_MS, settings.bot_messages):
            return f"a machine's {settings.bot_messages} messages in {WINDOW_MINUTES} minutes are used up"
        if self.tables.spent_since_person(event.room, scene.basin) >= settings.room_tokens:
            return f"the room's {settings.room_tokens} tokens are spent until a person speaks"
        return None

    def _chained(self, act: Act, event: Inbound, heard: Heard) -> Act:
        """Note the chain that an act belongs to among all nodes in the room, and leave it what that has left."""
        begun = shared_root(heard.edits or event.event_id)
        chained = Chained(heard.mark.root, heard.mark.hops, heard.mark.act) if heard.mark else Chained(begun, 0, begun)
        limited = self._limited(act, chained.shared)
        budget = limited.budget
        left = budget.hops - chained.hops if heard.bounce is None else min(budget.hops - chained.hops, heard.bounce)
        self.tables.set_chain(act.id, chained)
        return msgspec.structs.replace(limited, budget=msgspec.structs.replace(budget, hops=max(0, left)))

    def _limited(self, act: Act, shared: bytes) -> Act:
        """An act with what a chain that all nodes share has left, as far as is known here."""
        before = self.tables.chains_of(shared)
        used = [self.used(root) for root in before]
        acts = act.budget.acts - len(before) - sum(acts for acts, _ in used)
        tokens = act.budget.tokens - sum(tokens for _, tokens in used)
        budget = Budget(act.budget.hops, max(0, acts), max(0, tokens), act.budget.until_ms)
        return msgspec.structs.replace(act, budget=budget)

    def _act(  # noqa: PLR0913, PLR0917 - what an act is made of
        self, event: Inbound, kind: str, refs: list[ActId], body: dict[str, Any], scene: Scene, what: str = ""
    ) -> Act:
        """A root act in the sender's name. The same event gives the same id, whenever and however it comes."""
        named = f"{event.event_id}/{kind}/{what}".encode("utf-8", "replace")
        at_ms = min(event.at_ms or scene.now_ms, scene.now_ms)
        identity = new_id(at_ms, hashlib.blake2b(named, digest_size=RANDOM_BYTES, key=self.key).digest())
        minted = scene.minted
        until = scene.now_ms + int(minted.minutes * MINUTE_MS)
        budget = Budget(minted.hops, minted.acts, minted.tokens, until)
        return Act(identity, kind, event.sender, refs, identity, budget, at_ms, body)


def shared_root(event_id: str) -> bytes:
    """The root that all nodes in a room give to the chain which an event begins: 16 bytes."""
    return hashlib.blake2b(event_id.encode("utf-8", "replace"), digest_size=ACT_BYTES).digest()


def _text(heard: Heard) -> str:
    return (f"*{heard.text}*" if heard.emote else heard.text)[:MAX_TEXT]


def _by(act: Act, author: str) -> Act:
    return msgspec.structs.replace(act, author=author)
