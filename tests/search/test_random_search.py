"""Random search: uniform, without repetition (that it ends when all is tried is a law)."""

from collections import Counter

from befit.arch.space import Choice, Space
from befit.search.random_search import RandomSearch
from befit.search.searcher import Told, View, rng_of

SPACE = Space({"a": Choice(0, 1, 2), "b": Choice(0, 1)})


def test_every_order_is_as_likely() -> None:
    firsts = Counter[tuple[object, object]]()
    for seed in range(3000):
        told = tuple[Told, ...]()
        for position in range(2):
            view = View(space=SPACE, told=told, running=(), allowed=lambda _: True, rng=rng_of(seed, position))
            told += (Told(arch=RandomSearch().propose(view), value=0.0),)
        firsts[told[0].arch, told[1].arch] += 1
    assert len(firsts) == 30 and min(firsts.values()) > 60 and max(firsts.values()) < 140
