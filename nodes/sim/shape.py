"""Who is linked with whom."""

import random
from collections.abc import Iterable
from typing import Final

from nodes.sim.scenario import Scenario

REWIRED: Final = 0.1  # of a small world's links lead anywhere (Watts and Strogatz, 1998)

Pair = tuple[int, int]


def pairs(plan: Scenario, dice: random.Random) -> list[Pair]:
    """The links of a scenario, each once, the smaller number first, in order."""
    number = plan.nodes
    match plan.shape:
        case "line":
            found = _sorted((at, at + 1) for at in range(number - 1))
        case "ring":
            found = _sorted((at, (at + 1) % number) for at in range(number))
        case "star":
            found = _sorted((0, at) for at in range(1, number))
        case "small-world":
            found = _rewired(_neighbours(number, plan.links), number, dice)
        case "random":
            found = _random(plan, dice)
    return found


def _sorted(links: Iterable[Pair]) -> list[Pair]:
    return sorted({(min(pair), max(pair)) for pair in links if pair[0] != pair[1]})


def _neighbours(number: int, links: int) -> list[Pair]:
    """A ring in which each is linked with the nearest, half of them on either side; of an odd number, every other."""
    sides = [max(1, links // 2), max(1, (links + 1) // 2)]
    return _sorted((at, (at + step) % number) for at in range(number) for step in range(1, sides[at % 2] + 1))


def _rewired(near: list[Pair], number: int, dice: random.Random) -> list[Pair]:
    """A ring of neighbours, of whose links some lead anywhere instead."""
    found = set(near)
    for one, other in near:
        there = dice.randrange(number)
        pair = (min(one, there), max(one, there))
        if dice.random() < REWIRED and one != there and pair not in found:
            found.discard((one, other))
            found.add(pair)
    return sorted(found)


def _random(plan: Scenario, dice: random.Random) -> list[Pair]:
    """A ring, so that nobody is alone, and links between anybody."""
    found = set(_sorted((at, (at + 1) % plan.nodes) for at in range(plan.nodes)))
    wanted = min(plan.nodes * plan.links // 2, plan.nodes * (plan.nodes - 1) // 2)
    while len(found) < wanted:
        one, other = sorted(dice.sample(range(plan.nodes), 2))
        found.add((one, other))
    return sorted(found)
