"""A measured function of a few widths: known at the points of a grid, multilinear between them, never falling.

The work of a layer is a sum of products of its widths, so that between two points of every axis an interpolation that is
linear in each is exact for all that is proportional to work.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from befit.cost.latency import exact
from befit.errors import BadTable, IllegalArch


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A function of a few widths, known at some of each and multilinear in between."""

    axes: tuple[str, ...]
    """Names of the widths, as in `Member`."""
    points: tuple[tuple[int, ...], ...]
    """For each axis where it was measured, ascending."""
    ms: tuple[float, ...]
    """Milliseconds at every combination, the last axis changing fastest."""

    def __post_init__(self) -> None:
        ascending = all(list(own) == sorted(set(own)) and own for own in self.points)
        if len(self.axes) != len(self.points) or not ascending or len(self.ms) != math.prod(map(len, self.points)):
            raise BadTable(f"latency grid: {len(self.ms)} times do not fit the points {self.points} of {self.axes}")

    def at(self, widths: Mapping[str, int]) -> float:
        """The time at some widths. Raises `IllegalArch` outside of what was measured."""
        values: NDArray[np.float64] = np.array(self.ms).reshape([len(own) for own in self.points])
        for axis, own in zip(self.axes, self.points, strict=True):
            width = widths[axis]
            if not own[0] <= width <= own[-1]:
                raise IllegalArch(
                    f"{axis} = {width}: latency was measured from {own[0]} to {own[-1]}; measure it again"
                )
            place = min(max(np.searchsorted(own, width, side="right") - 1, 0), max(len(own) - 2, 0))
            if width == own[place]:
                values = values[place]
            else:
                share = (width - own[place]) / (own[place + 1] - own[place])
                values = (1 - share) * values[place] + share * values[place + 1]
        return float(values)

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return {"axes": list(self.axes), "points": [list(own) for own in self.points], "ms": list(self.ms)}

    @staticmethod
    def from_json(data: Any) -> "Grid":
        """Read what `to_json` wrote. Raises `BadTable` for anything else."""
        given = exact(Grid, data)
        try:
            points = tuple(tuple(int(point) for point in own) for own in given["points"])
            return Grid(axes=tuple(given["axes"]), points=points, ms=tuple(float(ms) for ms in given["ms"]))
        except (TypeError, ValueError) as error:
            raise BadTable(f"latency grid: {error}; measure it again") from error


def monotone(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values, at least 0 and non-decreasing along every axis; those that are so already are unchanged.

    Halfway between the largest value that a place must not be below and the smallest that it must not be above, so that noise
    moves the whole neither up nor down.
    """
    above, below = values, np.flip(values)
    for axis in range(values.ndim):
        above, below = np.maximum.accumulate(above, axis), np.minimum.accumulate(below, axis)
    return np.maximum((above + np.flip(below)) / 2, 0)
