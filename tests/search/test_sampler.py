"""Samplers against the pure functions, over kills and resumes, and what they do with a budget."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import optuna
import pytest
from optuna.trial import TrialState

from befit.arch.cell import cell_space
from befit.arch.space import Arch, Choice, Space
from befit.errors import BefitError, IllegalArch, Infeasible
from befit.search.evolution import Evolution
from befit.search.named import OPTUNA
from befit.search.random_search import RandomSearch
from befit.search.sampler import Sampler, arch_of, sampler_of, suggest
from befit.search.searcher import Told, View, rng_of
from befit.search.searchers import SEARCHERS, searcher_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

CELL = cell_space()
CONDITIONAL = Space(
    {
        "width": Choice(16, 32, 64),
        "mixer": Choice("conv", "pool"),
        "kernel": Choice(3, 5, 7, when={"mixer": "conv"}),
        "wide": Choice(True, False),
    },
    legal=lambda arch: not (arch["width"] == 64 and arch["wide"]),
)


def value(arch: Arch) -> float:
    """Something any searcher can learn, with no two steps alike."""
    return sum((place + 1) * len(str(option)) for place, option in enumerate(arch.values())) / 10


def cheap(arch: Arch) -> bool:
    return sum(option == "nor_conv_3x3" for option in arch.values()) < 2


def study_of(sampler: optuna.samplers.BaseSampler, **options: Any) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=sampler, **options)


def run(sampler: optuna.samplers.BaseSampler, space: Space, trials: int) -> list[Arch]:
    study = study_of(sampler)
    study.optimize(lambda trial: value(suggest(trial, space)), n_trials=trials)
    return [found for trial in study.trials if (found := arch_of(trial, space)) is not None]


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_sampler_proposes_what_the_pure_function_does(name: str) -> None:
    told = tuple[Told, ...]()
    for position in range(25):
        view = View(space=CELL, told=told, running=(), allowed=cheap, rng=rng_of(3, position))
        arch = searcher_of(name).propose(view)
        told += (Told(arch=arch, value=value(arch)),)
    assert run(Sampler(searcher_of(name), CELL, seed=3, allowed=cheap), CELL, 25) == [one.arch for one in told]


@pytest.mark.parametrize("name", [*SEARCHERS, *OPTUNA])
def test_a_conditional_space_with_a_rule_is_searched_to_its_end_and_no_further(name: str) -> None:
    allowed = [arch for arch in CONDITIONAL.enumerate() if arch["width"] != 32]
    sampler = sampler_of(name, CONDITIONAL, allowed=lambda arch: arch["width"] != 32)
    study = study_of(sampler)
    with pytest.raises(Infeasible, match="loosen the budget"):
        study.optimize(lambda trial: value(suggest(trial, CONDITIONAL)), n_trials=len(allowed) + 1)
    found = [arch_of(trial, CONDITIONAL) for trial in study.get_trials(states=[TrialState.COMPLETE])]
    assert len(found) == len(allowed) and set(found) == set(allowed)


@pytest.mark.parametrize("name", ["random", "evolution", "local", "reinforce", "predictor", "nsga2", "nsga3", "tpe"])
def test_nothing_over_the_budget_is_asked_for_and_the_refused_are_counted(name: str) -> None:
    study = study_of(sampler_of(name, CELL, seed=1, allowed=cheap))
    study.optimize(lambda trial: value(suggest(trial, CELL)), n_trials=30)
    assert all(cheap(suggest(optuna.trial.FixedTrial(trial.params), CELL)) for trial in study.trials)
    refused = [trial.user_attrs["refused"] for trial in study.trials]
    assert all(isinstance(count, int) and count >= 0 for count in refused) and sum(refused) > 0


def test_the_refused_count_is_that_of_a_replay() -> None:
    study = study_of(sampler := Sampler(RandomSearch(), CELL, seed=5, allowed=cheap))
    study.optimize(lambda trial: value(suggest(trial, CELL)), n_trials=10)
    assert sampler.seed == 5
    for position, trial in enumerate(study.trials):
        rng, refused = rng_of(5, position), 0
        seen = {CELL.key(suggest(optuna.trial.FixedTrial(one.params), CELL)) for one in study.trials[:position]}
        while CELL.key(arch := CELL.sample(rng)) in seen or not cheap(arch):
            refused += not cheap(arch)
        assert (trial.params, trial.user_attrs["refused"]) == (arch.to_json(), refused)


RESUME = """
import sys, optuna, warnings
warnings.simplefilter("error")
optuna.logging.set_verbosity(optuna.logging.WARNING)
sys.path.insert(0, {here!r})
from test_sampler import CELL, cheap, value
from befit.search.sampler import sampler_of, suggest
for name in {names!r}:
    study = optuna.create_study(storage={url!r}, study_name=name, load_if_exists=True, direction="maximize",
                                sampler=sampler_of(name, CELL, seed=7, allowed=cheap))
    if {resumed}:
        trial = study.ask()
        suggest(trial, CELL)
        trial.set_user_attr("reason", "killed")
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    study.optimize(lambda trial: value(suggest(trial, CELL)), n_trials={trials})
"""


RESUMED = [*SEARCHERS, "nsga2", "tpe"]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The storage of studies of 14 trials, killed in the next, and taken up for 10 more by another process."""
    url, here = f"sqlite:///{tmp_path_factory.mktemp('studies')}/study.db", str(Path(__file__).parent)
    for hash_seed, trials in enumerate((14, 10)):
        program = RESUME.format(here=here, url=url, names=RESUMED, trials=trials, resumed=bool(hash_seed))
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    return url


