"""Other tools' searchers on the same tables: Optuna's TPE, Syne Tune's regularized evolution, NePS's Bayesian optimisation.

Each is asked and told in its own way and with its own defaults; Syne Tune's evolution also with the population that
NAS-Bench-201's authors use (10 of 10). None of them keeps a budget or leaves out what was tried before.
A tool that is not installed is left out:  pip install optuna syne-tune neural-pipeline-search
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

from befit.search.table import Table

Ask = Iterator[dict[str, Any]]
Rival = Callable[[Table, int, list[float]], Ask]
"""From a table, a seed and the list that rewards are appended to after each proposal: proposals without end."""


def optuna_tpe(table: Table, seed: int, rewards: list[float]) -> Ask:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    while True:
        trial = study.ask()
        yield {name: trial.suggest_categorical(name, c.options) for name, c in table.space.choices.items()}
        study.tell(trial, rewards[-1])


def syne_tune_evolution(table: Table, seed: int, rewards: list[float], population: int = 100) -> Ask:
    from syne_tune.config_space import choice  # pyright: ignore[reportMissingImports]
    from syne_tune.optimizer.schedulers.searchers.regularized_evolution import RegularizedEvolution  # pyright: ignore[reportMissingImports]

    space = {name: choice(list(c.options)) for name, c in table.space.choices.items()}
    searcher = RegularizedEvolution(space, random_seed=seed, population_size=population, sample_size=10)
    for trial in range(10**9):
        config = searcher.suggest()
        if config is None:
            return
        yield config
        searcher.on_trial_complete(trial_id=trial, config=config, metric=-rewards[-1])


def neps_bayesian(table: Table, seed: int, rewards: list[float]) -> Ask:
    import random

    import neps  # pyright: ignore[reportMissingImports]
    import numpy as np
    import torch
    from neps.optimizers.algorithms import bayesian_optimization  # pyright: ignore[reportMissingImports]

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    names = {f"choice{place}": name for place, name in enumerate(table.space.choices)}
    space = neps.SearchSpace({s: neps.HPOCategorical(table.space.choices[n].options) for s, n in names.items()})
    loop = neps.AskAndTell(bayesian_optimization(space))
    while True:
        trial = loop.ask()
        yield {names[key]: value for key, value in trial.config.items()}
        loop.tell(trial, -rewards[-1])


RIVALS: dict[str, tuple[str, str, Rival]] = {
    "optuna-tpe": ("optuna", "optuna", optuna_tpe),
    "syne-tune-evolution": ("syne_tune", "syne-tune", syne_tune_evolution),
    "syne-tune-evolution-10": ("syne_tune", "syne-tune", functools.partial(syne_tune_evolution, population=10)),
    "neps-bayesian": ("neps", "neural-pipeline-search", neps_bayesian),
}
"""Name -> module, distribution, and the rival."""


def installed(name: str) -> str | None:
    """The version of a rival's tool; None if it is not there."""
    module, distribution, _ = RIVALS[name]
    return version(distribution) if importlib.util.find_spec(module) else None


def proposals(name: str, table: Table, seed: int, rewards: list[float]) -> Iterator[int]:
    """Rows of the table, as the rival asks for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for config in RIVALS[name][2](table, seed, rewards):
            yield table.row[table.space.arch(config)]
