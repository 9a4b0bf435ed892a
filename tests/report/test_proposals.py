"""The page of proposals as text, and as a reader sees it in headless Chromium without a network."""

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.report.browser import EVIL, JUNK, Page, paths, probed, visit
from tests.report.proposal_summaries import several, single

from befit.report import arms, frame, page, proposals, yields
from befit.report.proposals import headline, render


@cache
def _made(kind: str) -> str:
    return json.dumps(single() if kind == "single" else several())


def sample(kind: str = "single") -> dict[str, Any]:
    return json.loads(_made(kind))


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


def shown(html: str) -> str:
    return plain(" ".join("".join(Page(html).text).split()))


def figures(html: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', html)]


def small() -> dict[str, Any]:
    """Every kind of node and little to draw."""
    summary = sample("several")
    summary["arms"] = summary["arms"][::8]
    summary["rows"] = summary["rows"][:3]
    summary["leaders"] = summary["leaders"][1:2]
    for line in summary["arms"]:
        line["funnel"] = {name: line["funnel"][name] for name in ("attempted", "new-graph")}
        line["reasons"] = {"allowed": {"policy": 2}}
    for told in summary["comparison"]["measures"].values():
        told["pairs"] = told["pairs"][:1] + told["pairs"][-1:]
    measures = summary["comparison"]["measures"]
    summary["comparison"]["measures"] = {"intention": measures["intention"]}
    summary["comparison"]["attempts"]["counts"] = []
    similarity = summary["similarity"]
    similarity |= {"names": similarity["names"][:2], "matrix": [line[:2] for line in similarity["matrix"][:2]]}
    return summary


# The page as text


def test_the_headline_says_what_was_found_and_of_how_many() -> None:
    summary = sample()
    summary["best"][0] |= {"test": 0.9812, "validation": 0.985, "params": 56700}
    funnel = summary["arms"][0]["funnel"]
    assert plain(headline(summary)) == (
        "98.1 % of the test images and 98.5 % of the validation images right with 56.7 K parameters; "
        f"{funnel['new-graph']} new networks from {funnel['attempted']} proposals"
    )
    summary["best"] = [{"dataset": "a", "test": 0.9812, "params": 9}, {"dataset": "b", "test": 0.5}]
    assert plain(headline(summary)).startswith(
        "98.1 % of the test images of a and 50.0 % of the test images of b right; "
    )
    assert headline({"title": "T"}) == "T" and headline({}) == "No proposals yet"
    only = {"arms": [{"funnel": {"attempted": 1, "new-graph": 1}}]}
    assert plain(headline(only)) == "1 new network from 1 proposal"


def test_the_page_is_found_by_its_kind() -> None:
    assert "From attempts to networks" in page.render(sample()) and "From attempts" not in page.render(
        {"kind": "search"}
    )


def test_the_funnel_adds_up_the_runs_of_an_arm() -> None:
    summary = sample("several")
    rows = re.findall(r"<tr.*?</tr>", plain(yields.funnel(summary)))
    assert re.findall(r'scope="col">([^<]*)', rows[0]) == ["", "shots=0", "shots=3", "shots=6"]
    assert [re.findall(r'scope="row">([^<]+)', row)[0] for row in rows[1:]] == list(yields.STAGES.values())
    for stage, row in zip(yields.STAGES, rows[1:], strict=True):
        counts = [
            sum(line["funnel"][stage] for line in summary["arms"] if line["arm"] == arm)
            for arm in yields.names(summary)
        ]
        assert re.findall(r">(\d+)<small>", row) == [str(count) for count in counts]
    assert "key-stage" in rows[8] and sum("key-stage" in row for row in rows) == 1
    assert "<thead>" not in yields.funnel(sample())  # one arm needs no name


def test_the_reasons_are_in_words_the_most_frequent_first() -> None:
    summary = {
        "arms": [
            {"arm": "a", "reasons": {"allowed": {"policy": 2}, "trained": {"nan": 1}}},
            {"arm": "a", "reasons": {"allowed": {"policy": 1}, "new-tree": {"seen-tree": 7}}},
        ]
    }
    rows = re.findall(r'scope="row">([^<]+)</th><td[^>]*>(\d+)', yields.reasons(summary))
    assert rows == [("repeats an earlier text", "7"), ("against the policy", "3"), ("could not be trained: nan", "1")]
    many = {"arms": [{"reasons": {"built": {f"r{n}": n + 1 for n in range(20)}}}]}
    assert "<summary>6 more reasons</summary>" in yields.reasons(many)


def test_what_a_new_network_cost_is_over_all_runs_of_the_arm() -> None:
    spent = {"unique": 1, "prompt_tokens": 1000, "completion_tokens": 200, "train_seconds": 4.0, "price": 0.5}
    summary = {"arms": [{"arm": "a", "spent": spent}, {"arm": "a", "spent": spent | {"unique": 3}}]}
    text = plain(" ".join(Page(yields.spent(summary)).text))
    assert "600" in text and "2.0 s" in text and "0.250" in text
    summary["arms"][1]["spent"]["price"] = None
    assert "price" not in yields.spent(summary), "the price of a part is not the price"
    summary["arms"].append({"arm": "b", "spent": {"unique": 0, "prompt_tokens": 10}})
    assert "–" in yields.spent(summary)


def test_measured_and_predicted_stand_apart_and_so_do_test_and_validation() -> None:
    rows = re.findall(r"<tr.*?</tr>", proposals.best(sample()))
    heads = re.findall(r'<span class="unit">(\w[\w ]*)</span>', rows[1])
    assert heads == ["as proposed", "validation", "test", "counted", "counted", "measured", "predicted"]
    assert "1.31" in rows[2] and "1.20" in rows[2] and len(rows) == 2 + 8
    assert plain(rows[2]).count("–") == 0 and plain(rows[-1]).count("–") == 4  # not trained for good, on no device
    assert "no. " in rows[2] and "seed" not in rows[2] and "seed" in proposals.best(sample("several"))


def test_code_is_folded_and_escaped() -> None:
    summary = sample()
    summary["best"][0]["source"] = "x = 1 < 2  # <script>"
    html = proposals.codes(summary)
    assert html.count("<details") == 8 and "<details open" not in html
    assert "x = 1 &lt; 2  # &lt;script&gt;" in html


def test_the_curve_is_the_mean_of_the_runs_and_starts_at_guessing() -> None:
    rows = [
        {
            "arm": "a",
            "dataset": "d",
            "seed": seed,
            "number": number,
            "accuracy": value,
            "prompt_tokens": 10 * (seed + 1),
        }
        for seed, values in enumerate([(None, 0.4, 0.3), (0.2, None, 0.8, 0.9)])
        for number, value in enumerate(values)
    ]
    rows[2] |= {"same_as": 1, "accuracy": 0.99}  # a repeated network is none
    drawn = figures(arms.curves({"arms": [{"arm": "a", "chance": 0.1}], "rows": rows}))
    assert len(drawn) == 2  # attempts and tokens; no seconds were told
    line, chance = drawn[0]["data"]
    assert line["x"] == [0, 1, 2, 3] and line["y"] == pytest.approx([10, 15, 30, 60])
    assert chance["y"] == [10, 10] and drawn[1]["data"][0]["x"] == pytest.approx([0, 0.015, 0.03, 0.045])


def test_arms_have_intervals_and_corrected_tests() -> None:
    summary = sample("several")
    measure = summary["comparison"]["measures"]["intention"]
    measure["pairs"][0] |= {
        "difference": 0.0123,
        "low": -0.001,
        "high": 0.02,
        "corrected": 0.0004,
        "p": 0.00001,
        "g": -1.5,
    }
    html = arms.comparison(summary)
    assert len(figures(html)) == 4 and "(not" not in html
    first = re.findall(r"<tr.*?</tr>", html)[2]
    assert re.findall(r"<td[^>]*>([^<]*)", first)[:6] == ["+1.2", "−0.1", "+2.0", "&lt; 0.001", "&lt; 0.001", "−1.50"]
    assert 'class="child"' in first and "shots=3 –\u00a0shots=0" in first
    (spans, _, _, _) = figures(html)
    assert [span["x"] for span in spans["data"][:3]] == [
        pytest.approx([100 * one["low"], 100 * one["high"]]) for one in measure["arms"]
    ]
    assert "On each dataset" in html and "On each dataset" not in arms.comparison(sample())
    assert arms.comparison(sample()) == ""


def test_what_makes_a_comparison_weak_is_said() -> None:
    facts = {"comparison": {"units": "attempts", "attempts": {"equal": False}}}
    assert "too small" in arms.comparison_in_words(facts) and "not fair" in arms.comparison_in_words(facts)
    words = arms.comparison_in_words(sample("several"))
    assert "whole runs" in words and "fair" not in words and "95" in words


def without(value: Any, *keys: str) -> Any:
    if isinstance(value, dict):
        return {key: without(item, *keys) for key, item in value.items() if key not in keys}
    return [without(item, *keys) for item in value] if isinstance(value, list) else value


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_plotly", lambda: "")


@pytest.mark.usefixtures("light")
def test_any_part_may_be_missing() -> None:
    keys = {key for path in paths(small()) for key in path if isinstance(key, str)}
    for key in sorted(keys):
        text = "".join(Page(render(without(small(), key))).text)
        assert "None" not in text and not re.search(r"\bnan\b", text), key


@pytest.mark.usefixtures("light")
def test_no_summary_makes_it_raise() -> None:
    whole = small()
    for path in paths(whole):
        for junk in JUNK:
            broken = copy.deepcopy(whole)
            node: Any = broken
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = junk
            assert render(broken).endswith("</html>\n"), path


def test_a_run_that_has_only_begun_has_a_page() -> None:
    for summary in ({"kind": "proposals"}, {"kind": "proposals", "arms": [], "best": [], "rows": []}):
        html = page.render(summary)
        assert "No proposals yet" in html and "plotly" not in html and "script-src 'none'" in html


# The page as a reader sees it

PROBE = """
const main = all("main")[0].getBoundingClientRect();
const cut = all("h1, h2, h3, .bound, details, p, .plot, .scroll").filter((e) => {
  const r = e.getBoundingClientRect();
  return r.width && (r.left < main.left - 1 || r.right > main.right + 1);
});
return {
  title: document.title,
  text: document.body.innerText,
  plots: all(".plot").filter((p) => p.querySelector(".main-svg")).length,
  bars: all(".matrix .thin i").filter((e) => e.getBoundingClientRect().width > 0).length,
  cut: cut.map((e) => e.outerHTML.slice(0, 90)),
  remarks: all(".compare .baseline th small").map((e) => getComputedStyle(e).display),
  width: [document.documentElement.scrollWidth, innerWidth],
};
"""


def test_it_opens_without_network_and_without_complaint(tmp_path: Path) -> None:
    page = probed(render(sample("several")), PROBE, tmp_path / "report.html")
    seen = visit(page, tmp_path, "--window-size=1280,5200")
    assert seen.console == [] and seen.requests == []
    assert seen.probe["plots"] == 8 and seen.probe["bars"] > 10
    assert seen.probe["cut"] == [] and seen.probe["width"][0] <= seen.probe["width"][1]


def test_a_phone_shows_all_of_it(tmp_path: Path) -> None:
    html = render(sample("several")).replace("<main>", '<main style="width: 400px">')
    seen = visit(probed(html, PROBE, tmp_path / "phone.html"), tmp_path, "--window-size=500,900")
    assert seen.console == [] and seen.probe["cut"] == [] and "none" not in seen.probe["remarks"]
    assert seen.probe["width"][0] <= seen.probe["width"][1], "the page itself must not scroll sideways"


def poison(value: Any) -> Any:
    """Every text of a summary replaced by markup."""
    if isinstance(value, dict):
        return {key: item if key in ("kind", "units") else poison(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_markup_in_names_does_nothing(tmp_path: Path) -> None:
    summary = poison(sample("several"))
    summary["arms"][0]["reasons"] = {EVIL: {EVIL: 3}}
    summary["similarity"]["names"] = [{"arm": EVIL, "number": 1}] * len(summary["similarity"]["matrix"])
    seen = visit(probed(render(summary), PROBE, tmp_path / "evil.html"), tmp_path)
    assert seen.console == [] and seen.requests == [] and seen.probe["title"] != "owned"
    assert EVIL in seen.probe["text"] and "img" not in {tag for tag, _ in Page(seen.dom).elements}
