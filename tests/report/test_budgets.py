"""Costs against limits, points at their costs, bytes on disk: worked out by hand."""

import json
import re
from typing import Any

from befit.report import budgets

SUMMARY: dict[str, Any] = {
    "cost": "memory_bytes",
    "parent": {"name": "P", "params": 1000, "memory_bytes": 4 * 2**20, "loss": 2.0},
    "members": [
        {"budget": 1.0, "limit": 2**22, "value": 2**22, "kl": 0.01, "kl_untrained": 0.0, "loss": 2.1, "loss_untrained": 2.0},
        {"budget": 0.6, "limit": 2.4 * 2**20, "value": 2.2 * 2**20, "trained": False, "kl": 0.3, "loss": 2.4},
        {"budget": 0.5, "limit": 2 * 2**20, "value": 1.99 * 2**20, "trained": True, "kl": 0.4, "kl_untrained": 4.0, "loss": 2.5},
    ],
    "baselines": {
        "uniform": [{"budget": 0.5, "value": 1.9 * 2**20, "kl": 0.6, "loss": 2.7, "trained": True}],
        "separate": [{"budget": 0.5, "value": 2 * 2**20, "kl": 0.5, "loss": 2.6, "trained": True, "tokens": 2_000_000}],
        "nowhere": [],
    },
}  # fmt: skip


def specs(fragment: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', fragment)]


def rows(html: str) -> list[list[str]]:
    """The cells of every row of a table's body, as text."""
    body = html.partition("<tbody>")[2]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("</tr>")[:-1]]
    return [[re.sub(r"<[^>]*>", " ", cell).strip().replace("\u202f", " ") for cell in row] for row in cells]


def test_the_table_sets_each_cost_against_its_limit() -> None:
    parent, full, never, half = rows(budgets.table(SUMMARY))
    assert parent[:4] == ["parent P", "4.00 MiB", "–", "–"]
    assert full[:4] == ["100 %", "4.00 MiB 100 %", "4.00 MiB", "100.00 %"]
    assert never[0] == "60 % never trained on" and never[3] == "91.67 %"
    assert half == ["50 %", "1.99 MiB 50 %", "2.00 MiB", "99.50 %", "0.400", "4.00", "2.50", "–", "–"]
    assert ">counted<" in budgets.table(SUMMARY) and ">measured<" in budgets.table(SUMMARY | {"cost": "latency_ms"})


def test_every_heading_stands_over_its_own_columns() -> None:
    cached = SUMMARY | {"members": [entry | {"cache_bytes": 2**20} for entry in SUMMARY["members"]]}
    html = budgets.table(cached)
    heads = re.findall(r'<th class="open" colspan="(\d)" scope="colgroup">([^<]*)</th>', html)
    assert heads == [("4", "Memory"), ("2", "KL to the parent"), ("2", "Loss")]
    names = re.findall(r'class="unit">([^<]*)<', html)
    assert names[:4] == ["counted", "at most", "of the limit", "caches"] and rows(html)[1][4] == "1.00 MiB"


def test_members_are_a_line_and_baselines_are_marks_at_their_share_of_the_cost() -> None:
    kl, loss = specs(budgets.quality(SUMMARY))
    before, uniform, separate, nothing, nested = kl["data"]
    assert nested["x"] == [49.75, 55.0, 100.0] and nested["y"] == [0.4, 0.3, 0.01]
    assert nested["marker"]["symbol"] == ["circle", "circle-open", "circle"], "a budget never trained on is hollow"
    assert nested["mode"] == "lines+markers" and uniform["mode"] == separate["mode"] == "markers" and not nothing["x"]
    assert separate["marker"]["symbol"] == ["star"] and "2.00\u202fM tokens" in separate["text"][0]
    assert kl["layout"]["yaxis"]["type"] == "log"
    assert (before["x"], before["marker"]["symbol"]) == ([49.75, 100.0], ["circle-open", "triangle-down"])
    assert before["y"][1] < 0.01, "zero lies below all that a logarithm can show, and is marked"
    assert "which a logarithm cannot show" in budgets.quality(SUMMARY)
    assert loss["data"][-1]["y"] == [2.5, 2.4, 2.1] and loss["layout"]["shapes"][0]["y0"] == 2.0
    assert kl["layout"]["xaxis"]["title"]["text"] == "memory, % of the parent"


def test_a_parent_that_does_not_state_the_cost_is_worked_out_from_a_limit() -> None:
    timed = SUMMARY | {"cost": "latency_ms"}
    assert specs(budgets.quality(timed))[0]["data"][-1]["x"][-1] == 100.0


def test_the_numbers_compare_with_the_nested_member() -> None:
    nested, uniform, separate = rows(budgets.numbers(SUMMARY))
    assert nested == ["nested", "0.0100", "0.300", "0.400"]
    assert uniform == ["uniform every width alike", "–", "–", "0.600 150 %"] and separate[-1] == "0.500 125 %"
    assert budgets.numbers(SUMMARY | {"baselines": None}) == ""


def test_untrained_baselines_are_compared_with_untrained_cuts() -> None:
    untrained = {"greedy": [{"budget": 0.5, "value": 2**21, "kl": 6.0, "loss": 9.0, "trained": False}]}
    summary = SUMMARY | {"baselines": untrained}
    nested, greedy = rows(budgets.numbers(summary))
    assert nested == ["nested", "0", "4.00"]
    assert greedy == ["greedy by importance, one step at a time", "–", "6.00 150 %"]
    assert "KL to the parent, cut untrained" in budgets.numbers(summary)
    assert "one step at a time (hollow: untrained)" in budgets.quality(summary) and "hollow" not in budgets.quality(
        SUMMARY
    )
    kl, loss = specs(budgets.quality(summary))
    assert kl["data"][1]["marker"]["symbol"] == ["square-open"] and loss["data"][1]["x"] == []


def test_one_file_against_many() -> None:
    files = [{"budget": share, "bytes": round(share * 10 * 2**20)} for share in (1.0, 0.5)]
    html = budgets.storage(
        {"storage": {"nested_bytes": 10 * 2**20, "router_bytes": 51200, "gains_bytes": 0, "separate": files}}
    )
    words = re.sub(r"<[^>]*>", "", html).replace("\u202f", " ")
    assert (
        "takes 10.0 MiB and holds every size; separate checkpoints for 100 % and 50 % take 15.0 MiB, 1.49 times"
        in words
    )
    assert "In it: router 50.0 KiB, 0.49 % of the weights." in words
    widths = [float(width) for width in re.findall(r'style="width:([\d.]+)%"', html)]
    assert widths == [66.67, 0.33, 66.67, 33.33]


def test_without_facts_there_is_nothing() -> None:
    for empty in ({}, {"members": None, "storage": {}}, {"members": [{}], "baselines": {"uniform": [{}]}}):
        assert budgets.quality(empty) == budgets.numbers(empty) == budgets.storage(empty) == ""
    assert budgets.table({}) == ""
