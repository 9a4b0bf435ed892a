"""What was trained once gives networks for other budgets later, from its folder alone."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from befit.arch.space import Arch, Choice
from befit.arch.task import ImageTask
from befit.errors import BadData, Infeasible, RunConflict
from befit.oneshot.evolve import EvolveConfig, JudgeConfig
from befit.oneshot.nested import NestedSupernet
from befit.oneshot.sandwich import SandwichConfig, train_supernet
from befit.oneshot.shared_cell import CellSupernet
from befit.oneshot.stored import cut, open_supernet, supernet_of, write_supernet
from befit.vision.checkpoint import Facts, blueprint_of, load_classifier, save_classifier
from befit.vision.data import Images, from_arrays

OPTIONS = {
    "resolutions": (8,),
    "skeletons": ("compact",),
    "widths": (0.5, 1.0),
    "kernels": (3, 5),
    "expansions": (1.0, 2.0),
    "depth": 2,
}
SOME = EvolveConfig(evaluations=12)
QUICK = JudgeConfig(calibration=32, batch=16)


@pytest.fixture(scope="module")
def data() -> Images:
    """Two classes: bright on the left, bright on the right."""
    labels = torch.arange(96) % 2
    images = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[labels == 0, :, :, :4] += 1
    images[labels == 1, :, :, 4:] += 1
    return from_arrays(images, labels, classes=("left", "right"))


@pytest.fixture(scope="module")
def folder(data: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run") / "supernet"
    net = supernet_of(blueprint_of("mobile", OPTIONS), data.task, OPTIONS)
    train_supernet(net, data, SandwichConfig(epochs=4, batch=16, paths=1, lr=0.1))
    write_supernet(place, net, data, source="mobile", options=OPTIONS, training={"epochs": 4})
    return place


def test_a_network_for_a_budget_comes_out_of_the_folder(folder: Path, data: Images, tmp_path: Path) -> None:
    stored = open_supernet(folder)
    blueprint = stored.supernet.blueprint
    ends = (stored.supernet.smallest, stored.supernet.largest)
    sizes = [blueprint.count(arch, data.task).params for arch in ends if arch is not None]
    limit = sizes[0] + (sizes[1] - sizes[0]) // 4

    def allowed(arch: Arch) -> bool:
        return blueprint.count(arch, data.task).params <= limit

    found = cut(stored, data, allowed=allowed, config=SOME, judging=QUICK)
    assert found.evolved.accuracy > 0.8
    assert sum(weight.numel() for weight in found.classifier.module.parameters()) <= limit
    save_classifier(tmp_path / "best", found.classifier, Facts(data=data.source))
    loaded = load_classifier(tmp_path / "best")
    answers = [one.label for one in loaded.predict(list(data.validation.images))]
    right = sum(answer == data.classes[label] for answer, label in zip(answers, data.validation.labels, strict=True))
    assert right / len(answers) == pytest.approx(found.evolved.accuracy)
    with pytest.raises(Infeasible):
        cut(stored, data, allowed=lambda arch: False, config=SOME, judging=QUICK)


def test_reading_gives_back_the_weights(folder: Path, data: Images) -> None:
    first, second = open_supernet(folder), open_supernet(folder)
    assert (
        isinstance(first.supernet, NestedSupernet) and first.classes == data.classes and first.training == {"epochs": 4}
    )
    own, other = first.supernet.state_dict(), second.supernet.state_dict()
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    fresh = supernet_of(first.supernet.blueprint, data.task, OPTIONS).state_dict()
    assert any(not torch.equal(own[name], fresh[name]) for name in own)


def test_cells_and_own_classes_too(data: Images, tmp_path: Path) -> None:
    cell = supernet_of(
        blueprint_of("cell", {"channels": 4, "cells": 1}), data.task, {"channels": 4, "cells": 1}, seed=5
    )
    write_supernet(tmp_path / "cell", cell, data, source="cell", options={"channels": 4, "cells": 1})
    again = open_supernet(tmp_path / "cell").supernet
    assert isinstance(again, CellSupernet)
    assert all(torch.equal(own, other) for own, other in zip(cell.parameters(), again.parameters(), strict=True))
    mine = supernet_of(blueprint_of("own", {}, build=Net), data.task, {})
    write_supernet(tmp_path / "own", mine, data, source=f"{__name__}:Net", options={})
    found = cut(open_supernet(tmp_path / "own", build=Net), data, config=EvolveConfig(evaluations=3), judging=QUICK)
    assert isinstance(found.classifier.module, Net)


class Net(nn.Module):
    def __init__(self, task: ImageTask, width: int = Choice(4, 8, 12)) -> None:  # type: ignore[assignment]
        super().__init__()
        self.conv = nn.Conv2d(task.channels, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, task.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(images)).relu().mean((2, 3)))


def test_the_generators_stay_as_they_are(data: Images) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    supernet_of(blueprint_of("mobile", OPTIONS), data.task, OPTIONS)
    assert torch.equal(torch.rand(3), expected)


def test_other_images_and_broken_folders_are_refused(folder: Path, data: Images, tmp_path: Path) -> None:
    other = from_arrays(data.train.images, data.train.labels, classes=("a", "b"))
    with pytest.raises(BadData, match="left, right"):
        cut(open_supernet(folder), other)
    with pytest.raises(RunConflict, match="no shared weights"):
        open_supernet(tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    about = json.loads((folder / "supernet.json").read_text())
    (broken / "supernet.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(RunConflict, match="use that version"):
        open_supernet(broken)
    (broken / "supernet.json").write_text(json.dumps(about))
    with pytest.raises(RunConflict, match="do not belong together"):
        open_supernet(broken)
    (broken / "supernet.safetensors").write_bytes((folder / "supernet.safetensors").read_bytes())
    changed = {**about, "options": {**about["options"], "depth": 1}}
    (broken / "supernet.json").write_text(json.dumps(changed))
    with pytest.raises(RunConflict, match="do not belong together"):
        open_supernet(broken)
