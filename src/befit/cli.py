"""The command line: verbs, and the only place where a string becomes an object.

    befit puzzle    fit a trained language model to a budget
    befit elastic   train one nested model from which any size is cut
    befit cut       cut a size out of a nested model, in seconds and without training
    befit resume    go on with a run that was stopped
    befit report    draw a run's report anew
    befit solve     choose options under bounds, from a plain table or a run directory
    befit measure   measure the cost table of a parent on this device
    befit parent    train the embedded parent, or prepare its tokens

Results go to stdout, progress and errors to stderr. An error that is the user's to fix ends with exit code 2 and one
message; Ctrl-C ends with 130 and loses nothing that was finished.
"""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from befit.errors import BadTable, BefitError, RunConflict

Verb = Callable[[Sequence[str]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    verbs: dict[str, Verb] = {
        "puzzle": puzzle_verb,
        "elastic": elastic_verb,
        "cut": cut_verb,
        "resume": resume_verb,
        "report": report_verb,
        "solve": solve_verb,
        "measure": measure_verb,
        "parent": parent_verb,
    }
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help") or given[0] not in verbs:
        wrong = bool(given) and given[0] not in ("-h", "--help")
        lines = (__doc__ or "").split("\n\n")[1]
        message = f"befit: there is no verb {given[0]!r}\n\n{lines}" if wrong else f"usage: befit VERB …\n\n{lines}"
        print(message, file=sys.stderr if wrong else sys.stdout)
        return 2 if wrong else 0
    try:
        verbs[given[0]](given[1:])
    except BefitError as error:
        print(f"befit {given[0]}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"befit {given[0]}: stopped; what was finished is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0


def puzzle_verb(arguments: Sequence[str]) -> None:
    """Fit a trained language model to a budget, block by block."""
    from befit.puzzle.config import PuzzleConfig

    @dataclass(frozen=True)
    class Arguments:
        """Fit a trained language model to a budget, block by block."""

        config: Annotated[PuzzleConfig, tyro.conf.arg(name="")]
        dry_run: bool = False
        """Print what would run, with its disk, memory and time, and stop."""

    asked = tyro.cli(Arguments, args=arguments, prog="befit puzzle")
    _quiet()
    if asked.dry_run:
        from befit.puzzle.plan import plan

        _show_plan(plan(asked.config))
    else:
        _run(asked.config)


def elastic_verb(arguments: Sequence[str]) -> None:
    """Train one nested model from which any size is cut with no further training."""
    from befit.elastic.config import ElasticConfig

    config = tyro.cli(ElasticConfig, args=arguments, prog="befit elastic")
    _quiet()
    _run_elastic(config)


def cut_verb(arguments: Sequence[str]) -> None:
    """Cut a member out of a nested model: seconds, no training."""

    def cut(
        run: tyro.conf.Positional[Path],
        /,
        out: Path | None = None,
        budget: str | None = None,
        fit: bool = False,
        workload: str | None = None,
        layout: Literal["padded", "own-code"] = "padded",
        dtype: Literal["fp32", "bf16", "fp16"] | None = None,
    ) -> None:
        """Cut the largest member that keeps the bounds out of a nested model: seconds, no training.

        Args:
            run: A run of `befit elastic`, or a nested checkpoint.
            out: Folder for the checkpoint; cuts/BUDGET beside the nested model if not given.
            budget: Bounds, absolute or relative to the parent, such as "memory=8GiB, params=50%"; "75%" is of the trained cost.
            fit: Take the largest member that fits in the memory that is free here, the GPU's if there is one.
            workload: Such as "batch=1,prompt=8192", at which memory counts; that of the training if not given.
            layout: Where FFN widths differ by layer: padded with zeros, or as they are with befit's modelling file.
            dtype: Format of the weights; that of the nested checkpoint if not given.
        """
        from befit.cost.workload import Workload
        from befit.elastic.cut import cut as cut_member
        from befit.elastic.cut import workload_of

        _quiet()
        at = None if workload is None else Workload.parse(workload, base=workload_of(run))
        words = re.sub(r"[^\w.%]+", "-", budget or "fit").strip("-")
        found = cut_member(
            run, out or run / "cuts" / words, budget=budget, fit=fit, workload=at, layout=layout, dtype=dtype
        )
        print("\n".join(found.lines()))

    tyro.cli(cut, args=arguments, prog="befit cut")


def resume_verb(arguments: Sequence[str]) -> None:
    """Go on with a run that was stopped: finished stages are read, the rest is done."""

    def resume(run: tyro.conf.Positional[Path]) -> None:
        """Go on with a run that was stopped.

        Args:
            run: The run directory.
        """
        from befit.rundir import read_config

        told = read_config(run)
        _quiet()
        if told.get("verb") == "elastic":
            from befit.elastic.config import ElasticConfig

            _run_elastic(replace(ElasticConfig.from_json(told), out=run))
        else:
            from befit.puzzle.config import PuzzleConfig

            _run(replace(PuzzleConfig.from_json(told), out=run))

    tyro.cli(resume, args=arguments, prog="befit resume")


def report_verb(arguments: Sequence[str]) -> None:
    """Draw a run's report anew from its summary."""

    def report(run: tyro.conf.Positional[Path]) -> None:
        """Draw a run's report anew from its summary.

        Args:
            run: The run directory.
        """
        from befit.report.page import write_report
        from befit.rundir import read_json

        if not (run / "summary.json").is_file():
            raise RunConflict(f"{run} has no summary.json; finish the run first: befit resume {run}")
        write_report(read_json(run / "summary.json"), run / "report.html")
        print(run / "report.html")

    tyro.cli(report, args=arguments, prog="befit report")


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
    """Measure the cost table of a parent on this device; kept in the run directory, shown as a table."""
    from befit.puzzle.config import PuzzleConfig

    config = tyro.cli(PuzzleConfig, args=arguments, prog="befit measure")
    _quiet()
    from befit.progress import Bars
    from befit.puzzle.pipeline import measure_only
    from befit.puzzle.record import price_line, price_rows

    with Bars() as progress:
        prices = measure_only(config, progress=progress)
    _show_rows(price_rows(prices), "Measured on this device")
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
    _quiet()
    print(steps[arguments[0]](config))


def _run(config: Any) -> None:
    """Run the pipeline with progress bars and print the comparison."""
    from befit.budget import Budget
    from befit.progress import Bars
    from befit.puzzle.pipeline import puzzle
    from befit.puzzle.record import budget_lines, table_rows

    Budget.parse(config.budget)  # The cheapest mistake to find, before a model is loaded.
    with Bars() as progress:
        summary = puzzle(config, progress=progress)
    _show_rows(table_rows(summary), summary["title"])
    for line in budget_lines(summary):
        print(line)
    print(f"child   {config.out / 'child'}\nreport  {config.out / 'report.html'}")


def _run_elastic(config: Any) -> None:
    """Run the pipeline with progress bars and print what every budget became; of several processes, the main one does."""
    from befit.elastic.pipeline import elastic
    from befit.elastic.summary import table_rows
    from befit.elastic.team import Team
    from befit.progress import Bars

    if not Team.of(config.device).main:
        elastic(config)
        return
    with Bars() as progress:
        summary = elastic(config, progress=progress)
    _show_rows(table_rows(summary), summary["title"])
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


def _show_rows(rows: Sequence[dict[str, str]], title: str) -> None:
    console = Console()
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row.values())
    # Piped output keeps its columns: a file has no width to fit into.
    Console(width=None if console.is_terminal else 160).print(table)


def _show_plan(lines: Sequence[str]) -> None:
    print("\n".join(lines))


def _quiet() -> None:
    """Keep transformers' own bars and advice out of befit's output."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
