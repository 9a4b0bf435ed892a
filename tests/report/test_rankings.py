"""Importance by rank with the budgets' widths; the order of removals read back from its picture."""

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from befit.report import rankings
from befit.report.members import Parent

PARENT = Parent(layers=("mamba", "ffn", "attention"), widths={"hidden": 4})
GIVEN = [
    {"budget": 1.0, "member": {"hidden": 4, "kv_heads": 2, "heads_per_kv": 4, "ffn": [3, 3], "layers": [0, 1, 2]}},
    {"budget": 0.5, "member": {"hidden": 3, "kv_heads": 1, "heads_per_kv": 2, "ffn": [2, 3], "layers": [0, 2]}},
    {"budget": 0.4, "member": {"hidden": 3, "kv_heads": 2, "heads_per_kv": 2, "ffn": [1, 1], "layers": [0]}},
]


def specs(fragment: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', fragment)]


def test_importance_falls_and_budgets_mark_what_they_keep() -> None:
    ranking = {
        "hidden": [4, 1, 3, 2],
        "heads": {"2": [8, 7, 6, 5, 4, 3, 2, 1], "5": [1, None]},
        "ffn": {"1": [3, 2, 1]},
    }
    hidden, ffn, heads = specs(rankings.importance(ranking, PARENT, GIVEN))
    assert (hidden["data"][0]["x"], hidden["data"][0]["y"]) == ([1, 2, 3, 4], [4, 3, 2, 1])
    marks = [(a["x"], a["text"].replace("\u202f", " ")) for a in hidden["layout"]["annotations"]]
    assert marks == [(3.5, "50 %, 40 %")], "budgets of one width share a mark; the whole has none"
    assert [(a["x"], a["text"][:2]) for a in heads["layout"]["annotations"]] == [(2.5, "50"), (4.5, "40")]
    assert [line["hovertemplate"][:8] for line in heads["data"]] == ["layer 2,", "layer 5,"]
    assert [a["x"] for a in ffn["layout"]["annotations"]] == [1.5], "layers of unlike widths have no one mark"


def test_wide_layers_keep_their_ends_and_stay_light() -> None:
    line = specs(rankings.importance({"ffn": {"0": list(range(15_000))}}, PARENT, []))[0]["data"][0]
    assert len(line["x"]) <= 100 and line["x"][0] == 1 and line["x"][-1] == 15_000
    assert line["y"][0] == 14_999 and line["y"][-1] == 0


def test_a_ranking_that_was_thinned_or_is_of_several_groups_is_stretched_to_the_parents_width() -> None:
    wide = Parent(layers=(), widths={"state": 7})
    member = {"budget": 0.5, "member": {"state": 4}}
    figure = specs(rankings.importance({"state": {"0": [3, 2, 1], "1": list(range(14))}}, wide, [member]))[0]
    thin, groups = figure["data"]
    assert thin["x"] == [1, 4, 7] and (groups["x"][0], groups["x"][-1]) == (1, 7)
    assert figure["layout"]["annotations"][0]["x"] == 4.5


DEPTH = {"iterative": [[1, 0.1], [0, 0.3], [2, 3.0]], "single": [[1, 0.1], [2, 0.2]], "cosine": [[0, 0.5], [1, None]]}


def test_each_layer_stands_at_its_rank_in_each_column() -> None:
    html = rankings.removals({"depth": DEPTH}, PARENT, GIVEN)
    svg = ElementTree.fromstring(html[html.index("<svg") : html.index("</svg>") + 6])
    found: dict[str, dict[str, float]] = {}
    for group in (g for g in svg.iter("g")):
        for text in group.iter("text"):
            found.setdefault(str(text.text), {})[str(text.get("x"))] = float(text.get("y") or 0)
    columns = sorted({x for spots in found.values() for x in spots}, key=lambda x: float(x.rstrip("%")))
    orders = [sorted((spots[x], layer) for layer, spots in found.items() if x in spots) for x in columns]
    assert [[layer for _, layer in order] for order in orders] == [["1", "0", "2"], ["1", "2"], ["0", "1"]]
    assert [text.text for text in svg.iter("text") if text.get("class") == "head"] == [
        "iterative nMSE",
        "single nMSE",
        "block influence",
    ]
    titles = [str(group.findtext("title")) for group in svg.iter("g")]
    assert (
        "Layer 1, ffn\niterative nMSE: 1. of 3, nMSE 0.100\nsingle nMSE: 1. of 2, nMSE 0.100\n"
        "block influence: 2. of 2, 1 − cosine –" in titles
    )
    cuts = [(str(text.text)[:2], float(text.get("y") or 0)) for text in svg.iter("text") if text.get("class") == "cut"]
    ranks = sorted(found["1"].values())
    assert [name for name, _ in cuts] == ["50", "40"] and ranks[0] < cuts[0][1] < ranks[-1] < cuts[1][1]


def test_the_error_is_drawn_by_removals() -> None:
    (figure,) = specs(rankings.removals({"depth": DEPTH}, PARENT, GIVEN))
    iterative, single = figure["data"]
    assert (iterative["x"], iterative["y"], iterative["text"][1]) == ([1, 2, 3], [0.1, 0.3, 3.0], "layer 0")
    assert single["y"] == [0.1, 0.2] and figure["layout"]["yaxis"]["type"] == "log"


def test_a_very_deep_network_shows_the_first_removals_and_keeps_its_rows_apart() -> None:
    deep = Parent(layers=("mamba",) * 126)
    html = rankings.removals({"depth": {"single": [[i, 1.0] for i in range(126)]}}, deep, [])
    assert html.count('class="bump mamba"') == 64


@pytest.mark.parametrize(
    "ranking", [None, {}, {"depth": None, "ffn": {"0": ["x"]}}, {"depth": {"single": [[], 3, ["x"]]}}]
)
def test_without_rankings_there_is_nothing(ranking: object) -> None:
    assert rankings.importance(ranking, PARENT, GIVEN) == rankings.removals(ranking, PARENT, GIVEN) == ""
