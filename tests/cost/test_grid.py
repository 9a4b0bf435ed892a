"""Interpolation and its repair against what they must be: exact for products of widths, monotone whatever was measured."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.cost.grid import Grid, monotone
from befit.errors import BadTable, IllegalArch

POINTS = ((8, 16, 32), (1, 4), (3,))
AXES = ("hidden", "heads", "state")


def work(hidden: int, heads: int, state: int) -> float:
    """Of a layer: linear in every width alone."""
    return 0.5 + 0.01 * hidden + 0.3 * heads + 0.002 * hidden * heads * state


GRID = Grid(axes=AXES, points=POINTS, ms=tuple(work(*own) for own in product(*POINTS)))


@given(st.integers(8, 32), st.integers(1, 4))
def test_products_of_widths_are_interpolated_exactly(hidden: int, heads: int) -> None:
    found = GRID.at({"hidden": hidden, "heads": heads, "state": 3, "unknown": 7})
    assert found == pytest.approx(work(hidden, heads, 3), rel=1e-12)


def test_where_it_was_measured_it_is_what_was_measured() -> None:
    noisy = Grid(axes=("a", "b"), points=((1, 5, 6), (2, 9)), ms=(3.0, 1.0, 4.0, 1.5, 9.0, 2.6))
    found = [noisy.at({"a": a, "b": b}) for a, b in product(*noisy.points)]
    assert found == list(noisy.ms)


def test_between_two_points_it_is_a_straight_line() -> None:
    bent = Grid(axes=("a",), points=((0, 10, 20),), ms=(1.0, 2.0, 9.0))
    assert [bent.at({"a": a}) for a in (5, 10, 15)] == [1.5, 2.0, 5.5]


@pytest.mark.parametrize("hidden", [7, 33])
def test_outside_of_the_grid_nothing_is_known(hidden: int) -> None:
    with pytest.raises(IllegalArch, match=f"hidden = {hidden}: .* from 8 to 32"):
        GRID.at({"hidden": hidden, "heads": 1, "state": 3})


@given(st.lists(st.floats(-5, 5), min_size=24, max_size=24))
def test_repaired_values_never_fall_and_are_never_below_nothing(values: list[float]) -> None:
    found = monotone(np.array(values).reshape(2, 3, 4))
    assert found.min() >= 0
    for axis in range(3):
        assert (np.diff(found, axis=axis) >= 0).all()


@given(st.lists(st.floats(0, 5), min_size=12, max_size=12))
def test_values_that_never_fall_are_left_as_they_are(steps: list[float]) -> None:
    rising = np.array(steps).reshape(3, 4).cumsum(axis=0).cumsum(axis=1)
    assert np.array_equal(monotone(rising), rising)


def test_a_repair_moves_neither_up_nor_down_on_the_whole() -> None:
    assert monotone(np.array([1.0, 4.0, 2.0, 5.0])).tolist() == [1.0, 3.0, 3.0, 5.0]


def test_json_is_strict_and_loses_nothing() -> None:
    told = GRID.to_json()
    assert Grid.from_json(told) == GRID
    for wrong in (
        told | {"more": 1},
        told | {"ms": told["ms"][1:]},
        told | {"points": [[16, 8, 32], [1, 4], [3]]},
        told | {"points": None},
        told | {"ms": ["much"] * 6},
        [],
    ):
        with pytest.raises(BadTable, match="latency"):
            Grid.from_json(wrong)
