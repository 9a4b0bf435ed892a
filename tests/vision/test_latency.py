"""Fitting a model to measured networks, with a clock whose times are known."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from befit.arch.cell import OPS, parse, unparse
from befit.arch.space import Arch, Choice, Space
from befit.arch.task import ImageTask
from befit.cost.image_terms import cell_terms
from befit.cost.images import Counts
from befit.cost.target import Target
from befit.errors import BadTable, BefitError
from befit.rundir import write_json
from befit.vision import latency
from befit.vision.blueprint import Blueprint
from befit.vision.cell import cell
from befit.vision.latency import MeasuredHere, fit_latency, has_model, measure_archs, read_latency
from befit.vision.mobile import mobile
from befit.vision.timing import Effort, Timing

TASK = ImageTask(channels=1, height=8, width=8, classes=2)
TINY = cell(channels=2, cells=1)
TRUTH = {"always": 0.5, "folded": 0.01, "nor_conv_3x3": 0.3, "nor_conv_1x1": 0.1, "avg_pool_3x3": 0.2, "sum": 0.05}
TARGET = Target(threads=1)


def truth(arch: Arch, engine: str) -> float:
    return sum(TRUTH[name] * amount for name, amount in cell_terms(arch, pruned=engine == "onnx").items())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[list[Arch]]:
    """Networks take what `TRUTH` says; the groups that were timed together."""
    groups: list[list[Arch]] = []

    def measure(modules: Mapping[str, Any], task: ImageTask, target: Target, **options: Any) -> dict[str, Timing]:
        assert task == TASK
        groups.append([module.arch for module in modules.values()])
        effort: Effort = options["effort"]
        assert effort.seconds > 0
        return {
            name: Timing(
                median_ms=truth(module.arch, target.engine), low_ms=0, high_ms=1, fast_ms=1, rounds=9, target=target
            )
            for name, module in modules.items()
        }

    monkeypatch.setattr(latency, "measure_many", measure)
    return groups


class Marked(nn.Module):
    """A network that knows its arch."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch


def marked(**changed: Any) -> Blueprint:
    told: dict[str, Any] = {
        "name": TINY.name,
        "space": TINY.space,
        "build": lambda arch, task: Marked(arch),
        "count": TINY.count,
    }
    return Blueprint(**told | changed)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_model_finds_the_times_of_networks_it_has_not_seen(engine: Any, clock: list[list[Arch]]) -> None:
    model = fit_latency(marked(), TASK, Target(engine=engine, threads=1), networks=(20, 4))
    assert len(clock) == 1 and len(set(clock[0])) == 24
    assert [{*arch.values()} for arch in clock[0][:5]] == [{name} for name in OPS]
    assert (model.fitted, len(model.held_out)) == (20, 4) and model.worst_error() < 1e-2
    assert [TINY.space.arch(one.arch) for one in model.held_out] == clock[0][20:]
    rng = random.Random(5)
    for arch in (TINY.space.sample(rng) for _ in range(20)):
        assert model(arch) == pytest.approx(truth(arch, engine), rel=1e-2)
    assert "torch" in model.versions and model.machine


def test_many_networks_are_timed_in_groups(clock: list[list[Arch]], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    archs = list(dict.fromkeys(TINY.space.sample(rng) for _ in range(7)))
    monkeypatch.setattr(latency, "TOGETHER_BYTES", 100)
    sized = marked(count=lambda arch, task: Counts(params=1, macs=1, memory_bytes=40))
    found = measure_archs(sized, [*archs, archs[0]], TASK, TARGET)
    assert list(map(len, clock)) == [2, 2, 2, 1] and list(found) == archs
    clock.clear()
    large = marked(count=lambda arch, task: Counts(params=1, macs=1, memory_bytes=1000))
    measure_archs(large, archs[:2], TASK, TARGET)
    assert list(map(len, clock)) == [1, 1]


def test_a_table_is_read_where_it_belongs(tmp_path: Path, clock: list[list[Arch]]) -> None:
    del clock
    target = Target(engine="onnx", threads=1)
    model = fit_latency(marked(), TASK, target, networks=(12, 2))
    file = tmp_path / "edge.json"
    write_json(file, model.to_json())
    again = read_latency(file, marked(), TASK, target)
    assert again == model == read_latency(file, marked(), TASK)
    arch = parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    assert again(arch) == model(arch) < truth(arch, "torch")  # ONNX Runtime drops the convolution
    other = ImageTask(channels=3, height=8, width=8, classes=2)
    for blueprint, task, wanted, said in (
        (marked(), other, None, "is for images of"),
        (cell(channels=4, cells=1), TASK, None, "is for networks with multiply-adds"),
        (mobile(), TASK, None, "is for networks of cell, not mobile"),
        (marked(), TASK, Target(engine="torch", threads=1), "is for the target"),
        (marked(), TASK, Target(engine="onnx", threads=2), "is for the target"),
    ):
        with pytest.raises(BadTable, match=said):
            read_latency(file, blueprint, task, wanted)


def test_a_csv_table_names_archs_as_text_or_json(tmp_path: Path) -> None:
    file, arch = tmp_path / "edge.csv", TINY.space.sample(random.Random(0))
    other = TINY.space.sample(random.Random(1))
    as_json = "{" + ",".join(f'""{name}"":""{value}""' for name, value in other.to_json().items()) + "}"
    file.write_text(f'arch,latency_ms\n{unparse(arch)},4\n"{as_json}",5\n')
    table = read_latency(file, TINY, TASK)
    assert (table(arch), table(other)) == (4.0, 5.0)
    file.write_text("arch,latency_ms\n[1],4\n")
    with pytest.raises(BadTable, match="line 2: expected an arch as a JSON object"):
        read_latency(file, TINY, TASK)


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for file in (tmp_path / "none.json", tmp_path / "none.csv"):
        with pytest.raises(BadTable, match="cannot be read"):
            read_latency(file, TINY, TASK)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(BadTable, match=r"cannot be read: .*; expected .json or .csv"):
        read_latency(broken, TINY, TASK)


def test_networks_of_ones_own_are_measured_one_by_one(clock: list[list[Arch]]) -> None:
    own = marked(name="Net", space=Space({"width": Choice(1, 2)}))
    assert has_model(TINY) and has_model(mobile()) and not has_model(own)
    with pytest.raises(BefitError, match="no model for networks of 'Net', only for cell and mobile"):
        fit_latency(own, TASK, TARGET)
    arch = TINY.space.sample(random.Random(0))
    price = MeasuredHere(blueprint=marked(name="Net"), task=TASK, target=TARGET)
    assert price(arch) == price(arch) == truth(arch, "torch")
    assert clock == [[arch]]  # once


def test_a_small_model_is_measured_in_earnest() -> None:
    compact = mobile(resolutions=(8,), skeletons=("compact",), widths=(0.5,), depth=1)
    model = fit_latency(compact, TASK, TARGET, networks=(3, 1), effort=Effort(rounds=1, seconds=0.01))
    assert model.held_out[0].measured_ms > 0 and model(compact.space.arch(model.held_out[0].arch)) >= 0
