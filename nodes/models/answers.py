"""What a vendor's answer means: bytes and headers in, text, counts and faults out. Pure.

A vendor is a stranger: everything that arrives is bounded and checked, and escaped where a person sees it.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, cast

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from nodes.models.base import Usage

MAX_REPLY_BYTES = 256 * 1024  # of text, UTF-8: more than any em should say at once; what exceeds it is cut off
MAX_EVENT_BYTES = 1024 * 1024  # one event, or one answer in plain JSON: four times the text, for escapes and wrapping
MAX_RAW_BYTES = 32 * 1024 * 1024  # all events together: vendors wrap each token in some 300 bytes
MAX_ERROR_BYTES = 4096  # of the body of a refusal; its sentence is near the start
MAX_QUOTE = 200  # characters of a stranger's words that a person is shown
MAX_TOKEN_COUNT = 10**9  # a count beyond any model's is a mistake; the estimate is used instead
MAX_CHOICES = 16  # we ask for one
SAYS = '; it says "'  # before a vendor's own words, which may name keys and accounts: for the node's person alone
DONE = b"[DONE]"  # what vendors send as the last event

INVALID = frozenset({400, 422})  # the request is not liked: perhaps one of its parameters
BUSY = frozenset({408, 409, 425, 429})  # and all from 500: the same request may pass later
REDIRECTS = frozenset({301, 302, 303, 307, 308})
WORDS = {
    400: "calls the request invalid",
    401: "does not accept the key; set a valid one",
    402: "wants to be paid; see to the account",
    403: "does not allow this key to do that; check the account",
    404: "does not know that model or address; check the model's name and the base_url",
    422: "calls the request invalid",
    429: "is busy, or the account's limit is reached",
} | dict.fromkeys(REDIRECTS, "sends us elsewhere; set its base_url to the final address")


@dataclass(eq=False)
class Fault(Exception):
    """Why a try failed, in words that follow "the vendor V, asked for the model M,".

    `again`: another try may help, after `after_s` seconds if the vendor asked for that (infinite: never).
    `final`: only a person can help. `said` is the vendor's own text, raw; `invalid`: it is about a bad request.
    """

    words: str
    again: bool = False
    after_s: float | None = None
    final: bool = False
    said: str = ""
    invalid: bool = False


class _Details(BaseModel):
    cached_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_COUNT)] | None = None


class _Count(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_COUNT)]
    completion_tokens: Annotated[int, Field(ge=0, le=MAX_TOKEN_COUNT)] = 0
    prompt_tokens_details: _Details | None = None


class _Words(BaseModel):
    content: object = None  # text; other shapes (reasoning in parts, tool calls) are not speech


class _Choice(BaseModel):
    """One choice of a piece (`delta` or `text`) or of a whole answer (`message` or `text`)."""

    delta: _Words | None = None
    message: _Words | None = None
    text: object = None
    finish_reason: object = None

    def words(self) -> str:
        """What was said."""
        said = [self.text, *(part.content for part in (self.delta, self.message) if part)]
        return "".join(text for text in said if isinstance(text, str))


class _Chunk(BaseModel):
    choices: Annotated[list[_Choice], Field(max_length=MAX_CHOICES)] | None = None
    usage: object = None
    error: object = None


class EventParser:
    """Server-sent events as vendors use them: bytes in, the `data` of each finished event out.

    A line ends with LF or CRLF; fields other than `data`, and comments, are skipped (HTML Living Standard, 9.2.6).
    Raises a Fault when one event exceeds `max_bytes`; the parser must then not be used again.
    """

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Take more bytes; yield each event that is now complete."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._extend(end)
            line = bytes(self._line).removesuffix(b"\r")
            self._line.clear()
            yield from self._end_of_line(line)
        self._extend(rest)

    def finish(self) -> Iterator[bytes]:
        """There are no more bytes; yield the last event of a vendor that forgot the empty line behind it."""
        yield from self.feed(b"\n\n")

    def _extend(self, part: bytes) -> None:
        self._line += part
        if self._size + len(self._line) > self._max:
            raise too_much()

    def _end_of_line(self, line: bytes) -> Iterator[bytes]:
        if not line and self._data:
            event = b"\n".join(self._data)
            self._data, self._size = [], 0
            yield event
        elif line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
            self._size += len(line)


class Reply:
    """What has been understood of one answer so far.

    `finished`: the vendor said that the text is complete. `usage` is its latest count, or None. `chars` of text so far.
    """

    def __init__(self) -> None:
        self.finished = False
        self.usage: Usage | None = None
        self.chars = 0
        self._left = MAX_REPLY_BYTES

    @property
    def full(self) -> bool:
        """Whether the text has reached MAX_REPLY_BYTES; the call should be ended."""
        return self._left <= 0

    def take(self, event: bytes) -> str:
        """The text of one event, cut where the reply is full. Raises a Fault for what is no event of this API."""
        if event.strip() == DONE:
            self.finished = True
            return ""
        try:
            chunk = _Chunk.model_validate_json(event)
        except ValidationError:
            raise Fault("sent something that is not the JSON of this API") from None
        if chunk.error:
            raise Fault("reported an error instead of going on", again=True, said=_message(chunk.error))
        self.usage = _usage(chunk.usage) or self.usage
        if not chunk.choices:
            return ""
        self.finished = self.finished or bool(chunk.choices[0].finish_reason)
        raw = utf8(chunk.choices[0].words()).encode()
        text = raw[: max(0, self._left)].decode(errors="ignore")
        self._left -= len(raw)
        self.chars += len(text)
        return text


def too_much() -> Fault:
    """The fault of a vendor that does not stop sending."""
    return Fault("sent more than any reply needs")


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> Fault:
    """The fault behind an HTTP status that is no success. `body` is the start of the answer (MAX_ERROR_BYTES)."""
    broke = b"insufficient_quota" in body  # comes as 429, but no waiting helps
    busy = (status in BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR) and not broke
    try:
        said = _message(from_json(body, allow_partial=True))
    except ValueError:  # no JSON, so perhaps a page of HTML: nothing worth showing
        said = ""
    words = WORDS.get(status, "failed" if busy else "refuses the request")
    after_s = retry_after_s(headers)
    return Fault(f"{words} (HTTP {status})", busy, after_s, final=not busy, said=said, invalid=status in INVALID)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a `Retry-After` asks for (RFC 9110, 10.2.3), or None. A date counts from the answer's own `Date`."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", value):
        return float(value)
    try:
        until, now = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - now).total_seconds())
    except (ValueError, TypeError, OverflowError):  # no date; one with and one without a zone; a year out of range
        return None


def plain(text: str) -> str:
    """A stranger's text on one line, cut, with everything that could steer a terminal escaped."""
    cut = text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)


def utf8(text: str) -> str:
    """The text without lone surrogates, which have no place in UTF-8."""
    return text.encode(errors="replace").decode()


def _usage(raw: object) -> Usage | None:
    """The vendor's count, or None when it is missing or cannot be true."""
    try:
        count = _Count.model_validate(raw)
    except ValidationError:
        return None
    cached = (count.prompt_tokens_details and count.prompt_tokens_details.cached_tokens) or 0
    return Usage(count.prompt_tokens, count.completion_tokens, min(cached, count.prompt_tokens))


def _message(error: object) -> str:
    """The text in a vendor's error, wherever that vendor puts it; all of it as JSON if that is nowhere known."""
    for key in ("error", "message", "detail"):
        if isinstance(error, dict):
            error = cast("dict[str, object]", error).get(key) or cast("object", error)
    return error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)[:MAX_ERROR_BYTES]
