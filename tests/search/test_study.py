"""The loop: complete, resumable, and honest about what failed."""

import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from tests.search.toys import SMALL, SPACE, Moody, Toy, archs, finished, spec, value

from befit.arch.space import Choice, Space
from befit.errors import BadBudget, BadData, Infeasible, RunConflict
from befit.search.coordinate import Coordinator
from befit.search.pool import Crew, InProcess
from befit.search.study import open_study, read_study, run_study
from befit.search.trial import funnel


@pytest.mark.parametrize(("workers", "ending"), [(0, "study.journal"), (1, "study.sqlite"), (2, "study.sqlite")])
def test_a_study_is_complete(tmp_path: Path, workers: int, ending: str) -> None:
    storage = str(tmp_path / ending)
    found = run_study(spec(tmp_path, storage=storage), SPACE, Toy(tmp_path / "done"), crew=Crew(workers=workers))
    assert [one.state for one in found] == ["scored"] * 8
    assert len(set(finished(tmp_path / "done"))) == len(finished(tmp_path / "done")) == 8
    assert all(one.value == pytest.approx(value(SPACE.arch(one.arch or {}))) for one in found)
    assert all(one.seconds > 0 and one.epochs == 3 and one.owner for one in found)
    assert read_study(storage) == found


def test_a_larger_study_continues_a_smaller_one_as_if_it_had_been_large_at_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    at_once = run_study(spec(one, searcher="evolution", options=SMALL), SPACE, Toy(one / "done"), crew=Crew(workers=0))
    for trials in (3, 8):
        told = spec(other, searcher="evolution", options=SMALL, trials=trials)
        in_two = run_study(told, SPACE, Toy(other / "done"), crew=Crew(workers=0))
        assert len(finished(other / "done")) == trials
    assert archs(in_two) == archs(at_once)


def test_what_optuna_and_its_dashboard_see(tmp_path: Path) -> None:
    run_study(spec(tmp_path), SPACE, Toy(tmp_path / "done"), crew=Crew(workers=0))
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path / 'study.sqlite'}")
    assert study.metric_names == ["accuracy"] and study.direction.name == "MAXIMIZE"
    assert study.best_value == max(value(SPACE.arch(trial.user_attrs["arch"])) for trial in study.trials)
    assert study.trials[0].intermediate_values.keys() == {1, 2, 3}


def test_failures_are_trials_with_a_reason(tmp_path: Path) -> None:
    narrow = Space({**SPACE.choices, "width": Choice(8)})
    told = spec(tmp_path, trials=16, timeout=1.0)  # all there are
    found = run_study(told, narrow, Moody(tmp_path), crew=Crew(workers=2))
    for one in found:
        arch = SPACE.arch(one.arch or {})
        if arch["mixer"] == "pool" or (arch["depth"] == 4 and arch["kernel"] != 7):
            assert one.state == "scored"
        else:
            wanted: dict[Any, tuple[str, str]] = {
                (1, arch["kernel"]): ("crash", "SIGKILL"),
                (2, arch["kernel"]): ("nan", "after step 3"),
                (3, 3): ("nan", "not a finite number"),
                (3, 5): ("out-of-memory", "no room"),
                (3, 7): ("crash", "ZeroDivisionError: a bug"),
                (4, 7): ("timeout", "not done after 1 s"),
            }
            reason, text = wanted[arch["depth"], arch["kernel"]]
            assert one.state == "failed" and one.reason == reason and text in one.message
    stages = funnel(found)
    assert stages.asked == stages.built == 16 == stages.scored + sum(stages.failed.values())
    assert stages.failed == {"crash": 4, "nan": 4, "out-of-memory": 1, "timeout": 1} and stages.scored == 6


def test_a_small_space_ends_a_study_early(tmp_path: Path) -> None:
    small = Space({name: SPACE.choices[name] for name in ("width", "depth")}, legal=lambda arch: arch["width"] == 64)
    with pytest.warns(UserWarning, match="ends after 4 of 8 trials"):
        found = run_study(spec(tmp_path), small, Toy(tmp_path / "done", 0), crew=Crew(workers=0))
    assert sum(one.counts for one in found) == 4 == len(finished(tmp_path / "done"))


def test_ctrl_c_loses_nothing(tmp_path: Path) -> None:
    class Interrupted(Exception):
        """As Ctrl-C would."""

    def evaluate(arch: Any, fidelity: Any, report: Any) -> Any:
        if len(list((tmp_path / "done").glob("*"))) == 3 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise KeyboardInterrupt
        return Toy(tmp_path / "done", 0)(arch, fidelity, report)

    with pytest.raises(KeyboardInterrupt):
        run_study(spec(tmp_path), SPACE, evaluate, crew=Crew(workers=0))
    killed = next(one for one in read_study(spec(tmp_path).storage) if one.reason == "killed")
    begin = time.monotonic()
    found = run_study(spec(tmp_path), SPACE, evaluate, crew=Crew(workers=0))
    assert time.monotonic() - begin < 30, "what its own coordinator told killed needs no grace period"
    again = next(one for one in found if one.again == killed.number)
    assert again.arch == killed.arch and again.state == "scored"
    whole = run_study(spec(tmp_path / "whole"), SPACE, Toy(tmp_path / "other", 0), crew=Crew(workers=0))
    assert archs(found) == archs(whole) and len(finished(tmp_path / "done")) == 8
    assert funnel(found).interrupted == 1 and funnel(found).asked == 8


def test_a_sampler_that_proposes_the_impossible_is_stopped(tmp_path: Path) -> None:
    barren = Space(SPACE.choices, legal=lambda arch: False)
    told = spec(tmp_path, refusals=5)
    with pytest.raises(Infeasible, match="5 trials in a row ended before any evaluation, the last one invalid"):
        run_study(told, barren, Toy(tmp_path), sampler=optuna.samplers.RandomSampler(seed=0), crew=Crew(workers=0))


def test_another_study_of_that_name_is_not_continued(tmp_path: Path) -> None:
    with open_study(spec(tmp_path), SPACE):
        pass
    with pytest.raises(RunConflict, match="seed was 0, now 1"), open_study(spec(tmp_path, seed=1), SPACE):
        pass
    for told in (spec(tmp_path, seed=1, name="another"), spec(tmp_path, trials=99)):
        with open_study(told, SPACE) as study:
            assert study.study_name == told.name
    with pytest.raises(RunConflict, match="no study 'third'"):
        read_study(spec(tmp_path).storage, "third")


def test_specs_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="trials must be at least 1, got 0"):
        spec(tmp_path, trials=0)
    with pytest.raises(BadData, match="timeout must be above 0"):
        spec(tmp_path, timeout=0.0)
    for objectives in (("latency",), ("accuracy", "speed"), ("accuracy", "macs", "macs"), ()):
        with pytest.raises(BadBudget, match="objectives"):
            spec(tmp_path, objectives=objectives)


def test_who_asks_when_others_have_taken_the_last_place_steps_back(tmp_path: Path) -> None:
    told = spec(tmp_path, trials=3)
    run_study(told, SPACE, Toy(tmp_path / "done", 0), crew=Crew(workers=0))
    pool = InProcess(Toy(tmp_path / "done", 0))
    with open_study(told, SPACE) as study:
        late = Coordinator(spec=told, space=SPACE, study=study, pool=pool, pricer=None, owner="late")
        late._begin([])  # as it was seen before the others asked
        found = late.records()
    assert pool.free == 1 and not late.running, "nothing is evaluated"
    assert [one.reason for one in found] == [None, None, None, "surplus"] and not found[-1].counts
