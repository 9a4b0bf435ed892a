"""The search that all methods share: what it learns, what it looks at, and that a kill costs nothing."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from befit.arch.space import Arch, Choice, Space
from befit.budget import Budget
from befit.errors import BadData, RunConflict, TrialFailed
from befit.oneshot.expected import Pressure
from befit.oneshot.method import Darts, DrNas, Gdas, Method
from befit.oneshot.mixture import Mixed, Mixture, cell_mixture
from befit.oneshot.projection import Limits
from befit.oneshot.relax import search
from befit.oneshot.relaxed import RelaxConfig, Relaxed
from befit.vision.data import Images, from_arrays

SPACE = Space({"sense": Choice("nothing", "sign", "noise"), "gain": Choice(1, 2)})


class Forget(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Noise(nn.Module):
    """What has nothing to do with the label: a hash of the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e4 * x)


class Linear(nn.Module):
    """Gets a mixture of nothing, its input and noise."""

    def __init__(self) -> None:
        super().__init__()
        self.sense = Mixed([Forget(), nn.Identity(), Noise()])
        self.gain = Mixed([nn.Identity(), nn.Identity()])
        self.head = nn.Linear(4, 2)
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, images: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        self.seen.append((self.training, images.detach().flatten(1).clone()))
        return self.head(self.gain(self.sense(images.flatten(1), weights["sense"]), weights["gain"]))


def images(count: int = 60, held_out: float | None = None) -> Images:
    """The label is the sign of the mean; `held_out` fills the images of validation and test."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 1, 2, 2, generator=generator)
    labels = (pixels.mean((1, 2, 3)) > 0).long()
    held = torch.randn(8, 1, 2, 2, generator=generator) if held_out is None else torch.full((8, 1, 2, 2), held_out)
    other = (held, torch.tensor([0, 1] * 4))
    return from_arrays(pixels, labels, validation=other, test=other)


def mixture(seed: int = 0) -> Mixture:
    torch.manual_seed(seed)
    return Mixture(space=SPACE, network=Linear())


def config(**changed: Any) -> RelaxConfig:
    told: dict[str, Any] = {
        "epochs": 12,
        "batch": 10,
        "lr": 0.3,
        "arch_lr": 0.1,
        "checkpoint_seconds": 1e9,
        "augment": "none",
        "arch_wait": 0.0,
    }
    return RelaxConfig(**{**told, **changed})


METHODS = (Darts(), Darts(second_order=True), Gdas(), DrNas())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_finds_the_option_that_tells_the_classes_apart(method: Method, tmp_path: Path) -> None:
    found = search(mixture(), method, images(), config(epochs=30), tmp_path)
    own = found.scores["sense"]
    assert max(range(3), key=own.__getitem__) == 1
    assert found.steps == 30 * 3 and len(found.history) == 30
    assert found.history[-1].arch_loss < 0.75 * found.history[0].arch_loss
    assert found.entropy < found.history[0].entropy
    probabilities = found.history[-1].probabilities["sense"]
    assert torch.tensor(own).exp().tolist() == pytest.approx(probabilities, rel=1e-5)
    assert sum(probabilities) == pytest.approx(1)


class Killed(Exception):
    pass


Item = TypeVar("Item")


class KillAfter:
    """Progress that comes to an end by force."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        for count, item in enumerate(items):
            if count == self.steps:
                raise Killed
            yield item


def state(own: Mixture) -> dict[str, Tensor]:
    return own.network.state_dict()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_killed_and_resumed_it_ends_with_the_same_bits(method: Method, tmp_path: Path) -> None:
    told, whole = config(epochs=4), mixture()
    wanted = search(whole, method, images(), told, tmp_path / "whole")
    often, last = config(epochs=4, checkpoint_seconds=0), mixture()
    for steps in (2, 5):  # the first kill within an epoch, the second within another
        with pytest.raises(Killed):
            search(mixture(), method, images(), often, tmp_path / "cut", progress=KillAfter(steps))
    found = search(last, method, images(), often, tmp_path / "cut")
    assert (found.scores, found.history, found.steps) == (wanted.scores, wanted.history, wanted.steps)
    assert all(torch.equal(tensor, state(whole)[name]) for name, tensor in state(last).items())
    assert not (tmp_path / "cut" / "checkpoint").exists()
    assert search(mixture(), method, images(), told, tmp_path / "cut") == found


