import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.retrieval import MAX_WORD, Bm25, words

TEXTS = [
    "the kettle is on the stove",
    "a storm came over the sea last night",
    "the sea the sea the sea",
    "nobody saw the lighthouse in the storm",
    "",
]


def test_the_text_with_the_rarest_shared_words_comes_first() -> None:
    found = Bm25.fit(TEXTS).top("was there a storm near the lighthouse?", 3)
    assert found[0][0] == 3
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_texts_without_a_shared_word_are_not_found() -> None:
    assert Bm25.fit(TEXTS).top("xylophone", 5) == []
    assert Bm25.fit(TEXTS).top("", 5) == []
    assert Bm25.fit([]).top("sea", 5) == []
    assert Bm25.fit(TEXTS).top("sea", 0) == []


def test_scores_are_those_of_the_formula() -> None:
    """One text of two has the word once: idf = ln(1 + 1.5/1.5), and its length is average."""
    index = Bm25.fit(["apple pie", "plum cake"])
    ((at, score),) = index.top("apple", 2)
    assert at == 0
    assert score == pytest.approx(0.6931472 * 2.2 / 2.2, rel=1e-5)
    assert index.rarity("apple") == pytest.approx(0.6931472)
    assert index.rarity("unheard") > index.rarity("apple")


def test_case_plural_and_punctuation_do_not_matter() -> None:
    assert list(words("Cats, CAT's was!")) == ["cat", "cat", "s", "was"]
    assert "cat" in Bm25.fit(["Cats!"])


def test_scripts_without_spaces_are_found_by_pairs_of_characters() -> None:
    index = Bm25.fit(["今日は海が静かです", "山の上は寒い"])
    assert index.top("海が好き", 1)[0][0] == 0
    assert list(words("海")) == ["海"]


@given(st.lists(st.text(max_size=60), max_size=12), st.text(max_size=60), st.integers(0, 5))
def test_any_text_can_be_indexed_and_asked_for(texts: list[str], query: str, k: int) -> None:
    index = Bm25.fit(texts)
    found = index.top(query, k)
    assert len(found) <= k
    assert len(index) == len(texts)
    assert all(set(words(query)) & set(words(texts[at])) and score > 0 for at, score in found)
    assert all(len(word) <= MAX_WORD for word in words(query))
    assert index.nbytes >= 0


@given(st.lists(st.text("abc ", min_size=1, max_size=20), min_size=1, max_size=8))
def test_a_text_is_as_good_an_answer_to_itself_as_any(texts: list[str]) -> None:
    index = Bm25.fit(texts)
    for text in texts:
        scores = index.scores(text)
        assert len(scores) == len(texts)
        assert scores[texts.index(text)] == scores[len(texts) - 1 - texts[::-1].index(text)]
