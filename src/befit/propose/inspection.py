"""Inside the sandbox: everything that can be known of a network without data, from one building of it.

On the meta device it is built, run and run backwards as in training, then run as in evaluation with another number of images.
That tells whether it can be trained, its parameters and FLOPs, and the operations that are its fingerprint. Where the meta
device itself is in the way, since the network asks for numbers, the same is done on the CPU with random images.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from befit.errors import TrialFailed
from befit.propose.graph import Tracing
from befit.propose.network import Maker

IMAGES = (2, 3)
"""Images in training and in evaluation: small, and not the same, since a network must take any number."""

_OF_THE_DEVICE = re.compile(r"meta|device|cuda|cpu|numpy", re.IGNORECASE)
"""What an error says that may come from the meta device and not from the network."""


def inspected(build: Maker, in_shape: tuple[int, ...], classes: int, *, recipe: bool) -> Mapping[str, Any]:
    """params, flops (of one image, 2 for a multiply-add), and graph (its key; empty if the network looks at numbers).

    Args:
        build: Makes the network on a device.
        in_shape: (N, C, H, W); N images are what the network was told, not what it is given here.
        classes: Of the logits.
        recipe: Whether the network trains itself; its `train_setup` and `learn` are then tried too.

    Raises:
        TrialFailed: The output is not (images, classes), or nothing can be trained (reason "invalid").
        BadProposal: `Net` is no network.
        Exception: Whatever the network's code raises.
    """
    try:
        found = _inspected(build, in_shape, classes, torch.device("meta"))
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        if not _of_the_device(error):
            raise
        found = _inspected(build, in_shape, classes, torch.device("cpu"))
    if recipe:
        _learn(build, in_shape, classes)
    return found


def _of_the_device(error: Exception) -> bool:
    """Whether the network might be sound and only the meta device cannot run it."""
    return isinstance(error, NotImplementedError | AssertionError) or _OF_THE_DEVICE.search(str(error)) is not None


def _inspected(build: Maker, in_shape: tuple[int, ...], classes: int, device: torch.device) -> Mapping[str, Any]:
    tracing = Tracing(device)
    network = tracing.build(build)
    trained, evaluated = ((images, *in_shape[1:]) for images in IMAGES)
    logits = _checked(tracing.forward(network, trained, training=True), (trained[0], classes))
    flops = tracing.flops // trained[0]
    if not logits.requires_grad:
        raise TrialFailed("no parameter has a part in the output, so there is nothing to train", reason="invalid")
    tracing.backward(logits.sum())
    _checked(tracing.forward(network, evaluated, training=False), (evaluated[0], classes))
    params = sum(one.numel() for one in network.parameters())
    return {"params": params, "flops": flops, "graph": "" if tracing.looked else tracing.key}


def _checked(output: Any, wanted: tuple[int, int]) -> Tensor:
    if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
        found = tuple(output.shape) if isinstance(output, Tensor) else f"of type {type(output).__name__}"
        raise TrialFailed(
            f"for {wanted[0]} images the output is {found}, expected a tensor of shape {wanted}", reason="invalid"
        )
    return output


def _learn(build: Maker, in_shape: tuple[int, ...], classes: int) -> None:
    """The file's own training, for one batch of random images: it looks at numbers more often than not."""
    device = torch.device("cpu")
    network = build(device)
    images = torch.randn(IMAGES[1], *in_shape[1:])
    network.train_setup(build.prm)
    network.learn([(images, torch.arange(IMAGES[1]) % classes)])
