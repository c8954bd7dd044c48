"""Cutting and cleaning what `echo` learns from and says."""

import re

MAX_REPLY_CHARS = 280  # about three sentences
MAX_SENTENCES = 3

_TAG = re.compile(r"<[^\s<>][^<>]{0,63}>")
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffd]"
)
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』]*")  # noqa: RUF001 - full-width stops end sentences too
_TOKEN = re.compile(r"\S{1,16}\s*")


def clean(text: str) -> str:
    """One paragraph without `<name>` tags, control characters or invisible marks; never begins or ends in a space."""
    text = _TAG.sub("", " ".join(_UNSEEN.sub("", text).split()))
    if _TAG.search(text):  # the halves of a tag around another one
        text = re.sub("[<>]", "", text)
    return " ".join(text.split())


def tokens(text: str) -> list[str]:
    """Cut a cleaned text into tokens: words, or pieces of 16 characters of long ones, each with the space behind it.

    Joined, they are the text.
    """
    return _TOKEN.findall(text)


def shorten(text: str) -> str:
    """At most three sentences and 280 characters, cut after a sentence where there is one, else between words."""
    ends = [match.end() for match in _END.finditer(text[: MAX_REPLY_CHARS + 1])]
    if len(text) <= MAX_REPLY_CHARS and len(ends) <= MAX_SENTENCES:
        return text
    fitting = [end for end in ends[:MAX_SENTENCES] if end <= MAX_REPLY_CHARS]
    return text[: fitting[-1]] if fitting else text[:MAX_REPLY_CHARS].rsplit(" ", 1)[0]


def without_fragment(text: str) -> str:
    """The text without a last sentence that was broken off; empty if there is no whole one."""
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]] if ends else ""


def pieces(text: str) -> list[str]:
    """A message as things one could say at once: itself if it is short, else up to three sentences at a time."""
    found: list[str] = []
    for paragraph in text.split("\n\n"):
        rest = clean(paragraph)
        at = 0
        while at < len(rest):
            piece = shorten(rest[at : at + 2 * MAX_REPLY_CHARS])
            found.append(piece)
            at += len(piece)
            at += rest[at : at + 1] == " "
    return found
