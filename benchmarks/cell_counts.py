"""The cell network's parameters and multiply-adds against those that NAS-Bench-201's table gives, for every cell.

    python benchmarks/cell_counts.py --table nas_bench_201.csv.gz --json benchmarks/results/cell_counts.json

The table has the columns `arch` (text form), `params` and `conv_macs_c10` (CIFAR-10). The closed form is compared for all its
rows; networks are built, without memory for their weights, for `--networks` of them.
"""

import argparse
import csv
import gzip
import json
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # also where befit is not installed
from befit.arch.cell import parse
from befit.arch.task import ImageTask
from befit.vision.cell import cell

CIFAR10 = ImageTask(channels=3, height=32, width=32, classes=10)


def compare(table: Path, networks: int) -> dict[str, Any]:
    with gzip.open(table, "rt") as file:
        rows = list(csv.DictReader(file))
    blueprint, wrong = cell(), list[str]()
    archs = [parse(row["arch"]) for row in rows]
    start = time.perf_counter()
    counted = [blueprint.count(arch, CIFAR10) for arch in archs]
    seconds = time.perf_counter() - start
    for row, counts in zip(rows, counted, strict=True):
        if (counts.params, counts.macs) != (int(row["params"]), int(row["conv_macs_c10"])):
            wrong.append(row["arch"])
    unlike = list[str]()
    for place in random.Random(0).sample(range(len(rows)), min(networks, len(rows))):
        with torch.device("meta"):
            network = blueprint.build(archs[place], CIFAR10)
        if sum(weight.numel() for weight in network.parameters()) != counted[place].params:
            unlike.append(rows[place]["arch"])
    return {
        "cells": len(rows),
        "cells_counted_differently": wrong,
        "networks": networks,
        "networks_counted_differently": unlike,
        "ms_per_count": 1e3 * seconds / len(rows),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="CSV, gzipped")
    parser.add_argument("--networks", type=int, default=100, help="how many to build as well")
    parser.add_argument("--json", type=Path, help="where to write the result")
    told = parser.parse_args()
    result = compare(told.table, told.networks)
    if told.json:
        told.json.write_text(json.dumps(result, indent=2) + "\n")
    same = result["cells"] - len(result["cells_counted_differently"])
    built = result["networks"] - len(result["networks_counted_differently"])
    print(f"closed form equal to the table: {same:,} of {result['cells']:,} cells")
    print(f"networks equal to the closed form: {built} of {result['networks']}")
    print(f"{result['ms_per_count']:.3f} ms for each count")
    sys.exit(same < result["cells"] or built < result["networks"])


if __name__ == "__main__":
    main()