def test_cells_resume_with_the_same_bits(tmp_path: Path) -> None:
    pixels = torch.randint(0, 255, (40, 1, 8, 8), dtype=torch.uint8)
    data = from_arrays(pixels, [0, 1] * 20)

    def cells() -> Mixture:
        torch.manual_seed(3)
        return cell_mixture(data.task, channels=4, cells=1, partial=2)

    told = config(epochs=2, checkpoint_seconds=0, augment="auto")
    wanted = search(cells(), Gdas(), data, told, tmp_path / "whole")
    with pytest.raises(Killed):
        search(cells(), Gdas(), data, told, tmp_path / "cut", progress=KillAfter(3))
    found = search(cells(), Gdas(), data, told, tmp_path / "cut")
    assert (found.scores, found.history) == (wanted.scores, wanted.history)


def test_weights_and_architecture_see_two_halves_of_the_training_split_alone(tmp_path: Path) -> None:
    own, data = mixture(), images(held_out=99.0)
    search(own, Darts(), data, config(epochs=3), tmp_path)
    assert isinstance(own.network, Linear)
    arch, weights = (
        {tuple(row) for _, batch in own.network.seen[start::2] for row in batch.tolist()} for start in (0, 1)
    )
    train = {tuple(row) for row in data.normalised(data.train.images).flatten(1).tolist()}
    assert len(arch) == len(weights) == 30 and arch | weights == train
    assert not data.test.opened


def test_the_architecture_waits(tmp_path: Path) -> None:
    found = search(mixture(), Darts(), images(), config(epochs=4, arch_wait=0.5), tmp_path)
    first, second, third, _ = (epoch.probabilities for epoch in found.history)
    assert first == second != third
    assert found.history[0].weights_loss == found.history[0].arch_loss


def test_a_budget_presses_the_expected_cost_down(tmp_path: Path) -> None:
    def price(arch: Arch) -> dict[str, float]:
        return {"macs": float({"nothing": 0, "sign": 10, "noise": 5}[str(arch["sense"])] * int(arch["gain"]))}

    def costs(weight: float) -> list[float]:
        pressure = Pressure(SPACE, Limits(price=price, budget=Budget.parse("macs<=6")), weight)
        folder = tmp_path / str(weight)
        found = search(mixture(), Gdas(), images(), config(epochs=20, pressure=weight), folder, pressure=pressure)
        return [epoch.costs["macs"] for epoch in found.history]

    free, pressed = costs(0.0), costs(10.0)
    assert free[-1] > 8 and pressed[-1] < 6.5


def test_a_time_limit_ends_the_search(tmp_path: Path) -> None:
    found: Relaxed = search(mixture(), Gdas(), images(), config(seconds=0.2), tmp_path)
    assert found.seconds >= 0.2 and found.steps > 3
    assert len(found.history) == -(-found.steps // 3)


def test_a_loss_that_is_no_number_is_told(tmp_path: Path) -> None:
    own = mixture()
    assert isinstance(own.network, Linear)
    nn.init.constant_(own.network.head.weight, float("nan"))
    with pytest.raises(TrialFailed, match=r"the loss is no number after 3 steps; give lower learning rates than 0\.3"):
        search(own, Gdas(), images(), config(), tmp_path)


def test_a_folder_belongs_to_one_search(tmp_path: Path) -> None:
    search(mixture(), Gdas(), images(), config(epochs=1), tmp_path)
    for other in (
        (mixture(1), Gdas(), config(epochs=1)),
        (mixture(), DrNas(), config(epochs=1)),
        (mixture(), Gdas(), config()),
    ):
        with pytest.raises(RunConflict, match="another space, on other images or with another configuration"):
            search(other[0], other[1], images(), other[2], tmp_path)
    search(mixture(), Gdas(), images(), config(epochs=1, checkpoint_seconds=0), tmp_path)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    few = from_arrays(
        torch.rand(3, 1, 2, 2), [0, 1, 0], validation=(torch.rand(1, 1, 2, 2), [0]), test=(torch.rand(1, 1, 2, 2), [0])
    )
    with pytest.raises(BadData, match="arrays has 3 training images; expected at least 4"):
        search(mixture(), Gdas(), few, config(), tmp_path)
