"""The architecture's gradient one step of the weights ahead, without second derivatives.

Source: Liu et al., DARTS (ICLR 2019), equations 6 to 8.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

REACH = 0.01
"""Length of the weights' move for the difference quotient (the paper, footnote 2)."""


def unrolled(
    weights: Sequence[Tensor],
    logits: Sequence[Tensor],
    train_loss: Callable[[], Tensor],
    arch_loss: Callable[[], Tensor],
    lr: float,
) -> list[Tensor]:
    """The logits' gradient of `arch_loss` after one step of gradient descent of the weights on `train_loss`.

    The weights are moved and put back, bit by bit. The product with the second derivatives is a difference of two first ones;
    the step is without momentum and decay, as in the paper.
    """
    kept = [weight.detach().clone() for weight in weights]

    def move(along: Sequence[Tensor], by: float) -> None:
        with torch.no_grad():
            for weight, own, direction in zip(weights, kept, along, strict=True):
                weight.copy_(own + by * direction)

    move(first_gradient(train_loss(), weights), -lr)
    both = first_gradient(arch_loss(), [*logits, *weights])
    direct, ahead = both[: len(logits)], both[len(logits) :]
    reach = REACH / max(math.sqrt(sum(float(part.double().square().sum()) for part in ahead)), 1e-12)
    move(ahead, reach)
    above = first_gradient(train_loss(), logits)
    move(ahead, -reach)
    below = first_gradient(train_loss(), logits)
    with torch.no_grad():
        for weight, own in zip(weights, kept, strict=True):
            weight.copy_(own)
    return [own - lr * (up - down) / (2 * reach) for own, up, down in zip(direct, above, below, strict=True)]


def first_gradient(loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a loss, zeros for what it does not depend on."""
    return list(torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True))
