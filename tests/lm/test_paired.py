"""Intervals cover as often as they say, and agree with the formulas of the textbook."""

import math

import numpy as np
import pytest
from scipy import stats

from befit.lm.paired import able, above_zero, difference, mean


def test_the_standard_error_is_the_sample_one() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert mean(values).stderr == pytest.approx(stats.sem(values)) and mean(values).mean == 0.6
    assert mean([2.0]).stderr is None and mean([2.0]).items == 1


def test_numbers_are_compared_by_students_t() -> None:
    rng = np.random.default_rng(0)
    parent = rng.normal(size=30)
    child = parent + rng.normal(0.2, 0.3, size=30)
    found, truth = difference(list(child), list(parent)), stats.ttest_rel(child, parent)
    interval = truth.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, truth.pvalue))
    assert difference([1.5, 2.5], [1.0, 2.0]).p is None and difference([1.5], [1.0]).low == 0.5


def test_right_and_wrong_by_mcnemar_and_by_agresti_and_min() -> None:
    child, parent = [1, 1, 1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 0, 1]
    found = difference(child, parent)
    assert found.mean == 0.25 and found.p == pytest.approx(2 * (1 + 4) / 2**4)  # 3 to 1: at least as uneven, of 16
    middle, var = 2 / 10, (5 - 4 / 10) / 100
    assert (found.low, found.high) == pytest.approx(
        (middle - 1.959964 * math.sqrt(var), middle + 1.959964 * math.sqrt(var))
    )
    same = difference([1, 0, 1], [1, 0, 1])
    assert same.mean == 0 and same.p == 1 and same.low < -0.2 and same.high > 0.2  # 3 items prove nothing
    assert difference([1] * 4, [0] * 4).high == 1
    with pytest.raises(ValueError, match="zip"):
        difference([1, 0], [1])


@pytest.mark.parametrize(("both", "child_only", "parent_only"), [(0.4, 0.1, 0.2), (0.9, 0.02, 0.03)])
def test_the_interval_covers_as_often_as_it_says(both: float, child_only: float, parent_only: float) -> None:
    rng, truth, held = np.random.default_rng(1), child_only - parent_only, 0
    cells = np.array([[1, 1], [1, 0], [0, 1], [0, 0]])
    for _ in range(600):
        drawn = cells[rng.choice(4, size=60, p=[both, child_only, parent_only, 1 - both - child_only - parent_only])]
        found = difference(list(drawn[:, 0]), list(drawn[:, 1]))
        held += found.low <= truth <= found.high
    assert 0.93 <= held / 600 <= 0.99


def test_who_guesses_is_not_able() -> None:
    assert able([1.0] * 40 + [0.0] * 60, 0.25) and not able([1.0] * 30 + [0.0] * 70, 0.25)
    assert able([1.0] * 11 + [0.0] * 89, 0.0) and not able([1.0] * 8 + [0.0] * 92, 0.0)
    assert not able([0.25] * 100, 0.25) and not able([1.0], 0.25)
    assert above_zero([0.1, 0.2, 0.3]) and not above_zero([-0.3, 0.1, 0.3]) and not above_zero([0.0, 0.0])
