"""Turns with pictures, as OpenAI's chat API takes them: text and `image_url` parts, with the bytes in the request."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from nodes.models.answers import utf8
from nodes.models.base import Turn
from nodes.picture import look

Fetch = Callable[[str], bytes | None]  # a picture by its SHA-256 in hex; None: it is gone. Called in a thread

MAX_PICTURE_BYTES: Final = 12 << 20  # of a request, 16 MiB as text; vendors refuse larger ones


def data_urls(turns: Sequence[Turn], fetch: Fetch) -> dict[str, str]:
    """The pictures of a prompt as `data:` URLs by their hashes: the newest first, as many as a request may hold.

    Their type is what their bytes say. Those that are gone are left out.
    """
    urls: dict[str, str] = {}
    left = MAX_PICTURE_BYTES
    for picture in (one for turn in reversed(turns) for span in reversed(turn.spans) for one in span.pictures):
        data = None if picture.sha256 in urls else fetch(picture.sha256)
        seen = None if data is None or len(data) > left else look(data)
        if data is not None and seen is not None:
            left -= len(data)
            urls[picture.sha256] = f"data:{seen.mime};base64,{base64.b64encode(data).decode('ascii')}"
    return urls


def content(turn: Turn, pictures: Mapping[str, str]) -> str | list[dict[str, object]]:
    """A turn's text; with pictures a list of parts, each picture behind the text that names it."""
    parts: list[dict[str, object]] = []
    text = ""
    for span in turn.spans:
        text += span.text
        urls = [pictures[picture.sha256] for picture in span.pictures if picture.sha256 in pictures]
        if urls:
            parts.append({"type": "text", "text": utf8(text)})
            parts.extend({"type": "image_url", "image_url": {"url": url}} for url in urls)
            text = ""
    if not parts:
        return utf8(text)
    return [*parts, {"type": "text", "text": utf8(text)}] if text else parts
