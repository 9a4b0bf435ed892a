"""What a candidate is worth: it is trained in the sandbox, labels images there, and is scored here, where the labels are.

    judged = judge(sandbox, source, images, Training(config=TrainConfig(epochs=8)), seed=0)

The score is made of logits that came back as plain arrays. A candidate that was too slow, too large, or whose numbers are
none costs one trial and has a reason. `judge_best` does the same once more for the network that is kept: with its weights, and
with the test images.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from befit.errors import BadData, TrialFailed
from befit.propose import fitting
from befit.propose.network import PRM
from befit.propose.sandbox.answers import Expected, accuracy
from befit.propose.sandbox.backends import NoSandbox
from befit.propose.sandbox.box import Result, Sandbox
from befit.propose.sandbox.limits import MIB, Limits
from befit.vision.data import Images, Split
from befit.vision.training import TrainConfig

START_SECONDS = 60.0
"""How long Python and CUDA may take to start before a candidate's time on a GPU counts."""

CUDA_BYTES = 3072 * MIB
"""Host memory that Python, torch and CUDA take by themselves in a process that inherits nothing."""

DEVIATIONS = 2.0
"""How many standard deviations of a guess's accuracy a network must lie above it to beat guessing."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How every candidate of a run is trained, and within which bounds."""

    config: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8))
    """Epochs, batch, optimizer; in the recipe track only epochs, batch and augmentation count."""
    recipe: bool = False
    """Whether files bring their own training."""
    device: str = "cpu"
    """cpu or cuda; a GPU needs a sandbox that lets candidates see it."""
    seconds: float = 120.0
    """Wall clock of one candidate, above 0."""
    memory_bytes: int = 4096 * MIB
    """Memory of one candidate beside its images; on a GPU, of its arrays there."""
    prm: Mapping[str, float] = field(default_factory=lambda: dict(PRM))
    """Hyper-parameters by name, as networks get them."""

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not self.memory_bytes > 0:
            raise BadData(f"training: seconds and memory must be above 0, got {self.seconds}, {self.memory_bytes}")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What became of a candidate's training."""

    accuracy: float | None = None
    """On the validation images, 0 .. 1; None if it has none."""
    reason: str = ""
    """Why it has none: one of `errors.REASONS`."""
    said: str = ""
    """One line on that."""
    seconds: float = 0.0
    """Wall clock."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The network that a run keeps."""

    validation: float
    """Accuracy on the validation images, 0 .. 1."""
    test: float
    """On the test images."""
    weights: Mapping[str, Tensor]
    """Its `state_dict`, on the CPU."""
    prm: Mapping[str, Any]
    """The hyper-parameters that it was made with."""
    seconds: float
    """Of training."""


def judge(sandbox: Sandbox, source: str, images: Images, training: Training, *, seed: int) -> Judged:
    """Train, and score on the validation images. What a candidate may do wrong is a reason, no error."""
    expects = {"validation": _logits(images, len(images.validation))}
    result = _trained(sandbox, source, images, training, _arguments(images, training, seed), expects)
    if not result.ok:
        return Judged(reason=result.reason or "crash", said=result.message, seconds=result.seconds)
    labels = images.validation.labels.numpy()
    return Judged(accuracy=accuracy(result.arrays["validation"], labels), seconds=result.seconds)


def judge_best(
    sandbox: Sandbox,
    source: str,
    images: Images,
    test: Split,
    training: Training,
    *,
    seed: int,
) -> Kept:
    """Train the network that was chosen, for good, and score it on the test split too.

    Raises `TrialFailed` if it cannot be trained; no test image has then been labelled.
    """
    arguments = _arguments(images, training, seed)
    told = sandbox.run(
        fitting.state, source=source, arguments=arguments, limits=_limits(training, {}), fresh=training.device != "cpu"
    )
    if not told.ok:
        raise TrialFailed(told.message, reason=told.reason or "crash")
    tensors = _tensors(told.value)
    size = sum(math.prod(shape) * form.itemsize for _, shape, form in tensors)
    expects = {
        "validation": _logits(images, len(images.validation)),
        "test": _logits(images, len(test)),
        "weights": Expected(shape=(size,), dtype="uint8"),
    }
    result = _trained(sandbox, source, images, training, arguments, expects, test)
    if not result.ok:
        raise TrialFailed(result.message, reason=result.reason or "crash")
    return Kept(
        validation=accuracy(result.arrays["validation"], images.validation.labels.numpy()),
        test=accuracy(result.arrays["test"], test.labels.numpy()),
        weights=_split(result.arrays["weights"], tensors),
        prm=told.value["prm"],
        seconds=result.seconds,
    )


