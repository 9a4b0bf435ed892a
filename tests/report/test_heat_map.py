"""Every score of the summary is found again at its layer and variant."""

import json
import re
from typing import Any

import pytest

from befit.report.heat_map import heat_map

SCORES = {
    "layers": [
        {"attention": {"kv4": 0.0, "kv2": 0.01, "noop": 1.0}, "ffn": {"ffn512": 0.0, "ffn256": 0.1}},
        {"attention": {"kv4": 0.0, "kv2": 0.001, "noop": None}, "ffn": {"ffn512": 0.0, "linear": 1e-9}},
    ]
}
CHILD = {
    "blocks": [
        {"attention": {"kv_heads": 2, "window": None}, "ffn": {"width": 512}},
        {"attention": "noop", "ffn": "linear"},
    ]
}


def spec(fragment: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json">(.*?)</script>', fragment)
    assert found
    return json.loads(found[1])


def test_colours_are_logarithms_and_words_are_scores() -> None:
    figure = spec(heat_map(SCORES, None, CHILD))
    attention, ffn = (trace for trace in figure["data"] if trace["type"] == "heatmap")
    assert figure["layout"]["yaxis"]["ticktext"] == ["kv4", "kv2", "noop"]
    assert figure["layout"]["yaxis2"]["ticktext"] == ["ffn512", "ffn256", "linear"]
    assert attention["z"] == [[-5, -5], [-2, -3], [0, None]], "zero takes the lowest colour, five decades down"
    assert attention["text"][1] == ["kv2: 0.0100", "kv2: 0.00100"]
    assert ffn["z"][1] == [pytest.approx(-1), None] and ffn["z"][2] == [None, -5]
    assert (figure["layout"]["coloraxis"]["cmin"], figure["layout"]["coloraxis"]["cmax"]) == (-5, 0)


def test_dots_mark_what_the_child_uses() -> None:
    dots = [trace for trace in spec(heat_map(SCORES, None, CHILD))["data"] if trace["type"] == "scatter"]
    assert [(d["x"], d["y"]) for d in dots] == [([0, 1], [1, 2]), ([0, 1], [0, 2])]
    without = [trace for trace in spec(heat_map(SCORES, None, None))["data"] if trace["type"] == "scatter"]
    assert [d["x"] for d in without] == [[], []]
    hybrid = {"layers": [SCORES["layers"][1] | {"attention": {}}, SCORES["layers"][0] | {"ffn": {}}]}
    halves = {"blocks": [{"attention": "noop", "ffn": "linear"}, {"attention": "noop", "ffn": "noop"}]}
    dots = [trace for trace in spec(heat_map(hybrid, None, halves))["data"] if trace["type"] == "scatter"]
    assert [d["x"] for d in dots] == [[1], [0]], "what the parent lacks was not chosen"


def test_block_influence_stands_above() -> None:
    figure = spec(heat_map(SCORES, {"block_influence": [0.5, None]}, CHILD))
    assert figure["data"][0]["type"] == "bar" and figure["data"][0]["y"] == [0.5, None]
    bottom, top = figure["layout"]["yaxis"]["domain"]
    assert top == 1 and bottom > figure["layout"]["yaxis2"]["domain"][1] > figure["layout"]["yaxis3"]["domain"][1]
    assert figure["layout"]["yaxis3"]["domain"][0] == 0


@pytest.mark.parametrize(
    "scores",
    [None, {}, {"layers": []}, {"layers": [{}]}, {"layers": [{"ffn": {"ffn1": 0.0}}]}, {"layers": [{"ffn": 3}]}],
)
def test_without_scores_there_is_no_figure(scores: object) -> None:
    assert heat_map(scores, {"block_influence": [1.0]}, CHILD) == ""
