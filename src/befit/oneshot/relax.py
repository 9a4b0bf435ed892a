"""Search by gradients: a network's weights and the logits of its architecture, trained in turn on two halves of the data.

Every step trains the logits on a batch of one half, then the weights on a batch of the other (Liu et al., DARTS, ICLR 2019,
section 2.3). Which method says how options are weighted is `befit.oneshot.method`'s matter; what is expected to cost more than
a budget raises the logits' loss. Both halves are of the training split: the validation split
remains for judging and the test split for the end.

Killed at any moment, the same call with the same folder goes on from the last checkpoint; on a CPU it ends with the same bits,
as the order of images and all noise are functions of seed and step.

Shapes: B batch, C channels, H x W pixels, K options of a choice.
"""

import itertools
import math
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from befit.arch.space import Space
from befit.errors import BadData, TrialFailed
from befit.lm.training import MOMENTS, Checkpoint, batch_rows, claim, sampled_checksum
from befit.oneshot.expected import Pressure
from befit.oneshot.method import Method
from befit.oneshot.mixture import Mixture
from befit.oneshot.relaxed import RelaxConfig, Relaxed
from befit.oneshot.unroll import first_gradient, unrolled
from befit.progress import Progress, silent
from befit.rundir import digest, read_json, write_json
from befit.vision.data import Images
from befit.vision.training import TrainConfig, augmentation, augmented, failures_named

OTHERS = "the search of another space, on other images or with another configuration"
"""What a folder holds that is not this search's."""


def search(
    mixture: Mixture,
    method: Method,
    data: Images,
    config: RelaxConfig,
    folder: Path,
    *,
    pressure: Pressure | None = None,
    progress: Progress = silent,
) -> Relaxed:
    """Train the mixture's network and the logits of its choices; returns what the logits say. The network is changed.

    It is trained where its parameters are, on the training split alone. `folder` receives the checkpoints, then
    `relaxed.json`; called again with the same arguments, it only reads that (and the network stays as it is). Raises `BadData`
    for too few images, `RunConflict` if the folder belongs to another search, `TrialFailed` with the reason "nan" or
    "out-of-memory".
    """
    if len(data.train) < 4:
        raise BadData(
            f"search: {data.source} has {len(data.train)} training images; expected at least 4, for two halves"
        )
    claim(folder, _key(mixture, method, data, config, pressure), OTHERS)
    written = folder / "relaxed.json"
    if not written.exists():
        with failures_named():
            _Search(mixture, method, data, config, folder, pressure).run(progress)
    return Relaxed.from_json(read_json(written))


