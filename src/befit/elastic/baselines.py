"""How to choose the widths of a budget without training a router: what a learned choice has to beat.

Each returns a member that lands as `befit.elastic.budgets.fit` demands. `uniform` takes the same share of every axis; `random`
draws; `greedy` narrows, step by step, the axis that loses least per cost saved; `additive` takes the choice of least total
loss, exactly, if losses of single axes added up. Nothing here imports torch.

Scores are, for each axis, the quality lost with each option alone, as indices of `NestedSpace.axes` (lower is better).
"""

import random as rng
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from befit.arch.decoder import Attention, Block, Ffn, Mamba
from befit.arch.member import Member
from befit.elastic.budgets import (
    Price,
    fill,
    fit,
    nearness,
    refuse_too_small,
    uniform_choice,
    uniform_ratio,
)
from befit.elastic.space import FFN_OF_LAYER, NestedSpace
from befit.errors import IllegalArch

AxisScores = Mapping[str, Sequence[float]]
"""Axis -> quality lost at each option alone."""

DRAWS = 1000
"""Choices drawn at random before the last is moved into the budget by force."""

LONGEST = 50_000
"""Undominated sums kept at most; longer rows are rounded to a millionth of the parent's cost."""


def uniform(space: NestedSpace, price: Price, limit: float) -> Member:
    """The same share of every axis."""
    ratio = uniform_ratio(space, price, limit)
    preference = {axis: nearness(options, ratio) for axis, options in space.axes.items()}
    return fit(space, uniform_choice(space, ratio), price, limit, preference=preference)


def random(space: NestedSpace, price: Price, limit: float, seed: int) -> Member:
    """A choice drawn uniformly from those that FFN widths alone bring into the budget; the parent if that is within it."""
    refuse_too_small(space, price, limit)
    if price(space.whole) <= limit:
        return space.whole
    draw, choice = rng.Random(seed), dict[str, int]()
    for _ in range(DRAWS):
        choice = {axis: draw.randrange(len(options)) for axis, options in space.axes.items()}
        member = fill(space, space.member(choice), price, limit)
        if member is not None:
            return member
    return fit(space, choice, price, limit)


def greedy(space: NestedSpace, price: Price, limit: float, scores: AxisScores) -> Member:
    """From the whole, again and again one option less of the axis that loses least quality per cost saved, then `fit`."""
    _check(space, scores)
    refuse_too_small(space, price, limit)
    choice = dict.fromkeys(space.axes, 0)
    while (cost := price(space.member(choice))) > limit:
        steps = list[tuple[float, str]]()
        for axis, index in choice.items():
            if index + 1 < len(space.axes[axis]):
                saved = cost - price(space.member({**choice, axis: index + 1}))
                lost = scores[axis][index + 1] - scores[axis][index]
                steps.append((lost / saved if saved > 0 else float("inf"), axis))
        choice[min(steps, key=lambda step: step[0])[1]] += 1
    return fit(space, choice, price, limit)


def additive(space: NestedSpace, price: Price, limit: float, scores: AxisScores) -> Member:
    """The choice of `additive_choice`, moved by `fit` to use what is left of the budget."""
    return fit(space, additive_choice(space, price, limit, scores), price, limit)


def additive_choice(space: NestedSpace, price: Price, limit: float, scores: AxisScores) -> dict[str, int]:
    """The choice of least total score that costs at most `limit`; exact for prices that add up over sub-blocks.

    That is: given the embedding channels, a member's price is a fixed part plus what each layer's mixer and FFN cost by
    themselves, as every cost that befit counts and every latency it adds up from tables. Then for each width of the embedding
    and each depth, what attention, Mamba-2 and FFNs save is read off members with one layer, and only undominated pairs of
    (saved, lost) need be combined. A layer that is gone has no score. Raises `Infeasible` as `fit` does.
    """
    _check(space, scores)
    refuse_too_small(space, price, limit)
    best: tuple[float, dict[str, int]] = (float("inf"), {})
    for hidden in range(len(space.axes.get("hidden", (0,)))):
        start = {"hidden": hidden} if "hidden" in space.axes else {}
        table = _Savings(space, price, scores, start)
        ffns, done = _Front.nothing(), set[int]()
        for depth in reversed(range(len(space.axes.get("depth", (0,))))):
            at = {**start, "depth": depth} if "depth" in space.axes else start
            whole = space.member(at)
            for layer in [layer for layer in whole.layers if layer not in done]:
                done.add(layer)
                ffns = ffns.plus(table.of_ffn_layer(layer))
            mixers = table.of("attention", whole.layers).plus(table.of("mamba", whole.layers))
            shared = ffns if space.ffn_per_layer else table.of("ffn", whole.layers)
            found = _cheapest(mixers, shared, price(whole) - limit)
            if found is not None:
                lost = sum(scores[axis][index] for axis, index in at.items())
                best = min(best, (found[0] + lost, {**at, **found[1]}), key=lambda pair: pair[0])
    return best[1]


