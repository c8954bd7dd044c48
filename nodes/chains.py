"""What every chain of replies may still spend, as this node sees it."""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from mesh.entries import Entry
from protocol.acts import Act
from protocol.budget import Budget
from protocol.keys import MeshId

MAX_CHAINS: Final = 16_384  # chains kept in mind; the oldest is forgotten, and its acts' own budgets still bind


@dataclass(slots=True)
class Chain:
    """One chain: its limit, the acts seen, reserved, and promised (said, and not heard yet), the tokens spent."""

    basin: str
    limit: Budget
    seen: int = 0
    reserved: int = 0
    tokens: int = 0
    reserved_tokens: int = 0
    stopped: bool = False
    promised: set[bytes] = field(default_factory=set[bytes])

    @property
    def acts_left(self) -> int:
        """Acts that nobody has said or reserved."""
        return self.limit.acts - self.seen - self.reserved - len(self.promised)

    @property
    def tokens_left(self) -> int:
        """Tokens that nobody is known to have spent."""
        return self.limit.tokens - self.tokens


class Chains:
    """All chains of a node of `mesh`. An act is reserved before a model is called: no two ems spend the last one."""

    def __init__(self, mesh: MeshId) -> None:
        self._mesh = mesh
        self._chains: OrderedDict[bytes, Chain] = OrderedDict()

    def hear(self, entry: Entry) -> None:
        """Count an act. A `cancel` of a person here stops every chain of its basin that began before it."""
        act = entry.act
        if self.is_stop(entry):
            self.stop(entry.basin)
            return
        chain = self._chains.get(act.root)
        if chain is None:
            chain = self._chains[act.root] = Chain(entry.basin, act.budget)
            if len(self._chains) > MAX_CHAINS:
                self._chains.popitem(last=False)
        if not act.is_root:
            chain.promised.discard(act.id)
            chain.seen += 1
            chain.tokens = max(chain.tokens, chain.limit.tokens - act.budget.tokens)

    def is_stop(self, entry: Entry) -> bool:
        """Whether an act is a word of a person here that all talk in its basin is to end."""
        return entry.act.kind == "cancel" and entry.act.is_root and entry.mesh == self._mesh

    def spent(self, act: Act, now_ms: int) -> str | None:
        """Why nobody may answer this act, or None. The act must have been heard."""
        if reason := act.budget.spent(now_ms):
            return reason
        chain = self._chains.get(act.root)
        if chain is None:
            return "its chain is forgotten"
        if chain.stopped:
            return "a person stopped it"
        if chain.acts_left <= 0:
            return "no acts left"
        return "no tokens left" if chain.tokens_left <= 0 else None

    def reserve(self, act: Act, tokens: int, now_ms: int) -> str | None:
        """Reserve one act and up to `tokens` for an answer; returns why not, or None when it is reserved."""
        if reason := self.spent(act, now_ms):
            return reason
        chain = self._chains[act.root]
        if chain.tokens_left - chain.reserved_tokens < tokens:
            return "too few tokens left for a reply"
        chain.reserved += 1
        chain.reserved_tokens += tokens
        return None

    def settle(self, act: Act, reserved_tokens: int, used_tokens: int) -> Budget:
        """End a reservation; returns the budget that an answer carries. Follow it with `promise` if there is one."""
        chain = self._chains.get(act.root)
        if chain is None:
            return act.budget.child(0, 0)
        chain.reserved_tokens -= reserved_tokens
        chain.tokens += used_tokens
        budget = act.budget.child(chain.acts_left, chain.tokens_left)
        chain.reserved -= 1
        return budget

    def promise(self, act: Act) -> None:
        """Count an answer that is on its way, until it is heard."""
        if chain := self._chains.get(act.root):
            chain.promised.add(act.id)

    def used(self, root: bytes) -> tuple[int, int]:
        """The acts that answer within a chain, promised ones included, and its tokens; nothing when it is forgotten."""
        chain = self._chains.get(root)
        return (chain.seen + chain.reserved + len(chain.promised), chain.tokens) if chain else (0, 0)

    def stop(self, basin: str) -> None:
        """Stop every chain of a basin."""
        for chain in self._chains.values():
            if chain.basin == basin:
                chain.stopped = True

    def stopped(self, act: Act) -> bool:
        """Whether a person stopped the chain of this act."""
        chain = self._chains.get(act.root)
        return chain is not None and chain.stopped
