"""The operations of NAS-Bench-201's cells, and the network around the cells.

    images ─ stem ─ cells at C ─ reduce ─ cells at 2C ─ reduce ─ cells at 4C ─ BN, ReLU, mean, linear ─ logits

`Skeleton` does not know what a cell is: a factory gives it one for a number of channels. So a network with the operations
of one arch and a supernet with all of them share everything else, by the same names.

Source: Dong and Yang, NAS-Bench-201 (ICLR 2020), section 2.1. The halving pool keeps the rest of an odd side, as the strided
convolution beside it does, so that images of any size pass; for even sides nothing changes.

Shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from befit.arch.cell import OPS
from befit.arch.task import ImageTask
from befit.cost.images import CELL_STAGES
from befit.errors import IllegalArch


class Zero(nn.Module):
    """Nothing, in the shape of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class ReluConvNorm(nn.Sequential):
    """ReLU, convolution without bias, batch norm: (B, C, H, W) to (B, out, H / stride, W / stride)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(out),
        )


class Reduction(nn.Module):
    """Halves the sides and changes the channels: two 3x3 convolutions, beside them a mean over 2x2 and a projection."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = ReluConvNorm(channels, out, kernel=3, stride=2)
        self.second = ReluConvNorm(out, out, kernel=3)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, stride=2, ceil_mode=True), nn.Conv2d(channels, out, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.second(self.first(x))


def op(name: str, channels: int) -> nn.Module:
    """A fresh operation by its name in the cell space; it keeps the shape (B, C, H, W). Raises `IllegalArch` for another."""
    match name:
        case "none":
            return Zero()
        case "skip_connect":
            return nn.Identity()
        case "nor_conv_1x1":
            return ReluConvNorm(channels, channels, kernel=1)
        case "nor_conv_3x3":
            return ReluConvNorm(channels, channels, kernel=3)
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    raise IllegalArch(f"cell: no operation is called {name!r}; expected one of {', '.join(OPS)}")


class Skeleton(nn.Module):
    """The network around the cells: images (B, channels, height, width) of a task to logits (B, classes).

    Parts: `stem`, `stages.<stage>.<cell>`, `reduce.<stage>` (after that stage), `head`.
    """

    def __init__(
        self, task: ImageTask, cell_of: Callable[[int], nn.Module], *, channels: int = 16, cells: int = 5
    ) -> None:
        """`cell_of(C)` makes a fresh cell that keeps the shape (B, C, H, W)."""
        super().__init__()
        widths = [channels << stage for stage in range(CELL_STAGES)]
        self.stem = nn.Sequential(
            nn.Conv2d(task.channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.stages = nn.ModuleList(nn.ModuleList(cell_of(width) for _ in range(cells)) for width in widths)
        self.reduce = nn.ModuleList(Reduction(width, 2 * width) for width in widths[:-1])
        self.head = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(widths[-1], task.classes),
        )

    def forward(self, images: Tensor, *told: Any) -> Tensor:
        """`told` goes to every cell after its input: the arch or the mixture that a supernet should be this time."""
        x = self.stem(images)
        for place, stage in enumerate(self.stages):
            for cell in stage:  # pyright: ignore[reportGeneralTypeIssues] - a list of cells
                x = cell(x, *told)
            if place < len(self.reduce):
                x = self.reduce[place](x)
        return self.head(x)
