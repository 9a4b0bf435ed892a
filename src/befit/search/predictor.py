"""Predictor-guided search: an ensemble learns from the trials so far, and says which change of the best archs to try.

Source: White et al., BANANAS (AAAI 2021): ensemble, path encoding, mutated incumbents, independent Thompson sampling.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from befit.arch.space import Arch
from befit.search.searcher import View, check, mutants

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """Trees on the one-hot code and the space's features."""

    start: int = 10
    """Random archs before the first prediction; 2 or more."""
    incumbents: int = 5
    """Best archs whose changes are candidates; 1 or more."""
    candidates: int = 100
    """Looked at for each proposal; 1 or more."""
    trees: int = 20
    """Members of the ensemble; 2 or more."""
    features: Callable[[Arch], Sequence[float]] | None = None
    """Numbers to learn from beside the one-hot code, such as costs; the space's own if None."""

    def __post_init__(self) -> None:
        rules = {name: (getattr(self, name), least, math.inf) for name, least in _LEAST.items()}
        check("predictor", **rules)

    def propose(self, view: View) -> Arch:
        if len(view.scored) < self.start:
            return view.draw()
        candidates = list(self._candidates(view))
        if not candidates:
            return view.draw()
        return candidates[int(np.argmax(self._draw(view, candidates)))]

    def _candidates(self, view: View) -> Iterator[Arch]:
        """New archs one or more changes away from the incumbents, each once."""
        best = sorted(view.scored, key=lambda one: -one[1])[: self.incumbents]
        found = dict[object, None]()
        for number, arch in enumerate(mutants(view.space, lambda: view.rng.choice(best)[0], view.rng)):
            key = view.space.key(arch)
            if key not in found and view.new(arch):
                found[key] = None
                yield arch
            if len(found) >= self.candidates or number > 5 * self.candidates:
                return

    def _draw(self, view: View, candidates: Sequence[Arch]) -> Matrix:
        """For each candidate the prediction of one member of the ensemble, drawn for it alone."""
        from sklearn.ensemble import RandomForestRegressor

        known = self._encoded(view, [arch for arch, _ in view.scored])
        values = np.array([value for _, value in view.scored])
        seed = view.rng.getrandbits(32)
        forest = RandomForestRegressor(n_estimators=self.trees, max_features=0.5, random_state=seed, n_jobs=1)
        forest.fit(known, values)
        told = np.stack([tree.predict(self._encoded(view, candidates)) for tree in forest.estimators_])
        member = np.random.default_rng(seed).integers(0, self.trees, len(candidates))
        return told[member, np.arange(len(candidates))]

    def _encoded(self, view: View, archs: Sequence[Arch]) -> Matrix:
        features = self.features or view.space.features
        rows = [(*view.space.encode(arch), *(features(arch) if features else ())) for arch in archs]
        return np.array(rows, dtype=float)


_LEAST = {"start": 2, "incumbents": 1, "candidates": 1, "trees": 2}
