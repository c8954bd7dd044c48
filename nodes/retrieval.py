"""Finding short texts by their words: Okapi BM25 in numpy.

Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009). All weights are computed
when the index is made; a query only adds up the postings of its own words.
"""

import math
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

SATURATION = 1.2  # k1: how soon a repeated word stops counting
LENGTH_PENALTY = 0.5  # b: chat lines are short, so being long should cost little
FIRST_WIDE = "\u2e80"  # scripts from here on (Han, kana, Hangul) put no spaces between words
MAX_INDEX_BYTES = 64 * 1024 * 1024  # of indexes kept; beyond it the one unused for longest is made anew
MAX_WORD = 40  # longer runs are keys, hashes or noise: their beginning is enough to find them by

_WORD = re.compile(r"\w+")


def words(text: str) -> Iterator[str]:
    """The words of a text, without case and plural `s`; scripts without spaces give pairs of characters."""
    for match in _WORD.finditer(text.casefold()):
        word = match.group()[:MAX_WORD]
        if max(word) >= FIRST_WIDE:
            yield from (word[at : at + 2] for at in range(max(1, len(word) - 1)))
        else:
            yield word[:-1] if len(word) > 3 and word.endswith("s") else word  # noqa: PLR2004 - "was" is no plural


class Bm25:
    """An index over short texts, which are known by their position. Make one with `fit`; it never changes."""

    def __init__(self, terms: dict[str, int], starts: NDArray[np.int64], texts: NDArray[np.int32], size: int) -> None:
        self._terms = terms
        self._starts = starts
        self._texts = texts
        self._weights = np.zeros(len(texts), np.float32)
        self._size = size

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Self:
        """Index the texts; no texts give an index that finds nothing."""
        terms: dict[str, int] = {}
        term_ids: list[int] = []
        text_ids: list[int] = []
        counts: list[int] = []
        for index, text in enumerate(texts):
            found = Counter(words(text))
            term_ids.extend(terms.setdefault(word, len(terms)) for word in found)
            text_ids.extend([index] * len(found))
            counts.extend(found.values())
        order = np.argsort(np.array(term_ids, np.int64), kind="stable")
        frequencies = np.bincount(np.array(term_ids, np.int64), minlength=len(terms))
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(frequencies)))
        made = cls(terms, starts, np.array(text_ids, np.int32)[order], len(texts))
        made._weigh(np.array(counts, np.float64)[order], frequencies)
        return made

    def _weigh(self, counts: NDArray[np.float64], frequencies: NDArray[np.int64]) -> None:
        """Give each posting its share: rare words count more, repeated words less and less, long texts less."""
        lengths = np.bincount(self._texts, counts, self._size)
        mean = max(float(lengths.mean()), 1.0) if self._size else 1.0
        norm = SATURATION * (1 - LENGTH_PENALTY + LENGTH_PENALTY * lengths / mean)
        rarity = np.repeat(np.log1p((self._size - frequencies + 0.5) / (frequencies + 0.5)), frequencies)
        self._weights = (rarity * counts * (SATURATION + 1) / (counts + norm[self._texts])).astype(np.float32)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, word: str) -> bool:
        """Whether any text has this word, given as `words` yields it."""
        return word in self._terms

    @property
    def nbytes(self) -> int:
        """Memory in bytes: arrays exactly, the dictionary of words by estimate (100 bytes an entry)."""
        return self._starts.nbytes + self._texts.nbytes + self._weights.nbytes + 100 * len(self._terms)

    def rarity(self, word: str) -> float:
        """How much a word tells, from about 0 for one in every text; a word that no text has counts as the rarest."""
        term = self._terms.get(word)
        frequency = 0 if term is None else int(self._starts[term + 1] - self._starts[term])
        return math.log1p((self._size - frequency + 0.5) / (frequency + 0.5))

    def scores(self, query: str) -> NDArray[np.float64]:
        """The relevance of every text, in the order given to `fit`; 0.0 where no word is shared."""
        out = np.zeros(self._size)
        for word, count in Counter(words(query)).items():
            term = self._terms.get(word)
            if term is not None:
                at = slice(self._starts[term], self._starts[term + 1])
                out[self._texts[at]] += count * self._weights[at]
        return out

    def top(self, query: str, k: int) -> list[tuple[int, float]]:
        """Up to `k` (index, score) pairs of texts that share a word with the query; best first, then earliest first."""
        scores = self.scores(query)
        best = np.argsort(-scores, kind="stable")[: max(k, 0)]
        return [(int(index), float(scores[index])) for index in best if scores[index] > 0]


class Indexes:
    """Indexes that are made once and used often, by whatever names their texts. May be used from many threads."""

    def __init__(self, max_bytes: int = MAX_INDEX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._made: OrderedDict[str, Bm25] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: str, texts: Callable[[], Sequence[str]]) -> Bm25:
        """The index of these texts, made at the first call: about 0.2 s for a megabyte, so call it in a thread."""
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = Bm25.fit(texts())
        with self._lock:
            self._made[key] = made
            while len(self._made) > 1 and sum(one.nbytes for one in self._made.values()) > self._max_bytes:
                self._made.popitem(last=False)
        return made
