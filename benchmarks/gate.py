"""Does the gate refuse what cannot be trained and nothing else, and what does it cost?

    python benchmarks/gate.py --nets 500 --json benchmarks/results/gate.json

Generated networks, three of four changed as models get code wrong (tests/propose/mutations.py), go through the gate; apart from
that each of them is really trained as a run trains, in a process of its own: a few steps on the CPU, then predictions. The table
counts both.
Milliseconds are of a machine that does nothing else; the CPU time of the candidate's process says how far that was true.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # also where befit is not installed
from befit.errors import BadProposal
from befit.propose.contract import parse
from befit.propose.fingerprint import keys_of
from befit.propose.gate import Gate
from befit.propose.policy import lint
from befit.propose.sandbox.box import Sandbox
from befit.propose.sandbox.limits import Limits
from befit.propose.sandbox.tasks import execute, inspect
from propose.mutations import CLASSES, PRM, sources, trained


def unseen(_rung: str, _key: str) -> None:
    """Nothing was seen before."""


def milliseconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    with contextlib.suppress(BadProposal):
        run()
    return 1000 * (time.perf_counter() - begun)


def spread(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {
        "median": round(statistics.median(ranked), 2),
        "ninth_tenth": round(ranked[int(0.9 * (len(ranked) - 1))], 2),
        "count": len(ranked),
    }


def measured(sandbox: Sandbox, truth: Sandbox, nets: int, seed: int) -> dict[str, Any]:
    table, reasons, times = Counter[str](), defaultdict[str, Counter[str]](Counter), defaultdict[str, list[float]](list)
    wrong, causes = list[dict[str, str]](), defaultdict[str, Counter[str]](Counter)
    for source, kind, shape in sources(nets, seed):
        gate = Gate(sandbox, in_shape=shape, classes=CLASSES, prm=PRM, limits=Limits(wall_seconds=60))
        verdict = gate.check(source, unseen)
        result = trained(truth, source, shape)
        cell = f"{'let through' if verdict.passed else 'refused'}, {'trains' if result.ok else 'does not train'}"
        table[cell] += 1
        reasons[verdict.reason or "let through"]["trains" if result.ok else result.reason or ""] += 1
        causes[kind][cell] += 1
        if verdict.passed != result.ok:
            wrong.append({"kind": kind, "gate": verdict.said, "training": result.message, "source": source})
        times["whole"].append(1000 * verdict.seconds)
        times["whole, let through" if verdict.passed else "whole, refused"].append(1000 * verdict.seconds)
        times["parse"].append(milliseconds(lambda text=source: parse(text)))
        times["policy"].append(milliseconds(lambda text=source: lint(parse(text), recipe=False)) - times["parse"][-1])
        times["fingerprint"].append(milliseconds(lambda text=source: keys_of(text)))
        before = sum(times[name][-1] for name in ("parse", "policy", "fingerprint"))
        if verdict.stage not in ("returned", "parsed"):
            times["sandbox"].append(1000 * verdict.seconds - before)
    return {
        "table": dict(table),
        "by_reason": {name: dict(count) for name, count in reasons.items()},
        "by_mutation": {name: dict(count) for name, count in causes.items()},
        "disagreements": wrong,
        "milliseconds": {name: spread(found) for name, found in times.items()},
    }


def cpu(sandbox: Sandbox, nets: int, seed: int) -> dict[str, Any]:
    """CPU milliseconds of the candidate's process, with the task and with nothing to do."""
    inspecting, nothing = list[float](), list[float]()
    for source, _, shape in sources(nets, seed):
        arguments = {"in_shape": shape, "out_shape": (CLASSES,), "prm": PRM}
        inspecting.append(1000 * sandbox.run(inspect, source=source, arguments=arguments).cpu_seconds)
        nothing.append(1000 * sandbox.run(execute, source="answer = {}").cpu_seconds)
    return {"inspect": spread(inspecting), "nothing": spread(nothing)}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--nets", type=int, default=500)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--json", type=Path)
    told = asked.parse_args()
    torch.set_num_threads(1)
    load, begun = os.getloadavg()[0], time.monotonic()
    with Sandbox() as sandbox, Sandbox() as truth:
        result = measured(sandbox, truth, told.nets, told.seed)
        result["cpu_milliseconds"] = cpu(sandbox, min(told.nets, 50), told.seed + 1)
    result |= {
        "networks": told.nets,
        "seed": told.seed,
        "seconds": round(time.monotonic() - begun, 1),
        "load_before_and_after": [load, os.getloadavg()[0]],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    if told.json:
        told.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "disagreements"}, indent=1))
    for one in result["disagreements"]:
        print(f"{one['kind']}: gate {one['gate'] or 'let through'!r}, training {one['training'] or 'worked'!r}")
    sys.exit(bool(result["disagreements"]))


if __name__ == "__main__":
    main()
