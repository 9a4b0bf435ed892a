"""A sub-net of the cell supernet is the network of its arch, on the supernet's weights."""

import random
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from befit.arch.cell import NAMES, OPS, cell_space, parse
from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.oneshot.shared_cell import CellSupernet, live
from befit.oneshot.supernet import recalibrate

TASK = ImageTask(channels=3, height=8, width=8, classes=4)


def supernet() -> CellSupernet:
    net = CellSupernet(TASK, channels=4, cells=1)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):  # so that a constant out of a norm is seen
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return net


def archs(count: int) -> list[Arch]:
    rng = random.Random(0)
    return [cell_space().sample(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_extracted_network_answers_as_the_supernet_does(images: Tensor) -> None:
    net = supernet()
    for arch in archs(25):
        recalibrate(net, arch, [images[:4], images[4:8]])
        own = net.extract(arch)
        assert not own.training and not net.training
        with torch.no_grad():
            assert torch.allclose(own(images), net(images, arch), atol=1e-5)
            own.train()
            net.train()
            assert torch.allclose(own(images), net(images, arch), atol=1e-5)


def test_statistics_are_the_means_over_the_batches(images: Tensor) -> None:
    arch = parse("|nor_conv_3x3~0|+|nor_conv_1x1~0|nor_conv_3x3~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|")
    net = supernet()
    twin = net.extract(arch).train()
    for norm in twin.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # torch's own cumulative average
    recalibrate(net, arch, [images[8:]])  # what other images left behind must be gone
    recalibrate(net, arch, [images[:4], images[4:8]])
    with torch.no_grad():
        twin(images[:4])
        twin(images[4:8])
    other, found = twin.state_dict(), net.extract(arch).state_dict()
    for name, tensor in other.items():
        if "num_batches" not in name:
            assert torch.allclose(tensor, found[name], atol=1e-6), name


def test_training_leaves_statistics_alone(images: Tensor) -> None:
    net = supernet().train()
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    for arch in archs(5):
        net(images, arch).sum().backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.named_buffers())


def test_only_the_parts_of_the_arch_learn(images: Tensor) -> None:
    arch = parse("|none~0|+|nor_conv_3x3~0|none~1|+|none~0|nor_conv_1x1~1|skip_connect~2|")
    net = supernet().train()
    net(images, arch).sum().backward()
    learnt = {name for name, weight in net.named_parameters() if weight.grad is not None and ".ops." in name}
    assert {name.split(".ops.")[1].rsplit(".", 2)[0] for name in learnt} == {
        "edge_0_2.nor_conv_3x3",
        "edge_1_3.nor_conv_1x1",
    }


def test_live_edges_are_those_from_which_the_output_can_be_reached() -> None:
    rng = random.Random(1)
    for told in rng.sample(list(product(OPS, repeat=6)), 200):
        arch = cell_space().arch(dict(zip(NAMES, told, strict=True)))
        open_ = {(int(n[0]), int(n[3])) for n in NAMES if arch[n] != "none"}

        def ends(node: int, edges: set[tuple[int, int]] = open_) -> bool:
            return node == 3 or any(ends(b) for a, b in edges if a == node)

        assert {edge for edge, _ in live(arch)} == {(a, b) for a, b in open_ if ends(b)}


def test_no_tensor_is_shared_with_what_was_extracted() -> None:
    net = supernet()
    arch = archs(1)[0]
    own = net.extract(arch)
    with torch.no_grad():
        for weight in own.parameters():
            weight.zero_()
    assert all(weight.abs().sum() > 0 for name, weight in net.named_parameters() if name.endswith("1.weight"))
