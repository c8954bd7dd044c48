"""What a reply may cost: its chain, the mesh that began it and the em each set a limit, before a model is asked."""

from typing import Final

from mesh.clock import Clock
from mesh.entries import Entry
from nodes.chains import Chains
from nodes.em import Em
from nodes.models.base import Usage
from nodes.quotas import Nobody, Quotas
from nodes.speaker import Draft, Models
from nodes.turns import Turns
from protocol.budget import Budget

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
PRICED: Final = 1_000_000  # tokens: a model that asks nothing for so many asks nothing


class Purse:
    """Reserves what a reply may cost at most, and settles what it did cost."""

    def __init__(self, chains: Chains, models: Models, turns: Turns, clock: Clock) -> None:
        self.quotas: Quotas = Nobody()
        self._chains, self._models, self._turns, self._clock = chains, models, turns, clock

    def reserve(self, em: Em, entry: Entry, plan: Draft) -> str | None:
        """Reserve an em's answer to an act; returns why not, or None: then `settle` must follow.

        Who began the chain is not charged for tokens that cost nobody anything.
        """
        act, now = entry.act, self._clock()
        if reason := self._over_budget(em, plan.cost, now) or self._chains.reserve(act, plan.cost, now):
            return reason
        if charge := self._chains.charge(entry):
            mesh, is_counted = charge
            cost = 0 if self._is_free(plan) else plan.cost
            if reason := self.quotas.reserve(mesh, cost, begins=not is_counted):
                self._chains.settle(act, plan.cost, 0)
                return reason
            self._chains.charged(act, mesh)
        return None

    def settle(self, entry: Entry, plan: Draft, usage: Usage) -> Budget:
        """What was reserved and not used is given back; returns the budget that the answer carries."""
        used = usage.prompt + usage.completion
        if charge := self._chains.charge(entry):
            price = self._models.price(plan.request.model, usage)
            self.quotas.settle(charge[0], used if self._is_free(plan) else plan.cost, used, price)
        return self._chains.settle(entry.act, plan.cost, used)

    def _is_free(self, plan: Draft) -> bool:
        return self._models.price(plan.request.model, Usage(PRICED, PRICED)) == 0

    def _over_budget(self, em: Em, cost: int, now: int) -> str | None:
        """Whether the em's own limits allow another reply of at most `cost` tokens."""
        budget = em.settings.budget
        if budget.replies_per_hour is not None:
            replies, _ = self._turns.spent_since(em.name, now - HOUR_MS)
            if replies >= budget.replies_per_hour:
                return f"its {budget.replies_per_hour} replies an hour are used up"
        if budget.tokens_per_day is not None:
            _, used = self._turns.spent_since(em.name, now - DAY_MS)
            if used + cost > budget.tokens_per_day:
                return f"its {budget.tokens_per_day} tokens a day would not last for a reply"
        return None
