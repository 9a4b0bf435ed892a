"""A network that holds all options of a space at once and is told how much each counts.

    mixture = cell_mixture(task)
    weights = {name: torch.full((5,), 0.2) for name in mixture.space.choices}
    logits = mixture.network(images, weights)

Where a built network has one operation, a mixture has `Mixed`: the sum of all of them, each times its weight. An operation of
weight 0 is not computed, so a mixture whose weights are one-hot costs what one network costs. Other spaces join with any
module whose forward takes images and weights by choice; `Mixed` and `Partial` are parts to make it from.

Norms see the batch only (no running averages: they would mix networks that never occur together) and those of the operations
neither scale nor shift (a scale would undo the weights), as in DARTS (Liu et al., ICLR 2019, section 3.1).

Shapes: B images, C channels, H x W pixels, K options of a choice.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from befit.arch.cell import EDGES, NAMES, OPS, cell_space
from befit.arch.space import Arch, Space
from befit.arch.task import ImageTask
from befit.errors import IllegalArch
from befit.vision.cell import EDGE_NAMES
from befit.vision.ops import Skeleton, op


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A space and the network that mixes its options."""

    space: Space
    network: nn.Module
    """Called with images (B, channels, height, width) and a mapping from each choice's name to the weights (K,) of its
    options, on any device; returns logits (B, classes)."""
    collapsed: Callable[[Arch], bool] | None = None
    """Whether an arch is the empty one that a search by gradients is known to fall into; none is if None."""


class Mixed(nn.Module):
    """The options of one choice side by side: their weighted sum, without those of weight 0."""

    def __init__(self, options: Iterable[nn.Module]) -> None:
        super().__init__()
        self.options = nn.ModuleList(options)

    def forward(self, x: Tensor, weight: Tensor, live: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) and (K,) to what the options make of it.

        `live` are the options to compute, told by who knows them so that no device is asked.
        """
        if live is None:
            live = nonzero(weight)
        weight = weight.to(x.device)
        total: Tensor | None = None
        for k in live:
            part = weight[k].to(x.dtype) * self.options[k](x)
            total = part if total is None else total + part
        return torch.zeros_like(x) if total is None else total


class Partial(nn.Module):
    """Sends one of `share` channels through a mixture and the rest past it, then shuffles them.

    Less work and memory, and less of the noise that favours operations without weights. Source: PC-DARTS (Xu et al., ICLR
    2020), section 3.2; its normalisation of edges is left out, as in DrNAS.
    """

    def __init__(self, mixed: nn.Module, share: int) -> None:
        super().__init__()
        self.mixed, self.share = mixed, share

    def forward(self, x: Tensor, weight: Tensor, live: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) to the same; C is a multiple of `share`."""
        through = x.shape[1] // self.share
        y = torch.cat([self.mixed(x[:, :through], weight, live), x[:, through:]], dim=1)
        return y.unflatten(1, (self.share, through)).transpose(1, 2).flatten(1, 2)


def nonzero(weight: Tensor) -> list[int]:
    """The places of a vector's numbers other than 0."""
    return [k for k, value in enumerate(weight.tolist()) if value != 0]


def batch_statistics(module: nn.Module, *, affine: bool = True) -> None:
    """Makes all batch norms within use the batch's statistics, always; without `affine` they lose scale and shift."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
            if not affine:
                norm.affine = False
                norm.register_parameter("weight", None)
                norm.register_parameter("bias", None)


class MixedCell(nn.Module):
    """A cell with every operation on every edge: (B, C, H, W) to the same."""

    def __init__(self, channels: int, partial: int = 1) -> None:
        super().__init__()
        if partial < 1 or channels % partial:
            raise IllegalArch(f"cell: {channels} channels cannot be sent in {partial} equal parts; give a divisor")
        self.edges = nn.ModuleDict()
        for name in EDGE_NAMES:
            mixed: nn.Module = Mixed(op(option, channels // partial) for option in OPS)
            self.edges[name] = Partial(mixed, partial) if partial > 1 else mixed
        batch_statistics(self, affine=False)

    def forward(self, x: Tensor, weights: Tensor, live: Sequence[Sequence[int]]) -> Tensor:
        """`weights` (edges, K) and the options to compute on every edge."""
        nodes = [x]
        for node in (1, 2, 3):
            own = [(i, source) for i, (source, to) in enumerate(EDGES) if to == node]
            parts = [self.edges[EDGE_NAMES[i]](nodes[source], weights[i], live[i]) for i, source in own]
            nodes.append(functools.reduce(torch.add, parts))
        return nodes[-1]


class MixedCells(Skeleton):
    """The skeleton of the cell space with mixed cells, which all share their weights: images and weights to logits."""

    def __init__(self, task: ImageTask, *, channels: int, cells: int, partial: int) -> None:
        super().__init__(task, functools.partial(MixedCell, partial=partial), channels=channels, cells=cells)
        batch_statistics(self)

    def forward(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, channels, height, width) and one vector (5,) for each edge to (B, classes)."""
        rows = torch.stack([weights[name] for name in NAMES])
        return super().forward(images, rows.to(images.device), [nonzero(row) for row in rows])


def all_skips(arch: Arch) -> bool:
    """Whether every edge of a cell just passes its input on, where DARTS ends on this space (NAS-Bench-201, section 5)."""
    return all(value == "skip_connect" for value in arch.values())


def cell_mixture(task: ImageTask, *, channels: int = 16, cells: int = 5, partial: int = 1) -> Mixture:
    """The cell space's mixture; with `partial` = k only every k-th channel is mixed. Raises `IllegalArch` if k is no divisor."""
    network = MixedCells(task, channels=channels, cells=cells, partial=partial)
    return Mixture(space=cell_space(), network=network, collapsed=all_skips)
