"""The grouped knapsack on plain arrays: one item of every layer, least total score, any number of `use <= limit` rows.

1. Items that cannot be part of a best choice go: too large for a row, or dominated within their layer.
2. The linear relaxation (HiGHS) gives every row a price. With prices, the score of any choice that keeps the rows is
   `bound + sum of the items' regrets + price of what is left free`, all terms at least 0: an item's regret says by how
   much the total must rise above the bound if it is taken (Lagrangian bound, e.g. Kellerer, Pferschy, Pisinger,
   "Knapsack Problems", 2004, section 11.2).
3. All choices with total regret up to a ceiling are listed; the ceiling rises until it reaches the best choice found,
   which is then proven best. Ordinary tables need a few hundred choices and a few milliseconds.
4. If the list grows too long (many near-equal choices), `scipy.optimize.milp` (HiGHS) takes over on the items that are left.

HiGHS works to tolerances, so that callers pass `exact`, which adds a choice up without rounding errors and has the last word.

Legend: N items, L layers, R rows. Rows with their limits are scaled so that what can be given away is about 1.
"""

import ctypes
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, hstack

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Exact = Callable[[Ints], float | None]
Row = tuple[Any, Any, Any]
"""Matrix, lower and upper limit."""

LISTED = 2_000_000
"""Choices listed at most before HiGHS takes over: about 200 MB and two seconds."""
TIES = 100
"""Choices of equal score compared at most to return the first of them."""
SLACK = 1e-9
"""Rounding error allowed in a scaled row; `exact` decides."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Knapsack:
    """The items of all layers, layer after layer, and the rows."""

    layer: Ints
    """[N] the layer of each item, ascending, every layer from 0 on present."""
    score: Floats
    """[N] lower is better."""
    use: Floats
    """[R, N] what an item takes of each row."""
    limit: Floats
    """[R] what a row gives."""

    @property
    def starts(self) -> Ints:
        """[L] the first item of every layer."""
        return np.flatnonzero(np.diff(self.layer, prepend=-1))

    def take(self, items: NDArray[Any]) -> "Knapsack":
        """Only these items (a mask or ascending positions)."""
        return replace(self, layer=self.layer[items], score=self.score[items], use=self.use[:, items])


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A choice that `exact` accepted."""

    items: Ints
    """[L] the item of each layer."""
    score: float
    """What `exact` returned."""
    gap: float
    """At most this much better a choice may exist; 0 when proven best."""


def best(problem: Knapsack, exact: Exact, seconds: float) -> Found | None:
    """The choice of least score that keeps all rows, or None if there is none.

    `exact` returns the score of a choice (positions of its items), or None if it breaks a row. Raises `TimeoutError`
    if HiGHS had to take over and found neither a choice nor a proof that there is none within `seconds`.
    """
    deadline = time.monotonic() + seconds
    kept = _possible(problem)
    if kept is None:
        return None
    small, offset = _scaled(problem.take(kept))

    def judge(items: Ints) -> float | None:
        return exact(kept[items])

    prices = _prices(small)
    if prices is None:
        return None
    core = _Core(small, prices)
    found, proven = core.search(judge)
    if not proven:
        # What follows from the bound: an item whose regret alone exceeds that of the best choice so far is out.
        ceiling = math.inf if found is None else found.score - offset - core.bound
        useful = np.flatnonzero(core.regret <= ceiling + SLACK * (1 + abs(ceiling)))
        start = found and replace(found, items=np.searchsorted(useful, found.items), gap=max(0.0, ceiling))
        found = _by_milp(small.take(useful), lambda items: judge(useful[items]), start, deadline)
        found = found and replace(found, items=useful[found.items])
    return found and replace(found, items=kept[found.items])


