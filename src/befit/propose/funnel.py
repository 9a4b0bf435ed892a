"""The funnel of a run: how many proposals passed each stage, why the others did not, and what one new network costs.

A language model that writes networks is judged by what it brings, and most of what it writes never trains. Means over the
networks that did train compare the lucky few: an arm that fails nine times of ten may win them. So every arm has two means:

    conditional              over the networks that were trained: how good a network is once there is one
    intention to generate    over all attempts: how good an attempt is

In the second an attempt that brought no new network counts as chance, not as zero: who has no network can still guess. A
repeated network counts as chance too, although its accuracy is known: it was there before, and an arm that copies the best
example which it was shown would otherwise win by copying. (The name follows intention to treat in medical trials: all who were
assigned count, whatever became of them.)
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from befit.errors import BadData
from befit.propose.proposal import STAGES, Proposal

_UNIQUE = STAGES.index("new-graph")
_TRAINED = STAGES.index("trained")
_LONG = {"source", "said", "examples", "whitespace", "tree", "recipe", "graph", "lemur", "done"}
"""What a row in a summary leaves out: it stands in the run's records."""


def is_unique(row: Proposal) -> bool:
    """Whether it is a network that was not there before and that keeps the budget."""
    return STAGES.index(row.stage) >= _UNIQUE


def is_trained(row: Proposal) -> bool:
    """Whether it was trained itself and has an accuracy; a repeated network was not."""
    return STAGES.index(row.stage) >= _TRAINED and row.accuracy is not None


def ranked(rows: Iterable[Proposal]) -> list[Proposal]:
    """The networks that were trained, the best first; among equals the smaller, then the earlier one."""
    return sorted(
        filter(is_trained, rows), key=lambda row: (-(row.accuracy or 0.0), row.params or 0, row.number, row.key)
    )


def funnel(rows: Sequence[Proposal]) -> dict[str, int]:
    """How many passed each stage, in their order: none is more than the one before."""
    last = Counter(STAGES.index(row.stage) for row in rows)
    return {stage: sum(count for place, count in last.items() if place >= at) for at, stage in enumerate(STAGES)}


def reasons(rows: Sequence[Proposal]) -> dict[str, dict[str, int]]:
    """{stage that was not passed: {reason: count}}, stages in their order, the most frequent reason first.

    Rows under way and those above chance have none.
    """
    found = {stage: Counter[str]() for stage in STAGES[1:]}
    for row in rows:
        if row.done and row.reason and row.stage != STAGES[-1]:
            found[STAGES[STAGES.index(row.stage) + 1]][row.reason] += 1
    return {
        stage: dict(sorted(count.items(), key=lambda one: (-one[1], one[0]))) for stage, count in found.items() if count
    }


def spent(rows: Sequence[Proposal]) -> dict[str, Any]:
    """What the calls, the gate and the trainings took, and all of it for each new network.

    Returns calls, prompt_tokens, completion_tokens, call_seconds, gate_seconds, train_seconds, price (None unless that of
    every call is known), unique (new networks) and per_unique with tokens, seconds and price; None where there is none.
    """
    made = [row for row in rows if row.calls]
    prices = [row.price for row in made if row.price is not None]
    price = sum(prices) if made and len(prices) == len(made) else None
    unique = sum(map(is_unique, rows))
    total = {
        name: sum(float(value) if name.endswith("seconds") else value for value in (vars(row)[name] for row in rows))
        for name in ("calls", "prompt_tokens", "completion_tokens", "call_seconds", "gate_seconds", "train_seconds")
    }
    tokens = total["prompt_tokens"] + total["completion_tokens"]
    seconds = total["call_seconds"] + total["gate_seconds"] + total["train_seconds"]
    per = {"tokens": tokens, "seconds": seconds, "price": price}
    shares = {name: value / unique if unique and value is not None else None for name, value in per.items()}
    return {**total, "price": price, "unique": unique, "per_unique": shares}


