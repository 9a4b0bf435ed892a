"""The table of tasks: what it shows of each model, what it hides, and that nothing in it can break the page."""

import re
from typing import Any

import pytest

from befit.report.abilities import tasks


def model(mean: float, apart: tuple[float, float, float] | None = None) -> dict[str, Any]:
    told: dict[str, Any] = {"mean": mean, "stderr": 0.05, "items": 20}
    return told | ({"difference": dict(zip(("mean", "low", "high", "p"), (*apart, 0.5), strict=True))} if apart else {})


def found(can: bool | None = True, chance: float | None = 0.25) -> dict[str, Any]:
    models = {
        "parent": model(0.75),
        "child": model(0.5, (-0.25, -0.4, -0.1)),
        "<uniform>": model(0.7, (-0.05, -0.2, 0.1)),
    }
    own = {"about": "right option", "chance": chance, "higher_is_better": True, "parent_can": can, "models": models}
    levels = {"256": {"parent_can": True, "models": models}, "512": {"parent_can": False, "models": models}}
    measure = own | {"groups": {"tokens": levels, "depth": levels}}
    task = {"about": "a number", "items": 20, "measures": {"choice": measure}}
    return {"models": {name: {} for name in models}, "tasks": {"needle": task}, "notes": ["4096 was <left> out"]}


def rows(page: str) -> list[str]:
    return [re.sub(r"<[^>]+>", " ", row) for row in re.findall(r"<tr.*?</tr>", page.replace("\u202f", ""))]


def test_values_differences_and_levels() -> None:
    page = tasks(found())
    head, whole, short, long = rows(page)
    assert "&lt;uniform&gt;" in head and "<uniform>" not in page and "4096 was &lt;left&gt; out" in page
    assert "25%" in whole and "75.0% ± 5.0%" in whole and "−25.0% [−40.0%, −10.0%]" in whole
    assert page.count('<b title="worse than the parent">') == 2 and "+10.0\u202f%]</small>" in page
    assert "256 tokens" in short and "50.0%" in short
    assert "512 tokens" in long and "75.0%" in long and "50.0%" not in long and "the parent can’t do this" in long


def test_what_the_parent_cannot_do_is_not_a_score_of_the_child() -> None:
    whole = rows(tasks(found(can=False)))[1]
    assert "75.0%" in whole and "50.0%" not in whole and "70.0%" not in whole
    assert whole.count("the parent can’t do this") == 1


def test_nats_are_numbers_and_less_is_better() -> None:
    given = found(can=None, chance=None)
    given["tasks"]["needle"]["measures"]["choice"]["higher_is_better"] = False
    page = tasks(given)
    assert "0.750 ± 0.050" in rows(page)[1] and '<b title="better than the parent">' in page


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {},
        [],
        {"tasks": {"x": None}},
        {"models": {"parent": 1}, "tasks": {"x": {"measures": {"y": {"models": 3}}}}},
    ],
)
def test_anything_makes_a_page(odd: Any) -> None:
    assert isinstance(tasks(odd), str)
