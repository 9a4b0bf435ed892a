"""The cell space with shared weights: each edge holds each operation once, and an arch says which one runs.

The network around the cells is that of a single arch (`vision.ops.Skeleton`), by the same names; inside a cell
`ops.edge_0_1.1.weight` of a network is `ops.edge_0_1.nor_conv_3x3.1.weight` here. Source of the scheme: Guo et al., Single
Path One-Shot (arXiv 1904.00420).

Shapes: B images, C channels, H x W pixels.
"""

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn

from befit.arch.cell import EDGES, OPS, ops
from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.oneshot.supernet import Norm, Supernet, leave_statistics
from befit.vision.cell import cell, edge_name
from befit.vision.ops import Skeleton, op

Edge = tuple[int, int]

_OF_EDGE = re.compile(r"(?P<before>.*\.)ops\.edge_(?P<source>\d)_(?P<to>\d)\.(?P<op>\w+)\.(?P<rest>.+)")


@lru_cache(maxsize=20_000)
def live(arch: Arch) -> tuple[tuple[Edge, str], ...]:
    """The edges that the output hears of, each with its operation, those into earlier nodes first.

    What comes into them may still be nothing: a norm makes a constant of it, in the benchmark's networks too.
    """
    own, heard, found = ops(arch), {3}, list[tuple[Edge, str]]()
    for edge in sorted(EDGES, key=lambda edge: -edge[1]):
        if edge[1] in heard and own[edge] != "none":
            heard.add(edge[0])
            found.append((edge, own[edge]))
    return tuple(sorted(found, key=lambda one: (one[0][1], one[0][0])))


class SharedCell(nn.Module):
    """A cell with all operations on all edges: (B, C, H, W) to the same. Parts: `ops.edge_0_1.nor_conv_3x3`, …"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        built = [name for name in OPS if name != "none"]
        self.ops = nn.ModuleDict(
            {edge_name(edge): nn.ModuleDict({name: op(name, channels) for name in built}) for edge in EDGES}
        )

    def forward(self, x: Tensor, edges: tuple[tuple[Edge, str], ...]) -> Tensor:
        nodes: list[Tensor | None] = [x, None, None, None]
        for (source, to), name in edges:
            before, own = nodes[source], nodes[to]
            options: nn.ModuleDict = self.ops[edge_name((source, to))]  # pyright: ignore[reportAssignmentType]
            brought = options[name](torch.zeros_like(x) if before is None else before)
            nodes[to] = brought if own is None else own + brought
        last = nodes[3]
        return torch.zeros_like(x) if last is None else last


class CellSupernet(Supernet):
    """All 15,625 cells, `cells` times in each of the three stages, `channels` wide in the first.

    Initial weights are drawn from torch's global generator.
    """

    def __init__(self, task: ImageTask, *, channels: int = 16, cells: int = 5) -> None:
        super().__init__()
        self.blueprint, self.task = cell(channels, cells), task
        self.largest = self.smallest = None
        self.skeleton = Skeleton(task, SharedCell, channels=channels, cells=cells)
        leave_statistics(self)

    def forward(self, images: Tensor, arch: Arch) -> Tensor:
        return self.skeleton(images, live(arch))

    def part(self, arch: Arch) -> Mapping[str, Tensor]:
        named = ((_name_in(arch, name), tensor) for name, tensor in self.skeleton.state_dict(keep_vars=True).items())
        return {name: tensor for name, tensor in named if name is not None}

    def norms(self, arch: Arch) -> Iterator[Norm]:
        for name, part in self.skeleton.named_modules():
            if isinstance(part, Norm) and _name_in(arch, name) is not None:
                yield part


def _name_in(arch: Arch, name: str) -> str | None:
    """What a part of the supernet's skeleton is called in the network of this arch; None if it is not in there."""
    match = _OF_EDGE.fullmatch(name)
    if match is None:
        return name
    edge = int(match["source"]), int(match["to"])
    return f"{match['before']}ops.{edge_name(edge)}.{match['rest']}" if ops(arch)[edge] == match["op"] else None
