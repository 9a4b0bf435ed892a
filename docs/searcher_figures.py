"""What is recorded of searchers on tables of trained networks, for docs/results.md: imported by search_figures.py.

Results are named KIND/DATA SET/SEARCHER, or KIND/SEARCHER where there is one data set. Any of them may be missing.
"""

from collections.abc import Mapping
from typing import Any

from records import made_at, table

DATA_SETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "": "CIFAR-10"}
"""Titles of the data sets; NAS-Bench-Macro has only one and does not name it."""
SEARCHERS = {
    "random": "`random`",
    "evolution": "`evolution`",
    "local": "`local`",
    "reinforce": "`reinforce`",
    "predictor": "`predictor`",
    "optuna-tpe": "Optuna's TPE",
    "syne-tune-evolution": "Syne Tune's evolution, its defaults",
    "syne-tune-evolution-10": "Syne Tune's evolution, population 10",
    "neps-bayesian": "NePS' Bayesian optimisation",
}
"""Titles of befit's searchers and of other tools', in the order of the tables."""


def nas_bench_201(results: Mapping[str, Any]) -> str:
    """Searchers on NAS-Bench-201: accuracy after some queries, queries to the optimum, and under bounds on latency."""
    return (
        "`python benchmarks/nas_bench_201.py --suite`: searches in a table of trained cells, a query reads one row. befit's "
        "searchers ask for nothing twice, other tools' repeats count; the predictor also sees the costs that the table has.\n"
        + _finals(results)
        + _to_optimum(results)
        + _bounded(results)
        + _made_in(results)
    )


def nas_bench_macro(results: Mapping[str, Any]) -> str:
    """Searchers on NAS-Bench-Macro: the same without short trainings and bounds."""
    return (
        "`python benchmarks/nas_bench_macro.py --suite`: searches in a table of trained networks with a single accuracy, "
        "reward and objective at once.\n" + _finals(results) + _to_optimum(results) + _made_in(results)
    )


def _grouped(results: Mapping[str, Any], kind: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Searcher -> data set -> row, of names such as final/cifar10/random and final/random, in the order of the tables."""
    found = dict[str, dict[str, Mapping[str, Any]]]()
    for name, row in results.items():
        first, *between, searcher = name.split("/")
        if first == kind:
            found.setdefault(searcher, {})["/".join(between)] = row
    order = [*SEARCHERS, *(name for name in found if name not in SEARCHERS)]
    return {name: found[name] for name in order if name in found}


def _data_sets(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Mapping[str, Any]]:
    """The data sets that any searcher was asked about, each with one of its rows."""
    return {data: own[data] for data in DATA_SETS for own in rows.values() if data in own}


def _searcher(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    versions = sorted({told for row in rows.values() if (told := row["versions"]["rivals"].get(name))})
    return " ".join([SEARCHERS.get(name, name), *(f"({told})" for told in versions)])


def _finals(results: Mapping[str, Any]) -> str:
    rows = _grouped(results, "final")
    data = _data_sets(rows)
    if not data:
        return ""
    best = ", ".join(f"{row['optimum']:.2f} % on {DATA_SETS[name]}" for name, row in data.items())
    columns = ", ".join(f"`{row['objective']}` of the best by `{row['reward']}`" for row in data.values())
    queries = max(row["queries"] for row in data.values())
    cells = [
        [
            _searcher(name, own),
            *(
                f"{own[one]['final']['mean']:.2f} ± {own[one]['final']['std']:.2f}" if one in own else ""
                for one in data
            ),
            _distinct(own, "runs"),
        ]
        for name, own in rows.items()
    ]
    titles = ["searcher", *(DATA_SETS[name] for name in data), "runs"]
    return (
        f"\nAccuracy after {queries} queries, mean ± standard deviation over runs ({columns}). The table's best: {best}.\n\n"
        + table(titles, cells)
    )


def _to_optimum(results: Mapping[str, Any]) -> str:
    rows = _grouped(results, "to-optimum")
    data = _data_sets(rows)
    if not data:
        return ""
    objectives = ", ".join(f"`{row['objective']}`" for row in data.values())
    cells = [
        [_searcher(name, own), *(_queries(own[one]) if one in own else "" for one in data), _distinct(own, "runs")]
        for name, own in rows.items()
    ]
    stopped = any(row["share_reached_optimum"] < 1 for own in rows.values() for row in own.values())
    bound = (
        " Runs that were stopped before that count with all their queries, so that means, and medians where these "
        "were half of the runs or more, are lower bounds."
    )
    return (
        f"\nQueries until the table's best was among them, mean (median), when a query reads the objective itself ({objectives})."
        f"{bound * stopped}\n\n" + table(["searcher", *(DATA_SETS[name] for name in data), "runs"], cells)
    )


def _queries(row: Mapping[str, Any]) -> str:
    """Mean and median; lower bounds where runs ended before the optimum."""
    told, share = row["queries_to_optimum"], row["share_reached_optimum"]
    if share == 1:
        return f"{told['mean']:.1f} ({told['median']:g})"
    median = f"≥ {told['median']:g}" if share <= 0.5 else f"{told['median']:g}"
    return f"≥ {told['mean']:.1f} ({median}); {share:.0%} reach it in {row['queries']}"


def _bounded(results: Mapping[str, Any]) -> str:
    rows = _grouped(results, "bounded")
    places = list({place: row for own in rows.values() for place, row in own.items()}.items())
    if not places:
        return ""
    places.sort(key=lambda one: (one[0].split("/")[0], one[1]["optimum"]))
    cells = list[list[str]]()
    for place, row in places:
        device, share = place.split("/")
        limit = float(row["bound"].partition("<=")[2])
        told = [own.get(place) for own in rows.values()]
        cells.append(
            [
                device.removeprefix("lat_ms_"),
                f"{limit:.3g} ms ({share})",
                f"{row['optimum']:.2f} %",
                *map(_regret, told),
            ]
        )
    first, runs = places[0][1], _distinct(dict(places), "runs")
    titles = [
        "device",
        "bound (share of cells within)",
        "best within",
        *(_searcher(name, own) for name, own in rows.items()),
    ]
    return (
        f"\nWith a bound on a device's latency, which is never broken: by how many points the best of {first['queries']} queries "
        f"(`{first['objective']}`) misses the best cell within the bound, mean over {runs} runs, and the share of runs "
        "that find that cell.\n\n" + table(titles, cells)
    )


def _regret(row: Mapping[str, Any] | None) -> str:
    return f"{row['best_asked_regret']['mean']:.2f} ({row['share_reached_optimum']:.0%})" if row else ""


def _distinct(rows: Mapping[str, Mapping[str, Any]], name: str) -> str:
    return " / ".join(dict.fromkeys(f"{row[name]}" for row in rows.values()))


def _made_in(results: Mapping[str, Any]) -> str:
    """Versions and commits; no machine, for the seeds alone decide the figures."""
    versions = [row["versions"] for row in results.values()]
    used = sorted({f"Python {told['python']}, NumPy {told['numpy']}" for told in versions})
    return f"\nNothing is timed; {'; '.join(used)}, seeds from 0.\n" + made_at(*versions)
