"""From images to an architecture by gradients: relax, search, and round to the best that meets the budget.

    limits = Limits(price=lambda arch: blueprint.count(arch, data.task).costs(), budget=Budget.parse("params<=0.1M"))
    derived = derive(cell_mixture(data.task), data, limits, method=Gdas(), folder=Path("runs/gdas"))
    network = blueprint.build(derived.arch, data.task)       # to be trained as any other candidate

The network of the search is thrown away: its norms and its shared weights belong to the mixture, not to one arch.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from befit.arch.space import Arch, Space
from befit.oneshot.expected import Pressure
from befit.oneshot.method import Method
from befit.oneshot.mixture import Mixture
from befit.oneshot.projection import Limits, project, ranked
from befit.oneshot.relax import search
from befit.oneshot.relaxed import Epoch, RelaxConfig, Relaxed
from befit.progress import Progress, silent
from befit.vision.data import Images


@dataclass(frozen=True, kw_only=True)
class Derived:
    """What a search by gradients ends with."""

    arch: Arch
    """The highest log-probability inside the budget."""
    costs: Mapping[str, float]
    """Of the arch, as priced."""
    score: float
    """Its log-probability, nats."""
    wished: float
    """The highest log-probability of all, without a budget."""
    exact: bool
    """Whether no other arch inside the budget is more probable."""
    scores: Mapping[str, tuple[float, ...]]
    """For every choice the log-probabilities of its options."""
    history: tuple[Epoch, ...]
    """What every epoch ended with."""
    entropy: float
    """Of the final probabilities, mean over choices, nats: 0 where the search is sure of everything."""
    seconds: float
    """Time in training."""
    epochs: int
    """Passes over the weights' half of the images, the last perhaps not whole."""
    collapsed: bool
    """Whether the arch is the empty one that such searches are known to fall into (for cells: all skips)."""


def derive(
    mixture: Mixture,
    data: Images,
    limits: Limits,
    *,
    method: Method,
    folder: Path,
    config: RelaxConfig | None = None,
    progress: Progress = silent,
) -> Derived:
    """Search and project. The budget is first a pressure in the search's loss, then a bound that the result keeps.

    Goes on where an earlier call with the same arguments stopped in `folder`. Raises `Infeasible` before any training if no
    arch meets the budget, and what `befit.oneshot.relax.search` raises.
    """
    config = config or RelaxConfig()
    limits = replace(limits, price=cache(limits.price))
    pressure = None
    if limits.budget is not None:
        level = {name: [0.0] * len(choice.options) for name, choice in mixture.space.choices.items()}
        project(mixture.space, level, limits)
        pressure = Pressure(mixture.space, limits, config.pressure)
    found = search(mixture, method, data, config, folder, pressure=pressure, progress=progress)
    return rounded(mixture, found, limits)


def rounded(mixture: Mixture, found: Relaxed, limits: Limits) -> Derived:
    """The most probable arch inside the budget of what was learned. Raises `Infeasible` if there is none."""
    chosen = project(mixture.space, found.scores, limits)
    return Derived(
        arch=chosen.arch,
        costs=chosen.costs,
        score=chosen.score,
        wished=chosen.best,
        exact=chosen.exact,
        scores=found.scores,
        history=found.history,
        entropy=found.entropy,
        seconds=found.seconds,
        epochs=len(found.history),
        collapsed=mixture.collapsed is not None and mixture.collapsed(chosen.arch),
    )


def finalists(space: Space, derived: Derived, limits: Limits, count: int) -> list[Arch]:
    """Up to `count` of the most probable archs inside the budget that compute different functions, the derived one first."""
    found = dict[Hashable, Arch]()
    for arch in ranked(space, derived.scores):
        if space.key(arch) not in found and limits.met(limits.price(arch)):
            found[space.key(arch)] = arch
            if len(found) == count:
                break
    return list(found.values())
