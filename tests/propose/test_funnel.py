from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.propose.proposals import row, run

from befit.errors import BadData
from befit.propose.funnel import arms, by_run, funnel, is_trained, leaders, lost, means, plain, reasons, spent
from befit.propose.proposal import STAGES


def test_each_stage_counts_all_that_passed_it() -> None:
    rows = [row("attempted"), row("parsed"), row("parsed"), row("new-graph"), row("trained"), row("above-chance")]
    counted = funnel(rows)
    assert list(counted) == list(STAGES)
    assert [counted[stage] for stage in STAGES] == [6, 5, 5, 3, 3, 3, 3, 3, 2, 1]
    assert set(funnel([]).values()) == {0}


@given(st.lists(st.sampled_from(STAGES), max_size=30))
def test_no_stage_has_more_than_the_one_before(stages: list) -> None:
    counted = funnel([row(stage) for stage in stages])
    assert counted["attempted"] == len(stages)
    assert all(before >= after for before, after in pairwise(counted.values()))
    assert all(counted[stage] >= stages.count(stage) for stage in STAGES)


def test_reasons_stand_at_the_stage_that_was_not_passed() -> None:
    rows = [row("parsed", reason="policy"), *[row("new-tree", reason="build")] * 2, row("new-tree", reason="timeout")]
    rows += [row("above-chance"), row("returned", reason="", done=False)]
    assert reasons(rows) == {"allowed": {"policy": 1}, "built": {"build": 2, "timeout": 1}}
    assert list(reasons(rows)["built"]) == ["build", "timeout"]


def test_what_is_lost_between_two_stages_has_as_many_reasons() -> None:
    rows = list(run("a", "digits", 0, 200))
    counted, told = funnel(rows), reasons(rows)
    for before, after in pairwise(STAGES):
        assert counted[before] - counted[after] == sum(told.get(after, {}).values())


def test_all_that_was_spent_is_shared_by_the_new_networks() -> None:
    rows = [
        row("parsed", prompt_tokens=100, completion_tokens=10, call_seconds=1.0, calls=2, price=0.5),
        row("new-graph", prompt_tokens=100, completion_tokens=30, gate_seconds=0.5, train_seconds=3.0, price=0.25),
        row("trained", prompt_tokens=60, completion_tokens=0, call_seconds=0.5, price=0.25),
    ]
    told = spent(rows)
    assert (told["calls"], told["unique"], told["price"]) == (4, 2, 1.0)
    assert told["per_unique"] == {"tokens": 150.0, "seconds": 2.5, "price": 0.5}
    assert spent([*rows, row("parsed", price=None)])["price"] is None  # part of a sum is no sum
    assert spent([*rows, row("attempted", calls=0)])["price"] == 1.0  # nothing was asked yet
    assert spent(rows[:1])["per_unique"] == {"tokens": None, "seconds": None, "price": None}


def test_an_attempt_without_a_new_network_counts_as_chance() -> None:
    rows = [
        row(accuracy=0.9),
        row("trained", accuracy=0.06),  # trained and worse than guessing: its own accuracy
        row("allowed", accuracy=0.9, same_as=0, reason="seen-tree"),  # a copy is no new network
        row("returned"),
        row("new-graph", done=False),  # under way
    ]
    told = means(rows, 0.1)
    assert told["conditional"] == pytest.approx(0.48) and told["best"] == 0.9
    assert told["intention"] == pytest.approx((0.9 + 0.06 + 0.1 + 0.1) / 4)
    assert [is_trained(one) for one in rows] == [True, True, False, False, False]
    assert means([row("returned")], 0.1) == {"conditional": None, "intention": 0.1, "best": None, "chance": 0.1}
    assert means([], 0.1)["intention"] is None
    with pytest.raises(BadData, match="1 / classes"):
        means(rows, 10)


def test_every_run_has_its_own_line() -> None:
    rows = [one for seed in (0, 1) for arm in "ab" for one in run(arm, "digits", seed, 5)]
    lines = arms(list(reversed(rows)), {"digits": 0.1})
    assert [(one["arm"], one["seed"], one["attempts"]) for one in lines] == [
        ("b", 1, 5), ("a", 1, 5), ("b", 0, 5), ("a", 0, 5),
    ]  # fmt: skip
    assert all([one.number for one in group] == list(range(5)) for group in by_run(rows).values())
    assert lines[0]["funnel"] == funnel(rows[-5:]) and lines[0]["best"] == means(rows[-5:], 0.1)["best"]
    with pytest.raises(BadData, match="no chance is given for 'digits'; it is given for cifar10"):
        arms(rows, {"cifar10": 0.1})


def test_a_plain_row_leaves_out_what_is_long() -> None:
    told = plain(row(source="x" * 1000, tree="0" * 32, accuracy=0.5))
    assert told["accuracy"] == 0.5 and told["stage"] == "above-chance"
    assert not {"source", "tree", "said"} & set(told)


def test_leaders_are_the_best_of_each_network_once() -> None:
    rows = [row(number=n, accuracy=0.1 * n, source=str(n % 3), params=9 - n) for n in range(5)]
    rows += [row(number=5, accuracy=0.4, source="3", params=1), row("allowed", number=6, accuracy=0.9, source="9")]
    assert [one["number"] for one in leaders(rows)] == [5, 4, 3, 2]
    assert [(one["proposed"], one["source"]) for one in leaders(rows, 1)] == [(0.4, "3")]


def test_every_dataset_has_its_leaders() -> None:
    rows = [
        row(number=n, dataset=name, accuracy=0.01 * n + more, source=str(n))
        for n in range(8)
        for name, more in (("a", 0.5), ("b", 0.0))
    ]
    assert [(one["dataset"], one["number"]) for one in leaders(rows, 6)] == [
        *(("a", n) for n in (7, 6, 5)),
        *(("b", n) for n in (7, 6, 5)),
    ]
    assert len(leaders(rows, 4)) == 6  # never less than three each


def test_what_was_lost_is_told_with_the_last_words_of_each_reason() -> None:
    rows = [
        row("returned", reason="parse", said="line 1"),
        row("returned", reason="parse", said="line 2"),
        row("trained", reason="chance", said="11%"),
        row("returned", reason="empty", done=False),
        row(),
    ]
    assert lost(rows) == [
        {"reason": "parse", "count": 2, "said": "line 2"},
        {"reason": "chance", "count": 1, "said": "11%"},
    ]
