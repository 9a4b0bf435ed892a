"""Whether solving again around the healed child is worth it: `--rounds 2` and 3 against 1, at equal tokens, several seeds.

    python benchmarks/puzzle_rounds.py --out runs/rounds [--device cuda] [--heal-tokens 1000000] [--seeds 0 1 2]

The embedded parent, one budget on memory. Runs of one seed share text, library and first scores; all healing tokens of a run
together are the same for every number of rounds. What is in the results already is kept.
"""

import argparse
import platform
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from befit.cost.device import this_device
from befit.lm.timing import Effort
from befit.progress import silent
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.heal import HealConfig
from befit.puzzle.local import LocalConfig
from befit.puzzle.pipeline import puzzle
from befit.puzzle.polish import PolishConfig
from befit.rundir import befit_version, read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rounds"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/puzzle_rounds.json"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", default="memory=55%")
    parser.add_argument("--workload", default="batch=64,prompt=384,generate=128")
    parser.add_argument("--local-tokens", type=int, default=262_144)
    parser.add_argument("--heal-tokens", type=int, default=1_000_000)
    parser.add_argument("--sequence", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 2, 3])
    asked = parser.parse_args()
    settings = {
        name: getattr(asked, name)
        for name in ("budget", "workload", "local_tokens", "heal_tokens", "sequence", "batch")
    }
    rows: list[dict[str, Any]] = []
    if asked.results.exists() and (old := read_json(asked.results))["settings"] == settings:
        rows = old["rows"]
    for seed in asked.seeds:
        base = PuzzleConfig(
            budget=asked.budget,
            workload=asked.workload,
            out=asked.out / str(seed),
            device=asked.device,
            sequence=asked.sequence,
            local_tokens=asked.local_tokens,
            local=LocalConfig(seed=seed),
            heal=HealConfig(tokens=asked.heal_tokens, batch=asked.batch, seed=seed),
            polish=PolishConfig(seed=seed),
            measure=Effort(fit_runs=1, held_out_runs=1, repeats=2, seconds=0.1),
            seed=seed,
        )
        for rounds in asked.rounds:
            if any((row["seed"], row["rounds"]) == (seed, rounds) for row in rows):
                continue
            child = puzzle(replace(base, rounds=rounds), progress=silent)["child"]
            (last,) = (asked.out / str(seed)).glob(
                f"stages/choose{'' if rounds == 1 else f' round {rounds}'}-*/chosen.json"
            )
            told = {name: child[name] for name in ("kl", "kl_before_heal", "loss", "memory_bytes")}
            rows.append(
                {"seed": seed, "rounds": rounds, **told, "tried": len(read_json(last)["tried"]), "arch": child["arch"]}
            )
            print(
                f"seed {seed}  rounds {rounds}  KL {child['kl']:.4f}  before the last heal {child['kl_before_heal']:.4f}"
            )
            write_json(asked.results, {"settings": settings, "rows": rows, **machine(asked.device)})
    by_seed = {seed: {row["rounds"]: row["kl"] for row in rows if row["seed"] == seed} for seed in asked.seeds}
    for rounds in asked.rounds[1:]:
        change = [kls[rounds] / kls[asked.rounds[0]] - 1 for kls in by_seed.values()]
        print(
            f"rounds {rounds} against {asked.rounds[0]}: KL {statistics.mean(change):+.1%}, each {[f'{c:+.1%}' for c in change]}"
        )


def machine(device: str) -> dict[str, Any]:
    versions = {"befit": befit_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": this_device(device).name, "host": platform.machine(), "versions": versions}


if __name__ == "__main__":
    main()
