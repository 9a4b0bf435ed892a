"""Successive halving: who goes on, checked against direct computation."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.search.toys import SPACE, Toy, blueprint, spec

from befit.errors import BadData
from befit.search.halving import Halving, keep
from befit.search.pool import Crew
from befit.search.study import run_study
from befit.search.trial import TrialRecord, funnel

EMPTY = TrialRecord(
    number=0,
    state="running",
    arch=None,
    value=None,
    values=(),
    counted={},
    predicted={},
    measured={},
    reason=None,
    message="",
    seconds=0.0,
    epochs=0.0,
    fidelity={},
    refused=0,
    owner=None,
    again=None,
    rungs={},
    details={},
)


def test_rungs_are_powers() -> None:
    assert [epoch for epoch in range(1, 100) if Halving().rung(epoch)] == [1, 3, 9, 27, 81]
    assert [epoch for epoch in range(1, 100) if Halving(first=2, factor=4).rung(epoch)] == [2, 8, 32]


def test_one_objective_keeps_the_best_share() -> None:
    rng = random.Random(0)
    for size in range(1, 40):
        points = [(rng.choice((0.1, 0.2, 0.3, rng.random())),) for _ in range(size)]
        best = sorted(range(size), key=lambda place: (-points[place][0], place))
        assert keep(points, 3) == best[: max(1, size // 3)]


def test_several_objectives_keep_whole_fronts_before_any_of_the_next() -> None:
    rng = random.Random(1)
    for size in range(3, 40):
        points = [(rng.randrange(6) / 6, rng.randrange(6)) for _ in range(size)]
        kept = set(keep(points, 3))

        def beaten_by(one: tuple[float, float], points: Sequence[tuple[float, float]] = points) -> list[int]:
            return [
                place
                for place, (value, cost) in enumerate(points)
                if value >= one[0] and cost <= one[1] and (value, cost) != one
            ]

        assert len(kept) == max(1, size // 3)
        # Whoever goes on while somebody better is stopped would be in a worse front than that one.
        assert all(set(beaten_by(points[place])) <= kept for place in kept)


def test_with_all_reported_each_rung_decides_as_the_direct_computation() -> None:
    rng = random.Random(2)
    halving = Halving()
    rows = {number: {epoch: (rng.random(), rng.random()) for epoch in (1, 3)} for number in range(30)}
    records = [replace(EMPTY, number=number, rungs=rungs) for number, rungs in rows.items()]
    for epoch in (1, 3):
        kept = set(keep([rows[number][epoch] for number in range(30)], 3))
        assert {number for number in rows if halving.goes_on(number, epoch, records)} == kept and len(kept) == 10
    killed = [replace(one, state="failed", reason="killed") for one in records[:15]]
    alone = [replace(EMPTY, number=99, rungs={1: (-1.0, 2.0)})]
    assert not halving.goes_on(99, 1, [*records, *alone]) and halving.goes_on(99, 1, [*killed, *alone])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_study_with_halving_replayed_by_hand(tmp_path: Path, workers: int) -> None:
    """With one worker trials come one after another, so that every decision can be made again from the outside."""
    told = spec(tmp_path, trials=12, halving=Halving())
    found = run_study(told, SPACE, Toy(tmp_path / "done", 0, epochs=9), crew=Crew(workers=workers))
    there = dict[int, list[float]]({1: [], 3: [], 9: []})
    for one in found:
        for epoch, values in there.items():
            if epoch not in one.rungs:
                break
            values.append(one.rungs[epoch][0])
            best = sorted(values, reverse=True)[: max(1, len(values) // 3)]
            assert (values[-1] in best) == (one.state == "scored" or max(one.rungs) > epoch)
    stages = funnel(found)
    assert stages.pruned == len([one for one in found if one.state == "pruned"]) > 0
    assert stages.pruned + stages.scored == 12 and all(one.value is None for one in found if one.state == "pruned")


def test_halving_with_two_objectives(tmp_path: Path) -> None:
    from tests.search.toys import TASK

    from befit.search.pricing import Pricer

    told = spec(tmp_path, trials=12, halving=Halving(), objectives=("accuracy", "params"))
    pricer = Pricer(blueprint=blueprint(), task=TASK)
    found = run_study(told, SPACE, Toy(tmp_path / "done", 0), pricer=pricer, crew=Crew(workers=0))
    assert all(len(row) == 2 and row[1] == one.counted["params"] for one in found for row in one.rungs.values())
    assert {one.state for one in found} == {"scored", "pruned"}
    assert all(math.isfinite(value) for one in found for value in one.values)


def test_settings_are_checked() -> None:
    for wrong in ({"first": 0}, {"factor": 1}):
        with pytest.raises(BadData, match="halving"):
            Halving(**wrong)
