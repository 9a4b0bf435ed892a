"""The page of a search as text, and as a reader sees it in headless Chromium without a network."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.report.browser import EVIL, JUNK, Page, paths, probed, visit

from befit.report import drawing, finalists, frame, learned, oneshot, page, progress, trials
from befit.report.search import headline, render

SAMPLE = Path(__file__).parent / "data" / "search.json"
KINDS = ("cell", "mobile", "gradient", "shared")


def sample(kind: str = "cell") -> dict[str, Any]:
    """A summary: a study in either space, a search by gradients, shared weights."""
    told = json.loads(SAMPLE.read_text(encoding="utf-8"))
    if kind == "gradient":
        return told["cell"] | {"trials": [], "front": [], "hypervolume": [], "learned": {}} | told["gradient"]
    if kind == "shared":
        return told["mobile"] | {"transfer": None} | told["shared"]
    return told[kind]


def plain(text: str) -> str:
    return text.replace("\u202f", " ")


def shown(html: str) -> str:
    """The page's text in one line."""
    return plain(" ".join("".join(Page(html).text).split()))


def small(kind: str) -> dict[str, Any]:
    """The sample with every kind of node and little to draw."""
    summary = sample(kind)
    scored = [row for row in summary["trials"] if row["value"] is not None]
    lost = [row for row in summary["trials"] if row["state"] == "failed"]
    summary["trials"] = scored[:2] + lost[:1]
    summary["finalists"] = summary["finalists"][:2]
    summary["hypervolume"] = summary["hypervolume"][:3]
    for key in ("stages", "notes", "bounds", "axes"):
        summary[key] = summary[key][:1]
    summary["funnel"] = summary["funnel"][:1] + summary["funnel"][-1:]
    names = list(summary["space"]["choices"])[:2]
    summary["space"]["choices"] = {name: summary["space"]["choices"][name] for name in names}
    summary["learned"] = {name: one for name, one in summary["learned"].items() if name in names}
    for row in (*summary["trials"], *summary["finalists"]):
        row["arch"] = {name: row["arch"][name] for name in names}
    summary["data"] |= {"classes": summary["data"]["classes"][:2]}
    if summary["transfer"]:
        summary["transfer"]["rows"] = [
            row | {"arch": {names[0]: row["arch"][names[0]]}} for row in summary["transfer"]["rows"][:2]
        ]
    if gradient := summary["extra"].get("gradient"):
        gradient["probabilities"] = [
            {name: epoch[name] for name in names[:1]} for epoch in gradient["probabilities"][:2]
        ]
        for key in ("entropy", "losses", "expected"):
            gradient[key] = gradient[key][:2]
    if shared := summary["extra"].get("shared"):
        shared["losses"] = shared["losses"][:2]
    return summary


# The page as text


def test_the_headline_says_what_was_found_and_how_the_budget_was_checked() -> None:
    summary = sample()
    best = summary["finalists"][0]
    best |= {"test": 0.9812, "validation": 0.985, "measured": {"latency_ms": 0.3379}}
    assert plain(headline(summary)) == (
        "98.1 % of the test images and 98.5 % of the validation images right, with 338 µs of latency and 56.7 K "
        "parameters; the budget is met as measured"
    )
    best["measured"] = {}
    assert plain(headline(summary)).endswith(
        "with a predicted 338 µs of latency and 56.7 K parameters; the budget is met as predicted"
    )
    summary["bounds"] = [{"cost": "params", "value": 1e6}, {"cost": "macs", "value": 1e6}]
    assert plain(headline(summary)).endswith(
        "with 56.7 K parameters and 464 K multiply-adds; the budget is met as counted"
    )
    best["within"] = False
    assert headline(summary).endswith("; the budget is not met")
    summary["bounds"] = []
    assert plain(headline(summary)).endswith("right, with 56.7 K parameters")
    assert headline({"title": "T"}) == "T" and headline({}) == "A search, not finished yet"


def test_the_page_of_a_search_is_found_by_its_kind() -> None:
    assert "Finalists" in page.render(sample()) and "Finalists" not in page.render({"kind": "elastic"})


def test_stages_of_one_name_are_one_line() -> None:
    rows = re.findall(r"<tr.*?</tr>", render(sample()).partition("What the run did")[2])
    assert [re.findall(r'scope="row">([^<]+)', row)[0] for row in rows] == [
        "price",
        "search",
        "train",
        "test",
        "this run",
    ]
    assert "3 networks" in rows[2] and "46" in rows[2] and "networks" not in rows[1] and "reused" in rows[0]


def test_nothing_is_loaded_from_anywhere() -> None:
    html = render(sample())
    elements = Page(html).elements
    assert not [name for _, attributes in elements for name in attributes if name in ("src", "href", "data")]
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]
    assert not re.search(r"@import|url\(", html.partition("</style>")[0]) and html.count("plotly.js v") == 1


