"""Screening takes the best of several candidates and changes nothing else."""

import random
from dataclasses import dataclass

import pytest

from befit.arch.space import Arch, Choice, Space
from befit.errors import Infeasible
from befit.search.random_search import RandomSearch
from befit.search.screen import Screened
from befit.search.searcher import Told, View

SPACE = Space({"x": Choice(*range(10))})


def score(arch: Arch) -> float:
    return float(arch["x"])


def view(told: tuple[Told, ...] = ()) -> View:
    return View(space=SPACE, told=told, running=(), allowed=lambda arch: True, rng=random.Random(3))


def test_the_best_of_the_candidates_is_taken() -> None:
    assert (
        Screened(inner=RandomSearch(), score=score, of=10).propose(view())["x"] == 9
    )  # all of them, without repetition
    some = Screened(inner=RandomSearch(), score=score, of=4)
    assert some.propose(view()) == some.propose(view())


def test_what_was_tried_is_not_proposed_again() -> None:
    told = tuple(Told(arch=SPACE.arch({"x": x}), value=0.0) for x in (9, 8, 7))
    assert Screened(inner=RandomSearch(), score=score, of=7).propose(view(told))["x"] == 6


@dataclass(frozen=True)
class Poor:
    """Has so many candidates and no more."""

    count: int

    def propose(self, view: View) -> Arch:
        if len(view.running) >= self.count:
            raise Infeasible("no more", binding="x", nearest={})
        return SPACE.arch({"x": len(view.running)})


def test_fewer_candidates_will_do_and_none_is_an_error() -> None:
    assert Screened(inner=Poor(2), score=score, of=5).propose(view())["x"] == 1
    with pytest.raises(Infeasible):
        Screened(inner=Poor(0), score=score, of=5).propose(view())
