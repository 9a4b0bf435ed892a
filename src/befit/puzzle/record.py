"""The record of a run: `summary.json` for programs, `report.html` for people, the table for the terminal.

Counted numbers stand plain; times are told twice, `predicted` and `measured`, and never mixed.
"""

import platform
from collections.abc import Mapping
from dataclasses import replace
from time import gmtime, strftime
from typing import Any, NamedTuple

import torch
import transformers

from befit.arch.decoder import DecoderArch, NoOp
from befit.budget import Budget, human, word_of
from befit.command import command_line
from befit.cost.passes import prefill_note
from befit.lm.finished import with_evaluation
from befit.lm.rank import Ranking
from befit.puzzle.choose import TIMED, Chosen, front
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.heal import HealResult
from befit.puzzle.job import Job, workload_of
from befit.puzzle.library import Library
from befit.puzzle.prices import Prices
from befit.puzzle.score import Scores
from befit.report.page import write_report
from befit.rundir import befit_version, read_json, write_json

STEPS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.45, 1.6)
"""Multiples of the budget at which the quality-cost front is solved."""


class Findings(NamedTuple):
    """What the stages of a run found."""

    job: Job
    library: Library
    ranking: Ranking
    scores: Scores
    prices: Mapping[int, Prices]
    chosen: Chosen
    archs: Mapping[str, DecoderArch]
    """The child and the baselines by name."""
    results: Mapping[str, Any]
    """Quality and times of parent, child and baselines, as the last stage wrote them."""
    healing: HealResult
    """The course of the child's loss."""


def record(found: Findings) -> dict[str, Any]:
    """Write `summary.json`, `table.json` (what the solver saw) and `report.html`; return the summary."""
    job, library, ranking, scores, chosen = found.job, found.library, found.ranking, found.scores, found.chosen
    own, base, results = found.prices[chosen.batch], found.prices[job.workload.batch], found.results["models"]
    models = {name: _model(own, arch, results[name]) for name, arch in found.archs.items()}
    child = models.pop("child") | {"kl_sum": chosen.kl_sum}
    beside = found.prices[found.results["parent_batch"]]
    parent = _model(beside, job.space.shape.arch, results["parent"]) | {"name": job.parent.name}
    budget = job.budget.resolve(_measured(base, job.space.shape.arch, found.results["parent_at_base"]))
    summary = {
        "befit": befit_version(),
        "title": f"{job.parent.name}, {job.budget}",
        "made": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime()),
        "seed": job.config.seed,
        "command": command_line("puzzle", job.config.to_json(), PuzzleConfig().to_json(), always=("budget",)),
        "device": _device(job),
        "workload": _workload(job, chosen.batch),
        "budget": _budget(job, budget, _measured(own, chosen.arch, results["child"])),
        "parent": parent,
        "child": child,
        "baselines": models,
        "scores": {"layers": _score_rows(job, scores)},
        "ranking": {"block_influence": list(ranking.influence)},
        "front": _front(job, own, scores, chosen),
        "accuracy": _accuracy(own),
        "local": read_json(library.folder / "errors.json"),
        "funnel": _funnel(job, scores, chosen),
        "heal": _healing(found.healing),
        "stages": [vars(stage) for stage in job.run.stages],
        "notes": _notes(job, chosen, results, beside.workload.batch),
    }
    write_json(job.run.folder / "table.json", own.table(scores).to_json())
    write_json(job.run.folder / "parent_costs.json", base.arch(job.space.shape.arch))
    write_json(job.run.folder / "summary.json", summary)
    write_report(with_evaluation(summary, job.run.folder), job.run.folder / "report.html")
    return summary


def _model(prices: Prices, arch: DecoderArch, told: Mapping[str, Any]) -> dict[str, Any]:
    costs = prices.arch(arch)
    counted = {name: int(costs[name]) for name in ("params", "weight_bytes", "cache_bytes", "memory_bytes", "flops")}
    measured = _measured(prices, arch, told)
    times = {name: {"predicted": costs[name], "measured": measured[name]} for name in TIMED}
    quality = {name: told[name] for name in ("loss", "kl", "loss_before_heal", "kl_before_heal")}
    return {"arch": arch.to_json()} | counted | times | quality


def _measured(prices: Prices, arch: DecoderArch, told: Mapping[str, float]) -> dict[str, float]:
    """All costs, times as they were measured."""
    latency = told["prefill_ms"] + prices.workload.generate * told["decode_ms"]
    times = {"prefill_ms": told["prefill_ms"], "decode_ms": told["decode_ms"], "latency_ms": latency}
    return prices.arch(arch) | times | {"tokens_per_s": prices.tokens_per_s(latency)}


def _device(job: Job) -> dict[str, Any]:
    return {
        "name": job.device.name,
        "kind": job.device.kind,
        "engine": job.device.engine,
        "dtype": job.dtype,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
    }


def _workload(job: Job, batch: int) -> dict[str, Any]:
    return vars(job.workload) | {"batch": batch}