class _Search:
    """One attempt: the network and the logits in training, their optimizers, and the files that outlive the attempt."""

    def __init__(
        self,
        mixture: Mixture,
        method: Method,
        data: Images,
        config: RelaxConfig,
        folder: Path,
        pressure: Pressure | None,
    ) -> None:
        self.network, self.method, self.data = mixture.network, method, data
        self.config, self.pressure = config, pressure
        self.weights = dict(self.network.named_parameters())
        self.device = next(iter(self.weights.values())).device
        # As in the training of single networks; but a difference quotient needs all digits.
        self.half = self.device.type == "cuda" and torch.cuda.is_bf16_supported() and not method.second_order
        # The logits are a few numbers: on the CPU, noise is the same for every device, and no device is asked what is live.
        self.logits = initial_logits(mixture.space, config.seed)
        self.sgd = SGD(self.weights.values(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
        self.adam = Adam(self.logits.values(), lr=config.arch_lr, betas=(0.5, 0.999), weight_decay=config.arch_decay)
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(config.seed))
        self.augmentation = augmentation(data, TrainConfig(augment=config.augment))
        self.halves = order.tensor_split(2)
        self.per_epoch = math.ceil(len(self.halves[0]) / config.batch)
        self.checkpoint, self.written = Checkpoint(folder / "checkpoint"), folder / "relaxed.json"
        self.curve: list[Tensor] = []
        self.trace: list[Tensor] = []
        self.seconds = 0.0

    def run(self, progress: Progress) -> None:
        """Train from the last checkpoint to the end and write what was learned."""
        begin, steps, limit = self._resume(), self.config.epochs * self.per_epoch, self.config.seconds
        self.network.train()
        saved = start = time.monotonic()
        already = self.seconds
        rest = range(begin, steps) if limit is None else itertools.count(begin)
        for step in progress(rest, "search", steps - begin if limit is None else None):
            done = step / steps if limit is None else min(self.seconds / limit, 1.0)
            self.curve.append(self._step(step, done))
            now = time.monotonic()
            self.seconds = already + now - start
            last = limit is not None and self.seconds >= limit
            if (step + 1) % self.per_epoch == 0 or last:
                self.trace.append(torch.cat(list(self.logits.values())).detach())
                self._check()
            if last:
                break
            if now - saved >= self.config.checkpoint_seconds:
                self._save()
                saved = now
        self._finish()

    def _step(self, step: int, done: float) -> Tensor:
        """One step of the logits and one of the weights; the losses before them (2,), weights' first."""
        lr = self.config.lr * (0.52 + 0.48 * math.cos(math.pi * done))
        train = self._batch(step, 0)
        arch_loss = self._arch_step(step, done, train, lr) if done >= self.config.arch_wait else None
        self.sgd.zero_grad(set_to_none=True)
        loss = self._loss(train, done, seed_of(self.config.seed, step, "weights"))
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), self.config.clip)
        self.sgd.param_groups[0]["lr"] = lr
        self.sgd.step()
        own = loss.detach()
        return torch.stack([own, own if arch_loss is None else arch_loss])

    def _arch_step(self, step: int, done: float, train: tuple[Tensor, Tensor], lr: float) -> Tensor:
        """One step of the logits on the other half; the cross-entropy before it."""
        held, seed = self._batch(step, 1), seed_of(self.config.seed, step, "arch")
        told = list[Tensor]()

        def loss() -> Tensor:
            own = self._loss(held, done, seed)
            told.append(own.detach())
            own = own + self.method.regulariser(self.logits).to(own)
            if self.pressure is None:
                return own
            return own + self.pressure(self.method.probabilities(self.logits), seed).to(own)

        logits = list(self.logits.values())
        if self.method.second_order:
            slopes = unrolled(list(self.weights.values()), logits, lambda: self._loss(train, done, seed), loss, lr)
        else:
            slopes = first_gradient(loss(), logits)
        for own, slope in zip(logits, slopes, strict=True):
            own.grad = slope
        self.adam.step()
        return told[0]

    def _loss(self, batch: tuple[Tensor, Tensor], done: float, seed: int) -> Tensor:
        images, labels = batch
        weights = self.method.draw(self.logits, done, seed)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            return F.cross_entropy(self.network(images, weights).float(), labels)

    def _batch(self, step: int, half: int) -> tuple[Tensor, Tensor]:
        """Normalised and augmented images and labels of a step, from one of the halves."""
        rows = self.halves[half]
        some = rows[batch_rows(step, self.config.batch, len(rows), self.config.seed)]
        taken = self.data.train.take(some)
        generator = torch.Generator().manual_seed(seed_of(self.config.seed, step, f"images {half}"))
        seeds = torch.rand(len(some), 3, generator=generator).to(self.device)
        images = augmented(self.data.normalised(taken.images.to(self.device)), seeds, *self.augmentation)
        return images, taken.labels.to(self.device)

    def _check(self) -> None:
        """Raises `TrialFailed` if a loss is no number any more."""
        if not bool(self.curve[-1].isfinite().all()):
            raise TrialFailed(
                f"search: the loss is no number after {len(self.curve)} steps; give lower learning rates than "
                f"{self.config.lr:g} (weights) and {self.config.arch_lr:g} (architecture)",
                reason="nan",
            )

    def _finish(self) -> None:
        """Write what was learned; the checkpoint goes."""
        curve, history = torch.stack(self.curve).cpu(), list[dict[str, object]]()
        for epoch, logits in enumerate(self.trace):
            own = curve[epoch * self.per_epoch : (epoch + 1) * self.per_epoch].mean(0).tolist()
            history.append({**self._described(logits, epoch), "weights_loss": own[0], "arch_loss": own[1]})
        scores = {name: own.double().log().tolist() for name, own in self._split(self.trace[-1]).items()}
        told = {"scores": scores, "history": history, "steps": len(curve), "seconds": round(self.seconds, 3)}
        write_json(self.written, told)
        self.checkpoint.remove()

    def _described(self, logits: Tensor, epoch: int) -> dict[str, object]:
        """What the logits of an epoch's end, in a row, come to."""
        own = self._split(logits)
        seed = seed_of(self.config.seed, epoch, "cost")
        costs = {} if self.pressure is None else self.pressure.costs(own, seed)
        return {
            "probabilities": {name: p.tolist() for name, p in own.items()},
            "entropy": float(torch.stack([torch.special.entr(p).sum() for p in own.values()]).mean()),
            "costs": {bound.cost: float(cost) for bound, cost in costs.items()},
        }

    def _split(self, logits: Tensor) -> dict[str, Tensor]:
        """The probabilities of every choice, of all logits in a row."""
        parts = logits.split([len(own) for own in self.logits.values()])
        return self.method.probabilities(dict(zip(self.logits, parts, strict=True)))

    def _save(self) -> None:
        """Write all that the next attempt needs."""
        state = {f"network {name}": tensor for name, tensor in self.network.state_dict().items()}
        state |= {f"logits {name}": own for name, own in self.logits.items()}
        for name, weight in self.weights.items():
            if (momentum := self.sgd.state[weight].get("momentum_buffer")) is not None:
                state[f"momentum {name}"] = momentum
        for name, own in self.logits.items():
            state |= {f"{key} {name}": self.adam.state[own][key] for key in ADAM if key in self.adam.state[own]}
        for epoch, own in enumerate(self.trace):
            state[f"trace {epoch}"] = own
        state["curve"], state["seconds"] = torch.stack(self.curve), torch.tensor(self.seconds, dtype=torch.float64)
        self.checkpoint.write(state)

    def _resume(self) -> int:
        """The number of the first step to take: that of the checkpoint, if there is one that can be read."""
        self.checkpoint.sweep()
        state = self.checkpoint.read()
        if state is None:
            return 0
        self.network.load_state_dict(_named(state, "network"))
        with torch.no_grad():
            for name, own in _named(state, "logits").items():
                self.logits[name].copy_(own)
        for name, own in _named(state, "momentum").items():
            self.sgd.state[self.weights[name]]["momentum_buffer"] = own.to(self.device)
        for key in ADAM:
            for name, own in _named(state, key).items():
                self.adam.state[self.logits[name]][key] = own
        trace = _named(state, "trace")
        self.trace = [trace[str(epoch)] for epoch in range(len(trace))]
        self.curve, self.seconds = list(state["curve"].to(self.device)), float(state["seconds"])
        return len(self.curve)


