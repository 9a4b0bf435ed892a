"""Write the measured block of README.md and docs/results.md from benchmarks/results, so that no number is typed by hand.

`demo.json` is the `summary.json` of a `make demo` run with the commit it was made at; the other files are what the scripts in
benchmarks/ write. A test compares both pages with what this writes.

    cp runs/demo/summary.json benchmarks/results/demo.json
    python docs/update_figures.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
RESULT = RESULTS / "demo.json"
PAGE = ROOT / "docs" / "results.md"
TRAINING = ROOT / "src" / "befit" / "assets" / "parent" / "training.json"

BEGIN = "<!-- demo:begin -->"
END = "<!-- demo:end -->"


def updated(readme: str, summary: Mapping[str, Any] | None) -> str:
    """The README with its block replaced; without a summary the block says so. Raises `ValueError` without the markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs one block between {BEGIN} and {END}")
    text = f"{block(summary)}\n{parent_line()}\n" if summary is not None else "No result is recorded yet.\n"
    return f"{before}{BEGIN}\n{text}{END}{after}"


def parent_line() -> str:
    """The embedded parent's size and its loss on documentation it was not trained on."""
    told = json.loads(TRAINING.read_text())
    return (
        f"The embedded parent has {told['parameters'] / 1e6:.2f} M parameters and a loss of "
        f"{told['held_out_loss_per_token']:.3f} nats a token ({told['held_out_loss_per_byte']:.3f} a byte) on "
        f"{told['held_out_tokens']:,} tokens of held-out documentation, 512 at a time."
    )


def page() -> str:
    """docs/results.md: every recorded result, with the script that makes it again."""
    gpu, local, reuse, solver = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("puzzle_gpu", "local_distillation", "score_reuse", "solve_scale")
    )
    free, distilled = (local["kl_before_heal"][name] for name in ("training-free", "distilled"))
    pairs = "; ".join(f"{a:.3f} → {b:.3f}" for a, b in zip(free, distilled, strict=True))
    slowest = max(max(row["seconds"]) for row in solver["rows"])
    gap = max(row["largest_gap"] for row in solver["rows"])
    fast = reuse["times_as_fast"]
    sections = {
        "The demo on a CPU": block(json.loads(RESULT.read_text())),
        "The whole pipeline on a GPU": block(gpu, "`python benchmarks/puzzle_gpu.py`")
        + f"\nWorkload: {gpu['workload']['batch']} requests of {gpu['workload']['prompt']} prompt and "
        + f"{gpu['workload']['generate']} generated tokens. Made at commit {gpu['commit']}.\n",
        "Local distillation": f"`python benchmarks/local_distillation.py` ({local['device']}, {local['seeds']} seeds, budget "
        + f"`{local['budget']}`): KL of the child before healing, training-free library → distilled library: {pairs}; "
        + f"{local['mean_ratio']['distilled']:.2f} of it on average. Made at commit {local['commit']}.\n",
        "Scoring with reuse": f"`python benchmarks/score_reuse.py` ({reuse['device']['name']}, threads: "
        + f"{reuse['device']['threads']}): {fast['naive']:.1f} times as fast as running parent and child whole for each of "
        + f"{reuse['replacements']} replacements, {fast['cached']:.1f} times as fast as running the child whole beside kept "
        + f"outputs of the parent; largest difference {max(reuse['largest_difference_nats'].values()):.1e} nats.\n",
        "Solver": f"`python benchmarks/solve_scale.py`: {solver['layers']} layers of {solver['options']} options under two "
        + f"bounds, proven optimal (largest gap {gap:g}), {slowest:.1f} s for the slowest of all tables.\n",
    }
    head = (
        "# Results\n\nWritten by `docs/update_figures.py` from `benchmarks/results`; every section names its script.\n"
    )
    return head + "".join(f"\n## {title}\n\n{text}" for title, text in sections.items())


def block(summary: Mapping[str, Any], command: str = "`make demo`") -> str:
    """A run's result in Markdown: one row for each model, then how good the predictions were and where time went."""
    parent, child, device = summary["parent"], summary["child"], summary["device"]
    baselines = sorted(summary["baselines"].items(), key=lambda entry: entry[1]["kl"])
    models = {"parent": parent, "**child**": child, **dict(baselines)}
    machine = f"{device['name']} ({device['engine']}, {device['dtype']})"
    met = "met" if summary["budget"]["met"] else "not met"
    lines = [
        f"{command}, which asks for `{summary['budget']['text']}`, on {machine}:",
        "",
        "| | parameters | memory | latency, measured | loss | KL before healing | KL to the parent |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(_row(name, model, parent) for name, model in models.items()),
        "",
        f"The budget is {met} as measured. {_prediction(summary)} {_seconds(summary)}",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, model: Mapping[str, Any], parent: Mapping[str, Any]) -> str:
    latency, memory = model["latency_ms"]["measured"], model["memory_bytes"]
    cells = [
        name,
        f"{model['params'] / 1e6:.2f} M",
        f"{memory / 2**20:.2f} MiB ({memory / parent['memory_bytes']:.0%})",
        f"{latency:.1f} ms ({latency / parent['latency_ms']['measured']:.0%})",
        f"{model['loss']:.3f}",
        *(["", "0"] if model is parent else [f"{model['kl_before_heal']:.3f}", f"{model['kl']:.3f}"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _prediction(summary: Mapping[str, Any]) -> str:
    child, accuracy = summary["child"], summary["accuracy"]
    error = accuracy["median_error"]
    said = f"The child's latency was predicted as {child['latency_ms']['predicted']:.1f} ms before it was built"
    return (
        f"{said}; over models that were not in the fit, the median error is {error:.0%}."
        if error is not None
        else f"{said}."
    )


def _seconds(summary: Mapping[str, Any]) -> str:
    stages = summary["stages"]
    longest = sorted(stages, key=lambda stage: -stage["seconds"])[:4]
    named = ", ".join(f"{stage['name']} {stage['seconds']:.0f} s" for stage in longest)
    return f"The run took {sum(stage['seconds'] for stage in stages):.0f} s, most of it in {named}."


def main() -> None:
    """Rewrite README.md and docs/results.md in place."""
    summary = json.loads(RESULT.read_text()) if RESULT.exists() else None
    README.write_text(updated(README.read_text(), summary))
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
