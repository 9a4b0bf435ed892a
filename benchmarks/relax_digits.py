"""Do searches by gradients end in the all-skip cell? GDAS, DrNAS and DARTS on the embedded digits, over some seeds.

    python benchmarks/relax_digits.py [--seeds 3] [--random 4] [--threads 1] [--work FOLDER] [--out FILE.json]

The cell space with one cell in each stage, 8 channels wide. Every method searches on the training split alone; the cell that it
derives is then trained alone, with fresh weights, and judged on the validation split, as are random cells and the all-skip cell.
The test split stays sealed. The last search has a budget, and its cell must keep it.

`convolutions_of_a_path` is the mean number of convolutions on the paths from input to output,
0 for a cell that computes nothing that is learned. Seconds are processor time, since machines are shared.
Searches go on where they stopped if --work names a folder that stays.
"""

import argparse
import json
import platform
import random
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from befit.arch.cell import PATHS, cell_space, parse, paths, unparse
from befit.arch.space import Arch
from befit.budget import Budget
from befit.cost.device import this_device
from befit.oneshot.derive import derive
from befit.oneshot.method import Darts, DrNas, Gdas, Method
from befit.oneshot.mixture import all_skips, cell_mixture
from befit.oneshot.projection import Limits
from befit.oneshot.relaxed import RelaxConfig
from befit.rundir import read_json, write_json
from befit.vision.cell import cell
from befit.vision.data import Images, load_images
from befit.vision.training import TrainConfig, train

BLUEPRINT = cell(channels=8, cells=1)
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"
METHODS: dict[str, tuple[Method, RelaxConfig]] = {
    # One option an edge is cheap, but each learns from every fifth step only: more steps, and the architecture waits longer.
    "gdas": (Gdas(), RelaxConfig(epochs=60, lr=0.2, arch_wait=0.6)),
    "drnas": (DrNas(), RelaxConfig(epochs=12)),
    "darts": (Darts(), RelaxConfig(epochs=12)),
}
BOUND = "params<=40K"
ALONE = TrainConfig(epochs=8)


def searched(name: str, seed: int, data: Images, folder: Path, budget: str | None = None) -> dict[str, Any]:
    """One search and what it found."""
    method, config = METHODS[name]
    config = RelaxConfig(**{**asdict(config), "seed": seed})
    torch.manual_seed(seed)
    mixture = cell_mixture(data.task, channels=8, cells=1)
    limits = Limits(
        price=lambda arch: BLUEPRINT.count(arch, data.task).costs(),
        budget=None if budget is None else Budget.parse(budget),
    )
    begin = time.process_time()
    found = derive(mixture, data, limits, method=method, folder=folder, config=config)
    spent = time.process_time() - begin
    return {
        "method": name,
        "seed": seed,
        "budget": budget,
        "arch": unparse(found.arch),
        "all_skip": found.collapsed,
        "entropy": round(found.entropy, 4),
        "entropy_of_epochs": [round(epoch.entropy, 4) for epoch in found.history],
        "expected_costs": [epoch.costs for epoch in found.history][-1],
        "log_probability": round(found.score, 4),
        "without_budget": round(found.wished, 4),
        "search_cpu_seconds": round(spent, 1),
    }


def alone(arch: Arch, data: Images, seed: int) -> dict[str, Any]:
    """The cell trained alone from fresh weights, and what it costs."""
    torch.manual_seed(seed)
    network = BLUEPRINT.build(arch, data.task)
    trained = train(network, data, ALONE, seed=seed)
    own = [path for path, there in zip(PATHS, paths(arch), strict=True) if there]
    convolutions = [sum(op.startswith("nor_conv") for op in path) for path in own]
    costs = BLUEPRINT.count(arch, data.task).costs()
    told = {"validation_accuracy": round(trained.accuracy, 4), "params": costs["params"], "macs": costs["macs"]}
    return told | {"convolutions_of_a_path": round(sum(convolutions) / max(1, len(own)), 3)}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By method, without the runs under a budget."""
    found = dict[str, dict[str, Any]]()
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name and row.get("budget") is None]
        accuracies = [row["validation_accuracy"] for row in own]
        found[name] = {
            "runs": len(own),
            "all_skip": sum(row["all_skip"] for row in own),
            "mean_accuracy": round(sum(accuracies) / len(own), 4),
            "least_accuracy": min(accuracies),
            "mean_params": round(sum(row["params"] for row in own) / len(own)),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "relax_digits.json")
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--random", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data, rows = load_images(), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        plan = [(name, seed, None) for seed in range(arguments.seeds) for name in METHODS] + [("drnas", 0, BOUND)]
        for name, seed, budget in plan:
            own = folder / f"{name}-{seed}-{budget}"
            if not (own / "row.json").exists():
                row = searched(name, seed, data, own, budget)
                write_json(own / "row.json", row | alone(parse(row["arch"]), data, seed))
            rows.append(read_json(own / "row.json"))
            print(json.dumps({key: value for key, value in rows[-1].items() if key != "entropy_of_epochs"}), flush=True)
    draw = random.Random(0)
    others = [("random", cell_space().sample(draw)) for _ in range(arguments.random)] + [("all skips", parse(SKIPS))]
    for seed, (name, arch) in enumerate(others):
        rows.append({"method": name, "seed": seed, "arch": unparse(arch), "all_skip": all_skips(arch)})
        rows[-1] |= alone(arch, data, seed)
        print(json.dumps(rows[-1]), flush=True)
    device = this_device("cpu")
    bounded = next(row for row in rows if row.get("budget"))
    assert bounded["params"] <= Budget.parse(BOUND).bounds[0].value
    result = {
        "device": {"name": device.name, "cores": device.cores, "threads": device.threads},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit(),
        "configs": {name: {"method": repr(method), **asdict(config)} for name, (method, config) in METHODS.items()},
        "trained_alone": asdict(ALONE),
        "summary": summary(rows),
        "rows": rows,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def commit() -> str:
    """The commit that is checked out, empty where git is not."""
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


if __name__ == "__main__":
    main()
