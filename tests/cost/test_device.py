"""The clock's bookkeeping. No time is asserted: only what was called, in which order, and what is reported."""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from befit.cost import device as device_module
from befit.cost.device import Device, median_interval, this_device, time_ms, time_together
from befit.errors import BefitError

CPU = this_device("cpu")


def test_the_cpu_names_its_facts() -> None:
    assert CPU.kind == "cpu" and CPU.name and CPU.memory_bytes > 2**28
    assert CPU.threads == torch.get_num_threads() and CPU.cores >= 1
    assert torch.__version__ in CPU.engine
    assert this_device("auto").kind == ("cuda" if torch.cuda.is_available() else "cpu")


def test_unknown_and_absent_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BefitError, match="'tpu' is unknown; expected auto, cpu or cuda"):
        this_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BefitError, match="no CUDA device"):
        this_device("cuda")


def test_steps_take_turns_and_get_equal_counts() -> None:
    calls: list[str] = []
    heard: list[Any] = []

    def hear(items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        assert (label, total) == ("time in turns", 3)
        for item in items:
            heard.append(item)
            yield item

    timings = time_together(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        CPU,
        warmup=2,
        repeats=7,
        seconds=60,
        progress=hear,
    )
    turn = device_module.BURST
    rounds = 3  # of three counted calls each: 9 >= 7
    assert calls == ["a"] * 2 + ["b"] * 2 + (["a"] * turn + ["b"] * turn) * rounds
    assert {name: t.repeats for name, t in timings.items()} == {"a": 9, "b": 9}
    assert heard == [0, 1, 2]
    assert not timings["a"].graph and not timings["a"].note


def test_the_median_is_of_the_calls_after_the_first_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = iter([40.0, 1.0, 2.0, 6.0])
    now = [0.0]
    monkeypatch.setattr(device_module.time, "perf_counter", lambda: now[0])

    def step() -> None:
        now[0] += next(durations) / 1000

    timing = time_ms(step, CPU, warmup=0, repeats=3)
    assert (timing.median_ms, timing.repeats) == (pytest.approx(2.0), 3)
    assert timing.low_ms == pytest.approx(1.0) and timing.high_ms == pytest.approx(6.0)


def test_a_long_step_counts_its_only_call_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(device_module.time, "perf_counter", lambda: now[0])

    def step() -> None:
        now[0] += 0.2

    timing = time_ms(step, CPU, warmup=1, repeats=2)
    assert timing.repeats == 2 and timing.median_ms == pytest.approx(200)


def test_time_is_limited_but_every_step_is_timed() -> None:
    timings = time_together({"a": lambda: None, "b": lambda: None}, CPU, repeats=10**9, seconds=0.0)
    assert all(t.repeats == device_module.BURST - 1 for t in timings.values())


def test_timing_ends_when_the_medians_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(device_module.time, "perf_counter", lambda: now[0])

    def step() -> None:
        now[0] += 0.001

    timing = time_ms(step, CPU, repeats=10**6, seconds=5)
    assert timing.repeats > 100  # nobody asked for an end
    exact = time_together({"": step}, CPU, repeats=10**6, seconds=60, tolerance=0.05)[""]
    assert exact.repeats == 9 and exact.interval_ms == pytest.approx((1.0, 1.0))


def test_the_interval_holds_the_median_about_as_often_as_it_says() -> None:
    rng = random.Random(0)
    for count in (8, 9, 30, 101):
        draws = [median_interval([rng.expovariate(1.0) for _ in range(count)]) for _ in range(2000)]
        share = sum(low <= math.log(2) <= high for low, high in draws) / len(draws)
        assert 0.94 <= share <= 0.998, count
    assert median_interval([1.0] * 7) == (0.0, math.inf)


def test_a_device_is_a_value() -> None:
    assert this_device("cpu") == CPU and hash(CPU) == hash(Device(**vars(CPU)))


@pytest.mark.gpu
def test_a_step_becomes_a_cuda_graph() -> None:
    gpu, calls = this_device("cuda"), [0]
    a, total = torch.ones(64, 64, device="cuda"), torch.zeros((), device="cuda")

    def step() -> None:
        calls[0] += 1
        total.add_((a @ a).mean())

    timing = time_ms(step, gpu, warmup=2, repeats=6)
    assert timing.graph and not timing.note and timing.repeats >= 6
    assert calls[0] == 3  # two to warm up, one to capture; everything else is replayed
    assert total.item() > 64 * (2 + timing.repeats)


@pytest.mark.gpu
def test_a_step_that_cannot_be_captured_says_so() -> None:
    a = torch.ones(4, device="cuda")
    with pytest.warns(UserWarning, match="without a CUDA graph"):
        timings = time_together({"reads": lambda: a.sum().item(), "fine": lambda: a.add(1)}, this_device("cuda"))
    assert not timings["reads"].graph and timings["reads"].note
    assert timings["fine"].graph and timings["reads"].median_ms > 0
