"""What is timed, and that nothing is changed by it. No time is asserted."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from befit.arch.task import ImageTask
from befit.cost.device import Step
from befit.cost.device import Timing as Clocked
from befit.cost.target import Target
from befit.errors import BefitError
from befit.vision import timing
from befit.vision.timing import Effort, machine_of, measure_many, measure_ms, versions_of

TASK = ImageTask(channels=3, height=6, width=5, classes=2)
ONE = Effort(rounds=1, seconds=0.01)


class Seen(nn.Module):
    """Tells what it is called with, and as what."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(48, 2))
        self.calls: list[tuple[Any, ...]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Seen":
        own = Seen()
        own.load_state_dict(self.state_dict())
        own.calls = self.calls
        return own

    def forward(self, x: Tensor) -> Tensor:
        norms = self.body[1].training
        self.calls.append((tuple(x.shape), self.training, norms, torch.is_inference_mode_enabled(), threads()))
        return self.body(x)


def threads() -> int:
    return torch.get_num_threads()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


def test_a_network_is_timed_as_it_is_used() -> None:
    seen = Seen().train()
    measure_ms(seen, TASK, batch=3, threads=2, effort=ONE)
    first, *rest = seen.calls
    assert first == ((3, 3, 6, 5), False, True, False, 2)  # the norms see noise; dropout is off
    assert len(rest) >= 3 and set(rest) == {((3, 3, 6, 5), False, False, True, 2)}
    assert threads() != 2


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_nothing_is_changed_by_measuring(engine: Any) -> None:
    module = net().train()
    before, randomness = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    told = measure_ms(module, TASK, engine=engine, effort=ONE)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(layer.training for layer in module.modules()) and torch.equal(torch.get_rng_state(), randomness)
    assert told.median_ms > 0 and told.target == Target(engine=engine, threads=threads())


def test_onnx_runtime_is_given_the_same_network_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = clocked(monkeypatch)
    module = net()
    target = Target(engine="onnx", batch=2)
    measure_many({"a": module}, TASK, target, effort=ONE)
    session: Any
    session, binding = steps["a"].func.__self__, steps["a"].args[0]  # type: ignore[attr-defined]
    session.run_with_iobinding(binding)
    images = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    settled = timing._settled(module, images)
    np.testing.assert_allclose(binding.copy_outputs_to_cpu()[0], settled(images).detach().numpy(), atol=1e-5)


class Blind(nn.Module):
    """Looks at no image, as a cell without operations does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.zeros_like(x).mean((2, 3)))


def test_a_network_without_inputs_is_timed_too() -> None:
    assert measure_ms(Blind(), TASK, engine="onnx", effort=ONE).median_ms > 0


def clocked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], Any]]:
    """The steps that would have been timed."""
    found: dict[str, Callable[[], Any]] = {}

    def clock(steps: Mapping[str, Step], device: Any, **options: Any) -> dict[str, Clocked]:
        found.update(steps)
        assert options["repeats"] == ONE.rounds and options["seconds"] == ONE.seconds
        return {
            name: Clocked(median_ms=2, low_ms=1, high_ms=9, repeats=5, graph=False, interval_ms=(1.5, 3))
            for name in steps
        }

    monkeypatch.setattr(timing, "time_together", clock)
    return found


def test_several_networks_are_timed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = clocked(monkeypatch)
    told = measure_many({"a": net(), "b": net()}, TASK, Target(threads=1), effort=ONE)
    assert list(steps) == list(told) == ["a", "b"]
    assert [told["a"].median_ms, told["a"].low_ms, told["a"].high_ms, told["a"].fast_ms, told["a"].rounds] == [
        2,
        1.5,
        3,
        1,
        5,
    ]


def test_norms_settle_so_that_deep_networks_do_not_fade() -> None:
    torch.manual_seed(0)
    layers = [layer for _ in range(100) for layer in (nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())]
    deep, images = nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), *layers), torch.randn(1, 3, 6, 5)
    tiny = torch.finfo(torch.float32).tiny
    assert deep.eval()(images).abs().max() < tiny  # denormal or nothing: what is to be avoided
    assert timing._settled(deep, images)(images).abs().max() > 1e-3
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    timing._settled(pooled, images)  # one value of each channel would be refused


def test_what_cannot_be_measured_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BefitError, match="engine must be one of torch, onnx, got 'tvm'"):
        measure_ms(net(), TASK, engine="tvm")
    with pytest.raises(BefitError, match="device must be cpu or cuda, got 'tpu'"):
        measure_ms(net(), TASK, device="tpu")
    with pytest.raises(BefitError, match="batch must be at least 1, got 0"):
        measure_ms(net(), TASK, batch=0)
    with pytest.raises(BefitError, match="rounds and seconds"):
        Effort(rounds=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BefitError, match="no CUDA device"):
        machine_of(Target(device="cuda"))


def test_a_network_that_cannot_be_exported_says_so() -> None:
    class Eigen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x[:, 0, :5, :5]).real

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BefitError, match=r"cannot be exported: .*eig"):
            measure_ms(Eigen(), TASK, engine="onnx", effort=ONE)


def test_versions_are_of_what_runs_the_network() -> None:
    assert set(versions_of(Target(engine="onnx"))) == {"torch", "onnxruntime"} and set(versions_of(Target())) == {
        "torch"
    }


@pytest.mark.gpu
def test_a_gpu_replays_a_graph() -> None:
    told = measure_ms(net(), TASK, device="cuda", batch=8, effort=Effort(rounds=9, seconds=2))
    assert told.median_ms > 0 and not told.note
