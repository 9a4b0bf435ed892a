"""What an image network costs, exactly: parameters, multiply-adds, memory.

A multiply-add (MAC) is counted for convolutions and linear layers, as papers on mobile networks do; normalisation, activation
and pooling count nothing. Memory is that of eager inference on one image in fp32: parameters, buffers, and the largest sum of
the tensors alive at one moment, the image among them. A library's scratch space is not in it, nor is what an allocator rounds up.

Everything here is arithmetic on integers, a fraction of a millisecond for each arch; `vision.count` counts any module.
"""

from dataclasses import asdict, dataclass

from befit.arch.cell import EDGES, ops
from befit.arch.mobile import Block, MobileShape, shape_of
from befit.arch.space import Arch
from befit.arch.task import ImageTask

FLOAT = 4
"""Bytes of a number in fp32."""

NORM = 8
"""Bytes of a batch norm's counter of batches, beside its running mean and variance."""

CELL_STAGES = 3
"""Stages of cells in NAS-Bench-201's network; from each to the next the channels double and the sides halve."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Costs of one network for one image."""

    params: int
    """Trainable numbers; running statistics of norms are not among them."""
    macs: int
    """Multiply-adds of all convolutions and linear layers."""
    memory_bytes: int
    """In fp32: parameters and buffers, and the most that activations hold at once."""

    def costs(self) -> dict[str, float]:
        """By the names that budgets use."""
        return {name: float(value) for name, value in asdict(self).items()}


@dataclass
class Tally:
    """Adds up a network part by part; the numbers are those of one image."""

    params: int = 0
    macs: int = 0
    buffer_bytes: int = 0
    peak: int = 0
    """Elements alive at once."""

    def conv(self, channels: int, out: int, kernel: int, pixels: int, *, groups: int = 1, bias: bool = False) -> None:
        """A convolution with `pixels` outputs for each of its `out` channels."""
        weights = channels // groups * out * kernel * kernel
        self.params += weights + out * bias
        self.macs += weights * pixels

    def norm(self, channels: int) -> None:
        self.params += 2 * channels
        self.buffer_bytes += 2 * channels * FLOAT + NORM

    def linear(self, inputs: int, outputs: int) -> None:
        self.params += (inputs + 1) * outputs
        self.macs += inputs * outputs

    def alive(self, *elements: int) -> None:
        """A moment at which tensors of these sizes are alive."""
        self.peak = max(self.peak, sum(elements))

    def counts(self) -> Counts:
        memory = self.buffer_bytes + (self.params + self.peak) * FLOAT
        return Counts(params=self.params, macs=self.macs, memory_bytes=memory)


