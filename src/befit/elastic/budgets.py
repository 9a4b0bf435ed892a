"""The budgets of a nested model, and the projection that makes a choice of widths meet one.

A router chooses among a few widths, so its choice costs about what it should; deployment wants the budget met within 1 %.
`fit` closes the gap: of the choices near the router's it takes the most probable that the FFN width, moved in fine steps,
brings into the band. It is a pure function of its arguments, so training, evaluation and cutting get the same member.

Nothing here imports torch.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import SupportsFloat

from befit.arch.decoder import DecoderArch, DecoderShape
from befit.arch.member import Member, cut_shape
from befit.budget import Budget, human, word_of
from befit.cost.count import Cost, block_cost, fixed_cost
from befit.cost.workload import Workload
from befit.elastic.landing import Levels, between, largest, ranked
from befit.elastic.space import FFN_OF_LAYER, NestedSpace
from befit.errors import BadBudget, Infeasible

COSTS = ("params", "memory_bytes", "latency_ms")
"""What a nested model can be given budgets of."""

TOLERANCE = 0.01
"""A member lands at most this share below its limit, where the space admits it."""

Price = Callable[[Member], float]
"""What a member costs; a wider axis or one more layer never costs less."""

TRIED = 64
"""Combinations tried at most in each order, before the next way to land is taken."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One budget of a nested model."""

    cost: str
    """params, memory_bytes or latency_ms."""
    share: float
    """Of the parent's own cost, above 0 and at most 1."""
    limit: float
    """The same in the cost's own unit."""

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise BadBudget(
                f"budgets: a nested model cannot be trained for {word_of(self.cost)}; "
                f"give budgets of {', '.join(word_of(cost) for cost in COSTS)}"
            )
        if not 0 < self.share <= 1 or self.limit <= 0:
            raise BadBudget(
                f"budgets: {human(self.cost, self.limit)} is {self.share:.4g} of the parent's own {word_of(self.cost)}; "
                "a member has at most that of its parent: give a share in 0 to 100 %"
            )

    def __str__(self) -> str:
        return f"{word_of(self.cost)}={self.share * 100:.4g}%"


def parse_targets(text: str, parent_costs: Mapping[str, float]) -> tuple[Target, ...]:
    """Read `100%, 75%, 50%`, `memory=100%, memory=50%` or `memory=8GiB, memory=4GiB`; a bare number means parameters.

    The largest comes first. Raises `BadBudget` for what `befit.budget.Budget` cannot read, for different costs, for a budget
    given twice, for one above the parent's own cost, and for a cost that a nested model cannot be trained for.
    """
    targets = list[Target]()
    for part in text.split(","):
        bound = Budget.parse(part if "=" in part or not part.strip() else f"params={part}").bounds[0]
        Target(cost=bound.cost, share=1.0, limit=1.0)  # refuses the cost before the parent's is looked up
        limit = Budget(bounds=(bound,)).resolve(parent_costs).bounds[0].value
        if bound.cost not in parent_costs:
            raise BadBudget(f"budgets: {bound} needs the parent's own {bound.cost}, which was not given")
        share = bound.value if bound.relative else limit / parent_costs[bound.cost]
        targets.append(Target(cost=bound.cost, share=share, limit=limit))
    costs = {target.cost: str(target) for target in targets}
    if len(costs) > 1:
        raise BadBudget(f"budgets: {' and '.join(costs.values())} bound different costs; give all budgets of one cost")
    targets.sort(key=lambda target: -target.limit)
    for larger, smaller in pairwise(targets):
        if larger.limit == smaller.limit:
            raise BadBudget(f"budgets: {larger} is given twice in {text!r}")
    return tuple(targets)


def check_targets(space: NestedSpace, price: Price, targets: Iterable[Target]) -> None:
    """Raise `Infeasible` if a budget is below the smallest member, naming what that costs."""
    for target in targets:
        refuse_too_small(space, price, target.limit, target.cost)


