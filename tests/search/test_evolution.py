"""Aging evolution against a population kept in a deque."""

from collections import deque

import pytest

from befit.arch.space import Arch, Choice, Space
from befit.search.evolution import Evolution
from befit.search.searcher import Told, View, rng_of

SPACE = Space({name: Choice(*range(6)) for name in "abcdefgh"})


def score(arch: Arch) -> float | None:
    own = [int(value) for value in arch.values()]
    return None if sum(own) % 7 == 0 else sum(own) + own[0] * own[1] / 3


@pytest.mark.parametrize(("population", "sample"), [(5, 5), (8, 2)])
def test_children_come_from_the_best_drawn_of_the_last_so_many(population: int, sample: int) -> None:
    living: deque[tuple[Arch, float]] = deque(maxlen=population)
    told, bred = tuple[Told, ...](), 0
    for position in range(60):
        view = View(space=SPACE, told=told, running=(), allowed=lambda _: True, rng=rng_of(4, position))
        child = Evolution(population=population, sample=sample).propose(view)
        if len(living) == population:
            rng = rng_of(4, position)
            drawn = [rng.choice(list(living)) for _ in range(sample)]
            parent = max(drawn, key=lambda one: one[1])[0]
            if child == SPACE.mutate(parent, rng):  # or else the first child was no new arch
                assert sum(parent[name] != child[name] for name in SPACE.choices) == 1
                bred += 1
        value = score(child)
        told += (Told(arch=child, value=value),)
        if value is not None:
            living.append((child, value))
    assert bred > 40


def test_an_arch_that_has_aged_has_no_children() -> None:
    best = SPACE.arch(dict.fromkeys(SPACE.choices, 5))
    poor = [SPACE.arch(dict.fromkeys(SPACE.choices, 0) | {"a": n}) for n in range(4)]
    told = tuple(Told(arch=arch, value=1.0 if arch == best else 0.0) for arch in (best, *poor))
    for population, parents in ((4, poor), (5, [best])):
        for seed in range(30):
            view = View(space=SPACE, told=told, running=(), allowed=lambda _: True, rng=rng_of(seed, 5))
            child = Evolution(population=population, sample=40).propose(view)
            assert min(sum(one[name] != child[name] for name in SPACE.choices) for one in parents) == 1
