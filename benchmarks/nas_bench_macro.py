"""Searchers on NAS-Bench-Macro (Su et al., CVPR 2021): 8 layers of 3 kinds, 6,561 networks trained on CIFAR-10.

    python benchmarks/nas_bench_macro.py --table nas_bench_macro.json.gz --suite --json results/nas_bench_macro.json

The table holds test accuracies only; `mean_acc`, the mean of three trainings, is reward and objective at once. Everything else is
as in nas_bench_201.py, whose options apply.
"""

from nas_bench_201 import Job, main

SEARCHERS = {"random": 300, "evolution": 300, "local": 300, "predictor": 200}


def suite(path: str) -> dict[str, Job]:
    """The best after 100 queries, and the queries to the optimum."""
    jobs = dict[str, Job]()
    for name, runs in SEARCHERS.items():
        jobs[f"final/{name}"] = Job(table=path, searcher=name, reward="mean_acc", objective="mean_acc", runs=runs)
        if name != "random":
            jobs[f"to-optimum/{name}"] = Job(
                table=path,
                searcher=name,
                reward="mean_acc",
                objective="mean_acc",
                queries=1000,
                runs=runs,
                until_optimum=True,
            )
    return jobs


if __name__ == "__main__":
    main(suite)