def outcome(row: Proposal, chance: float) -> float:
    """What an attempt counts in the intention to generate: its accuracy if it was trained, chance if not."""
    return row.accuracy if is_trained(row) and row.accuracy is not None else chance


def means(rows: Sequence[Proposal], chance: float) -> dict[str, Any]:
    """conditional (None without a trained network), intention (None without a finished attempt) and best, accuracies 0 .. 1.

    Rows under way do not count. `chance` is the accuracy of the best guess without looking, 0 .. 1. Raises `BadData` for others.
    """
    if not 0 <= chance <= 1:
        raise BadData(f"chance is an accuracy in 0 .. 1, such as 1 / classes; got {chance!r}")
    done = [row for row in rows if row.done]
    trained = [row.accuracy for row in done if is_trained(row) and row.accuracy is not None]
    outcomes = [outcome(row, chance) for row in done]
    return {
        "conditional": sum(trained) / len(trained) if trained else None,
        "intention": sum(outcomes) / len(outcomes) if outcomes else None,
        "best": max(trained, default=None),
        "chance": chance,
    }


def chance_of(dataset: str, chance: float | Mapping[str, float]) -> float:
    """The chance of one dataset, given one for all or one for each. Raises `BadData` for a dataset without."""
    if not isinstance(chance, Mapping):
        return chance
    if dataset not in chance:
        raise BadData(
            f"no chance is given for {dataset!r}; it is given for {', '.join(sorted(chance)) or 'no dataset'}"
        )
    return chance[dataset]


def by_run(rows: Sequence[Proposal]) -> dict[tuple[str, str, int], list[Proposal]]:
    """The rows of each (arm, dataset, seed) by their numbers; groups in the order in which they are first seen."""
    groups = dict[tuple[str, str, int], list[Proposal]]()
    for row in rows:
        groups.setdefault((row.arm, row.dataset, row.seed), []).append(row)
    return {key: sorted(group, key=lambda row: row.number) for key, group in groups.items()}


def arms(rows: Sequence[Proposal], chance: float | Mapping[str, float]) -> list[dict[str, Any]]:
    """For a summary, of each arm, dataset and seed: funnel, reasons, spent and the means, as plain values."""
    return [
        {"arm": arm, "dataset": dataset, "seed": seed, "attempts": len(group)}
        | {"funnel": funnel(group), "reasons": reasons(group), "spent": spent(group)}
        | means(group, chance_of(dataset, chance))
        for (arm, dataset, seed), group in by_run(rows).items()
    ]


def plain(row: Proposal) -> dict[str, Any]:
    """A row for a summary: what is not long."""
    return {field.name: vars(row)[field.name] for field in fields(row) if field.name not in _LONG}


def lost(rows: Sequence[Proposal]) -> list[dict[str, Any]]:
    """For a summary, why proposals went no further: reason, count and what the last one was told, the most frequent first."""
    gone = [row for row in rows if row.done and row.reason and row.stage != STAGES[-1]]
    said = {row.reason: row.said for row in gone}
    counts = sorted(Counter(row.reason for row in gone).items(), key=lambda one: (-one[1], one[0]))
    return [{"reason": reason, "count": count, "said": said[reason]} for reason, count in counts]


def leaders(rows: Sequence[Proposal], count: int = 10) -> list[dict[str, Any]]:
    """For a summary, the networks that were most accurate when they were proposed, each once, with their source.

    Accuracies on different datasets cannot be compared: each dataset has as many of the `count` as the others, three or more.
    """
    groups = {row.dataset: dict[str, Proposal]() for row in rows}
    for row in ranked(rows):
        groups[row.dataset].setdefault(row.graph or row.tree or row.source, row)  # the best one stays
    each = max(min(count, 3), count // max(1, len(groups)))
    return [
        {name: vars(row)[name] for name in ("arm", "dataset", "seed", "number", "params", "flops", "source")}
        | {"proposed": row.accuracy}
        for group in groups.values()
        for row in list(group.values())[:each]
    ]
