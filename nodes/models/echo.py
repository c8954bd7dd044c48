"""`echo`: an em that speaks with nothing installed.

A reply is the best of four kinds of candidates: own lines that were once said in answer to something alike (BM25),
own lines at random, heads and tails of two such lines joined, and new lines drawn from Kneser-Ney models of the own
text, alone and with background text.
It is in the em's voice, since most of it is the em's own words; it cannot follow instructions and knows nothing else.

Two traps shaped the ranking. A model judges lines that it was trained on as perfect, so copies of own lines get a
constant fluency. And two echo ems that may repeat themselves agree on one sentence and never leave it, so whatever
the room has just heard is banned.

A token is a word or a piece of a long one (up to 16 characters), with the spaces behind it.
"""

import asyncio
import re
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nodes.chatlog import Line, Voice
from nodes.models.base import Request, Usage
from nodes.models.echo_text import clean, shorten, tokens, without_fragment
from nodes.models.echo_voice import MAX_LOG_CHARS, Fitted, installed_prior
from nodes.ngram import KneserNey, Mixture
from nodes.retrieval import words

MAX_FITTED_BYTES = 64 * 1024 * 1024  # of fitted voices kept; beyond it the one unused for longest is fitted anew
MAX_RECENT = 64  # lines of the room that are looked at
MAX_QUERY_CHARS = 500  # of a message that is answered: its end; more words only blur what it is about

RETRIEVED = 16  # candidates that answered something alike
IDLE = 8  # own lines at random, for when nothing is alike
SPLICES = 16  # heads and tails of two own lines that share two words
MAX_SEAMS = 8  # places of one pair of words: "it is" must not make a thousand splices
SAMPLES = 32  # new lines: half from the own text, half with background
SAMPLE_BYTES = 160
FEW_LINES = 12  # an em with fewer lines also says lines of the background

NEAR = 8  # the room's last messages, by anybody, that a reply must not resemble
NEAR_LIMIT = 0.5  # share of common words that counts as resembling
FAR_LIMIT = 0.7  # the same for own messages further back

OWN_WEIGHT = 0.7  # of the own text beside the background, in what is drawn and in judging it
COPY_FLUENCY = 0.6  # for own lines as they stand
SPLICE_FLUENCY = 0.4  # for the head of one own line with the tail of another: no better than its seam
DRAWN_FLUENCY = 0.2  # for drawn lines at best; words of byte models are right more often than their sentences are
FLUENT_BITS, ODD_BITS = 1.4, 3.0  # bits per byte: at or below the first is wholly fluent, above the second not at all
NOVELTY = 0.15  # for new lines, beside own lines as they stand
STRANGE_WORD = 0.6  # taken off for each word that neither the em nor the background has
FOREIGN = 0.5  # taken off for lines of the background
ALIKE = 0.5  # taken off for resembling what was just said, below the limits that forbid it
MAX_RELEVANCE = 1.5  # 1 is sharing every word of what is answered; beyond that, repeating them says little
QUESTION = 1.25  # an answer to a question counts so much more when a question is asked
SAMPLE_WARMTH = 0.7  # of the temperature, for drawing bytes: at 1.0 they spell too badly
NOISE = 0.12  # how far temperature 1 may reorder candidates; beside relevance and fluency, which go from 0 to about 1

