"""The mobile space: stages of inverted residuals, in which MobileNetV3 and EfficientNet B0 to B2 are named points.

    space = mobile_space()
    shape_of(POINTS["efficientnet_b0"])       # every number of that network, as a plain value

A block widens its input by 1x1 convolution, mixes each channel by a depthwise one, may weigh the channels (squeeze and excite)
and narrows again. What is chosen: the resolution, a factor on all widths, and for each stage its depth, kernel, squeeze,
activation and each block's expansion. The `skeleton` choice decides the rest: the stages' widths and strides, and the customs of
its family (how wide a squeeze is, which gate it has, what the head looks like). Stages of the same number share their choices'
names across skeletons, so that a crossover of two families makes sense.

Where images are small, strides are left out, the stem's first, then each later stage's, until the last map has at least
`LEAST_SIDE` pixels a side: 224 keeps all five halvings, 32 keeps three, 8 one.

Sources: Howard et al., Searching for MobileNetV3 (arXiv 1905.02244), tables 1 and 2; Tan and Le, EfficientNet (arXiv 1905.11946),
table 1 and its scaling of B1 and B2. A block's width is its stage's input times the expansion, rounded to eights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from befit.arch.space import Arch, Choice, Space, Value
from befit.arch.task import ImageTask
from befit.errors import IllegalArch

LEAST_SIDE = 4
"""Pixels a side of the last feature map, at least, for which an early stride is given up."""

RESOLUTIONS = (128, 160, 192, 224, 240, 260)
WIDTHS = (0.5, 0.75, 1.0, 1.1)
KERNELS = (3, 5, 7)
EXPANSIONS = (1.0, 2.3, 2.5, 3.0, 3.67, 4.0, 4.5, 6.0)
"""Those that the named points use."""
ACTIVATIONS = ("relu", "hardswish", "silu")


@dataclass(frozen=True, kw_only=True)
class Block:
    """An inverted residual; it adds its input where stride and widths allow."""

    channels: int
    """Of the input."""
    expanded: int
    """Channels between its 1x1 convolutions; the first of them is left out where this is `channels`."""
    out: int
    """Channels of the output."""
    kernel: int
    """Of the depthwise convolution, odd."""
    stride: int
    """1 or 2."""
    squeeze: int
    """Channels of the squeeze, 0 for none."""
    activation: str
    """One of `ACTIVATIONS`."""


@dataclass(frozen=True, kw_only=True)
class MobileShape:
    """Every number of a mobile network but those of its task."""

    resolution: int
    """Pixels a side that images are resized to."""
    stem: int
    """Channels of the first convolution, 3x3."""
    stem_stride: int
    """1 or 2."""
    stages: tuple[tuple[Block, ...], ...]
    last: int
    """Channels of the last convolution, 1x1."""
    hidden: int
    """Width of the layer between the mean over pixels and the classifier, 0 for none."""
    activation: str
    """Of stem and head."""
    gate: str
    """Of the squeeze: `hardsigmoid` after a ReLU, or `sigmoid` after a SiLU."""


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """What a family of networks has in common."""

    stem: int
    """Channels at width 1."""
    stem_stride: int
    stages: tuple[tuple[int, int], ...]
    """Channels at width 1, and stride of the first block."""
    last: int
    """Channels of the last convolution, as a multiple of the last stage's."""
    hidden: int
    """Of the head's hidden layer at width 1, 0 for none."""
    activation: str
    gate: str
    squeeze_of_expanded: bool
    """A squeeze has a quarter of the expanded channels in eights (MobileNetV3), else of the block's input (EfficientNet)."""


def _v3(stages: tuple[tuple[int, int], ...], hidden: int, *, stem_stride: int = 2) -> Skeleton:
    return Skeleton(
        stem=16,
        stem_stride=stem_stride,
        stages=stages,
        last=6,
        hidden=hidden,
        activation="hardswish",
        gate="hardsigmoid",
        squeeze_of_expanded=True,
    )


