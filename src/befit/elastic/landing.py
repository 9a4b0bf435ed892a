"""What the projection onto a budget searches with: choices in order of preference, FFN widths that move together.

Nothing here imports torch.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from befit.arch.member import Member
from befit.elastic.space import NestedSpace, ffn_widths


@dataclass(frozen=True, kw_only=True)
class Levels:
    """A member with its FFNs wider or narrower: at a level, each has that share of its width which the level is of the widest."""

    base: Member
    own: Mapping[int, int]
    """Width of each kept layer's FFN."""
    least: int
    most: int

    @staticmethod
    def of(space: NestedSpace, base: Member) -> "Levels":
        own = {layer: base.ffn_of(layer) for layer in base.layers if layer in space.ffn_layers}
        return Levels(base=base, own=own, least=space.ffn[-1], most=space.ffn[0])

    @property
    def low(self) -> int:
        return self.least

    @property
    def high(self) -> int:
        """The level at which even the narrowest FFN is whole."""
        return -(-self.most * max(self.own.values()) // min(self.own.values())) if self.own else self.low

    def at(self, level: int, step: int = 1) -> Member:
        """Widths are rounded down to multiples of `step`, but for the whole and the narrowest."""
        if not self.own:
            return self.base
        widest = max(self.own.values())
        widths = {layer: min(self.most, width * level // widest) for layer, width in self.own.items()}
        fine = {n: w if w == self.most else max(self.least, w // step * step) for n, w in widths.items()}
        return replace(self.base, ffn=ffn_widths(fine, self.base.layers, self.least))


def ranked(wish: Mapping[str, list[float]], count: int) -> Iterator[dict[str, int]]:
    """The first `count` choices in order of the sum of their wishes, the largest first."""
    axes = list(wish)
    order = [sorted(range(len(wish[axis])), key=lambda k, a=axis: (-wish[a][k], k)) for axis in axes]
    loss = [[wish[axis][ranked[0]] - wish[axis][k] for k in ranked] for axis, ranked in zip(axes, order, strict=True)]
    # Every choice has one parent here: itself with its last changed axis one rank better.
    queue: list[tuple[float, tuple[int, ...], int]] = [(0.0, (0,) * len(axes), 0)]
    while queue and count:
        lost, ranks, last = heapq.heappop(queue)
        count -= 1
        yield {axis: order[i][ranks[i]] for i, axis in enumerate(axes)}
        for i in range(last, len(axes)):
            if ranks[i] + 1 < len(order[i]):
                more = lost - loss[i][ranks[i]] + loss[i][ranks[i] + 1]
                heapq.heappush(queue, (more, (*ranks[:i], ranks[i] + 1, *ranks[i + 1 :]), i))


def largest(price: Callable[[int], float], low: int, high: int, limit: float) -> int | None:
    """The largest whole number from `low` to `high` of price at most `limit`; None if `low` costs more.

    False position, as most prices are nearly straight lines, and every third step a bisection, as some are not.
    """
    cheap, dear = price(low), price(high)
    if cheap > limit or dear <= limit:
        return None if cheap > limit else high
    step = 0
    while high - low > 1:
        share = (limit - cheap) / (dear - cheap) if step % 3 < 2 else 0.5
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        cost = price(middle)
        if cost <= limit:
            low, cheap = middle, cost
        else:
            high, dear = middle, cost
        step += 1
    return low


def between(options: Sequence[int], values: Sequence[float], width: int) -> float:
    """The value at `width`, interpolated between those at the descending `options`."""
    for i in range(len(options) - 1):
        if width >= options[i + 1]:
            share = (width - options[i + 1]) / (options[i] - options[i + 1])
            return share * values[i] + (1 - share) * values[i + 1]
    return values[-1]
