"""The page of an elastic run as text, and as a reader sees it: the slider moved in headless Chromium without a network."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.report.browser import EVIL, JUNK, Page, Seen, paths, probed, visit

from befit.report import frame
from befit.report.elastic import headline, render

SAMPLE = Path(__file__).parent / "data" / "elastic.json"


def sample() -> dict[str, Any]:
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


def without(value: Any, *keys: str) -> Any:
    """A summary in which some keys are missing wherever they stood."""
    if isinstance(value, dict):
        return {key: without(item, *keys) for key, item in value.items() if key not in keys}
    return [without(item, *keys) for item in value] if isinstance(value, list) else value


def small() -> dict[str, Any]:
    """The sample with every kind of node and little to draw."""
    summary = sample()
    summary["layers"] = summary["layers"][:3]
    summary["members"] = summary["members"][1:3]
    summary["baselines"] = {key: summary["baselines"][key][:1] for key in ("uniform", "separate")}
    ranking = summary["ranking"]
    summary["ranking"] = {"hidden": ranking["hidden"][:3], "heads": {key: value[:3] for key, value in ranking["heads"].items()},
                          "depth": {key: value[:3] for key, value in ranking["depth"].items()}}  # fmt: skip
    training = summary["training"]
    training["curves"] = {key: value[:2] for key, value in training["curves"].items()}
    training["members_over_time"] = training["members_over_time"][1:5]
    summary["panel"]["members"] = summary["panel"]["members"][-3:]
    summary["stages"] = summary["stages"][:1]
    return summary


# The page as text


def test_the_headline_says_the_result_in_one_sentence() -> None:
    summary = sample()
    assert headline(summary).replace("\u202f", " ") == (
        "befit embedded hybrid 3.5M, nested: 75 % and 50 % of its parameters at KL 0.057 and 0.19, cut from one file"
    )
    summary["members"][-1]["kl"] = None
    assert (
        headline(summary).replace("\u202f", " ").endswith("nested: 75 % and 50 % of its parameters, cut from one file")
    )
    summary["members"] = [{"budget": share, "kl": 1 - share} for share in (1.0, 0.9, 0.8, 0.7, 0.6)]
    assert "nested: 90 % and 60 % of its parameters at KL 0.10 and 0.40" in headline(summary).replace("\u202f", " ")
    assert headline({"parent": {"name": "P"}}) == "P, not yet nested" and headline({"title": "T"}) == "T"


def test_nothing_is_loaded_from_anywhere_and_three_scripts_run() -> None:
    html = render(sample())
    page = Page(html)
    assert not [name for _, attributes in page.elements for name in attributes if name in ("src", "href", "data")]
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert sum(tag == "script" and not attributes for tag, attributes in page.elements) == 3
    assert not re.search(r"@import|url\(", html.partition("</style>")[0]) and html.count("plotly.js v") == 1


def test_a_run_that_has_only_begun_has_a_page() -> None:
    for summary in ({"kind": "elastic"}, {"kind": "elastic", "members": [], "panel": None}):
        html = render(summary)
        assert "not yet nested" in html and "plotly" not in html and "None" not in html and "script-src 'none'" in html


@pytest.mark.parametrize(
    "key", ["baselines", "training", "ranking", "storage", "panel", "stages", "widths", "layers", "parent", "kl"]
)
def test_any_part_may_be_missing(key: str) -> None:
    text = "".join(Page(render(without(sample(), key))).text)
    assert "None" not in text and "nan" not in text


def test_no_summary_makes_it_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_plotly", lambda: "")  # copying 5 MB a thousand times tests nothing
    whole = small()
    for path in paths(whole):
        for junk in JUNK:
            broken = copy.deepcopy(whole)
            node: Any = broken
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = junk
            assert render(broken).endswith("</html>\n"), path


def poison(value: Any) -> Any:
    """Every text of a summary replaced by markup, and a baseline and a curve of that name."""
    if isinstance(value, dict):
        poisoned = {key: poison(item) for key, item in value.items()}
        if "uniform" in poisoned:
            poisoned[EVIL] = poisoned["uniform"]
        if "0.75" in poisoned:
            poisoned[EVIL] = poisoned["0.75"]
        return poisoned
    if isinstance(value, list):
        return [poison(item) for item in value]
    return EVIL if isinstance(value, str) else value


# The page as a reader sees it

PROBE = """
const state = () => ({
  shown: all(".state:not([hidden])").map((s) => +s.dataset.need),
  verdict: all(".rival .verdict:not([hidden])").map((v) => v.innerText),
  said: all(".said")[0].innerText,
  room: all("output")[0].innerText,
  told: all("#memory")[0].getAttribute("aria-valuetext"),
  line: box(all(".state:not([hidden]) .room")[0] || document.body)[0],
  bar: all(".state:not([hidden]) .gauge i").map(box).at(-1),
});
const slider = all("#memory")[0];
const [low, high] = [+all(".memory")[0].dataset.low, +all(".memory")[0].dataset.high];
const moved = { start: state() };
for (const bytes of BYTES) {
  slider.value = Math.ceil((1000 * (bytes - low)) / (high - low));
  slider.dispatchEvent(new Event("input"));
  moved[bytes] = state();
}
const steps = [];
for (let i = 0; i < 40; i++) {
  all("button[data-step='1']")[0].click();
  steps.push(state().shown[0]);
}
const right = (e) => e.getBoundingClientRect().right;
const main = all("main")[0].getBoundingClientRect();
const inside = ".width b, .width small, .axis, .letters text, .strip, .store, .heap, .bumps text, .facts dd, .key, button";
const cut = all(inside).filter((e) => {
  const r = e.getBoundingClientRect();
  return r.width && (r.left < main.left - 1 || r.right > main.right + 1);
});
return {
  title: document.title,
  text: document.body.innerText,
  moved, steps,
  control: box(all(".control")[0]),
  layers: all(".size").map((s) => s.querySelectorAll(".boxes .layer").length),
  gone: all(".size").map((s) => s.querySelectorAll(".gone").length),
  bars: all(".size").map((s) => [...s.querySelectorAll(".thin i:last-child")].map((i) => i.style.width)),
  bumps: all(".bump").length,
  plots: all(".plot .main-svg").length,
  ticks: all(".plot text").map((t) => t.textContent),
  cut: cut.map((e) => e.outerHTML.slice(0, 80)),
  over: Math.max(...all(".width b, .width small").map((e) => right(e) - right(e.closest(".width")))),
  width: [document.documentElement.scrollWidth, innerWidth],
};
"""


def probe(summary: dict[str, Any], *memory: float) -> str:
    return PROBE.replace("BYTES", json.dumps(list(memory)))


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("desktop")
    needs = [entry["memory_bytes"] for entry in sample()["panel"]["members"]]
    html = probed(render(sample()), probe(sample(), needs[5], 0.9 * needs[0]), folder / "report.html")
    return visit(html, folder, "--window-size=1280,5200")


def test_it_opens_without_network_and_without_complaint(desktop: Seen) -> None:
    assert desktop.console == [] and desktop.requests == []
    assert desktop.probe["cut"] == [] and desktop.probe["width"][0] <= desktop.probe["width"][1]
    text = " ".join(desktop.probe["text"].split())
    assert "never trained on" in text and "befit cut RUN --budget" in text and "times as much" in text


def test_the_slider_shows_the_largest_size_that_fits(desktop: Seen) -> None:
    entries, moved = sample()["panel"]["members"], desktop.probe["moved"]
    needs = [entry["memory_bytes"] for entry in entries]
    assert moved["start"]["shown"] == [needs[-1]] and moved["start"]["verdict"] == ["fits"]
    at = moved[str(needs[5])]
    fits = [need for need in needs if need <= float(at["room"].split()[0]) * 2**20 * 1.003]
    assert at["shown"] == [needs[5]] == [fits[-1]] and at["verdict"] == ["does not fit"]
    assert "The mixture of experts does not: it needs 19.3" in at["said"] and at["told"] == at["room"]
    left, _, width, _ = at["bar"]
    assert left + width <= at["line"] + 2, "what fits ends before the line of what there is"
    nothing = moved[json.dumps(0.9 * needs[0])]
    assert nothing["shown"] == [0] and nothing["said"].startswith("Not even the smallest member fits")


def test_the_buttons_walk_through_every_size(desktop: Seen) -> None:
    needs = [entry["memory_bytes"] for entry in sample()["panel"]["members"]]
    assert desktop.probe["steps"] == needs + [needs[-1]] * (40 - len(needs))


def test_each_budget_shows_what_it_keeps(desktop: Seen) -> None:
    members = [entry["member"] for entry in sample()["members"]]
    assert desktop.probe["layers"] == [22] * len(members)
    assert desktop.probe["gone"] == [22 - len(member["layers"]) for member in members]
    shares = [f"{100 * member['hidden'] / 160:g}%" for member in members]
    assert [bars[0] for bars in desktop.probe["bars"]] == shares
    assert desktop.probe["bumps"] == 22 and desktop.probe["plots"] > 10
    assert {"parameters, % of the parent", "embedding channels", "normalised MSE of the output"} <= set(
        desktop.probe["ticks"]
    )


def test_a_phone_shows_all_of_a_deep_network(tmp_path: Path) -> None:
    summary = sample()
    summary["layers"] = (summary["layers"] * 5)[:98]
    summary["widths"]["ffn"] = 15_680
    for entry in summary["members"]:
        entry["member"]["ffn"] = [11_257 + layer for layer in entry["member"]["layers"]]
    html = render(summary).replace("<main>", '<main style="width: 360px">')
    page = probed(html, probe(summary), tmp_path / "deep.html")
    seen = visit(page, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert seen.console == [] and seen.probe["layers"] == [98] * 4
    assert seen.probe["cut"] == [] and seen.probe["over"] <= 8, "nothing leaves its place, no width runs into the next"
    assert seen.probe["width"][0] <= seen.probe["width"][1], "the page itself must not scroll sideways"


def test_markup_in_names_does_nothing(tmp_path: Path) -> None:
    seen = visit(probed(render(poison(sample())), probe({}), tmp_path / "evil.html"), tmp_path)
    assert seen.console == [] and seen.requests == [] and seen.probe["title"] != "owned"
    assert EVIL in seen.probe["text"] and "img" not in {tag for tag, _ in Page(seen.dom).elements}


PLAIN = """return {
  shown: all(".state:not([hidden])").map((s) => +s.dataset.need),
  control: all(".control")[0].hidden,
  said: all(".said")[0].innerText,
  boxes: all(".size .boxes").map((b) => b.getBoundingClientRect().height),
};"""


def test_the_largest_size_needs_no_javascript(tmp_path: Path) -> None:
    path = probed(render(sample()), PLAIN, tmp_path / "plain.html")
    html = re.sub(r"(script-src 'sha256-[^']*')[^\"]*", r"\1", path.read_text(encoding="utf-8"), count=1)
    path.write_text(html, encoding="utf-8")
    seen = visit(path, tmp_path, "--window-size=1280,4000")
    assert len(seen.console) == 3 and all("Content Security Policy" in line for line in seen.console)
    assert seen.probe["shown"] == [sample()["parent"]["memory_bytes"]] and seen.probe["control"] is True
    assert "22 of 22 layers, every width as in the parent. The mixture of experts fits." in seen.probe["said"]
    assert seen.probe["boxes"] == [30] * 4
