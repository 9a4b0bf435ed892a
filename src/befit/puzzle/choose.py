"""From scores and costs to one child that meets the budget as measured.

Solve, assemble the best few solutions, polish on true KL, then run the winner on the device beside its parent. Predicted
milliseconds are not measured ones: where the measured child breaks a bound, that bound is tightened until the prediction for
this child would have broken it too, and the search is repeated, at most `ROUNDS` times.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from befit.arch.decoder import DecoderArch
from befit.budget import Bound, Budget
from befit.errors import Infeasible
from befit.progress import Progress, silent
from befit.puzzle.polish import Judge, PolishConfig, Tried, polish
from befit.puzzle.prices import Prices
from befit.puzzle.score import Scores
from befit.puzzle.solve import best_batch, solve

ROUNDS = 4
"""Attempts to meet the budget as measured."""
MARGIN = 0.95
"""Share of a bound that a measured time may use, so that the next measurement of the same child keeps the bound too."""
TIMED = ("prefill_ms", "decode_ms", "latency_ms", "tokens_per_s")
"""Costs that are measured, not counted."""

Measure = Callable[[DecoderArch, int], tuple[dict[str, float], dict[str, float]]]
"""The measured costs of the parent and of a child at a batch size, taken side by side."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The child to heal, and how it was found."""

    arch: DecoderArch
    """What it is."""
    batch: int
    """Requests together: the workload's, or the best of those tried for a throughput bound."""
    kl: float
    """True KL to the parent before healing, nats a token."""
    kl_sum: float
    """The sum of scores that predicted it."""
    budget: Budget
    """The absolute budget that was solved in the end, tightened where measurements asked for it."""
    met: bool
    """Whether the measured child keeps every bound of the budget as it was given."""
    solved: int
    """Solutions the solver gave, over all rounds."""
    tried: tuple[Tried, ...]
    """Every child whose true KL was measured, best first."""

    def to_json(self) -> dict[str, Any]:
        """For a stage folder."""
        plain = {name: getattr(self, name) for name in ("batch", "kl", "kl_sum", "met", "solved")}
        tried = [{"arch": t.arch.to_json(), "kl": t.kl, "origin": t.origin} for t in self.tried]
        return plain | {"arch": self.arch.to_json(), "budget": self.budget.to_json(), "tried": tried}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Chosen":
        """What `to_json` gave."""
        tried = tuple(
            Tried(arch=DecoderArch.from_json(t["arch"]), kl=t["kl"], origin=t["origin"]) for t in data["tried"]
        )
        arch, budget = DecoderArch.from_json(data["arch"]), Budget.from_json(data["budget"])
        return Chosen(**{**data, "arch": arch, "budget": budget, "tried": tried})


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """All that is known before a budget is: what options cost and score, and how to tell a child's true KL."""

    prices: Mapping[int, Prices]
    """For each batch size that may be used."""
    base: int
    """The workload's own batch size, where relative bounds are meant."""
    scores: Scores
    """What each replacement costs in quality."""
    true_kls: Callable[[Sequence[DecoderArch]], Sequence[float]]
    """The real KL of whole children."""
    config: PolishConfig
    """How long to polish."""
    solutions: int = 6
    """Diverse solutions to compare by true KL."""
    progress: Progress = silent
    """Shows the search going on."""

    def choose(self, budget: Budget, measure: Measure | None) -> Chosen:
        """The best child within `budget` (as the user gave it).

        `measure` runs a child on the device; None trusts predictions. Raises `Infeasible` when no child meets the
        budget as predicted.
        """
        own = self.prices[self.base].space.shape.arch
        solved_for = budget.resolve(self.prices[self.base].arch(own))
        tried: tuple[Tried, ...] = ()
        count, chosen = 0, None
        for _ in range(ROUNDS if measure else 1):
            try:
                batch, found = self._solutions(solved_for)
            except Infeasible:
                if chosen is None:
                    raise
                break  # Tightened beyond what exists: the last child stays, marked as not meeting the budget.
            count += len(found)
            tried = self._polish(batch, solved_for, found, tried)
            best = tried[0]
            kl_sum = self.scores.total(best.arch)
            kept = {"arch": best.arch, "batch": batch, "kl": best.kl, "kl_sum": kl_sum}
            chosen = Chosen(**kept, budget=solved_for, met=True, solved=count, tried=tried)
            if measure is None:
                break
            parent_costs, child_costs = measure(best.arch, batch)
            wanted = budget.resolve(parent_costs)
            if not any(_breaks(bound, child_costs) for bound in wanted.bounds):
                break
            chosen = replace(chosen, met=False)
            solved_for = _tightened(solved_for, wanted, self.prices[batch].arch(best.arch), child_costs)
        assert chosen is not None
        return chosen

    def _solutions(self, budget: Budget) -> tuple[int, list[DecoderArch]]:
        """The best batch and its diverse solutions, best first."""
        tables = {batch: price.table(self.scores) for batch, price in self.prices.items()}
        batch, _ = best_batch(tables, lambda b: self.prices[b].bounds(budget))
        price = self.prices[batch]
        found = solve(tables[batch], price.bounds(budget), solutions=self.solutions)
        return batch, [_arch(price, solution.choice) for solution in found]

    def _polish(
        self, batch: int, budget: Budget, found: Sequence[DecoderArch], before: Sequence[Tried]
    ) -> tuple[Tried, ...]:
        """Polish from the solver's solutions and from what earlier rounds found, as far as it still fits."""
        price = self.prices[batch]
        fits = affordable(price, budget)
        starts = [(f"solution {i + 1}", arch) for i, arch in enumerate(found)]
        starts += [(t.origin, t.arch) for t in before if fits(t.arch)][:4]
        judge = Judge(true_kls=self.true_kls, predicted=self.scores.total, affordable=fits)
        return polish(starts, price.space, judge, self.config, progress=self.progress)


