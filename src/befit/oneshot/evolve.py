"""Which sub-net of a trained supernet fits a budget best: evolution, judged by shared weights, without any training.

A sub-net's accuracy by shared weights ranks it among its like and is no promise of what it reaches alone; its batch-norm
statistics are estimated anew before it is judged. The budget is hard: `allowed` is asked before a sub-net is run at all.

The search keeps nothing but the list of what it judged, each with a proposal's own random numbers, so a killed search goes
on from its file and ends where it would have. Source: Cai et al., Once-for-All (arXiv 1908.09791, section 3.3).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from befit.arch.space import Arch
from befit.errors import Infeasible
from befit.lm.precision import mixed
from befit.lm.training import claim
from befit.oneshot.sandwich import on_device
from befit.oneshot.supernet import Supernet, recalibrate
from befit.progress import Progress, silent
from befit.rundir import digest, write_text
from befit.search.evolution import Evolution
from befit.search.searcher import Searcher, Told, View, rng_of
from befit.vision.data import Images


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How sub-nets are judged."""

    calibration: int = 1024
    """Training images by which batch-norm statistics are estimated, at least 2; all if there are fewer."""
    batch: int = 256
    """Images in each of their batches, at least 2; a supernet's statistics are best estimated in batches as in training."""
    images: int | None = None
    """Validation images to judge by, drawn once; all if None."""
    seed: int = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        for name in ("calibration", "batch"):
            if getattr(self, name) < 2:
                raise ValueError(f"judge: {name} must be at least 2, got {getattr(self, name)!r}")
        if self.images is not None and self.images < 1:
            raise ValueError(f"judge: images must be at least 1 or None, got {self.images!r}")


class Judge:
    """Accuracy on validation images by shared weights, 0..1: `judge(arch)`. Images lie on the supernet's device if they fit."""

    def __init__(self, supernet: Supernet, data: Images, config: JudgeConfig | None = None) -> None:
        self.supernet, config = supernet, config or JudgeConfig()
        self.device = next(supernet.parameters()).device
        rows = _some(len(data.train), config.calibration, config.seed)
        # A last batch of one image has no spread.
        parts = [part for part in rows.split(config.batch) if len(part) > 1]
        self.batches = [data.normalised(data.train.images[part].to(self.device)) for part in parts]
        own = _some(len(data.validation), config.images or len(data.validation), config.seed + 1)
        judged = data.validation.take(own)
        size = max(config.batch, 1024)
        self.data, pixels = data, on_device(judged.images, self.device)
        self.images = pixels.split(size)
        self.labels = judged.labels.to(self.device)

    def __call__(self, arch: Arch) -> float:
        with mixed(self.device):
            recalibrate(self.supernet, arch, self.batches)
            with torch.no_grad():
                answers = torch.cat([self._answers(images, arch) for images in self.images])
        return int((answers == self.labels).sum()) / len(self.labels)

    def _answers(self, images: Tensor, arch: Arch) -> Tensor:
        return self.supernet(self.data.normalised(images.to(self.device)), arch).argmax(1)

    def network(self, arch: Arch) -> nn.Module:
        """The sub-net as a network of its own, with the statistics by which it is judged, in full precision."""
        recalibrate(self.supernet, arch, self.batches)
        return self.supernet.extract(arch)


def rank(judge: Callable[[Arch], float], archs: Sequence[Arch], progress: Progress = silent) -> list[float]:
    """The accuracy by shared weights of each arch, in order."""
    return [judge(arch) for arch in progress(archs, "rank")]


@dataclass(frozen=True, kw_only=True)
class EvolveConfig:
    """How long and by what to search."""

    evaluations: int = 200
    """Sub-nets to judge, at least 1."""
    searcher: Searcher = field(default_factory=lambda: Evolution(population=50, sample=10))
    """Proposes them; any of befit's."""
    excess: Callable[[Arch], float] | None = None
    """By what share an arch breaks the budget; leads into a budget that few archs keep (see `View`)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise ValueError(f"evolve: evaluations must be at least 1, got {self.evaluations!r}")


@dataclass(frozen=True, kw_only=True)
class Evolved:
    """What the search found."""

    arch: Arch
    """Of the highest accuracy, the first of equals."""
    accuracy: float
    """Of it by shared weights, 0..1."""
    judged: tuple[tuple[Arch, float], ...]
    """Every sub-net that was judged, in order."""
    refused: int
    """Candidates over budget that this call discarded before they were run."""


def evolve(
    supernet: Supernet,
    judge: Callable[[Arch], float],
    config: EvolveConfig,
    *,
    allowed: Callable[[Arch], bool] | None = None,
    folder: Path | None = None,
    key: str = "",
    progress: Progress = silent,
) -> Evolved:
    """Search the supernet's space for the best sub-net that is `allowed`, the same one for the same seed.

    `folder` receives every judgement as it falls; called again with it, the search goes on there. `key` names what the
    judgements depend on beside the configuration: the weights, the data and the budget; a folder with another raises
    `RunConflict`. Raises `Infeasible` if nothing is allowed; fewer sub-nets than asked for are judged if no more exist.
    """
    told, refused = list[Told](), 0
    log = None if folder is None else folder / "judged.jsonl"
    if folder is not None and log is not None:
        claim(folder, digest(repr(config.searcher), config.seed, key), "the search for another sub-net")
        told = _read(log, supernet)[: config.evaluations]

    def within(arch: Arch) -> bool:
        nonlocal refused
        fits = allowed is None or allowed(arch)
        refused += not fits
        return fits

    for place in progress(range(len(told), config.evaluations), "evolve"):
        rng = rng_of(config.seed, place)
        view = View(
            space=supernet.blueprint.space, told=tuple(told), running=(), allowed=within, excess=config.excess, rng=rng
        )
        try:
            arch = config.searcher.propose(view)
        except Infeasible:
            if not told:
                raise
            break  # everything that fits has been judged
        told.append(Told(arch=arch, value=judge(arch)))
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"arch": arch.to_json(), "accuracy": told[-1].value}) + "\n")
    judged = tuple((one.arch, one.value) for one in told if one.value is not None)
    arch, accuracy = max(judged, key=lambda one: one[1])
    return Evolved(arch=arch, accuracy=accuracy, judged=judged, refused=refused)


def _read(log: Path, supernet: Supernet) -> list[Told]:
    """What was judged so far; a line that a kill left half written is cut off."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(lines):
        write_text(log, "".join(whole))
    found = [json.loads(line) for line in whole]
    return [Told(arch=supernet.blueprint.space.arch(one["arch"]), value=one["accuracy"]) for one in found]


def _some(count: int, wanted: int, seed: int) -> Tensor:
    """At most `wanted` of the places 0 .. count - 1, in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:wanted]
