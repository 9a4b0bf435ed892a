"""Fit an image network: one plain recipe that is good for small and large networks alike, and never ends without a reason.

SGD with Nesterov's momentum or AdamW, a straight rise of the rate and then a cosine to zero, label smoothing, and images
shifted (and mirrored, where a mirror image is the same thing). The length is a number of epochs, or seconds: the schedule
follows the share of whichever is used. On a GPU all images lie there as bytes and products are in bf16.

What a step takes and how it changes images depends on the seed alone, so on a CPU the same seed and number of epochs give the
same weights, bit by bit.

Shapes: N images, B of a batch, C channels, H height, W width.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from befit.errors import BadData, TrialFailed
from befit.vision.data import Images, Split, normalised

EVALUATED = 256
"""Images of a batch when accuracy is measured."""

RATES = {"sgd": 0.2, "adamw": 0.01}
"""Highest learning rates: the best of a few on digits and on a part of CIFAR-10, with batches of 32 to 128."""

_LEAST_STEPS = 16
_CHECKED_STEPS = 25
_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a network is trained."""

    epochs: int = 20
    """Passes over the training images, where `seconds` is not given."""
    seconds: float | None = None
    """Train as long as this, evaluation included, however many passes that makes."""
    batch: int = 128
    """Images of a step; fewer where an epoch would have less than 16 steps."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` has Nesterov momentum 0.9."""
    lr: float | None = None
    """Highest learning rate, at the end of the warm-up; None: 0.2 for sgd, 0.01 for adamw, whatever the batch."""
    weight_decay: float | None = None
    """Of matrices and kernels; None: 0.0005 for sgd, 0.05 for adamw (times the rate, as PyTorch has both)."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    warmup: float = 0.15
    """Share of the training in which the rate rises."""
    clip: float = 5.0
    """Longest gradient."""
    augment: Literal["auto", "none"] = "auto"
    """`auto`: colour images of at least 16 pixels are shifted by up to an eighth and mirrored, others shifted a little."""
    timeout: float | None = None
    """Seconds after which the training fails; None: never."""

    def __post_init__(self) -> None:
        for name in ("epochs", "seconds", "batch", "lr", "clip", "timeout"):
            told = self.__dict__[name]
            if told is not None and not told > 0:
                raise BadData(f"training: {name} must be above 0, got {told!r}")
        for name in ("label_smoothing", "warmup"):
            if not 0 <= self.__dict__[name] < 1:
                raise BadData(f"training: {name} must be at least 0 and below 1, got {self.__dict__[name]!r}")
        for name, allowed in (("optimizer", ("sgd", "adamw")), ("augment", ("auto", "none"))):
            if self.__dict__[name] not in allowed:
                raise BadData(f"training: {name} must be one of {', '.join(allowed)}, got {self.__dict__[name]!r}")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One pass over the training images, or its part if time was over."""

    epoch: int
    """From 1."""
    loss: float
    """Mean over the steps, with label smoothing and augmentation."""
    accuracy: float
    """0..1, on the validation split."""
    seconds: float
    """Since the training began."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training went."""

    accuracy: float
    """0..1, on the validation split, of the weights that the module has now."""
    history: tuple[Epoch, ...]
    """One entry for each epoch that was begun."""
    seconds: float
    """All of it."""
    epochs: float
    """Passes over the training images."""
    steps: int
    """Of the optimizer."""
    stopped: bool
    """Whether `stop` ended it early."""


