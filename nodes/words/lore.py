"""What the runtime asks of whatever knows words."""

from collections.abc import Sequence
from typing import Protocol

from protocol.vocabulary import Digest

Gloss = tuple[str, str]  # a word's folded name, and the line that tells what it means


class Lore(Protocol):
    """Words, as ems meet them. Nothing here may wait."""

    def meant(self, name: str) -> Digest | None:
        """The reading that an em means who speaks of a word; None for no known word."""
        ...

    def glosses(self, text: str) -> Sequence[Gloss]:
        """The words in a text that this mesh uses, a few, each with a line of at most some hundred characters."""
        ...


class NoLore:
    """No words."""

    def meant(self, name: str) -> Digest | None:  # noqa: ARG002 - a Lore's
        """None."""
        return None

    def glosses(self, text: str) -> Sequence[Gloss]:  # noqa: ARG002 - a Lore's
        """None."""
        return ()
