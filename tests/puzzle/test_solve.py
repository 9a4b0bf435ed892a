"""The solver against brute force: scores, feasibility, the nearest point, diversity; and tables as JSON."""

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.budget import Bound, Budget
from befit.errors import BadBudget, BadTable, BefitError, Infeasible
from befit.puzzle import knapsack
from befit.puzzle import solve as module
from befit.puzzle.solve import Option, Solution, Table, best_batch, solve, solve_file

NAMES = ("a", "b", "c")


def option(score: float, **costs: float) -> Option:
    return Option(name=f"{score:g}", score=score, costs=costs)


def at_most(cost: str, value: float) -> Bound:
    return Bound(cost=cost, op="<=", value=value)


def random_case(rng: random.Random) -> tuple[Table, list[Bound]]:
    """Up to 5 layers of up to 5 options: ties, negative scores, integers, bytes and tiny units, two-sided bounds."""
    whole, unit = rng.random() < 0.4, rng.choice([1.0, 1e-6, 1e11])

    def cost() -> float:
        return (rng.randint(0, 5) if whole else rng.uniform(-1, 5)) * unit

    def score() -> float:
        return rng.choice([rng.gauss(0, 1), float(rng.randint(-1, 2))])

    layers = tuple(
        tuple(option(score(), **{name: cost() for name in NAMES}) for _ in range(rng.randint(1, 5)))
        for _ in range(rng.randint(1, 5))
    )
    bounds = list[Bound]()
    for name in NAMES:
        low = sum(min(o.costs[name] for o in options) for options in layers)
        high = sum(max(o.costs[name] for o in options) for options in layers)
        if rng.random() < 0.7:
            bounds.append(at_most(name, low + (high - low) * rng.uniform(-0.05, 0.8)))
        if rng.random() < 0.3:
            bounds.append(Bound(cost=name, op=">=", value=low + (high - low) * rng.uniform(0.1, 1.05)))
    return Table(layers=layers, fixed=rng.choice([{}, {"a": unit}])), bounds


def enumerate_all(table: Table) -> list[tuple[float, tuple[int, ...], dict[str, float]]]:
    found = []
    for choice in itertools.product(*(range(len(options)) for options in table.layers)):
        taken = [table.layers[i][j] for i, j in enumerate(choice)]
        costs = {name: math.fsum([table.fixed.get(name, 0.0)] + [o.costs[name] for o in taken]) for name in table.costs}
        found.append((math.fsum(o.score for o in taken), choice, costs))
    return found


def keeps(costs: dict[str, float], bounds: Sequence[Bound]) -> bool:
    return all(costs[b.cost] <= b.value if b.op == "<=" else costs[b.cost] >= b.value for b in bounds)


def violation(costs: Any, bounds: Sequence[Bound]) -> float:
    """Largest fraction by which a bound is broken."""
    over = [(costs[b.cost] - b.value) * (1 if b.op == "<=" else -1) / (abs(b.value) or 1) for b in bounds]
    return max(0.0, *over)


