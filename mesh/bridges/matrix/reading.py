"""Reading the contents of events. Pure and total: any JSON object gives a value or None, and never an error."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from mesh.bridges.matrix.content import ACT_BYTES, BOUNCE, MARK, MARK_VERSION, MAX_BODY, Mark, clean, fit
from mesh.bridges.matrix.port import MESSAGE, REACTION
from mesh.bridges.matrix.shape import as_dict

MAX_HTML: Final = 65_536  # characters of HTML that are read; an event is not longer
MAX_TEXT_BYTES: Final = 4 * MAX_BODY  # of a text once read
MAX_MENTIONS: Final = 100  # users that one message can call
MAX_ID: Final = 255  # characters of an event or user id
MAX_KEY: Final = 60  # characters of a reaction
MAX_NODE: Final = 100  # characters of a node's name
MAX_HOPS: Final = 1_000  # any chain is over long before
MAX_FILE: Final = 2**53  # bytes that a file may claim to be
FILES: Final = frozenset({"m.image", "m.file", "m.audio", "m.video"})
MXC: Final = re.compile(r"mxc://[A-Za-z0-9.:\[\]_-]{1,255}/[A-Za-z0-9._=-]{1,255}")
BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{20,64}={0,2}")
HEX: Final = re.compile(rf"[0-9a-f]{{{2 * ACT_BYTES}}}")
TAG: Final = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]{0,20})([^<>]{0,4096})>")
SILENT: Final = re.compile(r"<(mx-reply|script|style)\b[^<>]{0,4096}>", re.IGNORECASE)
MARKS: Final = {"b": "**", "strong": "**", "i": "*", "em": "*", "del": "~~", "s": "~~", "code": "`"}
BREAKS: Final = frozenset({"br", "p", "div", "ul", "ol", "tr", "table", "hr", *(f"h{n}" for n in range(1, 7))})
DOTS: Final = re.compile(r"\n{3,}")


@dataclass(frozen=True, slots=True)
class Seal:
    """What opens a file of an encrypted room, in base64; the key is never shown."""

    key: str = field(repr=False)
    iv: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Media:
    """A file in a message. `url` is an `mxc://` address; `bytes` is the sender's claim, None when there is none.

    `seal` opens it when it is encrypted.
    """

    url: str
    name: str
    mime: str
    bytes: int | None
    seal: Seal | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """A message or reaction as it was meant.

    `edits` is the event that this one replaces, and the rest is then the new content. `reacts_to` is the event that
    `text` is a reaction to. `notice`: a machine said it, and nobody should answer. `mark` is a claim, not a proof.
    `bounce`: how often machines may still answer (MSC4295); a person's message has none.
    """

    text: str
    notice: bool = False
    emote: bool = False
    reply_to: str | None = None
    thread: str | None = None
    edits: str | None = None
    reacts_to: str | None = None
    mentions: tuple[str, ...] = ()
    media: Media | None = None
    mark: Mark | None = None
    bounce: int | None = None


def read(kind: str, content: Mapping[str, Any]) -> Heard | None:
    """What a message or reaction says; None for other kinds and for what says nothing. Total."""
    related = as_dict(content.get("m.relates_to"))
    if kind == REACTION:
        return _reaction(related)
    if kind != MESSAGE:
        return None
    edits = _id(related.get("event_id")) if related.get("rel_type") == "m.replace" else None
    new = content.get("m.new_content")
    said = cast("dict[str, Any]", new) if edits and isinstance(new, dict) else content
    if not isinstance(said.get("msgtype"), str) or not isinstance(said.get("body"), str):
        return None
    reply_to = _id(as_dict(related.get("m.in_reply_to")).get("event_id"))
    thread = _id(related.get("event_id")) if related.get("rel_type") == "m.thread" else None
    if thread and related.get("is_falling_back") is True:
        reply_to = None  # there only for clients that know no threads
    return Heard(
        text=_text(said, is_reply="m.in_reply_to" in related),
        notice=said["msgtype"] == "m.notice",
        emote=said["msgtype"] == "m.emote",
        reply_to=reply_to,
        thread=thread,
        edits=edits,
        mentions=_mentions(as_dict(said.get("m.mentions")).get("user_ids")),
        media=_media(said),
        mark=read_mark(content.get(MARK)),
        bounce=_bounce(content.get(BOUNCE)),
    )


def read_mark(value: object) -> Mark | None:
    """The mark of an act in an event, when it is one. Total."""
    found = as_dict(value)
    act, root, hops, node = found.get("act"), found.get("root"), found.get("hops"), found.get("node")
    if type(found.get("v")) is not int or found["v"] != MARK_VERSION or not (_is_hex(act) and _is_hex(root)):
        return None
    if type(hops) is not int or not 0 <= hops <= MAX_HOPS:
        return None
    if not isinstance(node, str) or len(node) > MAX_NODE or not node.isprintable():
        return None
    writing, person = found.get("writing") is True, found.get("person") is True
    return Mark(bytes.fromhex(cast("str", act)), bytes.fromhex(cast("str", root)), hops, node, writing, person)


def _bounce(value: object) -> int | None:
    """A bounce limit; what is none stops the ball."""
    if value is None:
        return None
    return min(value, MAX_HOPS) if type(value) is int and value > 0 else 0


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and HEX.fullmatch(value) is not None


def _reaction(related: Mapping[str, Any]) -> Heard | None:
    event, key = _id(related.get("event_id")), related.get("key")
    if related.get("rel_type") != "m.annotation" or not event or not isinstance(key, str):
        return None
    return Heard(clean(key)[:MAX_KEY], reacts_to=event)


def _text(said: Mapping[str, Any], *, is_reply: bool) -> str:
    """The words: HTML if there is some, or the body without the quotation of what it replies to."""
    rich = said.get("formatted_body")
    if said.get("format") == "org.matrix.custom.html" and isinstance(rich, str) and len(rich) <= MAX_HTML:
        found = to_text(rich)
        if found:
            return fit(clean(found), MAX_TEXT_BYTES)
    body: str = said["body"]
    return fit(clean(_without_quotation(body) if is_reply else body), MAX_TEXT_BYTES)


def _without_quotation(body: str) -> str:
    """A body without the lines that quote the event it replies to: `> <@user:server> …`, then an empty line."""
    if not body.startswith("> <"):
        return body
    lines = body.split("\n")
    quoted = next((n for n, line in enumerate(lines) if not line.startswith("> ") and line != ">"), len(lines))
    rest = lines[quoted:]
    return "\n".join(rest[1:] if rest and rest[0] == "" else rest)


def to_text(rich: str) -> str:
    """HTML as text with a little Markdown. Linear in its length, whatever it holds."""
    parts = list[str]()
    place = 0
    rich = _without_silent(rich)
    for tag in TAG.finditer(rich):
        parts.append(rich[place : tag.start()])
        place = tag.end()
        parts.append(_mark(tag.group(2).lower(), closing=bool(tag.group(1))))
    parts.append(rich[place:])
    return DOTS.sub("\n\n", html.unescape("".join(parts))).strip()


def _mark(name: str, *, closing: bool) -> str:
    """What stands for a tag."""
    if name == "pre":
        return "\n```\n"
    if name == "li":
        return "" if closing else "\n- "
    if name == "blockquote":
        return "\n" if closing else "\n> "
    if name in BREAKS:
        return "\n"
    return MARKS.get(name, "")


def _without_silent(rich: str) -> str:
    """HTML without what is not for reading: quotations of what is replied to, scripts, styles, comments."""
    parts = list[str]()
    lower, place = rich.lower(), 0
    if len(lower) != len(rich):
        lower = rich  # a letter whose small form is longer: look for small tags only
    while found := SILENT.search(rich, place):
        parts.append(rich[place : found.start()])
        close = f"</{found.group(1).lower()}>"
        end = lower.find(close, found.end())
        if end < 0:
            return "".join(parts)  # never closed: nothing after it is for reading
        place = end + len(close)
    parts.append(rich[place:])
    return re.sub(r"<!--[^<]*-->", "", "".join(parts))


def _media(said: Mapping[str, Any]) -> Media | None:
    sealed, info = as_dict(said.get("file")), as_dict(said.get("info"))
    url = sealed.get("url") if sealed else said.get("url")
    seal = _seal(sealed) if sealed else None
    if said["msgtype"] not in FILES or not isinstance(url, str) or not MXC.fullmatch(url) or (sealed and not seal):
        return None
    mime, long, name = info.get("mimetype"), info.get("size"), said.get("filename", said["body"])
    mime = mime if isinstance(mime, str) and len(mime) <= MAX_ID else ""
    claimed = long if type(long) is int and 0 <= long < MAX_FILE else None
    return Media(url, clean(name)[:MAX_ID] if isinstance(name, str) else "", clean(mime), claimed, seal)


def _seal(sealed: Mapping[str, Any]) -> Seal | None:
    key, iv, sha256 = as_dict(sealed.get("key")).get("k"), sealed.get("iv"), as_dict(sealed.get("hashes")).get("sha256")
    texts = [text for text in (key, iv, sha256) if isinstance(text, str) and BASE64.fullmatch(text)]
    return Seal(*texts) if len(texts) == 3 else None  # noqa: PLR2004 - all of them


def _mentions(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        return ()
    users = [_id(user) for user in cast("list[object]", value)[:MAX_MENTIONS]]
    return tuple(dict.fromkeys(user for user in users if user))


def _id(value: object) -> str | None:
    """An identifier, when it could be one."""
    return value if isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable() else None
