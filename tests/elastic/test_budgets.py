"""Budgets of a nested model: the words, exact prices, and the projection against enumeration."""

import math
import random
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.elastic.shapes import DENSE, HYBRID, WITHOUT_FFN, dense, hybrid

from befit.arch.member import Member, check, cut_shape
from befit.cost.count import count
from befit.cost.workload import Workload
from befit.elastic.budgets import (
    Price,
    Target,
    check_targets,
    fit,
    nearness,
    parse_targets,
    price_of,
    uniform_choice,
    uniform_ratio,
)
from befit.elastic.space import NestedSpace, default_space
from befit.errors import BadBudget, Infeasible

COSTS = {"params": 2_000_000.0, "memory_bytes": 8 * 2.0**30, "latency_ms": 40.0, "flops": 1e9, "tokens_per_s": 100.0}
WORKLOAD = Workload(batch=2, prompt=96)


def space_of(shape, *, ffn_per_layer: bool = False) -> NestedSpace:
    removal = list(range(1, shape.layers))
    random.Random(1).shuffle(removal)
    return default_space(shape, tuple(removal), ffn_per_layer=ffn_per_layer)


SPACES = {
    "hybrid": space_of(HYBRID),
    "dense": space_of(DENSE),
    "without ffn": space_of(WITHOUT_FFN),
    "layerwise": space_of(HYBRID, ffn_per_layer=True),
    "layerwise dense": space_of(dense(10), ffn_per_layer=True),
}
PRICES = {
    (name, cost): price_of(space.shape, cost, WORKLOAD)
    for name, space in SPACES.items()
    for cost in ("params", "memory_bytes")
}


def choices(space: NestedSpace) -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({axis: st.integers(0, len(options) - 1) for axis, options in space.axes.items()})


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100%, 75%, 50%", [("params", 1.0, 2e6), ("params", 0.75, 1.5e6), ("params", 0.5, 1e6)]),
        ("50%,0.75x", [("params", 0.75, 1.5e6), ("params", 0.5, 1e6)]),
        ("memory=50%, memory=100%", [("memory_bytes", 1.0, 8 * 2**30), ("memory_bytes", 0.5, 4 * 2**30)]),
        ("memory=8GiB, memory<=4GiB", [("memory_bytes", 1.0, 8 * 2**30), ("memory_bytes", 0.5, 4 * 2**30)]),
        ("params=1.5M", [("params", 0.75, 1.5e6)]),
        ("1M", [("params", 0.5, 1e6)]),
        ("latency=30ms, latency=50%", [("latency_ms", 0.75, 30), ("latency_ms", 0.5, 20)]),
    ],
)
def test_budgets_are_read_the_largest_first(text: str, expected: list[tuple[str, float, float]]) -> None:
    assert [(t.cost, t.share, t.limit) for t in parse_targets(text, COSTS)] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("100%, ", "empty"),
        ("100%, 100%", "given twice"),
        ("params=1M, 50%", "given twice"),
        ("120%", "1.2 of the parent's own params"),
        ("memory=9GiB", "of the parent's own memory"),
        ("0%", "above 0"),
        ("params=50%, memory=50%", "different costs"),
        ("throughput=2x", "cannot be trained for throughput; give budgets of params, memory, latency"),
        ("flops=50%", "cannot be trained for flops"),
        ("size=50%", "unknown cost"),
        ("memory=50", "unit is missing"),
        ("nan%", "finite"),
    ],
)
def test_other_budgets_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadBudget, match=message):
        parse_targets(text, COSTS)


def test_a_budget_of_a_cost_that_nobody_measured_is_refused() -> None:
    for text in ("latency=50%", "latency=20ms"):
        with pytest.raises(BadBudget, match="latency_ms"):
            parse_targets(text, {"params": 1.0})


def test_targets_below_the_smallest_member_are_refused_before_training() -> None:
    space, price = SPACES["hybrid"], PRICES["hybrid", "params"]
    full, least = price(space.whole), price(space.smallest)
    check_targets(space, price, parse_targets("100%, 50%", {"params": full}))
    check_targets(space, price, [Target(cost="params", share=least / full, limit=least)])
    with pytest.raises(Infeasible, match="the smallest has") as caught:
        check_targets(space, price, parse_targets("100%, 10%", {"params": full}))
    assert caught.value.binding == "params" and caught.value.nearest == {"params": least}
    assert f"{least / full:.1%}" in str(caught.value)


# Prices


@settings(max_examples=60)
@given(st.data(), st.sampled_from(list(PRICES)), st.integers(0, 60))
def test_prices_are_those_of_the_cut_network(data: st.DataObject, key: tuple[str, str], fine: int) -> None:
    space, price = SPACES[key[0]], PRICES[key]
    member = space.member(data.draw(choices(space)))
    member = replace(member, hidden=member.hidden - fine)
    cut = cut_shape(space.shape, member)
    assert price(member) == getattr(count(cut, cut.arch, WORKLOAD), key[1])


def test_other_costs_cannot_be_counted() -> None:
    with pytest.raises(BadBudget, match="latency"):
        price_of(HYBRID, "latency_ms", Workload())


