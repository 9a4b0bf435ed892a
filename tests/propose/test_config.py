"""What a run is asked to do: read back as written, and wrong settings named with what was expected."""

from pathlib import Path
from typing import Any

import pytest

from befit.errors import BadBudget, BadData, RunConflict
from befit.propose.config import ProposeConfig
from befit.rundir import read_json, write_json


def test_a_configuration_comes_back_from_its_file(tmp_path: Path) -> None:
    told = ProposeConfig(
        data="a, b", budget="params<=2M", prices="0.15,0.60", out=tmp_path, cache=tmp_path / "c", prm="lr=1"
    )
    write_json(tmp_path / "config.json", told.to_json())
    assert ProposeConfig.from_json(read_json(tmp_path / "config.json")) == told
    with pytest.raises(RunConflict, match="colour"):
        ProposeConfig.from_json({"colour": 1})


def test_what_is_read_out_of_texts() -> None:
    told = ProposeConfig(data="x/cifar10/, y/mnist", prices="0.15,0.60", prm="lr=0.5, mass=1e-3", shots=2)
    assert told.datasets == {"cifar10": "x/cifar10/", "mnist": "y/mnist"}
    assert ProposeConfig(data="x/train,y/train").datasets == {"x/train": "x/train", "y/train": "y/train"}
    assert ProposeConfig().datasets == {"digits": None} and ProposeConfig().price is None
    assert told.price is not None and (told.price.read, told.price.written) == (0.15, 0.6)
    assert told.hyperparameters == {"lr": 0.5, "mass": 0.001} and told.archive.shots == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"llm": "gpt"}, "llm must be grammar, learn, hf:PATH.*got 'gpt'"),
        ({"proposals": 0}, "proposals must be at least 1, got 0"),
        ({"shots": 7}, "shots must be 0 .. 6"),
        ({"islands": 0}, "islands must be at least 1, got 0"),
        ({"ahead": -1}, "ahead must be at least 0"),
        ({"model": "m"}, "'m' is a name at a server: give its address"),
        ({"retries": 2}, "retries must be 0 or 1, got 2"),
        ({"form": "poem"}, "form must be one of network,.*got 'poem'"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"prices": "cheap"}, "two numbers per million tokens.*'cheap'"),
        ({"prm": "lr"}, "name=number.*'lr'"),
        ({"data": "a,a"}, "each once"),
        ({"form": "genome", "recipe": True}, "genome has no training"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        ProposeConfig(**wrong)


def test_wrong_budgets_are_named() -> None:
    with pytest.raises(BadBudget, match="no parent"):
        ProposeConfig(budget="params<=50%")
    with pytest.raises(BadBudget, match="weight"):
        ProposeConfig(budget="weight<=5")