def price_of(shape: DecoderShape, cost: str, workload: Workload) -> Price:
    """The exact parameters or memory of members of `shape`, by name of the cost; remembers what it has counted.

    Equal to `befit.cost.count.count` of the cut shape, in fewer steps: equal layers are counted once. Raises `BadBudget` for
    a cost that cannot be counted, such as latency, which must be measured.
    """
    counted: dict[str, Callable[[Cost], int]] = {"params": lambda c: c.params, "memory_bytes": lambda c: c.memory_bytes}
    if cost not in counted:
        raise BadBudget(f"{word_of(cost)} cannot be counted from an architecture; expected {' or '.join(counted)}")
    read, kinds = counted[cost], tuple(dict.fromkeys(shape.arch.blocks))
    few, every = replace(shape, arch=DecoderArch(blocks=kinds)), tuple(range(len(kinds)))
    kind = [kinds.index(block) for block in shape.arch.blocks]

    @cache
    def parts(one: Member) -> tuple[int, list[int]]:
        """What every member of these widths has, and what each kind of layer adds."""
        cut = cut_shape(few, one)
        return read(fixed_cost(cut, workload)), [read(block_cost(cut, block, workload)) for block in cut.arch.blocks]

    @cache
    def price(member: Member) -> int:
        widths = (member.ffn,) * member.depth if isinstance(member.ffn, int) else member.ffn
        layers, fixed = 0, 0
        for (k, width), times in Counter(zip((kind[i] for i in member.layers), widths, strict=True)).items():
            fixed, costs = parts(replace(member, layers=every, ffn=width))
            layers += times * costs[k]
        return fixed + layers

    return price


def nearness(options: Sequence[int], ratio: float) -> list[float]:
    """Logits of a bump around the option whose share of the widest is nearest to `ratio`; of two equally near, the wider.

    A normal density with a standard deviation of a tenth of the whole width.
    """
    away = [round(abs(option / options[0] - ratio), 6) for option in options]
    return [-50.0 * distance**2 for distance in away]


def uniform_choice(space: NestedSpace, ratio: float) -> dict[str, int]:
    """Every axis at the option whose share of the whole is nearest to `ratio`."""
    found = dict[str, int]()
    for axis, options in space.axes.items():
        near = nearness(options, ratio)
        found[axis] = near.index(max(near))
    return found


def uniform_ratio(space: NestedSpace, price: Price, limit: float) -> float:
    """The largest share in 0 to 1 that, taken of every axis alike, costs at most `limit`; 0 if none does."""
    low, high = 0.0, 1.0
    if price(space.whole) <= limit:
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if price(space.member(uniform_choice(space, middle))) <= limit:
            low = middle
        else:
            high = middle
    return low


def fit(
    space: NestedSpace,
    choice: Mapping[str, int],
    price: Price,
    limit: float,
    *,
    preference: Mapping[str, Iterable[SupportsFloat]] | None = None,
    tolerance: float = TOLERANCE,
) -> Member:
    """A legal member near `choice` that costs at most `limit`, and at least `limit * (1 - tolerance)`.

    `preference` are each axis' log-probabilities of its options, of which `choice` counts as the best; without it, options
    count by their distance. Among the most probable choices the one of the largest sum is taken that lands when its FFN
    widths move, in step if layers have their own; their preference is interpolated. Where the FFNs cannot make up the
    difference, other axes move, and if nothing lands the embedding channels leave their options too. A limit of the parent's
    own cost or more gives the parent. In a space too coarse for the tolerance the dearest member found below the limit is
    returned. Raises `Infeasible` if even the smallest member costs more than `limit`.
    """
    if price(space.whole) <= limit:
        return space.whole
    refuse_too_small(space, price, limit)
    wish = {
        axis: _wish(options, choice.get(axis, 0), None if preference is None else preference[axis])
        for axis, options in space.axes.items()
    }
    return _Fit(space=space, choice=choice, price=price, limit=limit, tolerance=tolerance, wish=wish).best()