def front(prices: Prices, scores: Scores, budget: Budget, steps: Sequence[float]) -> list[dict[str, Any]]:
    """The solver's best at multiples of the budget's upper bounds: predicted quality against predicted cost."""
    table, points = prices.table(scores), []
    for factor in steps:
        scaled = budget.tighten({bound.cost: factor for bound in budget.bounds})
        try:
            solution = solve(table, prices.bounds(scaled))[0]
        except Infeasible:
            continue
        arch = _arch(prices, solution.choice)
        points.append({"budget": str(scaled), "factor": factor, "kl_sum": solution.score, "costs": prices.arch(arch)})
    return points


def affordable(prices: Prices, budget: Budget) -> Callable[[DecoderArch], bool]:
    """Whether a child's predicted costs keep an absolute budget."""
    return lambda arch: budget.met(prices.arch(arch))


def _arch(prices: Prices, choice: Sequence[int]) -> DecoderArch:
    return DecoderArch(blocks=tuple(prices.space.blocks(layer)[k] for layer, k in enumerate(choice)))


def _breaks(bound: Bound, costs: Mapping[str, float]) -> bool:
    """Whether a measured time leaves less than the margin; counted costs are certain and need none."""
    return bound.cost in TIMED and bound.excess(costs[bound.cost]) > MARGIN - 1


def _tightened(
    solved_for: Budget, wanted: Budget, predicted: Mapping[str, float], measured: Mapping[str, float]
) -> Budget:
    """Bounds on predictions that would have kept the broken ones of `wanted`: the measured child itself breaks them.

    Another child is expected to miss its prediction by the same factor.
    """
    bounds = []
    for old, limit in zip(solved_for.bounds, wanted.bounds, strict=True):
        if _breaks(limit, measured):
            value = limit.value * predicted[old.cost] / measured[old.cost]
            narrow = min(old.value, MARGIN * value) if old.op == "<=" else max(old.value, value / MARGIN)
            bounds.append(replace(old, value=narrow))
        else:
            bounds.append(old)
    return Budget(bounds=tuple(bounds))
