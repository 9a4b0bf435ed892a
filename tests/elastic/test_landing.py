"""The parts of the projection against enumeration."""

from itertools import islice, pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.elastic.shapes import HYBRID

from befit.elastic.landing import Levels, between, largest, ranked
from befit.elastic.space import default_space

WISHES = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=4), max_size=4
)


@given(WISHES, st.integers(1, 300))
def test_choices_come_in_order_of_their_wishes(wish: dict[str, list[float]], count: int) -> None:
    every = [sum(values) for values in product(*wish.values())]
    found = list(ranked(wish, count))
    totals = [sum(wish[axis][k] for axis, k in choice.items()) for choice in found]
    assert totals == sorted(every, reverse=True)[:count]
    assert len({tuple(choice.items()) for choice in found}) == len(found)
    assert list(islice(ranked(wish, 300), count)) == found


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(-1, 51), st.integers(-5, 5))
def test_the_largest_number_of_an_ascending_price(values: list[int], limit: int, low: int) -> None:
    prices = sorted(values)
    high = low + len(prices) - 1
    fitting = [low + i for i, price in enumerate(prices) if price <= limit]
    assert largest(lambda at: prices[at - low], low, high, limit) == (fitting[-1] if fitting else None)


def test_straight_prices_need_few_looks() -> None:
    looked = list[int]()

    def price(at: int) -> float:
        looked.append(at)
        return 1000.0 + 37 * at

    assert largest(price, 0, 100_000, 1000 + 37 * 61_803.4) == 61_803
    assert len(looked) < 8

    def bent(at: int) -> float:
        looked.append(at)
        return float(at) ** 9

    looked.clear()
    assert largest(bent, 0, 100_000, 50_000.5**9) == 50_000
    assert len(looked) < 60


def test_values_between_options() -> None:
    options, values = (8, 6, 2), (0.0, -1.0, -5.0)
    assert [between(options, values, width) for width in (8, 7, 6, 4, 2)] == [0.0, -0.5, -1.0, -3.0, -5.0]
    assert between((4,), (-2.0,), 4) == -2.0


@pytest.mark.parametrize("layerwise", [False, True])
def test_levels_are_monotone_from_the_narrowest_to_the_whole(layerwise: bool) -> None:
    space = default_space(HYBRID, (), ffn_per_layer=layerwise)
    base = space.member({"ffn.1": 2, "ffn.4": 5, "ffn.11": 8} if layerwise else {"ffn": 4})
    levels = Levels.of(space, base)
    for step in (1, 8):
        rows = [levels.at(level, step) for level in range(levels.low, levels.high + 1)]
        widths = [[member.ffn_of(layer) for layer in space.ffn_layers] for member in rows]
        assert all(a <= b for lower, upper in pairwise(widths) for a, b in zip(lower, upper, strict=True))
        assert set(widths[0]) == {space.ffn[-1]} and set(widths[-1]) == {space.ffn[0]}
        assert all(width % step == 0 for row in widths for width in row)
        same = levels.at(max(base.ffn_of(layer) for layer in space.ffn_layers), step)
        assert same == base
