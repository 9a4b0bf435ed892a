"""`befit cut` of a search run: the best network inside another budget, out of weights that were trained once.

Nothing is trained; sub-nets are judged by the images that the run was made with, and their statistics estimated anew.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from befit.budget import Budget, human, word_of
from befit.errors import Infeasible, RunConflict
from befit.oneshot.evolve import EvolveConfig
from befit.oneshot.pipeline import SUPERNET
from befit.oneshot.stored import cut as cut_stored
from befit.oneshot.stored import open_supernet
from befit.progress import Progress, silent
from befit.rundir import read_config
from befit.search.config import SearchConfig
from befit.search.job import SearchJob
from befit.search.pipeline import tightened
from befit.search.pricing import LATENCY, Priced
from befit.vision.checkpoint import Facts, save_classifier

ATTEMPTS = 3
"""Searches until a network keeps the budget as measured, each under a bound corrected by what the last one took."""


@dataclass(frozen=True, kw_only=True)
class CutNetwork:
    """What was taken out."""

    folder: Path
    """As `best/` of a run: weights, arch and model card."""
    budget: Budget
    priced: Priced
    """Counted, and the latency measured if the budget bounds it."""
    accuracy: float
    """On the validation split, 0..1."""

    def lines(self) -> list[str]:
        """What the terminal shows."""
        costs = {word_of(cost): human(cost, value) for cost, value in self.priced.costs.items()}
        told = [f"{self.accuracy:.2%} of the validation images", *(f"{word} {value}" for word, value in costs.items())]
        return [", ".join(told), *self.budget.explain(self.priced.costs), f"network {self.folder}"]


def cut(run: Path, out: Path, *, budget: str, evaluations: int = 100, progress: Progress = silent) -> CutNetwork:
    """Take the best network inside `budget` out of the shared weights of a run, and write it to `out`.

    Raises `RunConflict` for a run without shared weights, `Infeasible` if nothing keeps the budget, also as measured.
    """
    told = read_config(run)
    if told.get("verb") != "search" or not (run / SUPERNET).is_dir():
        raise RunConflict(
            f"{run} holds no shared weights; make them with befit search --searcher once-for-all --out {run}"
        )
    config = replace(SearchConfig.from_json(told), budget=budget, out=run)
    job = SearchJob.revisit(config, progress)
    stored = open_supernet(run / SUPERNET, device=job.device)
    bounds = Budget.parse(budget)
    pricer = tightened(job.pricer)
    pricer.require_feasible(seed=config.seed)
    for attempt in range(ATTEMPTS):
        found = cut_stored(
            stored,
            job.data,
            allowed=pricer.allowed,
            config=EvolveConfig(evaluations=evaluations, excess=pricer.excess, seed=config.seed),
            progress=progress,
        )
        arch = found.classifier.arch
        priced = job.pricer.price(arch)
        if job.pricer.measure is not None:
            priced = replace(priced, measured={LATENCY: job.measure(arch)})
        if bounds.met(priced.costs) or pricer.budget is None or attempt == ATTEMPTS - 1:
            break
        # Predicted too fast by this much: ask for that much less.
        factor = min(1.0, priced.predicted.get(LATENCY, 0.0) / priced.costs[LATENCY])
        pricer = replace(pricer, budget=pricer.budget.tighten({LATENCY: factor}))
        pricer.require_feasible(seed=config.seed)
    if not bounds.met(priced.costs):
        broken = next(bound for bound in bounds.bounds if not bound.met(priced.costs[bound.cost]))
        raise Infeasible(
            f"the network found keeps {bounds} as predicted, but not as measured: {'; '.join(bounds.explain(priced.costs))}; "
            "is the machine busy? Ask again, or for a little less",
            binding=broken.cost,
            nearest={bound.cost: priced.costs[bound.cost] for bound in bounds.bounds},
        )
    accuracy = found.evolved.accuracy
    counted = {word_of(cost): human(cost, value) for cost, value in {**priced.counted, **priced.measured}.items()}
    facts = Facts(
        data=job.data.source,
        images={"train": len(job.data.train), "validation": len(job.data.validation)},
        accuracy={"validation": accuracy},
        measured=counted,
        notes=(f"Cut out of shared weights under {bounds}, without further training.", *job.data.notes),
    )
    save_classifier(out, found.classifier, facts)
    return CutNetwork(folder=out, budget=bounds, priced=priced, accuracy=accuracy)
