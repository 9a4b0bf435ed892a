"""The record of a search: `summary.json` for programs, `report.html` for people, the table for the terminal."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import gmtime, strftime
from typing import Any

import torch

from befit.arch.cell import EDGES, NAMES
from befit.arch.space import Arch
from befit.budget import human, word_of
from befit.command import command_line
from befit.cost.device import this_device
from befit.report.page import write_report
from befit.rundir import befit_version, write_json
from befit.search.config import SearchConfig
from befit.search.finish import BEST, Finalist
from befit.search.job import SearchJob
from befit.search.learned import effects, front_of, growth
from befit.search.trial import COST_OF, TrialRecord, funnel

ELSEWHERE = ("storage", "study", "workers", "ray")
"""Settings that say where trials ran, or that hold the password of a database; they are not part of the command shown."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a search found, whichever way it looked."""

    records: Sequence[TrialRecord]
    """Trials, or judgements by shared weights; empty for a search by gradients."""
    finalists: Sequence[Finalist]
    """The best first, tested."""
    best: Finalist
    transfer: Mapping[str, Any] | None = None
    """How archs do on a second dataset."""
    judged: str = "accuracy"
    """What a trial's value is, in words."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What only this kind of search knows."""
    refused: int | None = None
    """Proposals over the budget that were dropped; none if the trials know."""


def record(job: SearchJob, found: Findings) -> dict[str, Any]:
    """Write `summary.json` and `report.html`; return the summary."""
    config, data = job.config, job.data
    space = job.blueprint.space
    axes = _axes(job)
    rows = [_row(one) for one in found.records]
    summary = {
        "kind": "search",
        "befit": befit_version(),
        "run": str(config.out),
        "title": f"{config.searcher} in {job.blueprint.name}: {job.budget or 'no budget'}",
        "made": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        "seed": config.seed,
        "command": command_line(
            "search", job.config.to_json(), SearchConfig().to_json(), always=("space", "searcher"), never=ELSEWHERE
        ),
        "device": _device(job),
        "searcher": config.searcher,
        "judged": found.judged,
        "data": {
            "source": data.source,
            "classes": list(data.classes),
            "images": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
            "task": data.task.to_json(),
        },
        "space": {
            "name": job.blueprint.name,
            "options": dict(job.options),
            "choices": {name: list(choice.options) for name, choice in space.choices.items()},
            "size": space.size if space.legal is None else None,
        },
        "budget": None if job.budget is None else str(job.budget),
        "bounds": [] if job.budget is None else [{"cost": b.cost, "value": b.value} for b in job.budget.bounds],
        "objectives": [part.strip() for part in config.objectives.split(",")],
        "axes": axes,
        "trials": rows,
        "front": _front(found.records, axes),
        "hypervolume": growth([one.value for one in found.records], [one.costs for one in found.records], axes),
        "funnel": _funnel(found),
        "learned": effects(found.records),
        "finalists": [_finalist(job, one, found.best) for one in found.finalists],
        "drawing": drawing(job, found.best.arch),
        "transfer": found.transfer,
        "extra": dict(found.extra),
        "stages": [vars(stage) for stage in job.run.stages],
        "notes": [*data.notes, *_notes(job)],
    }
    write_json(job.run.folder / "summary.json", summary)
    write_report(summary, job.run.folder / "report.html")
    return summary


def _axes(job: SearchJob) -> list[str]:
    """Costs that the front is drawn against: further objectives, else bounded costs, else parameters."""
    named = [COST_OF[part.strip()] for part in job.config.objectives.split(",")[1:]]
    bounded = [] if job.budget is None else [bound.cost for bound in job.budget.bounds]
    return named or bounded[:1] or ["params"]


def _row(one: TrialRecord) -> dict[str, Any]:
    told = asdict(one)
    del told["owner"], told["details"], told["rungs"], told["values"]
    return {**told, "costs": one.costs}


