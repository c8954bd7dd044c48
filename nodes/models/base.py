"""The one shape that every model takes and gives."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from nodes.chatlog import Line, Voice

Role = Literal["text", "system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a prompt and where it came from: `chat.txt:3-90`, `act:<hex id>`, `format`."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a prompt. A base model's prompt is a single turn with role `text`."""

    role: Role
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        """The turn as the model sees it."""
        return "".join(span.text for span in self.spans)


@dataclass(frozen=True, slots=True)
class Request:
    """All that a model may use for one reply.

    `turns` is the rendered prompt. `voice` and `recent` (oldest first, the last one is being answered) are the same
    matter before rendering, for models that are made of text rather than prompted with it. `stop` sequences are
    applied by the caller as well. `seed` makes a seeded model deterministic. `top_p` is the share of likely words to
    choose from (None: the model's own).
    """

    model: str
    turns: tuple[Turn, ...]
    voice: Voice
    recent: tuple[Line, ...]
    temperature: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    top_p: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a reply cost, in tokens. `cached` counts prompt tokens that the vendor had already seen."""

    prompt: int
    completion: int
    cached: int = 0


class Model(Protocol):
    """A source of text."""

    def stream(self, request: Request) -> AsyncGenerator[str | Usage]:
        """Yield pieces of text as they come, and exactly one Usage at the end.

        Raises ModelUnavailable or ModelRefused, also in mid-stream. Closing the iterator ends the call.
        """
        ...

    async def close(self) -> None:
        """Free connections. Idempotent."""
        ...


CHARS_PER_TOKEN = 4  # the usual rule of thumb for English; only used where a vendor counts nothing


def estimate(request: Request, completion_chars: int) -> Usage:
    """What a reply of so many characters cost, as far as one can tell without the vendor's own count."""
    prompt_chars = sum(len(turn.text) for turn in request.turns)
    return Usage(prompt=-(-prompt_chars // CHARS_PER_TOKEN), completion=-(-completion_chars // CHARS_PER_TOKEN))
