"""The one shape that every model takes and gives."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from nodes.chatlog import Line, Voice
from nodes.picture import Picture

Role = Literal["text", "system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a prompt and where it came from: `chat.txt:3-90`, `act:<hex id>`, `format`.

    `pictures` are to be shown behind the text, which names them. Only their hashes are kept here: whoever sends the
    prompt fetches the bytes, and leaves out what is gone.
    """

    text: str
    source: str
    pictures: tuple[Picture, ...] = ()


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
PICTURE_TOKENS = 1_000  # likewise for a picture: vendors shrink large ones, and count some hundred to 1,600


def estimate(request: Request, completion_chars: int) -> Usage:
    """What a reply of so many characters cost, as far as one can tell without the vendor's own count."""
    spans = [span for turn in request.turns for span in turn.spans]
    prompt = -(-sum(len(span.text) for span in spans) // CHARS_PER_TOKEN)
    prompt += PICTURE_TOKENS * sum(len(span.pictures) for span in spans)
    return Usage(prompt=prompt, completion=-(-completion_chars // CHARS_PER_TOKEN))
