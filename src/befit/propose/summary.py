"""The record of a run of proposals: `summary.json` for programs, `report.html` for people, the table for the terminal."""

import platform
import textwrap
from collections.abc import Mapping
from pathlib import Path
from time import gmtime, strftime
from typing import Any

import torch

from befit.command import command_line
from befit.cost.device import this_device
from befit.propose.config import ProposeConfig
from befit.propose.diversity import alike
from befit.propose.finish import Best
from befit.propose.funnel import arms, leaders, lost, plain
from befit.propose.job import ProposeJob
from befit.propose.judge import commonest
from befit.propose.lemur_files import write_lemur
from befit.propose.statistics import compare
from befit.report.page import write_report
from befit.rundir import befit_version, replacing_folder, write_json

SHOWN = ("attempted", "returned", "parsed", "built", "new-graph", "trained", "above-chance")
"""Stages in the terminal's table."""


def record(job: ProposeJob, best: Mapping[str, Best]) -> dict[str, Any]:
    """Write `summary.json` and `report.html`; return the summary."""
    config = job.config
    rows = [row for lane in job.lanes for row in lane.rows]
    chances = {name: commonest(images.validation.labels) for name, images in job.images.items()}
    bounds = config.bounds.bounds if config.bounds is not None else ()
    summary = {
        "kind": "proposals",
        "befit": befit_version(),
        "run": str(config.out),
        "title": f"{config.arms or _proposer(config)} for {', '.join(job.images)}: {config.budget or 'no budget'}",
        "made": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        "command": command_line("propose", config.to_json(), ProposeConfig().to_json()),
        "device": {
            "name": this_device(job.training.device).name,
            "trained_on": job.training.device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        },
        "config": config.to_json(),
        "budget": config.budget,
        "data": [_data(job, name) for name in job.images],
        "bounds": [{"cost": bound.cost, "op": bound.op, "value": bound.value} for bound in bounds],
        "arms": arms(rows, chances),
        "comparison": compare(rows, chance=chances) if config.arms.strip() else None,
        "lost": lost(rows),
        "leaders": leaders(rows),
        "similarity": alike(rows),
        "rows": [plain(row) for row in rows],
        "best": [_best(name, one) for name, one in best.items()],
        "calls": vars(job.attempts.spent()),
        "stages": [vars(stage) for stage in job.run.stages],
        "notes": [*(note for images in job.images.values() for note in images.notes), *job.notes],
    }
    if config.export_lemur and best:
        with replacing_folder(job.run.folder / "lemur") as folder:
            write_lemur(rows, folder, epochs=config.train.epochs, prm=job.training.prm)
    write_json(job.run.folder / "summary.json", summary)
    write_report(summary, job.run.folder / "report.html")
    return summary


def _proposer(config: ProposeConfig) -> str:
    """Who proposes, where there are no arms."""
    return config.llm if config.model is None else f"{config.model} at {config.llm}"


def _data(job: ProposeJob, name: str) -> dict[str, Any]:
    images = job.images[name]
    return {
        "name": name,
        "source": images.source,
        "classes": list(images.classes),
        "images": {"train": len(images.train), "validation": len(images.validation), "test": len(images.test)},
        "task": images.task.to_json(),
        "chance": commonest(images.validation.labels),
    }


def _best(dataset: str, one: Best) -> dict[str, Any]:
    row = one.row
    return {
        "dataset": dataset,
        "arm": row.arm,
        "seed": row.seed,
        "number": row.number,
        "params": row.params,
        "flops": row.flops,
        "proposed": row.accuracy,
        "validation": one.validation,
        "test": one.test,
        "seconds": one.seconds,
        "source": row.source,
        "folder": str(one.folder),
    }


def table_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The funnel of each arm, dataset and seed as the terminal shows it."""
    return [
        {
            "": " ".join(part for part in (one["arm"], one["dataset"], f"seed {one['seed']}") if part),
            **{stage: str(one["funnel"][stage]) for stage in SHOWN},
            "best": "" if one["best"] is None else f"{one['best']:.1%}",
            "tokens": f"{one['spent']['prompt_tokens'] + one['spent']['completion_tokens']:,}",
            "seconds": f"{sum(one['spent'][f'{part}_seconds'] for part in ('call', 'gate', 'train')):.0f}",
        }
        for one in summary["arms"]
    ]


def lines(summary: Mapping[str, Any]) -> list[str]:
    """What the terminal says below the table."""
    told = list[str]()
    for one in summary["best"]:
        size = "" if one["params"] is None else f", {one['params']:,} parameters"
        told.append(f"best    {one['folder']}: test {one['test']:.2%}, validation {one['validation']:.2%}{size}")
    if not summary["best"]:
        told.append("best    none: no network could be trained")
    for place, one in enumerate(summary["lost"][:3]):
        said = textwrap.shorten(f"{one['count']} {one['reason']}: {one['said']}", 100, placeholder=" …")
        told.append(f"{'' if place else 'lost':8}{said}")
    return [*told, f"report  {Path(summary['run']) / 'report.html'}"]
