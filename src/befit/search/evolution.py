"""Regularized (aging) evolution: of a few drawn from the last so many archs, the best is changed in one choice.

Old archs leave whether they are good or not, so that one lucky score does not rule the population for ever. Source: Real et al.,
Regularized Evolution for Image Classifier Architecture Search (AAAI 2019), algorithm 1. Beyond it: a child that was
tried before, or computes the same as one that was, is bred again, after `patience` times with one more change.
"""

import math
from dataclasses import dataclass

from befit.arch.space import Arch
from befit.search.searcher import View, check, mutants, tournament


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """The population is the last archs that have a score; a failed trial never becomes a parent."""

    population: int = 10
    """Archs that can become parents, and random archs at the start; 2 or more."""
    sample: int = 10
    """Draws from the population, with replacement, of which the best becomes the parent; 1 or more."""
    patience: int = 50
    """Children refused before each further change to them; 1 or more."""

    def __post_init__(self) -> None:
        rules = {name: (getattr(self, name), least, math.inf) for name, least in _LEAST.items()}
        check("evolution", **rules)

    def propose(self, view: View) -> Arch:
        if len(view.scored) < self.population:
            return view.draw()
        living = view.scored[-self.population :]
        children = mutants(
            view.space, lambda: tournament(living, self.sample, view.rng), view.rng, patience=self.patience
        )
        return view.first(children) or view.draw()


_LEAST = {"population": 2, "sample": 1, "patience": 1}
