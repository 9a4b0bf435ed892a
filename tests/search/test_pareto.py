"""Pareto ranks against their definition."""

import itertools
import math
import random

from befit.search.pareto import crowding, dominates, fronts, scalarised

POINTS = [(random.Random(n).randrange(6), random.Random(n + 1000).randrange(6)) for n in range(40)]


def test_a_front_is_what_only_earlier_fronts_dominate() -> None:
    rank = {i: place for place, front in enumerate(fronts(POINTS)) for i in front}
    assert sorted(rank) == list(range(len(POINTS)))
    for i, point in enumerate(POINTS):
        above = [rank[j] for j, other in enumerate(POINTS) if dominates(other, point)]
        assert rank[i] == (max(above) + 1 if above else 0)


def test_domination() -> None:
    assert dominates((1, 2), (1, 1)) and not dominates((1, 1), (1, 1)) and not dominates((2, 0), (1, 1))


def test_crowding_is_the_box_between_the_neighbours() -> None:
    told = crowding([(0.0, 10.0), (1.0, 8.0), (3.0, 4.0), (10.0, 0.0)])
    assert told[0] == told[3] == math.inf
    assert told[1] == (3 - 0) / 10 + (10 - 4) / 10 and told[2] == (10 - 1) / 10 + (8 - 0) / 10
    assert crowding([(1.0, 1.0)]) == [math.inf] and crowding([]) == []


def test_one_number_orders_by_front_then_by_room_and_keeps_failures() -> None:
    values = [None, *POINTS, None]
    told = scalarised(values)
    assert told[0] is None and told[-1] is None
    for (i, one), (j, other) in itertools.permutations(enumerate(POINTS, 1), 2):
        if dominates(one, other):
            assert (told[i] or 0) > (told[j] or 0)
    line = scalarised([(0.0, 10.0), (4.9, 5.1), (5.0, 5.0), (10.0, 0.0), (1.0, 1.0)])
    assert line[0] == line[3] == 0.5 and 0 < (line[1] or 0) < 0.5 and (line[4] or 0) <= -0.5
    assert scalarised([]) == []
