"""The best sub-net under a budget is found, in the same way after a kill, and nothing over the budget is run."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from befit.arch.cell import NAMES, cell_space, parse
from befit.arch.space import Arch
from befit.errors import Infeasible, RunConflict
from befit.oneshot.evolve import EvolveConfig, Judge, JudgeConfig, evolve, rank
from befit.oneshot.shared_cell import CellSupernet
from befit.oneshot.supernet import recalibrate
from befit.search.evolution import Evolution
from befit.vision.data import Images, from_arrays

CONFIG = EvolveConfig(evaluations=60, searcher=Evolution(population=10, sample=5), seed=1)


@pytest.fixture(scope="module")
def data() -> Images:
    labels = torch.arange(60) % 3
    images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + labels[:, None, None, None]
    return from_arrays(images, labels)


@pytest.fixture(scope="module")
def net(data: Images) -> CellSupernet:
    torch.manual_seed(0)
    return CellSupernet(data.task, channels=4, cells=1)


def pools(arch: Arch) -> float:
    return sum(arch[name] == "avg_pool_3x3" for name in NAMES) / len(NAMES)


def few_convolutions(arch: Arch) -> bool:
    return sum(str(arch[name]).startswith("nor_conv") for name in NAMES) <= 1


def test_evolution_beats_random_and_keeps_the_budget(net: CellSupernet) -> None:
    def judge(arch: Arch) -> float:
        assert few_convolutions(arch)
        return pools(arch)

    found = evolve(net, judge, CONFIG, allowed=few_convolutions)
    rng = random.Random(0)
    assert found.accuracy == pools(found.arch) > max(pools(cell_space().sample(rng)) for _ in range(60))
    assert len(found.judged) == 60 and found.refused > 0 and dict(found.judged)[found.arch] == found.accuracy
    assert evolve(net, judge, CONFIG, allowed=few_convolutions).judged == found.judged
    assert evolve(net, judge, EvolveConfig(evaluations=60, seed=2), allowed=few_convolutions).judged != found.judged


def test_a_killed_search_ends_where_it_would_have(net: CellSupernet, tmp_path: Path) -> None:
    whole = evolve(net, pools, CONFIG)
    calls = 0

    def dying(arch: Arch) -> float:
        nonlocal calls
        calls += 1
        if calls == 25:
            raise KeyboardInterrupt
        return pools(arch)

    with pytest.raises(KeyboardInterrupt):
        evolve(net, dying, CONFIG, folder=tmp_path, key="weights")
    with (tmp_path / "judged.jsonl").open("a") as file:
        file.write('{"arch": {"0->')  # what a kill leaves
    calls = 100
    again = evolve(net, dying, CONFIG, folder=tmp_path, key="weights")
    assert again.judged == whole.judged and calls == 100 + 60 - 24
    assert evolve(net, dying, CONFIG, folder=tmp_path, key="weights").judged == whole.judged and calls == 136
    with pytest.raises(RunConflict):
        evolve(net, dying, CONFIG, folder=tmp_path, key="other weights")


def test_nothing_allowed_and_little_allowed(net: CellSupernet) -> None:
    with pytest.raises(Infeasible):
        evolve(net, pools, CONFIG, allowed=lambda arch: False)
    only = parse("|none~0|+|none~0|none~1|+|avg_pool_3x3~0|none~1|none~2|")
    found = evolve(net, pools, CONFIG, allowed=lambda arch: arch == only)
    assert found.arch == only and len(found.judged) == 1


def test_a_judgement_is_the_accuracy_of_the_extracted_network(net: CellSupernet, data: Images) -> None:
    judge = Judge(net, data, JudgeConfig(calibration=20, batch=10))
    rng = random.Random(3)
    archs = [cell_space().sample(rng) for _ in range(4)]
    values = rank(judge, archs)
    # Whatever statistics others left behind, a sub-net is judged alike.
    assert rank(judge, archs[::-1]) == values[::-1]
    for arch, value in zip(archs, values, strict=True):
        own = judge.network(arch)
        with torch.no_grad():
            answers = own(data.normalised(data.validation.images)).argmax(1)
        assert value == pytest.approx(float((answers == data.validation.labels).float().mean()))


def test_recalibration_matters(net: CellSupernet, data: Images) -> None:
    arch = parse("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|")
    images = data.normalised(data.train.images)
    recalibrate(net, arch, [images])
    norms = [part for part in net.extract(arch).modules() if isinstance(part, nn.BatchNorm2d)]
    assert any((norm.running_var - 1).abs().max() > 0.1 for norm in norms if norm.running_var is not None)


def test_fewer_images_to_judge_by(net: CellSupernet, data: Images) -> None:
    judge = Judge(net, data, JudgeConfig(calibration=21, batch=10, images=7))
    assert len(judge.labels) == 7 and [len(batch) for batch in judge.batches] == [10, 10]


@pytest.mark.parametrize("wrong", [{"calibration": 1}, {"batch": 1}, {"images": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"judge: {next(iter(wrong))}"):
        JudgeConfig(**wrong)
