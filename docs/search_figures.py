"""What is recorded of `befit search`, for README.md and docs/results.md: imported by update_figures.py.

Every file may be missing, and so is its section then.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from records import RESULTS, made_at, recorded, table
from searcher_figures import DATA_SETS, nas_bench_201, nas_bench_macro

DEMO = RESULTS / "search_demo.json"
"""The `summary.json` of `befit search --budget "latency=..."` on the embedded digits, with the commit it was made at."""


def search_sections(folder: Path = RESULTS) -> dict[str, str]:
    """What is recorded of searches, by heading."""
    writers = {
        "search_demo": ("A search on a CPU", lambda told: search_block(told) + made_at(told)),
        "nas_bench_201": ("Searchers on NAS-Bench-201", nas_bench_201),
        "nas_bench_macro": ("Searchers on NAS-Bench-Macro", nas_bench_macro),
        "cell_counts": ("Counts of the cell network", counts_block),
        "zero_cost": ("Training-free scores", scores_block),
        "relax_digits": ("Searches by gradients on digits", gradients_block),
        "oneshot_truth_cell": ("Shared weights against training alone: cells", oneshot_block),
        "oneshot_truth_mobile": ("Shared weights against training alone: mobile networks", oneshot_block),
        "cell_supernet_gpu": ("Shared weights on CIFAR-10", supernet_block),
        "image_latency": ("Latency models of image networks", latency_block),
    }
    read = {name: recorded(folder / f"{name}.json") for name in writers}
    # Whoever measured on a busy machine said so in a note: such figures are not quoted.
    return {
        title: write(read[name]) for name, (title, write) in writers.items() if read[name] and "note" not in read[name]
    }


def search_block(summary: Mapping[str, Any]) -> str:
    """The result of `befit search` in Markdown: one row for each finalist, then the budget, the funnel and the time."""
    device, finalists = summary["device"], summary["finalists"]
    costs = [(kind, cost) for kind in ("counted", "predicted", "measured") for cost in finalists[0][kind]]
    target = device["target"]
    engine = "ONNX Runtime" if target["engine"] == "onnx" else f"torch {device['versions']['torch']}"
    images, pixels = summary["data"]["images"], summary["data"]["task"]
    chosen = next(one for one in finalists if one["chosen"])
    arch = ", ".join(f"{name} {option}" for name, option in chosen["arch"].items())
    titles = ["finalist", "validation", "test", *(_cost_title(kind, cost) for kind, cost in costs)]
    rows = [
        [
            "**chosen**" if one["chosen"] else "within budget" if one["within"] else "over budget",
            f"{one['validation']:.1%}",
            "" if one["test"] is None else f"{one['test']:.1%}",
            *(_cost(cost, one[kind][cost]) if cost in one[kind] else "" for kind, cost in costs),
        ]
        for one in finalists
    ]
    return (
        f"`{summary['command'].partition(' --out')[0]}`, on {device['name']} ({engine}, trained on {device['trained_on']}; "
        f"latency on {target['device']}, batches of {target['batch']}, threads: {target['threads']}). "
        f"{summary['data']['source']}: {images['train']:,} images of {pixels['height']} x {pixels['width']} pixels to train on, "
        f"{images['validation']:,} to choose by, {images['test']:,} to test.\n\n{table(titles, rows)}\n"
        f"Chosen: {'; '.join(chosen['budget']) or 'without a budget'}. {arch}.\n\n"
        f"{_funnel(summary)} {_seconds(summary['stages'])}\n"
    )


def _cost_title(kind: str, cost: str) -> str:
    name = {"latency_ms": "latency", "memory_bytes": "memory", "params": "parameters", "macs": "multiply-adds"}.get(
        cost, cost
    )
    return name if kind == "counted" else f"{name}, {kind}"


def _cost(cost: str, value: float) -> str:
    if cost.endswith("_ms"):
        return f"{value:.3g} ms"
    return f"{value / 2**10:,.0f} KiB" if cost.endswith("_bytes") else f"{value:,.0f}"


def _funnel(summary: Mapping[str, Any]) -> str:
    first, *others = summary["funnel"]
    refused = sum(row["count"] for row in others if row["stage"].startswith("refused"))
    lost = [
        f"{row['stage']} {row['count']:,}"
        for row in others
        if row.get("lost") and not row["stage"].startswith("refused")
    ]
    kept = [f"{row['stage']} {row['count']:,}" for row in others if not row.get("lost")]
    share = f"{refused:,} of {first['count']:,} proposals ({refused / max(1, first['count']):.0%})"
    return "; ".join(filter(None, [f"{share} were over the budget and never built", ", ".join(kept + lost)])) + "."


def _seconds(stages: list[Mapping[str, Any]]) -> str:
    spent = dict[str, float]()
    for stage in stages:
        spent[stage["name"]] = spent.get(stage["name"], 0.0) + stage["seconds"]
    named = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in sorted(spent.items(), key=lambda one: -one[1]))
    return f"All stages together took {sum(spent.values()):.0f} s: {named}."


def counts_block(result: Mapping[str, Any]) -> str:
    """Counted parameters and multiply-adds against the published table's."""
    same = result["cells"] - len(result["cells_counted_differently"])
    built = result["networks"] - len(result["networks_counted_differently"])
    return (
        f"`python benchmarks/cell_counts.py` ({result['machine']}, torch {result['torch']}): parameters and multiply-adds equal "
        f"those of NAS-Bench-201's table for {same:,} of {result['cells']:,} cells, and `numel` of the built network for "
        f"{built} of {result['networks']}; {result['ms_per_count']:.2f} ms for each count.\n"
    ) + made_at(result)


