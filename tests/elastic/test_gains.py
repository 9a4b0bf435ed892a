"""Gains of the norms: nothing at the start, their own at a trained budget, interpolated between, never the whole's."""

import random

import pytest
import torch

import members
from befit.elastic.gains import Gains
from befit.lm.network import logits


@pytest.fixture(scope="module")
def parent() -> members.Parent:
    return members.parent_of(members.hybrid_config(random.Random(1)))


def changed(parent: members.Parent, shares: tuple[float, ...] = (1.0, 0.75, 0.5)) -> Gains:
    gains = Gains(parent.net.shape, parent.net.family, shares)
    with torch.no_grad():
        gains.values.uniform_(0.5, 1.5)
    return gains


def test_they_are_one_at_the_start_and_belong_to_every_norm_of_the_stream(parent: members.Parent) -> None:
    gains, weights = Gains(parent.net.shape, parent.net.family, (1.0, 0.5)), parent.weights
    stream = {name for name in weights if "norm" in name and ".mixer." not in name}
    assert set(gains.names) == stream and len(stream) == parent.net.shape.layers + 1
    assert gains.shares == (0.5,) and gains.values.shape == (1, len(stream), parent.net.shape.hidden)
    for share in (1.0, 0.8, 0.5, 0.1):
        applied = gains.apply(weights, share)
        assert applied.keys() == weights.keys()
        assert all(torch.equal(applied[name], weight) for name, weight in weights.items())


def test_between_budgets_they_are_interpolated(parent: members.Parent) -> None:
    gains, name = changed(parent), f"{parent.net.family.final_norm}.weight"
    place = gains.names.index(name)
    half, more = gains.values[:, place]
    norm = parent.weights[name]
    for share, factor in {
        0.3: half,
        0.5: half,
        0.6: half + 0.4 * (more - half),
        0.75: more,
        0.875: (more + 1) / 2,
        1.0: torch.ones_like(half),
    }.items():
        torch.testing.assert_close(gains.apply(parent.weights, share)[name], norm * factor)


def test_they_change_a_budget_and_not_the_whole(parent: members.Parent) -> None:
    gains, weights, tokens = changed(parent), parent.weights, torch.arange(12).view(2, 6) % parent.net.shape.vocab
    plain = logits(parent.net, weights, tokens)
    assert torch.equal(logits(parent.net, gains.apply(weights, 1.0), tokens), plain)
    applied = gains.apply(weights, 0.5)
    assert not torch.allclose(logits(parent.net, applied, tokens), plain, atol=1e-2)
    shared = {name for name, weight in weights.items() if applied[name] is weight}
    assert shared == set(weights) - set(gains.names)


def test_a_budget_of_nothing_is_refused(parent: members.Parent) -> None:
    with pytest.raises(ValueError, match=r"above 0, got 0\.0"):
        Gains(parent.net.shape, parent.net.family, (0.0, 0.5))
    assert Gains(parent.net.shape, parent.net.family, (1.0,)).at(0.4) == {}