@pytest.mark.parametrize("name", RESUMED)
def test_a_study_killed_and_loaded_by_another_process_goes_on_the_same(name: str, resumed: str) -> None:
    study = optuna.load_study(study_name=name, storage=resumed)
    found = [trial.params for trial in study.get_trials(states=[TrialState.COMPLETE])]
    assert found == [arch.to_json() for arch in run(sampler_of(name, CELL, seed=7, allowed=cheap), CELL, 24)]


def test_running_trials_are_not_proposed_again_and_failed_ones_never() -> None:
    study = study_of(Sampler(Evolution(population=2), CONDITIONAL))
    trials = [study.ask() for _ in range(6)]
    asked = [suggest(trial, CONDITIONAL) for trial in trials]
    for trial in trials[:3]:
        trial.set_user_attr("reason", "nan")
        study.tell(trial, state=TrialState.FAIL)
    left = CONDITIONAL.size - len(asked)
    asked += [suggest(study.ask(), CONDITIONAL) for _ in range(left)]
    assert set(asked) == set(CONDITIONAL.enumerate())
    with pytest.raises(Infeasible):
        suggest(study.ask(), CONDITIONAL)


def test_a_minimised_study_is_searched_downwards() -> None:
    space = Space({name: Choice(*range(5)) for name in "abcdef"})

    def best(direction: Literal["minimize", "maximize"]) -> float:
        study = optuna.create_study(direction=direction, sampler=Sampler(Evolution(), space, seed=2))
        study.optimize(lambda trial: sum(map(int, suggest(trial, space).values())), n_trials=80)
        return study.best_value

    assert best("minimize") <= 3 and best("maximize") >= 20


@pytest.mark.parametrize("name", ["evolution", "local", "predictor", "nsga2", "nsga3", "tpe", "gp"])
def test_several_objectives(name: str) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler_of(name, CELL, seed=2))

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        arch = suggest(trial, CELL)
        return value(arch), sum(option == "nor_conv_3x3" for option in arch.values())

    study.optimize(objective, n_trials=12)
    assert len(study.trials) == 12 and study.best_trials


def test_another_parameter_is_drawn_beside_the_arch_the_same_each_time() -> None:
    def rates() -> list[float]:
        study = study_of(Sampler(RandomSearch(), CONDITIONAL, seed=4))
        study.optimize(lambda trial: value(suggest(trial, CONDITIONAL)) + trial.suggest_float("rate", 0, 1), n_trials=5)
        return [trial.params["rate"] for trial in study.trials]

    assert rates() == rates() and len(set(rates())) == 5


def test_an_enqueued_arch_is_tried_first() -> None:
    study = study_of(Sampler(Evolution(), CELL))
    wanted = CELL.sample(rng_of(99, 0))
    study.enqueue_trial(wanted.to_json())
    study.optimize(lambda trial: value(suggest(trial, CELL)), n_trials=3)
    assert study.trials[0].params == wanted.to_json()


def test_suggest_refuses_what_the_space_does() -> None:
    with pytest.raises(IllegalArch, match="rule refuses"):
        suggest(optuna.trial.FixedTrial({"width": 64, "mixer": "pool", "wide": True}), CONDITIONAL)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("annealing", {}, "expected one of random, evolution, .*gp, got 'annealing'"),
        ("evolution", {"size": 3}, "it has no size; its settings: population, sample, patience"),
        ("evolution", {"population": 1}, "population must be 2 or more, got 1"),
        ("nsga2", {"size": 3}, "Optuna refuses its settings"),
    ],
)
def test_wrong_names_and_settings_are_told_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BefitError, match=message):
        sampler_of(name, CELL, options=options)
