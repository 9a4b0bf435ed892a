"""Mobile networks: parts against the formulas, and every sampled arch built and run."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from befit.arch.mobile import POINTS, Block, options_for
from befit.arch.task import ImageTask
from befit.vision.mobile import InvertedResidual, Squeeze, mobile, resized

DIGITS = ImageTask(channels=1, height=8, width=8, classes=10)
CIFAR10 = ImageTask(channels=3, height=32, width=32, classes=10)


@pytest.mark.parametrize("task", [DIGITS, CIFAR10, ImageTask(channels=3, height=28, width=20, classes=4)])
@pytest.mark.parametrize("seed", range(3))
def test_every_sampled_arch_gives_logits(task: ImageTask, seed: int) -> None:
    blueprint = mobile(**options_for(task))
    network = blueprint.build(blueprint.space.sample(random.Random(seed)), task)
    logits = network(torch.randn(2, task.channels, task.height, task.width))
    assert logits.shape == (2, task.classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("seed", range(3))
def test_large_images_too(seed: int) -> None:
    blueprint, task = mobile(resolutions=(96,)), ImageTask(channels=3, height=90, width=110, classes=7)
    network = blueprint.build(blueprint.space.sample(random.Random(seed)), task).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 90, 110)).shape == (1, 7)


@pytest.mark.parametrize(
    ("gate", "inner", "outer"), [("hardsigmoid", F.relu, F.hardsigmoid), ("sigmoid", F.silu, F.sigmoid)]
)
def test_a_squeeze_weighs_channels_by_their_means(gate: str, inner: type, outer: type) -> None:
    squeeze, x = Squeeze(6, 3, gate), torch.randn(2, 6, 4, 4)

    def linear(conv: nn.Conv2d, values: Tensor) -> Tensor:
        assert conv.bias is not None
        return values @ conv.weight[:, :, 0, 0].T + conv.bias

    scale = outer(linear(squeeze.restore, inner(linear(squeeze.reduce, x.mean((2, 3))))))
    assert torch.allclose(squeeze(x), x * scale[:, :, None, None], atol=1e-6)


def block(**changed: int) -> Block:
    told = {"channels": 8, "expanded": 16, "out": 8, "kernel": 3, "stride": 1, "squeeze": 4} | changed
    return Block(**told, activation="hardswish")


def test_a_block_is_expand_mix_weigh_narrow_and_add() -> None:
    made, x = InvertedResidual(block(), "sigmoid").eval(), torch.randn(2, 8, 6, 6)
    inner = made.project(made.squeeze(made.depthwise(made.expand(x))))
    assert torch.allclose(made(x), x + inner)
    (conv,) = [part for part in made.depthwise if isinstance(part, nn.Conv2d)]
    assert conv.groups == conv.in_channels == 16
    assert not any(isinstance(part, nn.Hardswish) for part in made.project)


def test_a_block_adds_its_input_only_where_it_fits() -> None:
    x = torch.randn(2, 8, 6, 6)
    for changed, shape in (({"stride": 2}, (2, 8, 3, 3)), ({"out": 16}, (2, 16, 6, 6))):
        made = InvertedResidual(block(**changed), "sigmoid")
        assert not made.residual
        assert made(x).shape == shape


def test_what_is_not_needed_has_no_weights() -> None:
    made = InvertedResidual(block(expanded=8, squeeze=0), "sigmoid")
    assert {name.partition(".")[0] for name, _ in made.named_parameters()} == {"depthwise", "project"}


def test_networks_of_one_skeleton_name_their_parts_alike() -> None:
    blueprint = mobile(skeletons=("compact",), resolutions=(8, 16))
    shallow = blueprint.space.sample(random.Random(1))
    taken = shallow.to_json() | {"depth_2": 5, "resolution": 16, "kernel_2": 7}
    taken |= {f"expansion_2_{block}": 6.0 for block in range(1, 6)}
    first = blueprint.build(shallow, DIGITS)
    second = blueprint.build(blueprint.space.arch(taken), DIGITS)
    assert set(first.state_dict()) < set(second.state_dict())
    assert "stages.1.0.depthwise.conv.weight" in first.state_dict()


def test_images_are_resized_only_where_they_must_be() -> None:
    images = torch.randn(2, 3, 8, 8)
    assert resized(images, 8) is images
    assert resized(images, 16).shape == (2, 3, 16, 16)
    assert torch.allclose(resized(torch.full((1, 1, 4, 6), 3.0), 5), torch.tensor(3.0))


def test_fresh_weights_keep_their_size_in_every_kind_of_convolution() -> None:
    task = ImageTask(channels=3, height=32, width=32, classes=10)
    network = mobile().build(POINTS["mobilenet_v3_small"], task)
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d):
            outputs = {"depthwise.conv": part.kernel_size[0] ** 2, "stem.conv": 9 * part.out_channels}
            reached = next((n for end, n in outputs.items() if name.endswith(end)), part.out_channels)
            assert part.weight.std().item() == pytest.approx((2 / reached) ** 0.5, rel=0.25)


def test_a_fresh_network_learns() -> None:
    space = mobile(resolutions=(8,), skeletons=("compact",), widths=(0.5,), depth=1, expansions=(4.0,)).space
    network = mobile().build(space.sample(random.Random(0)), DIGITS)
    labels = torch.arange(16) % 2
    images = torch.randn(16, 1, 8, 8) + 2.0 * labels[:, None, None, None]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    assert loss.item() < 0.2
    assert (network(images).argmax(1) == labels).float().mean() > 0.9
