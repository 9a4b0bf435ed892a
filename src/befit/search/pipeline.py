"""`befit search` from images to a network that keeps its budget, each stage kept on disk.

    space ─ ask ─ price(budget) ─ evaluate ─ tell ─ front ─ train the best ─ measure ─ choose ─ test ─ best/ ─ report

The searchers of this file train one network for each trial. Those that share weights look elsewhere (`befit.oneshot`) and end
in the same `conclude`.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from optuna.samplers import BaseSampler
from torch import nn

from befit.arch.space import Arch
from befit.cost.image_latency import LatencyModel
from befit.errors import BadData, TrialFailed
from befit.progress import Progress, silent
from befit.rundir import digest, read_json, write_json
from befit.search.config import SAMPLED, SearchConfig, parse_options
from befit.search.estimate import Proxy, Training
from befit.search.finish import choose, open_test, train_finalists, transfer, write_best
from befit.search.halving import Halving
from befit.search.job import FITTED, SearchJob
from befit.search.pool import Crew
from befit.search.predictor import Predictor
from befit.search.pricing import LATENCY, Pricer
from befit.search.sampler import Sampler, sampler_of
from befit.search.screen import Screened
from befit.search.searchers import SEARCHERS as OWN
from befit.search.searchers import searcher_of
from befit.search.spec import StudySpec, facts
from befit.search.study import read_study, run_study
from befit.search.summary import Findings, record
from befit.search.trial import Fidelity, TrialRecord, front
from befit.vision.data import Images

SLACK = 0.95
"""Share of a bound on latency that a trial may use: the finalists are measured again, at another moment."""


def search(
    config: SearchConfig,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = warnings.warn,
    data: Images | None = None,
    build: Callable[..., nn.Module] | None = None,
) -> dict[str, Any]:
    """Search, and leave the best network; returns what `summary.json` holds. Everything lies in `config.out` then.

    `data` and `build` stand for `config.data` and `config.space`: images in memory, a class of one's own with `Choice`s.
    Raises `BadBudget`, `BadData`, `IllegalArch`, `Infeasible`, `RunConflict`, `TrialFailed` or `DiskFull`.
    """
    if config.searcher not in SAMPLED:
        raise BadData(f"{config.searcher} shares weights between archs: it is run by befit.oneshot.pipeline.search")
    job = SearchJob.open(config, progress, say, data=data, build=build)
    records = study_stage(job)
    return conclude(job, records, finalists_of(job, records))


def study_stage(job: SearchJob) -> list[TrialRecord]:
    """Trials until there are enough; the study itself remembers where it was."""
    config = job.config
    pricer = tightened(job.pricer)
    spec = StudySpec(
        storage=config.storage or str(job.run.folder / "study.sqlite"),
        name=config.study,
        searcher=config.searcher,
        options=parse_options(config.searcher_options, "searcher options"),
        trials=config.trials,
        objectives=tuple(part.strip() for part in config.objectives.split(",")),
        seed=config.seed,
        fidelity=Fidelity(image_side=config.side, data_share=config.share),
        halving=None if config.halving is None else Halving(first=config.halving),
        timeout=config.timeout,
    )
    evaluate = Training(
        blueprint=job.blueprint, data=job.data, config=config.train, device=job.device, seed=config.seed
    )

    def make(folder: Path) -> None:
        del folder  # the study has a storage of its own
        run_study(
            spec,
            job.blueprint.space,
            evaluate,
            pricer=pricer,
            crew=crew_of(job),
            sampler=sampler_for(job, spec, pricer),
            progress=job.progress,
        )

    told = [
        job.key,
        facts(spec, job.blueprint.space, pricer),
        repr(config.train),
        config.screen,
        config.proxy,
        config.proxy_features,
    ]
    job.run.stage("study", digest("study", told, config.trials, spec.storage, spec.name), make)
    records = read_study(spec.storage, spec.name)
    if not any(one.value is not None for one in records):
        reasons = "; ".join(sorted({f"{one.reason}: {one.message}" for one in records if one.reason})[:3])
        raise TrialFailed(f"none of {len(records)} trials was scored ({reasons})", reason="crash")
    return records


def sampler_for(job: SearchJob, spec: StudySpec, pricer: Pricer) -> BaseSampler:
    """The searcher as an Optuna sampler: the predictor learns from costs, too, and a screen stands before any searcher."""
    config = job.config
    proxy = Proxy(blueprint=job.blueprint, data=job.data, name=config.proxy, seed=config.seed)
    score = cache(lambda arch: proxy(arch, spec.fidelity, lambda *_: None).value)
    if spec.searcher not in OWN:
        if config.screen > 1:
            raise BadData(f"screen: {spec.searcher} is Optuna's own; screen befit's searchers: {', '.join(OWN)}")
        return sampler_of(
            spec.searcher,
            job.blueprint.space,
            seed=config.seed,
            allowed=pricer.allowed,
            excess=pricer.excess,
            options=spec.options,
        )
    searcher = searcher_of(spec.searcher, spec.options)
    if isinstance(searcher, Predictor):
        searcher = replace(searcher, features=features_of(pricer, score if config.proxy_features else None))
    if config.screen > 1:
        searcher = Screened(inner=searcher, score=score, of=config.screen)
    return Sampler(searcher, job.blueprint.space, seed=config.seed, allowed=pricer.allowed, excess=pricer.excess)


def features_of(pricer: Pricer, score: Callable[[Arch], float] | None) -> Callable[[Arch], list[float]]:
    """What a predictor sees of an arch beside its options: the space's own features, exact costs, and a training-free score.

    With costs it reached the optima of NAS-Bench-201 in 40 and 49 queries instead of 65 and 54 (means of 30 runs).
    """
    own = pricer.blueprint.space.features

    def features(arch: Arch) -> list[float]:
        counted = pricer.price(arch).counted
        row = [*(own(arch) if own is not None else ()), *(math.log1p(value) for value in counted.values())]
        if score is not None:
            row.append(value if math.isfinite(value := score(arch)) else 0.0)
        return row

    return features


def crew_of(job: SearchJob) -> Crew:
    """Who trains: as many processes as asked for; on a cluster as many as it has room for, unless more than one is asked for."""
    config = job.config
    workers = 0 if config.ray is not None and config.workers == 1 else config.workers
    return Crew(workers=workers, ray=config.ray, threads=config.threads, gpus=float(job.device == "cuda"))


def tightened(pricer: Pricer) -> Pricer:
    """The pricer of trials, who may use `SLACK` of a latency that is going to be measured again."""
    if pricer.budget is None or pricer.measure is None:
        return pricer
    return replace(pricer, budget=pricer.budget.tighten({LATENCY: SLACK}))


def finalists_of(job: SearchJob, records: Sequence[TrialRecord], count: int | None = None) -> list[Arch]:
    """The best `count` of the trials, or as many as the configuration says, distinct functions only.

    Of several objectives, the most accurate of the front first.
    """
    ranked = sorted(
        records if "," not in job.config.objectives else front(records), key=lambda one: -(one.value or 0.0)
    )
    space, found = job.blueprint.space, dict[Any, Arch]()
    for one in ranked:
        if one.value is not None and one.arch is not None:
            arch = space.arch(one.arch)
            found.setdefault(space.key(arch), arch)
    return list(found.values())[: count or job.config.top]


def measure_only(
    config: SearchConfig, *, progress: Progress = silent, say: Callable[[str], None] = warnings.warn
) -> Path:
    """Fit the latency model of a space on this device and nothing else; the file that `latency_table` reads elsewhere."""
    job = SearchJob.open(replace(config, objectives="accuracy, latency", latency_table=None), progress, say)
    if not isinstance(job.latency, LatencyModel):
        raise BadData(
            f"measure: nothing predicts the latency of {config.space}; its networks are measured as they are tried"
        )
    file = job.run.folder / FITTED
    write_json(file, job.latency.to_json())
    return file


def conclude(
    job: SearchJob,
    records: Sequence[TrialRecord],
    archs: Sequence[Arch],
    given: Mapping[Arch, nn.Module] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Train the finalists, choose one, open the test split, write `best/`, `summary.json` and `report.html`.

    `given` holds networks that need no training; `more` goes into the findings.
    """
    finalists = train_finalists(job, archs, given)
    choose(job, finalists)  # before the test split is opened
    tested = open_test(job, finalists)
    best = choose(job, tested)
    write_best(job, best)
    moved = transfer(job, records, tested)
    record(job, Findings(records=records, finalists=tested, best=best, transfer=moved, **more))
    return read_json(Path(job.run.folder) / "summary.json")
