"""Are befit's training-free proxies the published ones, and what are they worth beside a count of parameters?

    python benchmarks/zero_cost.py --table zero_cost_nb201.json.gz --data cifar10 --json benchmarks/results/zero_cost.json

Scores cells of NAS-Bench-201 with fresh weights (torch's own initialisation) on one batch of CIFAR-10, and ranks them against
the scores and accuracies that NAS-Bench-Suite-Zero publishes for the same cells (automl/NASLib, zc_nasbench201.json: a JSON
object of data sets, each an object of cells such as "(0, 2, 3, 2, 3, 1)" with `val_accuracy` and a `score` for each proxy). The
table's scores of nwot and jacov say that it was made with batches of 32, which is the default here.
"""

import argparse
import ast
import gzip
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from befit.arch.cell import parse
from befit.cost.device import this_device
from befit.rundir import write_json
from befit.vision.cell import cell
from befit.vision.data import Images, load_images
from befit.vision.proxies import KNOWN, proxies

OPS = ("skip_connect", "none", "nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3")
"""What the table's numbers 0 to 4 mean."""
COLUMN = {"macs": "flops"}
"""The table's name of a proxy where it is not befit's; its flops count normalisation and pooling too."""
DEAD = -1e8
"""What stands for a score of negative infinity when scores are ranked (the table's own word)."""


def text_of(key: str) -> str:
    """The cell's text form, from the table's: operations on (1,2) (1,3) (1,4) (2,3) (2,4) (3,4)."""
    a, b, c, d, e, f = (OPS[number] for number in ast.literal_eval(key))
    return f"|{a}~0|+|{b}~0|{d}~1|+|{c}~0|{e}~1|{f}~2|"


def correlations(first: list[float], second: list[float]) -> dict[str, float]:
    """Of two lists of scores, negative infinity as the worst of all; cells where either is NaN are left out."""
    pairs = [(max(a, DEAD), max(b, DEAD)) for a, b in zip(first, second, strict=True) if not math.isnan(a + b)]
    a, b = [one for one, _ in pairs], [other for _, other in pairs]
    rank: Any = stats
    return {
        "spearman": float(rank.spearmanr(a, b).statistic),
        "kendall": float(rank.kendalltau(a, b).statistic),
        "cells": len(pairs),
    }


def scored(cells: list[str], data: Images, *, batch: int, seed: int, device: str) -> list[dict[str, float]]:
    """Every proxy of every cell, on the same images; each cell has weights of its own."""
    rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:batch]
    some = data.train.take(rows)
    images, labels = data.normalised(some.images).to(device), some.labels.to(device)
    blueprint, found = cell(), []
    for number, key in enumerate(cells):
        torch.manual_seed(seed * 100_000 + number)
        found.append(proxies(blueprint.build(parse(text_of(key)), data.task).to(device), images, labels, KNOWN))
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {len(cells)} cells", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--part", default="cifar10", help="which data set of the table")
    parser.add_argument("--data", required=True, help="folder of the images, as befit search takes it")
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/zero_cost.json"))
    asked = parser.parse_args()
    with gzip.open(asked.table) as file:
        table = json.load(file)[asked.part]
    cells = list(table)[: asked.cells]
    start = time.perf_counter()
    own = scored(cells, load_images(asked.data), batch=asked.batch, seed=asked.seed, device=asked.device)
    seconds = time.perf_counter() - start
    accuracy = [table[key]["val_accuracy"] for key in cells]
    result: dict[str, Any] = {
        "cells": len(cells),
        "batch": asked.batch,
        "seed": asked.seed,
        "images": asked.part,
        "initialisation": "torch's own",
        "device": vars(this_device(asked.device)),
        "seconds_per_cell_all_proxies_and_reading_images": seconds / len(cells),
        "proxies": {},
    }
    print(
        f"\n{len(cells)} cells, batch {asked.batch}\nSpearman (Kendall) {'table':>12}{'accuracy':>20}{'accuracy, by table':>22}"
    )
    for name in KNOWN:
        mine = [row[name] for row in own]
        theirs = [table[key][COLUMN.get(name, name)]["score"] for key in cells]
        told = {
            "with_table": correlations(mine, theirs),
            "with_accuracy": correlations(mine, accuracy),
            "table_with_accuracy": correlations(theirs, accuracy),
        }
        result["proxies"][name] = told
        print(f"{name:>10}" + "".join(f"{one['spearman']:14.3f} ({one['kendall']:.3f})" for one in told.values()))
    write_json(asked.json, result)


if __name__ == "__main__":
    main()
