"""From how much each option is wished for to the one arch that meets a budget: the highest sum of scores inside the bounds.

Archs come out of `ranked` in exact order of their score, so the first inside the budget is the best there is. Only where a
space is so large and a budget so far from the wishes that none is found among very many, the search goes on from the nearest
of them by single changes; the result says so.

Nothing here imports torch.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from befit.arch.space import Arch, Space, Value
from befit.budget import Bound, Budget
from befit.errors import Infeasible

Scores = Mapping[str, Sequence[float]]
"""For each choice the score of each of its options, such as a log-probability; that of an arch is the sum over what it takes."""

Price = Callable[[Arch], Mapping[str, float]]
"""The costs of an arch by the names that budgets use."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What archs cost, and what they may cost."""

    price: Price
    """The same for equal archs, and cheap: a search asks it of very many."""
    budget: Budget | None = None
    """Absolute bounds on costs that `price` names; anything goes if None."""

    def met(self, costs: Mapping[str, float]) -> bool:
        return self.budget is None or self.budget.met(costs)


LOOKS = 100_000
"""Archs whose price is asked in order of their score, at most."""


@dataclass(frozen=True, kw_only=True)
class Projected:
    """The arch that a budget leaves of what was wished for."""

    arch: Arch
    score: float
    """Sum of the scores of the options taken."""
    best: float
    """The same without a budget; never lower."""
    costs: Mapping[str, float]
    """Of the arch."""
    looked: int
    """Archs whose price was asked."""
    exact: bool
    """Whether no legal arch inside the budget has a higher score."""


def score_of(space: Space, scores: Scores, arch: Arch) -> float:
    """The sum of the scores of the options that an arch takes."""
    return sum(scores[name][space.choices[name].options.index(value)] for name, value in arch.items())


def ranked(space: Space, scores: Scores) -> Iterator[Arch]:
    """Every legal arch once, the highest score first.

    Best-first over choices in order: what is still open counts as its best option, and as nothing where it may stay closed if
    that is better, so nothing comes out before all that could be above it.
    """
    names = list(space.choices)
    hope = [0.0] * (len(names) + 1)
    for place in range(len(names) - 1, -1, -1):
        best, choice = max(scores[names[place]]), space.choices[names[place]]
        hope[place] = hope[place + 1] + (max(best, 0.0) if choice.when else best)
    # Deeper first among equals, so that level scores do not unfold the whole space; then the order of options.
    queue: list[tuple[float, int, tuple[int, ...], float]] = [(-hope[0], 0, (), 0.0)]
    while queue:
        _, _, path, score = heapq.heappop(queue)
        place = len(path)
        taken = _taken(space, names, path)
        if place == len(names):
            arch = Arch(tuple(taken.items()))
            if space.legal is None or space.legal(arch):
                yield arch
            continue
        choice = space.choices[names[place]]
        following = range(len(choice.options)) if choice.open(taken) else (-1,)
        for k in following:
            total = score if k < 0 else score + scores[names[place]][k]
            heapq.heappush(queue, (-total - hope[place + 1], -place - 1, (*path, k), total))


def project(space: Space, scores: Scores, limits: Limits) -> Projected:
    """The legal arch of the highest score whose costs are inside the budget; the highest at all without one.

    Raises `Infeasible` with the nearest arch's costs if none does.
    """
    nearest: tuple[float, Arch] | None = None
    best, looked = 0.0, 0
    for arch in ranked(space, scores):
        score = score_of(space, scores, arch)
        best = score if looked == 0 else best
        costs = limits.price(arch)
        looked += 1
        if limits.budget is None or limits.budget.met(costs):
            return Projected(arch=arch, score=score, best=best, costs=costs, looked=looked, exact=True)
        excess = _excess(limits.budget, costs)
        if nearest is None or excess < nearest[0]:
            nearest = (excess, arch)
        if looked == LOOKS:
            break
    assert limits.budget is not None and nearest is not None  # a space whose rule refuses everything has no scores
    if looked < LOOKS:
        raise _infeasible(limits.budget, limits.price(nearest[1]), f"none of the {looked:,} archs of the space")
    arch, asked = _by_single_changes(space, scores, limits, nearest[1])
    score = score_of(space, scores, arch)
    return Projected(arch=arch, score=score, best=best, costs=limits.price(arch), looked=looked + asked, exact=False)


def _by_single_changes(space: Space, scores: Scores, limits: Limits, start: Arch) -> tuple[Arch, int]:
    """Into the budget by the change that brings an arch nearest to it, then up in score inside it; and how many were asked."""
    budget, price = limits.budget, limits.price
    assert budget is not None
    arch, asked, excess = start, 0, _excess(budget, price(start))
    while excess > 0:
        around = [
            (_excess(budget, price(other)), -score_of(space, scores, other), other) for other in space.neighbours(arch)
        ]
        asked += len(around)
        least, _, other = min(around, key=lambda entry: entry[:2], default=(excess, 0.0, arch))
        if least >= excess:
            raise _infeasible(budget, price(arch), f"none of {LOOKS + asked:,} archs that were looked at")
        arch, excess = other, least
    while True:
        ranks = [(score_of(space, scores, other), other) for other in space.neighbours(arch)]
        better = [entry for entry in ranks if entry[0] > score_of(space, scores, arch)]
        asked += len(better)
        inside = [entry for entry in better if budget.met(price(entry[1]))]
        if not inside:
            return arch, asked
        arch = max(inside, key=lambda entry: entry[0])[1]


def _taken(space: Space, names: Sequence[str], path: Sequence[int]) -> dict[str, Value]:
    pairs = zip(names, path, strict=False)
    return {name: space.choices[name].options[k] for name, k in pairs if k >= 0}


def _excess(budget: Budget, costs: Mapping[str, float]) -> float:
    """By what fraction of its bound the worst cost breaks it; 0 inside, infinite where a cost is no number."""
    rooms = budget.headroom(costs).values()
    return math.inf if any(math.isnan(room) for room in rooms) else max(0.0, *(-room for room in rooms))


def _infeasible(budget: Budget, costs: Mapping[str, float], who: str) -> Infeasible:
    binding: Bound = max(budget.bounds, key=lambda bound: bound.excess(costs[bound.cost]))
    told = "; ".join(budget.explain(costs))
    return Infeasible(
        f"{who} meets {budget}; the nearest has {told}. Loosen {binding}, or search a space with cheaper options",
        binding=str(binding),
        nearest={bound.cost: costs[bound.cost] for bound in budget.bounds},
    )