@pytest.mark.parametrize("listed", [knapsack.LISTED, 12, 0], ids=["list", "both", "HiGHS"])
def test_equals_brute_force(monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    """Both ways of solving, and one after the other, find the best of all choices, or the nearest point if none fits."""
    monkeypatch.setattr(knapsack, "LISTED", listed)
    rng = random.Random(7)
    infeasible = 0
    for case in range(200 if listed == knapsack.LISTED else 60):
        table, bounds = random_case(rng)
        everything = enumerate_all(table)
        feasible = [(score, choice) for score, choice, costs in everything if keeps(costs, bounds)]
        if feasible:
            (solution,) = solve(table, bounds)
            assert solution.score == min(feasible)[0], case
            assert (solution.score, solution.choice, solution.costs) in everything
            assert keeps(dict(solution.costs), bounds) and solution.gap == 0
            continue
        infeasible += 1
        with pytest.raises(Infeasible) as caught:
            solve(table, bounds)
        nearest = min(violation(costs, bounds) for _, _, costs in everything)
        # The largest violation is minimal up to the thousandth that the other bounds count.
        assert violation(caught.value.nearest, bounds) <= nearest * 1.002 + 1e-6, case
        assert caught.value.nearest.keys() == {bound.cost for bound in bounds}
        reached = [costs for _, _, costs in everything if caught.value.nearest.items() <= costs.items()]
        assert reached, "the nearest point is a choice of the table"
    assert infeasible > 10


def test_of_equal_choices_the_first_is_taken() -> None:
    same = tuple(option(1.0, a=1.0) for _ in range(3))
    assert solve(Table(layers=(same,) * 4), [at_most("a", 4.0)])[0].choice == (0, 0, 0, 0)
    # Either layer may give way at the same score; the choice that is first in order is returned.
    pair = (option(0.0, a=2.0), option(1.0, a=1.0))
    assert solve(Table(layers=(pair, pair)), [at_most("a", 3.0)])[0].choice == (0, 1)


@pytest.mark.parametrize("listed", [knapsack.LISTED, 0], ids=["list", "HiGHS"])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e11])
def test_a_bound_is_kept_to_the_last_digit(monkeypatch: pytest.MonkeyPatch, listed: int, unit: float) -> None:
    """A better choice that breaks the bound by one part in 1e12, far within HiGHS's tolerance, is not returned."""
    monkeypatch.setattr(knapsack, "LISTED", listed)
    layers = tuple((option(0.0, a=unit * (1 + 4e-12)), option(0.1 + i, a=unit * 0.25)) for i in range(4))
    bounds = [at_most("a", 4 * unit)]
    assert solve(Table(layers=layers), bounds)[0].choice == (1, 0, 0, 0)
    exactly = tuple((replace(first, costs={"a": unit}), second) for first, second in layers)
    assert solve(Table(layers=exactly), bounds)[0].choice == (0, 0, 0, 0)


def test_one_absurd_score_does_not_blunt_the_others() -> None:
    layers = tuple((option(1e-7 * (i + 1), a=1.0), option(0.0, a=2.0), option(1e9, a=0.0)) for i in range(6))
    assert solve(Table(layers=layers), [at_most("a", 11.0)])[0].choice == (0, 1, 1, 1, 1, 1)


def test_no_bounds_take_the_best_of_every_layer() -> None:
    table = Table(layers=((option(2.0), option(-1.0)), (option(0.5),)), fixed={})
    (solution,) = solve(table, [])
    assert solution == Solution(score=-0.5, choice=(1, 0), costs={})


