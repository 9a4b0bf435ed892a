import math
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from befit.errors import BadData
from befit.propose import inference
from befit.propose.inference import (
    Groups,
    balanced_mean,
    hedges_g,
    holm,
    interval,
    interval_of_difference,
    welch,
)

# R's data set mtcars: miles per gallon with automatic and with manual gears.
AUTOMATIC = [
    21.4,
    18.7,
    18.1,
    14.3,
    24.4,
    22.8,
    19.2,
    17.8,
    16.4,
    17.3,
    15.2,
    10.4,
    10.4,
    14.7,
    21.5,
    15.5,
    15.2,
    13.3,
    19.2,
]
MANUAL = [21.0, 21.0, 22.8, 32.4, 30.4, 33.9, 27.3, 26.0, 30.4, 15.8, 19.7, 15.0, 21.4]

values = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_welch_is_what_r_prints() -> None:
    """`t.test(mpg ~ am, data = mtcars)`: t = -3.7671, df = 18.332, p-value = 0.001374, means 17.14737 and 24.39231."""
    found = welch([AUTOMATIC], [MANUAL])
    assert found is not None
    assert (round(found.t, 4), round(found.df, 3), round(found.p, 6)) == (3.7671, 18.332, 0.001374)
    assert found.difference == pytest.approx(24.39231 - 17.14737, abs=1e-5)


def test_few_values_have_r_s_interval_of_student() -> None:
    """The same call prints a 95 % interval of 3.209684 .. 11.280194; few values take that one."""
    few = interval_of_difference([AUTOMATIC[:4]], [MANUAL[:4]])
    told = stats.ttest_ind(MANUAL[:4], AUTOMATIC[:4], equal_var=False).confidence_interval()
    assert few is not None and few.how == "t" and (few.low, few.high) == pytest.approx(tuple(told))
    alone = interval([MANUAL[:4]])
    assert alone is not None and (alone.low, alone.high) == pytest.approx(
        stats.ttest_1samp(MANUAL[:4], 0).confidence_interval()
    )
    many = interval_of_difference([AUTOMATIC], [MANUAL])
    assert (
        many is not None and many.how == "bootstrap" and (many.low, many.high) == pytest.approx((3.21, 11.28), abs=0.25)
    )


@given(values, values)
def test_welch_is_scipy_s(a: list[float], b: list[float]) -> None:
    found = welch([a], [b])
    if found is not None and min(np.std(a), np.std(b)) > 1e-3:
        told: Any = stats.ttest_ind(b, a, equal_var=False)
        assert (found.t, found.p, found.df) == pytest.approx((told.statistic, told.pvalue, told.df), rel=1e-6, abs=1e-9)


def test_what_cannot_be_tested_is_not() -> None:
    for a, b in (([[1.0]], [[2.0, 3.0]]), ([[1.0, 1.0]], [[1.0, 1.0]]), ([[0.1] * 3], [[0.1] * 3]), ([], [])):
        assert welch(a, b) is None and hedges_g(a, b) is None and interval(a) is None
    assert interval_of_difference([[0.5] * 5], [[0.5] * 5]) is None
    assert welch([[1.0, 1.0]], [[1.0, 2.0]]) is not None
    tiny = welch([[0.0, 0.0]], [[0.0, 1e-104]])
    assert tiny is not None and (tiny.t, tiny.df) == pytest.approx((1.0, 1.0))


def test_every_dataset_counts_the_same() -> None:
    """The mean per dataset, then over datasets; the mean over all values would be 0.6."""
    assert balanced_mean([[0.8, 0.8, 0.8], [0.0]]) == pytest.approx(0.4)
    for groups in ([], [[]], [[1.0], []]):
        with pytest.raises(BadData, match="each dataset"):
            balanced_mean(groups)


def _drawn(rng: np.random.Generator, sizes: tuple[int, ...], spread: tuple[float, ...]) -> Groups:
    return [list(rng.normal(10 * place, s, n)) for place, (n, s) in enumerate(zip(sizes, spread, strict=True))]


