"""Terms against what networks really run."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from befit.arch.cell import cell_space, parse
from befit.arch.mobile import POINTS, mobile_space
from befit.arch.task import ImageTask
from befit.cost.image_terms import cell_terms, mobile_terms
from befit.cost.images import count_mobile
from befit.vision import timing
from befit.vision.cell import cell

TASK = ImageTask(channels=3, height=8, width=8, classes=2)
TINY = cell(channels=4, cells=1)
STAGES = 3
KERNELS = {"nor_conv_3x3": (3, 3), "nor_conv_1x1": (1, 1)}


def executed(network: nn.Module) -> Counter[str]:
    """How often the operations of the cells ran."""
    found = Counter[str]()
    for stage in network.stages:  # type: ignore[union-attr]
        for layer in stage.modules():
            if isinstance(layer, nn.Conv2d):
                name = next(name for name, kernel in KERNELS.items() if kernel == layer.kernel_size)
                layer.register_forward_hook(lambda *_, name=name: found.update([name]))
            elif isinstance(layer, nn.AvgPool2d):
                layer.register_forward_hook(lambda *_: found.update(["avg_pool_3x3"]))
    network(torch.zeros(2, 3, 8, 8))
    return found


def test_pytorch_runs_every_operation_that_is_built() -> None:
    rng = random.Random(0)
    for _ in range(20):
        arch = cell_space().sample(rng)
        told, ran = cell_terms(arch, pruned=False), executed(TINY.build(arch, TASK))
        for name in (*KERNELS, "avg_pool_3x3"):
            assert STAGES * told[name] == ran[name], arch


def test_onnx_runtime_runs_what_leads_from_input_to_output(tmp_path: Path) -> None:
    rng = random.Random(1)
    dead = parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|avg_pool_3x3~2|")
    archs, differing = [dead, *(cell_space().sample(rng) for _ in range(4))], 0
    for number, arch in enumerate(archs):
        told = cell_terms(arch, pruned=True)
        plain, best = str(tmp_path / f"{number}.onnx"), str(tmp_path / f"{number}-best.onnx")
        timing._export(timing._settled(TINY.build(arch, TASK), torch.randn(1, 3, 8, 8)), torch.randn(1, 3, 8, 8), plain)
        options: Any = timing.session_options(1)
        # Without fusing and merging, so that each node of the file is one operation.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = best
        onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
        ran = Counter[str]()
        for node in onnx.load(best).graph.node:
            if node.op_type == "Conv":
                attributes = {one.name: list(one.ints) for one in node.attribute}
                ran[f"conv {attributes['kernel_shape'][0]}"] += 1
            ran[node.op_type] += 1
        outside = {"conv 3": 5, "conv 1": 2, "AveragePool": 2}  # stem and two reductions
        if told["folded"]:
            assert not (ran["Conv"] or ran["AveragePool"])
            continue
        if not any(told[name] for name in ("nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "sum")):
            continue  # nothing, or the input itself: folded away
        assert ran["conv 3"] - outside["conv 3"] == STAGES * told["nor_conv_3x3"], arch
        assert ran["conv 1"] - outside["conv 1"] == STAGES * told["nor_conv_1x1"], arch
        assert ran["AveragePool"] - outside["AveragePool"] == STAGES * told["avg_pool_3x3"], arch
        differing += told != cell_terms(arch, pruned=False)
    assert differing  # else nothing was pruned, and nothing tested


@pytest.mark.parametrize("name", POINTS)
def test_multiply_adds_of_mobile_terms_are_those_of_the_network(name: str) -> None:
    check_macs(POINTS[name], ImageTask(channels=3, height=224, width=224, classes=1000))


def test_multiply_adds_of_any_mobile_network() -> None:
    rng = random.Random(0)
    for _ in range(50):
        check_macs(mobile_space().sample(rng), ImageTask(channels=1, height=30, width=20, classes=7))


def check_macs(arch: Any, task: ImageTask) -> None:
    terms = mobile_terms(arch, task)
    macs = 1e6 * sum(amount for name, amount in terms.items() if name.endswith("Mmacs"))
    assert macs == pytest.approx(count_mobile(arch, task).macs, rel=1e-12)
    blocks = sum(amount for name, amount in terms.items() if name.startswith("depthwise") and name.endswith("calls"))
    assert blocks == sum(value for name, value in arch.items() if name.startswith("depth_"))
    assert ("resize, Melements" in terms) == ((task.height, task.width) != (arch["resolution"],) * 2)
