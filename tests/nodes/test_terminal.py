"""What people see: no words of anybody can move, hide, colour or forge a line."""

import io
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory
from rich.cells import cell_len
from rich.color import EIGHT_BIT_PALETTE

from nodes.commands.chat_screen import MAX_HISTORY, Names, history_file
from nodes.home import Home
from nodes.terminal import (
    INDENT,
    LIVE_LINES,
    MAX_LINES,
    MAX_MARKS,
    PALETTE,
    Said,
    Screen,
    clean,
    colour_of,
    lay_out,
    program,
    styled,
)
from nodes.wrapping import wrap

SGR = re.compile(r"\x1b\[[0-9;]*m")
FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
COLOURS = st.sampled_from([None, "standard", "256", "truecolor"])
WIDTHS = st.none() | st.integers(1, 120)
NASTY = st.lists(
    st.text(st.characters(), max_size=8)
    | st.sampled_from(
        [
            "\x1b[2J",
            "\x1b[31m",
            "\x9b1A",
            "\x1b]0;title\x07",
            "\x1b]8;;https://example.org\x1b\\here\x1b]8;;\x1b\\",
            "\x1bP+q\x1b\\",
            "\x1bc",
            "\x1b",
            "\r",
            "\r\n",
            "\b\b\b",
            "\u2028",
            "\x85",
            "\u202e",
            "\u2066",
            "\u200b",
            "\ufeff",
            "\u3164",
            "\U000e0041",
            "\t",
            "a\u0301\u0302\u0303\u0304\u0305\u0306\u0307",
            "[bold red]no[/]",
            ":smile:",
            "aletheia  words",
            "界" * 40,
            "x" * 200,
        ]
    ),
    max_size=12,
).map("".join)


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines_of(text: str) -> list[str]:
    """The lines without our own colours."""
    return SGR.sub("", text).split("\n")


@given(NASTY, NASTY, WIDTHS, COLOURS, st.booleans())
@example("\x1b]0;evil\x07\x1b[", "eve", None, "256", False)
@example("a\naletheia  I never said this", "eve", 80, "256", True)
def test_no_text_can_act_on_the_terminal_or_pose_as_another(
    text: str, author: str, width: int | None, colours: str | None, basin: bool
) -> None:
    said = Said(author, text, left=(23, 47), basin="yappings" if basin else None)
    first, *rest = lines_of(styled(lay_out(said, width), colours))
    assert not {unicodedata.category(c) for line in (first, *rest) for c in line} & FORBIDDEN
    assert not first.startswith(" " * INDENT) or clean(author)[0].startswith(" ")
    assert all(line.startswith(" " * INDENT * (1 + basin)) for line in rest)


@given(NASTY, st.integers(40, 120))
def test_lines_fit_the_terminal(text: str, width: int) -> None:
    said = Said("@somebody.with.a.long.name:example.org", text, left=(23, 47))
    assert all(cell_len(line) < width for line in lay_out(said, width).plain.split("\n"))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126)), st.integers(1, 60), st.integers(1, 60))
@example("0000", 2, 1)  # a word that is longer than a first line, which is wider than the next ones
def test_wrapping_keeps_every_letter_in_order(text: str, first: int, rest: int) -> None:
    lines = wrap(text, first, rest)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) <= (rest if number else first) for number, line in enumerate(lines))


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == [text]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one\ntwo\r\nthree\rfour\u2028five", ["one", "two", "three", "four", "five"]),
        ("\x1b[1;31mred\x1b[0m", ["red"]),
        ("\x1b]8;;https://example.org\x1b\\here\x1b]8;;\x1b\\", ["here"]),
        ("\x1b]0;no end of it", ["0;no end of it"]),
        ("\x9b31mred\x9d0;title\x9cafter", ["redafter"]),
        ("user\u202eresu\u2066 \u200bx", ["userresu x"]),
        ("tab\there", ["tab    here"]),
        ("a\u00a0b\u3000c", ["a b c"]),
        ("\ue000 \ud800", ["\ufffd \ufffd"]),
        ("שלום, ça va? 你好 👍🏽", ["שלום, ça va? 你好 👍🏽"]),
        ("\u3164\u2800hidden\U000e0100", ["hidden"]),
    ],
)
def test_what_becomes_of_texts(text: str, lines: list[str]) -> None:
    assert clean(text) == lines


def test_marks_do_not_climb() -> None:
    (line,) = clean("e" + "\u0301" * 50 + "!")
    assert line == "e" + "\u0301" * MAX_MARKS + "!"


def test_an_act_reads_author_words_and_what_is_left() -> None:
    assert lay_out(Said("ruri", "hello", left=(23, 47)), 80).plain == "ruri      hello  23 hops · 47 acts"
    assert lay_out(Said("ruri", "hello", left=(1, 1)), None).plain == "ruri      hello  1 hop · 1 act"
    assert lay_out(Said("ruri", "yes", "answer"), None).plain == "ruri (answer) yes"
    assert lay_out(Said("ruri", "a\nb", basin="lab"), None).plain == f"lab       ruri      a\n{' ' * 20}b"