def test_counted_predicted_and_measured_costs_have_columns_of_their_own() -> None:
    rows = re.findall(r"<tr.*?</tr>", finalists.table(sample()))
    heads = re.findall(r'<span class="unit">(\w[\w ]*)</span>', rows[1])
    assert heads == [
        *("as a trial", "validation", "test"),
        *("counted", "counted", "counted"),
        *("measured", "predicted"),
        *("epochs", "time"),
    ]
    body = rows[2:]
    assert [re.findall(r'scope="row">([^<]+)', row)[0] for row in body] == ["best", "no. 2", "no. 3"]
    assert 'class="child"' in body[0] and "chosen" in body[0] and "over budget" in body[2]
    best = sample()["finalists"][0]
    assert plain(body[0]).count(f"{100 * best['test']:.2f} %") == 1
    assert "over budget" not in body[0] + body[1] and "beyond" in body[2]


def test_a_finalist_stands_beside_its_own_trial() -> None:
    summary = sample("shared")
    assert "by shared weights" in finalists.table(summary) and "as a trial" not in finalists.table(summary)
    for one in summary["finalists"]:
        values = [row["value"] for row in summary["trials"] if row["arch"] == one["arch"]]
        assert [finalists.value_in_trial(summary, one)] == values
    assert finalists.value_in_trial(summary, {}) is None


def test_the_front_is_a_staircase_with_the_bound_on_it() -> None:
    drawn = figures(trials.front(sample()))
    (stairs, points, ends, bound), trial = drawn[0]["data"], sample()["trials"]
    scored = [row for row in trial if row["value"] is not None]
    assert len(points["x"]) == len(scored)
    steps = list(zip(stairs["x"], stairs["y"], strict=True))
    for x, y in zip(points["x"], points["y"], strict=True):  # nothing lies above the line
        assert y <= max(own for at, own in steps if at <= x) + 1e-9
    assert stairs["y"] == sorted(stairs["y"]) and stairs["x"] == sorted(stairs["x"])
    full = {x for x, symbol in zip(points["x"], points["marker"]["symbol"], strict=True) if symbol == "circle"}
    assert set(stairs["x"]) == full and bound["x"] == [pytest.approx(350)] * 2
    assert ends["marker"]["symbol"].count("diamond-open") == 1, "the one over the budget"
    assert points["marker"]["color"].count("var(--chosen)") == 1 == ends["marker"]["color"].count("var(--chosen)")


def test_trials_without_a_score_are_marked_by_their_reason() -> None:
    html = progress.progress(sample("mobile"))
    best, grown = figures(html)
    assert best["data"][0]["y"][-1] == pytest.approx(100 * max(row["value"] or 0 for row in sample("mobile")["trials"]))
    lost = [len(data["x"]) for data in best["data"][2:]]
    assert sum(lost) == sum(row["value"] is None for row in sample("mobile")["trials"])
    assert all(reason in html for reason in ("timeout", "crash", "stopped early"))
    spent = sum(row["seconds"] for row in sample("mobile")["trials"])
    assert plain(progress.in_words(sample("mobile"))).startswith(f"40 trials, {spent // 60:.0f} min")
    assert len(grown["data"][0]["y"]) == len(sample("mobile")["trials"])


def figures(html: str) -> list[dict[str, Any]]:
    return [json.loads(block) for block in re.findall(r'<script type="application/json">(.*?)</script>', html)]


def test_the_cell_is_drawn_and_written_in_its_text_form() -> None:
    html = drawing.picture(sample()["drawing"])
    assert html.count('class="node"') == 4 and html.count('class="edge') == 6
    edges = {(source, to): name for source, to, name in sample()["drawing"]["edges"]}
    text = "+".join("".join(f"|{edges[a, b]}~{a}" for a in range(b)) + "|" for b in (1, 2, 3))
    assert text in html and html.count(">3×3 conv<") == list(edges.values()).count("nor_conv_3x3")
    for wrong in ([], [[1, 0, "none"]], [[0, 9, "none"]], [[True, 2, "none"]], [["a", "b", "c"]], "x", None):
        assert drawing.cell(wrong) == ""
    assert ">&lt;b&gt;<" in drawing.cell([[0, 1, "<b>"]])


