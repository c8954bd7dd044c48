import hashlib
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.chatlog import Line, Voice, parse
from nodes.models import echo, echo_voice
from nodes.models.base import Model, Request, Usage
from nodes.models.echo import Echo
from nodes.models.echo_text import MAX_REPLY_CHARS, clean, pieces, shorten, tokens, without_fragment

ANNA = """\
<ben> hi anna, how are you?
<anna> Hi. The kettle is on and the cat is asleep on my notes.
<ben> do you like the sea?
<anna> I like the sea in winter, when nobody tries to sell it to me.
---
<ben> what do you know about bread?
<anna> Ben: bread is flour, water, salt and somebody who gets up early.
<ben> and the oven?
<anna> The oven has to be hotter than you dare.
---
<yorick> why is my clock so slow?
<anna> Yorick: a clock is slow when nobody is looking forward to anything.
<yorick> oh.
<anna> Wind it at night. Then it is at least slow in the dark.
---
<ben> good night
<anna> Good night, ben, mind the third stair.
<ben> tell me a story
<anna> There was a lighthouse keeper who wrote letters to the fog. The fog answered every one of them.
"""
CARL = """\
<ben> hello carl
<carl> Hello. I was counting screws, forty so far.
<ben> is the boat ready?
<carl> The boat is ready when the paint is dry, and the paint is never dry.
---
<ben> what do you think of the fog?
<carl> Fog is only weather that has lost its nerve.
<ben> and letters?
<carl> I write no letters. I leave notes on the boat and the gulls read them.
---
<ben> how is the clock?
<carl> The clock and I have an agreement, it does not ask and I do not look.
<ben> bread?
<carl> Bread is what the gulls and I argue about in the morning.
"""


def voice(text: str, name: str, memory: str = "") -> Voice:
    digest = "b2:" + hashlib.blake2b((text + "\0" + memory).encode("utf-8", "replace")).hexdigest()
    return Voice(name, frozenset({name}), parse(text, "chat.txt"), parse(memory, "a.chr"), digest)


def heard(*texts: str, by: str = "ben") -> tuple[Line, ...]:
    return tuple(Line(by, text, "test") for text in texts)


def request(  # noqa: PLR0913 - the fields of a Request, with defaults
    who: Voice,
    recent: tuple[Line, ...],
    *,
    seed: int = 1,
    temperature: float = 0.8,
    max_tokens: int = 100,
    stop: tuple[str, ...] = (),
) -> Request:
    return Request("echo", (), who, recent, temperature, max_tokens, stop, seed)


async def reply(model: Model, asked: Request) -> tuple[list[str], Usage]:
    """The pieces of a reply, after checking that Usage comes once, last and with the right count."""
    out = [part async for part in model.stream(asked)]
    said, usage = [part for part in out if isinstance(part, str)], out[-1]
    assert isinstance(usage, Usage)
    assert len(said) == len(out) - 1 == usage.completion
    return said, usage


async def text_of(model: Model, asked: Request) -> str:
    return "".join((await reply(model, asked))[0])


@pytest.fixture(scope="module")
def small() -> Echo:
    """Echo with a small background of its own, so that the tests do not depend on the starter ems."""
    return Echo(prior=voice("I see. What comes next?\n---\nIt rains here, mostly on Sundays.\n", "prior"))


async def test_the_same_request_gives_the_same_text_and_other_seeds_give_others(small: Echo) -> None:
    anna = voice(ANNA, "anna")
    asked = [request(anna, heard("tell me something"), seed=seed, temperature=1.0) for seed in range(8)]
    first = [await text_of(small, one) for one in asked]
    fresh = Echo(prior=small._prior_voice)
    assert first == [await text_of(fresh, one) for one in asked]
    assert len(set(first)) > 1


async def test_temperature_zero_does_not_depend_on_the_seed(small: Echo) -> None:
    anna = voice(ANNA, "anna")
    texts = {
        await text_of(small, request(anna, heard("what about the cat?"), seed=s, temperature=0)) for s in (1, -2, 2**80)
    }
    assert len(texts) == 1


async def test_a_question_gets_the_reply_that_a_similar_question_got(small: Echo) -> None:
    anna = voice(ANNA, "anna")
    assert "flour, water, salt" in await text_of(
        small, request(anna, heard("Anna, what is it that you know about bread?"), temperature=0)
    )
    assert "sea in winter" in await text_of(small, request(anna, heard("do you like the sea?"), temperature=0))


