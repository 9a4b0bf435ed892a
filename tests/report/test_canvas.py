"""The fragment of a figure holds exactly what was given, and nothing in it can leave its place."""

import json
import re

import pytest

from befit.report import canvas


def test_data_come_back_and_cannot_end_the_block() -> None:
    evil = "</script><script>alert(1)</script><!--"
    fragment = canvas.plot([{"name": evil}], {"title": {"text": evil}}, 100, 'a "label" <b>')
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', fragment)
    assert len(blocks) == 1 and fragment.count("<script") == 1 and "<!--" not in fragment
    spec = json.loads(blocks[0])
    assert spec["data"] == [{"name": evil}] and spec["layout"]["title"]["text"] == evil
    assert spec["layout"]["height"] == 100
    assert 'aria-label="a &quot;label&quot; &lt;b&gt;"' in fragment


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canvas.plot([{"x": [float("nan")]}], {}, 100, "")


def test_labels_hold_no_markup() -> None:
    assert canvas.safe('<a href="x">&</a>') == '&lt;a href="x"&gt;&amp;&lt;/a&gt;'


def test_the_legend_escapes_and_the_names_keep_their_order() -> None:
    assert "&lt;i&gt;" in canvas.key(("dot", "<i>")) and "<b>◆</b>polished" in canvas.key(("◆", "polished"))
    assert canvas.union([{"b": 1, "a": 2}, {"c": 3, "a": 4}]) == ["b", "a", "c"]


def test_few_decades_are_labelled_between_their_powers() -> None:
    narrow, wide = canvas.decades([0.04, 0.9]), canvas.decades([0.001, 20.0])
    assert narrow["ticktext"] == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5"]
    assert wide["tickvals"] == pytest.approx([0.001, 0.01, 0.1, 1, 10, 100]) and wide["type"] == "log"


def test_an_axis_can_be_overridden() -> None:
    assert canvas.axis("ms", showgrid=False)["title"]["text"] == "ms"
    assert canvas.axis(gridcolor="x")["gridcolor"] == "x"
    assert canvas.log(True)["type"] == "log" and "type" not in canvas.log(False)
