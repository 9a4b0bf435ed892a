"""The page of a puzzle run as text, and as a reader sees it: opened from disk in headless Chromium with the network cut off."""

import copy
import hashlib
import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from tests.report.browser import EVIL, JUNK, Page, Seen, paths, probed, visit

from befit.report import frame
from befit.report.puzzle import headline, render

SAMPLE = Path(__file__).parent / "data" / "summary.json"


def sample() -> dict[str, Any]:
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


def deep(layers: int) -> dict[str, Any]:
    """The sample stretched to many layers."""
    summary = sample()
    for model in (summary["parent"], summary["child"], *summary["baselines"].values()):
        model["arch"]["blocks"] = (model["arch"]["blocks"] * layers)[:layers]
    summary["scores"]["layers"] = (summary["scores"]["layers"] * layers)[:layers]
    return summary


# The page as text


def test_the_headline_says_the_result_in_one_sentence() -> None:
    summary = sample()
    assert headline(summary) == (
        "A child with 59\u202f% of the latency and 61\u202f% of the memory of befit embedded parent 3.4M, KL 0.083 to it"
    )
    # An absolute bound: the child's share of what the parent itself takes.
    summary["parent"] |= {"name": "P", "weight_bytes": 75, "cache_bytes": 25}
    summary["budget"] = {
        "bounds": [{"cost": "memory_bytes", "op": "<=", "value": 80, "given": "80"}],
        "child": [{"cost": "memory_bytes", "value": 70}],
    }
    assert headline(summary) == "A child with 70\u202f% of the memory of P, KL 0.083 to it"
    assert headline({"child": {"params": 3}, "parent": {"name": "P", "params": 4}}) == (
        "A child with 75\u202f% of the parameters of P"
    )
    assert headline({"parent": {"name": "P"}}) == "P, not fitted yet"
    assert headline({"title": "T"}) == "T"


def test_nothing_is_loaded_from_anywhere() -> None:
    page = Page(render(sample()))
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "data")
    ]
    assert addresses == []
    assert "link" not in {tag for tag, _ in page.elements}
    assert not re.search(r"@import|url\(", render(sample()).partition("</style>")[0])


