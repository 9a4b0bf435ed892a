"""The record of an elastic run: `summary.json` for programs, `report.html` for people, the table for the terminal."""

import platform
from collections.abc import Mapping
from dataclasses import asdict
from time import gmtime, strftime
from typing import Any, NamedTuple

import torch
import transformers

from befit.arch.decoder import Attention, Block, Ffn, Mamba
from befit.arch.member import WIDTHS, Member, whole
from befit.budget import human, word_of
from befit.elastic.job import Job
from befit.elastic.nested import FOLDER, ROUTER, Nested
from befit.elastic.record import Trained
from befit.errors import Infeasible
from befit.lm.depth import DepthRanking
from befit.lm.finished import with_evaluation
from befit.lm.rank import AxisRanking
from befit.report.page import write_report
from befit.rundir import befit_version, write_json

PANEL = 25
"""Sizes that the report's slider knows."""
POINTS = 200
"""Points of a curve at most."""


class Findings(NamedTuple):
    """What the stages of a run found."""

    job: Job
    axes: AxisRanking
    depth: Mapping[Any, DepthRanking]
    nested: Nested
    trained: Trained
    scores: Mapping[str, list[float]]
    """Axis -> KL of each option alone, untrained."""
    results: Mapping[str, Any]
    """Quality of members and baselines, as the last stage found it."""


def record(found: Findings) -> dict[str, Any]:
    """Write `summary.json` and `report.html`; return the summary."""
    job, nested = found.job, found.nested
    counted = {name: int(value) for name, value in job.costs.items()}
    members = [_member(nested, row) for row in found.results["members"]]
    summary = {
        "kind": "elastic",
        "befit": befit_version(),
        "run": str(job.config.out),
        "title": f"{job.parent.name}, nested: {job.config.budgets}",
        "made": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        "seed": job.config.seed,
        "command": f'befit elastic --parent {job.config.parent} --budgets "{job.config.budgets}" --out {job.config.out}',
        "device": _device(job),
        "workload": asdict(job.workload),
        "cost": nested.targets[0].cost,
        "parent": {"name": job.parent.name, "loss": found.results["parent"]["loss"]} | counted,
        "layers": [_kind(block) for block in job.net.shape.arch.blocks],
        "widths": {axis: getattr(whole(job.net.shape), axis) for axis in WIDTHS},
        "members": sorted(members, key=lambda row: -row["budget"]),
        "baselines": _baselines(nested, found.results),
        "ranking": _ranking(found),
        "axis_scores": {
            axis: [[option, score] for option, score in zip(nested.space.axes[axis], scores, strict=True)]
            for axis, scores in found.scores.items()
        },
        "storage": _storage(job, nested),
        "training": _training(job, nested, found.trained),
        "panel": _panel(nested, found.results),
        "stages": [vars(stage) for stage in job.run.stages],
        "notes": _notes(job, nested),
    }
    write_json(job.run.folder / "summary.json", summary)
    write_report(with_evaluation(summary, job.run.folder), job.run.folder / "report.html")
    return summary


def _member(nested: Nested, row: Mapping[str, Any]) -> dict[str, Any]:
    member, share = Member.from_json(row["member"]), row["share"]
    trained = any(target.share == share for target in nested.targets)
    quality = {"loss": row["trained"]["loss"], "kl": row["trained"]["kl"]}
    quality |= {"loss_untrained": row["untrained"]["loss"], "kl_untrained": row["untrained"]["kl"]}
    told = {"budget": share, "limit": nested.limit(share), "value": nested.cost(member), "trained": trained}
    return told | {"member": row["member"]} | _counted(nested, member) | quality


def _counted(nested: Nested, member: Member) -> dict[str, int]:
    cost = nested.counted(member)
    return {name: getattr(cost, name) for name in ("params", "weight_bytes", "cache_bytes", "memory_bytes", "flops")}