def count_cell(arch: Arch, task: ImageTask, *, channels: int = 16, cells: int = 5) -> Counts:
    """Costs of `vision.cell.cell_network` with the same arguments."""
    own, tally = ops(arch), Tally()
    maps, image = _alive_in_cell(own), task.channels * task.height * task.width
    height, width = task.height, task.width
    size = channels * height * width
    tally.conv(task.channels, channels, 3, height * width)
    tally.norm(channels)
    tally.alive(image, size, size)
    for stage in range(CELL_STAGES):
        if stage:
            _reduction(tally, channels, (height, width), image)
            channels, height, width = 2 * channels, -(-height // 2), -(-width // 2)
            size = channels * height * width
        for name in own.values():
            if name.startswith("nor_conv"):
                for _ in range(cells):
                    tally.conv(channels, channels, int(name[-1]), height * width)
                    tally.norm(channels)
        tally.alive(image, *[size] * (maps if cells else 1))
    tally.norm(channels)
    tally.alive(image, size, size, size)
    tally.linear(channels, task.classes)
    tally.alive(image, size, channels, task.classes)
    return tally.counts()


def _reduction(tally: Tally, channels: int, sides: tuple[int, int], image: int) -> None:
    """A halving block: its input stays until its end, the shortcut's result while the two convolutions run."""
    height, width = sides
    pixels = -(-height // 2) * -(-width // 2)
    size, half = channels * height * width, 2 * channels * pixels
    tally.conv(channels, 2 * channels, 3, pixels)
    tally.conv(2 * channels, 2 * channels, 3, pixels)
    tally.conv(channels, 2 * channels, 1, pixels)
    tally.norm(2 * channels)
    tally.norm(2 * channels)
    tally.alive(image, size, half, size, half)  # first convolution: input, shortcut, its ReLU, output
    tally.alive(image, size, half, half, half, half)  # second: input, shortcut, first's output, its ReLU, output


def _alive_in_cell(own: dict[tuple[int, int], str]) -> int:
    """How many feature maps are alive at once in a cell: its nodes, a sum under way, and what an operation holds meanwhile.

    A ReLU, convolution and norm in a row hold two at a time beyond their input, a pool one; a skip is its source itself.
    """
    alive = most = 1
    for node in (1, 2, 3):
        fresh, terms = 0, 0  # whether the sum is a map of its own, not another node
        for (_, to), name in zip(EDGES, own.values(), strict=True):
            if to != node or name == "none":
                continue
            new = 0 if name == "skip_connect" else 1
            most = max(most, alive + (2 if name.startswith("nor_conv") else new))
            if terms:
                most = max(most, alive + new + 1)
                alive, fresh = alive + 1 - fresh, 1
            else:
                alive, fresh = alive + new, new
            terms += 1
        alive += 0 if terms else 1
        most = max(most, alive)
    return most


def count_mobile(arch: Arch, task: ImageTask) -> Counts:
    """Costs of `vision.mobile.mobile_network` with the same arguments."""
    return count_shape(shape_of(arch), task)


def count_shape(shape: MobileShape, task: ImageTask) -> Counts:
    """Costs of the network of a mobile shape."""
    tally, image = Tally(), task.channels * task.height * task.width
    side = shape.resolution
    resized = 0 if (task.height, task.width) == (side, side) else task.channels * side * side
    side = -(-side // shape.stem_stride)
    size = shape.stem * side * side
    tally.conv(task.channels, shape.stem, 3, side * side)
    tally.norm(shape.stem)
    tally.alive(image, resized, size, size)
    for block in (block for blocks in shape.stages for block in blocks):
        side, size = _inverted(tally, block, side, image)
    channels, last = shape.stages[-1][-1].out, shape.last * side * side
    tally.conv(channels, shape.last, 1, side * side)
    tally.norm(shape.last)
    tally.alive(image, size, last, last)
    if shape.hidden:
        tally.linear(shape.last, shape.hidden)
        tally.alive(image, shape.last, shape.hidden, shape.hidden)
    width = shape.hidden or shape.last
    tally.linear(width, task.classes)
    tally.alive(image, shape.last, width if shape.hidden else 0, task.classes)
    return tally.counts()


def _inverted(tally: Tally, block: Block, side: int, image: int) -> tuple[int, int]:
    """An inverted residual on a square map: the side and the elements of its output. Its input stays until its end."""
    after = -(-side // block.stride)
    size, wide = block.channels * side * side, block.expanded * side * side
    mixed, out = block.expanded * after * after, block.out * after * after
    if block.expanded != block.channels:
        tally.conv(block.channels, block.expanded, 1, side * side)
        tally.norm(block.expanded)
        tally.alive(image, size, wide, wide)
    else:
        wide = 0  # the input itself
    tally.conv(block.expanded, block.expanded, block.kernel, after * after, groups=block.expanded)
    tally.norm(block.expanded)
    tally.alive(image, size, wide, mixed, mixed)
    if block.squeeze:
        tally.conv(block.expanded, block.squeeze, 1, 1, bias=True)
        tally.conv(block.squeeze, block.expanded, 1, 1, bias=True)
        tally.alive(image, size, mixed, mixed, 2 * block.expanded)  # the weights before and after their gate
    tally.conv(block.expanded, block.out, 1, after * after)
    tally.norm(block.out)
    tally.alive(image, size, mixed, out, out)
    return after, out