SKELETONS: dict[str, Skeleton] = {
    "mobilenet_v3_small": _v3(((16, 2), (24, 2), (40, 2), (48, 1), (96, 2)), 1024),
    "mobilenet_v3_large": _v3(((16, 1), (24, 2), (40, 2), (80, 2), (112, 1), (160, 2)), 1280),
    "efficientnet": Skeleton(
        stem=32,
        stem_stride=2,
        stages=((16, 1), (24, 2), (40, 2), (80, 2), (112, 1), (192, 2), (320, 1)),
        last=4,
        hidden=0,
        activation="silu",
        gate="sigmoid",
        squeeze_of_expanded=False,
    ),
    # For images of 8 to 64 pixels a side: the first stages of MobileNetV3 and a head without a hidden layer.
    "compact": _v3(((16, 2), (24, 2), (40, 2)), 0, stem_stride=1),
}
"""Networks of the same stages; which blocks these have is chosen."""


def mobile_space(
    *,
    resolutions: Sequence[int] = RESOLUTIONS,
    skeletons: Sequence[str] = ("mobilenet_v3_small", "mobilenet_v3_large", "efficientnet"),
    widths: Sequence[float] = WIDTHS,
    kernels: Sequence[int] = KERNELS,
    expansions: Sequence[float] = EXPANSIONS,
    depth: int = 5,
    activations: Sequence[str] = ACTIVATIONS,
) -> Space:
    """Networks of these skeletons with these options; a stage has 1 to `depth` blocks, the first and a seventh one or two.

    Raises `IllegalArch` for an unknown skeleton or activation, a resolution or depth below 1, an even kernel, or a factor of 0.
    """
    _check("skeletons", skeletons, [name for name in skeletons if name not in SKELETONS], f"some of {list(SKELETONS)}")
    _check("activations", activations, [a for a in activations if a not in ACTIVATIONS], f"some of {list(ACTIVATIONS)}")
    _check("resolutions", resolutions, [side for side in resolutions if side < 1], "pixels a side, at least 1")
    _check("kernels", kernels, [kernel for kernel in kernels if kernel < 1 or kernel % 2 == 0], "odd numbers")
    _check("widths", widths, [width for width in widths if width <= 0], "factors above 0")
    _check("expansions", expansions, [factor for factor in expansions if factor < 1], "factors of 1 or more")
    _check("depth", (depth,), [depth] if depth < 1 else [], "at least one block")
    choices = {
        "resolution": Choice(*resolutions),
        "skeleton": Choice(*skeletons),
        "width": Choice(*map(float, widths)),
    }
    for stage in range(1, 1 + max(len(SKELETONS[name].stages) for name in skeletons)):
        having = tuple(name for name in skeletons if len(SKELETONS[name].stages) >= stage)
        when = {"skeleton": having} if len(having) < len(skeletons) else None
        depths = tuple(range(1, 1 + (min(depth, 2) if stage in (1, 7) else depth)))
        choices[f"depth_{stage}"] = Choice(*depths, when=when)
        choices[f"kernel_{stage}"] = Choice(*kernels, when=when)
        choices[f"squeeze_{stage}"] = Choice(False, True, when=when)
        choices[f"activation_{stage}"] = Choice(*activations, when=when)
        for block in depths:
            there = {f"depth_{stage}": depths[block - 1 :]} if block > 1 else when
            choices[f"expansion_{stage}_{block}"] = Choice(*map(float, expansions), when=there)
    return Space(choices)


