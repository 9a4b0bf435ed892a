"""What happened in an elastic training: the loss of every budget, the router's steps, and which members were chosen.

The record goes with every checkpoint and ends as `trained.json`; losses are shown in TensorBoard where that is installed.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from befit.arch.member import Member
from befit.elastic.curriculum import ElasticTraining
from befit.errors import BefitError


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What one budget lost in one step of the weights, before it."""

    step: int
    share: float
    """Of the parent's cost: the budget."""
    kl: float
    """Nats per token, from what it is trained to answer like: the parent; in a sandwich, for all but the first, the first."""


@dataclass(frozen=True, kw_only=True)
class Routed:
    """One step of the router."""

    step: int
    """Of the weights."""
    share: float
    kl: float
    """From the parent, of the choice that was drawn, nats per token."""
    cost: float
    """Of that choice, as a share of the budget's limit: 1 is on budget."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The member that a budget had before a step."""

    step: int
    share: float
    member: Member


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What training did."""

    steps: int
    """Of the weights."""
    tokens: int
    """Tokens trained on, repetitions counted."""
    seconds: float
    """Time in training, interrupted attempts included as far as they were kept."""
    losses: tuple[Loss, ...]
    routed: tuple[Routed, ...]
    history: tuple[Chosen, ...]

    def curve(self, share: float) -> list[tuple[int, float]]:
        """(step, KL) of one budget."""
        return [(loss.step, loss.kl) for loss in self.losses if loss.share == share]


class Record:
    """What happened so far; losses of late steps may still be on the device."""

    def __init__(self) -> None:
        self.losses: list[Loss] = []
        self.routed: list[Routed] = []
        self.history: list[Chosen] = []
        self.seconds = 0.0
        self._fresh: list[tuple[int, list[float], Tensor]] = []

    def add(self, step: int, shares: list[float], kl: Tensor) -> None:
        """The KL (n,) of n budgets in a step."""
        self._fresh.append((step, shares, kl))

    def flush(self, config: ElasticTraining) -> None:
        """Bring all losses to the CPU. Raises `BefitError` if one is no number."""
        for step, shares, values in self._fresh:
            for share, kl in zip(shares, values.tolist(), strict=True):
                if not math.isfinite(kl):
                    raise BefitError(
                        f"elastic training diverged: the loss of budget {share:.0%} in step {step} of {config.steps} is no "
                        f"number; give a lower learning rate than {config.lr:g}"
                    )
                self.losses.append(Loss(step=step, share=share, kl=kl))
        self._fresh.clear()

    def to_json(self) -> dict[str, Any]:
        """Plain values; everything must have been flushed."""
        return {
            "seconds": round(self.seconds, 3),
            "losses": [[loss.step, loss.share, loss.kl] for loss in self.losses],
            "routed": [[one.step, one.share, one.kl, one.cost] for one in self.routed],
            "history": [[one.step, one.share, one.member.to_json()] for one in self.history],
        }

    def resume(self, told: Mapping[str, Any]) -> None:
        """Go on from what `to_json` told."""
        self.seconds = told["seconds"]
        self.losses = [Loss(step=step, share=share, kl=kl) for step, share, kl in told["losses"]]
        self.routed = [Routed(step=step, share=share, kl=kl, cost=cost) for step, share, kl, cost in told["routed"]]
        self.history = [
            Chosen(step=step, share=share, member=Member.from_json(member)) for step, share, member in told["history"]
        ]


class Log:
    """The losses of every budget in TensorBoard, where it is wanted and installed."""

    def __init__(self, folder: Path | None, begin: int, record: Record) -> None:
        self.record, self.written, self.writer = record, (len(record.losses), len(record.routed)), None
        if folder is not None and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=begin)

    def write(self) -> None:
        """What is new in the record."""
        losses, routed = self.written
        self.written = len(self.record.losses), len(self.record.routed)
        if self.writer is not None:
            for loss in self.record.losses[losses:]:
                self.writer.add_scalar(f"kl/{loss.share:.4g}", loss.kl, loss.step)
            for one in self.record.routed[routed:]:
                self.writer.add_scalar(f"router/kl/{one.share:.4g}", one.kl, one.step)
                self.writer.add_scalar(f"router/cost/{one.share:.4g}", one.cost, one.step)

    def close(self) -> None:
        self.write()
        if self.writer is not None:
            self.writer.close()


def trained_from(told: Mapping[str, Any]) -> Trained:
    """Read trained.json: `Record.to_json` with the steps and tokens of the whole training."""
    record = Record()
    record.resume(told)
    return Trained(
        steps=told["steps"],
        tokens=told["tokens"],
        seconds=told["seconds"],
        losses=tuple(record.losses),
        routed=tuple(record.routed),
        history=tuple(record.history),
    )
