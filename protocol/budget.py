"""Causal budgets: why the swarm ends.

A root act mints a budget; every act that answers takes one hop and may only lower the rest. An honest node speaks into
no chain that is spent, and a frame whose act raises what its parent left is refused.
"""

from typing import Annotated, Final

import msgspec

from protocol.errors import BudgetRaised

MAX_COUNT: Final = 2**53 - 1  # every language can hold it exactly

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class Budget(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """What is left for a chain after the act that carries it.

    `hops` replies deep, `acts` in all, model `tokens`, until `until_ms` (Unix milliseconds).
    """

    hops: Count
    acts: Count
    tokens: Count
    until_ms: Count

    def spent(self, now_ms: int) -> str | None:
        """Why nobody may answer any more, as a phrase for a person; None while they may."""
        if self.hops == 0:
            return "no hops left"
        if self.acts == 0:
            return "no acts left"
        if self.tokens == 0:
            return "no tokens left"
        if now_ms >= self.until_ms:
            return "its time is over"
        return None

    def child(self, acts_left: int, tokens_left: int) -> "Budget":
        """The budget of an answer: one hop less, and never more acts or tokens than the parent left.

        `acts_left` and `tokens_left` are what the answering node has seen the whole chain leave. The parent must not
        be out of hops.
        """
        if self.hops == 0:
            raise ValueError("the chain has no hops left")
        return Budget(
            self.hops - 1, max(0, min(self.acts, acts_left)), max(0, min(self.tokens, tokens_left)), self.until_ms
        )


def check_child(parent: Budget, child: Budget) -> None:
    """Raise BudgetRaised unless `child` takes at least a hop and leaves no more of anything than `parent`."""
    if child.hops >= parent.hops:
        raise BudgetRaised("hops", parent.hops, child.hops)
    if child.acts > parent.acts:
        raise BudgetRaised("acts", parent.acts, child.acts)
    if child.tokens > parent.tokens:
        raise BudgetRaised("tokens", parent.tokens, child.tokens)
    if child.until_ms > parent.until_ms:
        raise BudgetRaised("until_ms", parent.until_ms, child.until_ms)
