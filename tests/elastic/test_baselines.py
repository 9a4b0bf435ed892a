"""The baselines: each within its budget, the additive choice against enumeration."""

import math
import random as rng
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.elastic.shapes import DENSE, HYBRID, WITHOUT_FFN, dense, hybrid

from befit.arch.decoder import DecoderShape
from befit.arch.member import Member, check
from befit.cost.workload import Workload
from befit.elastic import baselines
from befit.elastic.baselines import AxisScores, additive, additive_choice, greedy, uniform
from befit.elastic.budgets import Price, fit, price_of
from befit.elastic.router import Router
from befit.elastic.space import NestedSpace, default_space
from befit.errors import IllegalArch, Infeasible

WORKLOAD = Workload(batch=2, prompt=96)


def space_of(shape: DecoderShape, *, ffn_per_layer: bool = False) -> NestedSpace:
    removal = list(range(1, shape.layers))
    rng.Random(1).shuffle(removal)
    return default_space(shape, tuple(removal), ffn_per_layer=ffn_per_layer)


SPACES = [
    space_of(HYBRID),
    space_of(DENSE),
    space_of(WITHOUT_FFN),
    space_of(HYBRID, ffn_per_layer=True),
    space_of(dense(4), ffn_per_layer=True),
]


def scores_of(space: NestedSpace, seed: int) -> AxisScores:
    """Ascending from 0, as lost quality mostly is, with a step back here and there."""
    draw, found = rng.Random(seed), dict[str, list[float]]()
    for axis, options in space.axes.items():
        row = [0.0]
        for _ in options[1:]:
            row.append(row[-1] + draw.uniform(-0.02, 0.2))
        found[axis] = row
    return found