def test_markup_and_emoji_names_are_words() -> None:
    shown = styled(lay_out(Said("ruri", "[red]x[/red] [link=https://example.org]y[/link] :smile:"), 200), "truecolor")
    assert "[red]x[/red] [link=https://example.org]y[/link] :smile:" in SGR.sub("", shown)
    assert "\x1b]" not in shown


def test_what_is_left_gets_a_line_of_its_own_where_it_does_not_fit() -> None:
    shown = lay_out(Said("ruri", "x" * 60, left=(23, 47)), 80).plain
    assert shown.split("\n")[1] == " " * INDENT + "23 hops · 47 acts"


def test_a_flood_is_cut_and_says_so() -> None:
    lines = lay_out(Said("ruri", "no\n" * 5000), 80).plain.split("\n")
    assert len(lines) == MAX_LINES + 1
    assert lines[-1].strip() == f"… and {5000 - MAX_LINES} more lines"


def test_an_author_of_another_mesh_is_told_apart() -> None:
    record = {"author": "ruri", "kind": "say", "text": "x", "mesh": "AOTHER7890", "basin": "lab"}
    record["budget"] = {"hops": 3, "acts": 4, "tokens": 5, "until_ms": 6}
    assert Said.of(record, "AOTHER7890") == Said("ruri", "x", left=(3, 4))
    assert Said.of(record, "AMINE", basin=True, left=False) == Said("ruri~OTHE", "x", basin="lab")


def test_starter_ems_and_you_have_colours_of_their_own() -> None:
    assert len({colour_of(name) for name in ("aletheia", "aporia", "ruri", "teapot", "you")}) == 5


def test_every_colour_can_be_read_on_black_and_on_white() -> None:
    for number in PALETTE:
        red, green, blue = (_linear(part / 255) for part in EIGHT_BIT_PALETTE[number])
        light = 0.2126 * red + 0.7152 * green + 0.0722 * blue  # WCAG 2 relative luminance
        assert min((light + 0.05) / 0.05, 1.05 / (light + 0.05)) >= 3.4


def _linear(part: float) -> float:
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4


def test_colours_are_for_terminals_and_not_for_people_who_want_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    said = Said("ruri", "hello", left=(1, 2))
    assert "\x1b[" in Screen(Terminal()).act(said)
    assert "\x1b" not in Screen(io.StringIO()).act(said)
    assert Screen(io.StringIO()).width is None
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in Screen(Terminal()).act(said)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in Screen(Terminal()).note("hello")


@given(NASTY)
def test_words_so_far_take_few_lines_and_end_with_the_newest(text: str) -> None:
    shown = Screen(Terminal()).writing("ruri", text + "\nnewest")
    lines = lines_of(shown.removesuffix("\n"))
    assert len(lines) <= LIVE_LINES + 1
    assert lines[-1].endswith("…")
    assert "newest" in shown


def test_a_screen_writes_at_once_and_survives_letters_that_it_cannot_write() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Screen(file).write("ça va\n")
    assert file.buffer.getvalue() == b"?a va\n"


def test_a_note_is_one_paragraph_without_controls() -> None:
    assert Screen(io.StringIO()).note("one\x1b[2J\ntwo") == "one two\n"


def test_how_to_start_it_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = tmp_path / "mesh"
    there.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program(str(there)) == "mesh"
    assert program(".venv/bin/mesh") == ".venv/bin/mesh"
    assert program("my folder/mesh") == "'my folder/mesh'"
    assert program("nodes/cli.py") == "mesh"


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("a", ["aletheia", "aporia"]),
        ("hello @ap", ["@aporia"]),
        ("/s", ["/stop"]),
        ("hello /s", []),
        ("hello ", []),
        ("xyz", []),
    ],
)
def test_names_are_completed(typed: str, found: list[str]) -> None:
    names = Names()
    names.ems = ["aletheia", "aporia"]
    assert [one.text for one in names.get_completions(Document(typed), CompleteEvent())] == found
    asked = names.get_completions(Document("hello "), CompleteEvent(completion_requested=True))
    assert [one.text for one in asked] == ["aletheia", "aporia"]


def test_typed_lines_are_kept_for_their_owner_and_not_for_ever(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.data.mkdir()
    path = history_file(home)
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("".join(f"\n# {number}\n+line {number}\n" for number in range(30_000)), "utf-8")
    kept = FileHistory(history_file(home)).load_history_strings()
    first, *_ = typed = list(kept)
    assert first == "line 29999"
    assert path.stat().st_size <= MAX_HISTORY // 2 + 1
    assert typed == [f"line {number}" for number in range(29_999, 29_999 - len(typed), -1)]
