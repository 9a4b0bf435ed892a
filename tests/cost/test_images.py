"""Closed forms against the numbers that others publish, and against the networks themselves."""

import random
from dataclasses import replace
from functools import partial

import pytest

from befit.arch.cell import parse
from befit.arch.mobile import POINTS, mobile_space, options_for, shape_of
from befit.arch.task import ImageTask
from befit.cost.images import Counts, count_cell, count_mobile, count_shape
from befit.vision.cell import cell
from befit.vision.count import count_module
from befit.vision.mobile import MobileNetwork, mobile

CIFAR10 = ImageTask(channels=3, height=32, width=32, classes=10)

# Cells, parameters, multiply-adds on CIFAR-10, from the table of the benchmark: all five operations, alone and mixed.
PUBLISHED = [
    ("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", 73_306, 7_783_040),
    (
        "|nor_conv_1x1~0|+|nor_conv_1x1~0|nor_conv_1x1~1|+|nor_conv_1x1~0|nor_conv_1x1~1|nor_conv_1x1~2|",
        241_306,
        31_376_000,
    ),
    (
        "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
        1_531_546,
        220_119_680,
    ),
    (
        "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|",
        129_306,
        15_647_360,
    ),
    ("|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_1x1~0|nor_conv_1x1~1|nor_conv_1x1~2|", 185_306, 23_511_680),
    ("|none~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_3x3~0|none~1|avg_pool_3x3~2|", 344_346, 47_104_640),
    ("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|skip_connect~1|avg_pool_3x3~2|", 802_426, 113_951_360),
]


@pytest.mark.parametrize(("text", "params", "macs"), PUBLISHED)
def test_cells_count_as_published(text: str, params: int, macs: int) -> None:
    counts = count_cell(parse(text), CIFAR10)
    assert (counts.params, counts.macs) == (params, macs)


def test_costs_have_the_names_of_budgets() -> None:
    counts = Counts(params=3, macs=5, memory_bytes=7)
    assert counts.costs() == {"params": 3.0, "macs": 5.0, "memory_bytes": 7.0}


@pytest.mark.parametrize("side", [1, 7, 8, 16])
def test_a_cell_counts_as_its_network(side: int) -> None:
    task = ImageTask(channels=3, height=side, width=side + 1, classes=10 if side > 1 else 300)
    blueprint = cell(channels=4, cells=1 + side % 2)
    for seed in range(6):
        arch = blueprint.space.sample(random.Random(f"{side} {seed}"))
        assert blueprint.count(arch, task) == count_module(partial(blueprint.build, arch, task), task)


# Parameters and giga-multiply-adds as torchvision documents them for its weights, at the resolution it tests them.
NAMED = [
    ("mobilenet_v3_small", 224, 2_542_856, 0.057),
    ("mobilenet_v3_large", 224, 5_483_032, 0.217),
    ("efficientnet_b0", 224, 5_288_548, 0.386),
    ("efficientnet_b1", 240, 7_794_184, 0.687),
    ("efficientnet_b2", 288, 9_109_994, 1.088),
]


@pytest.mark.parametrize(("name", "resolution", "params", "giga_macs"), NAMED)
def test_mobile_networks_count_as_published(name: str, resolution: int, params: int, giga_macs: float) -> None:
    task = ImageTask(channels=3, height=resolution, width=resolution, classes=1000)
    counts = count_shape(replace(shape_of(POINTS[name]), resolution=resolution), task)
    assert counts.params == params
    assert round(counts.macs / 1e9, 3) == giga_macs


def test_efficientnet_b2_counts_as_its_paper_at_its_resolution() -> None:
    task = ImageTask(channels=3, height=260, width=260, classes=1000)
    assert round(count_mobile(POINTS["efficientnet_b2"], task).macs / 1e9, 1) == 1.0


@pytest.mark.parametrize(
    "task",
    [
        ImageTask(channels=1, height=8, width=8, classes=10),
        ImageTask(channels=3, height=32, width=32, classes=2000),
        ImageTask(channels=3, height=130, width=90, classes=5),
    ],
)
def test_a_mobile_network_counts_as_its_module(task: ImageTask) -> None:
    blueprint = mobile(**options_for(task))
    for seed in range(4):
        arch = blueprint.space.sample(random.Random(seed))
        assert blueprint.count(arch, task) == count_module(partial(blueprint.build, arch, task), task)


@pytest.mark.parametrize("squeeze", [False, True])
def test_the_widest_moment_may_be_a_squeeze(squeeze: bool) -> None:
    # Without expansion and strides, narrowing: nothing is wider than two maps beside the input, and a squeeze holds some more.
    task = ImageTask(channels=1, height=7, width=7, classes=2)
    space = mobile_space(resolutions=(7,), skeletons=("compact",), widths=(1.0,), expansions=(1.0,), depth=1)
    shape = shape_of(space.sample(random.Random(0)))
    first = replace(shape.stages[0][0], out=8, squeeze=8 if squeeze else 0)
    shape = replace(shape, stages=((first,),), last=16)
    assert count_shape(shape, task) == count_module(partial(MobileNetwork, shape, task), task)
