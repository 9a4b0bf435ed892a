"""Every drawn network is valid, has the parameters that the closed form says, and trains by its own recipe."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from befit.errors import IllegalArch
from befit.propose.grammar import FAMILIES, Bounds, Family, draw
from befit.propose.network import PRM, Maker
from befit.propose.rendering import Style, render

SHAPES = [(2, 3, 32, 32), (2, 1, 8, 8), (3, 2, 5, 9), (2, 1, 4, 4)]


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from(SHAPES), classes=st.integers(2, 12))
def test_parameters_and_logits(seed: int, shape: tuple[int, int, int, int], classes: int) -> None:
    random = Random(seed)
    bounds = Bounds(in_shape=shape, classes=classes, params=100_000)
    plan = draw(random, bounds)
    build = Maker(render(plan, Style.draw(random)), {"in_shape": shape, "out_shape": (classes,), "prm": PRM})
    with torch.device("meta"):
        network = build(torch.device("meta"))
        assert network(torch.zeros(shape)).shape == (shape[0], classes)
    assert sum(one.numel() for one in network.parameters()) == plan.params(shape, classes) <= bounds.params


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_learns_by_its_recipe(family: Family) -> None:
    random = Random(family)
    bounds = Bounds(in_shape=(8, 1, 8, 8), classes=2)
    source = render(draw(random, bounds, family), Style.draw(random))
    network = Maker(source, {"in_shape": bounds.in_shape, "out_shape": (2,), "prm": PRM})(torch.device("cpu"))
    network.train_setup({"lr": 0.001, "momentum": 0.5, "dropout": 0.1})
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8) % 2
    network.learn([(images, labels)] * 5)
    first = [one.detach().clone() for one in network.parameters()]
    network.learn([(images, labels)])
    assert any(not torch.equal(one, two) for one, two in zip(first, network.parameters(), strict=True))


def test_the_same_seed_draws_the_same() -> None:
    assert [draw(Random(5)) for _ in range(2)] == [draw(Random(5))] * 2
    assert render(draw(Random(5)), Style.draw(Random(6))) == render(draw(Random(5)), Style.draw(Random(6)))
    assert len({draw(Random(seed)) for seed in range(100)}) > 95


def test_styles_differ() -> None:
    plan = draw(Random(1), family="residual")
    assert len({render(plan, Style.draw(Random(seed))) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"in_shape": (2, 3, 2, 32)}, "at least 4"), ({"classes": 1}, "2 classes"), ({"widths": (6,)}, "multiples of 4")],
)
def test_bounds_are_checked(wrong: dict, words: str) -> None:
    with pytest.raises(IllegalArch, match=words):
        Bounds(**wrong)


def test_bounds_that_leave_nothing() -> None:
    with pytest.raises(IllegalArch, match="10 parameters"):
        draw(Random(0), Bounds(params=10))
