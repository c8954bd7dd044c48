"""What came of a simulation, for a person and for a script."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from nodes.sim.oracle import Outcome
from nodes.sim.scenario import Scenario
from protocol.link import QUOTAS
from protocol.quota import Quota

MOST: Final = 6  # reasons that are shown; JSON has all
GOT: Final = {  # what each trick is, and what it is after
    "forged": "words put into others' mouths",
    "raised": "answers with more budget than there was",
    "replayed": "frames sent again",
    "clock": "acts from next year, and from last year",
    "unshared": "acts in basins that nobody shares with them",
    "passed on": "acts told on to who may not have them",
}


@dataclass(frozen=True, slots=True)
class Run:
    """A simulation that is over. `cost` are the machine's own figures, which differ from run to run."""

    plan: Scenario
    outcome: Outcome
    refusals: Counter[str]
    silences: Counter[str]
    hostile: int
    digest: str
    cost: dict[str, float]

    @property
    def quota(self) -> Quota:
        """What each mesh lets its peers use."""
        return self.plan.allowance or QUOTAS[self.plan.trusting]


def told(run: Run) -> list[str]:
    """Lines for a person."""
    rows = [*_scene(run), *_talk(run), *_cost(run), *_hostile(run), *_reasons(run)]
    width = max(len(label) for label, _ in rows) + 2
    found = run.outcome.broken
    verdict = [f"BROKEN  {sentence}" for sentence in run.outcome.breaches]
    more = found.total() - len(verdict)
    verdict += [f"BROKEN  and {more:,} more like these"] if more > 0 else []
    kept = "Every promise was kept." if not found else f"Promises were broken: {found.total():,} times."
    return [f"{label:<{width}}{value}" for label, value in rows] + ["", *verdict, kept]


def as_json(run: Run) -> dict[str, Any]:
    """All of it."""
    outcome = run.outcome
    return {
        "scenario": run.plan.model_dump(),
        "digest": run.digest,
        "kept": not outcome.broken,
        "broken": dict(outcome.broken),
        "breaches": outcome.breaches,
        "said": outcome.said,
        "due": outcome.due,
        "delivered": outcome.delivered,
        "distances": {str(links): count for links, count in sorted(outcome.distances.items())},
        "unreadable": outcome.unreadable,
        "late": outcome.late,
        "catch_up_s": outcome.catch_up_ms / 1000,
        "longest_chain": outcome.longest,
        "deepest_chain": outcome.deepest,
        "overshoot": outcome.overshoot,
        "overshoot_of": outcome.overshoot_of,
        "tokens_for_others": outcome.spent_for_others,
        "most_tokens_for_one": outcome.most_spent,
        "most_chains_of_one": outcome.most_chains,
        "most_acts_a_minute": outcome.most_a_minute,
        "hostile": run.hostile,
        "tried": dict(outcome.tried),
        "got": dict(outcome.got),
        "refused": dict(run.refusals.most_common()),
        "silent": dict(run.silences.most_common()),
        "cost": run.cost,
    }


Row = tuple[str, str]


def _scene(run: Run) -> Iterator[Row]:
    plan = run.plan
    kind = "whole nodes" if plan.whole else "meshes"
    yield "the swarm", f"{plan.nodes:,} {kind}, {plan.shape}, {run.hostile:,} hostile; seed {plan.seed}"
    away = f"; {plan.partition:.0%} cut off for the middle third" if plan.partition else ""
    yield "the time", f"{plan.hours:g} h of talk, {plan.talk:g} words of a person an hour{away}"


def _talk(run: Run) -> Iterator[Row]:
    outcome = run.outcome
    yield "said", f"{outcome.said:,} acts"
    yield "delivered", f"{outcome.delivered:,} of {outcome.due:,} that were due to somebody else"
    if outcome.unreadable:
        yield "refused for a clock", f"{outcome.unreadable:,} that were dated more than five minutes ahead"
    far = [f"{count:,} over {links}" for links, count in sorted(outcome.distances.items())]
    yield "how far", f"{', '.join(far)} link{'s' if len(far) > 1 else ''}" if far else "nowhere"
    if run.plan.partition:
        yield "caught up", f"{outcome.late:,} acts in {outcome.catch_up_ms / 1000:.1f} s after the cut had ended"


def _cost(run: Run) -> Iterator[Row]:
    outcome, (hops, acts), quota = run.outcome, run.plan.budget, run.quota
    yield "longest chain", f"{outcome.longest} answers of {acts}, {outcome.deepest} hops deep of {hops}"
    if outcome.overshoot:
        yield "budget overshoot", f"{outcome.overshoot} acts, in a chain in which {outcome.overshoot_of} meshes spoke"
    yield "spent for others", f"{outcome.spent_for_others:,} tokens"
    yield "most for one peer", f"{outcome.most_spent:,} tokens of {quota.tokens_a_day:,} a day"
    yield "", f"{outcome.most_chains:,} chains of {quota.roots_a_day:,} a day"
    if not run.plan.whole:  # whole nodes keep no count of minutes that are over
        yield "", f"{outcome.most_a_minute:,} acts of {quota.acts_a_minute:,} a minute"


def _hostile(run: Run) -> Iterator[Row]:
    label = "hostile peers"
    for trick, count in run.outcome.tried.items():
        got = run.outcome.got[trick]
        yield label, f"{count:,} {GOT[trick]}: {f'{got:,} TAKEN' if got else 'none taken'}"
        label = ""
    if run.hostile > len(GOT):
        yield label, "a flood, and chains without end: held to the quotas above"


def _reasons(run: Run) -> Iterator[Row]:
    for label, reasons in (("refused", run.refusals), ("not answered", run.silences)):
        for reason, count in reasons.most_common(MOST):
            yield label, f"{count:,}: {reason}"
            label = ""  # noqa: PLW2901 - the first row alone is labelled
