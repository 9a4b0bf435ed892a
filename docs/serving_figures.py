"""What benchmarks/results/vllm.json says, in Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from records import RESULTS, made_at

SERVED = RESULTS / "vllm.json"
NEAR = 0.1
"""Logits within which a gap recomputed on a CPU is one seen on a GPU."""


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
    times = {1: "once each"}.get(
        told.get("repeats", 1), f"{told.get('repeats')} times each, of which the fastest counts"
    )
    return (
        f"`python benchmarks/vllm_gpu.py` on one {device['name']} ({device['engine']}). {len(starts)} models of the shape of "
        f"Llama-3.1-8B, with made-up weights and served {times}; a model started in {min(starts):.0f} to {max(starts):.0f} s, "
        "the longest the first."
    )


def _tokens(told: Mapping[str, Any]) -> str:
    entries = {"2": told.get("tokens"), "3": told.get("tokens_flash_attention_3")}
    known = {version: entry for version, entry in entries.items() if entry}
    lines = [
        "Greedy tokens of an exported child of the embedded parent "
        f"({', '.join(next(iter(known.values()))['layers'])}), against those that transformers chooses in bf16 after "
        "the same tokens:",
        "",
        "| FlashAttention | tokens | the same | ties within 4 spacings of bf16 | other tokens |",
        "|---|--:|--:|--:|--:|",
    ]
    for version, entry in known.items():
        far = entry["differing_by_more_than_4_spacings"]
        lines.append(
            f"| {version} | {entry['tokens']:,} | {entry['same_choice']:,} | {len(entry['differing']) - far} | {far} |"
        )
    return "\n".join(lines) + _explained(told)


def _explained(told: Mapping[str, Any]) -> str:
    """Why FlashAttention 3 gave other tokens, as far as a CPU can say."""
    if "explained" not in told:
        return ""
    found, rows = told["explained"], told["explained"]["rows_computed"].values()
    seen = [e["gap"] for e in told["tokens_flash_attention_3"]["differing"] if e["gap"] > 4 * e["bf16_spacing"]]
    made = [gap for gaps in found["gaps"].values() for gap in gaps]
    near = sum(any(abs(gap - one) < NEAR for one in made) for gap in seen)
    return (
        "\n\nWith FlashAttention 3, vLLM before 0.29 plans all layers like the first "
        "([vllm#53336](https://github.com/vllm-project/vllm/pull/53336)): it reads the plan's KV heads from the model and not "
        f"from the layer. The child's last attention has fewer than its first, and so only the first {min(rows)} of a prompt's "
        f"{found['prompt']} tokens get attention there. Recomputed on a CPU, with zeros or an earlier layer's values in the rows "
        f"left out, the first tokens after the prompts are wrong by gaps that are those seen in vLLM (within {NEAR} logits) for "
        f"{near} of {len(seen)}. befit runs such versions with FlashAttention 2 on Hopper GPUs."
    )


def _models(told: Mapping[str, Any]) -> str:
    parent = max(told["fit"], key=lambda entry: entry["measured"]["weight_bytes"])["measured"]
    least = min(told["fit"], key=lambda entry: entry["measured"]["weight_bytes"])["measured"]
    models = {"the parent": parent, "the smallest child": least}
    others = {"parent_flash_attention_3": "FlashAttention 3", "parent_compiled": "compiled"}
    models |= {f"the parent, {how}": told[name] for name, how in others.items() if name in told}
    rows = [
        "| workload | model | tokens/s | every first token | each token | tokens that fit |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for number, work in enumerate(told["workloads"]):
        for name, entry in models.items():
            run = entry["workloads"][number]
            rows.append(
                f"| {work['batch']} requests of {work['prompt']} + {work['generate']} | {name} | {run['tokens_per_s']:,.0f} | "
                f"{run['first_ms']:,.0f} ms | {run['each_token_ms']:.2f} ms | {entry['kv_tokens']:,} |"
            )
    return "\n".join(rows)


def _errors(told: Mapping[str, Any]) -> str:
    names = {
        "first_ms": "every first token",
        "decode_ms": "decode",
        "tokens_per_s": "tokens/s",
        "kv_tokens": "tokens that fit",
        "weight_bytes": "bytes of weights",
    }
    rows = ["| prediction, each model by a fit to the others | median error | worst |", "|---|--:|--:|"]
    for work, found in told["leave_one_out"].items():
        entries = {"kv_tokens": found} if work == "kv_tokens" else found
        for name, error in entries.items():
            place = "" if work == "kv_tokens" else f", {work}"
            rows.append(f"| {names[name]}{place} | {error['median']:.2%} | {error['worst']:.1%} |")
    solved = told.get("errors")
    note = (
        "These were served with FlashAttention 3 and thus planned wrongly: layers with fewer KV heads than the first did only "
        "part of a prompt's attention, and layers with more may have done too much. Prefill here is not what a right engine "
        "does, the more so the longer the prompt. Each model was served once. Under the first workload, the first after a start, "
        "some took over 1 ms a step longer than others near them; under the second none did, and decode is predicted within "
        "a few per cent. To be measured again, with FlashAttention 2, the fastest of three runs, solved children "
        "and the speed-up at a budget."
    )
    if solved:
        note = f"{len(told['solved'])} solved children that were in no fit: " + "; ".join(
            f"{names.get(name, name)} median {error['median']:.1%}, worst {error['worst']:.1%}"
            for name, error in solved.items()
        )
    if solved and told.get("met"):
        last = told["met"][-1]
        note += f". A child solved for throughput>={last['wanted']}x, served {len(told['met'])} times: {last['speed_up']:.2f}x."
    return "\n".join(rows) + f"\n\n{note}"
