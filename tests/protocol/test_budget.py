"""Budgets never rise along a chain."""

import pytest
from acts_strategies import budgets, counts
from hypothesis import given
from hypothesis import strategies as st

from protocol.budget import Budget, check_child
from protocol.errors import BudgetRaised


@given(budgets, st.lists(st.tuples(counts, counts), max_size=20))
def test_no_field_ever_rises_along_a_chain(root: Budget, left: list[tuple[int, int]]) -> None:
    budget = root
    for acts_left, tokens_left in left:
        if budget.hops == 0:
            with pytest.raises(ValueError, match="hops"):
                budget.child(acts_left, tokens_left)
            return
        child = budget.child(acts_left, tokens_left)
        check_child(budget, child)
        assert child.hops == budget.hops - 1
        assert child.acts <= min(budget.acts, acts_left)
        assert child.tokens <= min(budget.tokens, tokens_left)
        budget = child


@given(budgets, budgets)
def test_a_child_is_refused_exactly_when_it_leaves_more(parent: Budget, child: Budget) -> None:
    honest = (
        child.hops < parent.hops
        and child.acts <= parent.acts
        and child.tokens <= parent.tokens
        and child.until_ms <= parent.until_ms
    )
    if honest:
        check_child(parent, child)
    else:
        with pytest.raises(BudgetRaised):
            check_child(parent, child)


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(1, 1, 1, 11), None),
        (Budget(0, 1, 1, 11), "no hops left"),
        (Budget(1, 0, 1, 11), "no acts left"),
        (Budget(1, 1, 0, 11), "no tokens left"),
        (Budget(1, 1, 1, 10), "its time is over"),
    ],
)
def test_a_chain_is_spent_when_anything_of_it_is(budget: Budget, reason: str | None) -> None:
    assert budget.spent(now_ms=10) == reason