def test_balanced_means_that_are_equal_are_found_different_as_often_as_said() -> None:
    """Two datasets of other sizes and spreads: with the level at 5 %, 5 % of 2,000 trials, give or take 3 deviations."""
    rng = np.random.default_rng(0)
    found = [welch(_drawn(rng, (4, 9), (1, 5)), _drawn(rng, (7, 5), (3, 1))) for _ in range(2000)]
    assert abs(np.mean([one is not None and one.p < 0.05 for one in found]) - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_is_the_closure_of_bonferroni(ps: list[float]) -> None:
    """By enumeration: a hypothesis falls if Bonferroni's test of every set that holds it falls."""
    sets = [chosen for size in range(1, len(ps) + 1) for chosen in combinations(range(len(ps)), size)]
    truth = [max(min(1.0, len(s) * min(ps[i] for i in s)) for s in sets if at in s) for at in range(len(ps))]
    assert holm(ps) == pytest.approx(truth)


def test_hedges_g_is_what_r_prints() -> None:
    """`effectsize::hedges_g(mpg ~ am, data = mtcars)`: -1.44, 95 % CI [-2.21, -0.65]."""
    found = hedges_g([MANUAL], [AUTOMATIC])
    assert found is not None
    assert (round(found.g, 2), round(found.low, 2), round(found.high, 2)) == (-1.44, -2.21, -0.65)


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 30), st.integers(3, 30), st.floats(-3, 3))
def test_the_ends_of_g_are_those_of_the_noncentral_t(n: int, m: int, shift: float) -> None:
    rng = np.random.default_rng(n)
    a, b = list(rng.normal(0, 1, n)), list(rng.normal(shift, 1, m))
    found = hedges_g([a], [b])
    assert found is not None
    df, scale = n + m - 2, math.sqrt(1 / n + 1 / m)
    student: Any = stats.ttest_ind(b, a)
    t = float(student.statistic)
    bias = found.g / (t * scale)
    assert bias == pytest.approx(1 - 3 / (4 * df - 1), abs=3e-3)  # the usual approximation
    for end, share in ((found.low, 0.975), (found.high, 0.025)):
        told = stats.nct.cdf(abs(t), df, math.copysign(1, t) * end / bias / scale)  # for negative t scipy may say NaN
        assert told == pytest.approx(share if t > 0 else 1 - share, abs=1e-4)


def test_a_huge_effect_has_an_interval_too() -> None:
    found = hedges_g([[0, 1e-3, 2e-3, 3e-3]], [[1, 1.001, 1.003]])
    assert found is not None and 0 < found.low < found.g < found.high


def test_the_bootstrap_is_that_of_all_samples() -> None:
    """All 5^5 samples of five values, against 10,000 that were drawn; a normal quantile pushed out as Hesterberg says."""
    five = [0.1, 0.5, 0.7, 1.1, 3.0]
    means = sorted(sum(sample) / 5 for sample in product(five, repeat=5))
    tail = stats.norm.sf(math.sqrt(5 / 4) * stats.t.ppf(0.975, 4))
    found = interval([five], seed=3)
    assert found is not None and found.how == "bootstrap"
    assert (found.low, found.high) == pytest.approx(np.quantile(means, (tail, 1 - tail)), abs=0.09)
    assert interval([five], seed=3) == found


@pytest.mark.parametrize(("count", "least"), [(5, 0.88), (12, 0.91)])
def test_intervals_hold_the_truth_about_as_often_as_said(
    count: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 samples of normal values in two datasets, in pairs that share most of their spread."""
    monkeypatch.setattr(inference, "RESAMPLES", 2000)  # enough for this, and quick
    rng = np.random.default_rng(1)
    alone = both = narrower = 0
    for trial in range(300):
        shared = [rng.normal(0, 3, count) for _ in range(2)]
        a, b = ([list(part + rng.normal(0, 1, count)) for part in shared] for _ in range(2))
        one, pair, apart = (
            interval(a, seed=trial),
            interval_of_difference(a, b, paired=True, seed=trial),
            interval_of_difference(a, b, seed=trial),
        )
        assert one and pair and apart and pair.how == "paired bootstrap"
        alone += one.low <= 0 <= one.high
        both += pair.low <= 0 <= pair.high
        narrower += pair.high - pair.low < apart.high - apart.low
    assert alone / 300 >= least and both / 300 >= least and narrower >= 290


def test_pairs_need_their_partners() -> None:
    with pytest.raises(ValueError, match="zip"):
        interval_of_difference([[1.0, 2.0]], [[1.0]], paired=True)
    assert interval_of_difference([[1.0, 2.0, 4.0]], [[2.0, 3.0, 5.0]], paired=True) is None  # no spread at all