@pytest.mark.parametrize(("asker", "addressed"), [("ben", False), ("yorick", True)])
async def test_only_somebody_in_the_room_is_addressed(small: Echo, asker: str, addressed: bool) -> None:
    """`Yorick: a clock …` was said to yorick; to ben it is said without his name."""
    asked = request(voice(ANNA, "anna"), heard("why is my clock so slow?", by=asker), temperature=0)
    text = await text_of(small, asked)
    assert text.endswith("a clock is slow when nobody is looking forward to anything.")
    assert text.startswith("Yorick: ") is addressed


async def test_names_of_absent_people_are_left_out_of_the_middle_too(small: Echo) -> None:
    asked = request(voice(ANNA, "anna"), heard("good night", by="mira"), temperature=0)
    assert await text_of(small, asked) == "Good night, mind the third stair."


async def test_two_ems_never_lock_into_one_sentence_or_a_cycle(small: Echo) -> None:
    """Sixty turns of two small voices: no line comes back while it can still be seen in the room."""
    window = 24
    pair = [voice(ANNA, "anna"), voice(CARL, "carl")]
    room = [Line("ben", "hello you two, what about the fog?", "test")]
    for turn in range(60):
        who = pair[turn % 2]
        said = await text_of(small, request(who, tuple(room[-window:]), seed=turn))
        assert said, f"silent at turn {turn}"
        assert said.casefold() not in {line.text.casefold() for line in room[-window:]}
        room.append(Line(who.name, said, "test"))
    texts = [line.text for line in room]
    for period in range(1, 9):  # nor does it go round in circles
        assert all(a != b for a, b in zip(texts, texts[period:], strict=False))


async def test_an_em_that_hears_its_own_words_does_not_parrot_them(small: Echo) -> None:
    line = "The oven has to be hotter than you dare."
    texts = {await text_of(small, request(voice(ANNA, "anna"), heard("and the oven?", line), seed=s)) for s in range(5)}
    assert line not in texts


@pytest.mark.parametrize(
    ("chat", "memory"),
    [
        ("", ""),
        ("<anna> one line only", ""),
        ("", "Prose without any tag. It goes on for a while, and then it stops.\n\nA second paragraph follows."),
        ("<ben> only others speak here\n<ben> all the time", ""),
        ("\x00\x01\xff<\x1b[31m> \ufffd\u202e ]]]] \x9b 0x00 \x07" * 50, ""),
        ("<anna> " + "x" * 5000, ""),
        ("<anna> 海が好きです。空も好きです。\n<ben> はい", ""),
    ],
    ids=["empty", "one line", "prose", "others only", "binary", "one word", "japanese"],
)
async def test_whatever_an_em_is_made_of_it_speaks(small: Echo, chat: str, memory: str) -> None:
    em = voice(chat, "anna", memory)
    for recent in ((), heard("hello?"), heard("hello?", "\ud800 \x00", "<b> what? <c>"), heard("")):
        assert await text_of(small, request(em, recent))


LIMITS = st.tuples(st.integers(-1, 40), st.lists(st.text(max_size=3), max_size=3).map(tuple))


@given(
    chat=st.text(max_size=300),
    said=st.lists(st.text(max_size=60), max_size=4),
    seed=st.integers(),
    temperature=st.floats(0, 2),
    limits=LIMITS,
)
@settings(max_examples=40, deadline=None)
async def test_every_reply_is_one_clean_short_paragraph(
    chat: str, said: list[str], seed: int, temperature: float, limits: tuple[int, tuple[str, ...]]
) -> None:
    """Nothing in an em's text or in the room can break the form of a reply, its length or its stops."""
    max_tokens, stop = limits
    asked = Request("echo", (), voice(chat, "anna"), heard(*said), temperature, max_tokens, stop, seed)
    text = await text_of(SHARED, asked)
    assert text == clean(text)
    assert len(text) <= MAX_REPLY_CHARS
    assert len(tokens(text)) <= max(max_tokens, 0)
    assert not any(one in text for one in stop if one)
    assert not any(unicodedata.category(char) in {"Cc", "Cs"} for char in text)


SHARED = Echo(prior=voice("I see. What comes next?", "prior"))


