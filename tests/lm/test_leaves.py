"""Leaves against the views of autograd, which they replace in training."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import members
from befit.arch.member import Member, whole
from befit.lm.leaves import Leaves
from befit.lm.prefix import prefix
from befit.lm.training import Learner, adam

randoms = st.randoms(use_true_random=False)


@settings(max_examples=40)
@given(draw=randoms)
def test_leaves_have_the_numbers_of_views_and_gather_the_gradient_of_views(draw: Random) -> None:
    parent = members.parent_of(members.any_config(draw))
    shape, family = parent.net.shape, parent.net.family
    by_view = {name: weight.detach().clone().requires_grad_() for name, weight in parent.weights.items()}
    by_leaf = {name: weight.detach().clone().requires_grad_() for name, weight in parent.weights.items()}
    learner = Learner(by_leaf, adam(by_leaf, lr=0.1))
    leaves = Leaves(by_leaf, shape, family)
    first = members.member_of(draw, shape)
    for member in (first, members.member_of(draw, shape), whole(shape), first):
        wanted, found = prefix(by_view, shape, family, member), leaves(by_leaf, member)
        assert list(found) == list(wanted)
        for name, weight in wanted.items():
            assert found[name].equal(weight)
            factor = torch.randn_like(weight)
            torch.autograd.backward([(weight * factor).sum(), (found[name] * factor).sum()])
    for name, weight in by_view.items():
        wanted = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert by_leaf[name].grad is not None
        torch.testing.assert_close(by_leaf[name].grad, wanted)
    learner.step(lr=0.1)
    after, wanted = leaves(by_leaf, first), prefix(by_leaf, shape, family, first)
    assert all(after[name].equal(weight) for name, weight in wanted.items())


def test_leaves_cut_what_is_not_in_training_as_views() -> None:
    parent = members.parent_of(members.hybrid_config(Random(0), hidden_size=16))
    shape, family = parent.net.shape, parent.net.family
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in parent.weights.items()}
    half = Member.from_json(whole(shape).to_json() | {"hidden": 8})
    with pytest.raises(ValueError, match="has no gradient yet"):
        Leaves(weights, shape, family)(weights, half)
    Learner(weights, adam(weights, lr=0.1))
    name = f"{family.final_norm}.weight"
    gain = torch.full((16,), 2.0, requires_grad=True)
    found = Leaves(weights, shape, family)(weights | {name: weights[name] * gain}, half)
    found[name].sum().backward()
    assert gain.grad is not None
    assert gain.grad.tolist() == weights[name][:8].tolist() + [0.0] * 8
