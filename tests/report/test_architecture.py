"""The picture is read back from its SVG and compared with the architecture that was drawn."""

from typing import Any
from xml.etree import ElementTree

import pytest

from befit.report.architecture import describe, picture, thumbnail, variant_name


def sub_blocks(heads: int | None, width: int | None, window: int | None = None) -> dict[str, Any]:
    attention: Any = {"kv_heads": heads, "window": window} if heads else "noop"
    return {"attention": attention, "ffn": {"width": width} if width else "noop"}


PARENT = {"blocks": [sub_blocks(4, 512) for _ in range(4)]}
CHILD = {
    "blocks": [
        sub_blocks(4, 512),
        sub_blocks(2, 128, window=64),
        {"attention": "linear", "ffn": "linear"},
        sub_blocks(None, None),
    ]
}


def rows(html: str) -> list[ElementTree.Element]:
    return [g for g in ElementTree.fromstring(html).iter("g") if g.get("class") == "layer"]


def boxes(row: ElementTree.Element, hue: str) -> list[tuple[float, float]]:
    """(width in percent, height in pixels) of the bars of one colour."""
    return [
        (float((r.get("width") or "").rstrip("%")), float(r.get("height") or 0))
        for r in row.iter("rect")
        if r.get("class") == hue
    ]


def labels(row: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in row.iter("text")]


def test_every_layer_shows_its_sub_blocks() -> None:
    full, narrow, linear, nothing = rows(picture(CHILD, PARENT))
    assert [labels(row) for row in (full, narrow, linear, nothing)] == [
        ["0", "4", "512"],
        ["1", "2 w64", "128"],
        ["2", "linear", "linear"],
        ["3", "no-op", "no-op"],
    ]
    assert len(boxes(full, "attn")) == 4 and len(boxes(narrow, "attn")) == 2 and not boxes(nothing, "attn")
    assert len(boxes(narrow, "ghost")) == 4 + 1
    assert boxes(narrow, "attn")[0][1] == boxes(full, "attn")[0][1] / 2, "a window is a bar of half the height"
    assert boxes(narrow, "ffn")[0][0] == pytest.approx(boxes(full, "ffn")[0][0] / 4), "bars are proportional"
    assert boxes(linear, "ffn")[0][1] == 3 and len(boxes(nothing, "noop")) == 2


HYBRID = {
    "blocks": [
        {"attention": {"mamba_heads": 8}, "ffn": "noop"},
        sub_blocks(None, 512),
        sub_blocks(4, None),
        {"attention": {"mamba_heads": 8}, "ffn": "noop"},
        {"attention": {"mamba_heads": 8}, "ffn": "noop"},
    ]
}


def test_a_hybrid_shows_one_sub_block_a_layer() -> None:
    """Mamba heads have a colour and a scale of their own; only what the parent had can be dropped."""
    child = {"blocks": [{"attention": {"mamba_heads": 4}, "ffn": "noop"}, *HYBRID["blocks"][1:3]]}
    child["blocks"] += [{"attention": "linear", "ffn": "noop"}, sub_blocks(None, None)]
    scan, ffn, attention, linear, nothing = rows(picture(child, HYBRID))
    assert [labels(r) for r in (scan, ffn, attention, linear, nothing)] == [
        ["0", "4"], ["1", "512"], ["2", "4"], ["3", "linear"], ["4", "no-op"],
    ]  # fmt: skip
    assert len(boxes(scan, "mamba")) == 4 and len(boxes(scan, "ghost")) == 8 and len(boxes(attention, "attn")) == 4
    assert len(boxes(linear, "mamba")) == len(boxes(nothing, "noop")) == 1 and not boxes(ffn, "noop")
    assert scan.findtext("title") == "Layer 0: Mamba-2 4 heads, was 8"
    assert ">KV or Mamba heads<" in picture(child, HYBRID)
    assert describe(child, HYBRID) == (
        "5 layers: 1 Mamba sub-block dropped, 1 Mamba sub-block made linear, Mamba heads 24 → 4."
    )
    assert (
        len([r for r in ElementTree.fromstring(thumbnail(child, HYBRID)).iter("rect") if r.get("class") == "mamba"])
        == 2
    )
    assert variant_name({"mamba_heads": 8}) == "mamba8"


def test_titles_say_it_in_words() -> None:
    titles = [row.findtext("title") or "" for row in rows(picture(CHILD, PARENT))]
    assert titles[0] == "Layer 0: attention 4 KV heads, as before; FFN 512 neurons wide, as before"
    assert "2 KV heads with a window of 64 tokens, was 4" in titles[1]
    assert titles[3] == "Layer 3: attention no-op, was 4; FFN no-op, was 512"


@pytest.mark.parametrize("layers", [1, 8, 42, 43, 80, 126])
def test_every_layer_is_drawn_once_and_in_order(layers: int) -> None:
    arch = {"blocks": [sub_blocks(8, 1024)] * layers}
    drawn = [int(row.get("data-layer") or -1) for row in rows(picture(arch, arch))]
    assert drawn == list(range(layers))


def test_nothing_sticks_out_of_its_place() -> None:
    wide = {"blocks": [sub_blocks(128, 28672), sub_blocks(1, 256)]}
    for parent in (PARENT, wide, None):
        for row in rows(picture(wide, parent)):
            for rect in row.iter("rect"):
                x, width = (float((rect.get(key) or "0").rstrip("%")) for key in ("x", "width"))
                assert x >= 0 and x + width <= 100.01


@pytest.mark.parametrize("arch", [None, {}, {"blocks": []}, {"blocks": None}, {"blocks": [1]}, "arch"])
def test_no_architecture_is_no_picture(arch: object) -> None:
    assert picture(arch, PARENT) == "" and thumbnail(arch, PARENT) == "" and describe(arch, PARENT) == ""


def test_an_unknown_parent_or_sub_block_is_drawn_as_far_as_it_goes() -> None:
    odd = {"blocks": [{"attention": {"kv_heads": "two"}, "ffn": None}, sub_blocks(2, 64)]}
    assert [labels(row)[1:] for row in rows(picture(odd, None))] == [["?", "?"], ["2", "64"]]
    assert len(rows(picture(CHILD, {"blocks": PARENT["blocks"][:1]}))) == 4


def test_the_sentence_counts() -> None:
    assert describe(CHILD, PARENT) == (
        "4 layers: 1 attention sub-block dropped, 1 attention sub-block made linear, 1 FFN sub-block dropped, "
        "1 FFN sub-block made linear, KV heads 16 → 6, FFN neurons 2\u202f048 → 640, 1 sliding window."
    )
    assert describe(PARENT, PARENT) == "4 layers: all as in the parent."


def test_the_miniature_is_proportional() -> None:
    shapes = list(ElementTree.fromstring(thumbnail(CHILD, PARENT)).iter("rect"))
    ffn = {float(r.get("y") or 0) // 1: float(r.get("width") or 0) for r in shapes if r.get("class") == "ffn"}
    assert ffn[0.0] == pytest.approx(4 * ffn[1.0]) and 3.0 not in ffn
    assert ElementTree.fromstring(thumbnail(CHILD, PARENT)).get("viewBox") == "0 0 100 4"


def test_names_are_those_of_the_scores() -> None:
    named = [{"kv_heads": 4, "window": None}, {"kv_heads": 4, "window": 128}, {"width": 512}, "linear", "noop", None, 3]
    assert [variant_name(n) for n in named] == ["kv4", "kv4w128", "ffn512", "linear", "noop", None, None]
