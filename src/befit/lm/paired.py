"""What can be concluded from the same items put to two models.

A mean over items has a standard error; the difference of two models on the same items has a smaller one than their means
suggest, because what makes an item hard makes it hard for both. Intervals hold 95 % of the time.

Right or wrong answers: the interval of Agresti and Min (Statistics in Medicine 24, 2005), which adds half an item to each
cell of the two-by-two table and so stays honest where the models hardly differ; the p-value is McNemar's, exact. Other
numbers: Student's t on the differences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

LEVEL = 0.95
"""Coverage of intervals."""
LEAST = 0.05
"""What a model must be right in at least, where guessing is never right, before it counts as able to do a task."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over items."""

    mean: float
    stderr: float | None
    """Its standard error; none for a single item."""
    items: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Child minus parent, over the same items."""

    mean: float
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end."""
    p: float | None
    """How often chance alone would differ as much; none where nothing can be said."""


def mean(values: Sequence[float]) -> Mean:
    """The mean and its standard error, from the sample's own variance (n - 1)."""
    count = len(values)
    average = math.fsum(values) / count
    spread = math.fsum((value - average) ** 2 for value in values)
    return Mean(mean=average, stderr=math.sqrt(spread / (count - 1) / count) if count > 1 else None, items=count)


def difference(child: Sequence[float], parent: Sequence[float]) -> Difference:
    """Child minus parent. Raises `ValueError` unless both answered the same number of items."""
    pairs = list(zip(child, parent, strict=True))
    if all(a in (0, 1) and b in (0, 1) for a, b in pairs):
        return _shares(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs), len(pairs))
    own = mean([a - b for a, b in pairs])
    if not own.stderr:
        return Difference(mean=own.mean, low=own.mean, high=own.mean, p=None)
    half = float(stats.t.ppf((1 + LEVEL) / 2, own.items - 1)) * own.stderr
    p = 2 * float(stats.t.sf(abs(own.mean) / own.stderr, own.items - 1))
    return Difference(mean=own.mean, low=own.mean - half, high=own.mean + half, p=p)


def able(values: Sequence[float], chance: float) -> bool:
    """Whether a model answers more right than by guessing: one-sided exact binomial test at 5 %.

    Where guessing is never right (`chance` 0), it must beat one in twenty.
    """
    right = math.floor(math.fsum(values))
    return bool(stats.binomtest(right, len(values), max(chance, LEAST), alternative="greater").pvalue < 1 - LEVEL)


def above_zero(values: Sequence[float]) -> bool:
    """Whether a mean is above 0: one-sided t-test at 5 %."""
    own = mean(values)
    return own.mean > 0 and (not own.stderr or float(stats.t.sf(own.mean / own.stderr, own.items - 1)) < 1 - LEVEL)


def _shares(better: int, worse: int, count: int) -> Difference:
    """From the number of items that only the child, and only the parent, got right."""
    middle = (better - worse) / (count + 2)
    half = (
        float(stats.norm.ppf((1 + LEVEL) / 2))
        * math.sqrt((better + worse + 1) / (count + 2) - middle**2)
        / math.sqrt(count + 2)
    )
    p = float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Difference(mean=(better - worse) / count, low=max(-1.0, middle - half), high=min(1.0, middle + half), p=p)