METHODS: dict[str, Callable[[NestedSpace, Price, float], Member]] = {
    "uniform": uniform,
    "random": lambda space, price, limit: baselines.random(space, price, limit, 3),
    "greedy": lambda space, price, limit: greedy(space, price, limit, scores_of(space, 1)),
    "additive": lambda space, price, limit: additive(space, price, limit, scores_of(space, 1)),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("space", SPACES)
def test_every_baseline_lands(method: str, space: NestedSpace) -> None:
    price = price_of(space.shape, "memory_bytes", WORKLOAD)
    full, least = price(space.whole), price(space.smallest)
    for share in (0.98, 0.75, 0.5):
        limit = max(share * full, least)
        member = METHODS[method](space, price, limit)
        check(space.shape, member)
        assert limit * 0.99 <= price(member) <= limit
        assert member == METHODS[method](space, price, limit)
    assert METHODS[method](space, price, full) == space.whole
    with pytest.raises(Infeasible):
        METHODS[method](space, price, least - 1)


@pytest.mark.parametrize("space", SPACES)
def test_an_untrained_router_is_the_uniform_baseline(space: NestedSpace) -> None:
    price = price_of(space.shape, "params", WORKLOAD)
    router = Router(space, (1.0, 0.75, 0.55), price=price)
    for share in (1.0, 0.75, 0.55):
        limit = share * price(space.whole)
        member = fit(space, router.choose(share), price, limit, preference=router.preference(share))
        assert member == uniform(space, price, limit)


def test_random_choices_differ_and_reach_every_option() -> None:
    space = SPACES[0]
    price = price_of(space.shape, "params", WORKLOAD)
    members = [baselines.random(space, price, 0.6 * price(space.whole), seed) for seed in range(80)]
    assert len(set(members)) > 70
    for axis, options in space.axes.items():
        if axis != "ffn":
            assert len({getattr(member, axis) for member in members}) > len(options) // 2


def test_greedy_narrows_what_loses_least_for_what_it_saves() -> None:
    space = SPACES[0]
    price = price_of(space.shape, "params", WORKLOAD)
    free = {
        axis: [0.0] * len(options) if axis == "ffn" else [float(k) for k in range(len(options))]
        for axis, options in space.axes.items()
    }
    narrow = space.member({"ffn": len(space.ffn) - 1})
    assert greedy(space, price, price(narrow), free) == narrow
    # By hand: with two options of two axes, the step of the smaller loss per parameter comes first.
    few = replace(
        space,
        ffn=(480, 240),
        hidden=(160, 80),
        **{
            a: getattr(space, a)[:1]
            for a in ("kv_heads", "heads_per_kv", "mamba_heads", "mamba_head_dim", "state", "depth")
        },
    )
    saved = {axis: price(few.whole) - price(few.member({axis: 1})) for axis in ("ffn", "hidden")}
    for first, second in (("ffn", "hidden"), ("hidden", "ffn")):
        scores = {first: [0.0, 0.9 * saved[first]], second: [0.0, 1.0 * saved[second]]}
        limit = price(few.member({first: 1}))
        assert greedy(few, price, limit, scores) == few.member({first: 1})


SMALL = [
    replace(
        default_space(hybrid("M-*-M", ffn=96), (2, 0, 3, 1)),
        hidden=(160, 144, 120),
        ffn=(96, 72, 48),
        kv_heads=(4, 2),
        heads_per_kv=(2, 1),
        mamba_heads=(12, 8, 6),
        mamba_head_dim=(16, 8),
        state=(16, 8),
        depth=(5, 4, 2, 1),
    ),
    replace(default_space(dense(3), (1, 0)), hidden=(128, 96, 64), ffn=(352, 256, 200), kv_heads=(4, 3, 1)),
    replace(
        default_space(dense(3), (1, 0), ffn_per_layer=True), hidden=(128, 64), ffn=(352, 256, 200), kv_heads=(4, 1)
    ),
]


@settings(max_examples=40)
@given(st.sampled_from(SMALL), st.sampled_from(["params", "memory_bytes"]), st.floats(0, 1), st.integers(0, 10**6))
def test_the_additive_choice_is_the_best(space: NestedSpace, cost: str, part: float, seed: int) -> None:
    price, scores = price_of(space.shape, cost, WORKLOAD), scores_of(space, seed)
    least, full = price(space.smallest), price(space.whole)
    limit = least + part * (full - least)

    def lost(choice: dict[str, int]) -> float:
        kept = space.member(choice).layers
        return sum(
            scores[axis][k] for axis, k in choice.items() if not axis.startswith("ffn.") or int(axis[4:]) in kept
        )

    best = math.inf
    for picks in product(*(range(len(options)) for options in space.axes.values())):
        choice = dict(zip(space.axes, picks, strict=True))
        if price(space.member(choice)) <= limit:
            best = min(best, lost(choice))
    found = additive_choice(space, price, limit, scores)
    assert price(space.member(found)) <= limit
    assert lost(found) == pytest.approx(best)


def test_the_additive_choice_of_a_large_space_is_no_worse_than_any_tried() -> None:
    space = SPACES[0]
    price, draw = price_of(space.shape, "params", WORKLOAD), rng.Random(0)
    for share in (0.8, 0.5):
        scores, limit = scores_of(space, int(share * 10)), share * price(space.whole)
        found = additive_choice(space, price, limit, scores)
        best = sum(scores[axis][k] for axis, k in found.items())
        assert price(space.member(found)) <= limit
        for _ in range(1000):
            choice = {axis: draw.randrange(len(options)) for axis, options in space.axes.items()}
            if price(space.member(choice)) <= limit:
                assert sum(scores[axis][k] for axis, k in choice.items()) >= best - 1e-9


def test_scores_must_be_complete() -> None:
    space, price = SPACES[0], price_of(HYBRID, "params", WORKLOAD)
    scores = dict(scores_of(space, 0))
    for method in (greedy, additive):
        for wrong in ({k: v for k, v in scores.items() if k != "ffn"}, {**scores, "ffn": [0.0]}):
            with pytest.raises(IllegalArch, match="every option of every axis"):
                method(space, price, 0.5 * price(space.whole), wrong)
