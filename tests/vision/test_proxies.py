"""Proxies against closed forms in numpy, and what they must leave alone."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from befit.arch.cell import parse
from befit.arch.task import ImageTask
from befit.errors import BadData, BefitError
from befit.vision.cell import cell
from befit.vision.proxies import KNOWN, NAMES, proxies

B, C, H, W, CLASSES = 5, 2, 3, 3, 3
INPUTS = C * H * W


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(B, C, H, W), torch.tensor([0, 1, 2, 1, 0])


def hidden(activation: nn.Module | None = None) -> nn.Sequential:
    """Two linear layers and an activation: every proxy has a closed form."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(INPUTS, 4, bias=False), activation or nn.ReLU(), nn.Linear(4, CLASSES, bias=False)
    )


def arrays(net: nn.Sequential, images: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First weights (4, inputs), second (classes, 4), images (B, inputs), in double precision."""
    first, second = (weight.detach().double().numpy() for weight in net.parameters())
    return first, second, images.double().reshape(B, -1).numpy()


def test_nwot_is_the_determinant_of_shared_signs() -> None:
    images, labels = batch()
    wide = nn.Sequential(
        nn.Flatten(), nn.Linear(INPUTS, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU6(), nn.Linear(30, 3)
    )
    first, first_bias, second, second_bias, *_ = (value.detach().numpy() for value in wide.parameters())
    x = images.reshape(B, -1).numpy() @ first.T + first_bias
    codes = np.hstack([x > 0, (np.maximum(x, 0) @ second.T + second_bias) > 0])
    shared = [[sum(a == b for a, b in zip(one, other, strict=True)) for other in codes] for one in codes]
    found = proxies(wide, images, labels, ["nwot"])
    assert found == {"nwot": pytest.approx(math.log(abs(np.linalg.det(np.array(shared, dtype=float)))), rel=1e-5)}


def test_synflow_is_the_flow_through_absolute_weights() -> None:
    images, labels = batch()
    net = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, CLASSES))
    first, first_bias, _, _, second, _ = (np.abs(value.detach().double().numpy()) for value in net.parameters())
    # Sum over classes, hidden units and pixels of the products of weights; the bias flows through the second layer only.
    through_first = (second @ first).sum()
    through_second = (second @ (first.sum(1) + first_bias)).sum()
    assert proxies(net, images, labels, ["synflow"])["synflow"] == pytest.approx(
        math.log(through_first + through_second), rel=1e-9
    )


def test_synflow_neither_overflows_nor_depends_on_the_images() -> None:
    deep = nn.Sequential(nn.Flatten(), *[nn.Linear(INPUTS, INPUTS, bias=False) for _ in range(60)])
    with torch.no_grad():
        for weight in deep.parameters():
            weight.fill_(-10.0)
    (images, labels), expected = batch(), math.log(60) + math.log(INPUTS) + 60 * math.log(INPUTS * 10.0)
    assert expected > math.log(torch.finfo(torch.float32).max)
    assert proxies(deep, images, labels, ["synflow"])["synflow"] == pytest.approx(expected)
    assert proxies(deep, 7 * images, labels, ["synflow"])["synflow"] == pytest.approx(expected)


def test_jacov_is_of_the_eigenvalues_of_correlated_gradients() -> None:
    images, labels = batch()
    net = hidden()
    first, second, x = arrays(net, images)
    jacobian = (second.sum(0) * (x @ first.T > 0)) @ first
    values = np.linalg.eigvals(np.corrcoef(jacobian)).real + 1e-5
    assert proxies(net, images, labels, ["jacov"])["jacov"] == pytest.approx(
        -float(np.sum(np.log(values) + 1 / values)), rel=1e-3
    )


def test_snip_and_grad_norm_are_of_the_gradient_of_the_loss() -> None:
    images, labels = batch()
    net = hidden()
    first, second, x = arrays(net, images)
    inner = np.maximum(x @ first.T, 0)
    logits = inner @ second.T
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (share - np.eye(CLASSES)[labels.numpy()]) / B
    to_second, to_first = error.T @ inner, ((error @ second) * (inner > 0)).T @ x
    found = proxies(net, images, labels, ["snip", "grad_norm"])
    assert found["snip"] == pytest.approx(np.abs(second * to_second).sum() + np.abs(first * to_first).sum(), rel=1e-5)
    assert found["grad_norm"] == pytest.approx(np.linalg.norm(to_second) + np.linalg.norm(to_first), rel=1e-5)


def test_counts_are_of_one_image() -> None:
    net = nn.Sequential(
        nn.Conv2d(C, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES)
    )
    expected = {"params": 4 * C * 9 + 4 + 8 + 36 * CLASSES + CLASSES, "macs": 4 * C * 9 * H * W + 36 * CLASSES}
    assert proxies(net, *batch(), ["params", "macs"]) == expected


class Called(nn.Module):
    """The network of `hidden`, with its activation as a function."""

    def __init__(self, net: nn.Sequential, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.before, self.after = net[:2], net[3]
        self.function: Callable[..., Tensor] = function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


@pytest.mark.parametrize(
    "function", [torch.relu, torch.relu_, functional.silu, functional.hardswish, functional.gelu, functional.relu6]
)
def test_activations_are_seen_as_modules_and_as_functions(function: Callable[[Tensor], Tensor]) -> None:
    images, labels = batch()
    net: Any = hidden()
    with torch.no_grad():
        net[1].weight.copy_(torch.linspace(-1, 1, 4 * INPUTS).reshape(4, -1))
    net[1] = nn.Sequential(net[1], nn.Linear(4, 64))
    net[3] = nn.Linear(64, CLASSES)
    expected = proxies(net, images, labels, ["nwot"])  # with nn.ReLU: the signs are the same
    assert math.isfinite(expected["nwot"]) and proxies(Called(net, function), images, labels, ["nwot"]) == expected


class Noisy(nn.Module):
    """Dropout in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x)