def guessing(labels: Tensor) -> float:
    """The accuracy that a network must exceed to beat guessing: that of the commonest class, and two standard deviations.

    The deviation is that of the share of hits in as many independent guesses as there are labels (N,).
    """
    share = commonest(labels)
    return share + DEVIATIONS * math.sqrt(share * (1 - share) / len(labels))


def commonest(labels: Tensor) -> float:
    """The share of the class that most labels (N,) have: the accuracy of the best guess without looking."""
    return labels.bincount().max().item() / len(labels)


def _trained(
    sandbox: Sandbox,
    source: str,
    images: Images,
    training: Training,
    arguments: Mapping[str, Any],
    expects: Mapping[str, Expected],
    test: Split | None = None,
) -> Result:
    """Train and label; which arrays are expected says whether the weights are wanted."""
    files = {
        "train_images": images.train.images.numpy(),
        "train_labels": images.train.labels.numpy(),
        "validation_images": images.validation.images.numpy(),
    }
    if test is not None:
        files["test_images"] = test.images.numpy()
    limits = _limits(training, files, sum(one.bytes for one in expects.values()))
    return sandbox.run(
        fitting.fit,
        source=source,
        arguments={**arguments, "keep": "weights" in expects, "gpu_bytes": limits.gpu_bytes},
        files=files,
        expects=expects,
        limits=limits,
        fresh=training.device != "cpu",
    )


def reach_gpu(sandbox: Sandbox) -> str:
    """The name of the GPU that candidates in `sandbox` train on.

    Raises `NoSandbox` where CUDA does not come up there, so that no proposal is blamed for it.
    """
    result = sandbox.run(fitting.reach_gpu, source="", limits=_limits(Training(device="cuda"), {}), fresh=True)
    if not result.ok:
        raise NoSandbox(
            f"CUDA does not come up in the sandbox {sandbox.backend} ({result.reason}: {result.message}); `befit sandbox "
            "--gpu` tells more, and --device cpu trains without it"
        )
    return str(result.value.get("gpu", ""))


def _arguments(images: Images, training: Training, seed: int) -> dict[str, Any]:
    task = images.task
    return {
        "in_shape": (training.config.batch, task.channels, task.height, task.width),
        "out_shape": (task.classes,),
        "prm": dict(training.prm),
        "mean": images.mean,
        "std": images.std,
        "training": asdict(training.config),
        "recipe": training.recipe,
        "seed": seed,
        "device": training.device,
    }


def _limits(training: Training, files: Mapping[str, np.ndarray], answer: int = 0) -> Limits:
    """Bounds that leave room for the images given: on disk once, in memory as bytes and as the floats of a batch, on a GPU as
    bytes and as floats.
    """
    given = sum(one.nbytes for one in files.values())
    gpu, usual = training.device != "cpu", Limits()
    start = START_SECONDS if gpu else 0.0
    return Limits(
        wall_seconds=training.seconds,
        start_seconds=start,
        cpu_seconds=math.ceil(4 * (training.seconds + start)),
        memory_bytes=training.memory_bytes + 2 * given + (CUDA_BYTES if gpu else 0),
        gpu_bytes=training.memory_bytes + 5 * given if gpu else 0,
        file_bytes=usual.file_bytes + answer,
        folder_bytes=usual.folder_bytes + given + answer,
        processes=256 if gpu else usual.processes,
        open_files=4096 if gpu else usual.open_files,
    )


def _logits(images: Images, count: int) -> Expected:
    return Expected(shape=(count, len(images.classes)))


def _tensors(told: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], np.dtype]]:
    """What the candidate's process says of its weights. Raises `TrialFailed` if that has another form."""
    try:
        found = [(str(name), tuple(map(int, shape)), np.dtype(form)) for name, shape, form in told["tensors"]]
        if isinstance(told["prm"], dict) and all(size >= 0 for _, shape, _ in found for size in shape):
            return found
    except (KeyError, TypeError, ValueError):
        pass  # said below
    raise TrialFailed("it has weights that are no plain tensors", reason="output")


def _split(weights: np.ndarray, tensors: list[tuple[str, tuple[int, ...], np.dtype]]) -> dict[str, Tensor]:
    """The tensors whose bytes stand one after the other."""
    found, place = dict[str, Tensor](), 0
    for name, shape, form in tensors:
        size = math.prod(shape) * form.itemsize
        found[name] = from_numpy(weights[place : place + size].copy().view(form).reshape(shape))
        place += size
    return found
