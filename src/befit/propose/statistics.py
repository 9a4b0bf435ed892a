"""Arms of a run against each other: what each brings for equal attempts, and which differences are more than luck.

What is compared, each as a dataset-balanced mean:

    intention      accuracy of an attempt, chance where it brought no new network: the measure to decide by
    unique         share of attempts that brought a new network
    conditional    accuracy of the networks that were trained: says nothing of those that failed
    best           accuracy of a run's best network; needs several seeds

The unit is the run: proposals of one run saw each other's results, so they are no independent sample, and hundreds of them make
any difference look sure. With one seed there is nothing else than the attempts; then they are the units, and `units` says so.

Within a measure all p-values are corrected together (Holm); the measures are not corrected for each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

from befit.propose import inference
from befit.propose.funnel import by_run, chance_of, is_trained, is_unique, means, outcome
from befit.propose.proposal import Proposal

Measure = Literal["intention", "unique", "conditional", "best"]
Units = Literal["runs", "attempts"]

Values = dict[str, dict[str, dict[int, float]]]
"""arm -> dataset -> seed (or place of the attempt) -> value."""


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two arms, on one dataset or on all."""

    a: str
    b: str
    dataset: str | None
    """None: balanced over all."""
    before: list[dict[int, float]]
    after: list[dict[int, float]]
    """A group for each dataset."""


def compare(rows: Sequence[Proposal], *, chance: float | Mapping[str, float], seed: int = 0) -> dict[str, Any]:
    """Compare the arms of a run; plain values for a summary.

    Args:
        rows: All proposals of all arms, datasets and seeds; those under way are left out.
        chance: Accuracy of the best guess without looking, 0 .. 1, for all datasets or for each.
        seed: Of the bootstrap.

    Returns:
        attempts: equal (whether every arm has as many on every dataset and seed), each (how many; None if unequal), counts.
        units: "runs" or "attempts". level: of the intervals.
        measures: for each name, arms (arm, mean, low, high, how, count, datasets) and pairs (a, b, dataset or None for the
        balanced mean, difference = b minus a, low, high, how, t, df, p, corrected, g, g_low, g_high). A value is None where
        the rows cannot tell: an arm without any value on a dataset, fewer than two values, no spread.

    Raises:
        BadData: A dataset without a chance.
    """
    done = [row for row in rows if row.done]
    runs = by_run(done)
    units = _units(runs)
    measures = [name for name in get_args(Measure) if units == "runs" or name != "best"]
    found = {name: _values(runs, name, units, chance) for name in measures}
    return {
        "attempts": _attempts(rows),
        "units": units,
        "level": inference.LEVEL,
        "measures": {
            name: {
                "arms": [_arm(arm, values[arm], seed) for arm in values],
                "pairs": _tests(values, units, seed),
            }
            for name, values in found.items()
        },
    }


def _attempts(rows: Sequence[Proposal]) -> dict[str, Any]:
    """How many attempts each arm had, and whether all had as many on every dataset with every seed."""
    counts = {key: len(group) for key, group in by_run(rows).items()}
    grid = 1
    for axis in range(3):
        grid *= len({key[axis] for key in counts})
    same = set(counts.values())
    equal = len(same) == 1 and len(counts) == grid
    told = [dict(zip(("arm", "dataset", "seed"), key, strict=True)) | {"attempts": n} for key, n in counts.items()]
    return {"equal": equal, "each": same.pop() if equal else None, "counts": told}


def _units(runs: Mapping[tuple[str, str, int], Any]) -> Units:
    seeds = dict[tuple[str, str], set[int]]()
    for arm, dataset, seed in runs:
        seeds.setdefault((arm, dataset), set()).add(seed)
    return "runs" if seeds and min(map(len, seeds.values())) > 1 else "attempts"


