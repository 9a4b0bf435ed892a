"""Training: good networks in seconds, the same ones for the same seed, and reasons where there is none."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from befit.errors import BadData, TrialFailed
from befit.vision.data import Images, from_arrays, load_images
from befit.vision.training import TrainConfig, accuracy, augmentation, augmented, fit, optimizer_of, rate, train


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images()


def small(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, classes)),
    )


def test_a_small_network_learns_the_digits(digits: Images) -> None:
    told = list[tuple[int, float]]()
    model = small()
    found = train(model, digits, TrainConfig(epochs=15), report=lambda *own: told.append(own))
    assert found.accuracy >= 0.95
    # An independent count of what the module gets right.
    model.eval()
    with torch.no_grad():
        x = (digits.validation.images.float() / 255 - digits.mean[0]) / digits.std[0]
        right = (model(x).argmax(1) == digits.validation.labels).double().mean().item()
    assert found.accuracy == pytest.approx(right, abs=0.003) and not model.training
    assert accuracy(model, digits.validation, digits, exact=True) == pytest.approx(right, abs=1e-9)
    assert told == [(one.epoch, one.accuracy) for one in found.history] and len(told) == 15
    assert found.epochs == 15 and found.steps == 15 * (1079 // (1079 // 16)) and not found.stopped
    assert found.history[-1].loss < found.history[0].loss


def test_adamw_learns_too(digits: Images) -> None:
    assert train(small(), digits, TrainConfig(epochs=8, optimizer="adamw")).accuracy >= 0.7


def test_the_same_seed_gives_the_same_weights(digits: Images) -> None:
    config = TrainConfig(epochs=2)
    states = []
    for seed in (3, 3, 4):
        model = small()
        torch.manual_seed(len(states))  # what others draw does not matter
        train(model, digits, config, seed=seed)
        states.append(torch.cat([weight.flatten() for weight in model.state_dict().values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_the_random_numbers_of_others_are_left_alone(digits: Images) -> None:
    model = small()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, digits, TrainConfig(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_budget_of_seconds_is_kept(digits: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class Slow(nn.Module):
        """Half a second for each batch of training, a tenth for each of evaluation."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = small()

        def forward(self, x: Tensor) -> Tensor:
            clock[0] += 0.5 if self.training else 0.1
            return self.inner(x)

    found = train(Slow(), digits, TrainConfig(seconds=30, epochs=1))
    assert 29 <= found.seconds <= 31
    assert 3 <= found.epochs <= 4 and len(found.history) == 4
    assert train(Slow(), digits, TrainConfig(seconds=0.1)).steps == 1, "at least one step is taken"
    assert train(Slow(), digits, TrainConfig(seconds=5)).seconds <= 5, (
        "the evaluation is in it, also if there is only one"
    )


def test_the_rate_rises_then_falls() -> None:
    rates = [rate(share / 100, 0.4, 0.2) for share in range(101)]
    assert rates[20] == max(rates) == 0.4 and rates[10] == pytest.approx(0.2)
    assert rates[60] == pytest.approx(0.2) and rates[100] == pytest.approx(0)
    assert rates == sorted(rates[:21]) + sorted(rates[21:], reverse=True)
    assert rate(0, 0.4, 0) == 0.4


def test_decay_is_for_matrices_and_kernels() -> None:
    decayed, plain = optimizer_of(small(), TrainConfig()).param_groups
    assert [w.ndim for w in decayed["params"]] == [4, 4, 2] and decayed["weight_decay"] == 5e-4
    assert [w.ndim for w in plain["params"]] == [1] * 5 and plain["weight_decay"] == 0


def test_stop_ends_it_with_the_history_so_far(digits: Images) -> None:
    asked = list[int]()
    found = train(small(), digits, TrainConfig(epochs=9), stop=lambda: asked.append(1) or len(asked) == 2)
    assert found.stopped and len(found.history) == 2 and found.epochs == 2


class Broken(nn.Module):
    """Raises, or makes NaN, after some calls."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.inner, self.error, self.calls = small(), error, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls < 4:
            return self.inner(x)
        if self.error is not None:
            raise self.error
        return self.inner(x) * torch.inf


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (None, "nan"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out-of-memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9"),
            "out-of-memory",
        ),
        (MemoryError(), "out-of-memory"),
    ],
)
def test_failures_have_reasons(digits: Images, error: Exception | None, reason: str) -> None:
    with pytest.raises(TrialFailed) as caught:
        train(Broken(error), digits, TrainConfig(epochs=1))
    assert caught.value.reason == reason


def test_an_error_of_the_network_is_not_swallowed(digits: Images) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        train(Broken(RuntimeError("shapes do not match")), digits, TrainConfig(epochs=1))


def test_a_timeout_is_a_reason(digits: Images) -> None:
    with pytest.raises(TrialFailed, match=r"not trained after 1e-09 s \(2\.1% done") as caught:
        train(small(), digits, TrainConfig(epochs=3, timeout=1e-9))
    assert caught.value.reason == "timeout"


def test_augmentation_shifts_and_mirrors() -> None:
    images = torch.randn(200, 3, 6, 5)
    seeds = torch.rand(200, 3, generator=torch.Generator().manual_seed(0))
    made = augmented(images, seeds, 1, True)
    padded = F.pad(images, (1, 1, 1, 1))
    kinds = set[tuple[int, int, bool]]()
    for image, whole in zip(made, padded, strict=True):
        fits = [
            (top, left, mirrored)
            for top in range(3)
            for left in range(3)
            for mirrored in (False, True)
            for window in [whole[:, top : top + 6, left : left + 5]]
            if torch.equal(image, window.flip(-1) if mirrored else window)
        ]
        assert len(fits) == 1, "each image is one window of itself"
        kinds.update(fits)
    assert len(kinds) == 18
    assert augmented(images, seeds, 0, False) is images


def test_augmentation_follows_the_images(digits: Images) -> None:
    config = TrainConfig()
    assert augmentation(digits, config) == (1, False)
    assert augmentation(digits.resized(28), config) == (2, False)
    colour = from_arrays(torch.zeros(12, 3, 32, 32, dtype=torch.uint8), [0, 1] * 6)
    assert augmentation(colour, config) == (4, True)
    assert augmentation(colour.resized(8), config) == (1, False)
    assert augmentation(colour, replace(config, augment="none")) == (0, False)


def test_tiny_data_are_enough() -> None:
    data = from_arrays(torch.rand(10, 1, 8, 8), [0, 1] * 5)
    assert train(small(2), data, TrainConfig(epochs=2)).steps == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be above 0, got 0"),
        ({"seconds": -1.0}, r"seconds must be above 0, got -1\.0"),
        ({"warmup": 1.0}, r"warmup must be at least 0 and below 1, got 1\.0"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adamw, got 'lion'"),
        ({"augment": "all"}, "augment must be one of auto, none, got 'all'"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(BadData, match=message):
        TrainConfig(**wrong)


@pytest.mark.gpu
def test_on_a_gpu(digits: Images) -> None:
    found = train(small(), digits, TrainConfig(epochs=15), device="cuda")
    assert found.accuracy >= 0.95


def test_fit_leaves_the_weights_that_train_leaves_and_looks_at_no_other_split(digits: Images) -> None:
    config = TrainConfig(epochs=1)
    first, second = small(), small()
    train(first, digits, config, seed=4)
    nothing = digits.train.take(torch.zeros(0, dtype=torch.int64))
    assert fit(second, replace(digits, validation=nothing), config, seed=4) == 1
    # But for the order in which sums are made: its tensors have another layout.
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()), atol=1e-5, rtol=1e-4)
