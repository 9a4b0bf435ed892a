"""Cells of NAS-Bench-201 as networks, for images of any size.

    blueprint = cell()
    network = blueprint.build(parse("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"), task)

Every node sums what its edges bring. An edge without an operation builds nothing; a convolution that no path from the input
reaches is built all the same, because the benchmark counts it. Source: Dong and Yang, NAS-Bench-201 (ICLR 2020), section 2.
"""

import functools

import torch
from torch import Tensor, nn

from befit.arch.cell import EDGES, cell_space, ops
from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.cost.images import count_cell
from befit.vision.blueprint import Blueprint
from befit.vision.ops import Skeleton, op


def edge_name(edge: tuple[int, int]) -> str:
    """What an edge is called in a module: `edge_0_1`."""
    return f"edge_{edge[0]}_{edge[1]}"


class Cell(nn.Module):
    """Four nodes and the operations between them: (B, C, H, W) to the same. Parts: `ops.edge_0_1`, …"""

    def __init__(self, arch: Arch, channels: int) -> None:
        super().__init__()
        built = {edge: name for edge, name in ops(arch).items() if name != "none"}
        self.into = [[(source, edge_name((source, to))) for source, to in built if to == node] for node in (1, 2, 3)]
        self.ops = nn.ModuleDict({edge_name(edge): op(name, channels) for edge, name in built.items()})

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for into in self.into:
            node: Tensor | None = None
            for source, name in into:
                node = self.ops[name](nodes[source]) if node is None else node + self.ops[name](nodes[source])
            nodes.append(torch.zeros_like(x) if node is None else node)
        return nodes[-1]


def cell_network(arch: Arch, task: ImageTask, *, channels: int = 16, cells: int = 5) -> Skeleton:
    """The network of one cell, repeated `cells` times in each stage, `channels` wide in the first."""
    return Skeleton(task, functools.partial(Cell, arch), channels=channels, cells=cells)


def cell(channels: int = 16, cells: int = 5) -> Blueprint:
    """The cell space, built with this width of the first stage and this many cells in each of the three stages."""
    return Blueprint(
        name="cell",
        space=cell_space(),
        build=functools.partial(cell_network, channels=channels, cells=cells),
        count=functools.partial(count_cell, channels=channels, cells=cells),
    )


EDGE_NAMES = tuple(edge_name(edge) for edge in EDGES)
"""The parts of a cell, in the space's order; `none` has none."""
