"""From the archs a search likes best to one network: train them fully, choose by validation, and only then open the test split.

    finalists ─ train ─ measure ─ choose ─ test (once, for all of them) ─ best/ ─ does it transfer?

Each step is kept on disk; a run that is resumed reads the test figures and does not open the split again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from befit.arch.space import Arch
from befit.budget import Budget, human, word_of
from befit.errors import Infeasible, TrialFailed
from befit.rundir import digest, read_config, read_json, read_tensors, write_json, write_tensors
from befit.search.config import SearchConfig
from befit.search.job import SearchJob, images_for, smaller
from befit.search.pricing import LATENCY, Priced
from befit.search.trial import TrialRecord
from befit.vision.checkpoint import Facts, save_classifier
from befit.vision.data import Images, load_images
from befit.vision.predict import Classifier
from befit.vision.training import accuracy, train

BEST = "best"
"""Folder of the network that was chosen, in the run."""

COMPARED = 8
"""Archs trained on a second dataset: half of them the best, the others spread evenly over the rest."""


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """One network of the last round."""

    arch: Arch
    validation: float
    """Accuracy 0..1 on the validation split, by which one is chosen."""
    priced: Priced
    """Its costs, measured anew."""
    within: bool
    """Whether it keeps the budget, as measured now."""
    seconds: float
    """Of training."""
    epochs: float
    weights: Path
    """Its trained weights."""
    test: float | None = None
    """Accuracy on the test split, once that has been opened."""


def train_finalists(
    job: SearchJob, archs: Sequence[Arch], given: Mapping[Arch, nn.Module] | None = None
) -> list[Finalist]:
    """Train each arch fully, or take the network that is given for it; the best by validation first.

    What fails by itself (NaN, memory) is left out with a word; raises `TrialFailed` if all do.
    """
    found, failed = list[Finalist](), list[str]()
    for arch in job.progress(archs, "finalists"):
        try:
            found.append(_finalist(job, arch, (given or {}).get(arch)))
        except TrialFailed as failure:
            failed.append(str(failure))
            job.say(f"a finalist could not be trained ({failure.reason}): {failure}")
    if not found:
        raise TrialFailed(f"no finalist could be trained: {'; '.join(failed)}", reason="crash")
    return sorted(found, key=lambda one: (not one.within, -one.validation))


def _finalist(job: SearchJob, arch: Arch, given: nn.Module | None) -> Finalist:
    config = job.config

    def make(folder: Path) -> None:
        told = {"seconds": 0.0, "epochs": 0.0}
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            module = job.blueprint.build(arch, job.data.task) if given is None else given
        if given is None or config.tune:
            trained = train(module, job.data, config.final, device=job.device, seed=config.seed)
            told = {"seconds": trained.seconds, "epochs": trained.epochs}
        told["validation"] = accuracy(module, job.data.validation, job.data, job.device, exact=True)
        write_tensors(folder / "model.safetensors", module.state_dict())
        write_json(folder / "trained.json", told)

    own = None if given is None else digest_of(given)
    settings = repr(config.final) if given is None or config.tune else None
    folder = job.run.stage("train", digest("train", job.key, arch.to_json(), settings, config.seed, own), make)
    told = read_json(folder / "trained.json")
    priced = job.pricer.price(arch)
    if job.pricer.measure is not None:
        priced = replace(priced, measured={LATENCY: job.measure(arch)})
    return Finalist(
        arch=arch,
        validation=told["validation"],
        priced=priced,
        within=job.budget is None or _met(job.budget, priced.costs),
        seconds=told["seconds"],
        epochs=told["epochs"],
        weights=folder / "model.safetensors",
    )


def _met(budget: Budget, costs: Mapping[str, float]) -> bool:
    """Whether every bound on a cost that is known is kept."""
    return all(bound.met(costs[bound.cost]) for bound in budget.bounds if bound.cost in costs)


def choose(job: SearchJob, finalists: Sequence[Finalist]) -> Finalist:
    """The best by validation that keeps the budget as measured. Raises `Infeasible` if none of the finalists does."""
    for one in finalists:
        if one.within:
            return one
    assert job.budget is not None
    nearest = finalists[0].priced.costs
    worst = max(job.budget.bounds, key=lambda bound: bound.excess(nearest[bound.cost]))
    raise Infeasible(
        f"none of {len(finalists)} finalists keeps {job.budget} as measured now: {'; '.join(job.budget.explain(nearest))}. "
        "They did when they were tried: is the machine busy? The same command measures again; --top adds finalists",
        binding=worst.cost,
        nearest={bound.cost: nearest[bound.cost] for bound in job.budget.bounds},
    )


def open_test(job: SearchJob, finalists: Sequence[Finalist]) -> list[Finalist]:
    """The finalists with their test accuracy. The split is opened once in the life of a run with these finalists."""

    def make(folder: Path) -> None:
        split = job.data.test.open()
        told = [accuracy(network(job, one), split, job.data, job.device, exact=True) for one in finalists]
        write_json(folder / "test.json", told)

    key = digest("test", job.key, [[one.arch.to_json(), str(one.weights.parent.name)] for one in finalists])
    told = read_json(job.run.stage("test", key, make) / "test.json")
    return [replace(one, test=value) for one, value in zip(finalists, told, strict=True)]


def network(job: SearchJob, one: Finalist) -> nn.Module:
    """The trained network, on the CPU, for evaluation."""
    with torch.random.fork_rng():
        module = job.blueprint.build(one.arch, job.data.task)
    weights: dict[str, Tensor] = read_tensors(one.weights)
    module.load_state_dict(weights)
    return module.eval()


def write_best(job: SearchJob, best: Finalist) -> Path:
    """`best/`: weights, arch and model card."""
    data = job.data
    classifier = Classifier.of(network(job, best), data, best.arch, blueprint=job.source, options=job.options)
    test = {} if best.test is None else {"test": best.test}
    measured = {**best.priced.counted, **best.priced.measured}
    facts = Facts(
        data=data.source,
        images={"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        accuracy={"validation": best.validation, **test},
        measured={word_of(cost): human(cost, value) for cost, value in measured.items()},
        predicted={
            word_of(cost): human(cost, value) for cost, value in best.priced.predicted.items() if cost not in measured
        },
        notes=(f"Found by {job.config.searcher} under {job.budget or 'no budget'}.", *data.notes),
    )
    folder = job.run.folder / BEST
    save_classifier(folder, classifier, facts)
    return folder


def transfer(job: SearchJob, records: Sequence[TrialRecord], finalists: Sequence[Finalist]) -> dict[str, Any] | None:
    """Train archs of this search on a second dataset: does their order hold? None without one, or with too few archs.

    The correlations are between what each arch's trial reached here and what it reaches there, with the same training.
    """
    if job.config.then is None:
        return None
    scored = sorted((one for one in records if one.value is not None), key=lambda one: -(one.value or 0.0))
    archs = _spread([job.blueprint.space.arch(one.arch or {}) for one in scored], [one.arch for one in finalists])
    here = {job.blueprint.space.arch(one.arch or {}): one.value for one in scored}
    there = images_for(replace(job.config, data=job.config.then))
    seen = smaller(there, job.config)
    rows = list[dict[str, Any]]()
    for arch in job.progress(archs, "transfer"):

        def make(folder: Path, arch: Arch = arch) -> None:
            with torch.random.fork_rng():
                torch.manual_seed(job.config.seed)
                module = job.blueprint.build(arch, seen.task)
            told = train(module, seen, job.config.train, device=job.device, seed=job.config.seed)
            write_json(folder / "trained.json", {"validation": told.accuracy})

        settings = [repr(job.config.train), job.config.seed, job.config.side, job.config.share]
        key = digest("transfer", job.key, there.fingerprint, arch.to_json(), settings)
        told = read_json(job.run.stage("transfer", key, make) / "trained.json")
        rows.append({"arch": arch.to_json(), "here": here[arch], "there": told["validation"]})
    kendall = spearman = None
    if len({row["here"] for row in rows}) > 1 and len({row["there"] for row in rows}) > 1:
        pairs = [row["here"] for row in rows], [row["there"] for row in rows]
        kendall = float(stats.kendalltau(*pairs).statistic)  # pyright: ignore[reportAttributeAccessIssue]
        spearman = float(stats.spearmanr(*pairs).statistic)  # pyright: ignore[reportAttributeAccessIssue]
    return {"data": there.source, "rows": rows, "kendall": kendall, "spearman": spearman}


def _spread(ranked: Sequence[Arch], finalists: Sequence[Arch]) -> list[Arch]:
    """Finalists and the best first, then archs at even distances down the ranking; distinct, at most `COMPARED`."""
    ranking = list(dict.fromkeys(ranked))
    top = [arch for arch in ranking if arch in set(finalists)]
    kept = list(dict.fromkeys([*top, *ranking]))[: max(len(top), COMPARED // 2)]
    rest = [arch for arch in ranking if arch not in set(kept)]
    wanted = min(len(rest), max(0, COMPARED - len(kept)))
    return kept + [rest[(i + 1) * len(rest) // wanted - 1] for i in range(wanted)]


def images_of(folder: Path, data: str | None, size: int | None) -> Images | None:
    """Images to hold against a network that a search left: those named, else those of the run it lies in."""
    run = next((place for place in (folder, folder.parent) if (place / "config.json").is_file()), None)
    if data is not None or run is None:
        return None if data is None else load_images(data, size=size)
    told = read_config(run)
    if told.get("verb") != "search":
        return None
    config = SearchConfig.from_json(told)
    return images_for(config)


def digest_of(module: nn.Module) -> str:
    """Names a network's weights, for the keys of stages."""
    return digest({name: [list(w.shape), w.double().sum().item()] for name, w in module.state_dict().items()})
