"""What every option of every layer costs, and the solver's table made from scores and costs.

Counts are exact; milliseconds come from the measured table. All costs add up over layers, so bounds on them are linear;
throughput is not a sum, but for a given batch a lower bound on it is an upper bound on latency.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from befit.arch.decoder import Attention, Block, DecoderArch
from befit.arch.decoder_space import DecoderSpace
from befit.budget import Bound, Budget
from befit.cost.count import Cost, attention_cost, block_cost, count, ffn_cost, fixed_cost
from befit.cost.latency import Latency, LatencyTable
from befit.cost.workload import Workload
from befit.errors import Infeasible
from befit.puzzle.score import Scores
from befit.puzzle.solve import Option, Table, solve

COUNTED = ("params", "weight_bytes", "cache_bytes", "memory_bytes", "flops")
"""Costs that are known before anything is measured."""
ATTENTION = Bound(cost="attention_layers", op=">=", value=1.0)
"""One layer must keep attention."""


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Costs of one parent's children at one workload on one device."""

    space: DecoderSpace
    """The parent and its options."""
    workload: Workload
    """At which batch and lengths."""
    latency: LatencyTable
    """Measured on the device at this workload."""

    def fixed(self) -> dict[str, float]:
        """What every child pays: embedding, final norm, head."""
        return self._named(fixed_cost(self.space.shape, self.workload), self.latency.fixed()) | {
            "attention_layers": 0.0
        }

    def block(self, block: Block) -> Mapping[str, float]:
        """What one layer pays."""
        if block not in self._priced:
            self._priced[block] = self._price(block)
        return self._priced[block]

    @cached_property
    def _priced(self) -> dict[Block, dict[str, float]]:
        """Blocks priced so far: searches ask for the same few thousands of times."""
        return {}

    def _price(self, block: Block) -> dict[str, float]:
        shape, work = self.space.shape, self.workload
        cost = attention_cost(shape, block.attention, work) + ffn_cost(shape, block.ffn, work)
        real = {"attention_layers": float(isinstance(block.attention, Attention))}
        return self._named(cost, self.latency.option_costs(block)) | real

    def arch(self, arch: DecoderArch) -> dict[str, float]:
        """What a whole child pays, `tokens_per_s` included."""
        total = self.fixed()
        for block in arch.blocks:
            for name, value in self.block(block).items():
                total[name] += value
        waiting = max(0.0, self.latency.least_decode_ms - total["decode_ms"])
        total["decode_ms"] += waiting
        total["latency_ms"] += self.workload.generate * waiting
        return total | {"tokens_per_s": self.tokens_per_s(total["latency_ms"])}

    def tokens_per_s(self, latency_ms: float) -> float:
        """Generated tokens a second over the batch when each request takes `latency_ms`."""
        return 1000.0 * self.workload.batch * self.workload.generate / latency_ms

    def bounds(self, budget: Budget) -> tuple[Bound, ...]:
        """The absolute bounds of `budget` on costs that add up, and the rule that one layer must keep attention.

        Throughput becomes latency at this batch. Where the engine sets a least time for decode, latency is the larger of two
        sums, and so bounds prefill as well. Raises `Infeasible` for a bound below that least time.
        """
        linear, least = [ATTENTION], self.latency.least_decode_ms
        for bound in budget.bounds:
            if bound.cost == "decode_ms" and least > bound.value:
                raise Infeasible(
                    f"no choice meets the budget: a step of decode takes the engine at least {least:.3g} ms with any model, "
                    f"asked for at most {bound.value:.3g} ms. Allow more, or a smaller batch",
                    binding="decode_ms",
                    nearest={"decode_ms": least},
                )
            within = bound
            if bound.cost == "tokens_per_s":
                within = Bound(cost="latency_ms", op="<=", value=self.tokens_per_s(1.0) / bound.value)
            linear.append(within)
            if within.cost == "latency_ms" and least:
                linear.append(Bound(cost="prefill_ms", op="<=", value=within.value - self.workload.generate * least))
        return tuple(linear)

    def table(self, scores: Scores) -> Table:
        """One option for every legal block of every layer."""
        layers = []
        for layer in range(self.space.shape.layers):
            options = []
            for block in self.space.blocks(layer):
                value = scores.block(layer, block)
                options.append(Option(name=block.name, score=value, costs=self.block(block)))
            layers.append(tuple(options))
        return Table(layers=tuple(layers), fixed=self.fixed())

    def _named(self, cost: Cost, time: Latency) -> dict[str, float]:
        return _counted(cost) | {
            "prefill_ms": time.prefill_ms,
            "decode_ms": time.decode_ms,
            "latency_ms": time.latency_ms(self.workload),
        }


def check_counted(space: DecoderSpace, budget: Budget, workload: Workload, batch: int) -> None:
    """Raise `Infeasible` if no child keeps the bounds on counted costs, before anything is trained or measured.

    Relative bounds refer to the parent at `workload`; children are counted at `batch`, the smallest that may be used.
    """
    bounds = tuple(bound for bound in budget.bounds if bound.cost in COUNTED)
    if not bounds:
        return
    own, at = space.shape, replace(workload, batch=batch)
    resolved = Budget(bounds=bounds).resolve(_counted(count(own, own.arch, workload)))

    def option(block: Block) -> Option:
        real = {"attention_layers": float(isinstance(block.attention, Attention))}
        return Option(name=block.name, score=0.0, costs=_counted(block_cost(own, block, at)) | real)

    known = {block: option(block) for layer in range(own.layers) for block in space.blocks(layer)}
    layers = tuple(tuple(known[block] for block in space.blocks(layer)) for layer in range(own.layers))
    solve(Table(layers=layers, fixed=_counted(fixed_cost(own, at))), (ATTENTION, *resolved.bounds))


def _counted(cost: Cost) -> dict[str, float]:
    return {name: float(getattr(cost, name)) for name in COUNTED}
