"""Screening: of several candidates for a trial, train the one that looks best untrained.

Training-free scores are good filters and poor finishers: on NAS-Bench-201 they rank all cells about as well as the number
of parameters does, and the best cells hardly at all. So a screen only drops what a searcher proposes, it decides nothing.
Source of the practice: Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS (ICLR 2021, arXiv 2101.08134), section 4.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from befit.arch.space import Arch
from befit.errors import Infeasible
from befit.search.searcher import Searcher, View


@dataclass(frozen=True, kw_only=True)
class Screened:
    """Another searcher, asked `of` times for each proposal; the candidate with the highest score is taken."""

    inner: Searcher
    score: Callable[[Arch], float]
    """Higher is better; the same for equal archs."""
    of: int
    """Candidates, at least 1."""

    def propose(self, view: View) -> Arch:
        """The best of the candidates, fewer if the searcher runs out of them. Raises `Infeasible` if it has none."""
        found = list[Arch]()
        for _ in range(self.of):
            own = replace(view, running=(*view.running, *found), rng=random.Random(view.rng.random()))
            try:
                found.append(self.inner.propose(own))
            except Infeasible:
                if not found:
                    raise
                break
        return max(found, key=self.score)
