"""Training shared weights: every step the largest sub-net, the smallest and some between, or a fair round of paths.

Sandwich rule and in-place distillation: if the largest and the smallest sub-net are good, those between tend to be; all but
the largest learn from the largest's answers, which are there anyway (Yu and Huang, arXiv 1903.05134; Cai et al.,
Once-for-All, arXiv 1908.09791). A space without a largest sub-net, such as the cells, takes random paths, or rounds in which
each option of each choice trains exactly once before the weights move (strict fairness: Chu et al., FairNAS,
arXiv 1907.01845).

Killed at any moment, the same call goes on from its last checkpoint: images, their augmentation and the sub-nets of a step
are functions of the seed and the step alone. A training by epochs ends with the same weights then.

Shapes: B images, C channels, H x W pixels, K classes.
"""

import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import SGD

from befit.arch.space import Arch, Space, Value
from befit.errors import IllegalArch, TrialFailed
from befit.lm.precision import mixed
from befit.lm.training import Checkpoint, batch_rows, claim, sampled_checksum
from befit.oneshot.supernet import Supernet
from befit.progress import Progress, silent
from befit.rundir import digest
from befit.search.searcher import seed_of
from befit.vision.data import Images
from befit.vision.training import TrainConfig, augmentation, augmented, failures_named, rate

ON_DEVICE_BYTES = 4 << 30
"""Images up to this size are kept on the device whole."""

CHECKED = 50
"""Steps between two looks whether the loss is still a number; each look waits for the device."""


@dataclass(frozen=True, kw_only=True)
class SandwichConfig:
    """How shared weights are trained."""

    epochs: float = 30.0
    """Times through the training images, more than 0; ignored if `seconds` is given."""
    seconds: float | None = None
    """Time to train for instead, more than 0; the learning rate falls with the time."""
    batch: int = 64
    """Images in one step, which all its sub-nets see."""
    paths: int = 2
    """Random sub-nets in a step, beside the largest and the smallest where there are these; 0 or more."""
    fair: bool = False
    """Whether rounds in which every option trains once take the place of random sub-nets; `paths` is ignored then."""
    distill: bool = True
    """Whether the others learn from the largest's answers instead of from the labels; without a largest, they do not."""
    lr: float = 0.05
    """SGD's peak learning rate, with Nesterov momentum."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Of weights with two or more dimensions; norms and biases have none."""
    warmup: float = 0.05
    """Share of the training over which the learning rate rises, 0 .. 1; then it falls as a cosine to 0."""
    clip: float = 5.0
    """Largest norm of a step's gradient, summed over its sub-nets; a longer one is shortened to it."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, 0 up to 1."""
    augment: Literal["auto", "none"] = "auto"
    """`auto`: as in the training of single networks: shifted, and mirrored where a mirror image is the same thing."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints; what a kill can cost at most."""
    seed: int = 0
    """Of the order of images, their augmentation and the sub-nets."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"sandwich: {name} must be above 0, got {getattr(self, name)!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"sandwich: seconds must be above 0 or None, got {self.seconds!r}")
        for name in ("paths", "weight_decay", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"sandwich: {name} must be 0 or more, got {getattr(self, name)!r}")
        for name in ("momentum", "label_smoothing", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"sandwich: {name} must be at least 0 and under 1, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class SupernetTraining:
    """What the training did."""

    steps: int
    """Of the optimizer."""
    epochs: float
    """Times through the training images; every sub-net of a step sees the step's images."""
    seconds: float
    """In training, interrupted attempts included as far as they were kept."""
    losses: tuple[float, ...]
    """Cross-entropy with the labels of each step's first sub-net (the largest if there is one), before the step."""