# The uniform choice


@given(st.sampled_from(list(PRICES)), st.floats(0, 1))
def test_the_uniform_ratio_is_the_largest_that_fits(key: tuple[str, str], part: float) -> None:
    space, price = SPACES[key[0]], PRICES[key]
    least, full = price(space.smallest), price(space.whole)
    limit = least + part * (full - least)
    ratio = uniform_ratio(space, price, limit)
    assert price(space.member(uniform_choice(space, ratio))) <= limit
    if ratio < 1:
        assert price(space.member(uniform_choice(space, ratio + 1e-5))) > limit


def test_nearness_prefers_the_wider_of_two_equally_near() -> None:
    assert nearness((8, 6, 4), 0.875)[0] == nearness((8, 6, 4), 0.875)[1]
    space = SPACES["hybrid"]
    assert uniform_choice(space, 1.0) == dict.fromkeys(space.axes, 0)
    assert uniform_choice(space, 0.0) == {axis: len(options) - 1 for axis, options in space.axes.items()}


# The projection


@settings(max_examples=100)
@given(st.data(), st.sampled_from(list(PRICES)), st.floats(0, 1), st.booleans(), st.integers(0, 1000))
def test_it_lands_within_one_percent(
    data: st.DataObject, key: tuple[str, str], part: float, wish: bool, seed: int
) -> None:
    space, price, draw = SPACES[key[0]], PRICES[key], random.Random(seed)
    least, full = price(space.smallest), price(space.whole)
    limit = least + part * (full - least)
    choice = data.draw(choices(space))
    preference = {axis: [draw.gauss(0, 3) for _ in options] for axis, options in space.axes.items()} if wish else None
    member = fit(space, choice, price, limit, preference=preference)
    check(space.shape, member)
    assert limit * 0.99 <= price(member) <= limit
    assert member == fit(space, choice, price, limit, preference=preference)
    assert space.smallest.hidden <= member.hidden and member.depth in space.depth
    for layer in member.layers:
        assert space.ffn[-1] <= member.ffn_of(layer) <= space.ffn[0]


@given(st.data(), st.sampled_from(list(PRICES)))
def test_a_choice_that_lands_stays_as_it_is(data: st.DataObject, key: tuple[str, str]) -> None:
    space, price = SPACES[key[0]], PRICES[key]
    choice = data.draw(choices(space))
    preference = {axis: [0.0 if k == choice[axis] else -1.0 for k in range(len(o))] for axis, o in space.axes.items()}
    member = space.member(choice)
    for limit in (price(member), price(member) / 0.995):
        if limit < price(space.whole):
            assert fit(space, choice, price, limit, preference=preference) == member


@pytest.mark.parametrize("key", PRICES)
def test_the_full_budget_is_the_parent(key: tuple[str, str]) -> None:
    space, price = SPACES[key[0]], PRICES[key]
    narrow = {axis: len(options) - 1 for axis, options in space.axes.items()}
    for limit in (price(space.whole), price(space.whole) * 2):
        assert fit(space, narrow, price, limit) == space.whole
    assert fit(space, {}, price, price(space.smallest)) == space.smallest
    with pytest.raises(Infeasible):
        fit(space, narrow, price, price(space.smallest) - 1)


SMALL = replace(
    default_space(replace(hybrid("M-*-", ffn=64), vocab=64), (0, 1, 2, 3)),
    hidden=(160, 128),
    ffn=(64, 48, 32),
    kv_heads=(4,),
    heads_per_kv=(2, 1),
    mamba_heads=(12, 8, 6),
    mamba_head_dim=(16,),
    state=(16, 8),
    depth=(4, 3),
)


def by_enumeration(
    space: NestedSpace, choice: dict[str, int], price: Price, limit: float, wish: dict[str, list[float]]
):
    """Score of the best landing member, taken over all choices; FFN widths by the documented rule, from scratch."""
    wish = {axis: list(values) for axis, values in wish.items()}
    for axis, index in choice.items():
        wish[axis][index] = max(wish[axis])
    fixed = [axis for axis in space.axes if axis != "ffn"]
    best = -math.inf
    for picks in product(*(range(len(space.axes[axis])) for axis in fixed)):
        own = dict(zip(fixed, picks, strict=True))
        base = space.member({**choice, **own})
        inside = [w for w in range(space.ffn[-1], space.ffn[0] + 1) if price(replace(base, ffn=w)) <= limit]
        landing = [w for w in inside if price(replace(base, ffn=w)) >= limit * 0.99]
        if not landing:
            continue
        aligned = max(inside) // 8 * 8
        width = base.ffn if base.ffn in landing else aligned if aligned in landing else max(landing)
        total = sum(wish[axis][k] for axis, k in own.items())
        for wide, narrow, a, b in zip(space.ffn, space.ffn[1:], wish["ffn"], wish["ffn"][1:], strict=False):
            if narrow <= width <= wide:
                at = (b * (wide - width) + a * (width - narrow)) / (wide - narrow)
        best = max(best, total + at)
    return best


