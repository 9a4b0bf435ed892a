"""Cells against the numbers that the benchmark publishes, and against sums written out by hand."""

import random

import pytest
import torch
from torch import nn

from befit.arch.cell import NAMES, cell_space, parse
from befit.arch.task import ImageTask
from befit.vision.cell import EDGE_NAMES, Cell, cell

CIFAR10 = ImageTask(channels=3, height=32, width=32, classes=10)
DIGITS = ImageTask(channels=1, height=8, width=8, classes=10)
SPACE = cell_space()


def test_a_cell_sums_what_its_edges_bring() -> None:
    arch = parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|")
    made = Cell(arch, 4)
    x = torch.randn(2, 4, 5, 5)
    op = made.ops
    one = op["edge_0_1"](x)
    expected = op["edge_0_3"](x) + op["edge_1_3"](one) + one
    assert torch.allclose(made(x), expected, atol=1e-6)
    assert set(op) == {"edge_0_1", "edge_1_2", "edge_0_3", "edge_1_3", "edge_2_3"} < set(EDGE_NAMES)


def test_a_cell_that_brings_nothing_is_zero() -> None:
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(Cell(SPACE.arch(dict.fromkeys(NAMES, "none")), 4)(x), torch.zeros_like(x))


def test_cells_of_one_key_compute_the_same() -> None:
    # A skip before a convolution, or instead of its node: the same convolution on the input.
    first = parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|")
    second = parse("|skip_connect~0|+|none~0|none~1|+|none~0|nor_conv_3x3~1|none~2|")
    assert SPACE.key(first) == SPACE.key(second)
    one, other = Cell(first, 4), Cell(second, 4)
    other.ops["edge_1_3"].load_state_dict(one.ops["edge_0_1"].state_dict())
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("seed", range(4))
def test_the_module_holds_what_the_closed_form_counts(seed: int) -> None:
    blueprint = cell(channels=4 + seed, cells=1 + seed % 2)
    arch = SPACE.sample(random.Random(seed))
    with torch.device("meta"):
        network = blueprint.build(arch, CIFAR10)
    assert sum(p.numel() for p in network.parameters()) == blueprint.count(arch, CIFAR10).params


@pytest.mark.parametrize("side", [8, 7, 28])
def test_images_of_any_size_give_logits(side: int) -> None:
    task = ImageTask(channels=1, height=side, width=side + 1, classes=10)
    network = cell(channels=4, cells=1).build(SPACE.sample(random.Random(side)), task)
    assert network(torch.randn(2, 1, side, side + 1)).shape == (2, 10)


def test_a_fresh_network_learns() -> None:
    arch = SPACE.arch(dict.fromkeys(NAMES, "nor_conv_3x3"))
    network = cell(channels=4, cells=1).build(arch, DIGITS)
    labels = torch.arange(8) % 2
    images = torch.randn(8, 1, 8, 8) + labels[:, None, None, None]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
