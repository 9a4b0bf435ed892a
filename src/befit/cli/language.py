"""Verbs for language models: puzzle, elastic, solve, measure, parent."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from befit.cli.images import measure_space
from befit.cli.shown import quiet, show_lines, show_rows
from befit.errors import BadData, BadTable, RunConflict


def puzzle_verb(arguments: Sequence[str]) -> None:
    """Fit a trained language model to a budget, block by block."""
    from befit.puzzle.config import PuzzleConfig

    @dataclass(frozen=True)
    class Arguments:
        """Fit a trained language model to a budget, block by block."""

        config: Annotated[PuzzleConfig, tyro.conf.arg(name="")]
        dry_run: bool = False
        """Print what would run, with its disk, memory and time, and stop. Of the parent only its config.json is read."""
        on: str | None = None
        """The device to plan for with --dry-run: a100, h100, h200, b200, l40s, rtx4090 or "400TFLOPS,80GB"; none is this one."""

    # `--score task:needle` is short for `--score.metric task:needle`.
    full = [re.sub(r"^--score(?=$|=)", "--score.metric", word) for word in arguments]
    asked = tyro.cli(Arguments, args=full, prog="befit puzzle")
    if asked.on is not None and not asked.dry_run:
        raise BadData(f"--on {asked.on} plans for another device, where nothing can run from here; add --dry-run")
    quiet()
    if asked.dry_run:
        from befit.puzzle.plan import plan

        show_lines(plan(asked.config, on=asked.on))
    else:
        run_puzzle(asked.config)


def elastic_verb(arguments: Sequence[str]) -> None:
    """Train one nested model from which any size is cut with no further training."""
    from befit.elastic.config import ElasticConfig

    config = tyro.cli(ElasticConfig, args=arguments, prog="befit elastic")
    quiet()
    run_elastic(config)


def solve_verb(arguments: Sequence[str]) -> None:
    """Choose one option a layer under bounds; the result is JSON on stdout."""

    def solve(table: tyro.conf.Positional[Path], /, budget: str, solutions: int = 1) -> None:
        """Choose one option a layer, of least total score, under any number of bounds.

        Args:
            table: A JSON table, or a run directory (its parent's costs are what relative bounds refer to).
            budget: Bounds on the table's costs, such as "memory_mib<=80000, runtime_ms<=51200".
            solutions: How many diverse solutions to give.
        """
        from befit.puzzle.solve import solve_file

        path = table
        text = budget
        if path.is_dir():
            path, text = path / "table.json", _absolute(path, budget)
        print(json.dumps(solve_file(path, text, solutions), indent=1))

    tyro.cli(solve, args=arguments, prog="befit solve")


def measure_verb(arguments: Sequence[str]) -> None:
    """Measure the cost table of a parent on this device; or, with --space, the latency model of a space of image networks."""
    if any(word.split("=")[0] == "--space" for word in arguments):
        measure_space(arguments)
        return
    from befit.puzzle.config import PuzzleConfig

    config = tyro.cli(PuzzleConfig, args=arguments, prog="befit measure")
    quiet()
    from befit.progress import Bars
    from befit.puzzle.pipeline import measure_only
    from befit.puzzle.record import price_line, price_rows

    with Bars() as progress:
        prices = measure_only(config, progress=progress)
    show_rows(price_rows(prices), "Measured on this device")
    print(price_line(prices))


def parent_verb(arguments: Sequence[str]) -> None:
    """Train the embedded parent, or prepare its tokens."""
    from befit.lm.corpus import prepare
    from befit.lm.pretrain import PretrainConfig, pretrain

    steps: dict[str, Callable[[PretrainConfig], Path]] = {
        "train": pretrain,
        "tokens": lambda config: prepare(config.corpus, config.out),
    }
    if not arguments or arguments[0] not in steps:
        raise BadTable(
            "say what to do with the parent: `befit parent train --out FOLDER` or `befit parent tokens --out FILE`"
        )
    config = tyro.cli(PretrainConfig, args=arguments[1:], prog=f"befit parent {arguments[0]}")
    quiet()
    print(steps[arguments[0]](config))


def run_puzzle(config: Any) -> None:
    """Run the pipeline with progress bars and print the comparison; of several processes, the main one does."""
    from befit.budget import Budget
    from befit.lm.team import Team
    from befit.progress import Bars
    from befit.puzzle.pipeline import puzzle
    from befit.puzzle.record import budget_lines, table_rows

    if not Team.of(config.device).main:
        puzzle(config)
        return
    Budget.parse(config.budget)  # The cheapest mistake to find, before a model is loaded.
    with Bars() as progress:
        summary = puzzle(config, progress=progress)
    show_rows(table_rows(summary), summary["title"])
    for line in budget_lines(summary):
        print(line)
    print(f"child   {config.out / 'child'}\nreport  {config.out / 'report.html'}")


def run_elastic(config: Any) -> None:
    """Run the pipeline with progress bars and print what every budget became; of several processes, the main one does."""
    from befit.elastic.pipeline import elastic
    from befit.elastic.summary import table_rows
    from befit.lm.team import Team
    from befit.progress import Bars

    if not Team.of(config.device).main:
        elastic(config)
        return
    with Bars() as progress:
        summary = elastic(config, progress=progress)
    show_rows(table_rows(summary), summary["title"])
    print(f"nested  {config.out / 'nested'}\nreport  {config.out / 'report.html'}")
    print(f'cut     befit cut {config.out} --budget "60%" --out FOLDER')


def _absolute(run: Path, budget: str) -> str:
    """A budget in the words of `befit puzzle`, as bounds on the costs in a run's table."""
    from befit.budget import Budget
    from befit.rundir import read_json

    if not (run / "table.json").is_file():
        raise RunConflict(f"{run} has no table.json; finish the run first: befit resume {run}")
    parent = read_json(run / "parent_costs.json")
    limits = dict[str, float]()
    for bound in Budget.parse(budget).resolve(parent).bounds:
        cost, limit = bound.cost, bound.value
        if cost == "tokens_per_s":  # At the run's batch, tokens a second times latency is the same for every child.
            cost, limit = "latency_ms", parent["tokens_per_s"] * parent["latency_ms"] / limit
        limits[cost] = min(limit, limits.get(cost, limit))
    # A child must keep attention somewhere; the table counts where.
    return ", ".join([*(f"{cost}<={limit!r}" for cost, limit in limits.items()), "attention_layers>=1"])
