"""What benchmarks/results/vllm.json says, in Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from records import RESULTS, made_at

SERVED = RESULTS / "vllm.json"


def serving_sections() -> dict[str, str]:
    """Sections on vLLM; none before its result is recorded."""
    if not SERVED.exists():
        return {}
    told = json.loads(SERVED.read_text())
    return {
        "vLLM as the measuring device": f"{_where(told)}\n\n{_tokens(told)}\n\n{_models(told)}\n\n{_errors(told)}\n"
        + made_at(told)
    }


def _where(told: Mapping[str, Any]) -> str:
    device, starts = told["device"], [entry["measured"]["start_s"] for entry in told["fit"]]
    return (
        f"`python benchmarks/vllm_gpu.py` on one {device['name']} ({device['engine']}). {len(starts)} models of the shape of "
        f"Llama-3.1-8B, with made-up weights and served once each; a model started in {min(starts):.0f} to {max(starts):.0f} s, "
        "the longest the first."
    )


def _tokens(told: Mapping[str, Any]) -> str:
    tokens = told["tokens"]
    far = tokens["differing_by_more_than_4_spacings"]
    return (
        f"Greedy tokens of an exported child of the embedded parent ({', '.join(tokens['layers'])}): of {tokens['tokens']:,} "
        f"tokens, {tokens['same_choice']:,} are what transformers chooses after the same tokens in bf16; "
        f"{len(tokens['differing']) - far} of the others are ties within 4 spacings of bf16, **{far} are not** and are "
        "unexplained so far."
    )


def _models(told: Mapping[str, Any]) -> str:
    parent = max(told["fit"], key=lambda entry: entry["measured"]["weight_bytes"])
    rows = [
        "| workload, of the parent | tokens/s | every first token | each token | tokens that fit |",
        "|---|--:|--:|--:|--:|",
    ]
    for work, run in zip(told["workloads"], parent["measured"]["workloads"], strict=True):
        rows.append(
            f"| {work['batch']} requests of {work['prompt']} + {work['generate']} | {run['tokens_per_s']:,.0f} | "
            f"{run['first_ms']:,.0f} ms | {run['each_token_ms']:.2f} ms | {parent['measured']['kv_tokens']:,} |"
        )
    return "\n".join(rows)


def _errors(told: Mapping[str, Any]) -> str:
    names = {
        "first_ms": "every first token",
        "decode_ms": "decode",
        "tokens_per_s": "tokens/s",
        "kv_tokens": "tokens that fit",
    }
    rows = ["| prediction, each model by a fit to the others | median error | worst |", "|---|--:|--:|"]
    for work, found in told["leave_one_out"].items():
        entries = {"kv_tokens": found} if work == "kv_tokens" else found
        for name, error in entries.items():
            place = "" if work == "kv_tokens" else f", {work}"
            rows.append(f"| {names[name]}{place} | {error['median']:.2%} | {error['worst']:.1%} |")
    solved = told.get("errors")
    note = (
        "Memory, and the time to the first token at the first workload, are predicted well. Decode is not, on this machine: a "
        "step of one of the smallest models took 5.2 ms where one of a larger model took 3.7 ms. The GPU's work cannot say why; "
        "that its steps wait for vLLM's scheduling on the CPU is likely and not shown. Solved children, and the speed-up at a "
        "budget, have not been measured yet."
    )
    if solved:
        note = "Ten solved children: " + "; ".join(
            f"{names.get(name, name)} median {error['median']:.1%}, worst {error['worst']:.1%}"
            for name, error in solved.items()
        )
    return "\n".join(rows) + f"\n\n{note}"
