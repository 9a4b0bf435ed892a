"""Does a model that learns during a run propose better networks than the grammar that it learned to write from?

    python benchmarks/learn_grammar.py --seeds 5 --evaluations 100 --processes 2 --json benchmarks/results/learn_grammar.json

Two arms, equal but for who proposes: the grammar alone, and `learn`, whose first generation is the grammar's (with the same
draws), and whose later ones a decoder writes. A proposal passes the gate, is trained for a few epochs on the digits inside the
sandbox, and scored outside on the validation images. Both arms train equally many networks; what is refused, or the same
network as one before, costs an attempt and no evaluation. The test images are not opened.

For each measure: the mean of each arm over seeds, the difference with a 95 % interval, Hedges' g, and Welch's test, with
Holm's correction over the measures.
"""

import argparse
import math
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from scipy import stats

from befit.budget import Budget
from befit.propose import fitting
from befit.propose.answer import read
from befit.propose.archive import Scored
from befit.propose.gate import Gate
from befit.propose.grammar import Bounds
from befit.propose.inference import hedges_g, holm, welch
from befit.propose.judge import Training, judge
from befit.propose.learned import LearnConfig, Learned, networks
from befit.propose.models import Message, Request
from befit.propose.network import PRM
from befit.propose.proposal import Known, Verdict
from befit.propose.sandbox import tasks
from befit.propose.sandbox.box import Sandbox
from befit.rundir import write_json
from befit.vision.data import Images, load_images
from befit.vision.training import TrainConfig

ASK = (Message(role="user", content="Propose a network for the digits."),)
"""Neither arm reads it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both arms share."""

    evaluations: int = 100
    """Networks that are trained."""
    params: int = 10_000
    """Most parameters."""
    epochs: int = 3
    """Of each training: few, so that networks differ."""
    again: int = 3
    """Trainings of each arm's best network with other seeds."""
    learn: LearnConfig = field(default_factory=LearnConfig)


class Trials:
    """One arm with one seed: what was proposed and what became of it."""

    def __init__(self, sandbox: Sandbox, images: Images, setting: Setting, seed: int) -> None:
        task = images.task
        shape = (64, task.channels, task.height, task.width)
        self.sandbox, self.images, self.seed = sandbox, images, seed
        self.training = Training(config=TrainConfig(epochs=setting.epochs, batch=64))
        self.gate = Gate(
            sandbox, in_shape=shape, classes=task.classes, prm=PRM, budget=Budget.parse(f"params<={setting.params}")
        )
        self.seen = dict[tuple[str, str], int]()
        self.scored = list[Scored]()
        self.rows = list[dict[str, Any]]()

    def attempt(self, model: Any) -> None:
        """One proposal, to its score or its reason."""
        number, begin = len(self.rows), time.perf_counter()
        told = model.complete(Request(messages=ASK, seed=1_000_000 * self.seed + number))
        answer = read(told, "network")
        row: dict[str, Any] = {"by": "decoder" if model.name.startswith("learn") else "grammar"}
        row |= {"reason": answer.reason, "call_seconds": time.perf_counter() - begin}
        self.rows.append(row)
        if answer.source:
            verdict = self.gate.check(answer.source, self.look)
            row |= {"stage": verdict.stage, "reason": verdict.reason, "params": verdict.params}
            self.remember(verdict, number)
            if verdict.passed:
                self.train(answer.source, verdict, number, row)

    def look(self, rung: str, key: str) -> Known | None:
        """The gate's question."""
        first = self.seen.get((rung, key))
        return None if first is None else Known(number=first, accuracy=None)

    def remember(self, verdict: Verdict, number: int) -> None:
        """A network that came this far is known from now on."""
        keys = [("tree", verdict.keys.tree if verdict.keys else ""), ("graph", verdict.graph)]
        for rung, key in keys:
            if key:
                self.seen.setdefault((rung, key), number)

    def train(self, source: str, verdict: Verdict, number: int, row: dict[str, Any]) -> None:
        """Score it."""
        judged = judge(self.sandbox, source, self.images, self.training, seed=self.seed)
        row |= {"accuracy": judged.accuracy, "reason": judged.reason, "train_seconds": judged.seconds}
        if judged.accuracy is not None:
            key = verdict.graph or (verdict.keys.tree if verdict.keys else source)
            self.scored.append(Scored(number=number, key=key, text=source, dataset="digits", accuracy=judged.accuracy))