def fill(space: NestedSpace, base: Member, price: Price, limit: float, tolerance: float = TOLERANCE) -> Member | None:
    """`base` with its FFN widths moved so that it lands as `fit` demands, aligned if that suffices; None if they cannot.

    Widths stay between the narrowest and the whole; those of layers with their own keep their proportions.
    """
    least, levels = limit * (1 - tolerance), Levels.of(space, base)
    if price(levels.at(levels.low)) > limit or price(levels.at(levels.high)) < least:
        return None
    if least <= price(base) <= limit:
        return base
    level = largest(lambda at: price(levels.at(at)), levels.low, levels.high, limit)
    assert level is not None  # the lowest was found to be cheap enough
    steps = (64, 8, 1) if space.ffn[0] >= 4096 else (8, 1)
    return next((member for step in steps if least <= price(member := levels.at(level, step)) <= limit), None)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """One projection: the search of `fit`."""

    space: NestedSpace
    choice: Mapping[str, int]
    price: Price
    limit: float
    tolerance: float
    wish: Mapping[str, list[float]]
    """Of every axis and option; larger is better."""

    def best(self) -> Member:
        """The choice of the largest wish that lands; see `fit`."""
        fixed = {axis: values for axis, values in self.wish.items() if not _is_ffn(axis)}
        landed = self._first(fixed)
        if landed is None:
            fixed = self._priced(fixed)
            found = [member for choice in ranked(fixed, TRIED) if (member := self._fill(self._base(choice)))]
            landed = max(found, key=self._score, default=None)
        if landed is not None:
            return landed
        below = [self._by_hidden(self._base(choice)) for choice in ranked(fixed, 8)]
        return max((*below, self.space.smallest), key=self._nearness)

    def _first(self, fixed: Mapping[str, list[float]]) -> Member | None:
        """The landing choice of the largest wish, among the first in order of the axes that are not FFNs."""
        most = sum(max(values) for axis, values in self.wish.items() if _is_ffn(axis))
        best, found = -float("inf"), None
        for choice in ranked(fixed, TRIED):
            if sum(fixed[axis][index] for axis, index in choice.items()) + most <= best:
                break  # whatever follows is no better, even with the best of FFNs
            member = self._fill(self._base(choice))
            if member is not None and (score := self._score(member)) > best:
                best, found = score, member
        return found

    def _priced(self, fixed: Mapping[str, list[float]]) -> dict[str, list[float]]:
        """The wishes less a price on cost, at which the best choice costs about the limit if its FFNs are of middle width."""
        middle = {axis: len(options) // 2 for axis, options in self.space.axes.items() if _is_ffn(axis)}
        middle |= {axis: self.choice.get(axis, 0) for axis in fixed}
        cost = {
            axis: [self.price(self.space.member(middle | {axis: k})) / self.limit for k in range(len(values))]
            for axis, values in fixed.items()
        }
        span = 1 + max((max(values) - min(values) for values in fixed.values()), default=0.0)
        low, high = -1e3 * span, 1e3 * span

        def less(rate: float) -> dict[str, list[float]]:
            return {a: [w - rate * c for w, c in zip(fixed[a], cost[a], strict=True)] for a in fixed}

        for _ in range(40):
            rate = (low + high) / 2
            choice = {axis: values.index(max(values)) for axis, values in less(rate).items()}
            low, high = (rate, high) if self.price(self.space.member(middle | choice)) > self.limit else (low, rate)
        return less(high)

    def _by_hidden(self, base: Member) -> Member:
        """The dearest member that `base` becomes if its embedding channels take any number, then its FFNs, in the limit."""
        levels = Levels.of(self.space, base)
        found = self.space.smallest
        for step in (8, 1):
            narrow = levels.at(levels.low)
            most, least = self.space.hidden[0] // step, -(-self.space.hidden[-1] // step)
            if least > most:
                continue
            at = largest(lambda h, s=step, n=narrow: self.price(replace(n, hidden=h * s)), least, most, self.limit)
            if at is None:
                continue
            narrow = replace(narrow, hidden=at * step)
            filled = self._fill(replace(base, hidden=at * step)) or narrow
            found = max(found, filled, key=self._nearness)
            if self._lands(found):
                break
        return found

    def _base(self, choice: Mapping[str, int]) -> Member:
        return self.space.member({**self.choice, **choice})

    def _lands(self, member: Member) -> bool:
        return self.limit * (1 - self.tolerance) <= self.price(member) <= self.limit

    def _fill(self, base: Member) -> Member | None:
        return fill(self.space, base, self.price, self.limit, self.tolerance)

    def _nearness(self, member: Member) -> float:
        cost = self.price(member)
        return cost if cost <= self.limit else -cost

    def _score(self, member: Member) -> float:
        """The sum of the wishes, those of FFN widths interpolated; layers that are gone wish nothing."""
        total = 0.0
        for axis, options in self.space.axes.items():
            if axis.startswith(FFN_OF_LAYER):
                layer = int(axis.removeprefix(FFN_OF_LAYER))
                width = member.ffn_of(layer) if layer in member.layers else None
            else:
                width = member.widest_ffn if axis == "ffn" else getattr(member, axis)
            if width is None:
                total += max(self.wish[axis])
            else:
                total += between(options, self.wish[axis], width)
        return total


def _wish(options: Sequence[int], chosen: int, values: Iterable[SupportsFloat] | None) -> list[float]:
    if values is None:
        return nearness(options, options[chosen] / options[0])
    wish = [float(value) for value in values]
    wish[chosen] = max(wish)
    return wish


def _is_ffn(axis: str) -> bool:
    return axis == "ffn" or axis.startswith(FFN_OF_LAYER)


def refuse_too_small(space: NestedSpace, price: Price, limit: float, cost: str = "cost") -> None:
    """Raise `Infeasible` if even the smallest member costs more than `limit`."""
    least = price(space.smallest)
    if least > limit:
        share = least / price(space.whole)
        raise Infeasible(
            f"no member of this nested model keeps {word_of(cost)}<={human(cost, limit)}: the smallest has "
            f"{human(cost, least)}, {share:.1%} of its parent's; raise the budget, or "
            "admit narrower widths or more removed layers",
            binding=cost,
            nearest={cost: least},
        )
