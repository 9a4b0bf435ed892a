"""Mobile networks: inverted residuals from the shape that an arch means.

    blueprint = mobile()
    network = blueprint.build(POINTS["mobilenet_v3_small"], task)

Parts are named alike in every network of a skeleton, so that they can share weights: `stem`, `stages.<stage>.<block>` with
`expand`, `depthwise`, `squeeze`, `project`, then `last`, `hidden`, `classifier`; each convolution is `conv`, its norm `norm`.

Source: Howard et al. (arXiv 1905.02244), Tan and Le (arXiv 1905.11946). Norms have the papers' epsilon; their momentum is
PyTorch's 0.1, not the papers' 0.01, with which running statistics would still be those of fresh weights after a short training.

Shapes: B images, C channels, H x W pixels.
"""

import math
from collections import OrderedDict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from befit.arch.mobile import Block, MobileShape, mobile_space, shape_of
from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.cost.images import count_mobile
from befit.vision.blueprint import Blueprint

ACTIVATION = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU}
GATE = {"hardsigmoid": (nn.ReLU, nn.Hardsigmoid), "sigmoid": (nn.SiLU, nn.Sigmoid)}
"""What a squeeze has inside and at its end."""

EPSILON = 1e-3
DROPOUT = 0.2


class ConvNorm(nn.Sequential):
    """Convolution (`conv`), batch norm (`norm`), and an activation (`act`) unless None: (B, C, H, W) to (B, out, …)."""

    def __init__(self, conv: nn.Conv2d, activation: str | None) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=nn.BatchNorm2d(conv.out_channels, eps=EPSILON))
        if activation is not None:
            parts["act"] = ACTIVATION[activation]()
        super().__init__(parts)


def pointwise(channels: int, out: int, activation: str | None) -> ConvNorm:
    """A 1x1 convolution with its norm."""
    return ConvNorm(nn.Conv2d(channels, out, 1, bias=False), activation)


class Squeeze(nn.Module):
    """Weighs the channels of (B, C, H, W) by what their means tell, through `squeeze` channels."""

    def __init__(self, channels: int, squeeze: int, gate: str) -> None:
        super().__init__()
        inner, outer = GATE[gate]
        self.reduce, self.act = nn.Conv2d(channels, squeeze, 1), inner()
        self.restore, self.gate = nn.Conv2d(squeeze, channels, 1), outer()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.reduce(F.adaptive_avg_pool2d(x, 1))
        scale = self.restore(self.act(scale))
        return x * self.gate(scale)


class InvertedResidual(nn.Module):
    """One block: (B, channels, H, W) to (B, out, H / stride, W / stride)."""

    def __init__(self, block: Block, gate: str) -> None:
        super().__init__()
        wide, act = block.expanded, block.activation
        self.residual = block.stride == 1 and block.channels == block.out
        self.expand = nn.Identity() if wide == block.channels else pointwise(block.channels, wide, act)
        self.depthwise = ConvNorm(
            nn.Conv2d(wide, wide, block.kernel, block.stride, padding=block.kernel // 2, groups=wide, bias=False), act
        )
        self.squeeze = Squeeze(wide, block.squeeze, gate) if block.squeeze else nn.Identity()
        self.project = pointwise(wide, block.out, None)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.depthwise(self.expand(x))
        inner = self.squeeze(inner)
        inner = self.project(inner)
        return x + inner if self.residual else inner


class MobileNetwork(nn.Module):
    """Images (B, channels, height, width) of a task, resized to the shape's resolution, to logits (B, classes)."""

    def __init__(self, shape: MobileShape, task: ImageTask) -> None:
        super().__init__()
        self.resolution = shape.resolution
        self.stem = ConvNorm(
            nn.Conv2d(task.channels, shape.stem, 3, shape.stem_stride, padding=1, bias=False), shape.activation
        )
        self.stages = nn.ModuleList(
            nn.ModuleList(InvertedResidual(block, shape.gate) for block in blocks) for blocks in shape.stages
        )
        self.last = pointwise(shape.stages[-1][-1].out, shape.last, shape.activation)
        self.hidden = nn.Identity()
        if shape.hidden:
            self.hidden = nn.Sequential(nn.Linear(shape.last, shape.hidden), ACTIVATION[shape.activation]())
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(shape.hidden or shape.last, task.classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(resized(images, self.resolution))
        for stage in self.stages:
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues] - a list of blocks
                x = block(x)
        x = self.last(x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.classifier(self.dropout(self.hidden(x)))


def resized(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) as (B, C, side, side) by bilinear interpolation; as they are where nothing changes."""
    if tuple(images.shape[-2:]) == (side, side):
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)


def initialize(network: nn.Module) -> None:
    """Fresh weights for convolutions: normal, of variance 2 over the outputs that one input of a group reaches.

    Counting a depthwise convolution's outputs over all groups, as some libraries do, makes its weights so small that they
    turn over within the first steps, and the norms' running statistics lag behind.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            reached = part.kernel_size[0] * part.kernel_size[1] * part.out_channels / part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2 / reached))
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def mobile_network(arch: Arch, task: ImageTask) -> MobileNetwork:
    """The network of one arch of a mobile space."""
    return MobileNetwork(shape_of(arch), task)


def mobile(**options: Any) -> Blueprint:
    """The mobile space with these options (those of `mobile_space`; `options_for(task)` has some that suit a task)."""
    return Blueprint(name="mobile", space=mobile_space(**options), build=mobile_network, count=count_mobile)
