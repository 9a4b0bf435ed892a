"""The section of docs/results.md on exported files, from benchmarks/results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from records import RESULTS, made_at, recorded, table


def export_sections(folder: Path = RESULTS) -> dict[str, str]:
    """What is recorded of exports, by heading."""
    found = recorded(folder / "exports.json")
    return {"Exported files": exports_block(found)} if found else {}


def exports_block(result: Mapping[str, Any]) -> str:
    """llama.cpp against transformers: a row for each model and number format, then the served form."""
    rows = [
        [
            case["name"],
            case["gguf_architecture"],
            dtype,
            f"{told['equal']} of {told['tokens']}",
            f"{told['max_log_prob_difference']:.2g}",
            f"{told['kl']:.2g}" if told["kl"] > 1e-5 else "below 1e-5",
            f"{told['bytes'] / 2**20:.1f} MiB",
        ]
        for case in result["cases"]
        for dtype, told in case["gguf"].items()
    ]
    titles = [
        "model",
        "architecture",
        "format",
        "greedy tokens equal",
        "largest difference of log-probabilities",
        "KL",
        "file",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    furthest = max(case["served_form_logits_difference_in_transformers"] for case in result["cases"])
    forms = ", ".join(sorted({case["served_form"] for case in result["cases"]}))
    return (
        f"`python benchmarks/exports.py` ({versions}): what llama.cpp says to a GGUF file, with a cache in fp32, against what "
        "transformers says to the checkpoint in fp32. The child has KV heads "
        f"{', '.join(str(heads or 'none') for heads in result['kv_heads'])} and FFN widths "
        f"{', '.join(str(width or 'none') for width in result['widths'])}, cut from the parent without training; the cuts have "
        f"60 % of their parent's parameters. Prompts of {result['prompt']} tokens; log-probabilities are compared over the whole "
        "vocabulary at every step.\n\n"
        + table(titles, rows)
        + f"\nThe same models in the form for vLLM ({forms}) give the checkpoint's logits in transformers to {furthest:.1g}.\n"
        + made_at(result)
    )
