"""Rates from networks whose times are known, and the forms in which they travel."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from befit.arch.cell import cell_space, parse
from befit.arch.space import Arch, Choice, Space
from befit.arch.task import ImageTask
from befit.cost.image_latency import Checked, LatencyModel, fit_rates, read_measured
from befit.cost.target import Target
from befit.errors import BadTable, IllegalArch

SPACE = Space({"a": Choice(0, 1, 2), "b": Choice(0, 1, 2), "twin": Choice(0, 1)})
ARCH = SPACE.arch({"a": 2, "b": 0, "twin": 1})


def terms(arch: Arch) -> dict[str, float]:
    return {"always": 1.0, "a": 1e6 * float(arch["a"]), "b": float(arch["b"])}


def model(**changed: Any) -> LatencyModel:
    told: dict[str, Any] = {
        "target": Target(engine="onnx", threads=2),
        "machine": "a processor",
        "versions": {"torch": "2"},
        "blueprint": "cell",
        "task": ImageTask(channels=3, height=8, width=8, classes=2),
        "reference_macs": 7,
        "rates": {"always": 0.5, "a": 2e-6, "b": 3.0},
        "fitted": 5,
        "held_out": (
            Checked(arch=ARCH.to_json(), predicted_ms=4.5, measured_ms=5.0),
            Checked(arch=ARCH.to_json(), predicted_ms=3.0, measured_ms=2.0),
        ),
        "terms": terms,
    }
    return LatencyModel(**told | changed)


def test_rates_are_found_again() -> None:
    rng, truth = random.Random(0), {"always": 2.0, "a": 3e-7, "b": 0.25}
    told = [terms(SPACE.sample(rng)) for _ in range(12)]
    times = [sum(truth[name] * amount for name, amount in own.items()) for own in told]
    assert fit_rates(told, times) == pytest.approx(truth, rel=1e-3)


def test_rates_are_never_negative_and_errors_are_relative() -> None:
    told = [{"always": 1.0, "a": float(a)} for a in range(4)]
    falling = fit_rates(told, [4.0, 3.0, 2.0, 1.0])
    assert falling["a"] == 0.0
    # A constant against 1 and 100: relative errors (1 - c)^2 + (1 - c / 100)^2 are least near 1, absolute ones at 50.5.
    assert fit_rates([{"always": 1.0}] * 2, [1.0, 100.0])["always"] == pytest.approx(1.01, rel=1e-2)


def test_terms_that_always_go_together_share_the_time() -> None:
    told = [{"one": float(n), "other": float(n)} for n in range(1, 5)]
    rates = fit_rates(told, [2.0 * n for n in range(1, 5)])
    assert rates["one"] + rates["other"] == pytest.approx(2.0, rel=1e-3)
    with pytest.raises(BadTable, match="at least two measured networks are needed, got 1"):
        fit_rates(told[:1], [1.0])


def test_a_model_prices_what_it_has_rates_for() -> None:
    own = model()
    assert own(ARCH) == pytest.approx(0.5 + 4.0)
    assert own.median_error() == pytest.approx(0.3) and own.worst_error() == pytest.approx(0.5)
    assert math.isnan(model(held_out=()).median_error()) and math.isnan(model(held_out=()).worst_error())
    with pytest.raises(BadTable, match=r"'cell': c in this arch, but in none that was measured"):
        model(terms=lambda arch: {"c": 1.0})(ARCH)
    for wrong in (-1.0, math.nan, "3", True):
        with pytest.raises(BadTable, match="the rate of 'a' must be a number of at least 0"):
            model(rates={"a": wrong})


def test_a_model_travels_as_json() -> None:
    own = model()
    again = LatencyModel.from_json(json.loads(json.dumps(own.to_json())), terms)
    assert again == own and again(ARCH) == own(ARCH)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("machine", 3),
        ("fitted", "5"),
        ("fitted", True),
        ("rates", [1.0]),
        ("rates", {"a": None}),
        ("versions", None),
        ("held_out", {}),
        ("held_out", [{"arch": {}, "predicted_ms": 1.0}]),
        ("held_out", [{"arch": {}, "predicted_ms": 1.0, "measured_ms": 0.0}]),
        ("held_out", [{"arch": [], "predicted_ms": 1.0, "measured_ms": 1.0}]),
        ("target", {"engine": "torch"}),
        ("surplus", 1),
    ],
)
def test_json_of_another_form_is_refused(key: str, value: Any) -> None:
    with pytest.raises(BadTable):
        LatencyModel.from_json(model().to_json() | {key: value}, terms)


def test_json_without_a_key_is_refused() -> None:
    whole = model().to_json()
    for key in whole:
        with pytest.raises(BadTable, match="expected exactly the keys"):
            LatencyModel.from_json({name: value for name, value in whole.items() if name != key}, terms)
    with pytest.raises(BadTable):
        LatencyModel.from_json([1], terms)


CELLS = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|",
    "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|",
)


def test_archs_measured_elsewhere_are_looked_up(tmp_path: Path) -> None:
    file = tmp_path / "edge.csv"
    file.write_text(f"arch,accuracy,latency_ms\n{CELLS[0]},93,4.5\n")
    table = read_measured(file, cell_space(), parse)
    assert table(parse(CELLS[0])) == 4.5
    with pytest.raises(IllegalArch, match=r"edge.csv has no latency of .*; it has 1 archs"):
        table(parse(CELLS[1]))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("arch,ms\n", "latency_ms is missing"),
        ("", "arch, latency_ms is missing"),
        ("arch,latency_ms\n", "no line of archs"),
        (f"arch,latency_ms\n{CELLS[0]},soon\n", "line 2: could not convert"),
        (f"arch,latency_ms\n{CELLS[0]}\n", "line 2"),
        (f"arch,latency_ms\n{CELLS[0]},1\n{CELLS[1]},0\n", "line 3: latency_ms must be above 0"),
        (f"arch,latency_ms\n{CELLS[0]},nan\n", "line 2: latency_ms must be above 0"),
        ("arch,latency_ms\n|pool~0|,1\n", "line 2: cell: expected"),
    ],
)
def test_a_csv_file_of_another_form_is_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "edge.csv"
    file.write_text(text)
    with pytest.raises(BadTable, match=told):
        read_measured(file, cell_space(), parse)
