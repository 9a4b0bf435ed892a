"""The section of docs/results.md on tasks, from benchmarks/results."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from records import RESULTS, made_at, recorded, table

SHARES = ("choice", "exact")
"""Measures that are shares of right answers."""


def evaluation_sections(folder: Path = RESULTS) -> dict[str, str]:
    """What is recorded of tasks, by heading."""
    found = recorded(folder / "evaluation.json")
    return {"Tasks, on the embedded parents": evaluation_block(found)} if found else {}


def evaluation_block(result: Mapping[str, Any]) -> str:
    """A row for every task and measure; what a needle in the text saves, by the length of the text."""
    names = list(next(iter(result["tasks"].values()))["measures"]["choice"]["models"])
    rows = [row for task, told in result["tasks"].items() for row in _rows(task, told["measures"])]
    return (
        f"`python benchmarks/evaluation.py` ({result['machine']['device']}, {result['asked']['items']} generated items of each "
        f"task): {' and '.join(names)}. Both are small models of documentation, so most tasks are beyond them, which the table "
        "says; that a sentence far back lowers the surprise of what it told (`gain`) can be measured all the same.\n\n"
        + table(["task", "measure", *names, "difference, 95 %"], rows)
        + made_at(result)
    )


def _rows(task: str, measures: Mapping[str, Any]) -> Iterator[list[str]]:
    for name, measure in measures.items():
        if name in ("choice", "exact", "nats"):
            yield _row(task, name, name, measure)
        if name == "gain":
            for length, one in measure["groups"]["tokens"].items():
                yield _row(task, name, f"gain, nats, {length} tokens", one)


def _row(task: str, name: str, title: str, told: Mapping[str, Any]) -> list[str]:
    form = "{:.1%}" if name in SHARES else "{:.2f}"
    cells = [f"{form.format(model['mean'])} ± {form.format(model['stderr'])}" for model in told["models"].values()]
    if told["parent_can"] is False:
        cells[0] += " (cannot)"
    difference = list(told["models"].values())[-1]["difference"]
    return [task, title, *cells, f"{form.format(difference['low'])} to {form.format(difference['high'])}"]
