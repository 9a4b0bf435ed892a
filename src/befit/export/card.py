"""The model card of an exported checkpoint: what it is, what it was made of and how, what it costs, how good it is.

Every number is one that the run recorded (`summary.json`, `cut.json`); counted, measured and predicted costs have columns of
their own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from befit.arch.decoder import Attention, Block, Ffn, Linear, Mamba, NoOp, Variant
from befit.budget import human, word_of
from befit.rundir import befit_version

SHIPPED = re.compile(r"befit")
"""Names of embedded parents, which are on no hub."""

HUB = re.compile(r"[\w.-]+/[\w.-]+")
"""What a hub's name of a model looks like."""

LOCAL_DATA = re.compile(r"(--data (?='[./~]|[./~])'?)(?:(?<=')[^']*|\S*)/")
"""Where on its machine a run had its text, of which a card tells the last part."""

COUNTED = ("params", "weight_bytes", "cache_bytes", "memory_bytes")
TIMED = ("prefill_ms", "decode_ms", "latency_ms", "tokens_per_s")
WORDS = {"params": "parameters", "weight_bytes": "weights", "cache_bytes": "cache", "tokens_per_s": "throughput"}
WORDS |= {"prefill_ms": "prefill", "decode_ms": "one step of decoding"}


def base_model(summary: Mapping[str, Any] | None) -> str | None:
    """The parent's name on the hub, if that is where the run had it from."""
    name = "" if summary is None else str(summary["parent"]["name"])
    local = name.startswith((".", "/", "~")) or SHIPPED.match(name)
    return name if HUB.fullmatch(name) and not local else None


def parent_name(summary: Mapping[str, Any]) -> str:
    """The parent as a reader elsewhere may know it: of a folder on this machine only the last part."""
    name = str(summary["parent"]["name"])
    return name if base_model(summary) or SHIPPED.match(name) else name.rstrip("/").rsplit("/", 1)[-1]


def layer_rows(blocks: Sequence[Block], parent: Sequence[Block] | None) -> Iterator[str]:
    """A Markdown table, one row a layer; beside it the parent's, where it is known and has as many layers."""
    known = parent is not None and len(parent) == len(blocks)
    yield "| layer | mixer | FFN |" + (" parent's mixer | parent's FFN |" if known else "")
    yield "|--:|---|---|" + ("---|---|" if known else "")
    for i, block in enumerate(blocks):
        halves = [block.attention, block.ffn, *((parent[i].attention, parent[i].ffn) if known and parent else ())]
        yield f"| {i} | " + " | ".join(map(said, halves)) + " |"


def said(half: Variant) -> str:
    """A sub-block in words."""
    match half:
        case Attention(kv_heads=heads, window=window):
            return f"attention, {heads} KV head{'s' if heads > 1 else ''}" + (f", window {window:,}" if window else "")
        case Mamba(heads=heads):
            return f"Mamba-2, {heads} heads"
        case Ffn(width=width):
            return f"width {width:,}"
        case Linear():
            return "one matrix"
        case NoOp():
            return "none"


