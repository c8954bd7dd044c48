"""Building the contents of events. Pure: texts in, JSON objects out, never longer than an event may be.

Recipes follow the Matrix specification (client-server API, "Instant messaging", "Rich replies", "Threading", "Event
replacements") and MSC4144 for names of speakers that share an account.
"""

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

from mesh.words import plain

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MARK: Final = "org.ampmesh.act"
MARK_VERSION: Final = 1
BOUNCE: Final = "m.bounce_limit"  # MSC4295: how many more answers by machines a message may have
MAX_BODY: Final = 60_000  # characters of a message; the homeserver takes 64 KiB an event, its own fields included
MAX_CONTENT: Final = 61_000  # bytes of a content: leaves 4.5 KiB for signatures, hashes and the speaker's name
MAX_HTML_TEXT: Final = 10_000  # characters that are rendered: body and HTML share an event, and rendering takes time
MAX_FALLBACK: Final = 500  # characters of an edit that clients show which know no edits
MAX_MENTIONS: Final = 50  # users that one message calls: 255 bytes each at worst
MAX_NAME: Final = 100  # characters of a speaker's name before its words
MAX_REACTION: Final = 60  # characters of a reaction: an emoji or a short word
CUT: Final = "\n[… cut here: too long for one message]"
LINKS: Final = frozenset({"http", "https", "mailto"})
LATER: Final = "later:"  # no event's id begins so
ACT_BYTES: Final = 16  # of an act's id
PROFILE: Final = "com.beeper.per_message_profile"  # MSC4144 while it is unstable


@dataclass(frozen=True, slots=True)
class Mark:
    """What tells that a message is an act of a mesh: ids, how many hops it has gone, which node says so. Not proof.

    `writing`: these are words so far, and an edit will bring the whole. `person`: a person said it, in another room.
    """

    act: bytes
    root: bytes
    hops: int
    node: str
    writing: bool = False
    person: bool = False

    def value(self) -> dict[str, Any]:
        """As it stands in an event."""
        told = {"v": MARK_VERSION, "act": self.act.hex(), "root": self.root.hex(), "hops": self.hops, "node": self.node}
        facts = {"writing": self.writing, "person": self.person}
        return told | {name: True for name, holds in facts.items() if holds}


@dataclass(frozen=True, slots=True)
class Relation:
    """What a message hangs on: the event it replies to, the thread it is in (the id of the thread's first event)."""

    reply_to: str | None = None
    thread: str | None = None

    def value(self) -> dict[str, Any]:
        """As it stands in an event; empty when it hangs on nothing."""
        reply = {"m.in_reply_to": {"event_id": self.reply_to}} if self.reply_to else {}
        if not self.thread:
            return reply
        latest = {"m.in_reply_to": {"event_id": self.reply_to or self.thread}}
        return {"rel_type": "m.thread", "event_id": self.thread, "is_falling_back": not self.reply_to} | latest


NOWHERE: Final = Relation()


def message(  # noqa: PLR0913 - a message has these parts, and most have few
    text: str,
    *,
    relation: Relation = NOWHERE,
    mentions: Sequence[str] = (),
    mark: Mark | None = None,
    bounce: int | None = None,
    notice: bool = False,
) -> dict[str, Any]:
    """A message: Markdown as written, and as HTML when it is short enough. What is too long is cut, and says so.

    `m.mentions` is always there, so that a name in the text pings nobody by accident. `notice` is for what no bot
    should answer; `bounce` tells how often bots may still answer one another.
    """
    content: dict[str, Any] = {
        "msgtype": "m.notice" if notice else "m.text",
        "body": "",
        "m.mentions": {"user_ids": list(mentions[:MAX_MENTIONS])} if mentions else {},
    }
    if related := relation.value():
        content["m.relates_to"] = related
    if mark:
        content[MARK] = mark.value()
    if bounce is not None:
        content[BOUNCE] = bounce
    content["body"] = fit(clean(text), MAX_CONTENT - size(content))
    rich = render(content["body"])
    if rich:
        formatted = content | {"format": "org.matrix.custom.html", "formatted_body": rich}
        content = formatted if size(formatted) <= MAX_CONTENT else content
    return content


def edit(event_id: str, new: Mapping[str, Any]) -> dict[str, Any]:
    """The replacement of an event by a new message, which `message` built without a relation."""
    body = fit(f"* {new['body']}"[:MAX_FALLBACK], MAX_CONTENT)
    outer: dict[str, Any] = {
        "msgtype": new["msgtype"],
        "body": body,
        "m.mentions": {},  # who was mentioned was pinged already
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }
    outer |= {key: new[key] for key in (MARK, BOUNCE) if key in new}
    inner = {key: value for key, value in new.items() if key not in {"m.relates_to", MARK, BOUNCE}}
    room = MAX_CONTENT - size(outer | {"m.new_content": {}})
    if size(inner) > room:
        inner = {key: value for key, value in inner.items() if key not in {"format", "formatted_body"}}
    if size(inner) > room:
        inner["body"] = fit(inner["body"], room - size(inner | {"body": ""}))
    return outer | {"m.new_content": inner}


def reaction(event_id: str, key: str) -> dict[str, Any]:
    """The content of an `m.reaction`: an emoji or a short word at an event."""
    return {"m.relates_to": {"rel_type": "m.annotation", "event_id": event_id, "key": clean(key)[:MAX_REACTION]}}