def _budget(job: Job, budget: Budget, child: Mapping[str, float]) -> dict[str, Any]:
    rows, room = [], budget.headroom(child)
    for bound, given in zip(budget.bounds, job.budget.bounds, strict=True):
        text = str(given).split(given.op, 1)[-1]
        rows.append({"cost": bound.cost, "op": bound.op, "value": bound.value, "given": text})
    held = [
        {
            "cost": bound.cost,
            "value": child[bound.cost],
            "kind": "measured" if bound.cost in TIMED else "counted",
            "headroom": room[bound.cost],
        }
        for bound in budget.bounds
    ]
    return {"text": str(job.budget), "bounds": rows, "met": budget.met(child), "child": held}


def _score_rows(job: Job, scores: Scores) -> list[dict[str, Any]]:
    """For each layer, the score of every variant alone, by variant name; none for a sub-block that the parent lacks."""
    rows = []
    for layer, own in enumerate(job.space.shape.arch.blocks):
        attention = {v.name: type(own)(attention=v, ffn=own.ffn) for v in job.space.attention_variants(layer)}
        ffn = {v.name: type(own)(attention=own.attention, ffn=v) for v in job.space.ffn_variants(layer)}
        told = {
            kind: {} if half == NoOp() else {name: scores.block(layer, block) for name, block in found.items()}
            for kind, half, found in (("attention", own.attention, attention), ("ffn", own.ffn, ffn))
        }
        rows.append(told | {"interaction": scores.interaction[layer]})
    return rows


def _front(job: Job, prices: Prices, scores: Scores, chosen: Chosen) -> list[dict[str, Any]]:
    """Solved budgets around this one, and the child itself."""
    shown = ("latency_ms", "memory_bytes", "params")
    resolved = job.budget.resolve(prices.arch(job.space.shape.arch))
    points = []
    for point in front(prices, scores, resolved, STEPS):
        costs = {name: point["costs"][name] for name in shown}
        points.append(
            {"budget": point["budget"], "kl_sum": point["kl_sum"], "kl": None, "costs": costs, "kind": "solved"}
        )
    for other in _earlier(job, chosen):
        costs = {name: prices.arch(other.arch)[name] for name in shown}
        points.append(
            {"budget": str(other.budget), "kl_sum": other.kl_sum, "kl": other.kl, "costs": costs, "kind": "solved"}
        )
    own = {name: prices.arch(chosen.arch)[name] for name in shown}
    return [
        *(p | {"chosen": False} for p in points),
        {
            "budget": str(job.budget),
            "kl_sum": chosen.kl_sum,
            "kl": chosen.kl,
            "costs": own,
            "kind": "child",
            "chosen": True,
        },
    ]


def _earlier(job: Job, chosen: Chosen) -> list[Chosen]:
    """Children that this run directory chose for other budgets, at the same batch."""
    found = [Chosen.from_json(read_json(path)) for path in sorted(job.run.folder.glob("stages/choose-*/chosen.json"))]
    return [other for other in found if other.arch != chosen.arch and other.batch == chosen.batch]


