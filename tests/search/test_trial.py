"""Records, fronts and funnels as plain values."""

from dataclasses import replace

import pytest
from tests.search.test_halving import EMPTY

from befit.errors import BadData, TrialFailed
from befit.search.trial import Outcome, TrialRecord, front, funnel, objective_values


def scored(number: int, *values: float) -> TrialRecord:
    return replace(EMPTY, number=number, state="scored", value=values[0], values=values)


def failed(number: int, reason: str, *, built: bool = True) -> TrialRecord:
    return replace(EMPTY, number=number, state="failed", reason=reason, fidelity={} if built else None, refused=2)


def test_the_front_is_what_nothing_beats() -> None:
    found = [scored(0, 0.9, 5.0), scored(1, 0.8, 3.0), scored(2, 0.8, 4.0), scored(3, 0.7, 3.0), scored(4, 0.9, 5.0)]
    assert [one.number for one in front([*found, failed(5, "nan")])] == [0, 1, 4]
    assert [one.number for one in front([scored(0, 0.1), scored(1, 0.3), scored(2, 0.3)])] == [1, 2]


def test_the_funnel_counts_every_stage() -> None:
    found = [
        scored(0, 0.9),
        scored(1, 0.8),
        replace(EMPTY, number=2, state="pruned"),
        replace(EMPTY, number=3, state="running"),
        failed(4, "nan"),
        failed(5, "over-budget", built=False),
        failed(6, "killed"),
        failed(7, "surplus", built=False),
    ]
    told = funnel(found)
    assert (told.refused, told.asked, told.proposed) == (8, 6, 14)
    assert told.built == 5 and told.failed == {"nan": 1, "over-budget": 1}
    assert (told.pruned, told.scored, told.front, told.running, told.interrupted) == (1, 2, 1, 1, 2)
    assert told.asked == told.scored + told.pruned + told.running + sum(told.failed.values())
    assert [one.number for one in found if one.counts] == [0, 1, 2, 3, 4]


def test_objectives_are_the_value_and_costs() -> None:
    outcome, costs = Outcome(value=0.5), {"latency_ms": 2.0, "params": 7.0}
    assert objective_values(outcome, costs, ("accuracy", "params", "latency")) == [0.5, 7.0, 2.0]
    with pytest.raises(BadData, match=r"objective macs: .* known here: latency_ms, params"):
        objective_values(outcome, costs, ("accuracy", "macs"))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(TrialFailed) as error:
            objective_values(Outcome(value=bad), costs, ("accuracy",))
        assert error.value.reason == "nan"
