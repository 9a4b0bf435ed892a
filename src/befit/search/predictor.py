"""Predictor-guided search: an ensemble learns from the trials so far, and says which change of the best archs to try.

Each member is a ridge regression on its own resample of the trials, with the one-hot code and the space's features (for
cells: the paths from input to output) as inputs; what the members disagree on is what is not known yet. Candidates are the
neighbours of the best archs, and some further away; each is judged by a member drawn for it alone. So a candidate is tried
as often as it might be the best, which is independent Thompson sampling.

Source: White et al., BANANAS (AAAI 2021): ensemble, path encoding, mutated incumbents, independent Thompson sampling. Ridge
regressions take the place of its networks: they are fitted in a millisecond and, on a hundred trials, rank neighbours better
than trees do.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from befit.arch.space import Arch, Space
from befit.search.searcher import View, check, mutants

Matrix = NDArray[np.float64]
"""In this module: N trials, C candidates, F inputs, M members."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A bagged ensemble of ridge regressions over the neighbourhood of the best archs."""

    start: int = 10
    """Random archs before the first prediction; 2 or more."""
    incumbents: int = 5
    """Best archs whose neighbours are candidates; 1 or more."""
    wider: int = 40
    """Candidates two changes away from an incumbent; 0 or more."""
    members: int = 10
    """Regressions in the ensemble; 2 or more."""
    ridge: float = 1.0
    """What the squared weights cost, in squared standard deviations of the scores; above 0."""
    features: Callable[[Arch], Sequence[float]] | None = None
    """Numbers to learn from beside the one-hot code, such as costs; the space's own if None."""

    def __post_init__(self) -> None:
        least = {"start": 2, "incumbents": 1, "wider": 0, "members": 2, "ridge": 1e-9}
        check("predictor", **{name: (getattr(self, name), low, math.inf) for name, low in least.items()})

    def propose(self, view: View) -> Arch:
        if len(view.scored) < self.start:
            return view.draw()
        best = [arch for arch, _ in sorted(view.scored, key=lambda one: -one[1])[: self.incumbents]]
        candidates = self._candidates(view, best)
        told = self._drawn(view, candidates) if candidates else []
        order = sorted(range(len(candidates)), key=lambda i: -told[i])
        further = mutants(view.space, lambda: view.rng.choice(best), view.rng)
        return view.first(candidates[i] for i in order) or view.first(further) or view.draw()

    def _candidates(self, view: View, best: Sequence[Arch]) -> list[Arch]:
        """Archs not tried before, one of each function: all neighbours of the best, and some at two changes."""
        space, rng = view.space, view.rng
        near = [arch for one in best for arch in space.neighbours(one)]
        far = [space.mutate(rng.choice(near), rng) for _ in range(self.wider)] if near else []
        found = {space.key(arch): arch for arch in (*near, *far)}
        return [arch for key, arch in found.items() if key not in view.keys]

    def _drawn(self, view: View, candidates: Sequence[Arch]) -> list[float]:
        """For each candidate the prediction of one member, drawn for it alone."""
        worst = min(value for _, value in view.scored)
        known = [told.arch for told in view.told]
        values = np.array([worst if told.value is None else told.value for told in view.told])
        rng = np.random.default_rng(view.rng.getrandbits(64))
        inputs = encoded(view.space, [*known, *candidates], self.features or view.space.features)
        predictions = bagged(inputs[: len(known)], standard(values), inputs[len(known) :], rng, self)
        return predictions[rng.integers(self.members, size=len(candidates)), np.arange(len(candidates))].tolist()


def encoded(space: Space, archs: Sequence[Arch], features: Callable[[Arch], Sequence[float]] | None) -> Matrix:
    """(N, F): a one, the one-hot code, and the features, each brought to a range of 1/2 over these archs."""
    pairs = [(name, option) for name, choice in space.choices.items() for option in choice.options]
    place = {pair: i for i, pair in enumerate(pairs, 1)}
    hot = np.zeros((len(archs), 1 + len(pairs)))
    hot[:, 0] = 1.0
    for row, arch in zip(hot, archs, strict=True):
        row[[place[pair] for pair in arch.items_]] = 1.0
    if features is None:
        return hot
    told = np.array([features(arch) for arch in archs], dtype=float)
    low = told.min(0)
    return np.hstack([hot, (told - low) / (2 * np.maximum(told.max(0) - low, 1e-12))])


def standard(values: Matrix) -> Matrix:
    """Scores with mean 0 and deviation 1. What lies far below the median counts as four times the way down from the best
    to it: that a net fails altogether says little about which of the good ones is better.
    """
    best, middle = values.max(), float(np.median(values))
    kept = np.maximum(values, best - 4 * (best - middle)) if best > middle else values
    return (kept - kept.mean()) / (kept.std() or 1.0)


def bagged(known: Matrix, values: Matrix, unknown: Matrix, rng: np.random.Generator, config: Predictor) -> Matrix:
    """(M, C): what each member predicts for `unknown` (C, F), fitted to a resample of `known` (N, F) and `values` (N,).

    In the dual form: a trial drawn w times weighs as w trials, that is, it may be missed by 1/w as much.
    """
    inner, outer = known @ known.T, unknown @ known.T
    told = np.empty((config.members, len(unknown)))
    for member in told:
        times = np.bincount(rng.integers(len(values), size=len(values)), minlength=len(values))
        used = np.flatnonzero(times)
        gram = inner[np.ix_(used, used)] + np.diag(config.ridge / times[used])
        member[:] = outer[:, used] @ np.linalg.solve(gram, values[used])
    return told