def train_supernet(
    supernet: Supernet, data: Images, config: SandwichConfig, folder: Path | None = None, progress: Progress = silent
) -> SupernetTraining:
    """Train where the supernet lies; it is left in evaluation mode, and its statistics are to be recalibrated.

    `folder` receives checkpoints, which go when the training ends. Raises `TrialFailed` (reason "nan" or
    "out-of-memory"), `RunConflict` if the folder belongs to another training, `IllegalArch` if there is no sub-net to train.
    """
    checkpoint = None if folder is None else Checkpoint(folder / "checkpoint")
    if folder is not None:
        told = {name: value for name, value in asdict(config).items() if name != "checkpoint_seconds"}
        start = sampled_checksum(supernet.named_parameters())
        claim(folder, digest(told, data.fingerprint, start), "the training of other shared weights")
    with failures_named():
        return _Training(supernet, data, config, checkpoint).run(progress)


def subnets(supernet: Supernet, config: SandwichConfig, step: int) -> list[Arch]:
    """The sub-nets that a step trains, the largest first."""
    rng, space = random.Random(f"{config.seed} {step}"), supernet.blueprint.space
    between = fair_round(space, rng) if config.fair else [space.sample(rng) for _ in range(config.paths)]
    ends = [] if supernet.largest is None else [supernet.largest]
    last = [] if supernet.smallest is None else [supernet.smallest]
    if not (found := list(dict.fromkeys([*ends, *between, *last]))):
        raise IllegalArch("supernet: there is no sub-net to train; ask for paths=1 or more, or for fair rounds")
    return found


