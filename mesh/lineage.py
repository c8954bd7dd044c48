"""Whether an act keeps to the chain in which it says that it answers: its parents are known, or it is a root."""

from typing import Final

from mesh.entries import every, find
from mesh.store import Store
from protocol.acts import Act
from protocol.budget import Budget, check_child
from protocol.errors import BadAct, BudgetRaised

PARENTS: Final = 16_384  # recent acts whose budgets are kept in memory for checking what answers them

_Left = tuple[bytes, Budget]  # an act's root, and what it left its chain


class Lineage:
    """Remembers what acts left their chains."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: dict[bytes, _Left] = {}

    def breach(self, act: Act) -> BadAct | BudgetRaised | None:
        """How an act breaks with what its parent left the chain, or its root did; a lawful one is remembered."""
        parent = None if act.is_root else self._left_by(act.refs[0]) or self._left_by(act.root)
        if parent is not None and (error := _breach(parent, act)):
            # It may answer what another mesh said under that id: nobody's copy of an act bars what answers the act.
            others = every(self._store, act.refs[0]) or every(self._store, act.root)
            if all(_breach((one.act.root, one.act.budget), act) for one in others):
                return error
        if len(self._recent) >= PARENTS:
            self._recent.clear()  # the store has them all
        self._recent[act.id] = (act.root, act.budget)
        return None

    def _left_by(self, identity: bytes) -> _Left | None:
        if known := self._recent.get(identity):
            return known
        entry = find(self._store, identity)
        return (entry.act.root, entry.act.budget) if entry else None


def _breach(parent: _Left, act: Act) -> BadAct | BudgetRaised | None:
    """How an act breaks the rules of the chain that it says it answers in, or None."""
    root, budget = parent
    if act.root != root:
        return BadAct("the act is of another chain than the one that it answers")
    try:
        check_child(budget, act.budget)
    except BudgetRaised as error:
        return error
    return None
