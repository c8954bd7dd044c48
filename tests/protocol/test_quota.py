"""Quotas: what a peer may use, by minute and by day, whatever the clock does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.quota import DAY_MS, MINUTE_MS, Quota, Spent

QUOTA = Quota(3, 2, 100)
NOW = 20_000 * DAY_MS


@pytest.mark.parametrize(
    ("spent", "asked", "told"),
    [
        ({}, {"acts": 3}, None),
        ({}, {"acts": 4}, "more than 3 acts a minute"),
        ({"acts": 3}, {"acts": 1}, "more than 3 acts a minute"),
        ({"acts": 3}, {}, None),
        ({"acts": 9}, {"tokens": 100}, None),
        ({"roots": 2}, {"acts": 1}, None),
        ({"roots": 2}, {"acts": 1, "roots": 1}, "more than 2 chains begun today"),
        ({"tokens": 99}, {"tokens": 1}, None),
        ({"tokens": 99}, {"tokens": 2}, "more than 100 tokens today"),
        ({"tokens": 500}, {"acts": 1, "roots": 1}, None),
    ],
)
def test_only_what_is_asked_for_is_refused(spent: dict[str, int], asked: dict[str, int], told: str | None) -> None:
    assert Spent().add(NOW, **spent).refusal(QUOTA, NOW, **asked) == told


def test_a_quota_of_nothing_refuses_everything() -> None:
    for asked in ({"acts": 1}, {"roots": 1}, {"tokens": 1}):
        assert Spent().refusal(Quota(0, 0, 0), NOW, **asked) is not None


@pytest.mark.parametrize(
    ("later_ms", "left"),
    [
        (0, (3, 2, 100)),
        (MINUTE_MS - 1, (3, 2, 100)),
        (MINUTE_MS, (0, 2, 100)),
        (DAY_MS - 1, (0, 2, 100)),
        (DAY_MS, (0, 0, 0)),
        (-DAY_MS, (3, 2, 100)),
    ],
)
def test_windows_end_by_the_clock_and_never_by_turning_it_back(later_ms: int, left: tuple[int, int, int]) -> None:
    spent = Spent().add(NOW, acts=3, roots=2, tokens=100).add(NOW + later_ms)
    assert (spent.acts, spent.roots, spent.tokens) == left


def test_tokens_that_were_reserved_and_not_used_come_back_the_same_day() -> None:
    reserved = Spent().add(NOW, tokens=100)
    assert reserved.add(NOW, tokens=-60).refusal(QUOTA, NOW, tokens=60) is None
    assert reserved.add(NOW + DAY_MS, tokens=-60).tokens == 0


@given(st.lists(st.tuples(st.integers(-DAY_MS, 2 * DAY_MS), st.integers(0, 3), st.integers(0, 2), st.integers(0, 60))))
def test_asking_first_keeps_every_window_within_its_quota(asked: list[tuple[int, int, int, int]]) -> None:
    spent = Spent()
    used: dict[tuple[str, int], int] = {}
    for at, acts, roots, tokens in asked:
        now = NOW + at
        if spent.refusal(QUOTA, now, acts, roots, tokens) is None:
            spent = spent.add(now, acts, roots, tokens)
            for name, window, count in (
                ("acts", spent.minute, acts),
                ("roots", spent.day, roots),
                ("tokens", spent.day, tokens),
            ):
                used[name, window] = used.get((name, window), 0) + count
    limits = {"acts": 3, "roots": 2, "tokens": 100}
    assert all(count <= limits[name] for (name, _), count in used.items())
