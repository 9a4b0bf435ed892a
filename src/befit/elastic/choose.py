"""Which member a user gets: from bounds on any costs to the largest member that keeps them all.

A budget that the model was trained for gives the member in the manifest, and the hash there is checked. Any other budget on the
trained cost gives the router's choice between the trained ones. Other bounds, several of them too, are met in two steps: the
largest share whose choice keeps them all, then `fit` with the tightest of the bounds as the price.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from befit.arch.decoder import DecoderShape
from befit.arch.member import Member, cut_shape
from befit.budget import Bound, Budget, human, word_of
from befit.cost.count import Cost, count
from befit.cost.workload import Workload
from befit.elastic.budgets import Price, fit, price_of
from befit.elastic.manifest import Entry, Manifest
from befit.elastic.nested import Nested
from befit.errors import BadBudget, Infeasible
from befit.lm.extract import padded

COUNTED = ("params", "memory_bytes", "weight_bytes", "cache_bytes", "flops")
"""Costs that follow from the sizes alone."""

SEARCHED = 16
"""Halvings of the range of shares: finer than the steps of any axis."""


@dataclass(frozen=True, kw_only=True)
class Chooser:
    """From bounds to a member."""

    nested: Nested
    manifest: Manifest
    workload: Workload
    layout: str

    def network(self, member: Member) -> Cost:
        """What can be counted of a member as it is."""
        shape = cut_shape(self.nested.net.shape, member)
        return count(shape, shape.arch, self.workload)

    def cost(self, member: Member) -> Cost:
        """What can be counted of a member as it will be written."""
        return self.network(padded(member, self.nested.net.shape) if self.layout == "padded" else member)

    def bounds(self, budget: str | None, memory: float | None) -> tuple[Bound, ...]:
        """The absolute bounds of a budget text, and that of the memory here, if given. Raises `BadBudget`."""
        found = dict[str, Bound]()
        if memory is not None:
            found["memory_bytes"] = Bound(cost="memory_bytes", op="<=", value=memory)
        if budget is not None:
            for bound in Budget.parse(_in_full(budget, self.trained_cost)).resolve(self._parent_costs()).bounds:
                known = found.get(bound.cost)
                found[bound.cost] = bound if known is None or bound.value < known.value else known
        if not found:
            raise BadBudget('say what to cut: a budget such as "memory=8GiB" or "75%", or --fit for what is free here')
        unknown = [word_of(cost) for cost in found if cost not in (*COUNTED, "latency_ms")]
        if unknown:
            raise BadBudget(
                f"a member's {unknown[0]} is neither counted nor measured; give bounds on "
                f"{', '.join(word_of(cost) for cost in COUNTED)}, or run `befit measure` on cuts"
            )
        return tuple(found.values())

    @property
    def trained_cost(self) -> str:
        return self.nested.targets[0].cost

    def choose(self, bounds: tuple[Bound, ...]) -> tuple[Member, float, Entry | None]:
        """The largest member within the bounds, the share that the router was asked for, its entry if it is a trained one."""
        alone = bounds[0] if len(bounds) == 1 and self._as_trained(bounds[0].cost) else None
        for entry in self.manifest.entries:
            # What was trained for a budget is what a user of that budget gets, even if padding takes more: he is told.
            if alone is not None and math.isclose(entry.target.limit, alone.value, rel_tol=1e-9):
                return entry.member, entry.target.share, entry
        if any(bound.cost == "latency_ms" for bound in bounds):
            return self._measured(bounds)
        space, price = self.nested.space, self._tightness(bounds)
        if price(space.whole) <= 1:
            return space.whole, 1.0, self._entry_of(space.whole)
        self._refuse_too_small(bounds)
        if alone is not None and (self.layout == "own-code" or not space.ffn_per_layer):
            share = alone.value / self.nested.cost(space.whole)
            return self.nested.member(share), share, None
        share = self._largest_share(price)
        with torch.no_grad():
            router = self.nested.router
            member = fit(space, router.choose(share), price, 1.0, preference=router.preference(share))
        if self.trained_cost != "latency_ms":  # the share that it turned out to have, by which gains are taken
            share = self.nested.cost(member) / self.nested.cost(space.whole)
        return member, share, None

    def _as_trained(self, cost: str) -> bool:
        """Whether a bound on `cost` means what the targets mean; parameters do not depend on the workload."""
        return cost == self.trained_cost and (cost == "params" or self.workload == self.manifest.workload)

    def _entry_of(self, member: Member) -> Entry | None:
        return next((entry for entry in self.manifest.entries if entry.member == member), None)

    def _largest_share(self, price: Price) -> float:
        """The largest share whose choice, as the router makes it, is within the price of 1."""
        low, high = 0.0, 1.0
        for _ in range(SEARCHED):
            middle = (low + high) / 2
            with torch.no_grad():
                member = self.nested.space.member(self.nested.router.choose(middle))
            low, high = (middle, high) if price(member) <= 1 else (low, middle)
        return high

    def _tightness(self, bounds: tuple[Bound, ...]) -> Price:
        """The largest of cost / bound: at most 1 where all bounds hold, and no less for a larger member."""
        shape, padding = self.nested.net.shape, self.layout == "padded"
        prices = [(_price(shape, bound.cost, self.workload), bound.value) for bound in bounds]

        def price(member: Member) -> float:
            written = padded(member, shape) if padding else member
            return max(cost(written) / limit for cost, limit in prices)

        return price

    def _refuse_too_small(self, bounds: tuple[Bound, ...]) -> None:
        least = self.cost(self.nested.space.smallest)
        nearest = {bound.cost: float(getattr(least, bound.cost)) for bound in bounds}
        worst = max(bounds, key=lambda bound: bound.excess(nearest[bound.cost]))
        if not worst.met(nearest[worst.cost]):
            raise Infeasible(
                f"no member has {word_of(worst.cost)} of at most {human(worst.cost, worst.value)}: the smallest has "
                f"{human(worst.cost, nearest[worst.cost])}; allow that much, or train a nested model with smaller members",
                binding=str(worst),
                nearest=nearest,
            )

    def _parent_costs(self) -> dict[str, float]:
        whole = self.nested.space.whole
        told = {name: float(getattr(self.cost(whole), name)) for name in COUNTED}
        latency = [entry.latency_ms for entry in self.manifest.entries if entry.member == whole]
        target = self.nested.targets[0]
        if target.cost == "latency_ms":
            told["latency_ms"] = target.limit / target.share
        elif latency and latency[0] is not None:
            told["latency_ms"] = latency[0]
        return told

    def _measured(self, bounds: tuple[Bound, ...]) -> tuple[Member, float, Entry]:
        """The largest trained member that keeps the bounds, its time taken from the manifest."""
        timed = [entry for entry in self.manifest.entries if entry.latency_ms is not None]
        if not timed or self.workload != self.manifest.workload:
            raise BadBudget(
                "latency is not counted but measured, and the manifest has no measured time of members at this workload; "
                "give a bound on memory or params, or one of the budgets trained for"
            )
        costs = [(entry, self._told(entry)) for entry in timed]
        budget = Budget(bounds=bounds)
        kept = [entry for entry, told in costs if budget.met(told)]
        if not kept:
            _, told = min(costs, key=lambda one: max(bound.excess(one[1][bound.cost]) for bound in bounds))
            worst = max(bounds, key=lambda bound: bound.excess(told[bound.cost]))
            raise Infeasible(
                f"no member that was measured keeps {worst}; the nearest has {human(worst.cost, told[worst.cost])}",
                binding=str(worst),
                nearest={bound.cost: told[bound.cost] for bound in bounds},
            )
        best = max(kept, key=lambda entry: entry.target.share)
        return best.member, best.target.share, best

    def _told(self, entry: Entry) -> dict[str, float]:
        counted = {name: float(getattr(self.cost(entry.member), name)) for name in COUNTED}
        return counted | {"latency_ms": entry.latency_ms or math.inf}


def _in_full(budget: str, cost: str) -> str:
    """A budget in which a bare share, such as 75%, names the cost that the model was trained for."""
    parts = [part.strip() for part in budget.split(",")]
    return ", ".join(f"{word_of(cost)}={part}" if re.fullmatch(r"[\d.]+\s*[%x]", part) else part for part in parts)


def _price(shape: DecoderShape, cost: str, workload: Workload) -> Callable[[Member], float]:
    """Any counted cost of a member."""
    if cost in ("params", "memory_bytes"):
        return price_of(shape, cost, workload)

    @cache
    def price(member: Member) -> float:
        own = cut_shape(shape, member)
        return getattr(count(own, own.arch, workload), cost)

    return price