def scores_block(result: Mapping[str, Any]) -> str:
    """Training-free scores against published ones, and what they are worth beside a count of parameters."""
    worth = {name: told["with_accuracy"]["spearman"] for name, told in result["proxies"].items()}
    rows = [
        [
            f"`{name}`",
            *(f"{told[key]['spearman']:.3f}" for key in ("with_table", "with_accuracy", "table_with_accuracy")),
        ]
        for name in sorted(worth, key=lambda name: -worth[name])
        if (told := result["proxies"][name])
    ]
    better = [f"`{name}`" for name in worth if worth[name] > worth["params"]]
    count = f"Better than a plain count of parameters ({worth['params']:.3f}): {', '.join(better) or 'none'}."
    device, data = result["device"], DATA_SETS.get(result["images"], result["images"])
    return (
        f"`python benchmarks/zero_cost.py` ({device['name']}, {device['engine'].partition(',')[0]}): Spearman's rank "
        f"correlation over {result['cells']} cells of NAS-Bench-201 on {data}, a batch of {result['batch']}, fresh weights. "
        "The published scores are NAS-Bench-Suite-Zero's.\n\n"
        + table(["score", "with the published score", "with accuracy", "the published score with accuracy"], rows)
        + f"\n{count}\n"
        + made_at(result)
    )


def gradients_block(result: Mapping[str, Any]) -> str:
    """Cells found by gradients, each trained alone, beside random cells and the all-skip cell."""
    device, bounded = result["device"], [row for row in result["rows"] if row.get("budget")]
    rows = [
        [
            name,
            f"{told['runs']}",
            f"{told['all_skip']}",
            f"{told['mean_accuracy']:.1%}",
            f"{told['least_accuracy']:.1%}",
            f"{told['mean_params']:,}",
        ]
        for name, told in result["summary"].items()
    ]
    kept = "".join(
        f"\nUnder `{row['budget']}`, {row['method']} ends in a cell with {row['params']:,.0f} parameters and "
        f"{row['validation_accuracy']:.1%}.\n"
        for row in bounded
    )
    return (
        f"`python benchmarks/relax_digits.py` ({device['name']}, threads: {device['threads']}, "
        f"torch {result['versions']['torch']}): cells that searches end in, each then trained "
        "alone from fresh weights and judged on the validation split.\n\n"
        + table(["method", "cells", "all skips", "accuracy, mean", "worst", "parameters, mean"], rows)
        + _below_skips(result["summary"])
        + kept
        + made_at(result)
    )


