"""Summaries of `befit propose` made of made-up rows: one arm, and several on two datasets."""

from typing import Any

from tests.propose.proposals import run

from befit.propose.diversity import alike
from befit.propose.funnel import arms, leaders, plain
from befit.propose.proposal import Proposal
from befit.propose.statistics import compare


def single(attempts: int = 60) -> dict[str, Any]:
    """A run of one arm on one dataset."""
    rows = list(run("", "digits", 0, attempts, skill=0.9))
    return _common(rows) | {"title": "Networks for digits", "budget": "params<=20K"}


def several(seeds: int = 4, attempts: int = 40) -> dict[str, Any]:
    """Three arms on two datasets with several seeds, and prices."""
    skills = {"shots=0": 0.5, "shots=3": 0.8, "shots=6": 0.65}
    rows = [
        row
        for arm, skill in skills.items()
        for dataset in ("digits", "cifar10")
        for seed in range(seeds)
        for row in run(arm, dataset, seed, attempts, skill=skill * (1.0 if dataset == "digits" else 0.8), price=0.002)
    ]
    return _common(rows) | {
        "title": "How many examples?",
        "comparison": compare(rows, chance=0.1),
        "budget": "params<=20K",
    }


def _common(rows: list[Proposal]) -> dict[str, Any]:
    first, *others = leaders(rows, 8)
    final = {"validation": first["proposed"] + 0.01, "test": first["proposed"] - 0.01, "within": True}
    costs = {"predicted": {"latency_ms": 1.2}, "measured": {"latency_ms": 1.31}}
    return {
        "kind": "proposals",
        "befit": "0.1.0",
        "command": "befit propose --llm http://localhost:8000/v1 --model coder --proposals 40",
        "device": {"name": "a processor", "trained_on": "the CPU", "versions": {"torch": "2.13.0"}},
        "data": [{"name": "digits", "source": "digits"}],
        "bounds": [{"cost": "params", "op": "<=", "value": 20000.0}],
        "notes": ["12 examples did not fit into the prompts and were left out."],
        "arms": arms(rows, 0.1),
        "rows": [plain(row) for row in rows],
        "best": [first | final | costs],
        "leaders": [first, *others],
        "similarity": alike(rows),
        "stages": [{"name": "propose", "seconds": 812.0}, {"name": "train the best", "seconds": 95.0}],
        "use": "befit predict runs/llm/best photo.jpg",
        "seed": 0,
    }
