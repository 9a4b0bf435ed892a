import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from befit.errors import BadData
from befit.propose.archive import (
    ArchiveConfig,
    Scored,
    choose,
    examples,
    island,
    parent,
    population,
    ranked,
)


def net(number: int, accuracy: float, **other: object) -> Scored:
    told = {"key": f"k{number}", "text": f"net {number}", "dataset": "digits"} | other
    return Scored(number=number, accuracy=accuracy, **told)  # pyright: ignore[reportArgumentType]


NETS = [net(number, (number * 7 % 20) / 20) for number in range(20)]
RANKING = ranked(NETS, dataset="digits")


def numbers(found: list[Scored] | tuple[Scored, ...]) -> list[int]:
    return [one.number for one in found]


def test_a_ranking_holds_each_network_of_the_dataset_once_best_first() -> None:
    records = [
        net(0, 0.5),
        net(1, 0.9, dataset="cifar10"),
        net(2, 0.7, key="same"),
        net(3, 0.8, key="same"),
        net(4, 0.5),
        net(5, 0.1),
    ]
    assert numbers(ranked(records, dataset="digits", at_least=0.2)) == [3, 0, 4]
    assert ranked(records, dataset="svhn") == []
    with pytest.raises(BadData, match="accuracy of network 0"):
        net(0, float("nan"))


