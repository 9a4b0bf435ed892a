"""Lines over steps are found again with their budgets."""

import json
import re
from typing import Any

import pytest

from befit.report import training
from befit.report.members import Parent

PARENT = Parent(layers=("mamba",) * 4, widths={"hidden": 100, "ffn": 200})


def specs(fragment: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', fragment)]


def test_every_budget_has_a_curve_the_largest_first() -> None:
    html = training.curves({"curves": {"0.5": [[1, 4.0], [2, None], [3, 0.1]], "1": [[1, 0.1], [2, 0.2]]}})
    full, half = specs(html)[0]["data"]
    assert (full["name"], full["x"], full["y"]) == ("100\u202f%", [1, 2], [0.1, 0.2])
    assert (half["name"], half["x"], half["y"]) == ("50\u202f%", [1, 3], [4.0, 0.1])
    assert specs(html)[0]["layout"]["yaxis"]["type"] == "log" and full["line"]["dash"] != half["line"]["dash"]
    assert "type" not in specs(training.curves({"curves": {"1": [[1, 0.1], [2, 0.2]]}}))[0]["layout"]["yaxis"]


def test_the_routers_choices_are_shares_of_the_parent_and_still_axes_are_left_out() -> None:
    rows = [
        {"step": 9, "budget": 0.5, "member": {"hidden": 50, "ffn": 200, "layers": [0, 1]}},
        {"step": 1, "budget": 0.5, "member": {"hidden": 80, "ffn": 200, "layers": [0, 1]}},
        {"step": 1, "budget": 1, "member": {"hidden": 100, "ffn": [200, 200], "layers": [0, 1, 2, 3]}},
    ]
    panels = specs(training.choices({"members_over_time": rows}, PARENT))
    assert [p["layout"]["title"]["text"].split(",")[0] for p in panels] == ["embedding", "layers"]
    full, half = panels[0]["data"]
    assert (full["x"], full["y"]) == ([1], [100]) and (half["x"], half["y"]) == ([1, 9], [80, 50])
    assert [line["y"] for line in panels[1]["data"]] == [[100], [50, 50]]


def test_the_curriculum_in_words() -> None:
    facts = {
        "tokens": 1_900_000,
        "seconds": 221.4,
        "stages": [{"tokens": 700_000, "sequence": 512, "weights": [0.5, 0.3, 0.2]}],
    }
    assert training.curriculum(facts).replace("\u202f", " ") == (
        "Stage 1: 700 K tokens, sequences of 512 tokens, budgets drawn 50 % : 30 % : 20 %. In all 1.90 M tokens in 3 min 41 s."
    )


@pytest.mark.parametrize("facts", [None, {}, {"curves": {"1": [[1], 3]}, "members_over_time": [{"step": 1}]}, "text"])
def test_without_facts_there_is_nothing(facts: object) -> None:
    assert training.curves(facts) == training.choices(facts, PARENT) == training.curriculum(facts) == ""
