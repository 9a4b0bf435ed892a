"""Random search without repetition: the baseline that every other method has to beat.

Source: Li and Talwalkar, Random Search and Reproducibility for Neural Architecture Search (UAI 2019), and every fair table since.
"""

from dataclasses import dataclass

from befit.arch.space import Arch
from befit.search.searcher import View


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Uniform draws; an arch that computes the same function as an earlier one is drawn again."""

    def propose(self, view: View) -> Arch:
        return view.draw()