def score(space: NestedSpace, choice: dict[str, int], member: Member, wish: dict[str, list[float]]) -> float:
    total = 0.0
    for axis, options in space.axes.items():
        values = list(wish[axis])
        values[choice[axis]] = max(values)
        own = getattr(member, axis)
        if own in options:
            total += values[options.index(own)]
        else:
            k = next(k for k, option in enumerate(options) if option < own)
            part = (own - options[k]) / (options[k - 1] - options[k])
            total += part * values[k - 1] + (1 - part) * values[k]
    return total


@settings(max_examples=30)
@given(st.data(), st.floats(0, 1), st.integers(0, 10_000), st.sampled_from(["params", "memory_bytes"]))
def test_it_is_the_most_probable_choice_that_lands(data: st.DataObject, part: float, seed: int, cost: str) -> None:
    price, draw = price_of(SMALL.shape, cost, WORKLOAD), random.Random(seed)
    choice = data.draw(choices(SMALL))
    # A strong wish for some FFN width, so that the best sum is often not among the first choices of the other axes.
    wish = {axis: [draw.gauss(0, 9 if axis == "ffn" else 1) for _ in o] for axis, o in SMALL.axes.items()}
    least, full = price(SMALL.smallest), price(SMALL.whole)
    limit = least + part * (full - 1 - least)
    member = fit(SMALL, choice, price, limit, preference=wish)
    best = by_enumeration(SMALL, choice, price, limit, wish)
    if best > -math.inf:
        assert score(SMALL, choice, member, wish) == pytest.approx(best)


def test_ffn_widths_of_single_layers_keep_their_proportions() -> None:
    space, price = SPACES["layerwise"], PRICES["layerwise", "params"]
    choice = {"ffn.1": 0, "ffn.4": 2, "ffn.6": 4, "ffn.8": 4, "ffn.11": 3}
    given = space.member(choice)
    firm = {
        axis: [-9.0 * k if not axis.startswith("ffn") else 0.0 for k in range(len(o))] for axis, o in space.axes.items()
    }
    member = fit(space, choice, price, price(given) * 0.96, preference=firm)
    assert member.layers == given.layers and member.hidden == given.hidden
    shares = [member.ffn_of(layer) / given.ffn_of(layer) for layer in space.ffn_layers]
    assert max(shares) - min(shares) < 9 / space.ffn[-1] and max(shares) < 1


def test_widths_are_aligned_where_that_suffices() -> None:
    wide = space_of(hybrid(hidden=1024, ffn=4096))
    price = price_of(wide.shape, "params", WORKLOAD)
    for share in (0.4, 0.55, 0.7, 0.85):
        limit = share * price(wide.whole)
        member = fit(wide, uniform_choice(wide, uniform_ratio(wide, price, limit)), price, limit)
        assert isinstance(member.ffn, int) and member.ffn % 64 == 0
    narrow, price = SPACES["hybrid"], PRICES["hybrid", "params"]
    member = fit(narrow, {}, price, 0.9 * price(narrow.whole))
    assert isinstance(member.ffn, int) and member.ffn % 8 == 0


def test_embedding_channels_move_where_nothing_else_lands() -> None:
    space = replace(default_space(WITHOUT_FFN, ()), hidden=(160, 80), kv_heads=(4,), heads_per_kv=(2,), state=(16,))
    space = replace(space, mamba_heads=(12,), mamba_head_dim=(16,))
    price = price_of(space.shape, "params", WORKLOAD)
    for share in (0.55, 0.7, 0.9, 0.99):
        limit = share * price(space.whole)
        member = fit(space, {}, price, limit)
        assert limit * 0.99 <= price(member) <= limit and 80 < member.hidden < 160


def test_in_a_space_that_is_too_coarse_it_is_the_dearest_below() -> None:
    space = replace(
        default_space(WITHOUT_FFN, (0, 1)),
        **{
            axis: (getattr(default_space(WITHOUT_FFN, ()), axis)[0],)
            for axis in ("hidden", "kv_heads", "heads_per_kv", "mamba_heads", "mamba_head_dim", "state")
        },
    )
    price = price_of(space.shape, "params", WORKLOAD)
    assert list(space.axes) == ["depth"]
    one_less = space.member({"depth": 1})
    assert fit(space, {}, price, price(space.whole) - 1) == one_less
    assert fit(space, {}, price, price(one_less) - 1) == space.smallest


@settings(max_examples=40)
@given(st.data(), st.floats(0.35, 0.99), st.integers(1, 40))
def test_prices_in_steps_are_met_too(data: st.DataObject, share: float, tile: int) -> None:
    space, counted = SPACES["hybrid"], PRICES["hybrid", "params"]

    def latency(member: Member) -> float:
        ffn = member.ffn if isinstance(member.ffn, int) else max(member.ffn)
        return 1e-5 * counted(replace(member, ffn=min(480, -(-ffn // tile) * tile))) + 0.1 * member.depth

    limit = share * latency(space.whole)
    if latency(space.smallest) <= limit:
        member = fit(space, data.draw(choices(space)), latency, limit)
        assert latency(member) <= limit
        assert latency(member) >= 0.97 * limit
