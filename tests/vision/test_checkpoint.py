"""What a search leaves behind: saved and loaded networks compute the same, and what does not fit says so."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from befit.arch.cell import parse
from befit.arch.mobile import POINTS
from befit.arch.space import Choice
from befit.arch.task import ImageTask
from befit.errors import RunConflict
from befit.vision.cell import cell
from befit.vision.checkpoint import Facts, blueprint_of, import_path, load_classifier, save_classifier
from befit.vision.mobile import mobile
from befit.vision.own import own
from befit.vision.predict import Classifier

TASK = ImageTask(channels=3, height=16, width=16, classes=4)
FACTS = Facts(
    data="./photos",
    images={"train": 1200, "validation": 400},
    accuracy={"validation": 0.9125, "test": 0.9},
    measured={"parameters": "12,345"},
    predicted={"latency": "1.9 ms"},
    notes=("trained for 20 epochs",),
)


class Net(nn.Module):
    """A user's network, with weights that share memory."""

    def __init__(self, task: ImageTask, width: int = Choice(4, 8), deep: bool = Choice(False, True)) -> None:  # type: ignore[assignment]
        super().__init__()
        self.conv = nn.Conv2d(task.channels, width, 3, padding=1)
        self.middle = nn.Conv2d(width, width, 1)
        self.tied = self.middle if deep else nn.Identity()
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, task.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.tied(self.middle(self.conv(x)))).mean((2, 3)))


def classifier(blueprint: str = "cell") -> Classifier:
    """An untrained network whose running statistics are not those of a fresh one."""
    torch.manual_seed(7)
    if blueprint == "cell":
        arch, options = parse("|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|avg_pool_3x3~2|"), {}
        options = {"channels": 4, "cells": 1}
        module = cell(**options).build(arch, TASK)
    elif blueprint == "mobile":
        arch, options = mobile().space.arch(POINTS["mobilenet_v3_small"]), {}
        module = mobile().build(arch, TASK)
    else:
        made, options = own(Net), {}
        arch = made.space.arch({"width": 8, "deep": True})
        module = made.build(arch, TASK)
    module(torch.randn(4, 3, 16, 16))
    return Classifier(
        module=module.eval(),
        task=TASK,
        classes=("ant", "bee", "cat", "dog"),
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        arch=arch,
        blueprint=blueprint,
        options=options,
    )


@pytest.mark.parametrize("blueprint", ["cell", "mobile", import_path(Net)])
def test_a_loaded_network_computes_the_same(tmp_path: Path, blueprint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, Net.__module__, sys.modules[__name__])
    made = classifier(blueprint)
    save_classifier(tmp_path / "run" / "best", made, FACTS)
    torch.manual_seed(1)
    for folder in (tmp_path / "run" / "best", str(tmp_path / "run")):
        found = load_classifier(folder)
        images = torch.rand(5, 3, 16, 16)
        assert torch.equal(found.logits(images), made.logits(images))
        assert vars(found) | {"module": 0} == vars(made) | {"module": 0}
    assert sorted(file.name for file in (tmp_path / "run" / "best").iterdir()) == [
        "README.md",
        "arch.json",
        "model.safetensors",
    ]


def test_loading_leaves_random_numbers_alone(tmp_path: Path) -> None:
    save_classifier(tmp_path / "best", classifier(), FACTS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_classifier(tmp_path / "best")
    assert torch.equal(torch.rand(3), expected)


def test_the_files_are_plain(tmp_path: Path) -> None:
    made = classifier()
    save_classifier(tmp_path, made, FACTS)
    told = json.loads((tmp_path / "arch.json").read_text())
    assert told["blueprint"] == "cell" and told["options"] == {"channels": 4, "cells": 1}
    assert told["arch"] == made.arch.to_json() and told["task"] == TASK.to_json()
    weights = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in made.module.state_dict().items()
    }
    card = (tmp_path / "README.md").read_text()
    for line in (
        "| test | 90.00% |",
        "| parameters | 12,345 |",
        "- trained for 20 epochs",
        "*ant*, *bee*, *cat*, *dog*",
    ):
        assert line in card
    assert card.index("measured or counted") < card.index("12,345") < card.index("not measured") < card.index("1.9 ms")
    assert "`./photos`; 1,200 train images; 400 validation images" in card