@pytest.mark.parametrize("listed", [knapsack.LISTED, 0], ids=["list", "HiGHS"])
def test_diverse_solutions_equal_brute_force(monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    monkeypatch.setattr(knapsack, "LISTED", listed)
    rng = random.Random(3)
    for _ in range(25):
        table, bounds = random_case(rng)
        share, count = rng.choice([0.0, 0.2, 0.5, 1.0]), 4
        apart = max(1, math.ceil(share * len(table.layers)))
        left = [(score, choice) for score, choice, costs in enumerate_all(table) if keeps(costs, bounds)]
        if not left:
            continue
        found = solve(table, bounds, solutions=count, difference=share)
        for solution in found:
            assert solution.score == min(left)[0]
            left = [
                (score, choice)
                for score, choice in left
                if sum(x != y for x, y in zip(choice, solution.choice, strict=True)) >= apart
            ]
        assert len(found) == count or not left


def test_a_dominated_option_serves_as_second_solution() -> None:
    layer = (option(0.0, a=1.0), option(5.0, a=2.0), option(9.0, a=9.0))
    table = Table(layers=(layer, layer))
    found = solve(table, [at_most("a", 4.0)], solutions=9, difference=1.0)
    assert [s.choice for s in found] == [(0, 0), (1, 1)]


def test_forbidden_choices_are_not_returned() -> None:
    layer = (option(0.0, a=1.0), option(1.0, a=1.0))
    table = Table(layers=(layer, layer))
    bounds = [at_most("a", 2.0)]
    assert solve(table, bounds, forbidden=[(0, 0)])[0].choice == (0, 1)
    assert solve(table, bounds, forbidden=[(0, 0), (0, 1), [1, 0]])[0].choice == (1, 1)
    with pytest.raises(Infeasible, match="every choice is forbidden") as caught:
        solve(table, bounds, forbidden=list(itertools.product((0, 1), (0, 1))))
    assert caught.value.binding == "forbidden"
    for wrong in ((0,), (0, 2), (-1, 0)):
        with pytest.raises(BadBudget, match="one option index for each of 2 layers"):
            solve(table, bounds, forbidden=[wrong])


def test_infeasible_names_the_bound_and_the_reach_of_each() -> None:
    layer = (option(0.0, memory_bytes=2.0**20, latency_ms=1.0), option(1.0, memory_bytes=2.0**19, latency_ms=3.0))
    table = Table(layers=(layer,) * 4, fixed={"memory_bytes": 2.0**20})
    with pytest.raises(Infeasible) as caught:
        solve(table, Budget.parse("memory=2MiB, latency=100ms").bounds)
    assert caught.value.binding == "memory_bytes"
    assert caught.value.nearest == {"memory_bytes": 3.0 * 2**20, "latency_ms": 12.0}
    for part in (
        "memory cannot be met by any choice",
        "memory is at least 3.00 MiB, asked for at most 2.00 MiB",
        "latency is at least 4.00 ms, asked for at most 100 ms",
        "The nearest choice has memory 3.00 MiB, latency 12.0 ms",
        "Widen memory",
    ):
        assert part in str(caught.value)
    with pytest.raises(Infeasible, match="each bound can be met alone, but not all together") as caught:
        solve(table, Budget.parse("memory=3MiB, latency=5ms").bounds)
    # With 1 of 4 layers small: memory 50 % over, latency 20 % over; with 2: 33 % and 60 % over.
    assert caught.value.binding == "memory_bytes" and caught.value.nearest == {
        "memory_bytes": 4.5 * 2**20,
        "latency_ms": 6.0,
    }


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_bounds_does_not_change_which_one_binds(order: int) -> None:
    table = Table(layers=((option(0.0, a=4.0, b=1.0), option(0.0, a=1.0, b=9.0)),))
    for bounds, binding in (
        ([at_most("a", 3.0), at_most("b", 2.0)], "a"),
        ([at_most("a", 0.5), at_most("b", 4.0)], "a"),
        ([at_most("a", 3.9), at_most("b", 0.5)], "b"),
    ):
        with pytest.raises(Infeasible) as caught:
            solve(table, bounds[::order])
        assert caught.value.binding == binding


def test_both_ways_agree_on_a_large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)

    def layer() -> tuple[Option, ...]:
        weight = rng.lognormvariate(0, 1)
        sizes = [rng.random() for _ in range(54)]
        return tuple(
            option(weight * (1 - x) ** 1.5 * rng.paretovariate(3), a=1e9 * x, b=x * rng.random()) for x in sizes
        )

    table = Table(layers=tuple(layer() for _ in range(80)))
    bounds = [at_most("a", 25e9), at_most("b", 12.0)]
    (listed,) = solve(table, bounds)
    monkeypatch.setattr(knapsack, "LISTED", 0)
    (highs,) = solve(table, bounds)
    assert listed == highs and listed.gap == 0 and keeps(dict(listed.costs), bounds)


