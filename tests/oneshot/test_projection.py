"""Projection against the enumeration of whole spaces."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.arch.cell import cell_space
from befit.arch.space import Arch, Choice, Space
from befit.arch.task import ImageTask
from befit.budget import Budget
from befit.cost.images import count_cell
from befit.errors import Infeasible
from befit.oneshot import projection
from befit.oneshot.projection import Limits, project, ranked, score_of

SPACE = Space(
    {
        "mixer": Choice("conv", "pool", "none"),
        "kernel": Choice(3, 5, 7, when={"mixer": "conv"}),
        "width": Choice(8, 16),
        "gate": Choice(True, False, when={"width": 16}),
    },
    legal=lambda arch: not (arch["mixer"] == "pool" and arch["width"] == 8),
)

ALL = list(SPACE.enumerate())


def price(arch: Arch) -> dict[str, float]:
    """Not additive."""
    width, kernel = int(arch["width"]), int(arch.get("kernel", 1))
    return {"params": float(width * width * kernel + 3 * bool(arch.get("gate"))), "macs": float(100 - width * kernel)}


def scores(draw: random.Random, low: float = -5.0, high: float = 0.0) -> dict[str, list[float]]:
    return {n: [round(draw.uniform(low, high), 1) for _ in c.options] for n, c in SPACE.choices.items()}


@given(st.integers(0, 10_000), st.sampled_from([(-5.0, 0.0), (-1.0, 1.0), (0.0, 3.0)]))
def test_ranked_is_every_legal_arch_in_order_of_its_score(seed: int, bounds: tuple[float, float]) -> None:
    own = scores(random.Random(seed), *bounds)
    found = list(ranked(SPACE, own))
    assert sorted(map(str, found)) == sorted(map(str, ALL))
    values = [score_of(SPACE, own, arch) for arch in found]
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(values))
    assert values[0] == pytest.approx(
        max(sum(own[n][SPACE.choices[n].options.index(v)] for n, v in a.items()) for a in ALL)
    )


@given(st.integers(0, 10_000), st.floats(50, 1900), st.floats(0, 100))
def test_the_projection_is_the_best_inside_the_budget(seed: int, params: float, macs: float) -> None:
    own, budget = scores(random.Random(seed)), Budget.parse(f"params<={params!r}, macs<={macs + 1!r}")
    inside = [arch for arch in ALL if budget.met(price(arch))]
    limits = Limits(price=price, budget=budget)
    if not inside:
        with pytest.raises(Infeasible) as told:
            project(SPACE, own, limits)
        least = min(max(b.excess(price(arch)[b.cost]) for b in budget.bounds) for arch in ALL)
        assert max(b.excess(told.value.nearest[b.cost]) for b in budget.bounds) == pytest.approx(least)
        assert told.value.binding in map(str, budget.bounds)
        return
    found = project(SPACE, own, limits)
    assert found.arch in inside and found.exact and found.costs == price(found.arch)
    assert found.score == pytest.approx(max(score_of(SPACE, own, arch) for arch in inside))
    assert found.best == pytest.approx(max(score_of(SPACE, own, arch) for arch in ALL))


def test_without_a_budget_it_is_the_most_wished_for() -> None:
    own = scores(random.Random(3))
    found = project(SPACE, own, Limits(price=price))
    assert found.arch == next(ranked(SPACE, own)) and found.score == found.best and found.looked == 1


def test_cells_meet_a_bound_on_parameters_exactly() -> None:
    task, space, draw = ImageTask(channels=1, height=8, width=8, classes=10), cell_space(), random.Random(0)

    def count(arch: Arch) -> dict[str, float]:
        return count_cell(arch, task, channels=8, cells=1).costs()

    costs = {arch: count(arch)["params"] for arch in space.enumerate()}
    own = {name: [draw.gauss(0, 1) for _ in range(5)] for name in space.choices}
    for share in (0.1, 0.5):
        bound = min(costs.values()) + share * (max(costs.values()) - min(costs.values()))
        found = project(space, own, Limits(price=count, budget=Budget.parse(f"params<={bound!r}")))
        assert found.costs["params"] <= bound
        wanted = max(score_of(space, own, arch) for arch, cost in costs.items() if cost <= bound)
        assert found.score == pytest.approx(wanted)


def test_a_space_too_large_to_look_through_is_searched_by_single_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "LOOKS", 20)
    space = Space({f"c{i}": Choice(*range(10)) for i in range(12)})
    own = {name: [0.1 * k for k in range(10)] for name in space.choices}  # wishes for what is dear

    def total(arch: Arch) -> dict[str, float]:
        return {"params": float(sum(int(v) for v in arch.values()))}

    found = project(space, own, Limits(price=total, budget=Budget.parse("params<=30")))
    assert found.costs["params"] == 30 and not found.exact and found.score < found.best
    with pytest.raises(Infeasible, match=r"none of .* archs that were looked at meets params<=100"):
        project(
            space,
            own,
            Limits(price=lambda arch: {"params": 200 + total(arch)["params"]}, budget=Budget.parse("params<=100")),
        )


def test_a_price_that_is_no_number_is_not_inside() -> None:
    own = scores(random.Random(0))
    with pytest.raises(Infeasible):
        project(SPACE, own, Limits(price=lambda _: {"params": math.nan}, budget=Budget.parse("params<=100")))
