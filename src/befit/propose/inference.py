"""Means over datasets and what may be concluded from them: Welch's test, Holm's correction, Hedges' g, bootstrap intervals.

A sample is a list of groups of values, a group for each dataset. Its dataset-balanced mean is the unweighted mean of the groups'
means, so that a dataset on which an arm was tried more often (or failed less often) does not count for more. Differences of
balanced means are tested without assuming equal variances: with one group each this is Welch's t-test (1947), with several its
extension to a weighted sum of means, whose degrees of freedom Satterthwaite (1946) gave.

Bootstrap intervals are percentiles of resampled means, with tails moved outwards as Hesterberg proposes (2015, "What teachers
should know about the bootstrap"): plain percentiles are as much too narrow as the normal is against Student's t, and as the
divisor n against n - 1. Even so they cannot cover 95 % with fewer than `FEWEST` values, of which the largest and the smallest
are too often on the same side of the mean; there an interval of Student's t stands in, and says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special, stats

from befit.errors import BadData

Groups = Sequence[Sequence[float]]
"""An arm's values, a group for each dataset."""

LEVEL = 0.95
"""Share of intervals that are to hold the truth."""
FEWEST = 5
"""Values in each group from which on the bootstrap is used."""
RESAMPLES = 10_000

_BLOCK = 100_000
"""Values that are drawn at once."""
_NODES = 2000
"""Quantiles that stand for a distribution."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where a mean, or a difference of means, may lie."""

    low: float
    high: float
    how: Literal["bootstrap", "paired bootstrap", "t"]


@dataclass(frozen=True, kw_only=True)
class Welch:
    """Whether two means differ."""

    difference: float
    """Second mean minus first."""
    t: float
    df: float
    """Degrees of freedom, not whole."""
    p: float
    """Two-sided, of this one test."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A difference in standard deviations."""

    g: float
    low: float
    high: float


def balanced_mean(groups: Groups) -> float:
    """The unweighted mean of the groups' means. Raises `BadData` for an empty group or none."""
    if not groups or not all(groups):
        raise BadData("a balanced mean needs at least one value for each dataset")
    return math.fsum(math.fsum(group) / len(group) for group in groups) / len(groups)


def welch(a: Groups, b: Groups) -> Welch | None:
    """Test that the balanced means of `a` and `b` are equal; None where that cannot be said.

    It cannot with a group of fewer than two values, and where no group has any spread.
    """
    error = _error([*a, *b], len(a))
    if error is None:
        return None
    variance, df = error
    difference = balanced_mean(b) - balanced_mean(a)
    t = difference / math.sqrt(variance)
    return Welch(difference=difference, t=t, df=df, p=2 * float(stats.t.sf(abs(t), df)))


def holm(ps: Sequence[float]) -> list[float]:
    """The p-values, raised so that the chance of any false finding among them stays at the level (Holm 1979)."""
    corrected, highest = [0.0] * len(ps), 0.0
    for place, at in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[at]))
        corrected[at] = highest
    return corrected


def hedges_g(a: Groups, b: Groups) -> Effect | None:
    """The difference of balanced means (`b` minus `a`) in pooled standard deviations, without the bias of small samples.

    The interval is exact for normal values of equal variance (by the noncentral t distribution). None as for `welch`.
    """
    groups = [*a, *b]
    if _error(groups, len(a)) is None:
        return None
    df = sum(len(group) - 1 for group in groups)
    pooled = math.sqrt(sum((len(group) - 1) * _variance(group) for group in groups) / df)
    scale = math.sqrt(sum(1 / len(group) for group in groups)) / len(a)
    d = (balanced_mean(b) - balanced_mean(a)) / pooled
    unbiased = math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2) if df > 1 else 0.0
    tail = (1 - LEVEL) / 2
    low, high = (unbiased * scale * _noncentrality(d / scale, df, share) for share in (1 - tail, tail))
    return Effect(g=unbiased * d, low=low, high=high)


def interval(groups: Groups, *, seed: int = 0) -> Interval | None:
    """Where the balanced mean may lie; None as for `welch`."""
    error = _error(groups, len(groups))
    if error is None:
        return None
    if min(map(len, groups)) < FEWEST:
        return _student(balanced_mean(groups), *error)
    draws = _draws(groups, seed, 0)
    return Interval(**_percentiles(draws, min(map(len, groups))), how="bootstrap")


