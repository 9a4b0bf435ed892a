"""The sections of docs/results.md on `befit propose`, from benchmarks/results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from records import RESULTS, made_at, recorded, table

MEASURES = {
    "mean": "mean accuracy",
    "mean_late": "mean of the second half",
    "best": "best",
    "best_again": "best, trained again with other seeds",
    "unique_share": "new and trained, of all proposals",
}
"""What is compared, by its name in the record."""


def propose_sections(folder: Path = RESULTS) -> dict[str, str]:
    """What is recorded of proposals, by heading."""
    parts = {
        "fingerprint": fingerprint_block,
        "gate": gate_block,
        "learn_grammar": learn_block,
        "sandbox": sandbox_block,
        "sandbox_gpu": gpu_block,
    }
    titles = (
        "Fingerprints of proposals",
        "The gate against real training",
        "learn against the grammar",
        "The sandbox",
        "The sandbox with a GPU",
    )
    found = {name: recorded(folder / f"{name}.json") for name in parts}
    return {
        title: write(found[name])
        for title, (name, write) in zip(titles, parts.items(), strict=True)
        if found[name] is not None
    }


def fingerprint_block(result: Mapping[str, Any]) -> str:
    """Pairs that must match or differ, collisions, and time."""
    pairs, made, times = result["table"], result["generated"], result["microseconds"]
    return (
        f"`python benchmarks/fingerprint.py` ({result['machine']}, torch {result['torch']}): of {pairs['pairs']} pairs of files "
        f"that must match or must differ, {len(pairs['wrong'])} are judged wrongly. {made['networks']:,} generated networks: "
        f"{made['distinct_by_tree']:,} trees and {made['distinct_by_graph']:,} graphs; {made['trees_with_several_graphs']} trees "
        f"stand for several graphs. A file takes {times['whitespace'] / 1e3:.1f} ms (whitespace), "
        f"{times['tree_and_recipe'] / 1e3:.1f} ms (tree and recipe) and {times['graph'] / 1e3:.0f} ms (graph); LEMUR's MD5 "
        f"{times['lemur_md5'] / 1e3:.2f} ms.\n" + made_at(result)
    )


def gate_block(result: Mapping[str, Any]) -> str:
    """What the gate says of broken and whole networks, against training them; milliseconds of its steps."""
    counts = result["table"]
    rows = [
        [name, *(f"{counts.get(f'{name}, {truth}', 0):,}" for truth in ("trains", "does not train"))]
        for name in ("let through", "refused")
    ]
    return (
        f"`python benchmarks/gate.py`: {sum(counts.values()):,} generated networks, about half of them broken in one of "
        f"{len(result['by_mutation']) - 1} ways, and what really training them says.\n\n"
        + table(["", "trains", "does not train"], rows)
        + _gate_times(result)
        + made_at(result)
    )


def _gate_times(result: Mapping[str, Any]) -> str:
    times = result["milliseconds"]
    shown = [[name, *(f"{one[key]:.1f}" for key in ("median", "ninth_tenth"))] for name, one in times.items()]
    return "\nMilliseconds a candidate:\n\n" + table(["step", "median", "90 %"], shown)


def learn_block(result: Mapping[str, Any]) -> str:
    """The comparison of the two proposers, and what became of the decoder's proposals."""
    setting, runs = result["setting"], result["runs"]
    rows = []
    told = {one["measure"]: one for one in result["comparison"]}
    for name, title in MEASURES.items():
        one = told[name]
        low, high = (100 * end for end in one["difference_95"])
        rows.append(
            [
                title,
                f"{one['grammar']:.1%}",
                f"{one['learn']:.1%}",
                f"{low:+.1f} to {high:+.1f}",
                f"{one['p_holm']:.2g}",
            ]
        )
    made = [part for run in runs for part in run["generations"] if part["by"] == "decoder"]
    count = sum(part["proposals"] for part in made)
    shares = {name: sum(part[name] * part["proposals"] for part in made) / count for name in ("parsed", "built", "new")}
    seeds = len({run["seed"] for run in runs})
    return (
        f"`python benchmarks/learn_grammar.py` ({_machine(result)}): digits, {seeds} seeds, {setting['evaluations']} trained "
        f"networks of at most {setting['params']:,} parameters for each arm and seed, {setting['epochs']} epochs each; Welch's "
        f"test, Holm's correction over the {len(MEASURES)} measures.\n\n"
        + table(["", "grammar", "learn", "difference, points, 95 %", "p, corrected"], rows)
        + f"\nOf {count} proposals of the decoder {shares['parsed']:.0%} were read as Python, {shares['built']:.0%} built or "
        f"repeated one that did, {shares['new']:.0%} were new. Settings were chosen among {len(result['tuning']['variants'])} "
        f"on seeds {', '.join(map(str, result['tuning']['seeds']))}.\n" + made_at(result)
    )


def sandbox_block(result: Mapping[str, Any]) -> str:
    """What held, and what running a candidate costs."""
    held = [one for one in result["protections"] if one["enforced"]]
    build, nothing = result["build"], result["nothing"]
    return (
        f"`python benchmarks/sandbox.py` ({result['machine']['cpu']}, Linux {result['machine']['kernel'].split('-')[0]}): "
        f"{len(held)} of {len(result['protections'])} protections hold ({', '.join(result['mechanisms'])}). Building a network "
        f"takes {build['median_ms']:.0f} ms at the median ({build['ninth_tenth_ms']:.0f} ms for nine in ten), of which "
        f"{nothing['median_ms']:.0f} ms are the process itself.\n" + made_at(result)
    )


def gpu_block(result: Mapping[str, Any]) -> str:
    """What held with a GPU let in, and what training a candidate there costs, beside the CPU."""
    machine, found = result["machine"], result["protections"]
    rows = []
    for title, name in (("digits", "digits"), ("made-up images, 3 x 32 x 32", "larger")):
        for device in ("gpu", "cpu"):
            one = result[f"{device}_{name}"]
            whole = min(run["whole_seconds"] for run in one["runs"])
            fitted = min(run["seconds"] for run in one["runs"])
            rows.append(
                [
                    f"{one['images']:,} {title}, {device.upper()}",
                    str(one["epochs"]),
                    f"{whole:.1f} s",
                    f"{fitted:.1f} s",
                    f"{fitted / one['epochs']:.2f} s",
                ]
            )
    return (
        f"`python benchmarks/sandbox_gpu.py` (one {machine['gpu']}, {machine['cores']} cores, torch {machine['torch']}): "
        f"{len(found['all']) - len(found['not_enforced'])} of {len(found['all'])} protections hold with the GPU let in "
        f"({', '.join(found['mechanisms'])}). Python and CUDA are up in {result['whole']['start_seconds']:.1f} s. "
        "One candidate:\n\n"
        + table(["training images", "epochs", "in all", "training", "an epoch"], rows)
        + "\nTraining on the GPU contains the loading of its libraries and the choice of their algorithms.\n"
        + made_at(result)
    )


def _machine(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    return ", ".join(
        filter(None, [f"{machine['cores']} cores", machine.get("gpu"), f"torch {result['versions']['torch']}"])
    )
