"""The ensemble against scikit-learn and the normal equations, and what the predictor asks for."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from befit.arch.cell import cell_space, paths
from befit.arch.space import Arch, Choice, Space
from befit.search.predictor import Predictor, bagged, encoded, standard
from befit.search.searcher import Told, View, rng_of

SPACE = Space({"a": Choice(0, 1, 2), "b": Choice("x", "y"), "c": Choice(3, 5, when={"b": "x"})})


def test_a_member_is_a_ridge_regression_on_its_resample() -> None:
    rng = np.random.default_rng(0)
    known, values, unknown = rng.normal(size=(30, 6)), rng.normal(size=30), rng.normal(size=(7, 6))
    config = Predictor(members=3, ridge=0.7)
    told = bagged(known, values, unknown, np.random.default_rng(5), config)
    again = np.random.default_rng(5)
    for member in told:
        drawn = again.integers(30, size=30)
        truth = Ridge(alpha=0.7, fit_intercept=False).fit(known[drawn], values[drawn])
        assert member == pytest.approx(truth.predict(unknown), abs=1e-9)


def test_the_code_holds_a_one_the_options_and_the_features_in_a_range_of_a_half() -> None:
    archs = list(SPACE.enumerate())
    told = encoded(SPACE, archs, lambda arch: (100.0 * int(arch["a"]), 7.0))
    assert (told[:, 0] == 1).all()
    assert (told[:, 1:8] == np.array([SPACE.encode(arch) for arch in archs])).all()
    assert told[:, 8] == pytest.approx([int(arch["a"]) / 4 for arch in archs]) and (told[:, 9] == 0).all()
    assert encoded(SPACE, archs, None).shape == (len(archs), 8)


def test_scores_have_mean_0_and_deviation_1_and_no_tail() -> None:
    told = standard(np.array([0.10, 0.90, 0.91, 0.92, 0.93]))
    assert told.mean() == pytest.approx(0) and told.std() == pytest.approx(1)
    assert (told[4] - told[0]) / (told[4] - told[2]) == pytest.approx(4)
    assert (standard(np.full(3, 0.5)) == 0).all()


def test_it_asks_for_new_neighbours_of_the_best() -> None:
    space = cell_space()
    best = space.sample(rng_of(1, 0))
    told = [Told(arch=best, value=0.9)] + [Told(arch=space.sample(rng_of(2, n)), value=n / 100) for n in range(12)]
    for seed in range(5):
        view = View(space=space, told=tuple(told), running=(), allowed=lambda _: True, rng=rng_of(seed, 13))
        arch = Predictor(incumbents=1, wider=0).propose(view)
        assert arch in space.neighbours(best) and space.key(arch) not in view.keys


def test_it_learns_from_features_that_the_options_do_not_show() -> None:
    """The score is one path from input to output: told the paths, the predictor ranks better than on the operations."""
    space = cell_space()
    plain = Space(space.choices, same=space.same)

    def score(arch: Arch) -> float:
        return sum(weight * path for weight, path in zip(np.sin(np.arange(84.0)), paths(arch), strict=True))

    archs = [space.sample(rng_of(3, n)) for n in range(260)]
    values = np.array([score(arch) for arch in archs])

    def agreement(of: Space) -> float:
        inputs = encoded(of, archs, of.features)
        config = Predictor()
        told = bagged(inputs[:200], standard(values[:200]), inputs[200:], np.random.default_rng(0), config).mean(0)
        return float(np.corrcoef(told, values[200:])[0, 1])

    assert agreement(space) > agreement(plain) + 0.1


def test_nothing_is_priced_that_is_not_about_to_be_asked_for() -> None:
    space, priced = cell_space(), list[Arch]()

    def allowed(arch: Arch) -> bool:
        priced.append(arch)
        return len(priced) > 2

    told = tuple(Told(arch=space.sample(rng_of(2, n)), value=n / 100) for n in range(12))
    view = View(space=space, told=told, running=(), allowed=allowed, rng=rng_of(0, 12))
    assert Predictor().propose(view) == priced[2] and len(priced) == 3