def nearest(problem: Knapsack, unit: Floats, seconds: float) -> Ints | None:
    """The choice whose largest broken row, in units of [R] `unit`, is smallest; rows with unit 0 may not break at all.

    Among such choices one with little excess in the other rows (they count a thousandth). None if nothing was found.
    """
    soft = unit > 0
    per = np.where(soft, unit, 1.0) / 1e3
    items, count = len(problem.layer), int(soft.sum())
    # Columns: the items, the excess of every soft row in thousandths of its unit, and the largest of these.
    excess = csr_array(-np.eye(len(soft))[:, soft])
    kept = hstack([csr_array(problem.use / per[:, None]), excess, csr_array((len(soft), 1))])
    largest = hstack([csr_array((count, items)), csr_array(np.eye(count)), csr_array(-np.ones((count, 1)))])
    one = hstack([_one_each(problem.layer), csr_array((len(problem.starts), count + 1))])
    rows: list[Row] = [(one, 1.0, 1.0), (kept, -np.inf, problem.limit / per), (largest, -np.inf, 0.0)]
    objective = np.concatenate([np.zeros(items), np.full(count, 1e-3 / max(1, count)), [1.0]])
    result = _run_milp(objective, rows, items, seconds, 1e-6)
    return None if result.x is None else _largest(problem, np.asarray(result.x[:items]))


def _possible(problem: Knapsack) -> Ints | None:
    """Positions of the items that fit every row beside the smallest of all other layers, and are not dominated."""
    kept = np.arange(len(problem.layer))
    size = _size(problem)
    while True:
        left = problem.take(kept)
        least = np.minimum.reduceat(left.use, left.starts, axis=1)
        free = left.limit - least.sum(1) + 1e-12 * size
        if (free < 0).any():
            return None
        fits = (left.use - least[:, left.layer] <= free[:, None]).all(0)
        if fits.all():
            break
        kept = kept[fits]
        if len(np.unique(problem.layer[kept])) < len(problem.starts):
            return None
    groups = np.split(np.arange(len(kept)), left.starts[1:])
    return kept[np.concatenate([group[_undominated(left.score[group], left.use[:, group])] for group in groups])]


def _size(problem: Knapsack) -> Floats:
    """[R] the largest magnitude that a sum in this row can have."""
    return np.abs(problem.limit) + np.maximum.reduceat(np.abs(problem.use), problem.starts, axis=1).sum(1)


def _undominated(score: Floats, use: Floats) -> Ints:
    """Positions of the items of one layer that no other beats or equals in score and every row; of equals the first."""
    values = np.vstack([score, use])
    if values.shape[1] > 4000:
        return np.arange(values.shape[1])  # comparing all pairs would take longer than it saves
    beats = np.all(values[:, :, None] <= values[:, None, :], axis=0)
    earlier = np.tri(values.shape[1], k=-1, dtype=bool).T
    return np.flatnonzero(~(beats & (~beats.T | earlier)).any(0))


def _scaled(problem: Knapsack) -> tuple[Knapsack, float]:
    """Rows and scores above the least of each layer, rows in units of what is free; and the scores' sum of leasts.

    Rows that no choice can break are left out.
    """
    least = np.minimum.reduceat(problem.use, problem.starts, axis=1)
    most = np.maximum.reduceat(problem.use, problem.starts, axis=1)
    free = np.maximum(problem.limit - least.sum(1), 0)
    binding = (most - least).sum(1) > free
    use = (problem.use - least[:, problem.layer])[binding]
    # Not finer than rounding errors of the sums, which must stay below SLACK.
    scale = np.maximum.reduce([free[binding], use.max(1, initial=0), 1e-6 * _size(problem)[binding]])
    low = np.minimum.reduceat(problem.score, problem.starts)
    small = replace(
        problem, score=problem.score - low[problem.layer], use=use / scale[:, None], limit=free[binding] / scale
    )
    return small, float(low.sum())