def test_a_mobile_network_is_drawn_stage_by_stage() -> None:
    facts = sample("mobile")["drawing"]
    facts["shape"]["resolution"] = 25
    html = drawing.picture(facts)
    blocks = [block for stage in facts["shape"]["stages"] for block in stage]
    assert html.count('class="chip ') == len(blocks) and html.count("<em>SE</em>") == sum(
        block["squeeze"] > 0 for block in blocks
    )
    pixels = [int(one) for one in re.findall(r"</th><td>(\d+)</td>", html)]
    side, expected = facts["shape"]["resolution"], [facts["shape"]["resolution"]]
    for halvings in [facts["shape"]["stem_stride"], *(stage[0]["stride"] for stage in facts["shape"]["stages"])]:
        side = -(-side // halvings)
        expected.append(side)
    assert pixels == [*expected, side]
    assert plain(html).count("100.0%") == 1, "the widest block"


def test_other_networks_are_drawn_as_their_choices() -> None:
    html = drawing.picture({"kind": "choices", "choices": {"width": 32, "mixer": "<conv>"}})
    assert "<dt>width</dt><dd>32</dd>" in html and "&lt;conv&gt;" in html
    assert drawing.picture({"kind": "other"}) == "" and drawing.picture(None) == ""


def test_choices_are_ranked_by_importance_and_said_to_be_descriptive() -> None:
    facts = sample("mobile")["learned"]
    html = learned.choices(facts, sample("mobile")["space"])
    names = re.findall(r'class="what"><b>(\w+)</b>', html)
    told = [facts[name]["importance"] for name in names]
    known = [value for value in told if value is not None]
    assert known == sorted(known, reverse=True) and None not in told[: len(known)]
    assert len(names) == len(facts) and f"{len(facts) - 12} more choices" in html
    assert "describes the archs that were tried" in learned.in_words(facts)
    alone = {name: one | {"options": dict(list(one["options"].items())[:1])} for name, one in facts.items()}
    assert learned.choices(alone) == learned.choices({}) == "", "one option alone compares with nothing"
    kernel = {"k": {"importance": 0.5, "options": {"5": {"mean": 0.9, "trials": 3}, "3": {"mean": 0.8, "trials": 2}}}}
    ordered = re.findall(r'class="axis">(\d)', learned.choices(kernel, {"choices": {"k": [3, 5]}}))
    assert ordered == ["3", "5"]


def test_what_was_refused_stands_apart() -> None:
    rows = sample()["funnel"]
    html = learned.funnel(rows)
    kept, lost = html.split("Lost on the way")
    assert kept.count('class="kept"') == 5 and lost.count('class="lost"') == len(rows) - 5
    refused = next(row["count"] for row in rows if row["stage"] == "refused before building")
    assert f"{refused} of {rows[0]['count']} proposals" in plain(learned.funnel_in_words(rows))


def test_a_search_by_gradients_shows_what_the_gradients_said() -> None:
    text = shown(render(sample("gradient")))
    assert "It did not collapse" in text and "is over the budget; the most probable one inside has −2.31" in text
    assert "Trial by trial" not in text and "What the search saw" not in text
    summary = sample("gradient")
    drawn = figures(oneshot.gradient(summary))
    assert len(drawn) == 6 + 1 + 1 and all(len(figure["data"]) == 5 for figure in drawn[:6])
    shares = [figure["y"][-1] for figure in drawn[0]["data"]]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    summary["extra"]["gradient"] |= {"collapsed": True, "score": -1.0, "wished": -1.0}
    assert "It collapsed" in oneshot.gradient_in_words(summary)
    assert "The most probable arch keeps the budget." in oneshot.gradient_in_words(summary)


def test_shared_weights_stand_beside_own_training() -> None:
    summary = sample("shared")
    text = shown(render(summary))
    assert (
        "2 520 steps, 40 epochs, 13 min 32 s. 34 sub-nets were then judged, without any training of their own." in text
    )
    loss, both = figures(oneshot.shared(summary) + oneshot.compared(summary))
    assert (
        len(loss["data"][0]["y"]) == 40
        and loss["data"][0]["x"][:2] == [1, 64]
        and len(both["data"][0]["x"]) == len(summary["finalists"])
    )
    assert "befit cut runs/edge" in text and "befit cut" not in shown(render(sample()))
    for one in summary["finalists"]:
        one["epochs"] = 0.0
    assert oneshot.compared(summary) == "", "what was cut and not trained has no accuracy of its own"
    assert "Training" in finalists.table(sample("shared")) and "Training" not in finalists.table(summary)
    assert "trained fully" not in trials.front(summary)


def test_transfer_says_its_correlations() -> None:
    facts = sample("mobile")["transfer"]
    assert "Kendall tau 0.71, Spearman 0.86" in trials.transfer_in_words(facts)
    assert "too few different values" in trials.transfer_in_words(facts | {"kendall": None, "spearman": None})
    (figure,) = figures(trials.transfer(facts))
    assert len(figure["data"][0]["x"]) == 8
    assert trials.transfer(None) == trials.transfer_in_words(None) == ""


def without(value: Any, *keys: str) -> Any:
    if isinstance(value, dict):
        return {key: without(item, *keys) for key, item in value.items() if key not in keys}
    return [without(item, *keys) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_may_be_missing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_plotly", lambda: "")
    whole = sample(kind)
    keys = {key for path in paths(small(kind)) for key in path if isinstance(key, str)}
    for key in sorted(keys):
        text = "".join(Page(render(without(whole, key))).text)
        assert "None" not in text and not re.search(r"\bnan %", text), key


def test_a_run_that_has_only_begun_has_a_page() -> None:
    for summary in ({"kind": "search"}, {"kind": "search", "trials": [], "finalists": [], "extra": None}):
        html = render(summary)
        assert "not finished yet" in html and "plotly" not in html and "script-src 'none'" in html


OWN = {
    "cell": (),
    "mobile": ("drawing", "transfer", "axes"),
    "gradient": ("extra", "space"),
    "shared": ("extra", "judged"),
}
"""Of each kind the parts that the others have not; of the first, all."""


@pytest.mark.parametrize("kind", KINDS)
def test_no_summary_makes_it_raise(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_plotly", lambda: "")  # copying 5 MB a thousand times tests nothing
    whole = small(kind)
    for path in (path for path in paths(whole) if not OWN[kind] or path[0] in OWN[kind]):
        for junk in JUNK:
            broken = copy.deepcopy(whole)
            node: Any = broken
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = junk
            assert render(broken).endswith("</html>\n"), path


# The page as a reader sees it

PROBE = """
const main = all("main")[0].getBoundingClientRect();
const inside = ".effect, .option b, .option .axis, .chip, .bars > div, .count, .cell text, .node, .key, .taken dd, h1, .bound";
const cut = all(inside).filter((e) => {
  const r = e.getBoundingClientRect();
  return r.width && (r.left < main.left - 1 || r.right > main.right + 1);
});
const texts = all(".cell text").map((e) => e.getBoundingClientRect());
const touching = texts.flatMap((a, i) => texts.slice(i + 1).filter((b) =>
  a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom));
return {
  title: document.title,
  text: document.body.innerText,
  plots: all(".plot .main-svg").length > 0 ? all(".plot").filter((p) => p.querySelector(".main-svg")).length : 0,
  cut: cut.map((e) => e.outerHTML.slice(0, 90)),
  touching: touching.length,
  letters: Math.min(...all(".cell text").map((e) => e.getBoundingClientRect().height), 99),
  remarks: all(".beyond th small").map((e) => getComputedStyle(e).display),
  width: [document.documentElement.scrollWidth, innerWidth],
};
"""


@pytest.mark.parametrize(("kind", "plots"), [("cell", 3), ("mobile", 5), ("gradient", 9)])
def test_it_opens_without_network_and_without_complaint(kind: str, plots: int, tmp_path: Path) -> None:
    path = probed(render(sample(kind)), PROBE, tmp_path / "report.html")
    seen = visit(path, tmp_path, "--window-size=1280,5200")
    assert seen.console == [] and seen.requests == []
    assert seen.probe["plots"] == plots and seen.probe["touching"] == 0
    assert seen.probe["cut"] == [] and seen.probe["width"][0] <= seen.probe["width"][1]


@pytest.mark.parametrize("kind", ["cell", "mobile"])
def test_a_phone_shows_all_of_it(kind: str, tmp_path: Path) -> None:
    html = render(sample(kind)).replace("<main>", '<main style="width: 360px">')
    page = probed(html, PROBE, tmp_path / "phone.html")
    seen = visit(page, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert seen.console == [] and seen.probe["cut"] == [] and seen.probe["touching"] == 0
    assert seen.probe["letters"] >= 11, "the cell's letters can be read"
    assert "none" not in seen.probe["remarks"], "what is over the budget is said on a phone too"
    assert seen.probe["width"][0] <= seen.probe["width"][1], "the page itself must not scroll sideways"


def poison(value: Any, reserved: tuple[str, ...] = ("kind", "state")) -> Any:
    """Every text of a summary replaced by markup, names of choices included."""
    if isinstance(value, dict):
        poisoned = {key: item if key in reserved else poison(item) for key, item in value.items()}
        return {EVIL if "->" in str(key) else key: item for key, item in poisoned.items()}
    if isinstance(value, list):
        return [poison(item) for item in value]
    return EVIL if isinstance(value, str) else value


def test_markup_in_names_does_nothing(tmp_path: Path) -> None:
    summary = poison(sample("gradient") | {"trials": sample()["trials"], "learned": sample()["learned"]})
    summary["transfer"] = poison(sample("mobile")["transfer"])
    for one in summary["finalists"]:
        one["counted"][EVIL] = 12.0
    seen = visit(probed(render(summary), PROBE, tmp_path / "evil.html"), tmp_path)
    assert seen.console == [] and seen.requests == [] and seen.probe["title"] != "owned"
    assert EVIL in seen.probe["text"] and "img" not in {tag for tag, _ in Page(seen.dom).elements}