def fair_round(space: Space, rng: random.Random) -> list[Arch]:
    """As many archs as the longest choice has options, in which each option of each choice comes equally often.

    A choice with fewer options repeats some, drawn at random. An arch that the space's rule refuses is drawn anew, which
    is then less than fair.
    """
    count = max(len(choice.options) for choice in space.choices.values())
    columns = dict[str, list[Value]]()
    for name, choice in space.choices.items():
        rounds = [rng.sample(choice.options, len(choice.options)) for _ in range(-(-count // len(choice.options)))]
        columns[name] = [option for options in rounds for option in options][:count]
        rng.shuffle(columns[name])
    found = list[Arch]()
    for place in range(count):
        taken = dict[str, Value]()
        for name, choice in space.choices.items():
            if choice.open(taken):
                taken[name] = columns[name][place]
        found.append(space.arch(taken) if space.contains(taken) else space.sample(rng))
    return found


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """The images there, or as they are if they are many: then each batch goes there by itself."""
    return images.to(device) if images.numel() * images.element_size() <= ON_DEVICE_BYTES else images


class _Training:
    """One attempt: the supernet, its optimizer, and where it stands."""

    def __init__(self, supernet: Supernet, data: Images, config: SandwichConfig, checkpoint: Checkpoint | None) -> None:
        self.supernet, self.data, self.config, self.checkpoint = supernet, data, config, checkpoint
        self.weights = dict(supernet.named_parameters())
        self.device = next(iter(self.weights.values())).device
        matrices = [weight for weight in self.weights.values() if weight.ndim > 1]
        vectors = [weight for weight in self.weights.values() if weight.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
        self.labels = data.train.labels.to(self.device)
        self.images = on_device(data.train.images, self.device)
        self.steps = math.ceil(config.epochs * len(self.labels) / config.batch)
        self.augmentation = augmentation(data, TrainConfig(augment=config.augment))
        self.curve, self.seconds = list[Tensor](), 0.0

    def run(self, progress: Progress) -> SupernetTraining:
        begin, already = self._resume(), self.seconds
        start = saved = time.monotonic()
        devices = [self.device] if self.device.type == "cuda" else []
        self.supernet.train()
        with torch.random.fork_rng(devices=devices):
            for step in progress(self._until_done(begin), "supernet", self._left(begin)):
                self.curve.append(self._step(step))
                if (step + 1) % CHECKED == 0:
                    self._losses()
                now = time.monotonic()
                self.seconds = already + now - start
                if self.checkpoint is not None and now - saved >= self.config.checkpoint_seconds:
                    self.checkpoint.write(self._state())
                    saved = time.monotonic()
        self.supernet.eval()
        losses, self.seconds = self._losses(), already + time.monotonic() - start
        if self.checkpoint is not None:
            self.checkpoint.write(self._state())
        steps = len(losses)
        epochs = steps * self.config.batch / len(self.labels)
        return SupernetTraining(steps=steps, epochs=epochs, seconds=self.seconds, losses=tuple(losses))

    def _left(self, begin: int) -> int | None:
        """Steps to come, where the clock does not decide."""
        return max(0, self.steps - begin) if self.config.seconds is None else None

    def _until_done(self, begin: int) -> Iterator[int]:
        """The numbers of the steps to take. The rate of each follows from how far the training is."""
        for step in itertools.count(begin):
            limit = self.config.seconds
            done = step / self.steps if limit is None else self.seconds / limit
            if done >= 1:
                return
            for group in self.optimizer.param_groups:
                group["lr"] = rate(done, self.config.lr, self.config.warmup)
            yield step

    def _step(self, step: int) -> Tensor:
        """One step of the optimizer; the loss of its first sub-net before it."""
        torch.manual_seed(seed_of(self.config.seed, step))
        seeds = torch.rand(self.config.batch, 3).to(self.device)
        rows = torch.tensor(batch_rows(step, self.config.batch, len(self.labels), self.config.seed))
        labels = self.labels[rows.to(self.device)]
        raw = self.images[rows.to(self.images.device)].to(self.device)
        images = augmented(self.data.normalised(raw), seeds, *self.augmentation)
        archs = subnets(self.supernet, self.config, step)
        self.optimizer.zero_grad(set_to_none=True)
        teacher, first = self._learn(images, labels, archs[0], None)
        for arch in archs[1:]:
            self._learn(images, labels, arch, teacher)
        torch.nn.utils.clip_grad_norm_(self.weights.values(), self.config.clip)
        self.optimizer.step()
        return first

    def _learn(
        self, images: Tensor, labels: Tensor, arch: Arch, teacher: Tensor | None
    ) -> tuple[Tensor | None, Tensor]:
        """Add one sub-net's gradient; its probabilities (B, K) if others are to learn from them, and its loss."""
        with mixed(self.device):
            logits = self.supernet(images, arch)
        logits = logits.float()
        if teacher is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
        else:
            loss = F.cross_entropy(logits, teacher)  # the KL but for the teacher's entropy, which has no gradient
        loss.backward()
        teaches = self.config.distill and arch == self.supernet.largest
        return logits.detach().softmax(-1) if teaches else None, loss.detach()

    def _losses(self) -> list[float]:
        """Of every step so far. Raises `TrialFailed` if one is no number."""
        losses = torch.stack(self.curve).tolist()
        broken = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if broken is not None:
            raise TrialFailed(
                f"the supernet's training diverged: the loss of step {broken} is no number; "
                f"give a lower learning rate than {self.config.lr:g}",
                reason="nan",
            )
        return losses

    def _state(self) -> dict[str, Tensor]:
        """All that the next attempt needs."""
        state = {"curve": torch.tensor(self._losses(), dtype=torch.float64), "seconds": torch.tensor(self.seconds)}
        for name, weight in self.weights.items():
            state[f"weight {name}"] = weight
            if (moment := self.optimizer.state[weight].get("momentum_buffer")) is not None:
                state[f"momentum {name}"] = moment
        return state

    def _resume(self) -> int:
        """The number of the first step to take: that of the checkpoint, if there is one that can be read."""
        state = None
        if self.checkpoint is not None:
            self.checkpoint.sweep()
            state = self.checkpoint.read()
        if state is None:
            return 0
        self.curve, self.seconds = list(state["curve"].to(self.device)), float(state["seconds"])
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state[f"weight {name}"])
                if f"momentum {name}" in state:
                    self.optimizer.state[weight]["momentum_buffer"] = state[f"momentum {name}"].to(self.device)
        return len(self.curve)
