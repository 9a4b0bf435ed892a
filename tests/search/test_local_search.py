"""Local search against brute force: where it stands, and that it ends in local optima."""

import random

import pytest

from befit.arch.space import Arch, Choice, Space
from befit.search.local_search import LocalSearch, replayed
from befit.search.searcher import Told, View, rng_of

SPACE = Space({name: Choice(0, 1, 2) for name in "abcd"})
RUGGED = {arch: random.Random(str(arch)).random() for arch in SPACE.enumerate()}


def view_of(told: tuple[Told, ...], seed: int = 0, running: tuple[Arch, ...] = ()) -> View:
    return View(space=SPACE, told=told, running=running, allowed=lambda _: True, rng=rng_of(seed, len(told)))


def near(one: Arch, other: Arch) -> bool:
    return sum(one[name] != other[name] for name in SPACE.choices) == 1


OPTIMA = {arch for arch in RUGGED if all(RUGGED[other] < RUGGED[arch] for other in RUGGED if near(arch, other))}


@pytest.mark.parametrize("seed", range(5))
def test_a_climb_moves_to_the_first_better_neighbour_and_restarts_at_an_optimum(seed: int) -> None:
    told = tuple[Told, ...]()
    for _ in range(60):
        before = replayed(view_of(told, seed))
        arch = LocalSearch().propose(view_of(told, seed))
        told += (Told(arch=arch, value=RUGGED[arch]),)
        after = replayed(view_of(told, seed))
        if before.arch is None:
            assert after.arch == arch
        elif near(before.arch, arch):
            # A better one is moved to, and past it where an earlier climb has seen a better one still.
            assert (after.arch == before.arch) == (RUGGED[arch] < RUGGED[before.arch])
            assert after.value >= max(before.value, RUGGED[arch])
        else:
            assert before.arch in OPTIMA, "a restart only where nothing near is better"


def test_restarts_leave_the_lesser_optima() -> None:
    told, stood = tuple[Told, ...](), set[Arch]()
    for _ in range(SPACE.size):
        arch = LocalSearch().propose(view_of(told))
        told += (Told(arch=arch, value=RUGGED[arch]),)
        walk = replayed(view_of(told))
        stood |= {walk.arch} & OPTIMA
    assert len(stood) > 1 and max(RUGGED, key=lambda arch: RUGGED[arch]) in stood


def test_results_out_of_order_do_not_end_a_climb() -> None:
    """With several workers a poor arch far away can end after the walk has begun: it is no restart."""
    start, step, late = (
        SPACE.arch(dict(zip("abcd", own, strict=True))) for own in ((0, 0, 0, 0), (0, 0, 0, 1), (2, 2, 0, 0))
    )
    told = tuple(Told(arch=arch, value=value) for arch, value in ((start, 0.5), (step, 0.7), (late, 0.1)))
    assert replayed(view_of(told)).arch == step
    assert near(step, LocalSearch().propose(view_of(told)))


def test_neighbours_that_run_or_failed_are_not_waited_for() -> None:
    start = SPACE.arch(dict.fromkeys("abcd", 0))
    around = SPACE.neighbours(start)
    told = (Told(arch=start, value=1.0), *(Told(arch=arch, value=None) for arch in around[:4]))
    restart = LocalSearch().propose(view_of(told, running=around[4:]))
    assert not near(start, restart)
    assert replayed(view_of((*told, Told(arch=restart, value=0.0)), running=around[4:])).arch == restart
