"""Searchers on a table of trained architectures: what they find in N queries, and how many they need to the best.

    python benchmarks/nas_bench_201.py --table nas_bench_201.csv.gz --reward cifar10_val_12ep --objective c10_test200 \
        --searcher evolution --queries 100 --runs 500 [--bound "lat_ms_pixel3<=8"] [--until-optimum] --json result.json
    python benchmarks/nas_bench_201.py --table nas_bench_201.csv.gz --suite [--only NAME ...] --json results/nas_bench_201.json

A table is a .csv, .json, or either as .gz: with a column `arch` in NAS-Bench-201's text form or as digits, or with the columns
of choices named by --choices. Printed is the objective of the arch with the best reward, mean and standard deviation over runs
(seeds 0, 1, ...); with --until-optimum, the queries until the best objective of the table was asked for.

--suite makes everything in results/nas_bench_201.json, and adds to the file piece by piece, so that it can be stopped and
repeated; rivals (see nas_rivals.py) that are not installed are left to a call from an environment that has them.
"""

import argparse
import functools
import json
import multiprocessing
import platform
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nas_rivals import RIVALS, installed, proposals

from befit.arch.space import Arch
from befit.budget import Budget
from befit.search.predictor import Predictor
from befit.search.searcher import Searcher
from befit.search.searchers import SEARCHERS, searcher_of
from befit.search.table import Table, TableRun, TableSearch, judged, optimum, search_table

COSTS = ("params", "conv_macs_c10", "flops")
"""Columns that are known before any training: the predictor learns from those the table has."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One searcher, run with several seeds."""

    table: str
    searcher: str
    reward: str
    objective: str
    queries: int = 100
    runs: int = 500
    bound: str | None = None
    until_optimum: bool = False
    choices: tuple[str, ...] = ()


@functools.lru_cache(maxsize=1)
def loaded(path: str, choices: tuple[str, ...]) -> Table:
    return Table.load(Path(path), choices)


def search_of(job: Job, table: Table) -> TableSearch:
    return TableSearch(
        reward=job.reward,
        objective=job.objective,
        queries=job.queries,
        bound=Budget.parse(job.bound, table.columns) if job.bound else None,
        until_optimum=job.until_optimum,
    )


@functools.lru_cache(maxsize=1)
def made(name: str, path: str, choices: tuple[str, ...]) -> Searcher:
    """The searcher; the predictor sees the space's features and the costs that the table has."""
    table = loaded(path, choices)
    if name != "predictor":
        return searcher_of(name)
    columns, own = [table.columns[c] for c in COSTS if c in table.columns], table.space.features

    @functools.cache
    def features(arch: Arch) -> tuple[float, ...]:
        row = table.row[arch]
        return (*(own(arch) if own else ()), *(column[row] for column in columns))

    return Predictor(features=features if columns or own else None)


def one(job: Job, seed: int) -> TableRun:
    """One run; a rival is asked as often as a searcher of befit's, repeats counted."""
    table = loaded(job.table, job.choices)
    search = search_of(job, table)
    if job.searcher in SEARCHERS:
        return search_table(table, made(job.searcher, job.table, job.choices), search, seed=seed)
    reward, objective, most = table.column(job.reward), table.column(job.objective), optimum(table, search)
    rewards, rows = list[float](), list[int]()
    for row in proposals(job.searcher, table, seed, rewards):
        rows.append(row)
        rewards.append(reward[row])
        if len(rows) == job.queries or (job.until_optimum and objective[row] >= most):
            break
    return judged(rows, reward, objective, most)


