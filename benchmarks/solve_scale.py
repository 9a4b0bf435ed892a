"""How long `befit.puzzle.solve` takes on tables the size of a real run: 80 layers x 54 options, two bounds.

    python benchmarks/solve_scale.py [--out benchmarks/results/solve_scale.json]

54 options = 6 attentions x 9 FFNs. Kinds of table:

real         costs by shape, the same in every layer; scores with a log-normal weight for each layer and heavy-tailed noise
measured     as real, costs of each layer with noise of their own
heavy        as measured, every 50th score 1000 times too large, as a failed replacement would be
correlated   uniform costs, scores nearly the costs saved: many near-equal choices, known to be hard for knapsacks
               (a tenth of the spread is noise)

`tight` bounds leave 5 % of the way from the cheapest choice to the dearest, `loose` ones 60 %; `unequal` 20 % and 60 %
(correlated tables, where no option is cheap in both costs: 25 %, 60 %, 30 % and 50 %).
A time limit of 60 s holds for each; a `gap` above 0 says that it was reached.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import scipy

from befit.budget import Bound
from befit.puzzle.solve import Option, Table, solve

LAYERS, HEADS, WIDTHS = 80, (8, 4, 2, 1, 0.25, 0), (1, 0.87, 0.75, 0.62, 0.5, 0.37, 0.25, 0.12, 0)
SHARES = {"tight": (0.05, 0.05), "unequal": (0.2, 0.6), "loose": (0.6, 0.6)}
SHARES_CORRELATED = {"tight": (0.25, 0.25), "unequal": (0.3, 0.5), "loose": (0.6, 0.6)}


def table(kind: str, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    shape = (LAYERS, len(HEADS) * len(WIDTHS))
    heads, widths = (np.array(axis).ravel() for axis in np.meshgrid(HEADS, WIDTHS, indexing="ij"))
    memory = np.tile(heads * 32e6 + widths * 700e6, (LAYERS, 1))
    time_ms = np.tile(0.05 * (heads > 0) + 0.03 * heads + 0.02 * (widths > 0) + 0.6 * widths, (LAYERS, 1))
    if kind == "correlated":
        memory, time_ms = rng.uniform(1e6, 1e9, shape), rng.uniform(0.01, 1, shape)
        score = 2 - memory / 1e9 - time_ms + rng.normal(0, 0.05, shape)
    else:
        weight = rng.lognormal(0, 1, (2, LAYERS, 1))
        score = weight[0] * (1 - heads / 8) ** 1.5 * rng.lognormal(0, 0.3, shape)
        score += weight[1] * (1 - widths) ** 1.5 * rng.lognormal(0, 0.3, shape)
        score += 0.01 * rng.standard_t(2, shape)
        score[:, 0] = 0
        if kind != "real":
            memory, time_ms = memory * rng.uniform(0.9, 1.1, shape), time_ms * rng.uniform(0.9, 1.1, shape)
        if kind == "heavy":
            score.ravel()[25::50] *= 1e3
    layers = [
        tuple(
            Option(
                name=f"{i}.{j}", score=score[i, j], costs={"memory_bytes": memory[i, j], "latency_ms": time_ms[i, j]}
            )
            for j in range(shape[1])
        )
        for i in range(LAYERS)
    ]
    return Table(layers=tuple(layers), fixed={"memory_bytes": 2e9, "latency_ms": 1.0})


def bounds(of: Table, shares: tuple[float, float]) -> list[Bound]:
    """Upper bounds at these shares of the way from the cheapest choice to the dearest."""
    found = []
    for cost, share in zip(of.costs, shares, strict=True):
        low = sum(min(o.costs[cost] for o in layer) for layer in of.layers)
        high = sum(max(o.costs[cost] for o in layer) for layer in of.layers)
        found.append(Bound(cost=cost, op="<=", value=of.fixed[cost] + low + share * (high - low)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "solve_scale.json")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for kind in ("real", "measured", "heavy", "correlated"):
        for name, shares in (SHARES_CORRELATED if kind == "correlated" else SHARES).items():
            seconds, gaps = [], []
            for seed in range(arguments.seeds):
                of = table(kind, seed)
                start = time.perf_counter()
                answer = solve(of, bounds(of, shares))[0]
                seconds.append(round(time.perf_counter() - start, 3))
                gaps.append(answer.gap)
            rows.append({"table": kind, "bounds": name, "seconds": seconds, "largest_gap": max(gaps)})
            print(f"{kind:11} {name:8} max {max(seconds):7.3f} s   largest gap {max(gaps):.2g}", flush=True)
    machine = {"processor": platform.machine(), "python": platform.python_version(), "scipy": scipy.__version__}
    result = {"layers": LAYERS, "options": len(HEADS) * len(WIDTHS), "machine": machine, "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