GROUPS = {
    "attention": ("kv_heads", "heads_per_kv"),
    "mamba": ("mamba_heads", "mamba_head_dim", "state"),
    "ffn": ("ffn",),
}
"""Axes that act inside one kind of sub-block."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Front:
    """Choices of some axes of which none saves more and loses less than another; both ascend."""

    axes: tuple[str, ...]
    saved: NDArray[np.float64]
    lost: NDArray[np.float64]
    picks: NDArray[Any]
    """[choices, axes] indices of options."""

    @staticmethod
    def nothing() -> "_Front":
        return _Front(axes=(), saved=np.zeros(1), lost=np.zeros(1), picks=np.zeros((1, 0), dtype=np.int16))

    def pruned(self) -> "_Front":
        """Without the choices that another beats or equals."""
        order = np.lexsort((self.lost, -self.saved))  # the most saved first
        lost = self.lost[order]
        least = np.minimum.accumulate(lost)
        useful = order[np.concatenate([[True], lost[1:] < least[:-1]])][::-1]
        return replace(self, saved=self.saved[useful], lost=self.lost[useful], picks=self.picks[useful])

    def plus(self, other: "_Front") -> "_Front":
        """Both together: all undominated sums."""
        both = _Front(
            axes=self.axes + other.axes,
            saved=(self.saved[:, None] + other.saved).ravel(),
            lost=(self.lost[:, None] + other.lost).ravel(),
            picks=np.concatenate(
                [np.repeat(self.picks, len(other.saved), axis=0), np.tile(other.picks, (len(self.saved), 1))], axis=1
            ),
        ).pruned()
        if len(both.saved) > LONGEST:
            unit = both.saved[-1] * 1e-6  # rounded down: what keeps the budget still does
            both = replace(both, saved=np.floor(both.saved / unit) * unit).pruned()
        return both


class _Savings:
    """What narrower sub-blocks save and lose, at one width of the embedding."""

    def __init__(self, space: NestedSpace, price: Price, scores: AxisScores, start: Mapping[str, int]) -> None:
        self.space, self.price, self.scores, self.start = space, price, scores, start
        blocks = space.shape.arch.blocks
        self.kind = [blocks.index(block) for block in blocks]  # the first layer that is the same
        self.known = dict[tuple[str, int], list[float]]()

    def of(self, group: str, layers: tuple[int, ...]) -> "_Front":
        """The choices of a group's axes, for all of `layers` together."""
        axes, options = self._options(group)
        saved = np.zeros(len(options))
        for layer in layers:
            if _has(self.space.shape.arch.blocks[layer], group):
                saved += self._one(group, self.kind[layer])
        lost = [sum(self.scores[axis][k] for axis, k in zip(axes, picks, strict=True)) for picks in options]
        picks = np.array(options, dtype=np.int16).reshape(len(options), len(axes))
        return _Front(axes=axes, saved=saved, lost=np.array(lost), picks=picks).pruned()

    def of_ffn_layer(self, layer: int) -> "_Front":
        """The choices of one layer's FFN, where layers have their own."""
        axis = f"{FFN_OF_LAYER}{layer}"
        if axis not in self.space.axes:
            return _Front.nothing()
        saved, lost = np.array(self._one(FFN_OF_LAYER, self.kind[layer])), np.array(self.scores[axis], dtype=float)
        picks = np.arange(len(saved), dtype=np.int16)[:, None]
        return _Front(axes=(axis,), saved=saved, lost=lost, picks=picks).pruned()

    def _options(self, group: str) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
        axes = tuple(axis for axis in GROUPS[group] if axis in self.space.axes)
        return axes, list(product(*(range(len(self.space.axes[axis])) for axis in axes)))

    def _one(self, group: str, layer: int) -> list[float]:
        """What each choice saves in one layer: the difference of two members with this layer alone."""
        if (group, layer) not in self.known:
            base = replace(self.space.member(self.start), layers=(layer,))
            if group == FFN_OF_LAYER:
                members = [replace(base, ffn=width) for width in self.space.ffn]
            else:
                axes, options = self._options(group)
                chosen = [dict(zip(axes, picks, strict=True)) for picks in options]
                members = [replace(self.space.member({**self.start, **own}), layers=(layer,)) for own in chosen]
            full = self.price(base)
            self.known[group, layer] = [full - self.price(member) for member in members]
        return self.known[group, layer]


def _cheapest(first: _Front, second: _Front, need: float) -> tuple[float, dict[str, int]] | None:
    """The choices of two fronts that together save at least `need` and lose least; None if none saves so much."""
    partner = np.searchsorted(second.saved, need - first.saved)
    possible = np.flatnonzero(partner < len(second.saved))
    if not len(possible):
        return None
    lost = first.lost[possible] + second.lost[partner[possible]]
    at = possible[np.argmin(lost)]
    picks = [*first.picks[at], *second.picks[partner[at]]]
    return float(lost.min()), {a: int(k) for a, k in zip(first.axes + second.axes, picks, strict=True)}


def _has(block: Block, group: str) -> bool:
    kinds: dict[str, bool] = {
        "attention": isinstance(block.attention, Attention),
        "mamba": isinstance(block.attention, Mamba),
        "ffn": isinstance(block.ffn, Ffn),
    }
    return kinds[group]


def _check(space: NestedSpace, scores: AxisScores) -> None:
    lengths = {axis: len(options) for axis, options in space.axes.items()}
    given = {axis: len(values) for axis, values in scores.items()}
    if any(given.get(axis) != length for axis, length in lengths.items()):
        raise IllegalArch(f"scores are needed for every option of every axis: expected {lengths}, got {given}")
