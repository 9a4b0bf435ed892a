"""Points are found again at their costs; the error in words is worked out by hand."""

import json
import re
from typing import Any

import pytest

from befit.report.figures import accuracy, accuracy_in_words, front, healing


def specs(fragment: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', fragment)]


def point(kl_sum: float | None, kl: float | None, ms: float, **more: Any) -> dict[str, Any]:
    costs = {"params": 2e6 * ms, "latency_ms": ms}
    return {"budget": "latency=50%", "kl_sum": kl_sum, "kl": kl, "costs": costs, "kind": "solved", **more}


POINTS = [point(0.3, 0.4, 50), point(0.1, None, 80, chosen=True), point(0.2, 0.25, 90, kind="polished")]
BUDGET = {"bounds": [{"cost": "latency_ms", "op": "<=", "value": 85.0}]}


def test_the_front_has_a_panel_for_each_cost_with_the_bounded_one_first() -> None:
    latency, params = specs(front(POINTS, BUDGET))
    assert latency["layout"]["xaxis"]["title"]["text"] == "latency, ms"
    assert params["layout"]["xaxis"]["title"]["text"] == "parameters, M"
    assert latency["layout"]["shapes"][0]["x0"] == 85.0 and "shapes" not in params["layout"]


def test_summed_scores_and_true_kl_are_drawn_apart() -> None:
    line, sums, true = specs(front(POINTS, BUDGET))[0]["data"]
    assert sorted(zip(sums["x"], sums["y"], strict=True)) == [(50, 0.3), (80, 0.1), (90, 0.2)]
    assert sorted(zip(true["x"], true["y"], strict=True)) == [(50, 0.4), (90, 0.25)]
    assert (line["x"], line["y"]) == ([50, 80], [0.3, 0.1]), "the line leaves out what another beats in both"
    assert sums["x"][-1] == 80 and sums["marker"]["size"][-1] == 13, "the chosen one is larger and on top"
    assert set(true["marker"]["symbol"]) == {"circle", "diamond"}
    assert (
        "</b>polished" in front(POINTS, BUDGET) and "polished" not in front(POINTS[:2], BUDGET).split("</script>")[-1]
    )


def test_a_logarithmic_axis_only_where_all_values_can_be_shown() -> None:
    wide = [point(0.001, None, 50), point(1.0, None, 40)]
    assert specs(front(wide, BUDGET))[0]["layout"]["yaxis"]["type"] == "log"
    assert "type" not in specs(front([*wide, point(0.0, None, 90)], BUDGET))[0]["layout"]["yaxis"]


@pytest.mark.parametrize("points", [None, [], [{}], [{"costs": {"params": 1}}], [{"kl_sum": 1.0}], "text"])
def test_without_points_there_is_no_front(points: object) -> None:
    assert front(points, None) == ""


ACCURACY = {
    "fit": [{"name": "a", "quantity": "prefill_ms", "predicted": 10.0, "measured": 10.0}],
    "held_out": [
        {"name": "b", "quantity": "prefill_ms", "predicted": 11.0, "measured": 10.0},
        {"name": "c", "quantity": "prefill_ms", "predicted": 15.0, "measured": 20.0},
        {"name": "c", "quantity": "decode_ms", "predicted": 0.48, "measured": 0.5},
    ],
}


def test_predicted_stands_over_measured_and_the_diagonal_is_one() -> None:
    prefill, decode = specs(accuracy(ACCURACY))
    diagonal, fit, held_out = prefill["data"]
    assert diagonal["x"] == diagonal["y"] == prefill["layout"]["xaxis"]["range"] == prefill["layout"]["yaxis"]["range"]
    assert (held_out["x"], held_out["y"]) == ([10, 20], [11, 15]) and fit["x"] == [10]
    assert "−25\u202f%" in held_out["text"][1]
    assert decode["layout"]["xaxis"]["title"]["text"] == "decode per token, measured, µs"
    assert decode["data"][2]["x"] == [pytest.approx(500)]


def test_the_error_in_words() -> None:
    # Errors 10 %, 25 % and 4 %.
    assert accuracy_in_words(ACCURACY) == (
        "On 2 models that took no part in the fit, the prediction was off by 10\u202f% at the median "
        "and 25\u202f% at worst. It was calibrated on 1 other."
    )
    stated = accuracy_in_words({**ACCURACY, "median_error": 0.05, "worst_error": 0.12})
    assert "5\u202f% at the median and 12\u202f% at worst" in stated
    assert "unknown" in accuracy_in_words({"fit": ACCURACY["fit"]})
    assert accuracy_in_words(None) == "" and accuracy(None) == "" and accuracy({"fit": [{"quantity": "x"}]}) == ""


def test_healing_is_a_line_over_steps() -> None:
    figure = specs(healing({"tokens": 100, "steps": [10, 20, 30], "loss": [3.0, None, 0.1]}))[0]
    assert (figure["data"][0]["x"], figure["data"][0]["y"]) == ([10, 20, 30], [3.0, None, 0.1])
    assert figure["layout"]["yaxis"]["type"] == "log"
    assert specs(healing({"loss": [2.0, 1.0]}))[0]["data"][0]["x"] == [1, 2]
    assert healing(None) == "" and healing({"loss": [1.0]}) == ""
