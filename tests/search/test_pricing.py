"""Prices, budgets, and that nothing over a budget is ever evaluated."""

from pathlib import Path

import optuna
import pytest
from tests.search.toys import SPACE, TASK, Toy, blueprint, counts, finished, spec

from befit.arch.space import Arch
from befit.budget import Budget
from befit.errors import BadBudget, Infeasible, TrialFailed
from befit.search.pool import Crew
from befit.search.pricing import Pricer
from befit.search.study import run_study
from befit.search.trial import funnel

SMALL = Budget.parse("params<=4K")


def ms(arch: Arch) -> float:
    return int(arch["width"]) / 8


def pricer(budget: Budget | None = SMALL, **more) -> Pricer:
    return Pricer(blueprint=blueprint(), task=TASK, budget=budget, **more)


def test_allowed_is_the_budget_held_against_exact_counts() -> None:
    told = pricer()
    allowed = [arch for arch in SPACE.enumerate() if told.allowed(arch)]
    assert allowed == [arch for arch in SPACE.enumerate() if counts(arch).params <= 4_000]
    assert 0 < len(allowed) < SPACE.size


def test_measuring_comes_last_and_only_for_what_is_left() -> None:
    asked = list[Arch]()

    def measure(arch: Arch) -> float:
        asked.append(arch)
        return ms(arch)

    told = pricer(Budget.parse("latency<=3ms"), latency=lambda arch: ms(arch) * 0.5, measure=measure)
    slow, doubtful, quick = (SPACE.arch({"width": width, "depth": 1, "mixer": "pool"}) for width in (64, 32, 16))
    with pytest.raises(TrialFailed, match=r"latency 4\.00 ms of 3\.00 ms allowed \(33 % over\)$") as failed:
        told.check(slow)
    assert failed.value.reason == "over-budget" and not asked
    with pytest.raises(TrialFailed, match=r"over.*as measured"):
        told.check(doubtful)
    priced = told.check(quick)
    assert asked == [doubtful, quick]
    assert priced.predicted == {"latency_ms": 1.0} and priced.measured == {"latency_ms": 2.0} == {
        "latency_ms": priced.costs["latency_ms"]
    }


@pytest.mark.parametrize("searcher", ["random", "evolution", "tpe"])
def test_nothing_over_the_budget_is_evaluated(tmp_path: Path, searcher: str) -> None:
    found = run_study(
        spec(tmp_path, searcher=searcher), SPACE, Toy(tmp_path / "done", 0), pricer=pricer(), crew=Crew(workers=0)
    )
    scored = [one for one in found if one.state == "scored"]
    assert len(scored) == 8 == len(finished(tmp_path / "done"))
    assert all(
        one.counted["params"] <= 4_000 and one.counted == counts(SPACE.arch(one.arch or {})).costs() for one in found
    )
    stages = funnel(found)
    assert stages.refused > 0 and stages.proposed == stages.refused + stages.asked and stages.built == 8


def test_a_sampler_that_knows_no_budget_has_its_proposals_refused(tmp_path: Path) -> None:
    told = spec(tmp_path, trials=5)
    found = run_study(
        told,
        SPACE,
        Toy(tmp_path / "done", 0),
        pricer=pricer(),
        sampler=optuna.samplers.RandomSampler(seed=1),
        crew=Crew(workers=0),
    )
    stages = funnel(found)
    assert stages.failed["over-budget"] == stages.asked - 5 > 0 and stages.built == stages.scored == 5
    assert len(finished(tmp_path / "done")) == 5
    assert not any(one.counts for one in found if one.reason == "over-budget")


def test_a_latency_over_the_budget_as_measured_is_no_trial(tmp_path: Path) -> None:
    told = pricer(Budget.parse("latency<=3ms"), measure=ms)
    objectives = ("accuracy", "latency")
    found = run_study(
        spec(tmp_path, trials=4, objectives=objectives),
        SPACE,
        Toy(tmp_path / "done", 0),
        pricer=told,
        crew=Crew(workers=0),
    )
    assert {one.state for one in found} == {"scored", "failed"}
    for one in found:
        assert one.measured == {"latency_ms": ms(SPACE.arch(one.arch or {}))}
        assert (one.measured["latency_ms"] <= 3) == (one.state == "scored") == (one.reason is None)
        assert one.values == ((one.value, one.measured["latency_ms"]) if one.state == "scored" else ())


def test_infeasible_names_the_binding_bound_and_the_nearest_point(tmp_path: Path) -> None:
    least = min(counts(arch).params for arch in SPACE.enumerate())
    told = pricer(Budget.parse(f"params<={least - 1}, memory<=1GB"))
    with pytest.raises(Infeasible, match=r"archs looked at keeps the budget.*Binding: params") as error:
        run_study(spec(tmp_path), SPACE, Toy(tmp_path / "done"), pricer=told, crew=Crew(workers=0))
    assert error.value.binding == "params" and error.value.nearest["params"] == least
    pricer(Budget.parse(f"params<={least}")).require_feasible(tries=3)


def test_bounds_that_cannot_be_checked_are_refused() -> None:
    for text, match in (
        ("params=50%", "has no parent"),
        ("throughput=5", "not on throughput"),
        ("latency=2ms", "neither predicted nor measured"),
    ):
        with pytest.raises(BadBudget, match=match):
            pricer(Budget.parse(text))