def _front(records: Sequence[TrialRecord], axes: Sequence[str]) -> list[int]:
    """Numbers of the trials that no other beats in accuracy and in every cost of the axes."""
    scored = [one for one in records if one.value is not None and all(axis in one.costs for axis in axes)]
    points = [[one.value or 0.0, *(-one.costs[axis] for axis in axes)] for one in scored]
    return [scored[place].number for place in front_of(points)]


def _funnel(found: Findings) -> list[dict[str, Any]]:
    """Stages in order, with how many proposals reached each."""
    if not found.records:
        return [{"stage": "trained fully", "count": len(found.finalists)}]
    told = funnel(found.records)
    refused = told.refused if found.refused is None else found.refused
    failed = {f"failed: {reason}": count for reason, count in told.failed.items()}
    stages = {
        "proposed": told.asked + refused,
        "within budget by count and prediction": told.asked,
        "evaluated": told.built or told.scored,
        "scored": told.scored,
        "trained fully": len(found.finalists),
    }
    lost = {"refused before building": refused, **failed, "stopped early": told.pruned}
    return [{"stage": name, "count": count} for name, count in stages.items()] + [
        {"stage": name, "count": count, "lost": True} for name, count in lost.items() if count
    ]


def _finalist(job: SearchJob, one: Finalist, best: Finalist) -> dict[str, Any]:
    return {
        "arch": one.arch.to_json(),
        "validation": one.validation,
        "test": one.test,
        "counted": dict(one.priced.counted),
        "predicted": dict(one.priced.predicted),
        "measured": dict(one.priced.measured),
        "within": one.within,
        "chosen": one is best,
        "seconds": one.seconds,
        "epochs": one.epochs,
        "budget": [] if job.budget is None else job.budget.explain(one.priced.costs),
    }


def drawing(job: SearchJob, arch: Arch) -> dict[str, Any]:
    """What there is to draw of an architecture: a cell's graph, the rows of stages, or the plain choices."""
    if job.blueprint.name == "cell":
        edges = [[source, to, arch[name]] for (source, to), name in zip(EDGES, NAMES, strict=True)]
        return {"kind": "cell", "edges": edges}
    if job.blueprint.name == "mobile":
        from befit.arch.mobile import shape_of

        return {"kind": "mobile", "shape": asdict(shape_of(arch))}
    return {"kind": "choices", "choices": arch.to_json()}


def _device(job: SearchJob) -> dict[str, Any]:
    name = this_device(job.device).name
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"name": name, "trained_on": job.device, "target": job.target.to_json(), "versions": versions}


def _notes(job: SearchJob) -> list[str]:
    if job.config.latency_table is not None:
        return [f"Latencies come from {job.config.latency_table}, measured elsewhere; none was measured here."]
    return []


def table_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The finalists as the terminal shows them."""
    rows = list[dict[str, str]]()
    for one in summary["finalists"]:
        row = {
            "": "best" if one["chosen"] else "" if one["within"] else "over budget",
            "validation": f"{one['validation']:.2%}",
            "test": "" if one["test"] is None else f"{one['test']:.2%}",
        }
        row |= {word_of(cost): human(cost, value) for cost, value in one["counted"].items()}
        row |= {f"{word_of(cost)}, measured": human(cost, value) for cost, value in one["measured"].items()}
        rows.append(row)
    return rows


def lines(summary: Mapping[str, Any]) -> list[str]:
    """What the terminal says below the table."""
    chosen = next(one for one in summary["finalists"] if one["chosen"])
    out = Path(summary["run"])
    told = [*chosen["budget"], f"arch    {chosen['arch']}"]
    refused = next((row["count"] for row in summary["funnel"] if row["stage"].startswith("refused")), 0)
    if refused and (proposed := summary["funnel"][0]["count"]):
        told.append(
            f"budget  {refused:,} of {proposed:,} proposals were over it and never built ({refused / proposed:.0%})"
        )
    if (then := summary["transfer"]) and then["kendall"] is not None:
        told.append(f"order on {then['data']}: Kendall tau {then['kendall']:.2f} over {len(then['rows'])} archs")
    return [*told, f"best    {out / BEST}", f"report  {out / 'report.html'}"]
