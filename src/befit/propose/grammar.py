"""A grammar of image classifiers: networks in the form of the contract, drawn at random within bounds, always valid.

It is the null model beside a language model: the same loop with proposals that nobody thought about. A draw is a `Plan`, a
plain value; `befit.propose.rendering` writes it as source text.

Four families: plain and residual convolutional networks, multilayer perceptrons, and attention over patches.
"""

from dataclasses import dataclass, field
from random import Random
from typing import Literal, get_args

from befit.errors import IllegalArch

Family = Literal["cnn", "residual", "mlp", "attention"]
FAMILIES: tuple[Family, ...] = get_args(Family)
ACTIVATIONS = ("ReLU", "GELU", "SiLU", "LeakyReLU", "Hardswish")
DOWN = ("max", "avg", "stride")
NORMS = ("batch", "group", "none")
OPTIMIZERS = ("SGD", "Adam", "AdamW")
TRIES = 1000


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What may be drawn."""

    in_shape: tuple[int, int, int, int] = (2, 3, 32, 32)
    """Images, channels, height and width; height and width of at least 4."""
    classes: int = 10
    """At least 2."""
    params: int = 300_000
    """Most parameters, at least 2,000."""
    widths: tuple[int, ...] = (8, 12, 16, 24, 32, 48, 64, 96)
    """Channels or neurons, multiples of 4."""
    stages: int = 3
    """Most stages of a convolutional network, layers of another; each stage may halve the image."""
    blocks: int = 2
    """Most blocks in a stage."""

    def __post_init__(self) -> None:
        if len(self.in_shape) != 4 or min(self.in_shape[2:]) < 4 or self.in_shape[1] < 1:
            raise IllegalArch(f"in_shape {self.in_shape}: expected (N, C, H, W) with H and W of at least 4")
        if self.classes < 2 or self.stages < 1 or self.blocks < 1:
            raise IllegalArch("bounds: expected at least 2 classes, 1 stage and 1 block")
        if not self.widths or any(width < 4 or width % 4 for width in self.widths):
            raise IllegalArch(f"widths {self.widths}: expected multiples of 4")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of one width; an attention or MLP layer is a stage of one block."""

    width: int
    blocks: int = 1
    kernel: int = 3
    down: str = ""
    """How the image is halved at its end ("max", "avg") or in its first block ("stride"); "" if it is not."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the file trains its network."""

    optimizer: str = "SGD"
    clip: float = 0.0
    """Largest norm of a gradient; 0 for no bound."""
    smoothing: float = 0.0
    """Label smoothing."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One network, and its training."""

    family: Family
    stages: tuple[Stage, ...]
    activation: str = "ReLU"
    norm: str = "batch"
    separable: bool = False
    """Depthwise convolution, then a pointwise one."""
    dropout: bool = False
    """Before the last layer, with the probability of the hyper-parameter."""
    patch: int = 4
    """Pixels to a side of a patch."""
    heads: int = 2
    ratio: int = 2
    """Width of the MLP in an attention block, in widths."""
    positions: bool = True
    """Whether patches have a learned position."""
    recipe: Recipe = field(default_factory=Recipe)

    def params(self, in_shape: tuple[int, ...], classes: int) -> int:
        """Parameters, in closed form."""
        channels, height, width = in_shape[1:]
        if self.family == "mlp":
            return self._mlp(channels * height * width, classes)
        if self.family == "attention":
            return self._attention(channels, (height // self.patch) * (width // self.patch), classes)
        total = 0
        for stage in self.stages:
            for place in range(stage.blocks):
                strided = stage.down == "stride" and place == 0
                total += self._block(channels, stage.width, stage.kernel, strided)
                channels = stage.width
        return total + (channels + 1) * classes

    def _block(self, before: int, after: int, kernel: int, strided: bool) -> int:
        bias = after if self.norm == "none" else 2 * after  # a bias, or the norm's scale and shift
        conv = before * (kernel**2 + after) if self.separable else before * after * kernel**2
        skip = before * after if self.family == "residual" and (before != after or strided) else 0
        return conv + bias + skip

    def _mlp(self, inputs: int, classes: int) -> int:
        total = 0
        for stage in self.stages:
            total += (inputs + 1) * stage.width + (0 if self.norm == "none" else 2 * stage.width)
            inputs = stage.width
        return total + (inputs + 1) * classes

    def _attention(self, channels: int, tokens: int, classes: int) -> int:
        width = self.stages[0].width
        hidden = self.ratio * width
        block = (
            2 * 2 * width + (width + 1) * 3 * width + (width + 1) * width + (width + 1) * hidden + (hidden + 1) * width
        )
        patches = (channels * self.patch**2 + 1) * width + (tokens * width if self.positions else 0)
        return patches + len(self.stages) * block + 2 * width + (width + 1) * classes


def draw(random: Random, bounds: Bounds | None = None, family: Family | None = None) -> Plan:
    """A network within bounds. `IllegalArch` if the bounds leave nothing that is found in `TRIES` draws."""
    bounds = bounds or Bounds()
    for _ in range(TRIES):
        plan = _draw(random, bounds, family or random.choice(FAMILIES))
        if plan.params(bounds.in_shape, bounds.classes) <= bounds.params:
            return plan
    raise IllegalArch(
        f"no network of at most {bounds.params:,} parameters in {TRIES} draws; widen params or the widths"
    )


def _draw(random: Random, bounds: Bounds, family: Family) -> Plan:
    recipe = Recipe(
        optimizer=random.choice(OPTIMIZERS),
        clip=random.choice((0.0, 0.0, 1.0, 3.0)),
        smoothing=random.choice((0.0, 0.1)),
    )
    side = min(bounds.in_shape[2:])
    count = random.randint(1, bounds.stages)
    if family == "attention":
        width = random.choice(bounds.widths)
        stages = tuple(Stage(width=width) for _ in range(count))
    elif family == "mlp":
        stages = tuple(Stage(width=random.choice(bounds.widths)) for _ in range(count))
    else:
        stages = tuple(_stage(random, bounds, halve=side >= 2 ** (place + 1)) for place in range(count))
    return Plan(
        family=family,
        stages=stages,
        activation=random.choice(ACTIVATIONS),
        norm=random.choice(NORMS),
        separable=random.random() < 0.3,
        dropout=random.random() < 0.5,
        patch=random.choice([size for size in (2, 4, 8) if size <= side]),
        heads=random.choice((1, 2, 4)),
        ratio=random.choice((1, 2, 4)),
        positions=random.random() < 0.7,
        recipe=recipe,
    )


def _stage(random: Random, bounds: Bounds, *, halve: bool) -> Stage:
    return Stage(
        width=random.choice(bounds.widths),
        blocks=random.randint(1, bounds.blocks),
        kernel=random.choice((1, 3, 3, 5)),
        down=random.choice(("", *DOWN)) if halve else "",
    )
