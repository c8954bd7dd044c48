"""`mesh redact` on its own: what it takes, and the lines that were typed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.history import FileHistory

from nodes.cli import main
from nodes.commands.redact import untype
from nodes.home import create_home

LINES = st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1, max_size=3)


@given(typed=st.lists(LINES.map("\n".join), min_size=1, max_size=5), data=st.data())
def test_a_line_that_was_taken_back_is_no_longer_among_those_typed(
    tmp_path_factory: pytest.TempPathFactory, typed: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("typed") / "chat_history"
    history = FileHistory(path)
    for text in typed:
        history.store_string(text)
    gone = data.draw(st.sampled_from(typed)).strip()
    untype(path, gone)
    left = [text for text in typed if text.strip() != gone]
    assert list(FileHistory(path).load_history_strings()) == left[::-1]


def test_where_nothing_was_typed_nothing_is_made(tmp_path: Path) -> None:
    untype(tmp_path / "chat_history", "words")
    assert list(tmp_path.iterdir()) == []


def test_without_a_node_it_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_home(tmp_path / "home", "amp", lambda: 1_800_000_000_000)
    assert main(["redact", "abcdef", "--home", str(tmp_path / "home")]) == 1
    assert "no act abcdef is known here" in capsys.readouterr().err
