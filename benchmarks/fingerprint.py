"""How sure and how fast the fingerprint is: the table of pairs, generated networks, and microseconds a file.

    python benchmarks/fingerprint.py --nets 2000 --json benchmarks/results/fingerprint.json

Networks are drawn from the grammar, each in a style of its own, and a share of them twice in other styles. Two networks with
one tree key must have one graph; the two styles of a network must have one tree key.
"""

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # also where befit is not installed
from befit.propose.fingerprint import keys_of
from befit.propose.grammar import draw
from befit.propose.graph import Tracing
from befit.propose.inspection import inspected
from befit.propose.layout import layout_key, lemur_md5
from befit.propose.network import PRM, Maker
from befit.propose.rendering import Style, render
from befit.propose.tree import write
from propose.pairs import PAIRS, Pair

IN, OUT = (2, 3, 32, 32), (10,)
RUNGS = ("whitespace", "tree", "graph", "recipe")
TWICE = 0.25
"""Share of networks that are written twice."""


def said(pair: Pair) -> str:
    one, two = keys_of(pair.a), keys_of(pair.b)
    graphs = [graph(pair.a), graph(pair.b)]
    same = (one.whitespace == two.whitespace, one.tree == two.tree, graphs[0] == graphs[1], one.recipe == two.recipe)
    return "".join("=" if equal else "!" for equal in same)


ARGUMENTS = {"in_shape": IN, "out_shape": OUT, "prm": PRM}


def built(source: str) -> Mapping[str, Any]:
    """What the sandbox tells of a file; these are befit's own, and run here."""
    return inspected(Maker(source, ARGUMENTS), IN, OUT[0], recipe=False)


def traced(source: str) -> str:
    """The graph's key alone, without the backward pass and the checks that the gate makes of the same network."""
    tracing = Tracing(torch.device("meta"))
    network = tracing.build(Maker(source, ARGUMENTS))
    for training in (True, False):
        tracing.forward(network, IN, training=training)
    return tracing.key


def graph(source: str) -> str:
    try:
        return built(source)["graph"]
    except (ImportError, AttributeError, RuntimeError) as error:
        return f"none: {error}"


def table() -> dict[str, Any]:
    wrong = {pair.name: (pair.says, got) for pair in PAIRS if (got := said(pair)) != pair.says}
    must_match = {rung: sum(pair.says[place] == "=" for pair in PAIRS) for place, rung in enumerate(RUNGS)}
    return {"pairs": len(PAIRS), "wrong": wrong, "pairs_that_must_match": must_match}


def networks(count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    random = Random(seed)
    graphs_of_tree, trees_of_graph = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    texts, md5, sources, unlike, params = set[str](), set[str](), list[str](), 0, 0
    while len(sources) < count:
        plan = draw(random)
        styles = 1 + (random.random() < TWICE)
        written = [render(plan, Style.draw(random)) for _ in range(styles)][: count - len(sources)]
        found = [(keys_of(source), built(source)) for source in written]
        unlike += len({(keys.tree, keys.recipe, made["graph"]) for keys, made in found}) > 1
        params += any(made["params"] != plan.params(IN, OUT[0]) for _, made in found)
        for keys, made in found:
            graphs_of_tree[keys.tree].add(made["graph"])
            trees_of_graph[made["graph"]].add(keys.tree)
            texts.add(keys.whitespace)
            md5.add(keys.lemur)
        sources += written
    return {
        "networks": len(sources),
        "distinct_by_lemur_md5": len(md5),
        "distinct_by_whitespace": len(texts),
        "distinct_by_tree": len(graphs_of_tree),
        "distinct_by_graph": len(trees_of_graph),
        "trees_with_several_graphs": sum(len(found) > 1 for found in graphs_of_tree.values()),
        "graphs_with_several_trees": sum(len(found) > 1 for found in trees_of_graph.values()),
        "plans_whose_styles_differ": unlike,
        "plans_with_other_parameters_than_counted": params,
    }, sources


def microseconds(run: Callable[[str], object], sources: list[str]) -> float:
    """Median over files of the CPU time of one call, the better of two."""
    times = list[float]()
    for source in sources:
        best = float("inf")
        for _ in range(2):
            start = time.process_time_ns()
            run(source)
            best = min(best, (time.process_time_ns() - start) / 1e3)
        times.append(best)
    return round(statistics.median(times), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=2000, help="how many to generate")
    parser.add_argument("--timed", type=int, default=100, help="how many of them to time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the result")
    told = parser.parse_args()
    torch.set_num_threads(1)
    pairs = table()
    generated, sources = networks(told.nets, told.seed)
    timed = sources[: told.timed]
    result = {
        "table": pairs,
        "generated": generated,
        "microseconds": {
            "lemur_md5": microseconds(lemur_md5, timed),
            "whitespace": microseconds(layout_key, timed),
            "tree_and_recipe": microseconds(write, timed),
            "graph": microseconds(traced, timed),
        },
        "timed": {"files": len(timed), "median_lines": statistics.median(one.count("\n") for one in timed)},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {_processor()}",
    }
    if told.json:
        told.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(bool(pairs["wrong"] or generated["trees_with_several_graphs"] or generated["plans_whose_styles_differ"]))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()


if __name__ == "__main__":
    main()
