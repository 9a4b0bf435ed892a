"""The mobile space: the published networks written out a second time, its choices, and where strides are left out."""

import random
from typing import Any

import pytest

from befit.arch.mobile import (
    ACTIVATIONS,
    POINTS,
    SKELETONS,
    Block,
    eights,
    mobile_space,
    options_for,
    shape_of,
)
from befit.arch.task import ImageTask
from befit.errors import IllegalArch

# Tables 1 and 2 of the MobileNetV3 paper: kernel, expanded channels, output channels, squeeze, activation, stride.
RE, HS = "relu", "hardswish"
SMALL = [
    (3, 16, 16, True, RE, 2),
    (3, 72, 24, False, RE, 2),
    (3, 88, 24, False, RE, 1),
    (5, 96, 40, True, HS, 2),
    (5, 240, 40, True, HS, 1),
    (5, 240, 40, True, HS, 1),
    (5, 120, 48, True, HS, 1),
    (5, 144, 48, True, HS, 1),
    (5, 288, 96, True, HS, 2),
    (5, 576, 96, True, HS, 1),
    (5, 576, 96, True, HS, 1),
]
LARGE = [
    (3, 16, 16, False, RE, 1),
    (3, 64, 24, False, RE, 2),
    (3, 72, 24, False, RE, 1),
    (5, 72, 40, True, RE, 2),
    (5, 120, 40, True, RE, 1),
    (5, 120, 40, True, RE, 1),
    (3, 240, 80, False, HS, 2),
    (3, 200, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 184, 80, False, HS, 1),
    (3, 480, 112, True, HS, 1),
    (3, 672, 112, True, HS, 1),
    (5, 672, 160, True, HS, 2),
    (5, 960, 160, True, HS, 1),
    (5, 960, 160, True, HS, 1),
]


def blocks_of(name: str) -> list[Block]:
    return [block for stage in shape_of(POINTS[name]).stages for block in stage]


@pytest.mark.parametrize(("name", "table"), [("mobilenet_v3_small", SMALL), ("mobilenet_v3_large", LARGE)])
def test_mobilenet_v3_has_the_rows_of_its_table(name: str, table: list[Any]) -> None:
    blocks = blocks_of(name)
    assert [(b.kernel, b.expanded, b.out, b.squeeze > 0, b.activation, b.stride) for b in blocks] == table
    assert [b.channels for b in blocks] == [16, *(row[2] for row in table[:-1])]


def test_efficientnet_b0_has_the_rows_of_its_table() -> None:
    # Table 1 of the EfficientNet paper: expansion, kernel, channels, layers, stride.
    rows = [(1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1)]
    rows += [(6, 5, 192, 4, 2), (6, 3, 320, 1, 1)]
    expected = [
        (kernel, channels, stride if place == 0 else 1)
        for _, kernel, channels, layers, stride in rows
        for place in range(layers)
    ]
    blocks = blocks_of("efficientnet_b0")
    assert [(b.kernel, b.out, b.stride) for b in blocks] == expected
    assert [b.expanded for b in blocks] == [b.channels * (6 if place else 1) for place, b in enumerate(blocks)]
    assert all(b.activation == "silu" and b.squeeze == b.channels // 4 for b in blocks)


def test_b1_and_b2_are_b0_scaled() -> None:
    b1, b2 = (shape_of(POINTS[f"efficientnet_b{n}"]) for n in (1, 2))
    assert [len(stage) for stage in b1.stages] == [len(stage) for stage in b2.stages] == [2, 3, 3, 4, 4, 5, 2]
    assert [stage[0].out for stage in b2.stages] == [16, 24, 48, 88, 120, 208, 352]
    assert (b1.resolution, b2.resolution, b2.stem, b2.last) == (240, 260, 32, 1408)


def test_heads() -> None:
    heads = {name: (shape.last, shape.hidden) for name, shape in ((name, shape_of(POINTS[name])) for name in POINTS)}
    assert heads["mobilenet_v3_small"] == (576, 1024)
    assert heads["mobilenet_v3_large"] == (960, 1280)
    assert heads["efficientnet_b0"] == (1280, 0)


@pytest.mark.parametrize(
    ("channels", "rounded"), [(1, 8), (12, 16), (11.9, 16), (35.2, 32), (19, 24), (18, 24), (17, 16)]
)
def test_widths_are_rounded_to_eights(channels: float, rounded: int) -> None:
    # 12 to 16: the nearest, upwards. 18 and 19 to 24: 16 would lose more than a tenth.
    assert eights(channels) == rounded


def halvings(resolution: int, skeleton: str) -> list[int]:
    space = mobile_space(resolutions=(resolution,), skeletons=(skeleton,), widths=(1.0,))
    shape = shape_of(space.sample(random.Random(0)))
    return [shape.stem_stride, *(stage[0].stride for stage in shape.stages)]


def test_small_images_keep_the_last_strides() -> None:
    assert halvings(224, "mobilenet_v3_large") == [2, 1, 2, 2, 2, 1, 2]
    assert halvings(64, "mobilenet_v3_large") == [1, 1, 2, 2, 2, 1, 2]
    assert halvings(32, "mobilenet_v3_large") == [1, 1, 1, 2, 2, 1, 2]
    assert halvings(8, "mobilenet_v3_large") == [1, 1, 1, 1, 1, 1, 2]
    assert halvings(7, "compact") == [1, 1, 1, 1]
    assert halvings(32, "compact") == [1, 2, 2, 2]


def test_choices_are_open_where_there_is_a_stage_and_a_block() -> None:
    space = mobile_space()
    for seed in range(30):
        arch = space.sample(random.Random(seed))
        stages = len(SKELETONS[str(arch["skeleton"])].stages)
        assert [stage for stage in range(1, 8) if f"depth_{stage}" in arch] == list(range(1, stages + 1))
        for stage in range(1, stages + 1):
            blocks = [block for block in range(1, 6) if f"expansion_{stage}_{block}" in arch]
            assert blocks == list(range(1, int(arch[f"depth_{stage}"]) + 1))
        shape = shape_of(arch)
        assert [len(stage) for stage in shape.stages] == [arch[f"depth_{n}"] for n in range(1, stages + 1)]


def test_an_arch_survives_json_and_crossing() -> None:
    space = mobile_space()
    first, second = POINTS["mobilenet_v3_small"], POINTS["efficientnet_b2"]
    assert space.arch(first.to_json()) == first
    child = space.cross(first, second, random.Random(1))
    assert shape_of(child).stages


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"skeletons": ("mobilenet_v4",)}, "mobilenet_v4.*mobilenet_v3_small"),
        ({"skeletons": ()}, "skeletons"),
        ({"activations": ("gelu",)}, "gelu"),
        ({"kernels": (3, 4)}, "odd"),
        ({"widths": (0.0, 1.0)}, "above 0"),
        ({"expansions": (0.5,)}, "1 or more"),
        ({"resolutions": (0,)}, "at least 1"),
        ({"depth": 0}, "at least one"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(IllegalArch, match=told):
        mobile_space(**options)


@pytest.mark.parametrize("side", [8, 28, 32, 64, 65, 100, 224, 500])
def test_options_suit_a_task(side: int) -> None:
    task = ImageTask(channels=3, height=side, width=side - 1, classes=10)
    options = options_for(task)
    space = mobile_space(**options)
    shape = shape_of(space.sample(random.Random(side)))
    assert max(options["resolutions"]) <= (2 * side if side < 16 else max(side, 64))
    assert all(block.activation in ACTIVATIONS for stage in shape.stages for block in stage)