def _accuracy(prices: Prices) -> dict[str, Any]:
    """Predicted against measured times of the whole models behind the cost table."""
    table, work = prices.latency, prices.workload
    told: dict[str, Any] = {"fit": [], "held_out": []}
    errors = []
    for name, runs in (("fit", table.fitted_on), ("held_out", table.held_out)):
        for number, run in enumerate(runs):
            guess = table.predict(run.arch)
            pairs = {
                "prefill_ms": (guess.prefill_ms, run.prefill_ms),
                "decode_ms": (guess.decode_ms, run.decode_ms),
                "latency_ms": (guess.latency_ms(work), run.measured.latency_ms(work)),
            }
            for quantity, (predicted, measured) in pairs.items():
                entry = {"name": f"model {number + 1}", "quantity": quantity}
                told[name].append(entry | {"predicted": predicted, "measured": measured})
            if name == "held_out":
                predicted, measured = pairs["latency_ms"]
                errors.append(abs(predicted / measured - 1))
    errors.sort()
    middle = (errors[(len(errors) - 1) // 2] + errors[len(errors) // 2]) / 2 if errors else None
    return told | {"median_error": middle, "worst_error": errors[-1] if errors else None}


def _healing(result: HealResult) -> dict[str, Any]:
    """The loss at up to 200 evenly spaced steps."""
    stride = max(1, len(result.losses) // 200)
    steps = list(range(0, len(result.losses), stride))
    return {"tokens": result.tokens, "steps": [s + 1 for s in steps], "loss": [result.losses[s] for s in steps]}


def _funnel(job: Job, scores: Scores, chosen: Chosen) -> list[dict[str, Any]]:
    space = job.space
    variants = sum(len(space.attention_variants(i)) + len(space.ffn_variants(i)) - 2 for i in range(space.shape.layers))
    return [
        {"stage": "architectures in the space", "count": float(space.size)},
        {"stage": "sub-block variants built", "count": variants},
        {"stage": "replacements scored", "count": sum(map(len, scores.layers))},
        {"stage": "solutions of the solver", "count": chosen.solved},
        {"stage": "children compared by true KL", "count": len(chosen.tried)},
        {"stage": "healed", "count": 1},
    ]


def _notes(job: Job, chosen: Chosen, results: Mapping[str, Any], parent_batch: int) -> list[str]:
    """What a careful reader should know about these numbers."""
    notes = []
    if chosen.kl_sum > 0 and chosen.kl > 0:
        notes.append(
            f"On the text that chose the child, the scores of its layers add up to {chosen.kl_sum:.3g}; its true KL there, "
            f"before healing, is {chosen.kl:.3g}. The sum ranks candidates, it does not predict."
        )
    if (rounds := job.config.rounds) > 1:
        notes.append(
            f"Chosen and healed in {rounds} rounds, which shared the tokens of healing. Scores and front are those of the first; "
            "the child before healing is the last one, made of blocks that earlier rounds have healed."
        )
    worse = [name for name, told in results.items() if name != "parent" and told["kl"] == told["kl_before_heal"]]
    if worse:
        notes.append(
            f"Healing made {', '.join(sorted(worse))} worse on the text that chose the child, so what was assembled is kept: "
            "give a lower --heal.lr, or more --heal.tokens."
        )
    if job.config.baselines:
        absent = sorted({"uniform", "depth", "greedy", "random"} - set(results))
        if absent:
            notes.append(f"No architecture of this kind meets the budget: {', '.join(absent)}.")
    asked = workload_of(job.config, job.dtype).batch
    if asked != job.workload.batch:
        notes.append(
            f"Of {asked} requests at once the parent has room for {job.workload.batch} within the budget: what is relative "
            "to it means the parent at that batch."
        )
    if parent_batch != chosen.batch:
        notes.append(
            f"The parent has no room for {chosen.batch} requests at once: its memory and times are those of {parent_batch}, "
            f"all others' those of {chosen.batch}. Tokens a second can be compared."
        )
    if (job.workload.weights, job.workload.cache) != (job.dtype, job.dtype):
        notes.append(
            f"Memory is counted with {job.workload.formats}; times were measured in {job.dtype}, which this engine computes in."
        )
    if job.config.engine != "vllm" and (note := prefill_note(replace(job.workload, batch=chosen.batch))):
        notes.append(note)
    if job.device.kind == "cpu":
        notes.append(
            "Times were measured on a CPU in plain PyTorch; another engine or device needs its own measurement."
        )
    return notes


def table_rows(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    """The comparison for a terminal: one row for parent, child and each baseline, best KL first among the latter."""
    models = {"parent": summary["parent"], "child": summary["child"]}
    models |= dict(sorted(summary["baselines"].items(), key=lambda item: item[1]["kl"]))
    rows = []
    for name, told in models.items():
        row = {"model": name}
        row |= {word: human(cost, told[cost]) for word, cost in (("params", "params"), ("memory", "memory_bytes"))}
        for word, cost in (("prefill", "prefill_ms"), ("decode", "decode_ms"), ("latency", "latency_ms")):
            row[f"{word}, measured"] = human(cost, told[cost]["measured"])
        row |= {"loss": f"{told['loss']:.4f}", "KL": f"{told['kl']:.4f}" if name != "parent" else "0"}
        row["KL before healing"] = f"{told['kl_before_heal']:.4f}" if name != "parent" else "0"
        rows.append(row)
    return rows


def price_rows(prices: Prices) -> list[dict[str, str]]:
    """The measured cost table for a terminal: one row for each distinct sub-block."""
    table, work = prices.latency, prices.workload
    kinds = {"fixed": {"embedding and head": table.base}, "attention": table.attention, "FFN": table.ffn}
    rows = []
    for kind, times in kinds.items():
        for name, time in times.items():
            told = {"prefill": time.prefill_ms, "decode": time.decode_ms, "latency": time.latency_ms(work)}
            rows.append({"part": kind, "variant": name} | {w: human("latency_ms", ms) for w, ms in told.items()})
    return rows


def price_line(prices: Prices) -> str:
    """How far predictions from the table are off on whole models that were not fitted."""
    found = _accuracy(prices)
    if found["median_error"] is None:
        return "No whole model was kept out of the fit, so the error of predictions is unknown."
    count, note = len(prices.latency.held_out), prices.latency.prefill_note
    return (
        f"Times in {prices.latency.dtype}. {note}{' ' * bool(note)}"
        f"Predicted latency of {count} whole models that were not in the fit: off by {found['median_error']:.1%} "
        f"at the median, {found['worst_error']:.1%} at worst."
    )


def budget_lines(summary: Mapping[str, Any]) -> list[str]:
    """One sentence for each bound: what the child takes, what it may take, counted or measured."""
    lines = []
    for bound, held in zip(summary["budget"]["bounds"], summary["budget"]["child"], strict=True):
        kept = "kept" if held["headroom"] >= 0 else "BROKEN"
        value, limit = human(bound["cost"], held["value"]), human(bound["cost"], bound["value"])
        lines.append(
            f"{word_of(bound['cost'])} {bound['op']} {bound['given']}: {value} of {limit}, {held['kind']}, {kept}"
        )
    return lines
