"""How far are latency models from networks that they have not seen?

    python benchmarks/image_latency.py --json benchmarks/results/image_latency.json

For the cell space and the mobile space, for images of 32 pixels, under PyTorch and ONNX Runtime: random networks are measured
in turns, a model is fitted to some of them and asked about the others. Beside it, how well multiply-adds alone (a constant and
one rate) would have priced the same networks. The machine's load is told, since another process makes all times noisy.
"""

import argparse
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy import stats

from befit.arch.task import ImageTask
from befit.cost.image_latency import fit_rates
from befit.cost.target import Target
from befit.rundir import write_json
from befit.vision.blueprint import Blueprint
from befit.vision.cell import cell
from befit.vision.latency import fit_latency
from befit.vision.mobile import mobile
from befit.vision.timing import Effort, machine_of, versions_of


def judged(predicted: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    errors = [abs(a - b) / b for a, b in zip(predicted, measured, strict=True)]
    rank: Any = stats
    return {
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "spearman": float(rank.spearmanr(predicted, measured).statistic),
    }


def told(
    blueprint: Blueprint, task: ImageTask, target: Target, networks: tuple[int, int], effort: Effort
) -> dict[str, Any]:
    load = os.getloadavg()[0]
    model = fit_latency(blueprint, task, target, networks=networks, effort=effort)
    archs = [blueprint.space.arch(one.arch) for one in model.held_out]
    measured = [one.measured_ms for one in model.held_out]
    # Multiply-adds get the better deal: they are fitted to the very networks that they are judged by.
    plain = [{"always": 1.0, "macs": float(blueprint.count(arch, task).macs)} for arch in archs]
    rates = fit_rates(plain, measured)
    by_macs = [sum(rates[name] * amount for name, amount in own.items()) for own in plain]
    return {
        "engine": target.engine,
        "versions": versions_of(target),
        "threads": model.target.threads,
        "fitted": model.fitted,
        "held_out": len(archs),
        "fastest_ms": min(measured),
        "slowest_ms": max(measured),
        "load_before_and_after": [load, os.getloadavg()[0]],
        "model": judged([one.predicted_ms for one in model.held_out], measured),
        "macs_fitted_to_the_same_networks": judged(by_macs, measured),
        "rates": dict(model.rates),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--engines", nargs="+", default=["torch", "onnx"])
    parser.add_argument("--spaces", nargs="+", default=["cell", "mobile"])
    parser.add_argument("--side", type=int, default=32, help="pixels of the images")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", type=int, nargs=2, default=(40, 16), help="fitted to, and held out")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timed calls for each space and engine")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/image_latency.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    task = ImageTask(channels=3, height=asked.side, width=asked.side, classes=10)
    blueprints = {"cell": cell(), "mobile": mobile(resolutions=(asked.side,), skeletons=("compact",))}
    effort = Effort(rounds=200, seconds=asked.seconds, tolerance=0.02)
    result: dict[str, Any] = {"device": asked.device, "batch": asked.batch, "side": asked.side, "cores": os.cpu_count()}
    for engine in asked.engines:
        target = Target(engine=engine, device=asked.device, batch=asked.batch, threads=asked.threads)
        result["machine"] = machine_of(target).name
        for space in asked.spaces:
            found = told(blueprints[space], task, target, tuple(asked.networks), effort)
            result.setdefault("runs", {})[f"{space}, {engine}"] = found
            errors = {name: found[name]["median_error"] for name in ("model", "macs_fitted_to_the_same_networks")}
            print(f"{space}, {engine}: median error on {found['held_out']} unseen networks, worst, Spearman:")
            print(
                f"  {found['model']}; multiply-adds alone {errors['macs_fitted_to_the_same_networks']:.3f}", flush=True
            )
    write_json(asked.json, result)


if __name__ == "__main__":
    main()