def report(job: Job, processes: int) -> dict[str, Any]:
    """Run a job; every seed's outcome is kept."""
    start = time.perf_counter()
    work, seeds = functools.partial(one, job), range(job.runs)
    if processes > 1:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            runs = pool.map(work, seeds, chunksize=max(1, min(20, job.runs // processes)))
    else:
        runs = [work(seed) for seed in seeds]
    table = loaded(job.table, job.choices)
    most = optimum(table, search_of(job, table))
    final = [run.final for run in runs]
    result: dict[str, Any] = asdict(job) | {"table": Path(job.table).name, "seeds": f"0..{job.runs - 1}"}
    result |= {"optimum": most, "seconds": round(time.perf_counter() - start, 1)}
    if not job.until_optimum:
        regret = [most - run.best for run in runs]
        result["final"] = spread(final) | {"each": final}
        result["best_asked_regret"] = spread(regret)
    reached = [run.reached for run in runs]
    found = [count for count in reached if count is not None]
    result["share_reached_optimum"] = len(found) / len(runs)
    if job.until_optimum:
        # A run that stopped without the optimum counts with all its queries: the mean is then a lower bound.
        counted = [job.queries if count is None else count for count in reached]
        result["queries_to_optimum"] = spread(counted) | {"each": counted}
    return result


def spread(values: list[Any]) -> dict[str, float]:
    return {
        "mean": round(statistics.fmean(values), 4),
        "std": round(statistics.stdev(values), 4) if len(values) > 1 else 0.0,
        "median": round(float(statistics.median(values)), 4),
    }


def line(name: str, result: dict[str, Any]) -> str:
    told = result.get("queries_to_optimum") or result["final"]
    what = "queries to the optimum" if "queries_to_optimum" in result else f"{result['objective']}"
    share = f"{result['share_reached_optimum']:.0%} of {result['runs']} runs reach {result['optimum']:.3f}"
    return f"{name:44} {what} {told['mean']:.2f} +- {told['std']:.2f} (median {told['median']:.2f}); {share}"


def suite(path: str) -> dict[str, Job]:
    """Everything that results/nas_bench_201.json holds, by name."""
    table, jobs = loaded(path, ()), dict[str, Job]()
    sets = {"cifar10": ("cifar10_val_12ep", "c10_test200"), "cifar100": ("cifar100_val_12ep", "c100_test200")}
    runs_to_optimum = {"evolution": 300, "local": 300, "predictor": 200, "reinforce": 50}
    rival_runs = {"optuna-tpe": 40, "syne-tune-evolution": 500, "syne-tune-evolution-10": 500, "neps-bayesian": 3}
    for data, (reward, objective) in sets.items():
        for name in SEARCHERS:
            jobs[f"final/{data}/{name}"] = Job(table=path, searcher=name, reward=reward, objective=objective)
        for name, runs in runs_to_optimum.items():
            jobs[f"to-optimum/{data}/{name}"] = Job(
                table=path, searcher=name, reward=objective, objective=objective, queries=1000, runs=runs
            )
        for name, runs in rival_runs.items():
            jobs[f"final/{data}/{name}"] = Job(table=path, searcher=name, reward=reward, objective=objective, runs=runs)
            jobs[f"to-optimum/{data}/{name}"] = Job(
                table=path,
                searcher=name,
                reward=objective,
                objective=objective,
                queries=1000 if name.startswith("syne") else 100,
                runs=min(runs, 300),
            )
    for device in ("lat_ms_raspi4", "lat_ms_pixel3", "lat_ms_gold_6226"):
        for share in (20, 40, 60):
            bound = f"{device}<={float(np.percentile(table.columns[device], share)):.4f}"
            for name in ("random", "evolution", "local", "predictor"):
                jobs[f"bounded/{device}/{share}%/{name}"] = Job(
                    table=path, searcher=name, reward="c100_test200", objective="c100_test200", bound=bound, runs=100
                )
    return {name: Job(**{**asdict(job), "until_optimum": name.startswith("to-optimum")}) for name, job in jobs.items()}


def versions() -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    found = {name: told for name in RIVALS if (told := installed(name))}
    return {"python": platform.python_version(), "numpy": np.__version__, "rivals": found, "commit": commit}


def run_suite(jobs: dict[str, Job], out: Path, processes: int, only: list[str]) -> None:
    """Run what the file does not hold yet, of the names that contain one of `only`."""
    for name, job in jobs.items():
        kept = json.loads(out.read_text()) if out.exists() else {}
        wanted = not only or any(part in name for part in only)
        there = job.searcher in SEARCHERS or installed(job.searcher) is not None
        if wanted and there and name not in kept:
            result = report(job, processes)
            print(line(name, result), flush=True)
            kept = json.loads(out.read_text()) if out.exists() else {}
            kept[name] = result | {"versions": versions()}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(written(kept))


def written(results: dict[str, Any]) -> str:
    """JSON with one line for each result."""
    rows = [f" {json.dumps(name)}: {json.dumps(results[name])}" for name in sorted(results)]
    return "{\n" + ",\n".join(rows) + "\n}\n"


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", required=True)
    parser.add_argument("--choices", default="", help="columns that are choices, with commas")
    parser.add_argument("--reward")
    parser.add_argument("--objective")
    parser.add_argument("--searcher", choices=[*SEARCHERS, *RIVALS])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--bound", help="on columns of the table, such as lat_ms_pixel3<=8")
    parser.add_argument("--until-optimum", action="store_true")
    parser.add_argument("--suite", action="store_true")
    parser.add_argument("--only", nargs="*", default=[], help="of the suite, results whose name contains one of these")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser


def main(jobs: Any = suite) -> None:
    arguments = parser().parse_args()
    if arguments.suite:
        if arguments.json is None:
            parser().error("--suite needs --json, the file that it adds to")
        run_suite(jobs(arguments.table), arguments.json, arguments.processes, arguments.only)
        return
    if missing := [name for name in ("searcher", "reward", "objective") if getattr(arguments, name) is None]:
        parser().error(f"needs --{', --'.join(missing)}, or --suite")
    fields = ("table", "searcher", "reward", "objective", "queries", "runs", "bound", "until_optimum")
    job = Job(
        **{name: getattr(arguments, name) for name in fields},
        choices=tuple(name for name in arguments.choices.split(",") if name),
    )
    result = report(job, arguments.processes)
    print(line(job.searcher, result))
    if arguments.json is not None:
        arguments.json.write_text(written({job.searcher: result | {"versions": versions()}}))


if __name__ == "__main__":
    main()
