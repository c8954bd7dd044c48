"""Chat logs: nothing is lost, what is ambiguous is told, and what is written is read back."""

import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nodes import chatlog
from nodes.chatlog import (
    LONG_LINE_CHARS,
    MAX_PROBLEMS,
    Line,
    Scene,
    blank_front,
    digest,
    is_name,
    normal,
    parse,
    read,
    render,
    tag_name,
)


def said(text: str) -> list[list[tuple[str | None, str]]]:
    return [[(line.author, line.text) for line in scene.lines] for scene in parse(text, "chat.txt")]


@pytest.mark.parametrize(
    ("text", "scenes"),
    [
        ("<a> hi", [[("a", "hi")]]),
        ("<a>hi", [[("a", "hi")]]),
        ("<a>  hi", [[("a", " hi")]]),
        ("<John Smith> hi", [[("John Smith", "hi")]]),
        ("< @mara:example.org > hi", [[("@mara:example.org", "hi")]]),
        ("<a> one\ntwo", [[("a", "one\ntwo")]]),
        ("<a> one\n\n<b> two", [[("a", "one"), ("b", "two")]]),
        ("<a> one\n\ntwo\n\n\n", [[("a", "one\n\ntwo")]]),
        ("<a> \n<b> x", [[("b", "x")]]),
        ("<a>\nhi", [[("a", "hi")]]),
        ("<a> see <b> tags", [[("a", "see <b> tags")]]),
        ("<a> x\n<unclosed", [[("a", "x\n<unclosed")]]),
        ("<a> x\n<3 you > me", [[("a", "x"), ("3 you", "me")]]),
        ("<a> x\n<https://example.org> y", [[("a", "x\n<https://example.org> y")]]),
        ("<a> x\n</b> y\n<:wave:123> z\n<@1234> w", [[("a", "x\n</b> y\n<:wave:123> z\n<@1234> w")]]),
        ("<> x", [[(None, "<> x")]]),
        ("* waves", [[(None, "* waves")]]),
        ("<a> x\n* waves\n###", [[("a", "x\n* waves\n###")]]),
        ("<a> x\n  <b> y", [[("a", "x\n <b> y")]]),
        ("\ufeff<a> x", [[("a", "x")]]),
        ("<a> x\r\n---\r\n<b> y\r\n", [[("a", "x")], [("b", "y")]]),
        ("<a> x\rmore\r", [[("a", "x\nmore")]]),
        ("---\n<a> x\n---\n---\n<b> y\n---", [[("a", "x")], [("b", "y")]]),
        ("<a> x\n--- \n----", [[("a", "x\n--- \n----")]]),
        ("<a> x\n ---", [[("a", "x\n---")]]),
        ("prose one\n\nprose two\n---\nmore", [[(None, "prose one\n\nprose two")], [(None, "more")]]),
        ("title\n<a> x", [[(None, "title"), ("a", "x")]]),
        ("<a> one\u2028two\x85\x0bthree", [[("a", "one\u2028two\x85\x0bthree")]]),
        ("", []),
        (" \n\n", []),
    ],
)
def test_what_a_log_says(text: str, scenes: list[list[tuple[str | None, str]]]) -> None:
    assert said(text) == scenes


def test_every_message_knows_its_line() -> None:
    scenes = parse("\n\nprose\n\n---\n<a> x\n\ny\n<b> z\n", "aporia.chr/x.txt")
    assert [line.source.rpartition(":")[2] for scene in scenes for line in scene.lines] == ["3", "6", "9"]
    assert scenes[0].lines[0].source == "aporia.chr/x.txt:3"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<a> x\n<unclosed", "2: begins with < but with no name in <>"),
        ("<a> x\n <b> y", "2: is an indented tag"),
        ("<a> x\n--- ", "2: is a scene break with spaces around it"),
        ("title\n<a> x", "1: is text before the first <name> of its scene"),
        ("<a> x\n---\n\ntitle\n<a> x", "4: is text before the first <name> of its scene"),
        ("<a>\n<b> y", "1: is a tag with no text"),
        ("", "1: holds no messages"),
        (f"<a> {'x' * LONG_LINE_CHARS}", "1: is a line of 65,540 characters"),
    ],
)
def test_what_is_ambiguous_is_told_with_its_line(text: str, told: str) -> None:
    problems: list[str] = []
    parse(text, "chat.txt", problems)
    (problem,) = problems
    assert problem.startswith(f"chat.txt:{told}")


def test_a_log_in_another_format_does_not_flood() -> None:
    problems: list[str] = []
    parse("<a\n" * 1_000, "chat.txt", problems)
    assert len(problems) == MAX_PROBLEMS + 1
    assert "900 more lines" in problems[-1]


