"""A space together with the way its archs become networks: all that a search needs to know about what it searches."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from befit.arch.space import Arch, Space
from befit.arch.task import ImageTask
from befit.cost.images import Counts


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """How the archs of one space are built and counted."""

    name: str
    """`cell`, `mobile`, or the name of the user's own class."""
    space: Space
    build: Callable[[Arch, ImageTask], nn.Module]
    """A network with fresh weights: normalised float images (B, channels, height, width) to logits (B, classes)."""
    count: Callable[[Arch, ImageTask], Counts]
    """Exact, without weights in memory."""
