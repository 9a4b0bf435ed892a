"""What an arch costs, before anything is trained: exact counts, a predicted latency, and at last one measured on the target.

Nothing over the budget is trained. The cheap part (`Pricer.allowed`) is asked by searchers for every candidate they think
of, thousands in a second; the dear part, a latency measured with the untrained network, only for those that are tried. Where
a target's latency can be predicted, most of what is too slow is never even built.
"""

import functools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.budget import Bound, Budget, word_of
from befit.errors import BadBudget, Infeasible, TrialFailed

if TYPE_CHECKING:
    from befit.vision.blueprint import Blueprint

EXACT = ("params", "macs", "memory_bytes")
LATENCY = "latency_ms"


@dataclass(frozen=True, kw_only=True)
class Priced:
    """The costs of one arch as far as they are known, each by how it is known."""

    counted: Mapping[str, float]
    """Exact: params, macs, memory_bytes."""
    predicted: Mapping[str, float] = field(default_factory=dict[str, float])
    """latency_ms, by a model of the target."""
    measured: Mapping[str, float] = field(default_factory=dict[str, float])
    """latency_ms, on the target."""

    @property
    def costs(self) -> dict[str, float]:
        """All of them; measured goes before predicted."""
        return {**self.counted, **self.predicted, **self.measured}


@dataclass(frozen=True, kw_only=True)
class Pricer:
    """Prices the archs of one blueprint for one task and holds them against a budget."""

    blueprint: "Blueprint"
    task: ImageTask
    budget: Budget | None = None
    """Absolute bounds on params, macs, memory and latency; None allows everything."""
    latency: Callable[[Arch], float] | None = None
    """Predicts milliseconds."""
    measure: Callable[[Arch], float] | None = None
    """Measures milliseconds on the target, the weights fresh. May raise `TrialFailed`."""

    def __post_init__(self) -> None:
        for bound in self._bounds:
            if bound.relative:
                raise BadBudget(f"budget: {bound} is relative, but a search has no parent; give an absolute bound")
            if bound.cost not in (*EXACT, LATENCY):
                words = ", ".join(word_of(cost) for cost in (*EXACT, LATENCY))
                raise BadBudget(f"budget: {bound}: a search knows bounds on {words}, not on {word_of(bound.cost)}")
            if bound.cost == LATENCY and self.latency is None and self.measure is None:
                raise BadBudget(f"budget: {bound}: latency is neither predicted nor measured here; give one of both")

    def allowed(self, arch: Arch) -> bool:
        """Whether the arch keeps the budget by exact counts and predicted latency; nothing is built."""
        return self.refusal(self.price(arch)) is None

    def price(self, arch: Arch) -> Priced:
        """Exact counts and predicted latency, remembered."""
        return self._prices(arch)

    @functools.cached_property
    def _prices(self) -> Callable[[Arch], Priced]:
        def price(arch: Arch) -> Priced:
            counted = self.blueprint.count(arch, self.task).costs()
            return Priced(counted=counted, predicted={} if self.latency is None else {LATENCY: self.latency(arch)})

        return functools.lru_cache(maxsize=100_000)(price)

    def refusal(self, priced: Priced) -> str | None:
        """What of the budget is broken, in words; None if nothing that is known is."""
        costs = priced.costs
        known = [bound for bound in self._bounds if bound.cost in costs]
        broken = tuple(bound for bound in known if not bound.met(costs[bound.cost]))
        if not broken:
            return None
        source = " as measured" if any(bound.cost in priced.measured for bound in broken) else ""
        return "; ".join(Budget(bounds=broken).explain(costs)) + source

    def stages(self, arch: Arch) -> Iterator[Priced]:
        """What is known of the arch, step by step: the cheap part first, the measured one only if that is met.

        Raises `TrialFailed` ("over-budget") after a step that breaks the budget, so that nobody asks for the next.
        """
        priced = self.price(arch)
        yield priced
        self._insist(priced)
        if self.measure is not None:
            priced = Priced(
                counted=priced.counted, predicted=priced.predicted, measured={LATENCY: float(self.measure(arch))}
            )
            yield priced
            self._insist(priced)

    def check(self, arch: Arch) -> Priced:
        """All costs of an arch that keeps the budget. Raises `TrialFailed` with the reason "over-budget"."""
        *_, priced = self.stages(arch)
        return priced

    def require_feasible(self, *, tries: int = 200, seed: int = 0) -> None:
        """Make sure that something is allowed: random archs, then the best of them changed choice by choice.

        Raises `Infeasible` with the binding bound and the nearest point found.
        """
        rng = random.Random(seed)
        space = self.blueprint.space
        drawn = [space.sample(rng) for _ in range(tries)]
        best = min(drawn, key=self.excess)
        seen = set(drawn)
        while self.excess(best) > 0:
            near = [arch for arch in space.neighbours(best) if arch not in seen]
            seen.update(near)
            step = min(near, key=self.excess, default=best)
            if self.excess(step) >= self.excess(best):
                raise self.infeasible(best, f"none of {len(seen):,} archs looked at keeps the budget")
            best = step

    def infeasible(self, nearest: Arch, what: str) -> Infeasible:
        """The error that names the bound broken most, and the costs of `nearest`."""
        costs = self.price(nearest).costs
        known = [bound for bound in self._bounds if bound.cost in costs]
        binding = max(known, key=lambda bound: bound.excess(costs[bound.cost]))
        return Infeasible(
            f"{what}; the nearest has {'; '.join(Budget(bounds=tuple(known)).explain(costs))}. "
            f"Binding: {binding}. Allow more of it, or search a space with smaller networks",
            binding=binding.cost,
            nearest={bound.cost: costs[bound.cost] for bound in known},
        )

    def _insist(self, priced: Priced) -> None:
        if (broken := self.refusal(priced)) is not None:
            raise TrialFailed(broken, reason="over-budget")

    def excess(self, arch: Arch) -> float:
        """By what share of it the worst bound is broken, as far as is known unbuilt; 0 or less if all are kept."""
        costs = self.price(arch).costs
        return max((bound.excess(costs[bound.cost]) for bound in self._bounds if bound.cost in costs), default=0.0)

    @property
    def _bounds(self) -> tuple[Bound, ...]:
        return () if self.budget is None else self.budget.bounds
