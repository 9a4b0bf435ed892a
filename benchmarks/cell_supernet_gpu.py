"""What shared weights know about CIFAR-10's cells: a supernet of all 15,625 trained for minutes, its ranking against the table's.

    python benchmarks/cell_supernet_gpu.py --data cifar10 --table nas_bench_201.csv.gz --seconds 300 --cells 500

The supernet is NAS-Bench-201's own network (16 channels, 5 cells a stage) with all operations on every edge, trained on the
given training images by strictly fair rounds. Then cells drawn at random are judged by its weights, after an estimate of their
batch-norm statistics, on 5,000 images of the other file; the table's accuracy after 200 epochs of training each cell
alone is the truth. Beside it: how plain parameter counts and the table's 12-epoch accuracy rank the same cells, and what
evolution on the shared weights finds.
"""

import argparse
import csv
import gzip
import json
import platform
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from pyarrow import parquet
from scipy.stats import kendalltau, spearmanr

from befit.arch.cell import parse, unparse
from befit.errors import TrialFailed
from befit.oneshot.evolve import EvolveConfig, Judge, JudgeConfig, evolve
from befit.oneshot.sandwich import SandwichConfig, train_supernet
from befit.oneshot.shared_cell import CellSupernet
from befit.rundir import write_json
from befit.vision.data import Images, from_arrays
from befit.vision.pixels import Encoded, decode_all

TRUTH, CHANCE = "c10_test200", 10.0
COLUMNS = {"params": "params", "12-epoch validation": "cifar10_val_12ep", "12-epoch test": "cifar10_test_12ep"}
"""Other rankings of cells, and the table's columns that give them."""
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def main() -> None:
    asked = arguments()
    begin = time.monotonic()
    data, table = cifar(asked.data, asked.images), read_table(asked.table)
    told: dict[str, Any] = {"machine": machine(asked.device), "commit": asked.commit}
    told["asked"] = {name: str(value) if isinstance(value, Path) else value for name, value in vars(asked).items()}
    told["seconds"] = {"loading": round(time.monotonic() - begin, 1)}
    supernet, told["training"] = trained(data, asked)
    judge = Judge(supernet, data, JudgeConfig(calibration=8 * asked.batch, batch=asked.batch, seed=asked.seed))

    start, shared = time.monotonic(), dict[str, float]()
    for text in random.Random(asked.seed).sample(sorted(table), asked.cells):
        if time.monotonic() - begin > asked.until:
            break
        shared[text] = judge(parse(text))
    told["seconds"]["judging"] = round(time.monotonic() - start, 1)
    told["rank_correlation"] = correlations(shared, table)
    told["shared_accuracy"] = shared
    write_json(asked.out, told)
    for group, found in told["rank_correlation"].items():
        for name, values in found["rankings"].items():
            shown = f"tau {values['kendall']:.3f}, rho {values['spearman']:.3f}"
            print(f"{group} ({found['cells']} cells): {name}: {shown}", flush=True)

    start = time.monotonic()
    told["evolution"] = evolved(supernet, judge, table, EvolveConfig(evaluations=asked.evaluations, seed=asked.seed))
    told["seconds"] |= {"evolution": round(time.monotonic() - start, 1), "all": round(time.monotonic() - begin, 1)}
    write_json(asked.out, told)
    print(json.dumps(told["evolution"], indent=1), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.parquet and test.parquet")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cell_supernet_gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=300, help="of training")
    parser.add_argument("--until", type=float, default=480, help="seconds after which no further cell is judged")
    parser.add_argument("--cells", type=int, default=500, help="to judge")
    parser.add_argument("--evaluations", type=int, default=300, help="of evolution on the shared weights")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--paths", type=int, default=0, help="random paths in a step; 0: strictly fair rounds")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--stack", type=int, default=5, help="cells in a stage")
    parser.add_argument("--images", type=int, default=5000, help="to judge by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commit", default="", help="of the code, for the record")
    return parser.parse_args()