def _prices(problem: Knapsack) -> Floats | None:
    """[R] the price of each row in the linear relaxation; None if that has no solution.

    Any prices give a valid bound, good ones a tight bound. Scores far above the typical are cut off here, so that a
    few absurd ones do not drown the others in the tolerance of the solver.
    """
    if not len(problem.limit):
        return np.zeros(0)
    typical = float(np.median(problem.score[problem.score > 0])) if problem.score.any() else 1.0
    result: Any = linprog(
        np.minimum(problem.score / typical, 1e6),
        A_ub=problem.use,
        b_ub=problem.limit + SLACK,
        A_eq=_one_each(problem.layer),
        b_eq=np.ones(len(problem.starts)),
        method="highs-ds",
    )
    if result.status == 2:
        return None
    return np.zeros(len(problem.limit)) if result.status else np.maximum(-result.ineqlin.marginals, 0.0) * typical


class _Core:
    """Lists choices by total regret, layer after layer: each is an earlier one with one more layer changed."""

    def __init__(self, problem: Knapsack, prices: Floats) -> None:
        self.problem, self.prices = problem, prices
        priced = problem.score + prices @ problem.use
        starts = problem.starts
        groups = np.split(np.arange(len(priced)), starts[1:])
        self.base = np.array([group[np.argmin(priced[group])] for group in groups])
        self.regret = priced - priced[self.base][problem.layer]
        self.bound = float(priced[self.base].sum() - prices @ problem.limit)
        self.change = problem.use - problem.use[:, self.base][:, problem.layer]
        worst = np.maximum.reduceat(self.regret, starts).sum() + prices @ (problem.limit + 1)
        self.ceiling = float(worst)

    def search(self, exact: Exact) -> tuple[Found | None, bool]:
        """The best choice and whether it is proven; (None, True) if there is none at all."""
        positive = np.sort(self.regret[self.regret > 0])
        height = float(positive[min(8, len(positive) - 1)]) if len(positive) else 0.0
        found: Found | None = None
        while True:
            listed = self._list(height)
            if listed is None:
                return found, False
            better, total = self._pick(*listed, exact)
            found = better or found
            if (better and total <= height) or height >= self.ceiling:
                return found, True
            grown = height * (2.0 if len(listed[0]) < 10_000 else 1.3)
            height = min(grown, total * (1 + 1e-9), self.ceiling * (1 + 1e-9)) if grown else self.ceiling

    def _list(self, height: float) -> tuple[Floats, Floats, Ints, Ints] | None:
        """All choices of regret up to `height` that can still keep the rows: regret [S], free [R, S], parent, item.

        None if there are more than `LISTED`.
        """
        small = self.regret <= height * (1 + 1e-12)
        small[self.base] = False
        items = np.flatnonzero(small)
        groups = [g for g in np.split(items, np.flatnonzero(np.diff(self.problem.layer[items])) + 1) if len(g)]
        groups.sort(key=len)
        # What the layers still to come can give back to a row, or take from it, at most.
        back = np.cumsum([np.maximum(-self.change[:, g].min(1), 0) for g in groups[::-1]], axis=0)[::-1]
        more = np.cumsum([np.maximum(self.change[:, g].max(1), 0) for g in groups[::-1]], axis=0)[::-1]
        regret = np.zeros(1)
        free = (self.problem.limit - self.problem.use[:, self.base].sum(1))[:, None]
        parent, item, alive = np.array([-1]), np.array([-1]), np.array([0])
        for step, group in enumerate(groups):
            here = free[:, alive]
            reach = (here + back[step][:, None] >= -SLACK).all(0)
            waste = self.prices @ np.maximum(here - more[step][:, None], 0)
            alive = alive[reach & (regret[alive] + waste <= height * (1 + 1e-9))]
            grown = [(alive[regret[alive] + self.regret[i] <= height * (1 + 1e-12)], i) for i in group]
            if len(regret) + sum(len(p) for p, _ in grown) > LISTED:
                return None
            old = len(regret)
            regret = np.concatenate([regret, *(regret[p] + self.regret[i] for p, i in grown)])
            free = np.concatenate([free, *(free[:, p] - self.change[:, [i]] for p, i in grown)], axis=1)
            parent = np.concatenate([parent, *(p for p, _ in grown)])
            item = np.concatenate([item, *(np.full(len(p), i) for p, i in grown)])
            alive = np.concatenate([alive, np.arange(old, len(regret))])
        return regret, free, parent, item

    def _pick(self, regret: Floats, free: Floats, parent: Ints, item: Ints, exact: Exact) -> tuple[Found | None, float]:
        """The best listed choice that `exact` accepts (of equal ones the first in order of items), and its regret."""
        total = regret + self.prices @ np.maximum(free, 0)
        keeps = np.flatnonzero((free >= -SLACK).all(0))
        accepted = list[tuple[float, list[int]]]()
        least = math.inf
        for state in keeps[np.argsort(total[keeps], kind="stable")]:
            if len(accepted) == TIES or total[state] > least + 1e-12 * (abs(self.bound) + least):
                break
            choice, at = self.base.copy(), int(state)
            while parent[at] >= 0:
                choice[self.problem.layer[item[at]]] = item[at]
                at = int(parent[at])
            score = exact(choice)
            if score is not None:
                least = min(least, float(total[state]))
                accepted.append((score, choice.tolist()))
        if not accepted:
            return None, math.inf
        score, items = min(accepted)
        return Found(items=np.array(items), score=score, gap=0.0), least


