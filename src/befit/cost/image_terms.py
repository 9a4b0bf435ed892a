"""What the time of an image network is made of, by the space it comes from: amounts that a latency model has rates for.

Closed forms of an arch, a fraction of a millisecond each, so that whole spaces can be priced. A kind of operation has up to
three terms: how often it is called, how many multiply-adds its calls make together, how many numbers they read and write.
"""

import functools
import itertools

from befit.arch.cell import EDGES, ops
from befit.arch.mobile import Block, MobileShape, shape_of
from befit.arch.space import Arch
from befit.arch.task import ImageTask


@functools.lru_cache(maxsize=20_000)
def cell_terms(arch: Arch, *, pruned: bool) -> dict[str, float]:
    """Of a cell: how often each operation runs in it, and how many sums; all cells of a network are alike.

    `pruned`: the engine leaves out what does not lead from the cell's input to its output (ONNX Runtime does, PyTorch not).
    Where nothing does, the whole network is a constant to it: `folded`.
    """
    names = ("always", "folded", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "sum")
    built = {edge: name for edge, name in ops(arch).items() if name != "none"}
    if pruned:
        fed, useful = {0}, {3}
        for source, to in sorted(built, key=lambda edge: edge[1]):
            fed |= {to} if source in fed else set()
        for source, to in sorted(built, reverse=True):
            useful |= {source} if to in useful else set()
        if 3 not in fed:
            return dict.fromkeys(names, 0.0) | {"folded": 1.0}
        built = {(source, to): name for (source, to), name in built.items() if source in fed and to in useful}
    terms = dict.fromkeys(names, 0.0) | {"always": 1.0}
    for name in built.values():
        if name != "skip_connect":  # hands on what is there
            terms[name] += 1
    for node in {to for _, to in EDGES}:
        terms["sum"] += max(0, sum(to == node for _, to in built) - 1)
    return terms


def mobile_terms(arch: Arch, task: ImageTask) -> dict[str, float]:
    """Of a network of inverted residuals. Numbers: a million multiply-adds, a million elements."""
    shape, tally = shape_of(arch), _Terms()
    side = shape.resolution
    if (task.height, task.width) != (side, side):
        tally.add("resize", elements=task.channels * side * side)
    side = -(-side // shape.stem_stride)
    tally.add("stem", macs=9 * task.channels * shape.stem * side * side)
    tally.rest(shape.stem * side * side, shape.activation)
    for block in (block for stage in shape.stages for block in stage):
        side = _block(tally, block, side, shape)
    channels = shape.stages[-1][-1].out
    tally.pointwise(channels, shape.last, side * side)
    tally.rest(shape.last * side * side, shape.activation)
    widths = [shape.last, *([shape.hidden] if shape.hidden else []), task.classes]
    tally.add("head", macs=sum(a * b for a, b in itertools.pairwise(widths)))
    return {name: amount for name, amount in tally.items() if amount or name == "always"}


def _block(tally: "_Terms", block: Block, side: int, shape: MobileShape) -> int:
    """Adds an inverted residual for a map of `side` pixels; returns its output's."""
    if block.expanded != block.channels:
        tally.pointwise(block.channels, block.expanded, side * side)
        tally.rest(block.expanded * side * side, block.activation)
    before, side = side * side, -(-side // block.stride)
    size = block.expanded * side * side
    tally.add(
        f"depthwise {block.kernel}", calls=1, macs=block.kernel**2 * size, elements=block.expanded * before + size
    )
    tally.rest(size, block.activation)
    if block.squeeze:
        tally.add(f"squeeze {shape.gate}", calls=1, macs=2 * block.squeeze * block.expanded, elements=2 * size)
    tally.pointwise(block.expanded, block.out, side * side)
    tally.rest(block.out * side * side, "")
    if block.stride == 1 and block.channels == block.out:
        tally.add("residual", elements=block.out * side * side)
    return side


class _Terms(dict[str, float]):
    """Sums of terms."""

    def __init__(self) -> None:
        super().__init__(always=1.0)

    def add(self, kind: str, *, calls: float = 0, macs: float = 0, elements: float = 0) -> None:
        for what, amount in (("calls", calls), ("Mmacs", macs / 1e6), ("Melements", elements / 1e6)):
            self[f"{kind}, {what}"] = self.get(f"{kind}, {what}", 0.0) + amount

    def pointwise(self, channels: int, out: int, pixels: int) -> None:
        """A 1x1 convolution: little work for each number where channels are few, many weights where pixels are few."""
        self.add("1x1", calls=1, macs=channels * out * pixels, elements=(channels + out) * pixels)
        self.add("1x1 weights", elements=channels * out)

    def rest(self, size: int, activation: str) -> None:
        """Norm and activation behind a convolution."""
        self.add("norm", elements=size)
        if activation:
            self.add(activation, elements=size)
