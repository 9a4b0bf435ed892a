"""How good an arch is: trained fully, trained less, scored without training, or looked up.

Each estimator is a small picklable value that a worker process calls with an arch, a fidelity (fewer epochs or seconds, smaller
images, a part of the training images) and the callback that reports epochs. Validation images are never reduced in number,
so that accuracies of different fidelities differ by training alone. The test split stays sealed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from befit.arch.space import Arch
from befit.errors import BadData, TrialFailed
from befit.search.trial import Fidelity, Outcome, Report
from befit.vision.blueprint import Blueprint
from befit.vision.data import Images
from befit.vision.proxies import KNOWN, proxies
from befit.vision.training import TrainConfig, train


@dataclass(frozen=True, kw_only=True)
class Training:
    """Validation accuracy after training from fresh weights."""

    blueprint: Blueprint
    data: Images
    config: TrainConfig = field(default_factory=TrainConfig)
    """The full measure; a fidelity replaces its epochs or seconds."""
    device: str = "cpu"
    seed: int = 0
    """Of weights and training, the same for every arch: what differs between trials is the arch."""
    _reduced: dict[Fidelity, Images] = field(default_factory=dict[Fidelity, Images], repr=False, compare=False)

    def __call__(self, arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
        """Raises `TrialFailed` with the reason "nan" or "out-of-memory"; lets `Pruned` pass."""
        if fidelity not in self._reduced:
            self._reduced[fidelity] = reduced(self.data, fidelity, self.seed)
        data = self._reduced[fidelity]
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = self.blueprint.build(arch, data.task)
        done = train(network, data, limited(self.config, fidelity), device=self.device, seed=self.seed, report=report)
        history = [[one.epoch, round(one.loss, 5), round(one.accuracy, 5)] for one in done.history]
        return Outcome(
            value=done.accuracy,
            seconds=done.seconds,
            epochs=done.epochs,
            details={"history": history, "steps": done.steps},
        )


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A score of the untrained network: costs a few forward passes, ranks coarsely."""

    blueprint: Blueprint
    data: Images
    name: str = "nwot"
    """One of `befit.vision.proxies.KNOWN`."""
    images: int = 64
    """Training images of the one batch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in KNOWN:
            raise BadData(f"proxy: expected one of {', '.join(KNOWN)}, got {self.name!r}")

    def __call__(self, arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
        del report
        data = self.data if fidelity.image_side is None else self.data.resized(fidelity.image_side)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            network = self.blueprint.build(arch, data.task)
            rows = torch.randperm(len(data.train))[: self.images]
            images = data.normalised(data.train.images[rows])
            score = proxies(network, images, data.train.labels[rows], (self.name,))[self.name]
        return Outcome(value=score)


@dataclass(frozen=True, kw_only=True)
class Tabled:
    """Looked up: a benchmark's table, or what was evaluated elsewhere."""

    values: Mapping[Arch, float]

    def __call__(self, arch: Arch, fidelity: Fidelity, report: Report) -> Outcome:
        """Raises `TrialFailed` ("invalid") for an arch that is not in the table."""
        del fidelity, report
        if arch not in self.values:
            raise TrialFailed(f"the table does not hold {arch.to_json()}", reason="invalid")
        return Outcome(value=self.values[arch])


def reduced(data: Images, fidelity: Fidelity, seed: int = 0) -> Images:
    """The images that a fidelity leaves: of smaller side, fewer of them for training."""
    if fidelity.data_share < 1:
        data = data.subset(fidelity.data_share, seed)
    return data if fidelity.image_side is None else data.resized(fidelity.image_side)


def limited(config: TrainConfig, fidelity: Fidelity) -> TrainConfig:
    """The training that a fidelity leaves. With seconds, as many epochs as they make."""
    if fidelity.seconds is not None:
        return replace(config, seconds=fidelity.seconds)
    if fidelity.epochs is not None:
        return replace(config, epochs=max(1, round(fidelity.epochs)), seconds=None)
    return config
