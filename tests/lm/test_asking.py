"""Measures by their definitions, from likelihoods that are written down."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from befit.lm.answers import Likelihood
from befit.lm.asking import ask, doubt
from befit.lm.tasks.item import Item, Task

TASK = Task(name="toy", about="", unit="", levels=(1,), draw=lambda *_: ITEM, correct=lambda item, text: text == "yes")
ITEM = Item(prompt="p", without="q", options=(" a", " b b"), right=1, labels={"level": "1"})


class Told:
    """Says what it is told to."""

    def __init__(self, totals: dict[tuple[str, str], float], text: str = "") -> None:
        self.totals, self.text = totals, text

    def pair(self, context: str, continuation: str) -> Any:
        return context, continuation

    def count(self, text: str) -> int:
        return len(text.split())

    def likelihoods(self, pairs: Sequence[Any], **_: Any) -> list[Likelihood]:
        return [Likelihood(total=self.totals[pair], tokens=self.count(pair[1]), greedy=False) for pair in pairs]

    def write(self, prompts: Sequence[str], *_: Any, **__: Any) -> list[str]:
        return [self.text] * len(prompts)


def test_every_measure_by_its_definition() -> None:
    speaker: Any = Told({("p", " a"): -1.5, ("p", " b b"): -1.0, ("q", " b b"): -4.0}, "yes")
    found = ask(TASK, [ITEM], speaker)
    assert {name: own.values[0] for name, own in found.items()} == pytest.approx(
        {"choice": 1.0, "nats": 0.5, "doubt": math.log(1 + math.exp(-0.5)), "gain": 1.5, "exact": 1.0}
    )
    assert [own.higher for own in found.values()] == [True, False, False, True, True]
    assert [own.chance for own in found.values()] == [0.5, None, None, None, 0.0]
    assert found["gain"].labels == ({"level": "1"},)
    assert "exact" not in ask(TASK, [ITEM], speaker, write=False)


def test_what_is_as_likely_shares_the_point_and_doubt_is_stable() -> None:
    speaker: Any = Told({("p", " a"): -1.0, ("p", " b b"): -1.0, ("q", " b b"): -1.0}, "no")
    found = ask(TASK, [ITEM], speaker)
    assert found["choice"].values == (0.5,) and found["exact"].values == (0.0,)
    assert doubt([-1e4, -1e4 - 700], 0) == pytest.approx(0) and doubt([-1e4, -1e4 - 700], 1) == pytest.approx(700)
    assert doubt([-3.0] * 4, 2) == pytest.approx(math.log(4))
