"""What blockwise local distillation is worth: the same budget, with the training-free library and with the distilled one.

    python benchmarks/local_distillation.py --out runs/local --results benchmarks/results/local_distillation.json

Both libraries are scored, solved and polished alike; the budget bounds memory and parameters only, so that no measured time
takes part in the choice. KL is measured on text that chose nothing, before any healing.
"""

import argparse
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from befit.lm.quality import evaluate
from befit.lm.team import Team
from befit.progress import silent
from befit.puzzle.config import PuzzleConfig
from befit.puzzle.job import Job
from befit.puzzle.local import LocalConfig
from befit.puzzle.pipeline import choose_stage, library_stage, price_stage, rank_stage, score_stage
from befit.rundir import write_json

ARMS = {
    "training-free": LocalConfig(epochs=0),
    "distilled": LocalConfig(),
}


def child_kl(config: PuzzleConfig) -> float:
    """KL of the chosen child before healing, nats a token."""
    job = Job.open(config, Team(), silent)
    library = library_stage(job, rank_stage(job))
    scores = score_stage(job, library)
    prices = {batch: price_stage(job, library.parent.config, batch) for batch in job.batches}
    chosen = choose_stage(job, library, scores, prices)
    return evaluate(library.assemble(chosen.arch), job.final_rows, library.parent).kl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/local"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/local_distillation.json"))
    parser.add_argument("--budget", default="params=75%, memory=70%")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    kl: dict[str, list[float]] = {name: [] for name in ARMS}
    for seed in range(asked.seeds):
        for name, local in ARMS.items():
            config = PuzzleConfig(
                budget=asked.budget,
                device=asked.device,
                dtype="fp32",
                out=asked.out / f"{name.replace(' ', '-')}-{seed}",
                local=replace(local, seed=seed),
                seed=seed,
            )
            kl[name].append(child_kl(config))
            print(f"seed {seed}, {name}: KL {kl[name][-1]:.4f}", flush=True)
    free = kl["training-free"]
    ratios = {name: [a / b for a, b in zip(values, free, strict=True)] for name, values in kl.items()}
    result: dict[str, Any] = {
        "budget": asked.budget,
        "kl_before_heal": kl,
        "ratio_to_training_free": ratios,
        "mean_ratio": {name: math.exp(statistics.fmean(map(math.log, values))) for name, values in ratios.items()},
        "local_tokens": PuzzleConfig().local_tokens,
        "seeds": asked.seeds,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    write_json(asked.results, result)
    for name, ratio in result["mean_ratio"].items():
        print(f"{name:<20} {ratio:.3f} of the training-free KL")


if __name__ == "__main__":
    main()
