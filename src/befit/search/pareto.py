"""Several objectives as one number: by how many others an arch is left behind, and among equals how much it adds.

Source: the ranking is that of NSGA-II (Deb et al., 2002): fronts of archs that none of the remaining ones dominates, crowding
distance within a front.
"""

import math
from collections.abc import Sequence


def dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether `first` is nowhere worse and somewhere better; higher is better."""
    return all(a >= b for a, b in zip(first, second, strict=True)) and any(
        a > b for a, b in zip(first, second, strict=True)
    )


def fronts(points: Sequence[Sequence[float]]) -> list[list[int]]:
    """Indices by front, the best first: each holds the points that nothing outside the fronts before it dominates."""
    left, found = list(range(len(points))), list[list[int]]()
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        found.append(front)
        left = [i for i in left if i not in front]
    return found


def crowding(points: Sequence[Sequence[float]]) -> list[float]:
    """For each point of a front the sides of the box between its neighbours, as shares of the range; infinity at the ends."""
    distance = [0.0] * len(points)
    for axis in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: points[i][axis])
        low, high = points[order[0]][axis], points[order[-1]][axis]
        distance[order[0]] = distance[order[-1]] = math.inf
        for before, here, after in zip(order, order[1:], order[2:], strict=False):
            if high > low:
                distance[here] += (points[after][axis] - points[before][axis]) / (high - low)
    return distance


def scalarised(values: Sequence[Sequence[float] | None]) -> list[float | None]:
    """One number for each of `values`, higher is better; None stays None.

    It is minus the number of the point's front (0, -1, …) plus a crowding term in 0 .. 0.5: 0.5 at the ends of a front, less
    where neighbours are near. So a point of a better front always has the higher number.
    """
    scored = [i for i, value in enumerate(values) if value is not None]
    points = [value for value in values if value is not None]
    result: list[float | None] = [None] * len(values)
    for rank, front in enumerate(fronts(points)):
        for i, distance in zip(front, crowding([points[i] for i in front]), strict=True):
            share = 1.0 if math.isinf(distance) else distance / (1.0 + distance)
            result[scored[i]] = share / 2 - rank
    return result