ADAM = ("step", *MOMENTS)
"""What Adam keeps of each tensor, as torch names it."""


def initial_logits(space: Space, seed: int) -> dict[str, Tensor]:
    """Small random numbers (K,) for every choice, in the space's order."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {name: len(choice.options) for name, choice in space.choices.items()}
    return {name: (1e-3 * torch.randn(size, generator=generator)).requires_grad_() for name, size in sizes.items()}


def seed_of(seed: int, step: int, what: str) -> int:
    """A seed for the noise of one purpose in one step, the same after a resume."""
    return zlib.crc32(f"{seed} {step} {what}".encode())


def _named(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of one kind, by name."""
    return {name.removeprefix(f"{kind} "): own for name, own in state.items() if name.startswith(f"{kind} ")}


def _key(mixture: Mixture, method: Method, data: Images, config: RelaxConfig, pressure: Pressure | None) -> str:
    """A name for everything that the result depends on; of the weights, a sample, and prices as far as the loss sees them."""
    told = asdict(config)
    del told["checkpoint_seconds"]
    options = {name: choice.options for name, choice in mixture.space.choices.items()}
    before = sampled_checksum(mixture.network.named_parameters())
    return digest(told, repr(method), options, before, data.fingerprint, None if pressure is None else pressure.told())
