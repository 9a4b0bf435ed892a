"""What a study says about its space, against closed forms and brute force."""

import itertools
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.search.learned import effects, front_of, growth, hypervolume, omega_squared


def test_omega_squared_is_the_textbook_formula() -> None:
    groups = [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]
    # SSB = 6 * 2^2 = 24, SSW = 2 + 2 = 4, dfW = 4, MSW = 1: (24 - 1 * 1) / (28 + 1).
    assert omega_squared(groups) == pytest.approx(23 / 29)
    assert omega_squared([[1.0, 2.0], [1.5, 1.5]]) == 0.0  # equal means: chance alone would explain more
    assert omega_squared([[1.0, 2.0]]) is None and omega_squared([[1.0], [2.0]]) is None
    assert omega_squared([[1.0, 1.0], [1.0, 1.0]]) is None


def test_chance_explains_nothing_on_average() -> None:
    rng = random.Random(0)
    values = [omega_squared([[rng.gauss(0, 1) for _ in range(20)] for _ in range(4)]) or 0.0 for _ in range(300)]
    assert sum(values) / len(values) < 0.02


def test_effects_count_trials_and_leave_out_what_has_no_score() -> None:
    rows = [({"a": 1, "b": "x"}, 0.5), ({"a": 1, "b": "y"}, 0.7), ({"a": 2, "b": "x"}, 0.9), ({"a": 2}, None)]
    records: list[Any] = [SimpleNamespace(arch=arch, value=value) for arch, value in rows]
    found = effects(records)
    assert found["a"]["options"]["1"] == {"mean": pytest.approx(0.6), "trials": 2}
    assert found["a"]["options"]["2"]["trials"] == 1 and found["b"]["options"]["x"]["mean"] == pytest.approx(0.7)


def by_grid(points: list[tuple[int, ...]], side: int) -> int:
    """Unit cells below at least one point."""
    cells = itertools.product(range(side), repeat=len(points[0]) if points else 2)
    return sum(any(all(c < p for c, p in zip(cell, point, strict=True)) for point in points) for cell in cells)


@given(st.integers(1, 3).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 5)] * n), min_size=1, max_size=7)))
def test_hypervolume_is_the_number_of_unit_cells(points: list[tuple[int, ...]]) -> None:
    assert hypervolume(points, [0] * len(points[0])) == pytest.approx(by_grid(points, 5))


def test_hypervolume_of_a_line_of_points_in_closed_form() -> None:
    n = 9
    assert hypervolume([(i, n - i) for i in range(n + 1)], (0, 0)) == pytest.approx(n * (n - 1) / 2)
    assert hypervolume([], (0, 0)) == 0.0


def test_the_front_is_what_nothing_dominates() -> None:
    assert front_of([(1, 1), (2, 0), (0, 2), (0, 0), (2, 0)]) == [0, 1, 2, 4]


def test_growth_never_falls_and_skips_what_has_no_score() -> None:
    costs = [{"params": 10.0}, {"params": 5.0}, {"params": 10.0}, {}]
    grown = growth([0.5, 0.5, 0.9, None], costs, ["params"])
    assert grown == sorted(grown) and len(grown) == 4
    assert grown[1] == pytest.approx(0.25) and grown[2] == pytest.approx(0.25, abs=1e-6) and grown[3] == grown[2]
