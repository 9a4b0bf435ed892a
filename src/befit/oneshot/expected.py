"""What a mixture is expected to cost, differentiable in how probable each option is.

Options are drawn independently, so a cost that adds up over choices (parameters and multiply-adds of the cell space do) has
the expectation base + sum of probability times price, exactly. Whether a price adds up is found out by asking it. Of any other
price one arch is drawn, and its price with each option in its choice's place gives an estimate of value and gradient without
bias, as every other choice is as drawn.

Shapes: K options of a choice.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from befit.arch.space import Arch, Space, Value
from befit.budget import Bound
from befit.oneshot.projection import Limits, Price

CHECKS = 16
"""Random archs that must cost what a table says for it to be used."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A cost that adds up: of every choice, what each option costs more than the first."""

    base: float
    """Cost of the arch of all first options."""
    extra: Mapping[str, tuple[float, ...]]
    """For each choice (K,), the first is 0."""


def table_of(space: Space, price: Callable[[Arch], float]) -> Table | None:
    """The table of a price, None if the price does not add up over choices or the space has conditions or a rule."""
    if space.legal is not None or any(choice.when for choice in space.choices.values()):
        return None
    first = {name: choice.options[0] for name, choice in space.choices.items()}
    base = price(space.arch(first))
    extra = {
        name: tuple(price(space.arch({**first, name: option})) - base for option in choice.options)
        for name, choice in space.choices.items()
    }
    rng = random.Random(0)
    for _ in range(CHECKS):
        arch = space.sample(rng)
        told = base + sum(extra[name][space.choices[name].options.index(arch[name])] for name in arch)
        if abs(price(arch) - told) > 1e-9 * max(abs(told), 1.0):
            return None
    return Table(base=base, extra=extra)


def expected(table: Table, probabilities: Mapping[str, Tensor]) -> Tensor:
    """The exact mean, in float64, of a cost over archs whose options are drawn independently, with probabilities (K,) each."""
    total = torch.tensor(table.base, dtype=torch.float64)
    for name, own in table.extra.items():
        total = total + probabilities[name].double() @ torch.tensor(own, dtype=torch.float64)
    return total


def estimated(space: Space, price: Callable[[Arch], float], probabilities: Mapping[str, Tensor], seed: int) -> Tensor:
    """An estimate of the same for any price, in float64; the mean of value and gradient over seeds is exact.

    A choice that is closed in the drawn arch has no gradient this time. The rule of the space is not asked.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: int(torch.multinomial(own.detach().double(), 1, generator=generator))
        for name, own in probabilities.items()
    }
    wanted = {name: space.choices[name].options[k] for name, k in drawn.items()}
    own_arch = _open(space, wanted)
    total = torch.tensor(float(price(own_arch)), dtype=torch.float64)
    for name in own_arch:
        options = space.choices[name].options
        prices = [float(price(_open(space, {**wanted, name: option}))) for option in options]
        soft = probabilities[name].double()
        total = total + (soft - soft.detach()) @ torch.tensor(prices, dtype=torch.float64)
    return total


def _open(space: Space, wanted: Mapping[str, Value]) -> Arch:
    """The open ones among values for all choices."""
    taken = dict[str, Value]()
    for name, choice in space.choices.items():
        if choice.open(taken):
            taken[name] = wanted[name]
    return Arch(tuple(taken.items()))


class Pressure:
    """How much the loss of an architecture rises by for what it is expected to cost above a budget: 0 inside."""

    def __init__(self, space: Space, limits: Limits, weight: float = 1.0) -> None:
        """Without a budget nothing presses. `weight` is the rise, in nats, for a cost of twice its bound."""
        self.space, self.weight = space, weight
        bounds = () if limits.budget is None else limits.budget.bounds
        self.prices = {bound: _one(limits.price, bound.cost) for bound in bounds}
        self.tables = {bound: table_of(space, own) for bound, own in self.prices.items()}

    def costs(self, probabilities: Mapping[str, Tensor], seed: int) -> dict[Bound, Tensor]:
        """For each bound the expected cost, a scalar in float64; estimated with the noise of `seed` where it must be."""
        found = dict[Bound, Tensor]()
        for bound, table in self.tables.items():
            if table is not None:
                found[bound] = expected(table, probabilities)
            else:
                found[bound] = estimated(self.space, self.prices[bound], probabilities, seed)
        return found

    def told(self) -> list[object]:
        """What tells this pressure from others, as JSON: the bounds, the weight and the tables."""
        tables = [None if table is None else asdict(table) for table in self.tables.values()]
        return [[str(bound) for bound in self.prices], self.weight, tables]

    def __call__(self, probabilities: Mapping[str, Tensor], seed: int) -> Tensor:
        """The rise, a scalar in float64."""
        total = torch.zeros((), dtype=torch.float64)
        for bound, cost in self.costs(probabilities, seed).items():
            over = (cost - bound.value) if bound.op == "<=" else (bound.value - cost)
            total = total + self.weight * torch.relu(over / (abs(bound.value) or 1.0))
        return total


def _one(price: Price, cost: str) -> Callable[[Arch], float]:
    return lambda arch: price(arch)[cost]
