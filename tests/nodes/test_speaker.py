"""One reply's request: what an em's settings ask for, and what comes to its mind, without holding up the others."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nodes.chatlog import Line, Voice, parse
from nodes.em import Em
from nodes.em_settings import EmSettings
from nodes.errors import ModelRefused
from nodes.models.scripted import Scripted
from nodes.prompt import tokens
from nodes.retrieval import Bm25, Indexes
from nodes.speaker import Models, draft

NOTES = "<aporia> the drawer is locked\n---\n<aporia> the tide comes at nine\n---\n<aporia> tea is at four\n"
SAID = [Line("mara", "when does the tide come?", "act:1")]


def em(memory: str = NOTES, digest: str = "b2:1", **settings: object) -> Em:
    voice = Voice("aporia", frozenset({"aporia"}), (), parse(memory, "notes.txt"), digest)
    return Em("aporia", Path("x"), EmSettings.model_validate({"name": "aporia", **settings}), voice, None, None, ())


def models(default: str = "m") -> Models:
    return Models(Scripted(), lambda _: "completions", default)


class Counted(Bm25):
    """Counts what is indexed, and in which threads."""

    fits: list[threading.Thread]

    @classmethod
    def fit(cls, texts: Sequence[str]) -> Bm25:
        cls.fits.append(threading.current_thread())
        return Bm25.fit(texts)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    Counted.fits = []
    monkeypatch.setattr("nodes.retrieval.Bm25", Counted)
    return Counted.fits


async def test_what_comes_to_mind_is_shown_best_last() -> None:
    text = (await draft(em(), models(), 1, SAID, 1)).request.turns[0].text
    assert text.index("What comes to mind") < text.index("the tide comes at nine") < text.index("when does")


async def test_a_memory_is_indexed_once_and_never_on_the_loop(fits: list[threading.Thread]) -> None:
    where = models()
    for seed in range(5):
        await draft(em(), where, 1, SAID, seed)
    assert len(fits) == 1
    assert fits[0] is not threading.main_thread()
    await draft(em("<aporia> other\n", "b2:2"), where, 1, SAID, 1)
    assert len(fits) == 2


def test_indexes_are_dropped_when_they_take_too_much(fits: list[threading.Thread]) -> None:
    indexes = Indexes(max_bytes=1)
    for key in ("a", "a", "b", "a"):
        indexes.of(key, lambda: ["some words"])
    assert len(fits) == 3


async def test_a_log_that_became_memory_is_found_although_the_digest_stays() -> None:
    where = models()
    both = em()
    await draft(both, where, 1, SAID, 1)
    fewer = replace(both, voice=replace(both.voice, memory=both.voice.memory[1:]))
    assert "the tide comes" in (await draft(fewer, where, 1, SAID, 1)).request.turns[0].text


async def test_ems_draft_side_by_side() -> None:
    where = models()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(draft(em(), where, 1, SAID, seed), name=f"draft {seed}") for seed in range(4)]
    assert {task.result().request.seed for task in tasks} == {0, 1, 2, 3}


async def test_settings_reach_the_request() -> None:
    request = (await draft(em(top_p=0.5, temperature=0.25, seed=7), models(), 1, SAID, 1)).request
    assert (request.top_p, request.temperature, request.seed) == (0.5, 0.25, 7)
    assert (await draft(em(), models(), 1, SAID, 1)).request.top_p is None


@pytest.mark.parametrize(("own", "default"), [("m@600", "x"), (None, "m@600")])
async def test_the_models_window_bounds_prompt_and_reply(own: str | None, default: str) -> None:
    said = [Line("mara", "word " * 20, f"act:{number}") for number in range(200)]
    talker = em(model=own, recency_window=200)
    plan = await draft(talker, models(default), 200, said, 1)
    assert 450 < plan.cost <= 600
    assert plan.cost == tokens(plan.request.turns) + plan.request.max_tokens
    assert plan.request.recent[-1] == said[-1]


async def test_a_model_name_that_means_nothing_is_refused() -> None:
    with pytest.raises(ModelRefused):
        await draft(em(), models("^x"), 1, SAID, 1)
