"""What every training by distillation needs: a schedule, the order of the text, Adam, and a state to go on from.

Killed at any moment, a training goes on from its last checkpoint and ends with the same weights: a checkpoint holds the
weights and Adam's moments bit by bit, and which sequences a step takes is a function of seed and step alone.

Shapes: N sequences.
"""

import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.optim import Adam, AdamW

from befit.errors import RunConflict
from befit.rundir import read_json, read_tensors, write_json, write_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running averages of each weight, as torch names them."""


def learning_rate(step: int, steps: int, *, peak: float, warmup: float) -> float:
    """The rate of a step: a straight rise to `peak` over the share `warmup` of the steps, then a cosine to a tenth."""
    rise = math.ceil(warmup * steps)
    if step < rise:
        return peak * (step + 1) / rise
    turn = (step - rise) / max(1, steps - rise)
    return peak * (0.55 + 0.45 * math.cos(math.pi * turn))


def batch_rows(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` sequences step number `step` takes: all of them once in random order, then again in another."""
    places = (divmod(place, count) for place in range(step * batch, (step + 1) * batch))
    return [_order(epoch, count, seed)[position] for epoch, position in places]


@lru_cache(maxsize=4)
def _order(epoch: int, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {epoch}".encode()))
    return torch.randperm(count, generator=generator).tolist()


def adam(
    weights: Mapping[str, Tensor], *, lr: float, weight_decay: float = 0.0, undecayed: AbstractSet[str] = frozenset()
) -> AdamW:
    """Fused AdamW as language models are trained; vectors and the tensors named in `undecayed` have no decay."""
    decayed = {name for name, weight in weights.items() if weight.ndim > 1 and name not in undecayed}
    groups = [
        {"params": [w for name, w in weights.items() if name in decayed], "weight_decay": weight_decay},
        {"params": [w for name, w in weights.items() if name not in decayed], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def training_state(
    weights: Mapping[str, Tensor], optimizer: Adam, *, gathered: Callable[[Tensor], Tensor] = lambda one: one
) -> dict[str, Tensor]:
    """The weights and Adam's moments, after at least one step, under names that `restore` knows.

    `gathered` makes a tensor whole of which each process of a team has a part.
    """
    state = {}
    for name, weight in weights.items():
        state[f"weight {name}"] = gathered(weight)
        state |= {f"{own} {name}": gathered(optimizer.state[weight][own]) for own in MOMENTS}
    return state


def restore(
    state: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    optimizer: Adam,
    steps: int,
    *,
    spread: Callable[[Tensor, Tensor], Tensor] = lambda one, _: one,
) -> None:
    """Put weights and optimizer back to where they were after `steps` steps, bit by bit.

    `spread` takes this process's part of a whole tensor, as it has one of a weight.
    """
    ordered = [weight for group in optimizer.param_groups for weight in group["params"]]
    names = {weight: name for name, weight in weights.items()}
    moments = [{own: spread(state[f"{own} {names[w]}"].clone(), w) for own in MOMENTS} for w in ordered]
    described = optimizer.state_dict()
    step = torch.tensor(float(steps))
    described["state"] = {i: {"step": step.clone(), **own} for i, own in enumerate(moments)}
    optimizer.load_state_dict(described)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(spread(state[f"weight {name}"], weight))


class Learner:
    """Tensors in training that are no module's: leaves, their optimizer, and one flat gradient, of which each has a view.

    The gradient is there from the start and stays, so that one product clips it, one collective averages it over processes,
    and a tensor that a step does not touch has a gradient of zeros and not none.
    """

    def __init__(self, weights: Mapping[str, Tensor], optimizer: Adam) -> None:
        """`weights` are leaves of one format on one device; `optimizer` has all of them."""
        self.weights, self.optimizer = dict(weights), optimizer
        some = next(iter(self.weights.values()))
        self.gradient = torch.zeros(sum(w.numel() for w in self.weights.values()), dtype=some.dtype, device=some.device)
        parts = self.gradient.split([weight.numel() for weight in self.weights.values()])
        for weight, part in zip(self.weights.values(), parts, strict=True):
            weight.grad = part.view_as(weight)

    def step(self, *, lr: float, clip: float = math.inf, average: Callable[[Tensor], None] | None = None) -> None:
        """One step along the gradient gathered since the last, shortened to `clip`; `average` makes it that of a team."""
        if average is not None:
            average(self.gradient)
        if clip < math.inf:
            self.gradient.mul_((clip / (self.gradient.norm() + 1e-6)).clamp(max=1))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.gradient.zero_()

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs, after at least one step."""
        return training_state(self.weights, self.optimizer)

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Go back to where it was after `steps` steps."""
        restore(state, self.weights, self.optimizer, steps)


@dataclass(frozen=True)
class Checkpoint:
    """The one file that outlives an attempt, in a folder of its own."""

    folder: Path
    """Holds nothing else; need not exist."""

    @property
    def file(self) -> Path:
        return self.folder / "state.safetensors"

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Replace the state. Raises `DiskFull` if there is no room; the one before stays."""
        write_tensors(self.file, state)

    def read(self) -> dict[str, Tensor] | None:
        """The state, if there is one that can be read."""
        try:
            return read_tensors(self.file)
        except (FileNotFoundError, SafetensorError):
            return None

    def sweep(self) -> None:
        """Delete what a kill left half written."""
        for file in self.folder.glob("*"):
            if file != self.file:
                file.unlink()

    def remove(self) -> None:
        """Delete it all; the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


def claim(folder: Path, key: str, holds: str) -> None:
    """Make the folder this training's own. Raises `RunConflict`, saying what it `holds`, if it is another's."""
    written = folder / "key.json"
    if not written.exists():
        write_json(written, key)
    elif read_json(written) != key:
        raise RunConflict(f"{folder} holds {holds}; give another folder, or delete it to start over")


def sampled_checksum(tensors: Iterable[tuple[str, Tensor]]) -> int:
    """A checksum of some hundred evenly spaced numbers of every tensor: cheap, and different for other weights."""
    crc = 0
    for name, tensor in tensors:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 256)].float().cpu()
        crc = zlib.crc32(some.numpy().tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def checksum(tokens: Tensor) -> int:
    """A checksum of all of a tensor on the CPU, such as token ids (N, T)."""
    return zlib.crc32(tokens.contiguous().numpy().tobytes())
