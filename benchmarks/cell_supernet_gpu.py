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
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyarrow import parquet
import torch
from scipy.stats import kendalltau, spearmanr

from befit.arch.cell import parse, unparse
from befit.arch.space import Arch
from befit.errors import TrialFailed
from befit.oneshot.evolve import EvolveConfig, Judge, JudgeConfig, evolve
from befit.oneshot.sandwich import SandwichConfig, train_supernet
from befit.oneshot.shared_cell import CellSupernet
from befit.rundir import write_json
from befit.vision.data import Images, from_arrays
from befit.vision.pixels import Encoded, decode_all

TRUTH, CHANCE = "c10_test200", 10.0
RANKINGS = ("shared weights", "params", "12-epoch validation", "12-epoch test")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def main() -> None:
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
    asked = parser.parse_args()
    begin = time.monotonic()
    data = cifar(asked.data, asked.images)
    rows = {row["arch"]: row for row in csv.DictReader(gzip.open(asked.table, "rt"))}
    told: dict[str, Any] = {"machine": machine(asked.device), "asked": {k: str(v) for k, v in vars(asked).items()}}
    told["loading_seconds"] = round(time.monotonic() - begin, 1)

    config = SandwichConfig(
        seconds=asked.seconds, batch=asked.batch, lr=asked.lr, fair=not asked.paths, paths=asked.paths, seed=asked.seed
    )
    try:
        supernet = fresh(data, asked)
        trained = train_supernet(supernet, data, config, progress=watched)
    except TrialFailed as error:  # a machine lent for minutes should not come back empty-handed
        print(f"{error}; again at a third of the rate", flush=True)
        config, supernet = replace(config, lr=config.lr / 3, seconds=0.8 * asked.seconds), fresh(data, asked)
        trained = train_supernet(supernet, data, config, progress=watched)
    told["training"] = {"lr": config.lr, "steps": trained.steps, "epochs": trained.epochs, "seconds": trained.seconds}
    told["shared_params"] = sum(weight.numel() for weight in supernet.parameters())
    told["training"]["losses"] = [round(loss, 4) for loss in trained.losses[:: max(1, trained.steps // 200)]]
    print(f"{trained.steps} steps, {trained.epochs:.1f} epochs, loss {sum(trained.losses[-50:]) / 50:.3f}", flush=True)

    judge = Judge(supernet, data, JudgeConfig(calibration=8 * asked.batch, batch=asked.batch, seed=asked.seed))
    texts = random.Random(asked.seed).sample(sorted(rows), asked.cells)
    start, judged = time.monotonic(), list[dict[str, Any]]()
    for text in texts:
        if time.monotonic() - begin > asked.until:
            break
        judged.append(compared(rows[text], judge(parse(text))))
    told["judging_seconds"] = round(time.monotonic() - start, 1)
    told["rank_correlation"] = correlations(judged)
    told["cells"] = judged
    write_json(asked.out, told)
    for group, found in told["rank_correlation"].items():
        for name, values in found["rankings"].items():
            print(
                f"{group} ({found['cells']}): {name}: tau {values['kendall']:.3f}, rho {values['spearman']:.3f}",
                flush=True,
            )

    start = time.monotonic()
    found = evolve(supernet, judge, EvolveConfig(evaluations=asked.evaluations, seed=asked.seed))
    told["evolution"] = {
        "seconds": round(time.monotonic() - start, 1),
        "evaluations": len(found.judged),
        "cell": unparse(dict(found.arch)),  # pyright: ignore[reportArgumentType]
        "shared_accuracy": found.accuracy,
        TRUTH: truth(rows, found.arch),
        "mean_of_judged": sum(truth(rows, arch) for arch, _ in found.judged) / len(found.judged),
        "best_of_table": max(float(row[TRUTH]) for row in rows.values()),
        "median_of_table": sorted(float(row[TRUTH]) for row in rows.values())[len(rows) // 2],
    }
    told["seconds"] = round(time.monotonic() - begin, 1)
    write_json(asked.out, told)
    print(json.dumps(told["evolution"], indent=1), flush=True)


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


def compared(row: dict[str, str], accuracy: float) -> dict[str, Any]:
    values = (accuracy, float(row["params"]), float(row["cifar10_val_12ep"]), float(row["cifar10_test_12ep"]))
    return {"cell": row["arch"], TRUTH: float(row[TRUTH]), **dict(zip(RANKINGS, values, strict=True))}


def correlations(judged: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each ranking with the truth: over all cells, those whose output hears the input, and the better half of these."""
    alive = [one for one in judged if one[TRUTH] > CHANCE]
    middle = sorted(one[TRUTH] for one in alive)[len(alive) // 2]
    groups = {"all": judged, "connected": alive, "better half": [one for one in alive if one[TRUTH] >= middle]}
    return {
        group: {"cells": len(ones), "rankings": {name: agreement(ones, name) for name in RANKINGS}}
        for group, ones in groups.items()
    }


def agreement(ones: list[dict[str, Any]], name: str) -> dict[str, float]:
    truths, values = [one[TRUTH] for one in ones], [one[name] for one in ones]
    return {"kendall": float(kendalltau(truths, values)[0]), "spearman": float(spearmanr(truths, values)[0])}


def truth(rows: dict[str, dict[str, str]], arch: Arch) -> float:
    return float(rows[unparse(dict(arch))][TRUTH])  # pyright: ignore[reportArgumentType]


def machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