def _baselines(nested: Nested, results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in results["baselines"]:
        member = Member.from_json(row["member"])
        told = {"budget": row["share"], "value": nested.cost(member), "params": nested.counted(member).params}
        rest = {name: row[name] for name in ("loss", "kl", "trained", "tokens", "member") if name in row}
        rows.setdefault(row["name"], []).append(told | rest)
    return rows


def _ranking(found: Findings) -> dict[str, Any]:
    axes = found.axes
    by_layer = {"ffn": axes.ffn, "heads": axes.query, "mamba_heads": axes.mamba_heads}
    by_layer |= {"channels": axes.channels, "state": axes.state}
    told: dict[str, Any] = {"hidden": _sorted(axes.hidden)}
    for name, layers in by_layer.items():
        told[name] = {str(i): _sorted(tensor) for i, tensor in enumerate(layers) if len(tensor)}
    told["depth"] = {
        method: [[layer, score] for layer, score in zip(ranking.removal, ranking.steps, strict=True)]
        for method, ranking in found.depth.items()
    }
    return told


def _sorted(scores: torch.Tensor) -> list[float]:
    """At most `POINTS` values, descending, the first and the last among them."""
    flat = scores.flatten().sort(descending=True).values
    if len(flat) > POINTS:
        flat = flat[torch.linspace(0, len(flat) - 1, POINTS).round().long()]
    return [float(f"{value:.6g}") for value in flat.tolist()]


def _storage(job: Job, nested: Nested) -> dict[str, Any]:
    folder = job.run.folder / FOLDER
    files = {path.name: path.stat().st_size for path in folder.glob("*.safetensors")}
    gains = 0 if nested.gains is None else sum(4 * p.numel() for p in nested.gains.parameters())
    return {
        "nested_bytes": sum(size for name, size in files.items() if name != ROUTER),
        "router_bytes": files[ROUTER] - gains,
        "gains_bytes": gains,
        "separate": [
            {"budget": target.share, "bytes": nested.counted(nested.member(target.share)).weight_bytes}
            for target in nested.targets
        ],
    }


def _training(job: Job, nested: Nested, trained: Trained) -> dict[str, Any]:
    curves = {}
    for target in nested.targets:
        curve = trained.curve(target.share)
        stride = max(1, -(-len(curve) // POINTS))
        groups = [curve[i : i + stride] for i in range(0, len(curve), stride)]
        curves[f"{target.share:g}"] = [[group[-1][0], sum(kl for _, kl in group) / len(group)] for group in groups]
    return {
        "tokens": trained.tokens,
        "seconds": trained.seconds,
        "stages": [
            {"tokens": s.tokens, "sequence": s.sequence, "weights": list(s.for_budgets(len(nested.targets)))}
            for s in job.config.training.stages
        ],
        "curves": curves,
        "router": [[one.step, one.share, one.kl, one.cost] for one in trained.routed],
        "members_over_time": [
            {"step": one.step, "budget": one.share, "member": one.member.to_json()} for one in trained.history
        ],
    }


def _panel(nested: Nested, results: Mapping[str, Any]) -> dict[str, Any]:
    """Members from the smallest to the whole, and what a mixture of experts of the whole's size would need."""
    known = {row["share"]: row["trained"]["kl"] for row in results["members"]}
    least = nested.cost(nested.space.smallest) / nested.cost(nested.space.whole)
    shares = {1 - (1 - least) * i / (PANEL - 1) for i in range(PANEL)} | set(known)
    rows = []
    for share in sorted(shares):
        try:
            member = nested.member(share)
        except Infeasible:  # rounding at the very end of the space
            continue
        row = {"budget": share, "kl": known.get(share), "member": member.to_json()}
        rows.append(row | _counted(nested, member))
    all_of = _counted(nested, nested.space.whole)
    active = nested.counted(nested.member(nested.targets[-1].share)).params
    experts = {"name": "a mixture of experts of the same total size", "active_params": active}
    experts |= {name: all_of[name] for name in ("params", "weight_bytes", "cache_bytes", "memory_bytes")}
    return {"members": rows, "moe": experts}


def _notes(job: Job, nested: Nested) -> list[str]:
    notes = [
        "Costs are counted, exactly. Loss and KL are means over held-out text, in nats per token.",
        "Untrained: the same widths and layers cut from the sorted parent.",
    ]
    if not job.config.baselines:
        notes.append("Baselines were not trained (--baselines trains two of them): they are cuts of the sorted parent.")
    if not isinstance(nested.member(nested.targets[-1].share).ffn, int):
        notes.append("FFN widths differ from layer to layer: befit cut says which of two layouts a cut has.")
    return notes


def _device(job: Job) -> dict[str, Any]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "name": job.device.name,
        "kind": job.device.kind,
        "engine": job.device.engine,
        "dtype": job.dtype,
        "versions": versions | {"transformers": transformers.__version__},
    }


def _kind(block: Block) -> str:
    mixer = {Attention: "attention", Mamba: "mamba"}.get(type(block.attention))
    ffn = "ffn" if isinstance(block.ffn, Ffn) else None
    return "+".join(filter(None, (mixer, ffn)))


def table_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The comparison for a terminal: one row for each budget, largest first, and the baselines at the same budgets."""
    cost, rows = summary["cost"], []
    for one in summary["members"]:
        name = f"{one['budget'] * 100:.4g}%" + ("" if one["trained"] else ", not trained for")
        rows.append(
            {
                "budget": name,
                "allowed": human(cost, one["limit"]),
                word_of(cost): human(cost, one["value"]),
                "layers": str(len(one["member"]["layers"])),
                "loss": f"{one['loss']:.4f}",
                "KL": f"{one['kl']:.4f}",
                "KL untrained": f"{one['kl_untrained']:.4f}",
            }
        )
    for name, found in summary["baselines"].items():
        for one in found:
            trained = one["trained"]
            rows.append(
                {
                    "budget": f"{one['budget'] * 100:.4g}%, {name}",
                    "allowed": "",
                    word_of(cost): human(cost, one["value"]),
                    "layers": str(len(one["member"]["layers"])),
                    "loss": f"{one['loss']:.4f}",
                    "KL": f"{one['kl']:.4f}" if trained else "",
                    "KL untrained": "" if trained else f"{one['kl']:.4f}",
                }
            )
    return rows
