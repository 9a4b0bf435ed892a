"""What does the sandbox cost, and what does it enforce here?

    python benchmarks/sandbox.py --json benchmarks/results/sandbox.json

Times one candidate after the other through the fork server: a small network built, run forward and backward on the meta
device, with its FLOPs counted and its operations written down; a program that does nothing; and the same build in a fresh
process. CPU time is that of the candidate alone. Other work on the machine makes wall clock longer, so its load is told, and
the fastest beside the median.
"""

import argparse
import os
import platform
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.candidate import Task
from befit.propose.sandbox.confine import MECHANISMS
from befit.propose.sandbox.tasks import TINY, execute, inspect
from befit.propose.sandbox.trial import mechanisms, try_out
from befit.rundir import write_json

SHAPES = {"in_shape": (2, 3, 32, 32), "out_shape": (10,), "prm": {}}


def timed(sandbox: Sandbox, task: Task, source: str, count: int, *, fresh: bool = False) -> dict[str, Any]:
    """Milliseconds of `count` candidates, from the request to the checked answer."""
    wall, cpu = [], []
    for _ in range(count):
        begun = time.perf_counter()
        result = sandbox.run(task, source=source, arguments=SHAPES, fresh=fresh)
        wall.append(1e3 * (time.perf_counter() - begun))
        cpu.append(1e3 * result.cpu_seconds)
        if not result.ok:
            raise RuntimeError(result.message)
    tenths = statistics.quantiles(wall, n=10) if count > 1 else wall * 9
    return {
        "candidates": count,
        "fastest_ms": min(wall),
        "median_ms": statistics.median(wall),
        "ninth_tenth_ms": tenths[-1],
        "cpu_median_ms": statistics.median(cpu),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--candidates", type=int, default=100)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    begun = time.perf_counter()
    with Sandbox() as sandbox:
        told: dict[str, Any] = {
            "machine": {
                "cpu": platform.machine(),
                "cores": os.cpu_count(),
                "kernel": platform.release(),
                "user": os.geteuid(),
            },
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "mechanisms": mechanisms(sandbox.plan),
            "start_seconds": time.perf_counter() - begun,
            "build": timed(sandbox, inspect, TINY, asked.candidates),
            "nothing": timed(sandbox, execute, "", asked.candidates),
            "build_fresh": timed(sandbox, inspect, TINY, 2, fresh=True),
        }
    with Sandbox(without=MECHANISMS) as sandbox:
        told["build_unconfined"] = timed(sandbox, inspect, TINY, asked.candidates)
    told["load_before_and_after"] = [load, os.getloadavg()[0]]
    told["protections"] = [asdict(found) for found in try_out()[1]]
    write_json(asked.json, told)


if __name__ == "__main__":
    main()
