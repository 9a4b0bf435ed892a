"""The panel as HTML: every size is there once, the largest is shown, and no quality is invented."""

import re
from typing import Any

import pytest

from befit.report.members import Parent
from befit.report.panel import panel

MIB = 2**20
PARENT = Parent(layers=("mamba", "ffn"), widths={"hidden": 100})


def size(mib: float, kl: float | None = None) -> dict[str, Any]:
    weights, cache = int(0.75 * mib * MIB), int(0.25 * mib * MIB)
    return {"params": weights // 4, "weight_bytes": weights, "cache_bytes": cache, "memory_bytes": weights + cache, "kl": kl,
            "member": {"hidden": 10 * mib, "layers": [0]}}  # fmt: skip


MOE = {"name": "experts <b>", "params": 3 * MIB, "active_params": MIB, "memory_bytes": 10 * MIB}
FACTS = {"members": [size(10, 0.01), size(4), size(5, 0.3), size(2)], "moe": MOE}


def states(html: str) -> list[tuple[int, bool, str]]:
    """(bytes needed, shown without a script, its text) of every size."""
    found = re.findall(r'<article class="state" data-need="(\d+)"[^>]*?( hidden)?>(.*?)</article>', html)
    return [
        (int(need), not hidden, re.sub(r"<[^>]*>", " ", body).replace("\u202f", " ")) for need, hidden, body in found
    ]


def test_every_size_is_there_and_only_the_largest_is_shown() -> None:
    found = states(panel(FACTS, PARENT, size(10)))
    assert [(need, shown) for need, shown, _ in found] == [
        (0, False),
        (2 * MIB, False),
        (4 * MIB, False),
        (5 * MIB, False),
        (10 * MIB, True),
    ]
    assert "20 % of the parent’s memory" in found[1][2] and "100 % of the parent’s memory" in found[-1][2]
    assert "weights 3.75 MiB, caches 1.25 MiB" in found[3][2]


def test_quality_is_measured_or_said_not_to_be() -> None:
    _, least, small, known, whole = [text for _, _, text in states(panel(FACTS, PARENT, {}))]
    assert re.search(r"KL to the parent +0\.300 +measured", known) and re.search(r"0\.0100 +measured", whole)
    for text in (least, small):
        assert re.search(r"KL to the parent +– +not measured; 0\.300 at 5\.00 MiB, the nearest that was", text)
    unknown = states(panel({"members": [size(2)]}, PARENT, {}))[1][2]
    assert re.search(r"– +not measured +", unknown) and "nearest" not in unknown


def test_the_mixture_of_experts_must_be_loaded_whole() -> None:
    html = panel(FACTS, PARENT, {})
    assert f'<article class="rival" data-need="{10 * MIB}">' in html and "Experts &lt;b&gt;" in html
    assert re.search(r'<p class="verdict" data-fits="yes"', html) and re.search(
        r'<p class="verdict" hidden data-fits="no"', html
    )
    assert "1.05\u202fM work on a token" in html
    assert 'class="rival"' not in panel({"members": [size(2)]}, PARENT, {})


def test_of_two_sizes_that_need_the_same_memory_the_measured_one_is_shown() -> None:
    for order in ([size(4), size(4, 0.2), size(4)], [size(4, 0.2), size(4)]):
        (_, _, text) = states(panel({"members": [*order, size(5)]}, PARENT, {}))[1]
        assert re.search(r"0\.200 +measured", text)
    assert len(states(panel({"members": [size(4), size(4), size(5)]}, PARENT, {}))) == 3


def test_bars_share_one_scale_that_holds_everything() -> None:
    html = panel({**FACTS, "moe": {**MOE, "memory_bytes": 20 * MIB}}, PARENT, {})
    high = float(re.findall(r'data-high="(\d+)"', html)[0])
    assert high > 20 * MIB and float(re.findall(r'data-low="(\d+)"', html)[0]) < 2 * MIB
    bars = [
        [float(w) for w in re.findall(r"width:([\d.]+)%", gauge)]
        for gauge in re.findall(r'class="gauge".*?</div>', html)
    ]
    assert [sum(bar) for bar in bars] == pytest.approx([100 * MIB * mib / high for mib in (2, 4, 5, 10, 20)], abs=0.02)


@pytest.mark.parametrize(
    "facts", [None, {}, {"members": []}, {"members": [{}]}, {"members": [{"memory_bytes": -1}]}, {"moe": MOE}]
)
def test_without_sizes_there_is_no_panel(facts: object) -> None:
    assert panel(facts, PARENT, {}) == ""
