"""One reply: from what was heard to an em's own words."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from nodes.chatlog import Line, Scene
from nodes.em import Em
from nodes.models.base import Model, Request, Usage
from nodes.models.names import ModelName
from nodes.prompt import Style, build, parse, stops, tokens
from nodes.retrieval import Indexes
from nodes.words.lore import Gloss

REMEMBERED: Final = 3  # scenes of an em's memory that a prompt shows
QUERY_LINES: Final = 4  # of the conversation that memory is searched with
PARTIAL_S: Final = 0.1  # between two showings of a reply that is being written


@dataclass(frozen=True, slots=True)
class Models:
    """The door to models: `style` tells how one takes its prompt, `default` is used by ems that name none.

    `indexes` are those of the ems' memories. `sees` tells whether a model takes pictures, `price` what a reply by it
    cost in its vendor's currency; None where that is unknown.
    """

    door: Model
    style: Callable[[str], Style]
    default: str
    indexes: Indexes = field(default_factory=Indexes)
    sees: Callable[[str], bool] = lambda _: False
    price: Callable[[str, Usage], float | None] = lambda _, __: None


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


async def draft(  # noqa: PLR0913, PLR0917 - all that a reply is made of, each once
    em: Em, models: Models, heard: int, lines: Sequence[Line], seed: int, glosses: Sequence[Gloss] = ()
) -> Draft:
    """Lay out the prompt. `lines` end with what is answered; `heard` counts all that were ever said until then.

    `glosses` tell what words in it mean. Raises ModelRefused for a model name that means nothing.
    """
    model = em.settings.model or models.default
    style, context = models.style(model), ModelName.parse(model).context
    remembered = [] if style == "echo" else await _remember(em, models.indexes, lines)
    prompt = build(em, style, heard, lines, remembered, context, glosses, sees=models.sees(model))
    request = Request(
        model=model,
        turns=prompt.turns,
        voice=em.voice,
        recent=prompt.recent,
        temperature=em.settings.temperature,
        max_tokens=prompt.max_tokens,
        stop=stops(em, prompt.recent),
        seed=seed if em.settings.seed is None else em.settings.seed,
        top_p=em.settings.top_p,
    )
    return Draft(request, tokens(prompt.turns) + prompt.max_tokens)


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


async def _remember(em: Em, indexes: Indexes, lines: Sequence[Line]) -> list[Scene]:
    """Scenes of the em's memory files that bear on the last lines, best last: nearest to the end."""
    scenes = em.voice.memory
    if not scenes:
        return []
    last = lines[-min(QUERY_LINES, em.settings.recency_window) :]
    query = " ".join(line.text for line in last)

    def search() -> list[tuple[int, float]]:
        key = f"{em.voice.digest}/{len(scenes)}"  # the digest does not tell the log from the memory
        return indexes.of(key, lambda: ["\n".join(line.text for line in scene.lines) for scene in scenes]).top(
            query, REMEMBERED
        )

    found = await asyncio.to_thread(search)  # a first search reads all of the memory
    return [scenes[place] for place, _ in reversed(found)]
