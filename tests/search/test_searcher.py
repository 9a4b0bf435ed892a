"""What a view says, seeds that do not change, and the draws that searchers share."""

import random
from collections import Counter

import pytest

from befit.arch.space import Arch, Choice, Space
from befit.errors import Infeasible
from befit.search.searcher import Told, View, mutants, rng_of, seed_of, tournament

SPACE = Space({name: Choice(0, 1, 2) for name in "abcd"}, same=lambda arch: tuple(sorted(map(int, arch.values()))))


def arch(*values: int) -> Arch:
    return SPACE.arch(dict(zip("abcd", values, strict=True)))


def test_a_view_knows_what_is_new_by_function() -> None:
    told = (Told(arch=arch(0, 0, 0, 1), value=None), Told(arch=arch(0, 0, 0, 2), value=1.0))
    view = View(
        space=SPACE,
        told=told,
        running=(arch(2, 2, 2, 2),),
        allowed=lambda one: one["a"] != 1,
        rng=random.Random(0),
    )
    assert view.scored == ((arch(0, 0, 0, 2), 1.0),)
    assert not view.new(arch(1, 0, 0, 0)) and not view.new(arch(2, 2, 2, 2)) and not view.new(arch(1, 1, 1, 1))
    assert view.first([arch(0, 1, 0, 0), arch(1, 1, 2, 2), arch(2, 2, 1, 1)]) == arch(2, 2, 1, 1)


def test_a_draw_is_uniform_over_what_is_left() -> None:
    space = Space({"a": Choice(*range(10))})
    told = tuple(Told(arch=space.arch({"a": n}), value=0.0) for n in range(4))
    found = Counter[object]()
    for seed in range(1200):
        rng = random.Random(seed)
        view = View(space=space, told=told, running=(), allowed=lambda one: one["a"] != 9, rng=rng)
        found[view.draw()["a"]] += 1
    assert set(found) == {4, 5, 6, 7, 8} and min(found.values()) > 180


def test_the_last_arch_of_a_large_space_is_found() -> None:
    space = Space({name: Choice(*range(6)) for name in "abcdef"})
    needle = space.arch(dict.fromkeys("abcdef", 3))
    view = View(space=space, told=(), running=(), allowed=lambda one: one == needle, rng=random.Random(0))
    assert view.draw() == needle


def test_seeds_are_the_same_for_ever() -> None:
    assert [seed_of(0, 0), seed_of(0, 1), seed_of(7, "rate")] == [GOLDEN[0], GOLDEN[1], GOLDEN[2]]
    assert rng_of(0, 1).random() == random.Random(GOLDEN[1]).random()


GOLDEN = (2637685378, 2781527649, 1371251746)


def test_mutants_move_further_away_when_patience_ends() -> None:
    parent = arch(0, 0, 0, 0)
    far = [
        sum(value != 0 for value in one.values())
        for one in mutants(SPACE, lambda: parent, random.Random(0), patience=9)
    ]
    assert len(far) == 180 and far[:9] == [1] * 9 and max(far[9:18]) == 2 and max(far) == 4


def test_a_tournament_is_won_by_the_best_drawn() -> None:
    population = [(arch(0, 0, 0, n), float(n)) for n in range(3)]
    wins = Counter(tournament(population, 2, random.Random(seed))["d"] for seed in range(3000))
    # The best of two draws from three with replacement: 5/9, 3/9, 1/9.
    assert [round(wins[n] / 3000 * 9) for n in (2, 1, 0)] == [5, 3, 1]


def test_a_budget_that_hardly_any_draw_keeps_is_reached_by_its_excess() -> None:
    """One in 8^8 archs keeps it; led by the excess, different ones near it are found."""
    space = Space({f"c{i}": Choice(*range(8)) for i in range(8)})

    def excess(arch: Arch) -> float:
        return sum(int(value) for value in arch.values()) / 3 - 1

    def view(rng: random.Random, lead: bool) -> View:
        return View(
            space=space,
            told=(),
            running=(),
            allowed=lambda arch: excess(arch) <= 0,
            rng=rng,
            excess=excess if lead else None,
        )

    found = {view(random.Random(seed), True).draw() for seed in range(20)}
    assert all(sum(map(int, arch.values())) <= 3 for arch in found) and len(found) > 10
    with pytest.raises(Infeasible):
        view(random.Random(0), False).draw()
