"""How the weights of a mixture's options come from the numbers that are learned: DARTS, GDAS, DrNAS.

Each method is one small value; `befit.oneshot.relax` is the search they share. For every choice there is a vector of logits
(K,), and a method says where they start, how weights are drawn from them, which probabilities they stand for and what is
added to the loss.

Shapes: K options of a choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

Logits = Mapping[str, Tensor]
"""For each choice what is learned (K,)."""


class Method(Protocol):
    """What a search by gradients needs to know of its method."""

    @property
    def second_order(self) -> bool:
        """Whether the architecture's gradient looks one step of the weights ahead."""
        ...

    def draw(self, logits: Logits, progress: float, seed: int) -> dict[str, Tensor]:
        """Weights of the options, differentiable in the logits; `progress` of the search 0 .. 1. Equal seeds, equal noise."""
        ...

    def probabilities(self, logits: Logits) -> dict[str, Tensor]:
        """The mean of what is drawn, or what stands for it: (K,) that sum to 1."""
        ...

    def regulariser(self, logits: Logits) -> Tensor:
        """What the loss of the architecture is raised by, a scalar."""
        ...


@dataclass(frozen=True, kw_only=True)
class Darts:
    """The weights are the softmax of the logits; nothing is drawn. Source: Liu et al., DARTS (ICLR 2019).

    On the cell space it is known to end in nothing but skips: it is here to be compared with.
    """

    second_order: bool = False
    """Take the architecture's gradient through one step of the weights (the paper's equation 7)."""

    def draw(self, logits: Logits, progress: float, seed: int) -> dict[str, Tensor]:
        del progress, seed
        return self.probabilities(logits)

    def probabilities(self, logits: Logits) -> dict[str, Tensor]:
        return _softmax(logits)

    def regulariser(self, logits: Logits) -> Tensor:
        return _zero(logits)


@dataclass(frozen=True, kw_only=True)
class Gdas:
    """One option is drawn and has weight 1; its gradient is that of the Gumbel-Softmax (straight-through).

    The options that are not drawn are not computed, so their own part of the gradient is taken as 0. Source: Dong and Yang,
    GDAS (CVPR 2019), section 3.2; temperatures as there. Gumbel-Softmax: Jang et al., arXiv 1611.01144.
    """

    hot: float = 10.0
    """Temperature at the start, above 0."""
    cold: float = 0.1
    """Temperature at the end, above 0; between them it falls in a straight line."""

    def __post_init__(self) -> None:
        if not (self.hot > 0 and self.cold > 0):
            raise ValueError(f"gdas: temperatures must be above 0, got hot={self.hot!r}, cold={self.cold!r}")

    @property
    def second_order(self) -> bool:
        return False

    def draw(self, logits: Logits, progress: float, seed: int) -> dict[str, Tensor]:
        temperature = self.hot + (self.cold - self.hot) * progress
        generator = torch.Generator().manual_seed(seed)
        drawn = dict[str, Tensor]()
        for name, own in logits.items():
            noise = -torch.empty_like(own).exponential_(generator=generator).log()
            noisy = own.log_softmax(0) + noise
            soft = (noisy / temperature).softmax(0)
            hard = F.one_hot(noisy.argmax(), len(own)).to(own)
            drawn[name] = hard + (soft - soft.detach())  # the bracket is exactly 0
        return drawn

    def probabilities(self, logits: Logits) -> dict[str, Tensor]:
        """Of being drawn, whatever the temperature."""
        return _softmax(logits)

    def regulariser(self, logits: Logits) -> Tensor:
        return _zero(logits)


@dataclass(frozen=True, kw_only=True)
class DrNas:
    """The weights are drawn from a Dirichlet distribution, whose concentrations are elu(logits) + 1, and pass gradients on.

    Source: Chen et al., DrNAS (ICLR 2021), section 3; the divergence from the uniform Dirichlet holds the concentrations.
    """

    anchor: float = 1e-3
    """Factor of the divergence from the Dirichlet whose concentrations are all 1, at least 0."""

    def __post_init__(self) -> None:
        if not self.anchor >= 0:
            raise ValueError(f"drnas: anchor must be 0 or more, got {self.anchor!r}")

    @property
    def second_order(self) -> bool:
        return False

    def draw(self, logits: Logits, progress: float, seed: int) -> dict[str, Tensor]:
        del progress
        # torch's Dirichlet takes no generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {name: Dirichlet(concentration(own)).rsample() for name, own in logits.items()}

    def probabilities(self, logits: Logits) -> dict[str, Tensor]:
        return {name: concentration(own) / concentration(own).sum() for name, own in logits.items()}

    def regulariser(self, logits: Logits) -> Tensor:
        total = _zero(logits)
        for own in logits.values():
            now = concentration(own)
            total = total + self.anchor * kl_divergence(Dirichlet(now), Dirichlet(torch.ones_like(now)))
        return total


def concentration(logits: Tensor) -> Tensor:
    """elu(logits) + 1, above 0."""
    return F.elu(logits) + 1 + torch.finfo(logits.dtype).tiny


def _softmax(logits: Logits) -> dict[str, Tensor]:
    return {name: own.softmax(0) for name, own in logits.items()}


def _zero(logits: Logits) -> Tensor:
    return torch.zeros((), dtype=next(iter(logits.values())).dtype)