def test_an_answer_that_breaks_a_bound_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the search wrong, adding up again would say so."""
    table = Table(layers=((option(0.0, a=2.0), option(1.0, a=1.0)),))
    wrong = knapsack.Found(items=knapsack.np.array([0]), score=0.0, gap=0.0)
    monkeypatch.setattr(module, "best", lambda *_: wrong)
    with pytest.raises(AssertionError, match="breaks a bound"):
        solve(table, [at_most("a", 1.0)])


def test_when_time_runs_out_the_best_known_choice_comes_with_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    layers = tuple(
        tuple(option(200.0 - c, a=c, b=float(rng.randint(1, 99))) for c in map(float, rng.sample(range(1, 99), 30)))
        for _ in range(40)
    )
    table = Table(layers=layers)
    bounds = [at_most("a", 1800.5), at_most("b", 1800.5)]
    monkeypatch.setattr(knapsack, "LISTED", 200)
    (solution,) = solve(table, bounds, seconds=0.01)
    assert keeps(dict(solution.costs), bounds)
    lower = 40 * 200.0 - 1800.5
    assert solution.score - solution.gap <= 40 * 200.0 - 1800 and solution.score >= lower
    assert ("gap" in solution.to_json()) == (solution.gap > 0)
    monkeypatch.setattr(module, "best", _too_slow)
    with pytest.raises(BefitError, match="allow more seconds"):
        solve(table, bounds, seconds=0.01)


def _too_slow(*_: object) -> None:
    raise TimeoutError


def test_impossible_requests_are_refused() -> None:
    table = Table(layers=((option(0.0, a=1.0),),))
    for bounds, why in (
        ([Bound(cost="a", op="<=", value=0.5, relative=True)], "relative to the parent"),
        ([at_most("z", 1.0)], "the table has no cost 'z'; it has a"),
    ):
        with pytest.raises(BadBudget, match=why):
            solve(table, bounds)
    with pytest.raises(BadBudget, match="solutions must be"):
        solve(table, [], solutions=0)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(BadBudget, match="difference must be"):
            solve(table, [], difference=share)


def test_best_batch_takes_the_least_score_then_the_smaller_batch() -> None:
    def table(score: float, memory: float) -> Table:
        return Table(layers=((option(score, a=memory), option(score + 5, a=1.0)),))

    tables = {8: table(0.0, 9.0), 4: table(1.0, 4.0), 2: table(1.0, 2.0), 1: table(3.0, 1.0)}
    batch, solution = best_batch(tables, lambda _: [at_most("a", 4.0)])
    assert (batch, solution.score) == (2, 1.0)
    # Bounds depend on the batch; batch 8 now fits, the others do not.
    assert best_batch(tables, lambda b: [at_most("a", 9.0 if b == 8 else 0.5)])[0] == 8
    with pytest.raises(Infeasible, match="batch 4 comes nearest of 1, 2, 4, 8") as caught:
        best_batch(tables, lambda b: [at_most("a", 0.9 if b == 4 else 0.5)])
    assert caught.value.binding == "a" and caught.value.nearest == {"a": 1.0}
    with pytest.raises(BadTable, match="at least one batch"):
        best_batch({}, lambda _: [])


NUMBERS = st.floats(-1e12, 1e12) | st.integers(-(10**9), 10**9).map(float)
OPTIONS = st.builds(
    Option, name=st.text(max_size=4), score=NUMBERS, costs=st.fixed_dictionaries({"a": NUMBERS, "b c": NUMBERS})
)
TABLES = st.builds(
    Table,
    layers=st.lists(st.lists(OPTIONS, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3).map(tuple),
    fixed=st.dictionaries(st.sampled_from(["a", "b c"]), NUMBERS),
)


@given(TABLES)
def test_tables_round_trip(table: Table) -> None:
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


GOOD: dict[str, Any] = {
    "layers": [
        {"options": [{"name": "x", "score": 1, "costs": {"a": 1}}, {"name": "y", "score": 2, "costs": {"a": 0}}]},
        {"options": [{"name": "z", "score": 0.5, "costs": {"a": 2}}]},
    ],
    "fixed": {"a": 10},
}


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ((), [], "table: expected an object, got []"),
        (("more",), 1, "table: unknown more; the keys are layers, fixed"),
        (("layers",), {}, "layers: expected a list"),
        (("layers",), [], "layers: a table needs at least one layer"),
        (("layers", 1), 3, "layers[1]: expected an object, got 3"),
        (("layers", 1, "more"), 3, "layers[1]: unknown more; the keys are options"),
        (("layers", 1, "options"), [], "layers[1].options: a layer needs at least one option"),
        (("layers", 0, "options"), [], "layers[0].options: a layer needs at least one option"),
        (("layers", 1, "options", 0), {"name": "z"}, "layers[1].options[0]: missing score, costs"),
        (("layers", 0, "options", 1, "name"), 3, "layers[0].options[1].name: expected a text, got 3"),
        (("layers", 0, "options", 1, "score"), "3", "layers[0].options[1].score: expected a number, got '3'"),
        (("layers", 0, "options", 1, "score"), True, "layers[0].options[1].score: expected a number"),
        (
            ("layers", 0, "options", 1, "score"),
            math.nan,
            "layers[0].options[1].score: expected a finite number, got nan",
        ),
        (("layers", 0, "options", 1, "score"), 10**400, "layers[0].options[1].score: expected a finite number"),
        (("layers", 0, "options", 1, "costs"), [], "layers[0].options[1].costs: expected an object"),
        (
            ("layers", 0, "options", 1, "costs"),
            {"b": 1},
            "layers[0].options[1].costs: got b; layers[0].options[0] has a",
        ),
        (("layers", 0, "options", 1, "costs", "a"), math.inf, "layers[0].options[1].costs.a: expected a finite number"),
        (("layers", 0, "options", 1, "costs", "a"), None, "layers[0].options[1].costs.a: expected a number, got None"),
        (("fixed",), 3, "fixed: expected an object, got 3"),
        (("fixed", "b"), 3, "fixed.b: no option has this cost; the options' costs are a"),
        (("fixed", "a"), math.nan, "fixed.a: expected a finite number"),
    ],
)
def test_a_wrong_table_is_refused_with_the_place(path: tuple[str | int, ...], value: object, why: str) -> None:
    data: Any = json.loads(json.dumps(GOOD))
    if not path:
        data = value
    else:
        inner = data
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
    with pytest.raises(BadTable, match=re.escape(why)):
        Table.from_json(data)


def test_a_table_without_fixed_costs() -> None:
    table = Table.from_json({"layers": GOOD["layers"]})
    assert solve(table, [at_most("a", 3.0)])[0].costs == {"a": 3.0}


def test_solve_file(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(GOOD))
    plain = {"score": 1.5, "choice": [0, 0], "costs": {"a": 13.0}, "names": ["x", "z"]}
    assert solve_file(path, "a<=13") == plain
    second = {"score": 2.5, "choice": [1, 0], "costs": {"a": 12.0}, "names": ["y", "z"]}
    assert solve_file(path, "a<=13", solutions=5) == plain | {"solutions": [plain, second]}
    assert solve_file(str(path), "a<=12.5, a>=1")["choice"] == [1, 0]
    with pytest.raises(Infeasible):
        solve_file(path, "a<=11")
    with pytest.raises(BadBudget, match="unknown cost 'memory'"):
        solve_file(path, "memory<=11")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe\x00", b"[1, 2]"])
def test_files_without_a_table_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "table.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadTable):
        solve_file(path, "a<=1")
    with pytest.raises(BadTable, match="cannot be read"):
        solve_file(tmp_path, "a<=1")


def test_nothing_but_results_reaches_standard_output() -> None:
    """HiGHS prints lines of its own; whatever it prints must not end up among results."""
    program = (
        "import ctypes, sys\n"
        "from befit.puzzle import knapsack\n"
        "with knapsack._result_stream_kept_clean():\n"
        "    ctypes.CDLL(None).puts(b'noise')\n"
        "print('result')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("result\n", "noise\n")
