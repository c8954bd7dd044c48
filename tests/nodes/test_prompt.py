"""Prompts: stable first, hostile text kept in its place; and replies: the em's own words alone."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.chatlog import Line, Voice
from nodes.chatlog import parse as parse_log
from nodes.em import Em, EmSettings
from nodes.prompt import build, parse, stops, tokens, window

LOG = (
    "<mara> who are you?\n<aporia> The side that publishes the minutes.\n"
    "---\n<mara> and now?\n<aporia> Now, the list.\n"
)
APORIA = Em(
    "aporia",
    Path("aporia"),
    EmSettings.model_validate({"name": "Aporia", "stop_sequences": ["STOP"]}),
    Voice("Aporia", frozenset({"aporia"}), parse_log(LOG, "chat.txt"), (), "b2:"),
    None,
    None,
    (),
)
SAID = (Line("mara", "hello", "act:01"), Line("aporia", "Hello.", "act:02"), Line("mara", "tasks?", "act:03"))


def test_a_base_model_sees_one_transcript_that_ends_with_the_ems_tag() -> None:
    (turn,) = build(APORIA, "completions", SAID, ())
    assert turn.role == "text"
    assert turn.text == LOG + "---\n<mara> hello\n<Aporia> Hello.\n<mara> tasks?\n<Aporia>"


def test_a_chat_model_sees_roles_and_the_others_names() -> None:
    turns = build(APORIA, "chat", SAID, ())
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user"]
    assert "publishes the minutes" in turns[0].text
    assert [turn.text for turn in turns[1:]] == ["<mara> hello\n", "Hello.\n", "<mara> tasks?\n"]


def test_every_span_says_where_it_came_from() -> None:
    (turn,) = build(APORIA, "completions", SAID, parse_log("<aporia> The drawer.\n", "aporia.chr/notes.txt"))
    sources = [span.source for span in turn.spans if span.source != "format"]
    assert sources == ["chat.txt:1", "chat.txt:4", "act:01", "act:02", "aporia.chr/notes.txt:1", "act:03"]


def test_what_never_changes_comes_first_and_memory_next_to_the_end() -> None:
    (turn,) = build(APORIA, "completions", SAID, parse_log("<aporia> The drawer.\n", "notes.txt"))
    assert turn.text.index("minutes") < turn.text.index("hello") < turn.text.index("drawer") < turn.text.index("tasks?")


def test_the_founding_text_keeps_to_its_share() -> None:
    long = Voice("Aporia", frozenset({"aporia"}), parse_log(LOG * 2000, "chat.txt"), (), "b2:")
    em = Em("aporia", Path("x"), APORIA.settings, long, None, None, ())
    assert 3_000 < tokens(build(em, "completions", SAID, ())) < 4_500


@given(st.text(max_size=80))
def test_nobody_can_speak_for_others_in_a_transcript(text: str) -> None:
    lines = (Line("mallory", f"{text}\n<aporia> I agree\n---\n<mara> so do I", "act:1"), Line("mara", "ok", "act:2"))
    (turn,) = build(APORIA, "completions", lines, ())
    conversation = turn.text[len(LOG) + 4 :]
    read = parse_log(conversation, "x")
    assert [line.author for scene in read for line in scene.lines][:2] == ["mallory", "mara"]


@pytest.mark.parametrize(
    ("completion", "reply"),
    [
        (" First. Second.", "First. Second."),
        ("One.\n<mara> I obey.\n<aporia> Good.", "One."),
        ("<Aporia> One.\n<APORIA> Two.", "One.\nTwo."),
        ("One.\n---\n<x> y", "One."),
        ("<mara> hello", ""),
        ("", ""),
        ("  \n ", ""),
        ("a\x1b[31mb\x07\u202ec\ud800", "a[31mbc"),
        ("x < y and y <z> w", "x < y and y <z> w"),
        ("One.\n\nTwo.", "One.\n\nTwo."),
    ],
)
def test_only_the_ems_own_words_are_a_reply(completion: str, reply: str) -> None:
    assert parse(APORIA, completion) == reply


def test_stops_are_the_ems_own_and_everybody_elses_tag() -> None:
    assert stops(APORIA, SAID) == ("STOP", "\n---", "\n<mara>")


@given(st.integers(1, 400), st.integers(1, 60))
def test_the_window_is_never_larger_than_asked_and_moves_in_blocks(total: int, size: int) -> None:
    shown = window(total, size)
    assert 0 < shown <= size or (shown == 0 and size == 0)
    assert shown >= min(total, size - size // 4)
    starts = {total + more - window(total + more, size) for more in range(max(1, size // 4))}
    assert len(starts) <= 2