def _below_skips(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """What does no better than the cell that searches by gradients are known to fall into."""
    skips = summary["all skips"]["mean_accuracy"]
    below = [name for name, told in summary.items() if told["mean_accuracy"] < skips]
    return f"\nBelow the all-skip cell ({skips:.1%}) on average: {', '.join(below) or 'none'}.\n"


def oneshot_block(result: Mapping[str, Any]) -> str:
    """How well shared weights rank sub-nets that were also trained alone."""
    asked, data, machine = result["asked"], result["data"], result["machine"]
    source = [] if data["source"] == "digits" else [f"--data {data['source']}"]
    words = source + [
        f"--{name} {value:g}" if isinstance(value, float) else f"--{name} {value}"
        for name, value in asked.items()
        if value is not None
    ]
    count = asked["subnets"]
    noise = math.sqrt(2 * (2 * count + 5) / (9 * count * (count - 1)))
    rows = [
        [name, ", ".join(f"{value:.2f}" for value in (told if isinstance(told, list) else [told]))]
        for name, told in result["tau"].items()
    ]
    return (
        f"`python benchmarks/oneshot_truth.py {' '.join(words)}` ({machine['processor']}, torch {machine['torch']}, befit "
        f"{machine['befit']}), on {data['source']} of {data['pixels']} pixels: {data['train']:,} images to train on, "
        f"{data['validation']:,} to judge by. Kendall's tau with the accuracy of {count} sub-nets trained alone, "
        f"mean of {asked['seeds']} seeds; that of unrelated rankings has a standard deviation of {noise:.2f}.\n\n"
        + table(["ranking", "tau, one for each seed"], rows)
        + f"\nAll of it took {result['seconds']:.0f} s.\n"
        + made_at(result)
    )


def supernet_block(result: Mapping[str, Any]) -> str:
    """How well a supernet trained for minutes ranks NAS-Bench-201's cells, beside cheaper rankings."""
    machine, training, groups = result["machine"], result["training"], result["rank_correlation"]
    names = list(groups["all"]["rankings"])
    rows = [[name, *(f"{told['rankings'][name]['kendall']:.2f}" for told in groups.values())] for name in names]
    own, plain = (groups["all"]["rankings"][name]["kendall"] for name in ("shared weights", "params"))
    verdict = "worse" if own < plain else "better"
    titles = ["ranking", *(f"{name} ({told['cells']:,})" for name, told in groups.items())]
    return (
        f"`python benchmarks/cell_supernet_gpu.py` ({machine['device']}, torch {machine['torch']}): a supernet of all cells, "
        f"trained for {training['seconds']:.0f} s ({training['epochs']:.0f} epochs), judges {groups['all']['cells']:,} cells "
        f"by {result['asked']['images']:,} test images. Kendall's tau with the accuracy of each cell trained alone for "
        "200 epochs, as NAS-Bench-201 has it; 12-epoch rankings are also from its table.\n\n"
        + table(titles, rows)
        + f"\nShared weights rank {verdict} than a plain count of parameters does.{_evolved(result.get('evolution'))} "
        + f"The run took {result['seconds'].get('all', 0):.0f} s, one seed.\n"
        + made_at(result)
    )


def _evolved(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    return (
        f" Evolution by them, {found['evaluations']} cells judged, ends in one of {found['c10_test200']:.2f} %; "
        f"{found['better_cells_in_table']:,} cells of the table are better, its best has {found['best_of_table']:.2f} %, "
        f"its median {found['median_of_table']:.2f} %."
    )


def latency_block(result: Mapping[str, Any]) -> str:
    """Latency models on networks that were not in the fit, beside multiply-adds alone."""
    rows = [
        [
            name,
            f"{told['fastest_ms']:.3g} to {told['slowest_ms']:.3g} ms",
            f"{told['model']['median_error']:.0%} ({told['model']['worst_error']:.0%})",
            f"{told['model']['spearman']:.2f}",
            f"{told['macs_fitted_to_the_same_networks']['median_error']:.0%}",
            f"{told['held_out']}",
        ]
        for name, told in result["runs"].items()
    ]
    titles = [
        "space, engine",
        "measured",
        "error, median (worst)",
        "Spearman",
        "error by multiply-adds alone",
        "networks",
    ]
    return (
        f"`python benchmarks/image_latency.py` ({result['machine']}, {result['device']}), batches of {result['batch']}, "
        f"{result['side']} pixels: errors on networks that were not in the fit. Multiply-adds alone get the better "
        "deal: they are fitted to these very networks.\n\n" + table(titles, rows) + made_at(result)
    )
