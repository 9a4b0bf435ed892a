"""`befit search` with shared weights: by gradients, or once for all. Both end in `befit.search.pipeline.conclude`.

images ─ mixture ─ relax(method, budget) ─ project ─ finalists                                 by gradients
images ─ supernet ─ train once ─ evolve(budget) ─ extract ─ finalists, trained already          once for all
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from befit.arch.space import Arch
from befit.errors import BadData
from befit.oneshot.derive import Derived, derive, finalists
from befit.oneshot.evolve import EvolveConfig, Evolved, Judge, JudgeConfig, evolve
from befit.oneshot.method import Darts, DrNas, Gdas, Method
from befit.oneshot.mixture import cell_mixture
from befit.oneshot.projection import Limits
from befit.oneshot.relax import RelaxConfig
from befit.oneshot.sandwich import SandwichConfig, train_supernet
from befit.oneshot.stored import open_supernet, supernet_of, write_supernet
from befit.oneshot.supernet import recalibrate
from befit.progress import Progress, silent
from befit.rundir import digest, read_json, write_json
from befit.search.config import GRADIENT, SHARED, SearchConfig, parse_options
from befit.search.job import SearchJob, smaller
from befit.search.pipeline import conclude, finalists_of, tightened
from befit.search.pricing import LATENCY, Priced
from befit.search.trial import TrialRecord
from befit.vision.data import Images

METHODS: Mapping[str, Callable[..., Method]] = {
    "darts": Darts,
    "darts2": functools.partial(Darts, second_order=True),
    "drnas": DrNas,
    "gdas": Gdas,
}
"""What the names of gradient searches mean."""

SHARED_EPOCHS = 4
"""Passes over the images for each epoch of a single network: every sub-net gets a share of the steps only."""

SUPERNET = "supernet"
"""Folder of the shared weights in the run, out of which `befit cut` takes other budgets."""


def search(
    config: SearchConfig,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = warnings.warn,
    data: Images | None = None,
    build: Callable[..., nn.Module] | None = None,
) -> dict[str, Any]:
    """As `befit.search.pipeline.search`, for searchers that share weights between archs."""
    if config.searcher not in (*GRADIENT, SHARED):
        raise BadData(f"{config.searcher} trains every arch by itself: it is run by befit.search.pipeline.search")
    job = SearchJob.open(config, progress, say, data=data, build=build)
    return relax_stage(job) if config.searcher in GRADIENT else shared_stage(job)


def relax_stage(job: SearchJob) -> dict[str, Any]:
    """Learn the architecture by gradients, round it to the best archs inside the budget, and train these by themselves."""
    config = job.config
    if job.source != "cell":
        raise BadData(
            f"{config.searcher} mixes the operations of cells; search space {job.source} with another searcher"
        )
    options = parse_options(config.searcher_options, "searcher options")
    partial = options.pop("partial", 1)
    seen = smaller(job.data, config)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        mixture = cell_mixture(seen.task, partial=partial, **job.options)
    mixture.network.to(job.device)
    budget = tightened(job.pricer).budget
    limits = Limits(price=lambda arch: job.pricer.price(arch).costs, budget=budget)
    training = relax_config(config, options)
    method = _made(METHODS[config.searcher], config.searcher, options)
    told = [job.key, config.searcher, config.searcher_options, repr(training), str(budget), config.side, config.share]
    derived = dict[str, Derived]()

    def make(folder: Path) -> None:
        derived["found"] = found = derive(
            mixture, seen, limits, method=method, folder=folder / "search", config=training, progress=job.progress
        )
        archs = finalists(job.blueprint.space, found, limits, config.top)
        write_json(folder / "derived.json", {"archs": [arch.to_json() for arch in archs], **_gradient(found)})

    folder = job.run.stage(config.searcher, digest("relax", told), make)
    written = read_json(folder / "derived.json")
    archs = [job.blueprint.space.arch(arch) for arch in written.pop("archs")]
    return conclude(job, [], archs, extra={"gradient": written})


def relax_config(config: SearchConfig, options: dict[str, Any]) -> RelaxConfig:
    """How weights and logits are trained; settings of `RelaxConfig` are taken out of the searcher's options.

    GDAS computes one operation an edge, so its steps are cheap and see little: it gets three times the epochs, and its logits
    wait until the weights tell operations apart. Measured on digits; shorter searches ended in cells without a convolution.
    """
    usual = {"epochs": 3 * config.train.epochs, "arch_wait": 0.6, "lr": 0.2} if config.searcher == "gdas" else {}
    told = {"epochs": config.train.epochs, **usual, "seconds": config.train.seconds, "seed": config.seed}
    own = {field.name for field in fields(RelaxConfig)} & set(options)
    return _made(RelaxConfig, config.searcher, {**told, **{name: options.pop(name) for name in own}})


def shared_stage(job: SearchJob) -> dict[str, Any]:
    """Train shared weights once, search them for the best sub-nets inside the budget, and take these out as they are."""
    config = job.config
    seen = smaller(job.data, config)
    if seen.task != job.data.task:
        raise BadData(
            "once-for-all trains on the images that it is used on; let the space choose resolutions, not --side"
        )
    folder = job.run.folder / SUPERNET
    training = SandwichConfig(
        epochs=config.train.epochs * SHARED_EPOCHS,
        seconds=config.train.seconds,
        batch=min(config.train.batch, max(16, len(seen.train) // 32)),
        fair=job.source == "cell",
        seed=config.seed,
    )

    def make(kept: Path) -> None:
        supernet = supernet_of(job.blueprint, seen.task, job.options, seed=config.seed).to(job.device)
        done = train_supernet(supernet, seen, training, kept / "training", job.progress)
        told = {"steps": done.steps, "epochs": done.epochs, "seconds": done.seconds, "losses": thinned(done.losses)}
        write_supernet(folder, supernet, seen, source=job.source, options=job.options, training=told)

    key = digest("supernet", job.key, repr(training), config.share)
    job.run.stage(SUPERNET, key, make)
    stored = open_supernet(folder, build=job.build, device=job.device)
    judge = Judge(stored.supernet, job.data, JudgeConfig(seed=config.seed))
    pricer = tightened(job.pricer)
    evolved = dict[str, Evolved]()

    def choose(kept: Path) -> None:
        searched = EvolveConfig(evaluations=config.trials, excess=pricer.excess, seed=config.seed)
        evolved["found"] = evolve(
            stored.supernet,
            judge,
            searched,
            allowed=pricer.allowed,
            folder=kept,
            key=key,
            progress=job.progress,
        )
        found = evolved["found"]
        judged = [[arch.to_json(), value] for arch, value in found.judged]
        write_json(kept / "evolved.json", {"judged": judged, "refused": found.refused})

    kept = job.run.stage(
        "evolve", digest("evolve", key, config.trials, str(pricer.budget), job.target.to_json()), choose
    )
    told = read_json(kept / "evolved.json")
    records = [judged_record(job, place, arch, value) for place, (arch, value) in enumerate(told["judged"])]
    archs = measured_first(job, finalists_of(job, records, len(records)))
    given = dict[Arch, nn.Module]()
    for arch in archs:
        recalibrate(stored.supernet, arch, judge.batches)
        given[arch] = stored.supernet.extract(arch)
    return conclude(
        job,
        records,
        archs,
        given,
        judged="accuracy by shared weights",
        extra={"shared": dict(stored.training)},
        refused=told["refused"],
    )


def measured_first(job: SearchJob, archs: Sequence[Arch]) -> list[Arch]:
    """As many of the best as there are finalists, those that keep the budget as measured: a sub-net costs no training."""
    if job.budget is None or job.pricer.measure is None:
        return list(archs[: job.config.top])
    kept = list[Arch]()
    for arch in archs:
        costs = {**job.pricer.price(arch).costs, LATENCY: job.measure(arch)}
        if tightened(job.pricer).refusal(Priced(counted=costs)) is None:
            kept.append(arch)
        if len(kept) == job.config.top:
            break
    return kept or list(archs[: job.config.top])


def judged_record(job: SearchJob, number: int, arch: Mapping[str, Any], value: float) -> TrialRecord:
    """A sub-net that was judged by shared weights, in the form of a trial."""
    priced = job.pricer.price(job.blueprint.space.arch(arch))
    return TrialRecord(
        number=number,
        state="scored",
        arch=arch,
        value=value,
        values=(value,),
        counted=priced.counted,
        predicted=priced.predicted,
        measured={},
        reason=None,
        message="",
        seconds=0.0,
        epochs=0.0,
        fidelity={},
        refused=0,
        owner=None,
        again=None,
        rungs={},
        details={},
    )


def thinned(values: Sequence[float], most: int = 400) -> list[float]:
    """At most so many of a curve's points, evenly spread."""
    step = max(1, -(-len(values) // most))
    return list(values[::step])


def _gradient(found: Derived) -> dict[str, Any]:
    """What the search by gradients learned, for the record."""
    return {
        "probabilities": [epoch.probabilities for epoch in found.history],
        "entropy": [epoch.entropy for epoch in found.history],
        "losses": [[epoch.weights_loss, epoch.arch_loss] for epoch in found.history],
        "expected": [epoch.costs for epoch in found.history],
        "score": found.score,
        "wished": found.wished,
        "collapsed": found.collapsed,
        "seconds": found.seconds,
    }


def _made(kind: Callable[..., Any], name: str, options: Mapping[str, Any]) -> Any:
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise BadData(f"searcher options of {name}: {error}") from error