SELECTIONS: dict[str, tuple[ArchiveConfig, Callable[[int], float]]] = {
    "elite": (ArchiveConfig(selection="elite", elite=4), lambda rank: 1.0 if rank < 4 else 0.0),
    "rank": (ArchiveConfig(selection="rank", pressure=2.0), lambda rank: 1 / (rank + 1) ** 2),
    "even": (ArchiveConfig(selection="rank", pressure=0.0), lambda rank: 1.0),
    # The accuracies are 0.95, 0.90, …: an arithmetic row of 20, whose deviation is 0.05 sqrt((20^2 - 1) / 12).
    "softmax": (
        ArchiveConfig(selection="softmax", temperature=0.5),
        lambda rank: 2.718281828459045 ** (-rank * 0.05 / (0.5 * 0.05 * (399 / 12) ** 0.5)),
    ),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_parents_are_drawn_as_often_as_the_formula_says(name: str) -> None:
    config, weight = SELECTIONS[name]
    rng, draws = random.Random(0), 20_000
    counts = Counter(RANKING.index(found) for _ in range(draws) if (found := parent(RANKING, rng, config)))
    total = sum(weight(rank) for rank in range(20))
    for rank in range(20):
        share = weight(rank) / total
        assert abs(counts[rank] / draws - share) <= 5 * (share * (1 - share) / draws) ** 0.5


def test_the_softmax_of_equal_accuracies_is_even_and_of_distant_ones_does_not_overflow() -> None:
    rng, config = random.Random(0), ArchiveConfig(selection="softmax")
    equal = [net(number, 0.5) for number in range(3)]
    assert len({parent(equal, rng, config) for _ in range(50)}) == 3
    assert parent([net(0, 1.0), net(1, 0.0)], rng, replace(config, temperature=1e-300)) == net(0, 1.0)
    assert parent([], rng, config) is None


def test_examples_are_the_best_or_any_of_them_in_the_order_of_value() -> None:
    rng = random.Random(0)
    assert examples(RANKING, 3, "best", rng) == RANKING[:3]
    assert examples(RANKING[:2], 6, "best", rng) == RANKING[:2]
    assert examples(RANKING, 0, "random", rng) == [] == examples([], 3, "random", rng)
    drawn = [examples(RANKING, 5, "random", rng) for _ in range(300)]
    assert all(one == sorted(one, key=RANKING.index) for one in drawn)
    assert len({one.number for each in drawn for one in each}) == 20


def test_diverse_examples_are_good_and_unlike_each_other() -> None:
    def similar(one: Scored, other: Scored) -> float:
        return 1.0 if one.note == other.note else 0.25

    families = [replace(one, note="abc"[place // 5 % 3]) for place, one in enumerate(RANKING)]
    found = examples(families, 3, "diverse", random.Random(0), similar)
    assert [RANKING.index(replace(one, note="")) for one in found] == [0, 5, 10]
    assert numbers(examples(families, 4, "diverse", random.Random(0), similar))[3] == RANKING[1].number
    assert len(examples(families[:2], 5, "diverse", random.Random(0), similar)) == 2
    assert examples([], 3, "diverse", random.Random(0), similar) == []
    with pytest.raises(BadData, match="similar"):
        examples(RANKING, 3, "diverse", random.Random(0))


def test_diverse_examples_come_from_the_better_half() -> None:
    odd = RANKING[15]
    found = examples(RANKING, 2, "diverse", random.Random(0), lambda one, other: float(odd not in (one, other)))
    assert odd not in found


def test_islands_see_their_own_and_what_migrates() -> None:
    config = ArchiveConfig(islands=3, migrate=4, migrants=1)  # a migration after every 12 proposals
    records = [net(number, number / 100 if number != 3 else 0.99) for number in range(30)]
    assert [island(number, config) for number in range(5)] == [0, 1, 2, 0, 1]
    assert numbers(population(records, 0, 12, replace(config, migrants=0))) == [0, 3, 6, 9]
    first = {place: set(numbers(population(records, place, 12, config))) for place in range(3)}
    assert first == {0: {0, 3, 6, 9, 11}, 1: {1, 4, 7, 10, 3}, 2: {2, 5, 8, 11, 10}}
    second = {place: set(numbers(population(records, place, 24, config))) for place in range(3)}
    assert second[1] == {1, 4, 7, 10, 3, 13, 16, 19, 22}  # from island 0 number 3 comes again, and is there once
    assert second[2] == {2, 5, 8, 11, 10, 14, 17, 20, 23, 3}  # number 3 wanders on
    assert len(population(records, 1, 24, config)) == len(second[1])


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 20), st.integers(0, 5),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_a_choice_depends_on_earlier_rows_and_the_seed_alone(
    islands: int, migrate: int, migrants: int, number: int, seed: int, order: random.Random
) -> None:
    config = ArchiveConfig(islands=islands, migrate=migrate, migrants=migrants, shots=2, pick="random")
    found = choose(NETS, number, random.Random(seed), config, dataset="digits")
    shuffled = order.sample(NETS[:number], number) + [net(number + later, 1.0) for later in range(3)]
    assert choose(shuffled, number, random.Random(seed), config, dataset="digits") == found
    assert found.parent not in found.examples and len(found.examples) <= 2
    assert {one.number for one in found.examples} <= set(range(number))
    natives = {one for one in NETS[:number] if island(one.number, config) == island(number, config)}
    assert (found.parent is None) <= (not natives)


def test_what_is_below_the_bar_is_never_shown() -> None:
    found = choose(NETS, 20, random.Random(0), ArchiveConfig(shots=6, at_least=0.8), dataset="digits")
    assert found.parent is not None
    assert sorted(one.accuracy for one in (found.parent, *found.examples)) == [0.8, 0.85, 0.9, 0.95]
    nothing = choose(NETS, 20, random.Random(0), ArchiveConfig(), dataset="svhn")
    assert nothing.parent is None and nothing.examples == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"shots": 7},
        {"shots": -1},
        {"pick": "worst"},
        {"selection": "luck"},
        {"elite": 0},
        {"islands": 0},
        {"migrate": 0},
        {"migrants": -1},
        {"pressure": -1.0},
        {"temperature": 0.0},
        {"at_least": 1.5},
    ],
)
def test_impossible_configurations_are_refused(wrong: dict) -> None:
    with pytest.raises(BadData, match=next(iter(wrong))):
        ArchiveConfig(**wrong)