def test_a_better_network_replaces_the_one_before(tmp_path: Path) -> None:
    save_classifier(tmp_path / "best", classifier(), FACTS)
    (tmp_path / "best" / "stray").write_text("")
    save_classifier(tmp_path / "best", classifier("mobile"), FACTS)
    assert load_classifier(tmp_path).blueprint == "mobile" and not (tmp_path / "best" / "stray").exists()


def test_a_class_that_cannot_be_imported_is_passed(tmp_path: Path) -> None:
    made = classifier(import_path(Net))
    save_classifier(tmp_path, Classifier(**{**vars(made), "blueprint": "gone.away:Net"}), FACTS)
    with pytest.raises(
        RunConflict, match=r"'gone.away:Net' cannot be imported .*load_classifier\(folder, build=YourClass\)"
    ):
        load_classifier(tmp_path)
    found = load_classifier(tmp_path, build=Net)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(found.logits(images), made.logits(images))


def test_only_classes_with_choices_are_built() -> None:
    for name in ("os:system", "subprocess:Popen", "builtins:eval", "collections:OrderedDict", "torch.nn:Linear"):
        with pytest.raises(RunConflict):
            blueprint_of(name, {})
    with pytest.raises(RunConflict, match="cannot be imported"):
        blueprint_of("os:nothing.there", {})
    with pytest.raises(RunConflict, match="cannot be imported"):
        blueprint_of("resnet", {})
    with pytest.raises(RunConflict, match=r"no blueprint can be made of 'cell' with \{'depth': 3\}"):
        blueprint_of("cell", {"depth": 3})


def test_names_inside_classes_are_found() -> None:
    module = ModuleType("nested_for_test")
    vars(module)["Outer"] = type("Outer", (), {"Net": Net})
    sys.modules["nested_for_test"] = module
    assert list(blueprint_of("nested_for_test:Outer.Net", {}).space.choices) == ["width", "deep"]
    del sys.modules["nested_for_test"]


def test_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RunConflict, match=r"holds no network that befit search made \(arch.json is missing\)"):
        load_classifier(tmp_path)
    for inner in ("run/best", "several/best/mnist"):
        (tmp_path / inner).mkdir(parents=True)
        (tmp_path / inner / "net.py").write_text("")
    for folder in ("run", "run/best", "several", "several/best", "several/best/mnist"):
        with pytest.raises(
            RunConflict, match=r"a network that a model wrote .*README\.md beside it says how to use it"
        ):
            load_classifier(tmp_path / folder)
    save_classifier(tmp_path, classifier(), FACTS)
    written = json.loads((tmp_path / "arch.json").read_text())

    def rewrite(**changes: object) -> None:
        (tmp_path / "arch.json").write_text(json.dumps({**written, **changes}))

    rewrite(options={"channels": 8, "cells": 1})
    with pytest.raises(RunConflict, match=r"do not belong together .*copy the whole folder again"):
        load_classifier(tmp_path)
    rewrite(arch={"0->1": "what"})
    with pytest.raises(RunConflict, match=r"do not belong together .*is no option"):
        load_classifier(tmp_path)
    rewrite(format=2, befit="9.0")
    with pytest.raises(RunConflict, match=r"but as befit 9\.0; use that version"):
        load_classifier(tmp_path)
    rewrite(surprise=1)
    with pytest.raises(RunConflict, match="is not as this befit"):
        load_classifier(tmp_path)
    (tmp_path / "arch.json").write_text("{")
    with pytest.raises(RunConflict, match="cannot be read"):
        load_classifier(tmp_path)
    rewrite()
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RunConflict, match=r"model\.safetensors cannot be read"):
        load_classifier(tmp_path)
