import json
from typing import Any

import pytest
from scipy import stats
from tests.propose.proposals import row, run

from befit.errors import BadData
from befit.propose.funnel import means
from befit.propose.inference import holm
from befit.propose.proposal import Proposal
from befit.propose.statistics import compare


def grid(arms: dict[str, float], datasets: tuple[str, ...], seeds: int, attempts: int = 20) -> list[Proposal]:
    return [
        one
        for arm, skill in arms.items()
        for dataset in datasets
        for seed in range(seeds)
        for one in run(arm, dataset, seed, attempts, skill=skill)
    ]


def test_runs_are_the_units_where_there_are_several_seeds() -> None:
    rows = grid({"a": 0.4, "b": 0.6}, ("digits",), 5)
    told = compare(rows, chance=0.1)
    assert told["units"] == "runs" and list(told["measures"]) == ["intention", "unique", "conditional", "best"]
    assert told["attempts"] | {"counts": []} == {"equal": True, "each": 20, "counts": []}
    runs = {arm: [[one for one in rows if (one.arm, one.seed) == (arm, seed)] for seed in range(5)] for arm in "ab"}
    values = {arm: [means(group, 0.1)["intention"] for group in groups] for arm, groups in runs.items()}
    measure = told["measures"]["intention"]
    assert [one["mean"] for one in measure["arms"]] == pytest.approx([sum(v) / 5 for v in values.values()])
    (pair,) = measure["pairs"]
    truth: Any = stats.ttest_ind(values["b"], values["a"], equal_var=False)
    assert (pair["t"], pair["p"], pair["df"]) == pytest.approx((truth.statistic, truth.pvalue, truth.df))
    assert pair["corrected"] == pair["p"] and pair["dataset"] is None and pair["how"] == "paired bootstrap"
    assert pair["low"] < pair["difference"] < pair["high"] and pair["g_low"] < pair["g"] < pair["g_high"]
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_one_seed_leaves_the_attempts() -> None:
    rows = grid({"a": 0.4, "b": 0.6}, ("digits",), 1, attempts=60)
    told = compare(rows, chance=0.1)
    assert told["units"] == "attempts" and "best" not in told["measures"]
    trained = {
        arm: [one.accuracy for one in rows if one.arm == arm and one.stage in ("trained", "above-chance")]
        for arm in "ab"
    }
    (pair,) = told["measures"]["conditional"]["pairs"]
    truth: Any = stats.ttest_ind(trained["a"], trained["b"], equal_var=False)
    assert pair["p"] == pytest.approx(truth.pvalue)
    assert [one["count"] for one in told["measures"]["conditional"]["arms"]] == [len(v) for v in trained.values()]
    assert [one["count"] for one in told["measures"]["intention"]["arms"]] == [60, 60]


def test_all_tests_of_a_measure_are_corrected_together() -> None:
    told = compare(grid({"a": 0.4, "b": 0.5, "c": 0.6}, ("x", "y"), 3), chance={"x": 0.1, "y": 0.1})
    pairs = told["measures"]["intention"]["pairs"]
    names = [("a", "b"), ("a", "c"), ("b", "c")]
    assert [(one["dataset"], one["a"], one["b"]) for one in pairs] == [
        (d, *pair) for d in (None, "x", "y") for pair in names
    ]
    assert [one["corrected"] for one in pairs] == pytest.approx(holm([one["p"] for one in pairs]))


def test_a_dataset_counts_once_however_many_networks_it_has() -> None:
    rows = [row(arm="a", dataset="easy", number=n, accuracy=0.9 + 0.01 * n) for n in range(3)]
    rows += [row(arm="a", dataset="hard", number=0, accuracy=0.1), row("returned", arm="a", dataset="hard", number=1)]
    rows += [row("returned", arm="a", dataset="hard", number=2)]
    (arm,) = compare(rows, chance=0.1)["measures"]["conditional"]["arms"]
    assert arm["mean"] == pytest.approx((0.91 + 0.1) / 2)
    assert arm["datasets"] == {"easy": {"mean": pytest.approx(0.91), "count": 3}, "hard": {"mean": 0.1, "count": 1}}
    assert arm["low"] is None  # one value has no spread


def test_an_arm_without_networks_has_no_conditional_mean_but_an_intention() -> None:
    rows = [row("returned", arm="a", seed=seed, number=n) for seed in range(3) for n in range(4)]
    rows += [row(arm="b", seed=seed, number=n, accuracy=0.3 + 0.1 * seed) for seed in range(3) for n in range(4)]
    told = compare(rows, chance=0.1)["measures"]
    assert [one["mean"] for one in told["conditional"]["arms"]] == [None, pytest.approx(0.4)]
    assert told["conditional"]["pairs"][0]["p"] is None and told["conditional"]["pairs"][0]["corrected"] is None
    assert [one["mean"] for one in told["intention"]["arms"]] == pytest.approx([0.1, 0.4])
    assert [one["mean"] for one in told["best"]["arms"]] == pytest.approx([0.1, 0.4])  # without a network: a guess
    assert [one["mean"] for one in told["unique"]["arms"]] == [0.0, 1.0]
    assert told["intention"]["pairs"][0]["difference"] == pytest.approx(0.3)


def test_unequal_attempts_are_said() -> None:
    rows = grid({"a": 0.5, "b": 0.5}, ("x",), 2, attempts=5)
    assert compare(rows, chance=0.1)["attempts"]["equal"]
    for less in (rows[:-1], [one for one in rows if (one.arm, one.seed) != ("b", 1)]):
        told = compare(less, chance=0.1)["attempts"]
        assert not told["equal"] and told["each"] is None
        assert sum(one["attempts"] for one in told["counts"]) == len(less)


def test_nothing_to_compare_is_no_error() -> None:
    told = compare([], chance=0.1)
    assert told["measures"]["intention"] == {"arms": [], "pairs": []} and not told["attempts"]["equal"]
    (arm,) = compare([row("attempted", done=False), row()], chance=0.1)["measures"]["intention"]["arms"]
    assert arm["count"] == 1 and arm["mean"] == 0.5
    with pytest.raises(BadData, match="no chance is given for 'digits'"):
        compare([row()], chance={})


def test_intervals_stay_within_what_is_possible() -> None:
    rows = [row(arm=arm, seed=seed, accuracy=0.9 * (seed ^ (arm == "b"))) for arm in "ab" for seed in range(2)]
    told = compare(rows, chance=0.1)["measures"]["intention"]
    assert [(one["low"], one["high"], one["how"]) for one in told["arms"]] == [(0.0, 1.0, "t")] * 2
    assert (told["pairs"][0]["low"], told["pairs"][0]["high"]) == (-1.0, 1.0)
