"""What a search by gradients is told and what it tells: settings, epochs, and the scores of every option."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class RelaxConfig:
    """How long and how fast weights and architecture are trained."""

    epochs: int = 50
    """Passes over the weights' half of the images, at least 1."""
    seconds: float | None = None
    """Time after which the search ends, all schedules fitted to it; the epochs count if None."""
    batch: int = 64
    """Images in one step."""
    lr: float = 0.1
    """Peak learning rate of the weights (SGD with momentum 0.9); falls as a cosine to a 25th. Papers take 0.025 for searches of
    tens of thousands of steps."""
    weight_decay: float = 5e-4
    """Of the weights."""
    clip: float = 5.0
    """Largest norm of a step's gradient of the weights."""
    arch_lr: float = 0.02
    """Adam's learning rate of the logits. Papers take 3e-4 for tens of thousands of steps; fewer steps need more."""
    arch_decay: float = 1e-3
    """Adam's decay of the logits."""
    arch_wait: float = 0.3
    """Share of the search, 0 .. 1, during which only the weights are trained, as in PC-DARTS: convolutions that have not learned
    anything yet are noise, and what computes nothing would win."""
    pressure: float = 1.0
    """What the logits' loss rises by, in nats, for an expected cost of twice its bound."""
    augment: Literal["auto", "none"] = "auto"
    """Shifted and mirrored images, as in the training of single networks."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints; 0 writes one after every step."""
    seed: int = 0
    """Of the halves, the order of the images and all noise; fresh weights are the caller's."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "lr", "clip", "arch_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"relax: {name} must be above 0, got {getattr(self, name)!r}")
        for name in ("weight_decay", "arch_decay", "pressure", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"relax: {name} must be 0 or more, got {getattr(self, name)!r}")
        if not 0 <= self.arch_wait < 1:
            raise ValueError(f"relax: arch_wait must be a share of the search, 0 .. 1, got {self.arch_wait!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"relax: seconds must be above 0, got {self.seconds!r}")


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What a pass over the images ended with."""

    probabilities: dict[str, tuple[float, ...]]
    """Of every choice's options."""
    entropy: float
    """Of the probabilities, mean over choices, in nats."""
    weights_loss: float
    """Mean cross-entropy of the weights' steps, nats."""
    arch_loss: float
    """Mean cross-entropy of the architecture's steps, nats; that of the weights' while it waits."""
    costs: dict[str, float]
    """Expected costs by the names of the bounded ones; empty without a budget."""


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """What a search by gradients learned."""

    scores: dict[str, tuple[float, ...]]
    """For every choice the log-probabilities of its options."""
    history: tuple[Epoch, ...]
    """One entry for each epoch."""
    steps: int
    """Steps of the weights."""
    seconds: float
    """Time in training, interrupted attempts included as far as they were kept."""

    @property
    def entropy(self) -> float:
        """Of the final probabilities, mean over choices, in nats."""
        return self.history[-1].entropy

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> "Relaxed":
        """Read what the search wrote into its folder."""
        history = tuple(
            Epoch(**{**own, "probabilities": {name: tuple(p) for name, p in own["probabilities"].items()}})
            for own in told["history"]
        )
        scores = {name: tuple(own) for name, own in told["scores"].items()}
        return Relaxed(scores=scores, history=history, steps=told["steps"], seconds=told["seconds"])