def test_nothing_is_changed_and_nothing_is_random() -> None:
    images, labels = batch()
    net = nn.Sequential(
        nn.Conv2d(C, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(),
        Noisy(),
        nn.Flatten(),
        nn.Linear(72, CLASSES),
    )
    net[1].weight.requires_grad_(False)
    functional.cross_entropy(net(images), labels).backward()
    state = copy.deepcopy(net.state_dict())
    gradients = [None if weight.grad is None else weight.grad.clone() for weight in net.parameters()]
    given, randomness = images.clone(), torch.get_rng_state()
    with torch.no_grad():
        found = proxies(net, images, labels, KNOWN)
    assert list(found) == list(KNOWN) and all(map(math.isfinite, found.values()))
    assert torch.equal(torch.get_rng_state(), randomness) and torch.equal(images, given) and not images.requires_grad
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [weight.requires_grad for weight in net.parameters()] == [True, True, False, True, True, True]
    for weight, before in zip(net.parameters(), gradients, strict=True):
        assert (weight.grad is None) == (before is None)
        assert weight.grad is None or before is None or torch.equal(weight.grad, before)
    assert all(layer.training for layer in net.modules()) and not any(layer._forward_hooks for layer in net.modules())
    torch.manual_seed(99)
    assert proxies(net, images, labels, KNOWN) == found
    assert proxies(net.eval(), images, labels, KNOWN) == found and not net.training


def test_batch_norms_see_the_batch() -> None:
    images, labels = batch()
    normed = nn.Sequential(nn.BatchNorm2d(C), *hidden(nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4))))
    expected = proxies(normed, images, labels, ["nwot", "snip"])
    assert math.isfinite(expected["nwot"])
    assert proxies(normed, 3 * images + 10, labels, ["nwot", "snip"]) == pytest.approx(expected, rel=1e-3)


def test_networks_that_nothing_passes_through() -> None:
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    task = ImageTask(channels=3, height=8, width=8, classes=4)
    dead = cell(channels=4, cells=1).build(parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"), task)
    found = proxies(dead, images, labels)
    assert {name: found[name] for name in ("nwot", "synflow", "jacov")} == dict.fromkeys(
        ("nwot", "synflow", "jacov"), -math.inf
    )
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    assert proxies(linear, images, labels, ["nwot"]) == {"nwot": -math.inf}
    assert proxies(hidden(), *batch(), []) == {}

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(len(x), CLASSES)

    assert list(proxies(Constant(), *batch()).values()) == [-math.inf, -math.inf, -math.inf, 0.0, 0.0]


def test_what_cannot_be_scored_is_told() -> None:
    images, labels = batch()
    with pytest.raises(BefitError, match=r"'zen' unknown; expected some of nwot, synflow"):
        proxies(hidden(), images, labels, ["nwot", "zen"])
    for wrong in ((images[:1], labels[:1]), (images, labels[:2]), (images.flatten(1), labels), (images.byte(), labels)):
        with pytest.raises(BadData, match="at least two float images"):
            proxies(hidden(), *wrong)


def test_names_are_of_what_is_known() -> None:
    assert set(NAMES) < set(KNOWN)
