"""The curriculum: what each step trains, and when the router settles."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from befit.elastic.curriculum import ElasticTraining, Stage, systematic

CONFIG = ElasticTraining(
    stages=(Stage(tokens=950, sequence=10, batch=10), Stage(tokens=600, sequence=30, batch=4)), settle=0.5
)
"""Ten steps of 100 tokens, then five of 120."""


def test_stages_follow_each_other() -> None:
    assert CONFIG.steps == 15 and CONFIG.tokens == 10 * 100 + 5 * 120
    assert [CONFIG.place(step) for step in (0, 9, 10, 14)] == [(0, 0), (0, 9), (1, 0), (1, 4)]


@pytest.mark.parametrize(("settle", "step"), [(0.0, 15), (1.0, 0), (0.5, 8), (600 / 1600, 10), (0.2, 13)])
def test_the_router_settles_for_a_share_of_the_tokens(settle: float, step: int) -> None:
    config = replace(CONFIG, settle=settle)
    assert config.settled_at == step
    tokens = sum(config.stages[config.place(s)[0]].step_tokens for s in range(step, config.steps))
    assert tokens <= settle * config.tokens < tokens + 120 or settle == 1


def test_the_temperature_falls_exponentially_until_the_router_settles() -> None:
    config = replace(CONFIG, explore=1.0, exploit=0.01)
    found = [config.router_temperature(step) for step in range(config.settled_at)]
    assert found[0] == 1.0 and found[-1] == pytest.approx(0.01)
    assert all(b / a == pytest.approx(0.01 ** (1 / 7)) for a, b in pairwise(found))


def test_weights_are_read_off_along_the_budgets() -> None:
    stage = Stage(tokens=1, sequence=1, batch=1, weights=(5, 3, 2))
    assert stage.for_budgets(3) == pytest.approx((0.5, 0.3, 0.2))
    assert stage.for_budgets(2) == pytest.approx((5 / 7, 2 / 7))
    assert stage.for_budgets(5) == pytest.approx([w / 16.5 for w in (5, 4, 3, 2.5, 2)])
    assert stage.for_budgets(1) == (1.0,)
    assert replace(stage, weights=()).for_budgets(4) == (0.25,) * 4


def test_systematic_draws_are_fair_and_even() -> None:
    weights = (0.5, 0.3, 0.2)
    counted = Counter[int]()
    for place in range(1000):
        drawn = Counter(systematic(weights, 4, (place + 0.5) / 1000))
        assert all(abs(drawn[i] - 4 * weight) < 1 for i, weight in enumerate(weights))
        counted += drawn
    assert [counted[i] / 4000 for i in range(3)] == pytest.approx(weights, abs=2e-3)
    assert systematic((0.0, 1.0), 3, 0.0) == [1, 1, 1] and systematic((1.0,), 2, 0.999) == [0, 0]


def test_a_team_must_be_able_to_share_a_batch() -> None:
    config = replace(CONFIG, micro_batches=2, stages=(Stage(tokens=1, sequence=1, batch=12),))
    config.check(3)
    with pytest.raises(ValueError, match="batch of 12 sequences cannot be shared evenly by 2 micro-batches of 4"):
        config.check(4)


def test_a_configuration_out_of_range_is_refused() -> None:
    wrong: Any
    for wrong in ({"lr": 0.0}, {"temperature": -1.0}, {"clip": float("nan")}, {"explore": float("inf")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be above 0"):
            ElasticTraining(**wrong)
    for wrong in ({"budget_weight": -1.0}, {"router_every": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be 0 or more"):
            ElasticTraining(**wrong)
    for wrong in ({"settle": 1.1}, {"warmup": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a share"):
            ElasticTraining(**wrong)
    for wrong, told in (
        ({"stages": ()}, "at least one stage"),
        ({"mode": "soft"}, "sampled or sandwich"),
        ({"micro_batches": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=told):
            ElasticTraining(**wrong)
    for wrong in ({"tokens": 0}, {"sequence": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least 1"):
            Stage(**({"tokens": 1, "sequence": 1, "batch": 1} | wrong))
    for weights in ((-1.0, 2.0), (0.0, 0.0), (float("nan"),)):
        with pytest.raises(ValueError, match="weights must be 0 or more"):
            Stage(tokens=1, sequence=1, batch=1, weights=weights)
    with pytest.raises(ValueError, match="take none of 2 budgets"):
        Stage(tokens=1, sequence=1, batch=1, weights=(0, 1, 0)).for_budgets(2)