def interval_of_difference(a: Groups, b: Groups, *, paired: bool = False, seed: int = 0) -> Interval | None:
    """Where the difference of balanced means (`b` minus `a`) may lie; None as for `welch`.

    `paired`: the values of `a` and `b` at one place belong together, such as runs of one seed; groups are then as long in both.
    """
    if paired:
        found = interval([[y - x for x, y in zip(*pair, strict=True)] for pair in zip(a, b, strict=True)], seed=seed)
        how = "paired bootstrap" if found and found.how == "bootstrap" else "t"
        return found and Interval(low=found.low, high=found.high, how=how)
    error, fewest = _error([*a, *b], len(a)), min(map(len, [*a, *b]))
    if error is None:
        return None
    if fewest < FEWEST:
        return _student(balanced_mean(b) - balanced_mean(a), *error)
    return Interval(**_percentiles(_draws(b, seed, 1) - _draws(a, seed, 0), fewest), how="bootstrap")


def _error(groups: Groups, count: int) -> tuple[float, float] | None:
    """Variance of a sum of the groups' means, each with a weight of 1 / `count`, and its degrees of freedom."""
    if not groups or min(map(len, groups)) < 2:
        return None
    parts = [(_variance(group) / len(group) / count**2, len(group) - 1) for group in groups]
    variance = sum(part for part, _ in parts)
    # Values that are equal but for rounding have no spread.
    largest = max(abs(value) for group in groups for value in group)
    if variance <= (1e-12 * largest) ** 2:
        return None
    shares = [(part / variance, df) for part, df in parts]  # as shares, since squares of small variances are 0
    return variance, 1 / sum(share**2 / df for share, df in shares)


def _variance(group: Sequence[float]) -> float:
    mean = math.fsum(group) / len(group)
    return math.fsum((value - mean) ** 2 for value in group) / (len(group) - 1)


def _student(mean: float, variance: float, df: float) -> Interval:
    reach = float(stats.t.ppf((1 + LEVEL) / 2, df)) * math.sqrt(variance)
    return Interval(low=mean - reach, high=mean + reach, how="t")


def _draws(groups: Groups, seed: int, side: int) -> np.ndarray:
    """(RESAMPLES,) balanced means of values drawn anew within each group; the two sides of a difference draw apart."""
    return np.mean([_resampled(tuple(group), (seed, side, place)) for place, group in enumerate(groups)], axis=0)


@lru_cache(maxsize=512)  # an arm meets every other one
def _resampled(values: tuple[float, ...], seed: tuple[int, ...]) -> np.ndarray:
    """(RESAMPLES,) means of as many values drawn with replacement."""
    rng, known, rows = np.random.default_rng(seed), np.asarray(values, float), max(1, _BLOCK // len(values))
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate(
        [known[rng.integers(0, len(known), (size, len(known)), dtype=np.int32)].mean(axis=1) for size in sizes]
    )


def _percentiles(draws: np.ndarray, count: int) -> dict[str, float]:
    """The interval's ends; `count` values in the smallest group."""
    wide = math.sqrt(count / (count - 1)) * stats.t.ppf((1 + LEVEL) / 2, count - 1)
    tail = float(stats.norm.sf(wide))
    low, high = np.quantile(draws, (tail, 1 - tail))
    return {"low": float(low), "high": float(high)}


def _noncentrality(t: float, df: int, share: float) -> float:
    """The shift of a noncentral t distribution that puts this share of it below `t`.

    T is (Z + shift) / S with a normal Z and S = chi / sqrt(df); so P(T < t) is the mean of the normal's P(Z < t S - shift)
    over S, here over evenly spaced quantiles of S: good to four digits, and for any t, where the series of the library fails.
    """
    edges = t * _quantiles_of_spread(df)

    def excess(shift: float) -> float:
        return float(special.ndtr(edges - shift).mean()) - share

    return float(optimize.brentq(excess, edges.min() - 10, edges.max() + 10))  # type: ignore[arg-type]


@lru_cache
def _quantiles_of_spread(df: int) -> np.ndarray:
    """Evenly spaced quantiles of an estimated standard deviation, in true ones."""
    return stats.chi.ppf((np.arange(_NODES) + 0.5) / _NODES, df) / math.sqrt(df)
