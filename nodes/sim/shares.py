"""Which basins the meshes of a scenario share with whom."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from nodes.sim.mesh import home
from nodes.sim.scenario import Scenario
from nodes.sim.shape import Pair
from protocol.statement import May

COMMON = "tea"


class Share(NamedTuple):
    """What one gives to another, who takes it as it is given."""

    giver: int
    taker: int
    basin: str
    may: May


def shares(plan: Scenario, links: Sequence[Pair], dice: random.Random) -> list[Share]:
    """All shares of a scenario."""
    both = [(giver, taker) for one, other in links for giver, taker in ((one, other), (other, one))]
    if plan.basins == "common":
        return [Share(giver, taker, COMMON, "write") for giver, taker in both]
    found = [Share(giver, taker, home(giver), "write") for giver, taker in both]
    peers = defaultdict[int, list[int]](list)
    for giver, taker in both:
        peers[giver].append(taker)
    for middle in range(plan.nodes):
        if dice.random() < plan.relays and len(peers[middle]) > 1:
            origin, listener = dice.sample(peers[middle], 2)
            if listener not in peers[origin]:
                found.append(Share(middle, listener, home(origin), "read"))
    return found


def roads(given: Sequence[Share]) -> dict[str, dict[int, list[int]]]:
    """By basin and mesh, to whom what is there goes: from giver to taker, and back where the taker may write."""
    found = defaultdict[str, defaultdict[int, list[int]]](lambda: defaultdict(list))
    for one in given:
        found[one.basin][one.giver].append(one.taker)
        if one.may == "write":
            found[one.basin][one.taker].append(one.giver)
    return {basin: dict(ways) for basin, ways in found.items()}