_VOCATIVE = re.compile(r",\s+([^\s,.!?]{1,40})(?=[,.!?])")
_ADDRESS = re.compile(r"@?([^\s:,][^:,]{0,40})[:,]\s+|@(\S{1,40})\s+")


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Something to say. `relevance` is 0 to 1 or somewhat more; `fluency` None means to be judged by the model."""

    text: str
    relevance: float
    fluency: float | None
    copy: bool = True


class _Room:
    """What was just said: what to answer, and what not to say again."""

    def __init__(self, recent: Sequence[Line], voice: Voice) -> None:
        said = [(line, clean(line.text[-MAX_LOG_CHARS:])) for line in recent[-MAX_RECENT:]]
        texts = [text for _, text in said if text]
        last, before = (texts[-1:] or [""])[0], (texts[-2:-1] or [""])[0]
        self.asked = "?" in last
        last, before = _without(last[-MAX_QUERY_CHARS:], voice.names), before[-MAX_QUERY_CHARS:]
        self.query = f"{last} {last} {before}"  # the last one counts twice
        self.present = {(line.author or "").lower() for line in recent}
        self.prompt_tokens = sum(len(tokens(text)) for text in texts)
        self._exact = {_key(text) for text in texts}
        self._near = [frozenset(words(text)) for text in texts[-NEAR:]]
        self._far = [frozenset(words(text)) for line, text in said if voice.is_own(line)]

    def resembles(self, text: str) -> float:
        """How much of this the room has just heard, 0 to 1; 1 means: do not say it."""
        own = frozenset(words(text))
        near = max((_alike(own, other) for other in self._near), default=0.0)
        far = max((_alike(own, other) for other in self._far), default=0.0)
        return 1.0 if _key(text) in self._exact or near >= NEAR_LIMIT or far >= FAR_LIMIT else near


class Echo:
    """A model made of the text of whoever speaks. Implements nodes.models.base.Model.

    `prior` replaces the background
    text that comes with the package.
    """

    def __init__(self, *, prior: Voice | None = None) -> None:
        self._prior_voice = prior
        self._prior: Fitted | None = None
        self._fitted: OrderedDict[tuple[str, frozenset[str]], Fitted] = OrderedDict()
        self._lock = threading.Lock()

    async def stream(self, request: Request) -> AsyncGenerator[str | Usage, None]:
        """Yield the reply by token, then its Usage; nothing but Usage when all there is to say was just said."""
        text, prompt_tokens = await asyncio.to_thread(self._reply, request)
        said = tokens(text)
        for piece in said:
            yield piece
        yield Usage(prompt=prompt_tokens, completion=len(said))

    async def close(self) -> None:
        """Nothing to free."""

    def model_for(self, voice: Voice) -> KneserNey:
        """The byte model of a voice's own lines, for perplexity and the like. CPU work: call it in a thread."""
        return self._fit(voice).model

    def background(self) -> KneserNey:
        """The byte model of the background text. CPU work at the first call."""
        return self._background().model

    def _fit(self, voice: Voice) -> Fitted:
        """The fitted voice, from the cache if its text is unchanged; two ems may share a text under two names."""
        key = (voice.digest, voice.names)
        with self._lock:
            if key in self._fitted:
                self._fitted.move_to_end(key)
                return self._fitted[key]
        made = Fitted.of(voice)
        with self._lock:
            self._fitted[key] = made
            while len(self._fitted) > 1 and sum(one.nbytes for one in self._fitted.values()) > MAX_FITTED_BYTES:
                self._fitted.popitem(last=False)
        return made

    def _background(self) -> Fitted:
        if self._prior is None:
            self._prior = Fitted.of(self._prior_voice or installed_prior())
        return self._prior

    def _reply(self, request: Request) -> tuple[str, int]:
        """The whole reply and how many tokens of the room were read. Pure but for the caches."""
        own, prior = self._fit(request.voice), self._background()
        room = _Room(request.recent, request.voice)
        return _Attempt(own, prior, room, request).reply(), room.prompt_tokens


