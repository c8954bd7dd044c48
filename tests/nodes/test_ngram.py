import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.ngram import KneserNey, Mixture, with_background

TEXT = b"the cat sat on the mat\nthe dog sat on the log\nthe cat saw the dog\n" * 3
MODEL = KneserNey.fit(TEXT)


def packed(*contexts: bytes) -> np.ndarray:
    return np.array([int.from_bytes((b"\n" * 8 + c)[-8:], "big") for c in contexts], np.uint64)


@given(text=st.binary(max_size=300), context=st.binary(max_size=12), order=st.integers(1, 8))
def test_every_distribution_sums_to_one_and_excludes_nothing(text: bytes, context: bytes, order: int) -> None:
    """Whatever it was fitted on, a model gives every byte a chance, and all chances together are 1."""
    row = KneserNey.fit(text, order).distributions(packed(context))[0]
    assert row.min() > 0
    assert math.isclose(row.sum(), 1.0, abs_tol=1e-5)


@given(text=st.binary(max_size=200), scored=st.binary(min_size=1, max_size=40), order=st.integers(1, 8))
def test_scoring_a_text_at_once_agrees_with_asking_byte_by_byte(text: bytes, scored: bytes, order: int) -> None:
    model = KneserNey.fit(text, order)
    rows = model.distributions(packed(*(scored[:at] for at in range(len(scored)))))
    one_by_one = rows[np.arange(len(scored)), list(scored)]
    assert np.allclose(model.likelihoods(scored), one_by_one, atol=1e-6)


def test_against_probabilities_worked_out_by_hand() -> None:
    """Order 2 on `aab`: after `a`, both followers were seen once; discounts are .75, the rest goes to order 1."""
    after_a = KneserNey.fit(b"aab", order=2).distributions(packed(b"a"))[0]
    # Continuations: a after newline and a, b after a. So order 1 gives a (2 - .75) / 3, b .25 / 3, the rest evenly.
    spread = 0.5 / 256
    assert math.isclose(after_a[ord("a")], 0.125 + 0.75 * (1.25 / 3 + spread), rel_tol=1e-6)
    assert math.isclose(after_a[ord("b")], 0.125 + 0.75 * (0.25 / 3 + spread), rel_tol=1e-6)
    assert math.isclose(after_a[ord("z")], 0.75 * spread, rel_tol=1e-6)


def test_familiar_text_costs_fewer_bits_than_strange_text() -> None:
    assert MODEL.bits_per_byte("the cat sat on the log\n") < 1.0
    assert MODEL.bits_per_byte("Quarzvxy 0x9f") > 6.0


def test_an_empty_model_is_uniform_and_an_empty_text_unknown() -> None:
    assert KneserNey.fit(b"").bits_per_byte("anything") == pytest.approx(8.0)
    assert MODEL.bits_per_byte("") == 8.0


def test_a_prefix_helps_to_predict_what_follows_it() -> None:
    assert MODEL.bits_per_byte(b"at on the mat", b"the cat s") < MODEL.bits_per_byte(b"at on the mat")


def test_lines_are_scored_as_they_stand_in_a_log() -> None:
    whole = MODEL.likelihoods(b"the cat\n")
    (line,) = MODEL.bits_of_lines([b"the cat"])
    assert line == pytest.approx(-np.log2(whole).mean())
    assert len(MODEL.bits_of_lines([b"", b"the", b"dog"])) == 3
    assert MODEL.bits_of_lines([]) == []


def test_a_longer_order_than_a_packed_gram_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 1 to 8"):
        KneserNey.fit(b"abc", order=9)


@given(seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 0.5, 1.0, 1.5]))
def test_the_same_seed_gives_the_same_text(seed: int, temperature: float) -> None:
    texts = [MODEL.generate(np.random.default_rng(seed), temperature=temperature) for _ in range(2)]
    assert texts[0] == texts[1]


def test_a_generated_text_begins_with_its_prefix_and_ends_at_the_stop_or_the_limit() -> None:
    texts = MODEL.generate_many(np.random.default_rng(3), [b"the ", b"dog", b""] * 8, max_bytes=30)
    for text, prefix in zip(texts, [b"the ", b"dog", b""] * 8, strict=True):
        assert text.startswith(prefix)
        assert text.endswith(b"\n") or len(text) == len(prefix) + 30
        assert b"\n" not in text[:-1]


def test_temperature_zero_takes_the_most_probable_byte() -> None:
    assert (
        MODEL.generate(np.random.default_rng(1), b"the cat sat on the m", temperature=0) == b"the cat sat on the mat\n"
    )


def test_a_mixture_lies_between_its_parts_and_can_beat_both() -> None:
    other = KneserNey.fit(b"a ship sailed over the sea\n" * 5)
    mixed = Mixture((1.0, MODEL), (1.0, other))
    expected = (MODEL.likelihoods(b"the sea") + other.likelihoods(b"the sea")) / 2
    assert np.allclose(mixed.likelihoods(b"the sea"), expected)
    both = b"the cat sat over the sea\n"
    assert mixed.bits_per_byte(both) < min(MODEL.bits_per_byte(both), other.bits_per_byte(both))


def test_background_text_helps_with_words_that_the_own_text_lacks() -> None:
    background = b"a lighthouse keeper writes letters to the lighthouse\n" * 4
    held_out = b"the cat saw the lighthouse\n"
    assert with_background(TEXT, background).bits_per_byte(held_out) < MODEL.bits_per_byte(held_out)


def test_memory_is_twelve_bytes_a_distinct_gram() -> None:
    assert KneserNey.fit(b"ab", order=1).nbytes == 2 * 12
    assert KneserNey.fit(b"x" * 1000).order == 7
