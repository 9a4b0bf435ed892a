"""The space of a network of one's own, read from its signature."""
# ruff: noqa: B008 - a default that is a Choice is what this is about

import pickle
import random
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from befit.arch.space import Choice
from befit.arch.task import ImageTask
from befit.errors import IllegalArch, TrialFailed
from befit.vision.own import own

TASK = ImageTask(channels=1, height=8, width=8, classes=10)


class Net(nn.Module):
    """Choices of every kind, a condition, an ordinary default and the task."""

    def __init__(
        self,
        task: ImageTask,
        width: Any = Choice(8, 16),
        mixer: Any = Choice("conv", "pool"),
        kernel: Any = Choice(3, 5, when={"mixer": "conv"}),
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.told = (width, mixer, kernel, bias)
        self.stem = nn.Conv2d(task.channels, width, 1)
        self.mixer = nn.Conv2d(width, width, kernel, padding=kernel // 2) if kernel else nn.AvgPool2d(3, 1, 1)
        self.head = nn.Linear(width, task.classes, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.mixer(self.stem(images)).mean((2, 3)))


def test_the_signature_is_the_space() -> None:
    blueprint = own(Net)
    assert blueprint.name == "Net"
    assert list(blueprint.space.choices) == ["width", "mixer", "kernel"]
    assert blueprint.space.size == 2 * (2 + 1)


def test_a_network_gets_its_options_and_none_where_a_choice_is_closed() -> None:
    blueprint = own(Net)
    conv = blueprint.space.arch({"width": 16, "mixer": "conv", "kernel": 5})
    pool = blueprint.space.arch({"width": 8, "mixer": "pool"})
    assert blueprint.build(conv, TASK).told == (16, "conv", 5, True)
    assert blueprint.build(pool, TASK).told == (8, "pool", None, True)


def test_counts_are_those_of_the_network() -> None:
    blueprint = own(Net)
    for arch in blueprint.space.enumerate():
        network = blueprint.build(arch, TASK)
        assert blueprint.count(arch, TASK).params == sum(weight.numel() for weight in network.parameters())
        assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_an_arch_is_counted_once() -> None:
    built = list[int]()

    def network(width: Any = Choice(1, 2)) -> nn.Module:
        built.append(width)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    blueprint = own(network)
    arch = blueprint.space.arch({"width": 2})
    assert blueprint.count(arch, TASK) == blueprint.count(arch, TASK)
    assert built == [2]


def test_a_function_and_a_partial_will_do() -> None:
    assert own(partial(Net, bias=False)).name == "Net"
    network: Any = own(partial(Net, bias=False)).build(own(Net).space.sample(random.Random(0)), TASK)
    assert network.head.bias is None


def test_another_process_gets_the_same() -> None:
    blueprint = own(Net)
    again = pickle.loads(pickle.dumps(blueprint))
    arch = again.space.arch({"width": 8, "mixer": "pool"})
    assert again.count(arch, TASK) == blueprint.count(arch, TASK)


def test_what_no_process_can_import_is_named() -> None:
    def network(width: Any = Choice(1, 2)) -> nn.Module:
        return nn.Linear(width, 1)

    with pytest.raises(IllegalArch, match="top level of a module"):
        pickle.dumps(own(network))


def no_choice(width: int = 3) -> nn.Module:
    return nn.Identity()


def no_default(channels: int, width: Any = Choice(1, 2)) -> nn.Module:
    return nn.Identity()


def open_ended(width: Any = Choice(1, 2), **rest: int) -> nn.Module:
    return nn.Identity()


def by_place(width: Any = Choice(1, 2), /) -> nn.Module:
    return nn.Identity()


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (no_choice, "no default of its parameters is a Choice"),
        (no_default, "'channels: int'"),
        (open_ended, r"'\*\*rest: int'"),
        (by_place, "'width"),
    ],
)
def test_a_signature_that_cannot_be_searched_is_refused(build: Any, told: str) -> None:
    with pytest.raises(IllegalArch, match=told):
        own(build)


def heads(task: ImageTask, width: Any = Choice(8, 12), heads: Any = Choice(2, 8)) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.MultiheadAttention(width, heads))


def mismatched(task: ImageTask, width: Any = Choice(8, 12)) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(8, 10))


def test_options_that_do_not_go_together_are_an_invalid_trial() -> None:
    for action in (own(heads).build, own(heads).count):
        with pytest.raises(TrialFailed, match="embed_dim must be divisible") as caught:
            action(own(heads).space.arch({"width": 12, "heads": 8}), TASK)
        assert caught.value.reason == "invalid"
    assert own(mismatched).count(own(mismatched).space.arch({"width": 8}), TASK).params == 64 * 8 + 8 + 80 + 10
    with pytest.raises(TrialFailed, match="cannot be multiplied") as caught:
        own(mismatched).count(own(mismatched).space.arch({"width": 12}), TASK)
    assert caught.value.reason == "invalid"


def not_a_network(width: Any = Choice(1, 2)) -> Any:
    return width


def test_what_is_no_module_is_refused() -> None:
    blueprint = own(not_a_network)
    for action in (blueprint.build, blueprint.count):
        with pytest.raises(IllegalArch, match=r"expected a torch\.nn\.Module, got int"):
            action(blueprint.space.arch({"width": 1}), TASK)


def test_a_rule_may_refuse_combinations() -> None:
    blueprint = own(heads, legal=lambda arch: int(arch["width"]) % int(arch["heads"]) == 0)
    assert blueprint.space.size == 3