def run_arm(arm: str, seed: int, setting: Setting, device: str = "auto") -> dict[str, Any]:
    """All trials of one arm with one seed."""
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    begin, images = time.perf_counter(), load_images("digits")
    task = images.task
    bounds = Bounds(in_shape=(2, task.channels, task.height, task.width), classes=task.classes, params=setting.params)
    learned = Learned(setting.learn, networks(bounds), seed=seed, device=device)
    with Sandbox(warm=(tasks.warm, fitting.warm)) as sandbox, tempfile.TemporaryDirectory() as folder:
        trials = Trials(sandbox, images, setting, seed)
        while len(trials.scored) < setting.evaluations and len(trials.rows) < 4 * setting.evaluations:
            number = len(trials.rows)
            model = learned.grammar if arm == "grammar" else learned.model(number, trials.scored, Path(folder))
            trials.attempt(model)
        best = max(trials.scored, key=lambda one: (one.accuracy, -one.number))
        again = [
            judge(sandbox, best.text, images, trials.training, seed=10_000 + seed).accuracy or 0.0
            for seed in range(setting.again)
        ]
    return {
        "arm": arm,
        "seed": seed,
        **measured(trials.rows, trials.scored, setting),
        "best_again": statistics.mean(again) if again else None,
        "best_network": best.text,
        "generations": by_generation(trials.rows, setting.learn.every),
        "reasons": dict(Counter(row["reason"] for row in trials.rows if row["reason"])),
        "accuracies": [one.accuracy for one in trials.scored],
        "seconds": time.perf_counter() - begin,
    }


def measured(rows: Sequence[Mapping[str, Any]], scored: Sequence[Scored], setting: Setting) -> dict[str, Any]:
    """The measures that are compared; `mean_late` is that of the second half of the evaluations."""
    accuracies = [one.accuracy for one in scored]
    late = accuracies[setting.evaluations // 2 :]
    return {
        "attempts": len(rows),
        "evaluations": len(scored),
        "best": max(accuracies),
        "mean": statistics.mean(accuracies),
        "mean_late": statistics.mean(late) if late else None,
        "unique_share": len(scored) / len(rows),
    }


def by_generation(rows: Sequence[Mapping[str, Any]], every: int) -> list[dict[str, Any]]:
    """For each generation, of the decoder's proposals (of the grammar's where there are no others): shares and accuracies."""
    found = list[dict[str, Any]]()
    for begin in range(0, len(rows), every):
        part = [row for row in rows[begin : begin + every] if row["by"] == "decoder"] or rows[begin : begin + every]
        parsed = [row for row in part if row.get("stage", "returned") != "returned"]
        built = [row for row in part if row.get("params") is not None or row["reason"] == "seen-tree"]
        trained = [row["accuracy"] for row in part if row.get("accuracy") is not None]
        found.append({
            "by": part[0]["by"],
            "proposals": len(part),
            "parsed": len(parsed) / len(part),
            "built": len(built) / len(part),
            "new": len(trained) / len(part),
            "mean": statistics.mean(trained) if trained else None,
            "best": max(trained, default=None),
            "seconds_of_a_call": statistics.median(row["call_seconds"] for row in part),
        })  # fmt: skip
    return found


MEASURES = ("best", "best_again", "mean", "mean_late", "unique_share")


def compare(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each measure in both arms, over seeds: Welch's test, Holm's correction, Hedges' g."""
    found = list[dict[str, Any]]()
    for name in MEASURES:
        grammar, learn = ([run[name] for run in runs if run["arm"] == arm] for arm in ("grammar", "learn"))
        row: dict[str, Any] = {"measure": name, "grammar": statistics.mean(grammar), "learn": statistics.mean(learn)}
        if (test := welch([grammar], [learn])) is not None:
            error = math.sqrt(sum(statistics.variance(arm) / len(arm) for arm in (grammar, learn)))
            half = float(stats.t.ppf(0.975, test.df)) * error
            row |= asdict(test) | {"difference_95": [test.difference - half, test.difference + half]}
            row |= {"grammar_deviation": statistics.stdev(grammar), "learn_deviation": statistics.stdev(learn)}
            row["hedges_g"] = effect.g if (effect := hedges_g([grammar], [learn])) is not None else None
        found.append(row)
    tested = [row for row in found if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--evaluations", type=int, default=Setting().evaluations)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="auto", help="of the decoder: auto, cpu or cuda")
    asked = parser.parse_args()
    setting = Setting(evaluations=asked.evaluations)
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    begin, load, runs = time.perf_counter(), os.getloadavg()[0], list[dict[str, Any]]()
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as pool:
        one = partial(run_arm, setting=setting, device=asked.device)
        jobs = [pool.submit(one, arm, seed) for arm in ("learn", "grammar") for seed in seeds]
        for done in as_completed(jobs):
            runs.append(run := done.result())
            print(*(f"{name}={run[name]}" for name in ("arm", "seed", "attempts", *MEASURES)), flush=True)
    told: dict[str, Any] = record(runs, setting, asked.device)
    told |= {"load_before": load, "seconds": time.perf_counter() - begin}
    write_json(asked.json, told)
    for row in told["comparison"]:
        print(row, flush=True)


def record(runs: Sequence[Mapping[str, Any]], setting: Setting, device: str) -> dict[str, Any]:
    """All that is written."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() and device != "cpu" else None
    return {
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "gpu": gpu},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "setting": asdict(setting),
        "comparison": compare(runs),
        "runs": sorted(runs, key=lambda run: (run["arm"], run["seed"])),
    }


if __name__ == "__main__":
    main()
