"""Strips and bars are read back from their HTML and compared with the member that was drawn."""

from typing import Any
from xml.etree import ElementTree

import pytest

from befit.report import members
from befit.report.members import Parent

SUMMARY: dict[str, Any] = {
    "layers": ["mamba", "ffn", "attention", "ffn", "attention+ffn"],
    "widths": {"hidden": 160, "ffn": 400, "kv_heads": 2, "heads_per_kv": 4, "mamba_heads": 16, "mamba_head_dim": 20, "state": 0},
}  # fmt: skip
PARENT = Parent.of(SUMMARY)
WHOLE: dict[str, Any] = SUMMARY["widths"] | {"layers": [0, 1, 2, 3, 4]}
MEMBER = WHOLE | {"hidden": 120, "ffn": 100, "kv_heads": 1, "heads_per_kv": 4, "mamba_heads": 8, "mamba_head_dim": 15}
MEMBER["layers"] = [0, 1, 2, 4]


def boxes(html: str) -> list[list[tuple[str, float]]]:
    """For each layer, (class, height) of every box."""
    layers = [g for g in ElementTree.fromstring(html).iter("g") if g.get("class") == "layer"]
    assert [g.get("data-layer") for g in layers] == [str(i) for i in range(len(layers))]
    return [[(r.get("class") or "", float(r.get("height") or 0)) for r in g.iter("rect")] for g in layers]


def test_a_box_is_filled_as_far_as_its_layer_is_wide() -> None:
    mamba, ffn, attention, gone, both = boxes(members.strip(MEMBER, PARENT))
    full = ("ghost", 30.0)
    assert mamba == [full, ("mamba", 30 * 8 * 15 / (16 * 20))]
    assert ffn == [full, ("ffn", 7.5)] and attention == [full, ("attn", 15.0)]
    assert [hue for hue, _ in gone] == ["gone"]
    assert both == [full, ("attn", 15.0), full, ("ffn", 7.5)]
    filled = [r for r in ElementTree.fromstring(members.strip(MEMBER, PARENT)).iter("rect") if r.get("class") == "ffn"]
    assert [float(r.get("y") or 0) + float(r.get("height") or 0) for r in filled] == [30, 30], "from the bottom up"
    assert all(tall == 30 for layer in boxes(members.strip(WHOLE, PARENT)) for _, tall in layer)


def test_a_layer_may_have_an_ffn_of_its_own_width() -> None:
    ragged = MEMBER | {"ffn": [9, 100, 9, 300], "layers": [0, 1, 2, 4]}
    layers = boxes(members.strip(ragged, PARENT))
    assert layers[1][1] == ("ffn", 7.5) and layers[4][3] == ("ffn", 22.5)
    assert "<b>9–300</b> <small>2–75\u202f%</small>" in members.widths(ragged, PARENT)


def test_every_axis_of_the_parent_has_a_bar_and_no_other() -> None:
    html = members.widths(MEMBER, PARENT)
    assert html.count('class="width"') == 6 and "SSM state" not in html, "the parent has no state to speak of"
    assert "<b>120</b> <small>75\u202f%</small>" in html and 'style="width:75.0%"' in html


def test_the_words_tell_what_changed() -> None:
    assert members.describe(WHOLE, PARENT) == "5 of 5 layers, every width as in the parent"
    assert members.describe(MEMBER, PARENT) == (
        "4 of 5 layers, embedding 75\u202f%, FFN 25\u202f%, KV heads 50\u202f%, Mamba heads 50\u202f%, head channels 75\u202f%"
    )


@pytest.mark.parametrize("layers", [1, 22, 32, 33, 126])
def test_no_box_leaves_the_strip_and_letters_need_room(layers: int) -> None:
    parent = Parent(layers=("mamba",) * layers)
    strip = ElementTree.fromstring(members.strip({"layers": list(range(layers))}, parent))
    for box in strip.iter("rect"):
        x, span = (float((box.get(key) or "0").rstrip("%")) for key in ("x", "width"))
        assert x >= 0 and x + span <= 100.01
    words = ["".join(text.itertext()) for text in ElementTree.fromstring(members.letters(parent)).iter("text")]
    assert words == (["M"] * layers if layers <= 32 else [str(i) for i in range(0, layers, 10)])


def test_what_is_unknown_is_left_out() -> None:
    nothing = Parent.of({})
    assert nothing == Parent.of({"layers": None, "widths": {"hidden": "wide"}}) and nothing.layers == ()
    assert members.sizes([("a", "", MEMBER)], nothing) == "" == members.sizes([("a", "", None)], PARENT)
    odd = Parent(layers=("<b>", "ffn"))
    assert "&lt;b&gt;" in members.strip({"layers": [0, 1]}, odd) and members.kept({"layers": [1, "x", None]}) == [1]
    assert members.width({"ffn": [3, None, 1]}, "ffn") == (1, 3) and members.width({}, "ffn") is None
