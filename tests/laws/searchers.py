"""What must hold for every searcher. One joins by a line in `search.searchers.SEARCHERS`; `tests/search/test_searchers.py`
runs the laws.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
from scipy.stats import mannwhitneyu

from befit.arch.space import Arch, Choice, Space
from befit.errors import Infeasible
from befit.search.random_search import RandomSearch
from befit.search.searcher import Searcher, Told, View, rng_of

PLAIN = Space({name: Choice(*range(5)) for name in "abcdef"})
TREE = Space(
    {
        "width": Choice(16, 32, 64),
        "mixer": Choice("conv", "pool"),
        "kernel": Choice(3, 5, 7, when={"mixer": "conv"}),
        "dilated": Choice(True, False, when={"kernel": (5, 7)}),
        "wide": Choice(True, False),
    },
    legal=lambda arch: not (arch["width"] == 64 and arch["wide"]),
    features=lambda arch: (float(arch["width"]), float(len(arch))),
)
TWINS = Space(
    {"left": Choice(*range(6)), "right": Choice(*range(6))}, same=lambda a: tuple(sorted(map(int, a.values())))
)
"""The order does not matter: 36 archs, 21 functions."""

Score = Callable[[Arch], float | None]


def peaked(arch: Arch) -> float:
    """Additive, but for one pair of choices that must go together; the best of `PLAIN` is 26."""
    own = [int(value) for value in arch.values()]
    return sum(own) + 2.0 * (own[0] == own[1] == 4)


def anything(arch: Arch) -> float:
    return sum((place + 1) * len(str(value)) for place, value in enumerate(arch.values())) / 7


def asked(searcher: Searcher, space: Space, score: Score, trials: int, *, seed: int = 0) -> list[Arch]:
    """A whole search."""
    told, archs = tuple[Told, ...](), list[Arch]()
    for position in range(trials):
        view = View(space=space, told=told, running=(), allowed=lambda _: True, rng=rng_of(seed, position))
        archs.append(searcher.propose(view))
        told += (Told(arch=archs[-1], value=score(archs[-1])),)
    return archs


def every_function_is_tried_once_and_then_it_is_over(searcher: Searcher) -> None:
    for space in (TREE, TWINS):
        functions = {space.key(arch) for arch in space.enumerate()}
        archs = asked(searcher, space, anything, len(functions))
        assert all(space.contains(arch) for arch in archs)
        assert len({space.key(arch) for arch in archs}) == len(functions)
        with pytest.raises(Infeasible, match="loosen the budget, widen the space"):
            asked(searcher, space, anything, len(functions) + 1)


def nothing_refused_is_proposed(searcher: Searcher) -> None:
    told, allowed = tuple[Told, ...](), [arch for arch in TREE.enumerate() if arch["width"] == 32]
    for position in range(len(allowed)):
        rng = rng_of(1, position)
        view = View(space=TREE, told=told, running=(), allowed=lambda arch: arch["width"] == 32, rng=rng)
        told += (Told(arch=searcher.propose(view), value=float(position)),)
    assert {one.arch for one in told} == set(allowed)
    none = View(space=TREE, told=(), running=(), allowed=lambda _: False, rng=rng_of(0, 0))
    with pytest.raises(Infeasible):
        searcher.propose(none)


def what_is_running_is_left_alone(searcher: Searcher) -> None:
    archs = list(TREE.enumerate())
    told = tuple(Told(arch=arch, value=anything(arch)) for arch in archs[:14])
    view = View(space=TREE, told=told, running=tuple(archs[15:]), allowed=lambda _: True, rng=rng_of(0, 14))
    assert searcher.propose(view) == archs[14]


def the_same_view_brings_the_same_proposal(searcher: Searcher) -> None:
    """Also after another search was made in between: nothing is kept."""
    told = tuple(Told(arch=arch, value=peaked(arch)) for arch in asked(RandomSearch(), PLAIN, peaked, 15))
    view = View(space=PLAIN, told=told, running=(), allowed=lambda _: True, rng=rng_of(2, 15))
    first = searcher.propose(view)
    asked(searcher, PLAIN, lambda arch: -peaked(arch), 13, seed=9)
    fresh_space = Space(PLAIN.choices)
    assert searcher.propose(replace(view, space=fresh_space, rng=rng_of(2, 15))) == first


def failures_are_data(searcher: Searcher) -> None:
    """Neither a search where all fails nor one where half of it does ends early or tries anything twice."""
    for score in (lambda _: None, lambda arch: None if arch["wide"] else anything(arch)):
        assert len(set(asked(searcher, TREE, score, 20))) == 20


def equal_scores_do_no_harm(searcher: Searcher) -> None:
    assert len(set(asked(searcher, PLAIN, lambda _: 0.5, 20))) == 20


def the_unit_of_the_score_does_not_matter(searcher: Searcher) -> None:
    plain = asked(searcher, PLAIN, peaked, 25)
    assert asked(searcher, PLAIN, lambda arch: 1024 * peaked(arch), 25) == plain


def it_beats_random_search(searcher: Searcher) -> None:
    """The best of 40 over 12 seeds, by a one-sided rank test at 1 %."""
    if isinstance(searcher, RandomSearch):
        return

    def best(of: Searcher) -> list[float]:
        return [max(map(peaked, asked(of, PLAIN, peaked, 40, seed=seed))) for seed in range(12)]

    assert mannwhitneyu(best(searcher), best(RandomSearch()), alternative="greater").pvalue < 0.01


LAWS: tuple[Callable[[Searcher], None], ...] = (
    every_function_is_tried_once_and_then_it_is_over,
    nothing_refused_is_proposed,
    what_is_running_is_left_alone,
    the_same_view_brings_the_same_proposal,
    failures_are_data,
    equal_scores_do_no_harm,
    the_unit_of_the_score_does_not_matter,
    it_beats_random_search,
)
