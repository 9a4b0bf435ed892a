"""The parts of the engine on plain arrays; what it returns as a whole is compared with brute force in test_solve.py."""

import itertools
import os

import numpy as np
import pytest

from befit.puzzle import knapsack
from befit.puzzle.knapsack import Ints, Knapsack, best, nearest


def problem(rng: np.random.Generator, layers: int = 4, options: int = 5, rows: int = 2) -> Knapsack:
    items = layers * options
    use = rng.integers(-3, 10, (rows, items)).astype(float)
    limit = use.reshape(rows, layers, options).mean(2).sum(1)
    score = rng.integers(0, 20, items).astype(float)
    return Knapsack(layer=np.repeat(np.arange(layers), options), score=score, use=use, limit=limit)


def choices(of: Knapsack) -> list[Ints]:
    groups = np.split(np.arange(len(of.layer)), of.starts[1:])
    return [np.array(choice) for choice in itertools.product(*groups)]


@pytest.mark.parametrize("listed", [knapsack.LISTED, 0], ids=["list", "HiGHS"])
def test_the_caller_has_the_last_word(monkeypatch: pytest.MonkeyPatch, listed: int) -> None:
    """Choices that `exact` refuses, though they keep all rows, are passed over; the best of the others comes."""
    monkeypatch.setattr(knapsack, "LISTED", listed)
    for seed in range(10):
        of = problem(np.random.default_rng(seed))
        kept = knapsack._possible(of)
        assert kept is not None
        # Without dominated items, which could take the place of refused ones only if `exact` gave a reason in a row.
        of = of.take(kept)
        order = sorted((of.score[c].sum(), c.tolist()) for c in choices(of) if (of.use[:, c].sum(1) <= of.limit).all())
        refused = [choice for _, choice in order[:5]]

        def exact(items: Ints, of: Knapsack = of, refused: list[list[int]] = refused) -> float | None:
            keeps = (of.use[:, items].sum(1) <= of.limit).all() and items.tolist() not in refused
            return float(of.score[items].sum()) if keeps else None

        found = best(of, exact, 10.0)
        expected = order[5][0] if len(order) > 5 else None
        assert (found and found.score) == expected


def test_undominated_items_are_those_that_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, use = rng.integers(0, 4, 9).astype(float), rng.integers(0, 4, (2, 9)).astype(float)
        values = [(score[i], *use[:, i]) for i in range(9)]
        kept = [
            i
            for i, own in enumerate(values)
            if not any(
                all(x <= y for x, y in zip(other, own, strict=True)) and (other != own or j < i)
                for j, other in enumerate(values)
            )
        ]
        assert knapsack._undominated(score, use).tolist() == kept


def test_rows_that_empty_a_layer_together_leave_nothing() -> None:
    """Each row on its own leaves one item, but not the same."""
    of = Knapsack(
        layer=np.array([0, 0, 1]),
        score=np.zeros(3),
        use=np.array([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0]]),
        limit=np.array([1.0, 1.0]),
    )
    assert best(of, lambda _: 0.0, 1.0) is None


def test_nearest_never_breaks_a_hard_row() -> None:
    for seed in range(10):
        of = problem(np.random.default_rng(seed), rows=3)
        unit, tight = np.array([2.0, 5.0, 0.0]), of.limit - [40.0, 40.0, 0.0]
        hard = Knapsack(layer=of.layer, score=of.score, use=of.use, limit=tight)
        items = nearest(hard, unit, 10.0)
        assert items is not None

        def worst(choice: Ints, of: Knapsack = hard) -> float:
            return float(((of.use[:2, choice].sum(1) - of.limit[:2]) / [2.0, 5.0]).max())

        allowed = [choice for choice in choices(hard) if hard.use[2, choice].sum() <= hard.limit[2]]
        assert hard.use[2, items].sum() <= hard.limit[2]
        assert worst(items) <= min(map(worst, allowed)) * 1.002 + 1e-6


def test_a_closed_standard_output_does_not_matter() -> None:
    kept = os.dup(1)
    os.close(1)
    try:
        with knapsack._result_stream_kept_clean():
            pass
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@pytest.mark.parametrize("seed", range(2))
def test_highs_goes_on_from_the_best_choice_listed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Items are left out that cannot better the choice listed so far, and no others."""
    rng = np.random.default_rng(seed)
    use = rng.uniform(0, 1, (2, 72))
    # Scores are nearly the uses saved, so that many choices come close and the list overflows early.
    score = 2 - use.sum(0) + rng.normal(0, 0.05, 72)
    of = Knapsack(layer=np.repeat(np.arange(9), 8), score=score, use=use, limit=use.reshape(2, 9, 8).mean(2).sum(1))

    def exact(items: Ints) -> float | None:
        return float(of.score[items].sum()) if (of.use[:, items].sum(1) <= of.limit).all() else None

    proven = best(of, exact, 60.0)
    for listed in (100, 300):
        monkeypatch.setattr(knapsack, "LISTED", listed)
        found = best(of, exact, 60.0)
        assert found and proven and (found.score, found.gap) == (pytest.approx(proven.score, rel=1e-12), 0.0)