async def test_it_works_where_no_starter_ems_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any text at all there are still a few sentences to say."""
    monkeypatch.setattr(echo_voice.resources, "files", lambda _package: tmp_path)
    assert await text_of(Echo(), request(voice("", "anna"), heard("hi"))) in echo_voice.LAST_RESORT


async def test_the_background_is_read_from_the_starter_ems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "starter" / "ems" / "kim"
    folder.mkdir(parents=True)
    folder.joinpath("chat.txt").write_text("<tom> what is new?\n<kim> The ferry is late again.\n---\n")
    monkeypatch.setattr(echo_voice.resources, "files", lambda _package: tmp_path)
    prior = echo_voice.installed_prior()
    assert [line.text for line in prior.chat[0].lines] == ["what is new?", "The ferry is late again."]
    assert await text_of(Echo(), request(voice("", "anna"), heard("what is new?"), temperature=0)) == (
        "The ferry is late again."
    )


def test_only_the_newest_text_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty megabytes of log are no trouble: what is beyond the limit is not looked at."""
    monkeypatch.setattr(echo_voice, "MAX_LOG_CHARS", 1000)
    log = "".join(f"<anna> line number {n}\n---\n" for n in range(5000))
    lines = echo_voice.Fitted.of(voice(log, "anna", "a memory, older than the log")).lines
    assert lines[-1] == "line number 4999"
    assert 20 < len(lines) < 60
    endless = echo_voice.Fitted.of(voice("<anna> " + "never ending " * 5000, "anna")).lines
    assert 900 < sum(len(line) for line in endless) <= 1000


def test_fitted_voices_are_kept_within_a_limit(small: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one unused for longest goes first; the same text under another name is another voice."""
    ems = [voice(ANNA, "anna"), voice(ANNA, "ben"), voice(CARL, "carl")]
    model = Echo(prior=small._prior_voice)
    sizes = [model._fit(em).nbytes for em in ems]
    assert len(model._fitted) == 3
    monkeypatch.setattr(echo, "MAX_FITTED_BYTES", sum(sizes))
    assert model._fit(ems[0]) is model._fit(ems[0])
    model._fit(voice(CARL + "<carl> More.\n", "carl"))
    assert (ems[1].digest, ems[1].names) not in model._fitted
    assert (ems[0].digest, ems[0].names) in model._fitted
    assert sum(fitted.nbytes for fitted in model._fitted.values()) <= sum(sizes)


async def test_the_work_is_done_in_a_thread(small: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    original = Echo._reply

    def watched(self: Echo, asked: Request) -> tuple[str, int]:
        threads.append(threading.get_ident())
        return original(self, asked)

    monkeypatch.setattr(Echo, "_reply", watched)
    await text_of(small, request(voice(ANNA, "anna"), heard("hi")))
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_tokens_and_stops_limit_a_reply(small: Echo) -> None:
    anna = voice(ANNA, "anna")
    said, usage = await reply(small, request(anna, heard("do you like the sea?"), temperature=0, max_tokens=3))
    assert said == ["I ", "like ", "the"]
    assert usage == Usage(prompt=5, completion=3)
    assert await reply(small, request(anna, heard("hi"), max_tokens=0)) == ([], Usage(prompt=1, completion=0))
    stopped = await text_of(small, request(anna, heard("do you like the sea?"), temperature=0, stop=(", when",)))
    assert stopped == "I like the sea in winter"


def test_the_model_of_a_voice_knows_its_own_lines_best(small: Echo) -> None:
    own = small.model_for(voice(ANNA, "anna"))
    line = "I like the sea when it is winter"
    assert own.bits_per_byte(line) < small.model_for(voice(CARL, "carl")).bits_per_byte(line)
    assert own.bits_per_byte(line) < small.background().bits_per_byte(line)


async def test_closing_twice_is_fine() -> None:
    model = Echo()
    await model.close()
    await model.close()
    assert model._fitted == {}


@given(st.text(max_size=200))
def test_cleaning_is_done_once_and_tokens_join_to_the_text(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert "".join(tokens(cleaned)) == cleaned
    assert all(len(token.rstrip()) <= 16 for token in tokens(cleaned))


@given(st.text("ab .?!。", max_size=900))
def test_a_long_message_is_cut_into_pieces_that_lose_nothing(text: str) -> None:
    found = pieces(text)
    assert all(piece and len(piece) <= MAX_REPLY_CHARS and shorten(piece) == piece for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split())


def test_cleaning_takes_out_tags_controls_and_invisible_marks() -> None:
    assert clean("<anna> a\x1b[31m b\n\nc <b>d\u202e\u200b \x00 1 < 2") == "a[31m b c d 1 < 2"
    assert clean("<<x>y> z") == "y z"
    assert clean("family: \U0001f468\u200d\U0001f469") == "family: \U0001f468\u200d\U0001f469"


def test_replies_end_with_a_whole_sentence() -> None:
    assert without_fragment('He said "no." And then he') == 'He said "no."'
    assert without_fragment("not even one") == ""
    assert shorten("One. Two! Three? Four.") == "One. Two! Three?"
    assert len(shorten("word " * 100)) <= MAX_REPLY_CHARS
