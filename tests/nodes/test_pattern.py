"""Patterns that strangers' messages run are bounded, or refused."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodes.pattern import MAX_TEXT_CHARS, MIN_TEXT_CHARS, compile_pattern


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"(?i)\b(hi|hello)\b.*\bbot\b", "oh HELLO dear Bot", True),
        (r"(?i)\b(hi|hello)\b.*\bbot\b", "nothing", False),
        (r"\?$", "is it?", True),
        (r"(?P<who>mara|tobi)?: [^]]+x{2,3}", "mara: yxx", True),
        ("", "anything", True),
    ],
)
def test_ordinary_patterns_search_the_whole_message(pattern: str, text: str, *, found: bool) -> None:
    assert compile_pattern(pattern).search(text) is found


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(a+)+$", "repeats a group that itself repeats"),
        ("(a|aa)*$", "repeats or chooses"),
        ("(?:a?){50}b", "repeats or chooses"),
        ("((a{9}){9}){9}", "repeats or chooses"),
        ("a?" * 30 + "a" * 30, "may take very long"),
        (".*.*.*.*x", "may take very long"),
        (r"(.+)\1", "cannot be bounded"),
        ("(?=a)b", "cannot be bounded"),
        ("(?:){999999999}", "repeats more than 100 times"),
        ("a{" + "9" * 150 + "}", "repeats more than 100 times"),
        ("[[a]", "not a regular expression"),
        ("(", "not a regular expression"),
        ("x" * 201, "more than 200 characters"),
    ],
)
def test_what_may_take_for_ever_is_refused(pattern: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        compile_pattern(pattern)


def test_costlier_patterns_see_less_of_a_message() -> None:
    windows = [compile_pattern(".*" * count + "x").window for count in range(4)]
    assert windows == sorted(windows, reverse=True)
    assert windows[0] == MAX_TEXT_CHARS
    assert windows[-1] >= MIN_TEXT_CHARS
    assert not compile_pattern("x").search("-" * MAX_TEXT_CHARS + "x")


@settings(deadline=None)
@given(st.text(alphabet="ab.*+?|()[]{}^$\\123,-:P<>i=!", max_size=24), st.text(alphabet="ab1\n", max_size=400))
def test_any_pattern_is_refused_or_agrees_with_re(pattern: str, text: str) -> None:
    try:
        compiled = compile_pattern(pattern)
    except ValueError:
        return
    assert compiled.search(text) == bool(re.search(pattern, text[: compiled.window]))
