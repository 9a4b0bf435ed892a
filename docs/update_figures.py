"""Write the measured block of README.md from benchmarks/results/demo.json, so that no number there is typed by hand.

The result file is the `summary.json` of a `make demo` run, unchanged. A test compares README.md with what this writes.

    cp runs/demo/summary.json benchmarks/results/demo.json
    python docs/update_figures.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULT = ROOT / "benchmarks" / "results" / "demo.json"

BEGIN = "<!-- demo:begin -->"
END = "<!-- demo:end -->"


def updated(readme: str, summary: Mapping[str, Any] | None) -> str:
    """The README with its block replaced; without a summary the block says so. Raises `ValueError` without the markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs one block between {BEGIN} and {END}")
    text = block(summary) if summary is not None else "No result is recorded yet.\n"
    return f"{before}{BEGIN}\n{text}{END}{after}"


def block(summary: Mapping[str, Any]) -> str:
    """The demo's result in Markdown: one row for each model, then how good the predictions were and where time went."""
    parent, child, device = summary["parent"], summary["child"], summary["device"]
    baselines = sorted(summary["baselines"].items(), key=lambda entry: entry[1]["kl"])
    models = {"parent": parent, "**child**": child, **dict(baselines)}
    machine = f"{device['name']} ({device['engine']}, {device['dtype']})"
    met = "met" if summary["budget"]["met"] else "not met"
    lines = [
        f"`make demo`, which asks for `{summary['budget']['text']}`, on {machine}:",
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
    """Rewrite README.md in place."""
    summary = json.loads(RESULT.read_text()) if RESULT.exists() else None
    README.write_text(updated(README.read_text(), summary))


if __name__ == "__main__":
    main()
