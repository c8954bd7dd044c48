"""One reply: from what was heard to an em's own words."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from nodes.chatlog import Line, Scene
from nodes.em import Em
from nodes.models.base import Model, Request, Usage
from nodes.prompt import Style, build, parse, stops, tokens, window
from nodes.retrieval import Bm25

REMEMBERED: Final = 3  # scenes of an em's memory that a prompt shows
QUERY_LINES: Final = 4  # of the conversation that memory is searched with
PARTIAL_S: Final = 0.1  # between two showings of a reply that is being written


@dataclass(frozen=True, slots=True)
class Models:
    """The door to models: `style` tells how one takes its prompt, `default` is used by ems that name none."""

    door: Model
    style: Callable[[str], Style]
    default: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply about to be asked for. `cost` is the most tokens it may use."""

    request: Request
    cost: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the em's own words, empty when it said nothing."""

    text: str
    usage: Usage


def draft(em: Em, models: Models, heard: int, lines: Sequence[Line], seed: int) -> Draft:
    """Lay out the prompt. `lines` end with what is answered; `heard` counts all that were ever said until then."""
    model = em.settings.model or models.default
    style = models.style(model)
    recent = tuple(lines[-window(heard, em.settings.recency_window) :])
    remembered = () if style == "echo" else _remember(em, recent)
    turns = build(em, style, recent, remembered)
    request = Request(
        model=model,
        turns=turns,
        voice=em.voice,
        recent=recent,
        temperature=em.settings.temperature,
        max_tokens=em.settings.max_tokens,
        stop=stops(em, recent),
        seed=seed if em.settings.seed is None else em.settings.seed,
    )
    return Draft(request, tokens(turns) + em.settings.max_tokens)


async def ask(em: Em, models: Models, request: Request, show: Callable[[str], None]) -> Reply:
    """Have the model write; `show` is called now and then with the words so far. Raises ModelError."""
    loop = asyncio.get_running_loop()
    text, usage, shown = "", Usage(0, 0), loop.time()
    async with aclosing(models.door.stream(request)) as pieces:
        async for piece in pieces:
            if isinstance(piece, Usage):
                usage = piece
                continue
            text += piece
            if loop.time() - shown >= PARTIAL_S:
                shown = loop.time()
                show(parse(em, text))
    return Reply(parse(em, text), usage)


def _remember(em: Em, recent: Sequence[Line]) -> list[Scene]:
    """Scenes of the em's memory files that bear on the last lines, best last: nearest to the end."""
    scenes = em.voice.memory
    if not scenes:
        return []
    index = Bm25.fit(["\n".join(line.text for line in scene.lines) for scene in scenes])
    found = index.top(" ".join(line.text for line in recent[-QUERY_LINES:]), REMEMBERED)
    return [scenes[place] for place, _ in reversed(found)]
