"""Words as ems meet them: what they mean who say one, and what their prompts tell of those that are said to them."""

import re
from collections.abc import Sequence
from typing import Final

from mesh.words import plain
from protocol.keys import MeshId
from protocol.lexicon import Lexicon
from protocol.terms import fold
from protocol.vocabulary import Digest, Term

WORDS: Final = "words"  # the basin where words are made unless another is named; the name on the wire as well
MAX_GLOSSES: Final = 4  # words explained in one prompt: more would crowd out the talk
MAX_READINGS: Final = 3  # of one contested word in a prompt
MAX_LOOKED: Final = 64  # readings of a word that are looked at for that: a peer may have put forward a thousand
GLOSS_CHARS: Final = 300  # of each definition in a prompt
GLOSSED_CHARS: Final = 4_000  # of the answered text that words are looked for in


class Glosses:
    """A Lore (nodes.words.lore) out of the lexicon of one mesh."""

    def __init__(self, mesh: MeshId, lexicon: Lexicon) -> None:
        self._me, self._lexicon = mesh, lexicon

    def meant(self, name: str, basin: str) -> Digest | None:
        """The reading that an em means who speaks of a word in a basin: the one put forward last; None for none."""
        found = [one for one in self._lexicon.find(name) if self._is_said(one, basin)]
        return found[-1] if found else None

    def glosses(self, text: str, basin: str) -> list[tuple[str, str]]:
        """The words in a text that this mesh uses, each with what a prompt says about it: a few, in their order.

        Whoever hears the basin may learn it from the em: so only of words that were adopted there, or in `words`.
        """
        folded, found = fold(text[:GLOSSED_CHARS]), list[tuple[int, str]]()
        for name, one in self._lexicon.uses(self._me).items():
            said, at = self._lexicon.of(self._me, one), _place(name, folded)
            if at is not None and said is not None and said.basin in (WORDS, basin):
                found.append((at, name))
        return [(name, self._gloss(name, basin)) for _, name in sorted(found)[:MAX_GLOSSES]]

    def _is_said(self, about: Digest, basin: str) -> bool:
        return not self._lexicon.basins(about).isdisjoint((WORDS, basin))

    def _gloss(self, name: str, basin: str) -> str:
        """One line; of a word that is read in more than one way there, the readings, with whether they are used here.

        Who else uses them is not told: an em would tell it to strangers.
        """
        lexicon = self._lexicon
        ours = lexicon.uses(self._me)[name]
        others = [one for one in lexicon.find(name) if one != ours and self._is_said(one, basin)][:MAX_LOOKED]
        read = [lexicon.reading(one) for one in (ours, *others)]
        is_contested = any(one.contested for one in read) or sum(bool(one.used) for one in read) > 1
        if not others or not is_contested:
            return f"{lexicon.terms[ours].name}: {_quoted(lexicon.terms[ours])}"
        known = sorted((one for one in read if one.used or one.contested or one.proposed), key=lambda one: not one.used)
        told = [
            f"{_quoted(one.term)} ({self._users(one.used)})" for one in known[:MAX_READINGS] if one.term is not None
        ]
        return f"{lexicon.terms[ours].name}, which is read in several ways: {'; '.join(told)}"

    def _users(self, meshes: Sequence[MeshId]) -> str:
        where = [*(["here"] if self._me in meshes else []), *(["elsewhere"] if set(meshes) - {self._me} else [])]
        return f"used {' and '.join(where)}" if where else "used by nobody known here"


def _quoted(term: Term) -> str:
    """A definition for a prompt: one line in quotes, which nothing in it ends."""
    told = plain(term.definition.replace('"', "'"), GLOSS_CHARS)
    return f'"{told}"'


def _place(name: str, text: str) -> int | None:
    """Where a word stands in a text for itself, both folded."""
    if name not in text:
        return None
    found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
    return found.start() if found else None
