"""Gains of the norms, for each budget its own: a few numbers that let a narrow member scale what it reads differently.

Each RMSNorm before a mixer or an FFN, and the last one, has for each trained budget a factor per channel. Between budgets
the factors are interpolated, below the smallest they are its own; the whole network has none (its factor is 1), so the nested
checkpoint needs no gains to be read as an ordinary one. A member's gains are multiplied into its norms when it is cut.

The idea is LLaMaFlex's modulation by the choice made (ICLR 2025), reduced to what folds into the weights. The gated norm
inside Mamba-2 keeps its own weights.

Shapes: K budgets below the whole, R norms, D hidden.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from befit.arch.decoder import DecoderShape
from befit.lm.family import Family
from befit.lm.prefix import layout


class Gains(nn.Module):
    """Factors of the norms of a network, as a function of the budget; 1 everywhere at the start."""

    def __init__(self, shape: DecoderShape, family: Family, shares: Sequence[float]) -> None:
        """`shares` are the trained budgets as shares of the parent, 0 .. 1; a 1 among them is left out."""
        super().__init__()
        self.names = norms(shape, family)
        self.shares = tuple(sorted({share for share in shares if share < 1}))
        if self.shares and self.shares[0] <= 0:
            raise ValueError(f"a budget's share of the parent must be above 0, got {self.shares[0]}")
        self.values = nn.Parameter(torch.ones(len(self.shares), len(self.names), shape.hidden))
        """(K, R, D), budgets ascending."""

    def at(self, share: float) -> dict[str, Tensor]:
        """The factors (D,) of every norm, by the name of its weight in the parent; empty for the whole network."""
        if share >= 1 or not self.shares:
            return {}
        knots, values = (*self.shares, 1.0), (*self.values, torch.ones_like(self.values[0]))
        above = next(place for place, knot in enumerate(knots) if share <= knot)
        if above == 0:
            found = values[0]
        else:
            part = (share - knots[above - 1]) / (knots[above] - knots[above - 1])
            found = torch.lerp(values[above - 1], values[above], part)
        return dict(zip(self.names, found, strict=True))

    def apply(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:  # type: ignore[override]
        """The parent's weights with the norms of a budget: new norms, all other tensors as they are."""
        return {**weights, **{name: weights[name] * factor for name, factor in self.at(share).items()}}


def norms(shape: DecoderShape, family: Family) -> tuple[str, ...]:
    """The weights of the norms over the residual stream, by their names in the parent."""
    return tuple(name for name, axes in layout(shape, family).items() if axes == ("hidden",) and "norm" in name)