def _by_milp(problem: Knapsack, exact: Exact, start: Found | None, deadline: float) -> Found | None:
    """The best choice by HiGHS, or `start` if there is no better; a choice that `exact` refuses is cut off."""
    unit = float(problem.score.max()) / 1e3 or 1.0
    columns = len(problem.layer)
    one = (_one_each(problem.layer), 1.0, 1.0)
    refused = list[Row]()
    for attempt in range(25):
        # HiGHS keeps rows to 1e-6, in thousandths of what is free. Should refusals persist, the rows shrink.
        limit = 1e3 * (problem.limit - SLACK * (4.0 ** (attempt - 10) if attempt >= 10 else 0.0))
        rows = [one, (csr_array(1e3 * problem.use), -np.inf, limit), *refused] if len(limit) else [one, *refused]
        result = _run_milp(problem.score / unit, rows, columns, deadline - time.monotonic(), 0.0)
        if result.x is None:
            if start is None and result.status == 1:
                raise TimeoutError
            return start and replace(start, gap=0.0 if result.status == 2 else start.gap)
        items = _largest(problem, np.asarray(result.x))
        score = exact(items)
        if score is not None:
            found = Found(items=items, score=score, gap=max(0.0, float(result.fun - result.mip_dual_bound) * unit))
            if start and start.score <= score:
                found = replace(start, gap=max(0.0, found.gap - (score - start.score)))
            return replace(found, gap=0.0) if result.status == 0 and attempt < 10 else found
        chosen = np.zeros((1, columns))
        chosen[0, items] = 1.0
        refused.append((csr_array(chosen), -np.inf, float(len(items) - 1)))
    return start


def _one_each(layer: Ints) -> Any:
    """[L, N] the rows that say: one item of each layer."""
    return csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))


def _largest(problem: Knapsack, x: Floats) -> Ints:
    """[L] the item of each layer with the largest variable: a HiGHS integer is one only to 1e-6."""
    groups = np.split(np.arange(len(problem.layer)), problem.starts[1:])
    return np.array([group[np.argmax(x[group])] for group in groups])


def _run_milp(objective: Floats, rows: list[Row], binary: int, seconds: float, gap: float) -> Any:
    """Minimise over columns of which the first `binary` are 0 or 1, the others 0 or more."""
    first = np.arange(len(objective)) < binary
    upper: Any = np.where(first, 1.0, np.inf)
    with _result_stream_kept_clean():
        return milp(
            objective,
            integrality=first.astype(int),
            bounds=Bounds(0, upper),
            constraints=[LinearConstraint(*row) for row in rows],
            options={"mip_rel_gap": gap, "time_limit": max(0.1, seconds)},
        )


@contextmanager
def _result_stream_kept_clean() -> Iterator[None]:
    """Send what HiGHS writes to standard output, where results belong, to standard error.

    HiGHS 1.12 prints a line of its own each time it repairs a solution, whatever its options say.
    """
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    sys.stdout.flush()
    try:
        os.dup2(2, 1)
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
