"""Write the measured block of README.md from benchmarks/results/demo.json, so that no number there is typed by hand.

The result file is `{"command": str, "machine": str, "summary": {...}}`, the summary being the run's own summary.json (only
`parent`, `child`, `baselines`, `budget.text` and `stages` are read). A test compares README.md with what this prints.

    python docs/update_figures.py
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULT = ROOT / "benchmarks" / "results" / "demo.json"

BEGIN = "<!-- demo:begin -->"
END = "<!-- demo:end -->"


def updated(readme: str, result: Mapping[str, Any] | None) -> str:
    """The README with its block replaced; without a result the block says so. Raises `ValueError` without the markers."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs one block between {BEGIN} and {END}")
    text = block(result) if result is not None else "No result is recorded yet.\n"
    return f"{before}{BEGIN}\n{text}{END}{after}"


def block(result: Mapping[str, Any]) -> str:
    """The demo's result in Markdown: one row for each model, then how well time was predicted, then where time went."""
    summary = result["summary"]
    parent, child = summary["parent"], summary["child"]
    models = {"parent": parent, "**child**": child, **summary.get("baselines", {})}
    lines = [
        f"`{result['command']}` with the budget `{summary['budget']['text']}`, on {result['machine']}:",
        "",
        "| | parameters | weights and cache | prefill, measured | decode per token, measured | loss | KL to the parent |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(_row(name, model, parent) for name, model in models.items()),
        "",
        *_notes(child),
        _seconds(summary["stages"]),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, model: Mapping[str, Any], parent: Mapping[str, Any]) -> str:
    memory = model["weight_bytes"] + model["cache_bytes"]
    whole = parent["weight_bytes"] + parent["cache_bytes"]
    cells = [
        name,
        f"{model['params'] / 1e6:.2f} M",
        f"{memory / 2**20:.2f} MiB ({memory / whole:.0%})",
        _time(model, parent, "prefill_ms"),
        _time(model, parent, "decode_ms"),
        f"{model['loss']:.3f}",
        "0" if model is parent else f"{model['kl']:.4f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _time(model: Mapping[str, Any], parent: Mapping[str, Any], quantity: str) -> str:
    value, whole = model[quantity]["measured"], parent[quantity]["measured"]
    return f"{value:.2f} ms ({value / whole:.0%})"


def _notes(child: Mapping[str, Any]) -> Iterator[str]:
    pairs = [(name, child[f"{name}_ms"]) for name in ("prefill", "decode")]
    said = [f"{name} {times['predicted']:.2f} ms" for name, times in pairs if times.get("predicted") is not None]
    if said:
        yield f"Predicted for the child before it was built: {', '.join(said)}."
    if child.get("kl_before_heal") is not None and child.get("kl_sum") is not None:
        yield (
            f"The scores of its variants add up to {child['kl_sum']:.4f}; its KL was {child['kl_before_heal']:.4f} "
            "before healing."
        )


def _seconds(stages: list[Mapping[str, Any]]) -> str:
    named = ", ".join(f"{stage['name']} {stage['seconds']:.0f}" for stage in stages)
    return f"{sum(stage['seconds'] for stage in stages):.0f} seconds in all: {named}."


def main() -> None:
    """Rewrite README.md in place."""
    result = json.loads(RESULT.read_text()) if RESULT.exists() else None
    README.write_text(updated(README.read_text(), result))


if __name__ == "__main__":
    main()