def train(
    model: nn.Module,
    data: Images,
    config: TrainConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Trained:
    """Train `model` in place; it ends on `device`, in evaluation mode.

    After each epoch `report(epoch, accuracy)` is called, then `stop()`, which ends the training if true. Raises `TrialFailed`
    with the reason "nan", "out-of-memory" or "timeout".
    """
    with failures_named(), torch.random.fork_rng(), _fastest_kernels():
        torch.manual_seed(seed)
        return _Training(model, data, config or TrainConfig(), torch.device(device), seed).run(report, stop)


def fit(
    model: nn.Module,
    data: Images,
    config: TrainConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> float:
    """Train `model` in place as `train` does, with no look at any split but the training images; the epochs that took.

    Tensors have PyTorch's usual layout throughout: a network that befit did not write may `view` what a convolution gives, which
    fails with channels last in memory. Raises `TrialFailed` likewise.
    """
    with failures_named(), torch.random.fork_rng(), _fastest_kernels():
        torch.manual_seed(seed)
        plain = torch.contiguous_format
        return _Training(model, data, config or TrainConfig(), torch.device(device), seed, layout=plain).fit()


def accuracy(
    model: nn.Module, split: Split, data: Images, device: str | torch.device = "cpu", *, exact: bool = False
) -> float:
    """Share (0..1) of `split` that `model` classifies correctly; `exact`: in fp32 also where training is in bf16."""
    place = torch.device(device)
    model.to(place).eval()
    right = torch.zeros((), dtype=torch.int64, device=place)
    with torch.no_grad(), nullcontext() if exact else _mixed(place):
        for begin in range(0, len(split), EVALUATED):
            images = _laid_out(data.normalised(split.images[begin : begin + EVALUATED].to(place)))
            labels = split.labels[begin : begin + EVALUATED].to(place)
            right += (model(images).argmax(1) == labels).sum()
    return right.item() / len(split)


def augmented(images: Tensor, seeds: Tensor, shift: int, mirror: bool) -> Tensor:
    """Normalised images (B, C, H, W), each shifted by up to `shift` pixels, black or mean colour moving in, and mirrored.

    `seeds`: (B, 3) uniform numbers in 0..1 that say how: rows, columns, mirrored or not.
    """
    count, _, height, width = images.shape
    if not shift and not mirror:
        return images
    begin = (seeds[:, :2] * (2 * shift + 1)).long()
    rows = begin[:, :1] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    if mirror:
        columns = torch.where(seeds[:, 2:] < 0.5, columns.flip(1), columns)
    padded = F.pad(images, (shift, shift, shift, shift)).permute(0, 2, 3, 1)
    every = torch.arange(count, device=images.device)[:, None, None]
    # The result has its channels last in memory, which convolutions like.
    return padded[every, rows[:, :, None], (begin[:, 1:2] + columns)[:, None, :]].permute(0, 3, 1, 2)


def augmentation(data: Images, config: TrainConfig) -> tuple[int, bool]:
    """How far images of this kind may be shifted, in pixels, and whether they may be mirrored."""
    side = min(data.task.height, data.task.width)
    if config.augment == "none":
        return 0, False
    if data.task.channels == 3 and side >= 16:
        return side // 8, True
    return max(1, side // 14), False


def optimizer_of(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimizer, with weight decay for matrices and kernels only."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    is_sgd = config.optimizer == "sgd"
    decay = config.weight_decay if config.weight_decay is not None else (5e-4 if is_sgd else 0.05)
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    if is_sgd:
        return SGD(groups, lr=0.0, momentum=0.9, nesterov=True)
    return AdamW(groups, lr=0.0)


def rate(share: float, peak: float, warmup: float) -> float:
    """The learning rate when `share` (0..1) of the training is done: up in a straight line, then down along a cosine."""
    if share < warmup:
        return peak * max(0.02, share / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (share - warmup) / (1 - warmup))))


@contextmanager
def failures_named() -> Iterator[None]:
    """Turn running out of memory, wherever it happens, into `TrialFailed` with the reason "out-of-memory"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not memory and not any(word in str(error).lower() for word in _MEMORY_WORDS):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TrialFailed(
            f"training ran out of memory ({told}); take a smaller batch, smaller images or smaller networks",
            reason="out-of-memory",
        ) from error


class _Training:
    """One run over the data: what its steps share."""

    def __init__(
        self,
        model: nn.Module,
        data: Images,
        config: TrainConfig,
        device: torch.device,
        seed: int,
        *,
        layout: torch.memory_format = torch.channels_last,
    ) -> None:
        self.begin = time.monotonic()
        self.data, self.config, self.device, self.layout = data, config, device, layout
        self.model = _laid_out(model.to(device), layout).train()
        self.optimizer = optimizer_of(self.model, config)
        # Bytes: all of CIFAR-10 takes 180 MB of a GPU.
        self.images, self.labels = data.train.images.to(device), data.train.labels.to(device)
        # Copied once: a copy for every step would make the processor wait for the GPU.
        self.mean, self.std = torch.tensor(data.mean, device=device), torch.tensor(data.std, device=device)
        self.batch = max(2, min(config.batch, len(self.labels) // _LEAST_STEPS))
        self.peak = config.lr or RATES[config.optimizer]
        self.per_epoch = max(1, len(self.labels) // self.batch)
        self.generator = torch.Generator().manual_seed(seed)
        self.augmentation = augmentation(data, config)
        self.steps, self.judging, self.over = 0, 0.0, False

    def run(self, report: Callable[[int, float], None] | None, stop: Callable[[], bool] | None) -> Trained:
        history, stopped = list[Epoch](), False
        while not stopped and not self.over and self.share() < 1:
            loss = self.epoch()
            begin = time.monotonic()
            found = accuracy(self.model, self.data.validation, self.data, self.device)
            self.judging = time.monotonic() - begin
            number = len(history) + 1
            history.append(Epoch(epoch=number, loss=loss, accuracy=found, seconds=self.seconds()))
            if report is not None:
                report(number, found)
            stopped = stop is not None and stop()
        # Back to the layout that saved weights have, so that a copy that was read computes the same, bit by bit.
        self.model.to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
        return Trained(
            accuracy=history[-1].accuracy,
            history=tuple(history),
            seconds=self.seconds(),
            epochs=self.steps / self.per_epoch,
            steps=self.steps,
            stopped=stopped,
        )

    def fit(self) -> float:
        while not self.over and self.share() < 1:
            self.epoch()
        self.model.eval()
        return self.steps / self.per_epoch

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def share(self) -> float:
        """How much of the training is done, 0..1; of the seconds, those for the last evaluation are set aside."""
        if self.config.seconds is None:
            return self.steps / (self.config.epochs * self.per_epoch)
        if not self.steps:
            return 0.0
        # Before the first evaluation: a forward is a third of a step.
        step = self.seconds() / self.steps
        judging = self.judging or step / 3 * len(self.data.validation) / self.batch
        return min(1.0, self.seconds() / max(1e-3, self.config.seconds - judging))

    def epoch(self) -> float:
        """The mean loss of the steps of one pass, or of those that time allows. Raises `TrialFailed`."""
        self.model.train()
        count = self.per_epoch * self.batch  # what is left over differs from epoch to epoch
        order = torch.randperm(len(self.labels), generator=self.generator)[:count].to(self.device)
        seeds = torch.rand(len(order), 3, generator=self.generator).to(self.device)
        total = torch.zeros((), device=self.device)
        steps = 0
        for rows, own in zip(order.split(self.batch), seeds.split(self.batch), strict=True):
            share = self.share()
            if share >= 1 and steps:
                self.over = True
                break
            total += self.step(rows, own, rate(share, self.peak, self.config.warmup))
            steps += 1
            self.check_time()
            if steps % _CHECKED_STEPS == 0:  # a look at the loss makes a GPU wait
                self.check_loss(total.item() / steps)
        self.check_loss(total.item() / steps)
        return total.item() / steps

    def step(self, rows: Tensor, seeds: Tensor, lr: float) -> Tensor:
        images = augmented(normalised(self.images[rows], self.mean, self.std), seeds, *self.augmentation)
        images = _laid_out(images, self.layout)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with _mixed(self.device):
            loss = F.cross_entropy(
                self.model(images).float(), self.labels[rows], label_smoothing=self.config.label_smoothing
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.steps += 1
        return loss.detach()

    def check_loss(self, loss: float) -> None:
        """Raise `TrialFailed` if the loss has left the numbers."""
        if not math.isfinite(loss):
            raise TrialFailed(
                f"the loss is {loss} after {self.steps} steps; a lower learning rate or a norm layer may help",
                reason="nan",
            )

    def check_time(self) -> None:
        """Raise `TrialFailed` if time is over."""
        limit = self.config.timeout
        if limit is not None and self.seconds() > limit:
            raise TrialFailed(
                f"not trained after {limit:g} s ({self.share():.1%} done); allow more time or fewer epochs",
                reason="timeout",
            )


def _mixed(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 products on a GPU that has them."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def _laid_out(held: Any, layout: torch.memory_format = torch.channels_last) -> Any:
    """A network or images in a layout; convolutions are fastest with channels last in memory."""
    return held.to(memory_format=layout)


@contextmanager
def _fastest_kernels() -> Iterator[None]:
    """Let cuDNN choose algorithms by trial while networks are trained on a GPU; afterwards as before."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
