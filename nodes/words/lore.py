"""What the runtime asks of whatever knows words."""

from collections.abc import Sequence
from typing import Protocol

from protocol.vocabulary import Digest

Gloss = tuple[str, str]  # a word's folded name, and the line that tells what it means


class Lore(Protocol):
    """Words, as ems meet them. Nothing here may wait."""

    def meant(self, name: str, basin: str) -> Digest | None:
        """The reading that an em means who speaks of a word in a basin; None for no word that is known there."""
        ...

    def glosses(self, text: str, basin: str) -> Sequence[Gloss]:
        """The words in a text that this mesh uses and a basin may know: a few, a line of some hundred letters each."""
        ...


class NoLore:
    """No words."""

    def meant(self, name: str, basin: str) -> Digest | None:  # noqa: ARG002 - a Lore's
        """None."""
        return None

    def glosses(self, text: str, basin: str) -> Sequence[Gloss]:  # noqa: ARG002 - a Lore's
        """None."""
        return ()