def test_the_policy_allows_exactly_the_two_scripts() -> None:
    html = render(sample())
    policy = next(a["content"] for tag, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy")
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    hashes = [f"'sha256-{b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    assert len(scripts) == 2 and policy.endswith("script-src " + " ".join(hashes))
    assert policy.startswith("default-src 'none'")


def test_plotly_comes_once_and_only_if_needed() -> None:
    assert render(sample()).count("plotly.js v") == 1
    bare = render({"parent": {"name": "P"}})
    assert "plotly" not in bare and "script-src 'none'" in bare and len(bare) < 20_000


def test_an_empty_run_has_a_page() -> None:
    text = "".join(Page(render({})).text)
    assert "not finished yet" in text and "None" not in text and "nan" not in text


def test_what_the_user_named_is_text() -> None:
    page = Page(render(poison(sample())))
    assert {"img", "a"}.isdisjoint({tag for tag, _ in page.elements})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert sum(tag == "script" and not attributes for tag, attributes in page.elements) == 2
    assert EVIL in "".join(page.text)


def poison(value: Any) -> Any:
    """Every text of a summary replaced by markup, keys of open mappings too."""
    if isinstance(value, dict):
        poisoned = {key: poison(item) for key, item in value.items()}
        if "baselines" in poisoned:
            poisoned["baselines"] = {EVIL: poisoned["baselines"]["uniform"]}
            poisoned["scores"]["layers"][0]["attention"] = {EVIL: 0.5}
            poisoned["front"][0]["costs"] = {EVIL: 1.0}
        return poisoned
    if isinstance(value, list):
        return [poison(item) for item in value]
    return EVIL if isinstance(value, str) and value not in ("linear", "noop") else value


def small() -> dict[str, Any]:
    """The sample with one baseline, two layers and two points in a figure: every kind of node, and little to draw."""
    summary = deep(2)
    summary["baselines"] = {"uniform": summary["baselines"]["uniform"]}
    summary["front"] = summary["front"][:2]
    summary["accuracy"] |= {key: summary["accuracy"][key][:2] for key in ("fit", "held_out")}
    summary["heal"] |= {key: summary["heal"][key][:3] for key in ("steps", "loss")}
    return summary


def test_no_summary_makes_it_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "_plotly", lambda: "")  # copying 5 MB two thousand times tests nothing
    whole = small()
    for path in paths(whole):
        for junk in JUNK:
            broken = copy.deepcopy(whole)
            node = broken
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = junk
            html = render(broken)
            assert html.endswith("</html>\n"), path


# The page as a reader sees it

PROBE = """return {
  title: document.title,
  text: document.body.innerText,
  table: all(".compare tbody tr").map((row) => [...row.cells].map((cell) => cell.innerText)),
  layers: all("g.layer").map((g) => [+g.dataset.layer, box(g)]),
  labels: all("g.layer .label").map((t) => [t.textContent, getComputedStyle(t).fontSize, box(t)]),
  points: all(".scatterlayer .points path").length,
  cells: all(".heatmaplayer image").length,
  bars: all(".barlayer path").length,
  lines: all(".scatterlayer path.js-line").length,
  ticks: all(".plot text").map((t) => t.textContent),
  width: [document.documentElement.scrollWidth, innerWidth],
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(all("h1")[0]).color,
};"""


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("desktop")
    return visit(probed(render(sample()), PROBE, folder / "report.html"), folder, "--window-size=1280,4000")


def test_it_opens_without_network_and_without_complaint(desktop: Seen) -> None:
    assert desktop.console == []
    assert desktop.requests == []


def test_the_checks_see_a_request_and_an_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://example.invalid/a.png'><script>nonsense()</script>")
    seen = visit(bad, tmp_path)
    assert seen.requests == ["http://example.invalid/a.png"] and "nonsense is not defined" in seen.console[0]


def test_the_reader_sees_the_result_the_budget_and_the_table(desktop: Seen) -> None:
    text = " ".join(desktop.probe["text"].split())
    assert "A child with 59 % of the latency and 61 % of the memory of befit embedded parent 3.4M" in text
    assert "Budget latency=60%, memory=70% met" in text and "2 % to spare measured" in text
    assert "was off by 5 % at the median and 12 % at worst" in text
    rows = {row[0].split("\n")[0]: row[1:] for row in desktop.probe["table"]}
    assert list(rows) == ["parent", "child", "uniform", "depth", "greedy", "random"]
    assert rows["child"][1].split() == ["0.0832", "best"] and rows["greedy"][1] == "0.0975"
    child = sample()["child"]
    assert rows["child"][8].split()[0] == f"{child['prefill_ms']['measured']:.1f}"
    assert rows["child"][9].split()[0] == f"{child['prefill_ms']['predicted']:.1f}"
    assert 'befit.load("child")' in text and "trust_remote_code=True" in text


def test_the_figures_are_drawn(desktop: Seen) -> None:
    seen, summary = desktop.probe, sample()
    assert seen["cells"] == 2, "attention and FFN heat maps"
    assert seen["bars"] == len(summary["ranking"]["block_influence"])
    fronts = sum((p["kl"] is not None) + (p["kl_sum"] is not None) for p in summary["front"]) * 3
    predictions = sum(len(summary["accuracy"][key]) for key in ("fit", "held_out"))
    dots = 2 * len(summary["child"]["arch"]["blocks"])
    assert seen["points"] == fronts + predictions + dots
    assert seen["lines"] == 3 + 3 + 1, "three fronts, three diagonals, one healing curve"
    assert {"kv2", "ffn256", "latency, ms", "memory, MiB", "healing loss"} <= set(seen["ticks"])


def test_the_architecture_is_drawn_layer_by_layer(desktop: Seen) -> None:
    layers = desktop.probe["layers"]
    assert [number for number, _ in layers] == list(range(8))
    tops = [box[1] for _, box in layers]
    assert tops == sorted(tops) and all(box[2] > 900 and box[3] > 15 for _, box in layers)
    assert {"no-op", "linear", "4 w64"} <= {label for label, _, _ in desktop.probe["labels"]}


def test_eighty_layers_are_legible_on_a_narrow_screen_in_the_dark(tmp_path: Path) -> None:
    page = probed(render(deep(80)), PROBE, tmp_path / "deep.html")
    seen = visit(page, tmp_path, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    probe = seen.probe
    assert seen.console == [] and [number for number, _ in probe["layers"]] == list(range(80))
    assert all(float(size.removesuffix("px")) >= 10 and box[3] >= 9 for _, size, box in probe["labels"])
    assert probe["width"][0] <= probe["width"][1], "the page itself must not scroll sideways"
    brightness = [sum(map(int, re.findall(r"\d+", probe[key])[:3])) for key in ("paper", "ink")]
    assert brightness[0] < 150 and brightness[1] > 600


def test_markup_in_names_does_nothing(tmp_path: Path) -> None:
    seen = visit(probed(render(poison(sample())), PROBE, tmp_path / "evil.html"), tmp_path)
    assert seen.console == [] and seen.requests == []
    assert seen.probe["title"].endswith("to it"), "no script of the name's ran"
    assert EVIL in seen.probe["text"] and any(EVIL in tick for tick in seen.probe["ticks"])
    elements = Page(seen.dom).elements
    assert "img" not in {tag for tag, _ in elements}
    assert not [name for _, attributes in elements for name in attributes if name.startswith("on")]


def test_table_and_picture_need_no_javascript(tmp_path: Path) -> None:
    path = probed(render(sample()), PROBE, tmp_path / "plain.html")
    # Only the probe may run: the page's own scripts are struck from the policy.
    html = re.sub(r"(script-src 'sha256-[^']*')[^\"]*", r"\1", path.read_text(encoding="utf-8"), count=1)
    path.write_text(html, encoding="utf-8")
    seen = visit(path, tmp_path, "--window-size=1280,4000")
    assert len(seen.console) == 2 and all("Content Security Policy" in line for line in seen.console)
    assert seen.probe["cells"] == seen.probe["points"] == 0
    assert [number for number, box in seen.probe["layers"] if box[2] > 900] == list(range(8))
    assert [row[0].split("\n")[0] for row in seen.probe["table"]][:2] == ["parent", "child"]
    assert render(sample()).count("<noscript>This figure needs JavaScript") == html.count('<div class="plot"')