def test_a_file_has_a_limited_number_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chatlog, "MAX_MESSAGES", 2)
    problems: list[str] = []
    (scene,) = parse("<a> 1\n<a> 2\n<a> 3\n---\n<a> 4", "chat.txt", problems)
    assert [line.text for line in scene.lines] == ["1", "2"]
    assert problems == ["chat.txt:1: has more than 2 messages; 2 are not read"]


def test_continuation_lines_that_look_like_tags_are_made_safe() -> None:
    text = render([Line("a", "one\n<b> two\n---\n ---\n--", "")])
    assert text == "<a> one\n <b> two\n ---\n  ---\n--\n"


_TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(["<b>", "<b> x", "---", " ", "\n", "\r\n", "\r", "<", ">", "hi", "\ufeff", "\t", "\x85"]),
        max_size=12,
    ).map("".join),
)
_NAMES = st.one_of(st.sampled_from(["a", "John Smith", "@mara:example.org"]), st.text(max_size=20).filter(is_name))


def _plain(scenes: tuple[Scene, ...]) -> list[list[tuple[str | None, str]]]:
    return [[(line.author, line.text) for line in scene.lines] for scene in scenes]


@settings(deadline=None)
@given(_TEXTS)
@example("<a> x\n   <b> y\n--- ")
def test_parsing_is_total_and_what_it_read_is_written_and_read_the_same(text: str) -> None:
    scenes = parse(text, "x")
    for scene in scenes:
        assert scene.lines
        assert _plain(parse(render(scene.lines), "x")) == _plain((scene,))


@settings(deadline=None)
@given(st.lists(st.tuples(_NAMES, _TEXTS.filter(normal)), min_size=1, max_size=5))
def test_messages_are_read_back_as_they_were_written(messages: list[tuple[str, str]]) -> None:
    lines = [Line(name, text, "") for name, text in messages]
    assert _plain(parse(render(lines), "x")) == [[(name, normal(text)) for name, text in messages]]


@settings(deadline=None)
@given(_TEXTS)
def test_no_word_of_a_text_is_lost(text: str) -> None:
    """Every visible character of a log without tags or breaks is in some message."""
    plain = text.replace("<", "(").replace("-", "_")
    kept = "".join(line.text for scene in parse(plain, "x") for line in scene.lines)
    assert "".join(kept.replace("\ufeff", "").split()) == "".join(plain.replace("\ufeff", "").split())


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_author_becomes_a_name(author: str) -> None:
    name = tag_name(author)
    assert is_name(name)
    assert name == author or not is_name(author)
    assert _plain(parse(render([Line(author, "x", "")]), "x")) == [[(name, "x")]]


def test_front_matter_is_left_out_and_lines_keep_their_numbers() -> None:
    problems: list[str] = []
    text = blank_front("\ufeff%%%\ncomment: x\nchunking: false\n%%%\n<a> hi\n", "m.txt", problems)
    assert parse(text, "m.txt") == (Scene((Line("a", "hi", "m.txt:5"),)),)
    assert problems == []
    assert blank_front("%%%\nnever closed", "m.txt", problems) == "%%%\nnever closed"
    assert problems == ["m.txt:1: opens with %%% and never closes it; the whole file is read as text"]
    assert blank_front("", "m.txt", []) == ""


def test_files_that_are_no_text_give_none_and_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    for data, told in [
        (random.Random(1).randbytes(4_000), "holds NUL bytes"),
        ("<a> hi".encode("utf-16"), "is UTF-16"),
        (b"x" * 101, "is larger than 100 bytes"),
    ]:
        path.write_bytes(data)
        text, (problem,) = read(path, max_bytes=100 if data[:1] == b"x" else 10_000)
        assert text == ""
        assert problem.startswith(f"{path}:1: {told}")


def test_invalid_utf_8_is_replaced_and_told(tmp_path: Path) -> None:
    path = tmp_path / "chat.txt"
    path.write_bytes(b"\xef\xbb\xbf<a> fine\n<a> caf\xe9\n")
    text, (problem,) = read(path)
    assert text == "<a> fine\n<a> caf\ufffd\n"
    assert problem.startswith(f"{path}:2: is not UTF-8 from here on")


def test_the_digest_is_tagged_and_depends_on_where_texts_end() -> None:
    assert digest([]) == "b2:0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"
    assert len({digest(texts) for texts in (["ab"], ["a", "b"], ["", "ab"], ["ab", ""], ["\ud800"])}) == 5
