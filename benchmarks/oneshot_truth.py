"""Do shared weights rank networks as training each alone does? Asked of images so small that both can be done.

    python benchmarks/oneshot_truth.py --data mnist --share 0.15 --side 14 --space cell

Some sub-nets drawn at random are trained alone, several times with other seeds: their mean accuracy is the truth, and how well
one seed's ranking agrees with the mean of the others is about the most that any ranking can reach. Then supernets are trained,
each with another seed, and judge the same sub-nets. Plain parameter counts stand beside them.
"""

import argparse
import platform
import random
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import kendalltau

from befit.arch.mobile import options_for
from befit.arch.space import Arch
from befit.oneshot.evolve import Judge, JudgeConfig, rank
from befit.oneshot.sandwich import SandwichConfig, train_supernet
from befit.oneshot.stored import supernet_of
from befit.oneshot.supernet import Supernet
from befit.progress import Bars, Progress
from befit.rundir import befit_version, write_json
from befit.vision.blueprint import Blueprint
from befit.vision.checkpoint import blueprint_of
from befit.vision.data import Images, load_images
from befit.vision.training import TrainConfig, train

SCHEDULES: dict[str, dict[str, dict[str, Any]]] = {
    "cell": {"fair rounds": {"fair": True}, "random paths": {"paths": 1}},
    "mobile": {"sandwich": {"paths": 2}, "sandwich, labels only": {"paths": 2, "distill": False}},
}
PATHS = {"fair rounds": 5, "random paths": 1, "sandwich": 4, "sandwich, labels only": 4}
"""Sub-nets that a step trains: all schedules get the same number of sub-net steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="as for befit search; none takes the embedded digits")
    parser.add_argument("--share", type=float, default=1.0, help="of the training images")
    parser.add_argument("--side", type=int, help="pixels to which images are scaled")
    parser.add_argument("--space", choices=list(SCHEDULES), default="cell")
    parser.add_argument("--subnets", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--alone", type=int, default=10, help="epochs of each network by itself")
    parser.add_argument(
        "--passes", type=float, default=100, help="sub-net epochs of a supernet, over all paths together"
    )
    parser.add_argument("--lr", type=float, default=0.05, help="of the supernet, for batches of 64")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/oneshot_truth.json"))
    asked = parser.parse_args()
    begin = time.monotonic()
    data = load_images(asked.data).subset(asked.share)
    data = data if asked.side is None else data.resized(asked.side)
    options = {"channels": 8, "cells": 1} if asked.space == "cell" else options_for(data.task)
    blueprint = blueprint_of(asked.space, options)
    archs = drawn(blueprint, asked.subnets)
    with Bars() as progress:
        alone = [alone_accuracies(blueprint, data, archs, asked.alone, seed, progress) for seed in range(asked.seeds)]
        truth = [mean(values) for values in zip(*alone, strict=True)]
        found = dict[str, list[list[float]]]()
        for name, settings in SCHEDULES[asked.space].items():
            epochs = asked.passes / PATHS[name]
            for seed in range(asked.seeds):
                config = SandwichConfig(epochs=epochs, lr=asked.lr, seed=seed, **settings)
                supernet = supernet_of(blueprint, data.task, options, seed=seed)
                found.setdefault(name, []).append(shared(supernet, data, archs, config, progress))
    told: dict[str, Any] = {
        "data": {"source": data.source if asked.data is None else Path(asked.data).name, "train": len(data.train)},
        "asked": {name: value for name, value in vars(asked).items() if name not in ("data", "out")},
        "machine": {"processor": platform.machine(), "torch": torch.__version__, "befit": befit_version()},
        "archs": [arch.to_json() for arch in archs],
        "alone": alone,
        "shared": found,
        "tau": {
            "one seed alone with the mean of the others": [tau(one, others) for one, others in left_out(alone)],
            "params": tau([blueprint.count(arch, data.task).params for arch in archs], truth),
            **{name: [tau(values, truth) for values in runs] for name, runs in found.items()},
            **{
                f"{name}, mean of the supernets": tau([mean(v) for v in zip(*runs, strict=True)], truth)
                for name, runs in found.items()
            },
        },
        "seconds": round(time.monotonic() - begin, 1),
    }
    told["data"] |= {"validation": len(data.validation), "pixels": data.task.height}
    write_json(asked.out, told)
    for name, value in told["tau"].items():
        print(f"{name}: {value}")


def drawn(blueprint: Blueprint, count: int) -> list[Arch]:
    """Different archs that compute different functions, each of something."""
    rng, found = random.Random(0), dict[Any, Arch]()
    while len(found) < count:
        arch = blueprint.space.sample(rng)
        key = blueprint.space.key(arch)
        if key != ("",):
            found.setdefault(key, arch)
    return list(found.values())


def alone_accuracies(
    blueprint: Blueprint, data: Images, archs: list[Arch], epochs: int, seed: int, progress: Progress
) -> list[float]:
    found = list[float]()
    for arch in progress(archs, f"alone, seed {seed}"):
        torch.manual_seed(seed)
        network = blueprint.build(arch, data.task)
        found.append(train(network, data, TrainConfig(epochs=epochs, batch=64), seed=seed).accuracy)
    return found


def shared(
    supernet: Supernet, data: Images, archs: list[Arch], config: SandwichConfig, progress: Progress
) -> list[float]:
    train_supernet(supernet, data, config, progress=progress)
    return rank(Judge(supernet, data, JudgeConfig(batch=64)), archs, progress)


def left_out(alone: list[list[float]]) -> list[tuple[list[float], list[float]]]:
    pairs = []
    for place, one in enumerate(alone):
        others = [values for other, values in enumerate(alone) if other != place]
        pairs.append((one, [mean(values) for values in zip(*others, strict=True)]))
    return pairs if len(alone) > 1 else []


def tau(first: Any, second: Any) -> float:
    found: Any = kendalltau(first, second)
    return round(float(found.statistic), 3)


if __name__ == "__main__":
    main()
