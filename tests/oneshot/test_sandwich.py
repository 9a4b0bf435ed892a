"""Shared weights learn, in rounds that are fair, and go on after a kill as if nothing had been."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from befit.arch.cell import cell_space, parse
from befit.arch.space import Choice, Space
from befit.errors import IllegalArch, RunConflict, TrialFailed
from befit.oneshot.sandwich import SandwichConfig, fair_round, subnets, train_supernet
from befit.oneshot.shared_cell import CellSupernet
from befit.vision.data import Images, from_arrays

CONFIG = SandwichConfig(epochs=2, batch=16, paths=1, checkpoint_seconds=0, seed=3)


@pytest.fixture(scope="module")
def data() -> Images:
    """Two classes: bright on the left, bright on the right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(96) % 2
    images = torch.rand(96, 1, 8, 8, generator=generator)
    images[labels == 0, :, :, :4] += 1
    images[labels == 1, :, :, 4:] += 1
    return from_arrays(images, labels)


def fresh(data: Images) -> CellSupernet:
    torch.manual_seed(0)
    return CellSupernet(data.task, channels=4, cells=1)


def test_strictly_fair_rounds_train_each_option_of_each_choice_once() -> None:
    space = cell_space()
    for seed in range(20):
        archs = fair_round(space, random.Random(seed))
        assert all(
            sorted(arch[name] for arch in archs) == sorted(space.choices[name].options) for name in space.choices
        )
    uneven = Space(
        {"a": Choice(1, 2, 3, 4), "b": Choice("x", "y"), "c": Choice(1, 2, 3), "d": Choice(0, 1, when={"b": "x"})}
    )
    archs = fair_round(uneven, random.Random(0))
    assert len(archs) == 4 and Counter(arch["b"] for arch in archs) == {"x": 2, "y": 2}
    assert set(Counter(arch["c"] for arch in archs).values()) <= {1, 2} and all(uneven.contains(a) for a in archs)


def test_the_supernet_learns(data: Images) -> None:
    net = fresh(data)
    told = train_supernet(net, data, replace(CONFIG, epochs=4, fair=True, lr=0.1))
    assert sum(told.losses[-4:]) < 0.7 * sum(told.losses[:4])
    assert told.epochs == pytest.approx(4, rel=0.2) and told.steps == len(told.losses) and not net.training


def test_a_killed_training_goes_on_to_the_same_weights(
    data: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fresh(data)
    curve = train_supernet(whole, data, CONFIG).losses

    class Killed(Exception):
        pass

    def until_third(items: Any, label: str, total: int | None = None) -> Any:
        for step in items:
            if step == 3:
                raise Killed
            yield step

    with pytest.raises(Killed):
        train_supernet(fresh(data), data, CONFIG, tmp_path, until_third)
    seen = []

    def watched(items: Any, label: str, total: int | None = None) -> Any:
        for step in items:
            seen.append(step)
            yield step

    resumed = fresh(data)
    told = train_supernet(resumed, data, CONFIG, tmp_path, watched)
    assert seen[0] == 3 and told.losses == pytest.approx(curve)
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    again = train_supernet(fresh(data), data, CONFIG, tmp_path)
    assert again.losses == told.losses
    with pytest.raises(RunConflict):
        train_supernet(fresh(data), data, replace(CONFIG, seed=4), tmp_path)


def test_by_the_clock(data: Images) -> None:
    told = train_supernet(fresh(data), data, replace(CONFIG, seconds=0.3))
    assert told.steps > 1 and told.seconds >= 0.3


def test_divergence_is_a_failed_trial(data: Images) -> None:
    net = fresh(data)
    with torch.no_grad():
        net.skeleton.head[-1].weight.fill_(float("nan"))  # pyright: ignore
    with pytest.raises(TrialFailed, match="lower learning rate") as told:
        train_supernet(net, data, CONFIG)
    assert told.value.reason == "nan"


class Ends(CellSupernet):
    """As if a cell could contain another."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.largest = parse(
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
        )
        self.smallest = parse("|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|")


def test_the_sandwich_and_its_distillation(data: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Ends(data.task, channels=4, cells=1)
    archs = subnets(net, replace(CONFIG, paths=2), 0)
    assert archs[0] == net.largest and archs[-1] == net.smallest and len(archs) == 4
    assert subnets(net, CONFIG, 1) == subnets(net, CONFIG, 1) != subnets(net, CONFIG, 2)
    targets: list[Tensor] = []
    original = torch.nn.functional.cross_entropy

    def seen(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
        targets.append(target)
        return original(logits, target, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", seen)
    train_supernet(net, data, replace(CONFIG, epochs=0.01))
    assert [target.ndim for target in targets] == [1, 2, 2]
    assert (
        targets[1] is targets[2] and torch.allclose(targets[1].sum(1), torch.ones(16)) and not targets[1].requires_grad
    )
    targets.clear()
    train_supernet(net, data, replace(CONFIG, epochs=0.01, distill=False))
    assert [target.ndim for target in targets] == [1, 1, 1]


def test_nothing_to_train(data: Images) -> None:
    with pytest.raises(IllegalArch, match="paths=1"):
        train_supernet(fresh(data), data, replace(CONFIG, paths=0))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"seconds": 0.0}, {"paths": -1}, {"momentum": 1}, {"warmup": 1}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"sandwich: {next(iter(wrong))}"):
        SandwichConfig(**wrong)
