"""Every searcher under the laws, and searchers by name."""

from collections.abc import Callable

import pytest

from befit.errors import BefitError
from befit.search.evolution import Evolution
from befit.search.searcher import Searcher
from befit.search.searchers import SEARCHERS, searcher_of
from laws.searchers import LAWS


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", SEARCHERS)
def test_law(name: str, law: Callable[[Searcher], None]) -> None:
    law(searcher_of(name))


def test_by_name_with_settings() -> None:
    assert searcher_of("evolution", {"population": 20}) == Evolution(population=20)
    with pytest.raises(BefitError, match=r"expected one of random, .*, got 'annealing'"):
        searcher_of("annealing")
    with pytest.raises(BefitError, match="it has no size; its settings: population, sample, patience"):
        searcher_of("evolution", {"size": 3})
    with pytest.raises(BefitError, match="random: it has no size; its settings: none"):
        searcher_of("random", {"size": 3})


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("evolution", "population", 1),
        ("evolution", "sample", 0),
        ("reinforce", "rate", 0.0),
        ("reinforce", "memory", 1.5),
        ("reinforce", "entropy_weight", -1.0),
        ("predictor", "start", 1),
        ("predictor", "members", 1),
        ("predictor", "ridge", 0.0),
    ],
)
def test_settings_have_ranges(name: str, setting: str, value: float) -> None:
    with pytest.raises(BefitError, match=f"searcher {name}: {setting} must be"):
        searcher_of(name, {setting: value})