class _Attempt:
    """Finding one reply: candidates, made fit for the room, and the best of them."""

    def __init__(self, own: Fitted, prior: Fitted, room: _Room, request: Request) -> None:
        self._own, self._prior, self._room, self._request = own, prior, room, request
        share = OWN_WEIGHT if own.lines else 0.0
        self._mixed = Mixture((share, own.model), (1 - share, prior.model))
        seed = request.seed % 2**64 if request.temperature > 0 else 0
        self._rng = np.random.default_rng([seed, zlib.crc32(room.query.encode("utf-8", "replace"))])
        self._asked = Counter(words(room.query))

    def reply(self) -> str:
        """The best of what the room has not just heard; an empty text if there is nothing else to say."""
        found = self._retrieved(self._own, 0.0)
        if len(self._own.lines) < FEW_LINES:
            found += self._retrieved(self._prior, FOREIGN)
        lines = [one.text for one in found]
        found += self._spliced(lines) + self._sampled(lines)
        found = [replace(one, text=self._finish(one.text)) for one in found]
        fresh = [(one, self._room.resembles(one.text)) for one in found if one.text.strip("- ")]
        fresh = [(one, alike) for one, alike in fresh if alike < 1]
        bits = self._mixed.bits_of_lines([one.text.encode() for one, _ in fresh])
        noise = self._request.temperature * NOISE * self._rng.gumbel(size=len(fresh))
        best, best_score = "", -np.inf
        for (one, alike), surprise, luck in zip(fresh, bits, noise, strict=True):
            fluency = self._fluency(one.text, surprise) if one.fluency is None else one.fluency
            score = one.relevance + fluency + NOVELTY * (not one.copy) - ALIKE * alike + luck
            if score > best_score:
                best, best_score = one.text, score
        return best

    def _retrieved(self, fitted: Fitted, handicap: float) -> list[_Candidate]:
        """Lines that answered something like what was said, and a few lines at random."""
        found: list[_Candidate] = []
        ideal = self._ideal(fitted)
        for at, score in fitted.index.top(self._room.query, RETRIEVED):
            fits = QUESTION if self._room.asked and fitted.to_question[at] else 1.0
            found.append(
                _Candidate(fitted.lines[at], min(score / ideal, MAX_RELEVANCE) * fits - handicap, COPY_FLUENCY)
            )
        for _ in range(IDLE if fitted.lines else 0):
            at = int(self._rng.integers(len(fitted.lines)))
            found.append(_Candidate(fitted.lines[at], -handicap, COPY_FLUENCY))
        return found

    def _sampled(self, starts: Sequence[str]) -> list[_Candidate]:
        """New lines. Half of them begin like one of the lines in `starts`, which keeps them to the matter."""
        warmth = SAMPLE_WARMTH * min(max(self._request.temperature, 0.3), 1.2)
        found: list[_Candidate] = []
        for model in (self._own.model, self._mixed) if self._own.lines else (self._mixed, self._mixed):
            prefixes = [self._start(starts) if at % 2 else b"" for at in range(SAMPLES // 2)]
            for drawn in model.generate_many(self._rng, prefixes, max_bytes=SAMPLE_BYTES, temperature=warmth):
                text = clean(drawn.decode("utf-8", "replace"))
                text = text if drawn.endswith(b"\n") else without_fragment(text)
                found.append(self._judged(text, None))
        return found

    def _spliced(self, lines: Sequence[str]) -> list[_Candidate]:
        """The head of one line and the tail of another, joined where they share two words in a row."""
        split = [line.split(" ") for line in dict.fromkeys(lines)]
        tails: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for row, line in enumerate(split):
            for at in range(1, len(line) - 2):
                tails.setdefault((line[at].lower(), line[at + 1].lower()), []).append((row, at))
        kept = [places[:MAX_SEAMS] for places in tails.values()]
        seams = [(a, b) for places in kept for a in places for b in places if a[0] != b[0]]
        self._rng.shuffle(seams)
        made = [" ".join(split[a][:i] + split[b][j:]) for (a, i), (b, j) in seams[:SPLICES]]
        return [self._judged(text, SPLICE_FLUENCY) for text in made]

    def _judged(self, text: str, fluency: float | None) -> _Candidate:
        """A new line as a candidate, unless it has turned out to be (part of) an old one: that counts as a copy."""
        index = self._own.index
        relevance = sum(self._asked[word] * index.rarity(word) for word in set(words(text))) / self._ideal(self._own)
        if any(text in line for line in self._own.lines):
            return _Candidate(text, relevance, COPY_FLUENCY)
        return _Candidate(text, relevance, fluency, copy=False)

    def _start(self, lines: Sequence[str]) -> bytes:
        """The first one to three words of one of the lines, never all of them."""
        first = lines[int(self._rng.integers(len(lines)))].split(" ") if lines else []
        kept = first[: min(int(self._rng.integers(1, 4)), len(first) - 1)] if first else []
        return " ".join([*kept, ""]).encode()

    def _ideal(self, fitted: Fitted) -> float:
        """The relevance of a text of average length that has every word of the query once."""
        return sum(count * fitted.index.rarity(word) for word, count in self._asked.items()) or 1.0

    def _fluency(self, text: str, bits: float) -> float:
        """How well formed a new line is: 1 at best, 0 or less if it is hardly a sentence of this voice."""
        known = self._own.index, self._prior.index
        strange = sum(all(word not in index for index in known) for word in words(text))
        return DRAWN_FLUENCY * min((ODD_BITS - bits) / (ODD_BITS - FLUENT_BITS), 1.0) - STRANGE_WORD * strange

    def _absent(self, name: str) -> bool:
        """Whether this is somebody from an old scene who is not in the room."""
        name = name.lower()
        return name not in self._room.present and (name in self._own.names or name in self._prior.names)

    def _finish(self, text: str) -> str:
        """Address nobody who is not there; stop, and cut to length, as the request says."""
        address = _ADDRESS.match(text)
        if address and self._absent(address[1] or address[2]):
            text = text[address.end() :]
        text = _VOCATIVE.sub(lambda match: "" if self._absent(match[1]) else match[0], text)
        text = shorten(text)
        for stop in filter(None, self._request.stop):
            text = text.partition(stop)[0]
        return "".join(tokens(text)[: max(self._request.max_tokens, 0)]).strip()


def _without(text: str, names: frozenset[str]) -> str:
    """The text without the em's names: being called says nothing about the matter, and names are rare words."""
    return " ".join(word for word in text.split(" ") if word.strip("@:,.!?").lower() not in names)


def _key(text: str) -> str:
    """What two texts share that differ only in case, plurals and punctuation."""
    return " ".join(words(text)) or text.casefold()


def _alike(one: frozenset[str], other: frozenset[str]) -> float:
    """Share of the words of both that both have."""
    return len(one & other) / (len(one | other) or 1)
