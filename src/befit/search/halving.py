"""Successive halving without waiting, for one objective or several: after 1, 3, 9, … epochs only the best third goes on.

A trial that reaches a rung is ranked among all that have reached it so far; it goes on if it is in the top 1/factor of them
(the first ones always do, for they are the best so far). Nobody waits for others, so no worker is ever idle; the price is
that an early trial may go on which a later look would have stopped. With several objectives the order within a rung is by
nondominated fronts, crowding distance within a front. What was reached lies in the trials' attributes `rung:N`, so a
resumed study decides as if it had not been interrupted.

Source: ASHA, Li et al. 2020 (arXiv 1810.05934), in its stopping form; several objectives after Schmucker et al. 2021 (arXiv
2106.12639), with NSGA-II's crowding distance in place of their epsilon-net.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from befit.errors import BadData
from befit.search.pareto import crowding, fronts
from befit.search.trial import TrialRecord, higher_is_better


@dataclass(frozen=True, kw_only=True)
class Halving:
    """When to look, and how many go on."""

    first: int = 1
    """Epochs at the first rung, at least 1."""
    factor: int = 3
    """One of so many goes on, and each rung is so many times as long as the last; at least 2."""

    def __post_init__(self) -> None:
        if self.first < 1 or self.factor < 2:
            raise BadData(f"halving: first must be at least 1 and factor at least 2, got {self.first}, {self.factor}")

    def rung(self, epoch: int) -> bool:
        """Whether trials are compared after this epoch."""
        length = self.first
        while length < epoch:
            length *= self.factor
        return length == epoch

    def goes_on(self, number: int, epoch: int, records: Iterable[TrialRecord]) -> bool:
        """Whether the trial, which has reached this rung, is worth more epochs. `records` hold it and all others."""
        # A killed trial's values come again with the trial that repeats it.
        there = {one.number: one.rungs[epoch] for one in records if epoch in one.rungs and one.reason != "killed"}
        numbers = sorted(there)
        kept = keep([there[other] for other in numbers], self.factor)
        return number in {numbers[place] for place in kept}


def keep(points: Sequence[Sequence[float]], factor: int) -> list[int]:
    """The places of the best 1/factor of these objectives (accuracy, then costs), at least one, the best first.

    Among equals the earlier place is better.
    """
    upward = [higher_is_better(point) for point in points]
    order = list[int]()
    for front in fronts(upward):
        # Equal points are one point here: else the last of them would count as an end of the front.
        distinct = list(dict.fromkeys(upward[place] for place in front))
        apart = dict(zip(distinct, crowding(distinct), strict=True))
        order += sorted(front, key=lambda place: (-apart[upward[place]], place))
    return order[: max(1, len(points) // factor)]
