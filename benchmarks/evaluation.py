"""What the embedded parents can do, and what a run's child has kept: the generated tasks, with intervals.

    python benchmarks/evaluation.py --json benchmarks/results/evaluation.json
    python benchmarks/evaluation.py --run runs/demo --json benchmarks/results/evaluation.json

Without a run both embedded parents are asked, the dense one as the reference. About five minutes on two cores.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # also where befit is not installed
from befit.cost.device import this_device
from befit.lm.contender import Place, checkpoint
from befit.lm.evaluation import EvalConfig, evaluate_all, table_rows
from befit.lm.finished import contenders

LEVELS = {"needle": (160, 256, 512, 1024), "tool_call": (2, 4), "arithmetic": (1, 2, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run of befit puzzle")
    parser.add_argument("--items", type=int, default=64, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="also let models write answers")
    parser.add_argument("--json", type=Path, help="where to write the results")
    asked = parser.parse_args()
    device, place = this_device("cpu"), Place(batch=8)
    models = (
        contenders(asked.run, place)
        if asked.run
        else [checkpoint("befit:dense", place, name="parent"), checkpoint("befit:hybrid", place)]
    )
    begin, found = time.perf_counter(), {}
    for task, levels in LEVELS.items():
        config = EvalConfig(tasks=(task,), items=asked.items, levels=levels, write=asked.write, seed=asked.seed)
        told = evaluate_all(models, config, place)
        found = {**told, "tasks": {**found.get("tasks", {}), **told["tasks"]}}
    for row in table_rows(found):
        print(" | ".join(row.values()))
    found["seconds"] = round(time.perf_counter() - begin, 1)
    found["models"] = {name: {} for name in found["models"]}  # folders of this machine mean nothing elsewhere
    found["machine"] = {
        "device": device.name,
        "threads": device.threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    found["asked"] = {"items": asked.items, "seed": asked.seed, "write": asked.write, "levels": LEVELS}
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
