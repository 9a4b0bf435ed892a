"""`befit puzzle` on a GPU, whole: CUDA graphs in the cost table, bf16, baselines at the same budget and tokens.

    python benchmarks/puzzle_gpu.py --out runs/gpu --results benchmarks/results/puzzle_gpu.json

The embedded parent is small for a GPU, so a step is bound by its number of kernels, not by their size: budgets on latency are
met by dropping sub-blocks, budgets on memory by narrowing them.
"""

import argparse
import shutil
from pathlib import Path

from befit.progress import Bars
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.heal import HealConfig
from befit.puzzle.pipeline import puzzle
from befit.puzzle.record import budget_lines, table_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/puzzle_gpu.json"))
    parser.add_argument("--budget", default="latency=70%, memory=70%")
    parser.add_argument("--workload", default="batch=64,prompt=512,generate=128")
    parser.add_argument("--heal-tokens", type=int, default=1_000_000)
    parser.add_argument("--local-tokens", type=int, default=262_144)
    asked = parser.parse_args()
    config = PuzzleConfig(
        budget=asked.budget,
        workload=asked.workload,
        out=asked.out,
        device="cuda",
        sequence=256,
        local_tokens=asked.local_tokens,
        heal=HealConfig(tokens=asked.heal_tokens, batch=16),
        baselines=True,
    )
    with Bars() as progress:
        summary = puzzle(config, progress=progress)
    asked.results.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(asked.out / "summary.json", asked.results)
    rows = table_rows(summary)
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(row.values()))
    print("\n".join(budget_lines(summary)))
    for stage in summary["stages"]:
        print(f"{stage['name']:<16}{stage['seconds']:>8.1f} s")
    accuracy = summary["accuracy"]
    print(
        f"latency prediction on held-out models: median {accuracy['median_error']:.1%}, worst {accuracy['worst_error']:.1%}"
    )


if __name__ == "__main__":
    main()