def trained(data: Images, asked: argparse.Namespace) -> tuple[CellSupernet, dict[str, Any]]:
    config = SandwichConfig(
        seconds=asked.seconds, batch=asked.batch, lr=asked.lr, fair=not asked.paths, paths=asked.paths, seed=asked.seed
    )
    try:
        supernet = fresh(data, asked)
        done = train_supernet(supernet, data, config, progress=watched)
    except TrialFailed as error:  # a machine lent for minutes should not come back empty-handed
        print(f"{error}; again at a third of the rate", flush=True)
        config, supernet = replace(config, lr=config.lr / 3, seconds=0.8 * asked.seconds), fresh(data, asked)
        done = train_supernet(supernet, data, config, progress=watched)
    told = {"lr": config.lr, "steps": done.steps, "epochs": done.epochs, "seconds": done.seconds}
    told["shared_params"] = sum(weight.numel() for weight in supernet.parameters())
    told["losses"] = [round(loss, 4) for loss in done.losses[:: max(1, done.steps // 200)]]
    print(f"{done.steps} steps, {done.epochs:.1f} epochs, loss {sum(done.losses[-50:]) / 50:.3f}", flush=True)
    return supernet, told


def fresh(data: Images, asked: argparse.Namespace) -> CellSupernet:
    torch.manual_seed(asked.seed)
    supernet = CellSupernet(data.task, channels=asked.channels, cells=asked.stack).to(asked.device)
    if asked.device == "cuda":
        torch.backends.cudnn.benchmark = True
        supernet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return supernet


def watched(items: Any, label: str, total: int | None = None) -> Any:
    """A line a minute on how far training is."""
    del total
    start = last = time.monotonic()
    for item in items:
        if time.monotonic() - last > 20:
            last = time.monotonic()
            print(f"{label}: step {item} after {last - start:.0f} s", flush=True)
        yield item


def cifar(folder: Path, judged: int) -> Images:
    """All training images to train on; of the other file some to judge by, the rest sealed."""
    parts = {}
    for name in ("train", "test"):
        table = parquet.read_table(folder / f"{name}.parquet")
        encoded = [
            Encoded(name=f"{name} {i}", content=one["bytes"]) for i, one in enumerate(table["image"].to_pylist())
        ]
        parts[name] = decode_all(encoded, str(folder), None), torch.tensor(table["label"].to_pylist())
    images, labels = parts["test"]
    return from_arrays(
        *parts["train"],
        classes=CIFAR,
        validation=(images[:judged], labels[:judged]),
        test=(images[judged:], labels[judged:]),
    )


def read_table(file: Path) -> dict[str, dict[str, float]]:
    """The columns that are compared, by cell."""
    with gzip.open(file, "rt") as lines:
        rows = list(csv.DictReader(lines))
    return {row["arch"]: {column: float(row[column]) for column in (TRUTH, *COLUMNS.values())} for row in rows}


def correlations(shared: Mapping[str, float], table: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Of each ranking with the truth: over all cells, those whose output hears the input, and the better half of these."""
    alive = [text for text in shared if table[text][TRUTH] > CHANCE]
    middle = median(table[text][TRUTH] for text in alive)
    better = [text for text in alive if table[text][TRUTH] >= middle]
    told = dict[str, Any]()
    for group, texts in {"all": list(shared), "connected": alive, "better half": better}.items():
        truths = [table[text][TRUTH] for text in texts]
        rankings = {"shared weights": [shared[text] for text in texts]}
        rankings |= {name: [table[text][column] for text in texts] for name, column in COLUMNS.items()}
        told[group] = {
            "cells": len(texts),
            "rankings": {name: agreement(truths, own) for name, own in rankings.items()},
        }
    return told


def agreement(truths: list[float], own: list[float]) -> dict[str, float]:
    pairs: Any = kendalltau(truths, own)
    ranks: Any = spearmanr(truths, own)
    return {"kendall": float(pairs.statistic), "spearman": float(ranks.statistic)}


def evolved(
    supernet: CellSupernet, judge: Judge, table: Mapping[str, Mapping[str, float]], config: EvolveConfig
) -> dict[str, Any]:
    """What evolution by shared weights finds, and where that stands in the table."""
    found = evolve(supernet, judge, config)
    truths = sorted(row[TRUTH] for row in table.values())
    own = table[unparse(found.arch)][TRUTH]
    return {
        "evaluations": len(found.judged),
        "cell": unparse(found.arch),
        "shared_accuracy": found.accuracy,
        TRUTH: own,
        "better_cells_in_table": sum(value > own for value in truths),
        "mean_of_judged": mean(table[unparse(arch)][TRUTH] for arch, _ in found.judged),
        "best_of_table": truths[-1],
        "median_of_table": median(truths),
    }


def machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
