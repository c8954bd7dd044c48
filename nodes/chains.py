"""What every chain of replies may still spend, as this node sees it."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mesh.entries import Entry
from protocol.acts import Act
from protocol.budget import Budget
from protocol.keys import MeshId

Mint = Callable[[str, int], Budget]  # a basin and Unix milliseconds: what a chain that begins there then gets here

STOPPED: Final = "Enough for now."  # what a person says who has all talk of a basin end
SHARES: Final = 2  # of what is left to a mesh, it may have one under way: the rest is for what comes of it
MAX_CHAINS: Final = 16_384  # chains kept in mind; the oldest is forgotten, and its acts' own budgets still bind


@dataclass(slots=True)
class Chain:
    """One chain: its limit, the acts seen, reserved, and promised (said, and not heard yet), the tokens spent.

    `begun` is what it began with, `limit` what of that counts here, `mesh` who began it, as far as was heard.
    `charged`: the meshes among whose chains of today it is counted.
    """

    basin: str
    limit: Budget
    begun: Budget
    mesh: MeshId
    seen: int = 0
    reserved: int = 0
    tokens: int = 0
    reserved_tokens: int = 0
    stopped: bool = False
    promised: set[bytes] = field(default_factory=set[bytes])
    charged: set[MeshId] = field(default_factory=set[MeshId])
    others: set[MeshId] = field(default_factory=set[MeshId])  # beside this node's mesh, that were heard in it
    sharers: int = 0  # other meshes that may speak in its basin

    def widen(self, limit: Budget, begun: Budget) -> None:
        """Somebody else has used the root's id for a root of its own: nobody's copy ends what the other began.

        Acts do not tell which of the two they come from: what each began with beyond its limit is taken for the lesser.
        """
        hops = min(self.begun.hops - self.limit.hops, begun.hops - limit.hops)
        tokens = min(self.begun.tokens - self.limit.tokens, begun.tokens - limit.tokens)
        self.limit = wide = _widest(self.limit, limit)
        self.begun = Budget(wide.hops + hops, wide.acts, wide.tokens + tokens, wide.until_ms)

    @property
    def acts_left(self) -> int:
        """Acts that nobody has said or reserved."""
        return self.limit.acts - self.seen - self.reserved - len(self.promised)

    @property
    def acts_free(self) -> int:
        """Acts that may be begun here: where other meshes may speak as well, a share of what is left, or one.

        What they have begun is not heard yet. The share is small enough that what was begun early is said before the
        end; there each of n nodes has one act under way, so that n - 1 are said beyond the limit.
        """
        others = max(len(self.others), self.sharers)
        if not others:
            return self.acts_left
        left = self.limit.acts - self.seen
        share = max(1, left // (SHARES * (others + 1)))
        return min(self.acts_left, share - self.reserved - len(self.promised))

    @property
    def tokens_left(self) -> int:
        """Tokens that nobody is known to have spent."""
        return self.limit.tokens - self.tokens

    def spent_by(self, act: Act) -> int:
        """The tokens that were spent before an act, as far as it tells. Our own answers tell it of `limit`."""
        left = act.budget.tokens
        return (self.begun if left > self.limit.tokens else self.limit).tokens - left

    def spent(self, act: Act, now_ms: int) -> str | None:
        """Why an act of another mesh's chain, which may go on as they see it, has come to its end for us, or None."""
        if act.budget.hops <= self.begun.hops - self.limit.hops:
            return "no hops left of what a chain from elsewhere gets here"
        return "its time is over, of what a chain from elsewhere gets here" if now_ms >= self.limit.until_ms else None


class Chains:
    """All chains of a node of `mesh`. An act is reserved before a model is called: no two ems spend the last one.

    Chains that other meshes began get no more here than one of our own would: `mint` tells what that is. `sharers`
    tells how many other meshes may speak in a basin.
    """

    def __init__(self, mesh: MeshId, mint: Mint | None = None, sharers: Callable[[str], int] = lambda _: 0) -> None:
        self._mesh, self._mint, self._sharers = mesh, mint, sharers
        self._chains: OrderedDict[bytes, Chain] = OrderedDict()

    def hear(self, entry: Entry) -> None:
        """Count an act. A `cancel` of a person here stops every chain of its basin that began before it."""
        act = entry.act
        if self.is_stop(entry):
            self.stop(entry.basin)
            return
        chain = self._chains.get(act.root)
        if chain is None:
            limit = act.budget if entry.mesh == self._mesh else self._clamped(entry)
            chain = self._chains[act.root] = Chain(entry.basin, limit, act.budget, entry.mesh)
            if len(self._chains) > MAX_CHAINS:
                self._chains.popitem(last=False)
            chain.sharers = self._sharers(entry.basin)
        elif act.is_root and chain.mesh not in {entry.mesh, self._mesh}:
            chain.widen(self._clamped(entry), act.budget)
        if entry.mesh != self._mesh:
            chain.others.add(entry.mesh)
        if not act.is_root:
            chain.promised.discard(act.id)
            chain.seen += 1
            chain.tokens = max(chain.tokens, chain.spent_by(act))

    def _clamped(self, entry: Entry) -> Budget:
        """What a chain that another mesh began may spend here."""
        told = entry.act.budget
        if self._mint is None:
            return told
        ours = self._mint(entry.basin, entry.act.at_ms)
        return Budget(
            min(told.hops, ours.hops),
            min(told.acts, ours.acts),
            min(told.tokens, ours.tokens),
            min(told.until_ms, ours.until_ms),
        )

    def charge(self, entry: Entry) -> tuple[MeshId, bool] | None:
        """Which other mesh pays for an answer to this act, and whether its chain is counted already; None: nobody.

        Whoever began the chain; for an answer to a root itself, whoever said it.
        """
        chain = self._chains.get(entry.act.root)
        if chain is None:
            return None
        payer = entry.mesh if entry.act.is_root else chain.mesh
        return None if payer == self._mesh else (payer, payer in chain.charged)

    def charged(self, act: Act, mesh: MeshId) -> None:
        """The chain of this act has been counted among those that a mesh began."""
        if chain := self._chains.get(act.root):
            chain.charged.add(mesh)

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
        if reason := chain.spent(act, now_ms):
            return reason
        if chain.acts_free <= 0:
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


def _widest(one: Budget, other: Budget) -> Budget:
    return Budget(
        max(one.hops, other.hops),
        max(one.acts, other.acts),
        max(one.tokens, other.tokens),
        max(one.until_ms, other.until_ms),
    )
