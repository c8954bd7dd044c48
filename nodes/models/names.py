"""How a person names a model."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Self

from nodes.complaints import shown
from nodes.errors import ModelRefused

MAX_CONTEXT: Final = 10**8  # tokens; more is a slip of the finger


@dataclass(frozen=True, slots=True)
class ModelName:
    """`name^tokenizer@context`, where all but the name may be missing; `context` is the window in tokens.

    The tokeniser is read and not used: prompts are measured at `CHARS_PER_TOKEN` characters a token.
    """

    name: str
    tokenizer: str | None = None
    context: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a model string. An `@` counts only before a number at the end: other names may hold one.

        Raises ModelRefused when the name or the tokeniser is empty, or the context is not within 1..MAX_CONTEXT.
        """
        rest, at, window = text.rpartition("@")
        context = None
        if at and window.isascii() and window.replace("_", "").isdigit():
            window = window.replace("_", "").lstrip("0")
            if not 0 < len(window) <= len(str(MAX_CONTEXT)) or int(window) > MAX_CONTEXT:
                raise ModelRefused(f"the model {shown(text)} asks for a context outside 1..{MAX_CONTEXT} tokens")
            context = int(window)
        else:
            rest = text
        name, caret, tokenizer = rest.partition("^")
        if not name or (caret and not tokenizer):
            raise ModelRefused(f"the model {shown(text)} is not written name^tokenizer@context; correct its name")
        return cls(name, tokenizer or None, context)

    def __str__(self) -> str:
        tokenizer = "" if self.tokenizer is None else f"^{self.tokenizer}"
        context = "" if self.context is None else f"@{self.context}"
        return f"{self.name}{tokenizer}{context}"


def is_provided(model: str, patterns: Iterable[str]) -> bool:
    """Whether a model's name fits one of a vendor's patterns: exact, or with `*`, `?` and `[...]`."""
    return any(fnmatchcase(model, pattern) for pattern in patterns)
