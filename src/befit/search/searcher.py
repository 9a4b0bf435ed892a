"""What a searcher is: a pure function from what was seen to what to try next.

A searcher keeps nothing between calls. What it knows is in the `View`, which is rebuilt from the study's storage each
time; its random numbers come from a generator seeded by the study's seed and the number of trials so far. So a study that
was killed goes on as if it had not been, and a new method is one function and a line in `searchers.py`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from befit.arch.space import Arch, Space


@dataclass(frozen=True, kw_only=True)
class Told:
    """One trial that has ended."""

    arch: Arch
    value: float | None
    """Higher is better; None if it has no score."""


@dataclass(frozen=True, kw_only=True)
class View:
    """All that a searcher may look at."""

    space: Space
    told: tuple[Told, ...]
    """Ended trials in the order in which they were asked for."""
    running: tuple[Arch, ...]
    """Asked for, not ended."""
    allowed: Callable[[Arch], bool]
    """Whether an arch keeps the budget, as far as can be said without building it."""
    rng: random.Random
    """Fresh for this proposal, the same after a resume."""


class Searcher(Protocol):
    """Proposes; a frozen dataclass whose fields are the method's settings."""

    def propose(self, view: View) -> Arch:
        """An allowed arch to try next. Raises `Infeasible` if none is found."""
        ...
