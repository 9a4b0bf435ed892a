"""Verbs for what earlier runs have left: cut, resume, report."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import tyro

from befit.cli.evaluate import draw
from befit.cli.images import cut_search, run_search
from befit.cli.language import run_elastic, run_puzzle
from befit.cli.propose import run_propose
from befit.cli.shown import quiet
from befit.errors import BadBudget, RunConflict


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
        if (run / "supernet").is_dir() or (run / "supernet.json").is_file():
            if budget is None or fit or workload is not None:
                raise BadBudget('a search run is cut by a budget alone, such as --budget "latency=1ms, params<=1M"')
            quiet()
            print("\n".join(cut_search(run, out, budget)))
            return
        from befit.cost.workload import Workload
        from befit.elastic.cut import cut as cut_member
        from befit.elastic.cut import workload_of

        quiet()
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
        quiet()
        if told.get("verb") == "elastic":
            from befit.elastic.config import ElasticConfig

            run_elastic(replace(ElasticConfig.from_json(told), out=run))
        elif told.get("verb") == "search":
            from befit.search.config import SearchConfig

            run_search(replace(SearchConfig.from_json(told), out=run))
        elif told.get("verb") == "propose":
            from befit.propose.config import ProposeConfig

            run_propose(replace(ProposeConfig.from_json(told), out=run))
        else:
            from befit.puzzle.config import PuzzleConfig

            run_puzzle(replace(PuzzleConfig.from_json(told), out=run))

    tyro.cli(resume, args=arguments, prog="befit resume")


def report_verb(arguments: Sequence[str]) -> None:
    """Draw a run's report anew from its summary."""

    def report(run: tyro.conf.Positional[Path]) -> None:
        """Draw a run's report anew from its summary.

        Args:
            run: The run directory.
        """
        if not (run / "summary.json").is_file():
            raise RunConflict(f"{run} has no summary.json; finish the run first: befit resume {run}")
        draw(run)
        print(run / "report.html")

    tyro.cli(report, args=arguments, prog="befit report")
