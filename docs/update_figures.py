"""Write the measured blocks of README.md and docs/results.md from benchmarks/results, so that no number is typed by hand.

`demo.json`, `elastic_demo.json` and `search_demo.json` are the `summary.json` of a `make demo` run, of one of `befit elastic`
and of one of `befit search`, with the commit they were made at; the other files are what the scripts in benchmarks/ write. Those
on nested models and on searches may be missing, and so is their section then. A test compares both pages with what this writes.

    cp runs/demo/summary.json benchmarks/results/demo.json
    cp runs/elastic/summary.json benchmarks/results/elastic_demo.json
    cp runs/search/summary.json benchmarks/results/search_demo.json
    python docs/update_figures.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation_figures import evaluation_sections
from export_figures import export_sections
from propose_figures import propose_sections
from records import RESULTS, made_at, recorded
from scale_figures import scale_sections
from search_figures import DEMO as SEARCH
from search_figures import search_block, search_sections
from serving_figures import served_block, serving_sections

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULT = RESULTS / "demo.json"
ELASTIC = RESULTS / "elastic_demo.json"
PAGE = ROOT / "docs" / "results.md"
TRAINING = ROOT / "src" / "befit" / "assets" / "parent" / "training.json"

NOTHING = "No result is recorded yet.\n"


def updated(
    readme: str,
    summary: Mapping[str, Any] | None,
    elastic: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
) -> str:
    """The README with its blocks replaced; without a summary a block says so. Raises `ValueError` without the markers."""
    blocks = {
        "demo": NOTHING if summary is None else f"{block(summary)}\n{parent_line()}\n",
        "elastic": NOTHING if elastic is None else nested_block(elastic),
        "search": NOTHING if search is None else search_block(search),
        "served": served_block(),
    }
    for name, text in blocks.items():
        readme = _replaced(readme, name, text)
    return readme


def _replaced(readme: str, name: str, text: str) -> str:
    begin_mark, end_mark = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, begin, rest = readme.partition(begin_mark)
    _, end, after = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"README.md needs one block between {begin_mark} and {end_mark}")
    return f"{before}{begin}\n{text}{end}{after}"


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
    sections |= nested_sections() | search_sections() | export_sections() | serving_sections()
    sections |= propose_sections() | evaluation_sections() | scale_sections()
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
    child, parent = summary["child"]["latency_ms"], summary["parent"]["latency_ms"]
    error = summary["accuracy"]["median_error"]
    told, found = (child[kind] / parent[kind] for kind in ("predicted", "measured"))
    said = (
        f"The child's latency was predicted as {told:.0%} of the parent's ({child['predicted']:.1f} of "
        f"{parent['predicted']:.1f} ms) before it was built, and is {found:.0%} as measured"
    )
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


def nested_sections() -> dict[str, str]:
    """What is recorded of nested models, by heading."""
    found = dict[str, str]()
    if (demo := recorded(ELASTIC)) is not None:
        found["A nested model on a CPU"] = nested_block(demo) + _untrained(demo) + made_at(demo)
    if (gpu := recorded(RESULTS / "elastic_gpu.json")) is not None:
        found["A nested model on a GPU"] = _pretrained(gpu) + nested_block(gpu) + _untrained(gpu) + made_at(gpu)
    if (laws := recorded(RESULTS / "elastic_exactness.json")) is not None:
        found["Nested models are exact"] = exactness_block(laws)
    steps = sorted(RESULTS.glob("elastic_steps*.json"))
    if steps:
        found["A step by size: slices against masks"] = "\n".join(steps_block(recorded(path)) for path in steps)
    return found


def nested_block(summary: Mapping[str, Any]) -> str:
    """The result of `befit elastic` in Markdown: one row for each budget that was trained for, then training and storage."""
    device, parent, training = summary["device"], summary["parent"], summary["training"]
    rivals = {
        title: kl
        for name, title in (("uniform", "KL, uniform ratios"), ("separate", "KL, that size alone"))
        if (kl := {row["budget"]: row["kl"] for row in summary["baselines"].get(name, []) if row["trained"]})
    }
    titles = ["budget", "parameters", "memory", "layers", "loss", "KL untrained", "**KL**", *rivals]
    command = summary["command"].partition(" --out")[0]
    others = [f"{row['budget']:.1%}: {row['kl']:.3f}" for row in summary["members"] if not row["trained"]]
    unseen = f" KL at budgets that were not trained for: {', '.join(others)}." if others else ""
    lines = [
        f"`{command}`, on {device['name']} ({device['engine']}; written in {device['dtype']}):",
        "",
        "| " + " | ".join(titles) + " |",
        "|---" + "|--:" * (len(titles) - 1) + "|",
        *(_nested_row(row, parent, list(rivals.values())) for row in summary["members"] if row["trained"]),
        "",
        f"The parent's loss is {parent['loss']:.3f}. Training took {training['seconds']:.0f} s for {training['tokens']:,} tokens"
        f"{', as many for each of the other two' if rivals else ''}; all stages "
        f"together took {sum(stage['seconds'] for stage in summary['stages']):.0f} s.{unseen} {_storage(summary['storage'])}",
    ]
    return "\n".join(lines) + "\n"


def _nested_row(row: Mapping[str, Any], parent: Mapping[str, Any], rivals: list[dict[float, float]]) -> str:
    memory = row["memory_bytes"]
    cells = [
        f"{row['budget'] * 100:.4g}%",
        f"{row['params'] / 1e6:.2f} M ({row['params'] / parent['params']:.1%})",
        f"{memory / 2**20:.2f} MiB ({memory / parent['memory_bytes']:.0%})",
        str(len(row["member"]["layers"])),
        f"{row['loss']:.3f}",
        f"{row['kl_untrained']:.3f}",
        f"{row['kl']:.3f}",
        *(f"{kl[row['budget']]:.3f}" if row["budget"] in kl else "" for kl in rivals),
    ]
    return "| " + " | ".join(cells) + " |"


def _storage(storage: Mapping[str, Any]) -> str:
    """The nested file against one file for each budget."""
    nested, extra = storage["nested_bytes"], storage["router_bytes"] + storage["gains_bytes"]
    apart = sum(one["bytes"] for one in storage["separate"])
    return (
        f"The nested checkpoint has {nested / 2**20:.2f} MiB, router and gains {extra / 2**10:.0f} KiB ({extra / nested:.2%}); "
        f"{len(storage['separate'])} separate checkpoints would have {apart / 2**20:.2f} MiB."
    )


def _untrained(summary: Mapping[str, Any]) -> str:
    """KL of the choices of the router and of the baselines, all cut from the sorted parent without training."""
    found = {"the router's": {row["budget"]: row["kl_untrained"] for row in summary["members"]}}
    for name, rows in summary["baselines"].items():
        if own := {row["budget"]: row["kl"] for row in rows if not row["trained"]}:
            found[name] = own
    budgets = [row["budget"] for row in summary["members"] if row["trained"] and row["budget"] < 1]
    lines = [
        "",
        "KL of choices of widths and layers, cut from the sorted parent without training:",
        "",
        "| choice | " + " | ".join(f"{budget * 100:.4g}%" for budget in budgets) + " |",
        "|---" + "|--:" * len(budgets) + "|",
        *(
            f"| {name} | " + " | ".join(f"{kl[budget]:.3f}" if budget in kl else "" for budget in budgets) + " |"
            for name, kl in found.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _pretrained(summary: Mapping[str, Any]) -> str:
    told = summary["pretraining"]
    return (
        f"`python benchmarks/elastic_gpu.py` ({summary['seconds']:.0f} s in all) first trains a parent of "
        f"{told['parameters'] / 1e6:.1f} M parameters on {told['tokens']:,} tokens, {told['tokens_per_s']:,.0f} a second, "
        f"to a loss of {told['loss']:.3f} nats a token on its own held-out text, 512 at a time, then makes it nested with "
        f"{summary['tokens_per_s']:,.0f} tokens a second.\n\n"
    )


LAWS = {
    "whole": "the nested forward of the whole parent = the parent's class",
    "sorted": "the parent with sorted weights = the parent",
    "sorted_fp64": "the same in fp64, by the nested forward",
    "member": "the nested forward on views = the class of the member",
    "decode": "the same, some tokens at a time with a cache",
    "gates": "0 and 1 over full width = the slice",
    "gates_fp64": "the same in fp64",
    "reload": "the extracted model, saved and loaded = the nested forward",
    "nested": "tensors of a smaller member that are no prefix of a larger one's",
    "params": "counted parameters − `numel` of the class",
    "fp32": "for comparison: the class in fp32 − in fp64, what rounding alone does",
}
"""What the names in elastic_exactness.json stand for, in the order of the table."""


def exactness_block(result: Mapping[str, Any]) -> str:
    """The laws of nested models with their largest differences."""
    versions, names = result["versions"], [*LAWS, *(name for name in result["laws"] if name not in LAWS)]
    lines = [
        f"`python benchmarks/elastic_exactness.py` ({result['device']['name']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}): random networks of all families, with 1, 2, 4 or 8 SSM groups, and random members of "
        "them, all axes and depth at once. Largest differences of logits (for 0 and 1: of the last hidden states), "
        "relative where values exceed 1; fp32 unless it says otherwise.",
        "",
        "| law | cases | median | largest |",
        "|---|--:|--:|--:|",
        *(
            f"| {LAWS.get(name, name)} | {law['cases']:,} | {law['median']:.2g} | {law['largest']:.2g} |"
            for name in names
            if (law := result["laws"].get(name))
        ),
    ]
    return "\n".join(lines) + "\n" + made_at(result)


def steps_block(result: Mapping[str, Any]) -> str:
    """Time and memory of a training step by size: slices, slices that keep all layers, masks over full width."""
    sizes: dict[tuple[str, bool, float], dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        sizes.setdefault((row["shape"], row["compiled"], row["wanted_share"]), {})[row["way"]] = row
    ways = [way for way in ("slice", "widths", "layers", "mask") if any(way in rows for rows in sizes.values())]
    titles = {
        "slice": "slice",
        "widths": "slice, all layers kept",
        "layers": "slice, only layers dropped",
        "mask": "mask",
    }
    lines = [
        f"`python benchmarks/elastic_steps.py` ({result['device']}, threads: {result['threads']}, torch "
        f"{result['versions']['torch']}, {result['precision']}). A step is forward, backward and the optimizer, "
        "as a share of the full slice's; memory is the most that it holds beyond weights, gradients and moments.",
        "",
        "| network | parameters | " + " | ".join(titles[way] for way in ways) + " |",
        "|---|--:" + "|--:" * len(ways) + "|",
    ]
    for (shape, compiled, share), rows in sizes.items():
        cells = [_step(rows[way]) if way in rows else "" for way in ways]
        name = f"{shape}, compiled" if compiled else shape
        lines.append(f"| {name} | {share:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + _halves(sizes) + _steps_made_at(result)


def _steps_made_at(result: Mapping[str, Any]) -> str:
    """The commit, or one for each shape where they were measured apart."""
    apart = ", ".join(f"{shape} at commit {commit[:7]}" for shape, commit in result.get("commits", {}).items())
    return f"\nMade: {apart}.\n" if apart else made_at(result)


def _halves(sizes: Mapping[tuple[str, bool, float], Mapping[str, Mapping[str, Any]]]) -> str:
    """What the parts of the 50 % slice's step are of the full slice's; the optimizer's is the same, over all weights."""
    found = list[str]()
    for (shape, compiled, share), rows in sizes.items():
        whole = sizes.get((shape, compiled, 1.0), {})
        if share == 0.5 and "slice" in rows and "slice" in whole:
            half, full = rows["slice"], whole["slice"]
            ahead, back = (half[f"{name}_ms"] / full[f"{name}_ms"] for name in ("forward", "backward"))
            both = sum(half[f"{name}_ms"] for name in ("forward", "backward"))
            both /= sum(full[f"{name}_ms"] for name in ("forward", "backward"))
            name = f"{shape}, compiled" if compiled else shape
            found.append(f"{name}: forward {ahead:.2f}, backward {back:.2f}, both {both:.2f}")
    if not found:
        return ""
    return f"\nThe 50% slice without the optimizer, as shares of the full slice's: {'; '.join(found)}.\n"


def _step(row: Mapping[str, Any]) -> str:
    other = abs(row["params_share"] - row["wanted_share"]) > 0.015
    size = f"{row['params_share']:.0%}: " if other else ""
    return f"{size}{row['step_ms']:.1f} ms ({row['step_share']:.2f}), {row['peak_bytes'] / 2**20:.0f} MiB"


def main() -> None:
    """Rewrite README.md and docs/results.md in place."""
    README.write_text(updated(README.read_text(), recorded(RESULT), recorded(ELASTIC), recorded(SEARCH)))
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