def options_for(task: ImageTask) -> dict[str, Any]:
    """Options of `mobile_space` that suit images of this size: up to 64 pixels the compact skeleton, no larger resolution.

    Images under 16 pixels may also be doubled: there are few pixels to convolve.
    """
    side = max(task.height, task.width)
    if side > 64:
        fitting = tuple(resolution for resolution in RESOLUTIONS if resolution <= side)
        return {"resolutions": fitting or (side,)}
    resolutions = (side, 2 * side) if side < 16 else (side * 3 // 4, side)
    return {
        "resolutions": resolutions,
        "skeletons": ("compact",),
        "widths": (0.5, 1.0, 1.5),
        "kernels": (3, 5),
        "expansions": (1.0, 2.0, 4.0, 6.0),
        "depth": 3,
    }


def shape_of(arch: Mapping[str, Any]) -> MobileShape:
    """The network that an arch of any `mobile_space` means."""
    taken = dict(arch)
    skeleton = SKELETONS[taken["skeleton"]]
    strides = _strides(skeleton, taken["resolution"])
    channels = stem = eights(skeleton.stem * taken["width"])
    stages = list[tuple[Block, ...]]()
    for number, (width, _) in enumerate(skeleton.stages, 1):
        blocks = list[Block]()
        for place in range(1, 1 + taken[f"depth_{number}"]):
            expanded = eights(channels * taken[f"expansion_{number}_{place}"])
            squeeze = eights(expanded // 4) if skeleton.squeeze_of_expanded else max(1, channels // 4)
            block = Block(
                channels=channels,
                expanded=expanded,
                out=eights(width * taken["width"]),
                kernel=taken[f"kernel_{number}"],
                stride=strides[number] if place == 1 else 1,
                squeeze=squeeze if taken[f"squeeze_{number}"] else 0,
                activation=taken[f"activation_{number}"],
            )
            blocks.append(block)
            channels = block.out
        stages.append(tuple(blocks))
    return MobileShape(
        resolution=taken["resolution"],
        stem=stem,
        stem_stride=strides[0],
        stages=tuple(stages),
        last=skeleton.last * channels,
        hidden=eights(skeleton.hidden * taken["width"]) if skeleton.hidden else 0,
        activation=skeleton.activation,
        gate=skeleton.gate,
    )


def eights(channels: float) -> int:
    """The nearest multiple of 8 that is no more than a tenth below: the rounding of both families."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _strides(skeleton: Skeleton, resolution: int) -> list[int]:
    """Of the stem and of each stage, as many halvings left out in front as small images ask for."""
    strides = [skeleton.stem_stride, *(stride for _, stride in skeleton.stages)]
    halvings, side = 0, resolution
    while side >= 2 * LEAST_SIDE:
        side, halvings = side // 2, halvings + 1
    surplus = strides.count(2) - halvings
    for place, stride in enumerate(strides):
        if stride == 2 and surplus > 0:
            strides[place], surplus = 1, surplus - 1
    return strides


def _check(option: str, given: Sequence[Any], wrong: Sequence[Any], expected: str) -> None:
    if wrong or not given:
        raise IllegalArch(f"mobile: {option}={list(given)!r}: expected {expected}, got {list(wrong)!r}")


Stage = tuple[int, bool, str, tuple[float, ...]]
"""Kernel, squeeze, activation, and the blocks' expansions."""


def _point(skeleton: str, resolution: int, stages: Sequence[Stage], width: float = 1.0) -> Arch:
    taken: dict[str, Value] = {"resolution": resolution, "skeleton": skeleton, "width": width}
    for number, (kernel, squeeze, activation, expansions) in enumerate(stages, 1):
        taken |= {f"depth_{number}": len(expansions), f"kernel_{number}": kernel}
        taken |= {f"squeeze_{number}": squeeze, f"activation_{number}": activation}
        taken |= {f"expansion_{number}_{place}": expansion for place, expansion in enumerate(expansions, 1)}
    return mobile_space().arch(taken)


def _efficientnet(resolution: int, depths: Sequence[int], width: float = 1.0) -> Arch:
    kernels = (3, 3, 5, 3, 5, 5, 3)
    stages: list[Stage] = [
        (kernel, True, "silu", (6.0 if number else 1.0,) * depth)
        for number, (kernel, depth) in enumerate(zip(kernels, depths, strict=True))
    ]
    return _point("efficientnet", resolution, stages, width)


POINTS: dict[str, Arch] = {
    "mobilenet_v3_small": _point(
        "mobilenet_v3_small",
        224,
        [
            (3, True, "relu", (1.0,)),
            (3, False, "relu", (4.5, 3.67)),
            (5, True, "hardswish", (4.0, 6.0, 6.0)),
            (5, True, "hardswish", (3.0, 3.0)),
            (5, True, "hardswish", (6.0, 6.0, 6.0)),
        ],
    ),
    "mobilenet_v3_large": _point(
        "mobilenet_v3_large",
        224,
        [
            (3, False, "relu", (1.0,)),
            (3, False, "relu", (4.0, 3.0)),
            (5, True, "relu", (3.0, 3.0, 3.0)),
            (3, False, "hardswish", (6.0, 2.5, 2.3, 2.3)),
            (3, True, "hardswish", (6.0, 6.0)),
            (5, True, "hardswish", (6.0, 6.0, 6.0)),
        ],
    ),
    "efficientnet_b0": _efficientnet(224, (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet_b1": _efficientnet(240, (2, 3, 3, 4, 4, 5, 2)),
    "efficientnet_b2": _efficientnet(260, (2, 3, 3, 4, 4, 5, 2), 1.1),
}
"""Published networks, at the resolutions of their papers, as archs of the space with its default options."""
