"""What every option of every layer costs, and the solver's table made from scores and costs.

Counts are exact; milliseconds come from the measured table. All costs add up over layers, so bounds on them are linear;
throughput is not a sum, but for a given batch a lower bound on it is an upper bound on latency.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from befit.arch.decoder import Attention, Block, DecoderArch
from befit.arch.space import DecoderSpace
from befit.budget import Bound, Budget
from befit.cost.count import Cost, attention_cost, ffn_cost, fixed_cost
from befit.cost.latency import Latency, LatencyTable
from befit.cost.workload import Workload
from befit.puzzle.score import Scores
from befit.puzzle.solve import Option, Table


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
        return total | {"tokens_per_s": self.tokens_per_s(total["latency_ms"])}

    def tokens_per_s(self, latency_ms: float) -> float:
        """Generated tokens a second over the batch when each request takes `latency_ms`."""
        return 1000.0 * self.workload.batch * self.workload.generate / latency_ms

    def bounds(self, budget: Budget) -> tuple[Bound, ...]:
        """The absolute bounds of `budget` on costs that add up, and the rule that one layer must keep attention.

        Throughput becomes latency at this batch.
        """
        linear = [Bound(cost="attention_layers", op=">=", value=1.0)]
        for bound in budget.bounds:
            if bound.cost == "tokens_per_s":
                limit = self.tokens_per_s(1.0) / bound.value
                linear.append(Bound(cost="latency_ms", op="<=", value=limit))
            else:
                linear.append(bound)
        return tuple(linear)

    def table(self, scores: Scores) -> Table:
        """One option for every legal block of every layer."""
        own = self.space.shape.arch.blocks
        layers = []
        for layer in range(self.space.shape.layers):
            options = []
            for block in self.space.blocks(layer):
                value = scores.block(layer, block, own[layer])
                options.append(Option(name=block.name, score=value, costs=self.block(block)))
            layers.append(tuple(options))
        return Table(layers=tuple(layers), fixed=self.fixed())

    def _named(self, cost: Cost, time: Latency) -> dict[str, float]:
        return {
            "params": float(cost.params),
            "weight_bytes": float(cost.weight_bytes),
            "cache_bytes": float(cost.cache_bytes),
            "memory_bytes": float(cost.memory_bytes),
            "flops": float(cost.flops),
            "prefill_ms": time.prefill_ms,
            "decode_ms": time.decode_ms,
            "latency_ms": time.latency_ms(self.workload),
        }
