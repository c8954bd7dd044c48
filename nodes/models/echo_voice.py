"""What `echo` makes of a voice: its own lines, what they answered, and a model of them."""

import itertools
from dataclasses import dataclass, replace
from importlib import resources

from nodes.chatlog import Line, Scene, Voice, parse
from nodes.models.echo_text import pieces
from nodes.ngram import KneserNey
from nodes.retrieval import Bm25

MAX_LOG_CHARS = 512 * 1024  # of the newest text of a voice: fitted in about 0.25 CPU-s; a log may have 50 MB
MAX_PRIOR_BYTES = 512 * 1024  # of background text, which every em on the node shares
MAX_CONTEXT_CHARS = 300  # of each line before a reply: its end is what was answered
LINE_OVERHEAD = 80  # bytes of a Python string beside its text, for estimates

LAST_RESORT = (
    "I have no words of my own yet.",
    "Say that again, but slower.",
    "I am listening.",
    "Tell me more about it.",
    "What happened then?",
    "I would like to think about that for a while.",
    "Perhaps it is the other way round.",
    "Somebody should write that down.",
)  # background text for when none is installed


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is kept of a voice: its own lines, what they answered, and the model of them.

    `names` are all who speak in its scenes, lower case. `nbytes` is memory in bytes, by estimate for the lines.
    """

    lines: tuple[str, ...]
    to_question: tuple[bool, ...]
    index: Bm25
    model: KneserNey
    names: frozenset[str]
    nbytes: int

    @classmethod
    def of(cls, voice: Voice) -> "Fitted":
        """Fit the newest text of a voice. Costs milliseconds, so it is made anew whenever the text changes."""
        lines: list[str] = []
        contexts: list[str] = []
        names: set[str] = set()
        for scene in _newest(voice):
            before: list[str] = []
            for line in scene:
                names.add((line.author or "").lower())
                for piece in pieces(line.text):
                    if voice.is_own(line):
                        lines.append(piece)
                        contexts.append("\n".join(before[-2:]))
                    before.append(piece[-MAX_CONTEXT_CHARS:])
        text = "".join(line + "\n" for line in lines).encode()
        index = Bm25.fit([f"{context}\n{line}" for context, line in zip(contexts, lines, strict=True)])
        model = KneserNey.fit(text)
        return cls(
            lines=tuple(lines),
            to_question=tuple("?" in context.rpartition("\n")[2] for context in contexts),
            index=index,
            model=model,
            names=frozenset(names - {""}),
            nbytes=model.nbytes + index.nbytes + len(text) + LINE_OVERHEAD * len(lines),
        )


def installed_prior() -> Voice:
    """All logs of the starter ems as one voice in which every line is its own; a few sentences if there are none."""
    scenes: list[Scene] = []
    left = MAX_PRIOR_BYTES
    folder = resources.files("nodes") / "starter" / "ems"
    for em in sorted(folder.iterdir(), key=lambda one: one.name) if folder.is_dir() else []:
        log = em / "chat.txt"
        data = log.read_bytes()[:left] if log.is_file() else b""
        left -= len(data)
        scenes.extend(parse(data.decode("utf-8", "replace"), em.name))
    if not scenes:
        scenes = [Scene(tuple(Line(None, line, "echo") for line in LAST_RESORT))]
    names = frozenset(line.author.lower() for scene in scenes for line in scene.lines if line.author)
    return Voice("prior", names, tuple(scenes), (), "prior")


def _newest(voice: Voice) -> list[list[Line]]:
    """The newest scenes, oldest first, up to MAX_LOG_CHARS of text; the log counts as newer than memory files."""
    left = MAX_LOG_CHARS
    scenes: list[list[Line]] = []
    for scene in itertools.chain(reversed(voice.chat), reversed(voice.memory)):
        lines: list[Line] = []
        for line in reversed(scene.lines):
            if left <= 0:
                break
            lines.append(replace(line, text=line.text[-left:]))
            left -= len(line.text) + 1
        scenes.append(lines[::-1])
        if left <= 0:
            break
    return scenes[::-1]
