"""What benchmarks/results/vllm.json says, in Markdown."""

import json
from collections.abc import Mapping
from typing import Any

from records import RESULTS, made_at, table

NAMES = {
    "first_ms": "every first token",
    "decode_ms": "decode",
    "tokens_per_s": "tokens/s",
    "kv_tokens": "tokens that fit",
    "weight_bytes": "bytes of weights",
}
SERVED = RESULTS / "vllm.json"
NEAR = 0.1
"""Logits within which a gap recomputed on a CPU is one seen on a GPU."""


def serving_sections() -> dict[str, str]:
    """Sections on vLLM; none before its result is recorded."""
    if not SERVED.exists():
        return {}
    told = json.loads(SERVED.read_text())
    return {
        "vLLM as the measuring device": "\n\n".join(
            write(told) for write in (_where, _tokens, _models, _errors, _solved)
        )
        + "\n"
        + made_at(told)
    }


def served_block() -> str:
    """The parent, the child that met its budget, and how good the predictions were: what the README says of vLLM."""
    told = json.loads(SERVED.read_text())
    parent = max(told["fit"], key=lambda entry: entry["measured"]["weight_bytes"])["measured"]
    child = told["met"][-1]
    rows = []
    models = {"parent": parent, "parent, FlashAttention 3": told["parent_flash_attention_3"]}
    for name, entry in (models | {"**child**": child["measured"]}).items():
        run = entry["workloads"][0]
        rows.append(
            [
                name,
                f"{entry['weight_bytes'] / 1e9:.1f} GB",
                f"{run['tokens_per_s']:,.0f} ({run['tokens_per_s'] / parent['workloads'][0]['tokens_per_s']:.2f}x)",
                f"{run['first_ms']:,.0f} ms",
                f"{run['each_token_ms']:.2f} ms",
                f"{entry['kv_tokens'] / 1e6:.2f} M",
            ]
        )
    work, speed, first = told["workloads"][0], told["errors"]["tokens_per_s"], told["errors"]["first_ms"]
    return (
        f"`throughput>={child['wanted']}x` for the shape of Llama-3.1-8B (made-up weights: this is about speed), "
        f"{work['batch']} requests of {work['prompt']} + {work['generate']} tokens, in {_engine(told)} with "
        f"FlashAttention 2 (why: [serving](docs/serving.md#attention-where-kv-heads-differ)) on one {told['device']['name']}:\n\n"
        + table(["", "weights", "tokens/s", "every first token", "each token", "tokens that fit"], rows)
        + f"\n{len(told['solved'])} solved children that were in no fit, two workloads: tokens/s predicted within "
        f"{speed['worst']:.1%} ({speed['median']:.1%} at the median), first tokens within {first['worst']:.1%} "
        f"({first['median']:.1%}).\n"
    )


def _engine(told: Mapping[str, Any]) -> str:
    """vLLM and its version, without the settings."""
    return str(told["device"]["engine"]).partition(",")[0]


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
    rows = ["| prediction, each model by a fit to the others | median error | worst |", "|---|--:|--:|"]
    for work, found in told["leave_one_out"].items():
        entries = {"kv_tokens": found} if work == "kv_tokens" else found
        for name, error in entries.items():
            place = "" if work == "kv_tokens" else f", {work}"
            rows.append(f"| {NAMES[name]}{place} | {error['median']:.2%} | {error['worst']:.1%} |")
    return "\n".join(rows)


def _solved(told: Mapping[str, Any]) -> str:
    """The solved children one by one, what all of them say, and the child that met its budget."""
    works = [f"{work['batch']} x ({work['prompt']} + {work['generate']})" for work in told["workloads"]]
    rows = []
    for child in told["solved"]:
        pairs = list(zip(child["predicted"]["workloads"], child["measured"]["workloads"], strict=True))
        cells = [
            f"{one[name]:,.0f} / {other[name]:,.0f}" for name in ("tokens_per_s", "first_ms") for one, other in pairs
        ]
        rows.append([f"`{child['budget']}`, {works[child['solved_at']]}", *cells])
    titles = [f"{name}, {work}" for name in ("tokens/s", "first token, ms") for work in works]
    errors = "; ".join(
        f"{NAMES[name]} median {error['median']:.1%}, worst {error['worst']:.1%}"
        for name, error in told["errors"].items()
    )
    ups = ", then ".join(f"{one['speed_up']:.3f}x" for one in told["met"])
    return (
        f"{len(told['solved'])} solved children that were in no fit, predicted / measured:\n\n"
        + table(["budget", *titles], rows)
        + f"\nErrors of these predictions: {errors}. A child for `throughput>={told['met'][-1]['wanted']}x`, asked "
        f"for anew until it is that fast as measured: {ups}."
    )