def _values(
    runs: Mapping[tuple[str, str, int], list[Proposal]],
    name: Measure,
    units: Units,
    chance: float | Mapping[str, float],
) -> Values:
    """The units' values of a measure; an arm has every dataset, with no value where there is none."""
    datasets = list(dict.fromkeys(dataset for _, dataset, _ in runs))
    values: Values = {arm: {dataset: {} for dataset in datasets} for arm, _, _ in runs}
    for (arm, dataset, seed), rows in runs.items():
        group, guess = values[arm][dataset], chance_of(dataset, chance)
        if units == "runs":
            value = _of_run(rows, name, guess)
            group |= {} if value is None else {seed: value}
        else:
            told = (_of_attempt(row, name, guess) for row in rows)
            group |= {len(group) + place: value for place, value in enumerate(v for v in told if v is not None)}
    return values


def _of_run(rows: Sequence[Proposal], name: Measure, chance: float) -> float | None:
    if name == "unique":
        return sum(map(is_unique, rows)) / len(rows)
    value = means(rows, chance)[name]
    # A run without any network: who has none can still guess.
    return chance if name == "best" and value is None else value


def _of_attempt(row: Proposal, name: Measure, chance: float) -> float | None:
    if name == "unique":
        return float(is_unique(row))
    if name == "intention":
        return outcome(row, chance)
    return row.accuracy if is_trained(row) else None


def _arm(arm: str, datasets: Mapping[str, Mapping[int, float]], seed: int) -> dict[str, Any]:
    groups = [list(values.values()) for values in datasets.values()]
    told = {
        dataset: {"mean": inference.balanced_mean([group]) if group else None, "count": len(group)}
        for dataset, group in zip(datasets, groups, strict=True)
    }
    full = bool(groups) and all(groups)
    return {
        "arm": arm,
        "mean": inference.balanced_mean(groups) if full else None,
        **_ends(inference.interval(groups, seed=seed) if full else None, least=0.0),
        "count": sum(map(len, groups)),
        "datasets": told,
    }


def _tests(values: Values, units: Units, seed: int) -> list[dict[str, Any]]:
    """Every pair on all datasets, then on each; corrected together."""
    arms = list(values)
    named = list(combinations(arms, 2))
    datasets = list(values[arms[0]]) if arms else []
    wholes = [
        _Pair(a=a, b=b, dataset=None, before=list(values[a].values()), after=list(values[b].values())) for a, b in named
    ]
    parts = [
        _Pair(a=a, b=b, dataset=one, before=[values[a][one]], after=[values[b][one]])
        for one in datasets * (len(datasets) > 1)
        for a, b in named
    ]
    rows = [_pair(pair, units, seed) for pair in (*wholes, *parts)]
    known = [row for row in rows if row["p"] is not None]
    for row, p in zip(known, inference.holm([row["p"] for row in known]), strict=True):
        row["corrected"] = p
    return rows


def _pair(pair: _Pair, units: Units, seed: int) -> dict[str, Any]:
    """One line: difference, interval, test and effect; None where it cannot be said."""
    paired = units == "runs" and all(set(x) == set(y) for x, y in zip(pair.before, pair.after, strict=True))
    a = [[values[at] for at in sorted(values)] for values in pair.before]
    b = [[values[at] for at in sorted(values)] for values in pair.after]
    full = all(a) and all(b)
    test, effect = (inference.welch(a, b), inference.hedges_g(a, b)) if full else (None, None)
    between = inference.interval_of_difference(a, b, paired=paired, seed=seed) if full else None
    return {
        **{"a": pair.a, "b": pair.b, "dataset": pair.dataset},
        "difference": inference.balanced_mean(b) - inference.balanced_mean(a) if full else None,
        **_ends(between, least=-1.0),
        **({"t": test.t, "df": test.df, "p": test.p} if test else {"t": None, "df": None, "p": None}),
        "corrected": None,
        **(
            {"g": effect.g, "g_low": effect.low, "g_high": effect.high}
            if effect
            else dict.fromkeys(("g", "g_low", "g_high"))
        ),
    }


def _ends(interval: inference.Interval | None, least: float) -> dict[str, Any]:
    """An interval within what is possible: accuracies and shares are 0 .. 1, their differences -1 .. 1."""
    if interval is None:
        return {"low": None, "high": None, "how": None}
    return {"low": max(least, interval.low), "high": min(1.0, interval.high), "how": interval.how}
