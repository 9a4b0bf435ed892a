"""Optuna's own samplers by name: NSGA-II and NSGA-III, TPE, and a Gaussian process."""

import warnings
from collections.abc import Callable
from typing import Any

from optuna.samplers import BaseSampler


def nsga2(seed: int, *, population_size: int = 20, **options: Any) -> BaseSampler:
    """Generations of 20 instead of Optuna's 50: a search trains some hundred networks, not thousands."""
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(seed=seed, population_size=population_size, **options)


def nsga3(seed: int, *, population_size: int = 20, **options: Any) -> BaseSampler:
    """For three objectives and more."""
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import NSGAIIISampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return NSGAIIISampler(seed=seed, population_size=population_size, **options)


def tpe(seed: int, **options: Any) -> BaseSampler:
    """Tree-structured Parzen estimator, Optuna's default."""
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, **options)


def gp(seed: int, **options: Any) -> BaseSampler:
    """A Gaussian process; slow beyond some hundred trials."""
    from optuna.samplers import GPSampler

    return GPSampler(seed=seed, warn_independent_sampling=False, **options)


OPTUNA: dict[str, Callable[..., BaseSampler]] = {"nsga2": nsga2, "nsga3": nsga3, "tpe": tpe, "gp": gp}
"""Each takes a seed and the options of Optuna's class."""
