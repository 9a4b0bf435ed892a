"""The gradient one step ahead against exact second derivatives."""

import torch
from torch import Tensor

from befit.oneshot.unroll import unrolled


def test_it_is_the_exact_derivative_through_one_step() -> None:
    torch.manual_seed(1)
    inputs, other = torch.randn(2, 20, 4, dtype=torch.float64)
    target, other_target = torch.randn(2, 20, dtype=torch.float64)
    weights = [torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    logits = torch.tensor([0.2, -0.4, 0.1], dtype=torch.float64, requires_grad=True)
    weights = [weight.requires_grad_() for weight in weights]

    def loss(x: Tensor, y: Tensor, own: list[Tensor]) -> Tensor:
        hidden = (x @ own[0]).tanh() * logits.softmax(0) * 3
        return ((hidden @ own[1] - y) ** 2).mean() + 0.1 * logits.square().sum()

    lr, before = 0.1, [weight.detach().clone() for weight in weights]
    slopes = torch.autograd.grad(loss(inputs, target, weights), weights, create_graph=True)
    ahead = [weight - lr * slope for weight, slope in zip(weights, slopes, strict=True)]
    (wanted,) = torch.autograd.grad(loss(other, other_target, ahead), logits)
    (found,) = unrolled(
        weights, [logits], lambda: loss(inputs, target, weights), lambda: loss(other, other_target, weights), lr
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(weights, before, strict=True))
    (first,) = torch.autograd.grad(
        loss(other, other_target, [w - lr * s.detach() for w, s in zip(weights, slopes, strict=True)]), logits
    )
    assert (first - wanted).norm() > 0.02 * wanted.norm(), (
        "the second order must matter here for the test to mean something"
    )


def test_what_depends_on_nothing_has_no_gradient() -> None:
    weight, logit = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    (found,) = unrolled([weight], [logit], weight.sum, lambda: logit.square().sum(), 0.1)
    assert found.tolist() == [2.0]
