"""Tables are read back cell by cell."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from befit.report import tables

G = "\u202f"


def cells(html: str) -> list[list[str]]:
    rows = ElementTree.fromstring(html).iter("tr")
    return [[" ".join(cell.itertext()).strip() for cell in row] for row in rows]


def model(scale: float, kl: float | None, **more: Any) -> dict[str, Any]:
    return {
        "params": 1e6 * scale,
        "weight_bytes": 2**22 * scale,
        "cache_bytes": 2**21 * scale,
        "prefill_ms": {"predicted": 10 * scale, "measured": 20 * scale},
        "kl": kl,
        **more,
    }


SUMMARY = {
    "parent": model(1, 0.0, name="tiny"),
    "child": model(0.5, 0.08, kl_before_heal=0.2),
    "baselines": {"uniform": model(0.6, 0.3, kl_before_heal=0.9)},
}


def test_measured_and_predicted_have_a_column_each() -> None:
    group, names, parent, child, _ = cells(tables.comparison(SUMMARY))
    assert group == ["", "KL to the parent", "Memory", "Parameters", "Prefill"]
    assert names == ["before healing", "final", "in all", "KV cache", "measured", "predicted"]
    assert parent[1:3] == ["–", "0"] and parent[5] == f"1.00{G}M" and "tiny" in parent[0]
    assert child[-2:] == [f"10.0{G}ms 50{G}%", f"5.00{G}ms 50{G}%"]
    assert child[3:5] == [f"3.00{G}MiB 50{G}%", f"1.00{G}MiB"]


@pytest.mark.parametrize(("kl", "best"), [(0.3, 1), (0.05, 2), (None, 1)])
def test_the_lowest_kl_is_marked_whoever_has_it(kl: float | None, best: int) -> None:
    table = cells(tables.comparison({**SUMMARY, "baselines": {"uniform": model(0.6, kl)}}))
    marked = [i for i, row in enumerate(table[2:]) if any("best" in cell.split() for cell in row)]
    assert marked == [best]


def test_a_table_of_what_there_is() -> None:
    assert tables.comparison({}) == "" and tables.comparison({"parent": {"name": "x"}}) == ""
    only = cells(tables.comparison({"parent": {"params": 1000, "name": "x"}}))
    assert only[0] == ["", "Parameters"] and len(only) == 3
    orphan = cells(tables.comparison({"child": model(1, 0.1)}))
    assert "best" in orphan[2][1] and "%" not in orphan[2][2]


def bound(value: float, op: str = "<=", headroom: float | None = None) -> str:
    return tables.budget(
        {
            "text": "latency<=100ms",
            "met": True,
            "bounds": [{"cost": "latency_ms", "op": op, "value": 100.0, "given": "60%"}],
            "child": [{"cost": "latency_ms", "value": value, "kind": "measured", "headroom": headroom}],
        }
    )


def text(html: str) -> str:
    return re.sub(r"[ \n]+", " ", " ".join(ElementTree.fromstring(html).itertext())).strip()


def test_a_bound_says_value_limit_headroom_and_kind() -> None:
    said = text(bound(90.0))
    assert f"latency 90.0{G}ms at most" in said
    assert f"at most 100{G}ms (60% of the parent’s) 10{G}% to spare measured" in said
    assert 'class="badge good">met<' in bound(90.0)
    assert f"3{G}% to spare" in text(bound(90.0, headroom=0.03)), "a stated headroom is taken as it is"


def test_a_broken_bound_is_marked() -> None:
    assert f"20{G}% over" in text(bound(120.0)) and 'class="bound over"' in bound(120.0)
    assert f"50{G}% over" in text(bound(50.0, ">=")) and f"50{G}% to spare" in text(bound(150.0, ">="))
    assert "at least" in text(bound(150.0, ">="))


@pytest.mark.parametrize(("met", "verdict"), [(True, "met"), (False, "not met"), (None, "not checked yet")])
def test_the_badge(met: bool | None, verdict: str) -> None:
    assert text(tables.budget({"text": "memory=70%", "met": met})) == f"Budget memory=70% {verdict}"
    assert tables.budget(None) == "" and tables.budget({}) == ""


def test_stages_count_only_the_time_of_this_run() -> None:
    stages = [
        {"name": "rank", "seconds": 1.0, "reused": True},
        {"name": "heal", "seconds": 30.0, "reused": False, "note": "on <GPU>"},
        {"name": "export", "seconds": None},
    ]
    rank, heal, export, total = cells(tables.stages(stages))
    assert rank == ["rank", f"1.0{G}s", "reused"] and heal == ["heal", f"30{G}s", "on <GPU>"]
    assert export == ["export", "–", ""] and total[:2] == ["this run", f"30{G}s"]
    assert tables.stages(None) == ""


def test_the_funnel_counts() -> None:
    rows = [{"stage": "built", "count": 96}, {"stage": "possible", "count": 1.2e20}, {"stage": "open", "count": None}]
    said = text(tables.funnel(rows))
    assert said == f"built 96 possible 1.2{G}×{G}10²⁰ open –" and tables.funnel([]) == ""