def puzzle_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """The sections on budget, costs, quality and making of a child of `befit puzzle`."""
    parent, child, work = summary["parent"], summary["child"], summary["workload"]
    yield "## Budget\n"
    yield f"Asked for: `{summary['budget']['text']}`, {_workload(work)}.\n"
    yield "| cost | allowed | this model | how known |\n|---|--:|--:|---|"
    for bound, held in zip(summary["budget"]["bounds"], summary["budget"]["child"], strict=True):
        cost = bound["cost"]
        yield f"| {word_of(cost)} | {bound['op']} {human(cost, bound['value'])} | {human(cost, held['value'])} | {held['kind']} |"
    yield "\n## Costs\n"
    yield "| counted | parent | this model |\n|---|--:|--:|"
    for cost in COUNTED:
        yield f"| {_word(cost)} | {human(cost, parent[cost])} | {human(cost, child[cost])} |"
    yield f"\nTimes on {summary['device']['name']}, {summary['device']['engine']}, {summary['device']['dtype']}:\n"
    yield "| time | parent, measured | this model, measured | this model, predicted |\n|---|--:|--:|--:|"
    for cost in TIMED:
        told = [parent[cost]["measured"], child[cost]["measured"], child[cost]["predicted"]]
        yield f"| {_word(cost)} | " + " | ".join(human(cost, value) for value in told) + " |"
    yield "\n## Quality\n"
    yield "On text that was held out; loss in nats a token, KL from the parent.\n"
    yield "| model | parameters | loss | KL before healing | KL |\n|---|--:|--:|--:|--:|"
    yield f"| parent | {human('params', parent['params'])} | {parent['loss']:.4f} | | 0 |"
    yield _quality("this model", child)
    for name, told in sorted(summary["baselines"].items(), key=lambda item: item[1]["kl"]):
        yield _quality(f"baseline: {name}", told)
    yield "\n## How it was made\n"
    yield (
        "Cheaper variants of every layer of the parent were distilled and scored, the best combination within the budget was "
        "solved for, and the child was distilled from the parent as a whole (the method is that of "
        f"[Puzzle](https://arxiv.org/abs/2411.19146)): {summary['heal']['tokens']:,} tokens of healing, seed "
        f"{summary['seed']}.\n"
    )
    versions = ", ".join(f"{name} {version}" for name, version in summary["device"]["versions"].items())
    command = summary["command"].split(" --out ")[0].replace(str(parent["name"]), parent_name(summary))
    command = LOCAL_DATA.sub(r"\1", command)
    yield f"```\n{command}\n```\n\nbefit {summary['befit']}, {versions}, {summary['made'][:10]}."
    if summary["notes"]:
        yield "\n" + "\n".join(f"- {note}" for note in summary["notes"])


def cut_lines(cut: Mapping[str, Any], quality: Mapping[str, float] | None) -> Iterator[str]:
    """The same of a cut of `befit elastic`. `quality`, loss and KL of the member, is known if it was trained for."""
    yield "## Budget and costs\n"
    yield f"Asked for: `{cut['budget']}`, {_workload(cut['workload'])}. All costs are counted.\n"
    yield "| cost | this model |\n|---|--:|"
    for cost in COUNTED:
        yield f"| {_word(cost)} | {human(cost, cut['cost'][cost])} |"
    yield "\n## Quality\n"
    if quality is None:
        yield "Not measured at this size; befit's report of the nested model has the sizes around it."
    else:
        yield f"On held-out text: a loss of {quality['loss']:.4f} nats a token, a KL of {quality['kl']:.4f} from the parent."
    yield "\n## How it was made\n"
    between = "one of the budgets trained for" if cut["trained"] else "between the budgets trained for"
    yield (
        f"Cut without training at {cut['share']:.4%} of one nested model's cost, {between}. All sizes of that model share one "
        "set of weights, distilled from the parent (the method is that of "
        f"[Nemotron Elastic](https://arxiv.org/abs/2511.16664)). The sha256 of this member: `{cut['hash']}`."
    )


def load_lines(name: str, *, own_code: bool, served: str) -> Iterator[str]:
    """How to load and serve it; `served` says what other engines make of it."""
    trust = ", trust_remote_code=True" if own_code else ""
    yield "## How to load it\n"
    yield (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}"{trust})\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```\n'
    )
    if own_code:
        yield (
            "The layers differ, so the class is not one of transformers': `modeling_befit.py` beside the weights has it, and "
            "`befit.load` loads it without `trust_remote_code`.\n"
        )
    yield f"{served}\n"
    yield f"Written by befit {befit_version()}."


def _word(cost: str) -> str:
    return WORDS.get(cost, word_of(cost))


def _workload(work: Mapping[str, Any]) -> str:
    return (
        f"batch {work['batch']}, {work['prompt']:,} tokens of prompt and {work['generate']:,} generated, "
        f"weights {work['weights']}, cache {work['cache']}"
    )


def _quality(name: str, told: Mapping[str, Any]) -> str:
    return (
        f"| {name} | {human('params', told['params'])} | {told['loss']:.4f} | {told['kl_before_heal']:.4f} | "
        f"{told['kl']:.4f} |"
    )