def is_worded(content: Mapping[str, Any]) -> bool:
    """Whether a reaction says more than a picture: two letters or digits. Total."""
    related = content.get("m.relates_to")
    key = cast("Mapping[str, object]", related).get("key") if isinstance(related, Mapping) else None
    return isinstance(key, str) and sum(c.isalnum() for c in key) > 1


def redaction(event_id: str, reason: str = "") -> dict[str, Any]:
    """The content of an `m.room.redaction` as the outbox takes it."""
    return {"redacts": event_id} | ({"reason": clean(reason)[:MAX_FALLBACK]} if reason else {})


def later(speaker: str, key: str) -> str:
    """Stands for the id of an event that the same speaker or another put before, in relations and redactions.

    Its id need not be known yet: it is looked up when the event that refers to it is sent.
    """
    return f"{LATER}{speaker}/{key}"


def resolve(content: Mapping[str, Any], lookup: Callable[[str, str], str | None]) -> dict[str, Any] | None:
    """Content with the ids of events for every `later`, from `lookup(speaker, key)`; None when it is nothing without.

    A reply to what was never sent is an ordinary message; an edit, reaction or redaction of it is nothing.
    """
    whole = dict(content)
    related = dict(whole.get("m.relates_to", {}))
    answered = related.get("m.in_reply_to", {}).get("event_id")
    if answered is not None:
        found = _found(answered, lookup)
        related["m.in_reply_to"] = {"event_id": found}
        if found is None:
            del related["m.in_reply_to"]
    for holder, name in ((related, "event_id"), (whole, "redacts")):
        if name in holder:
            holder[name] = _found(holder[name], lookup)
            if holder[name] is None:
                return None
    if related:
        return whole | {"m.relates_to": related}
    whole.pop("m.relates_to", None)
    return whole


def _found(event_id: str, lookup: Callable[[str, str], str | None]) -> str | None:
    if not event_id.startswith(LATER):
        return event_id
    speaker, _, key = event_id[len(LATER) :].partition("/")
    return lookup(speaker, key)


def prefixed(content: Mapping[str, Any], key: str, name: str, avatar: str | None = None) -> dict[str, Any]:
    """A message under a shared account: the speaker's name before its words, in the way of MSC4144.

    Clients that know the proposal show the profile and hide the prefix; so it is exactly as the proposal has it.
    """
    shown = plain(clean(name), MAX_NAME) or key  # one line, in the direction that it seems to have
    dressed = dict(content)
    profile = {"id": key, "displayname": shown, "has_fallback": True} | ({"avatar_url": avatar} if avatar else {})
    new = content.get("m.new_content")
    if isinstance(new, Mapping):
        dressed["m.new_content"] = prefixed(new, key, name, avatar)  # pyright: ignore[reportUnknownArgumentType] - ours
        dressed["body"] = f"{shown}: {content['body']}"
        return dressed
    rich = content.get("formatted_body") or f"<p>{html.escape(content['body'], quote=False)}</p>".replace("\n", "<br>")
    dressed["body"] = f"{shown}: {content['body']}"
    dressed[PROFILE] = profile
    strong = f"<strong data-mx-profile-fallback>{html.escape(shown)}: </strong>"
    formatted = {"format": "org.matrix.custom.html", "formatted_body": _inside(rich, strong)}
    if size(dressed | formatted) <= MAX_CONTENT:
        return dressed | formatted
    dressed.pop("formatted_body", None)
    dressed.pop("format", None)
    return dressed


def _inside(rich: str, start: str) -> str:
    """HTML with something at its start, in the first paragraph if that is what it starts with."""
    return f"<p>{start}{rich[3:]}" if rich.startswith("<p>") else start + rich


def clean(text: str) -> str:
    """Text that any client can take: half characters replaced, control characters but tabs and line breaks dropped."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c for c in whole if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


def size(content: Mapping[str, Any]) -> int:
    """Bytes of a content as the homeserver counts them: canonical JSON."""
    return len(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())


def fit(text: str, room: int) -> str:
    """A text of at most MAX_BODY characters and `room` bytes of JSON; what is cut ends with a mark."""
    if len(text) <= MAX_BODY and _bytes(text) <= room:
        return text
    low, high = 0, min(len(text), MAX_BODY - len(CUT))
    while low < high:  # the longest beginning that has room
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _bytes(text[:middle] + CUT) <= room else (low, middle - 1)
    return text[:low] + CUT


def _bytes(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def render(text: str) -> str:
    """Markdown as HTML of a few harmless tags; empty when the text is plain, or too long to render.

    HTML in the text is shown as it stands; images are not loaded; links lead to LINKS only.
    """
    if len(text) > MAX_HTML_TEXT:
        return ""
    rendered: str = _markdown().render(text).strip()
    bare = rendered.removeprefix("<p>").removesuffix("</p>")
    if "<" not in bare:
        return ""  # nothing but one paragraph: the body says it all
    return rendered


@cache
def _markdown() -> "MarkdownIt":
    """The CommonMark subset; loaded when the first message is built."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    parser.disable(["image", "html_block", "html_inline"]).enable(["strikethrough", "table"])
    parser.validateLink = _is_harmless
    return parser


def _is_harmless(url: str) -> bool:
    try:
        return urlsplit(url).scheme.lower() in LINKS
    except ValueError:
        return False
