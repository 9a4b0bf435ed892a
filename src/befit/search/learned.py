"""What a study says about its space: how much each choice mattered, how good each option was, how the front grew.

Everything is read off the scored trials, which a searcher chose: archs it liked are there more often. So these are
descriptions of what was seen, with the number of trials behind each, and no estimates for archs drawn at random.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from befit.search.pareto import dominates
from befit.search.trial import TrialRecord


def effects(records: Sequence[TrialRecord]) -> dict[str, dict[str, Any]]:
    """For every choice its importance and, for each option taken, the mean value and number of the trials with it.

    Importance is omega squared of a one-way analysis of variance: the share of the values' variance that the choice alone
    explains, corrected for what chance would explain; 0 to 1. None where fewer than two options were tried twice.
    """
    scored = [one for one in records if one.value is not None and one.arch is not None]
    names = dict.fromkeys(name for one in scored for name in one.arch or {})
    found = dict[str, dict[str, Any]]()
    for name in names:
        groups = defaultdict[str, list[float]](list)
        for one in scored:
            if one.arch is not None and name in one.arch and one.value is not None:
                groups[str(one.arch[name])].append(one.value)
        options = {option: {"mean": fmean(values), "trials": len(values)} for option, values in groups.items()}
        found[name] = {"importance": omega_squared(list(groups.values())), "options": options}
    return found


def omega_squared(groups: Sequence[Sequence[float]]) -> float | None:
    """Share of variance that belonging to a group explains. Source: Hays, Statistics (1963): (SSB - dfB MSW) / (SST + MSW)."""
    kept = [group for group in groups if len(group) > 1]
    count = sum(map(len, kept))
    if len(kept) < 2 or count <= len(kept):
        return None
    mean = fmean(value for group in kept for value in group)
    between = sum(len(group) * (fmean(group) - mean) ** 2 for group in kept)
    within = sum((value - fmean(group)) ** 2 for group in kept for value in group)
    noise = within / (count - len(kept))
    total = between + within + noise
    return max(0.0, (between - (len(kept) - 1) * noise) / total) if total > 0 else None


def front_of(points: Sequence[Sequence[float]]) -> list[int]:
    """Places of the points that no other dominates; higher is better in every coordinate."""
    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that the points dominate above `reference`, in any number of coordinates; higher is better in each.

    By slices along the last coordinate: exact, and quick enough for some hundred points of up to four coordinates.
    """
    inside = [point for point in points if all(a > b for a, b in zip(point, reference, strict=True))]
    if not inside:
        return 0.0
    if len(reference) == 1:
        return max(point[0] for point in inside) - reference[0]
    volume, levels = 0.0, sorted({point[-1] for point in inside}, reverse=True)
    for level, below in zip(levels, [*levels[1:], reference[-1]], strict=True):
        slice_ = [point[:-1] for point in inside if point[-1] >= level]
        volume += (level - below) * hypervolume(slice_, reference[:-1])
    return volume


def growth(values: Sequence[float | None], costs: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[float]:
    """Hypervolume of accuracy against the named costs after each trial, each cost as a share of the dearest trial's: 0 to 1."""
    most = {name: max((cost[name] for cost in costs if name in cost), default=0.0) or 1.0 for name in names}
    grown, seen = list[float](), list[list[float]]()
    for value, cost in zip(values, costs, strict=True):
        if value is not None and all(name in cost for name in names):
            seen = _thinned([*seen, [value, *(1.0 - cost[name] / most[name] for name in names)]])
        grown.append(hypervolume(seen, [0.0] + [-1e-9] * len(names)))
    return grown


def _thinned(points: list[list[float]]) -> list[list[float]]:
    return [points[i] for i in front_of(points)]
