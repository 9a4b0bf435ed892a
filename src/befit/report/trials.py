"""The trials of a search as figures: accuracy against cost, and whether the order holds on other data."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from befit.report import canvas, finalists
from befit.report import quantities as q

_MOST_PANELS = 3
"""Costs drawn side by side; the rest are in summary.json."""

HIDDEN: dict[str, Any] = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
"""A second axis over the first, 0 to 1 from the bottom to the top of the panel."""

Point = tuple[float, float]


def front(summary: Mapping[str, Any]) -> str:
    """Every scored trial: accuracy against each cost of the front, the bound, and what became of the finalists."""
    rows = [row for row in q.entries(summary.get("trials")) if q.number(row.get("value")) is not None]
    ends = [one for one in q.entries(summary.get("finalists")) if q.number(one.get("validation")) is not None]
    axes = list(dict.fromkeys(str(axis) for axis in q.sequence(summary.get("axes"))))
    panels = [_front_panel(summary, axis, rows, ends) for axis in axes]
    drawn = [panel for panel in panels if panel][:_MOST_PANELS]
    if not drawn:
        return ""
    marks = [("dot full", "on the front"), ("dot", "other trials")] * bool(rows)
    trained = any(q.number(one.get("epochs")) for one in ends)
    marks += [("◆", "finalists, trained fully" if trained else "finalists")] * bool(ends) + [
        ("dot chosen", "chosen")
    ] * bool(finalists.chosen(summary))
    bounded = any(str(bound.get("cost")) in axes for bound in q.entries(summary.get("bounds")))
    return f'<div class="panels split">{"".join(drawn)}</div>' + canvas.key(*marks, *[("dash", "the bound")] * bounded)


def transfer(facts: Any) -> str:
    """Each arch's accuracy here against the one on the second dataset."""
    facts = q.mapping(facts)
    rows = [
        (here, there, row)
        for row in q.entries(facts.get("rows"))
        if (here := q.number(row.get("here"))) is not None and (there := q.number(row.get("there"))) is not None
    ]
    if len(rows) < 2:
        return ""
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [100 * here for here, _, _ in rows],
            "y": [100 * there for _, there, _ in rows],
            "text": [f"here {q.accuracy(here)}<br>there {q.accuracy(there)}" for here, there, _ in rows],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": canvas.BLUE, "size": 9},
        }
    ]
    name = canvas.safe(facts.get("data") or "the other data")
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        "xaxis": canvas.axis(title="accuracy here, %"),
        "yaxis": canvas.axis(title=f"on {name}, %"),
    }
    return f'<div class="half">{canvas.plot(data, layout, 330, f"Accuracy on {name} against accuracy here")}</div>'


def transfer_in_words(facts: Any) -> str:
    """The rank correlations, as plain text."""
    facts = q.mapping(facts)
    named = (("Kendall tau", q.number(facts.get("kendall"))), ("Spearman", q.number(facts.get("spearman"))))
    words = [f"{name} {q.significant(value, 2)}" for name, value in named if value is not None]
    count = len(q.entries(facts.get("rows")))
    if not count:
        return ""
    end = ", ".join(words) if words else "too few different values for a rank correlation"
    return f"{count} archs, trained on both with the same settings: {end}. 1 is the same order, 0 none."


def _front_panel(
    summary: Mapping[str, Any], axis: str, rows: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]]
) -> str:
    known = [(cost, row) for row in rows if (cost := q.dig(row, "costs", axis)) is not None]
    closing = [(finalists.costs(one)[axis][0], one) for one in ends if axis in finalists.costs(one)]
    values = [cost for cost, _ in (*known, *closing)]
    if len(values) < 2:
        return ""
    limit = next((q.number(b.get("value")) for b in q.entries(summary.get("bounds")) if b.get("cost") == axis), None)
    unit, divisor = q.unit_of(axis, max(map(abs, values)))
    best = finalists.chosen(summary)
    on_front = {number for one in q.sequence(summary.get("front")) if (number := q.number(one)) is not None}
    data = [
        _staircase([(cost / divisor, 100 * (q.number(row.get("value")) or 0)) for cost, row in known]),
        _trials(known, divisor, on_front, best.get("arch")),
        _finalists(closing, divisor),
    ]
    if limit is not None:
        data.append(_vertical(limit / divisor))
    reach = [*values, *([limit] if limit is not None else [])]
    low, high = min(reach), max(reach)
    pad = 0.06 * (high - low or abs(high) or 1)
    wide = low > 0 and high / low > 12
    span = [(low - min(pad, abs(low))) / divisor, (high + pad) / divisor]
    scale = canvas.decades(value / divisor for value in reach) if wide else {"range": span}
    name = canvas.safe(q.cost_name(axis))
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        "xaxis": canvas.axis(title=name + (f", {unit}" if unit else ""), **scale),
        "yaxis": canvas.axis(title=f"{judged(summary)}, %"),
        "yaxis2": HIDDEN,
    }
    return canvas.plot(data, layout, 360, f"Accuracy against {name}")


def _trials(
    known: Sequence[tuple[float, Mapping[str, Any]]], divisor: float, on_front: set[float], chosen: Any
) -> dict[str, Any]:
    # The chosen one last, so that it lies on top.
    ordered = sorted(known, key=lambda one: bool(chosen) and one[1].get("arch") == chosen)
    mine = [bool(chosen) and row.get("arch") == chosen for _, row in ordered]
    full = [q.number(row.get("number")) in on_front for _, row in ordered]
    colours = [
        canvas.CHOSEN if own else canvas.BLUE if whole else canvas.MUTED for own, whole in zip(mine, full, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [cost / divisor for cost, _ in ordered],
        "y": [100 * (q.number(row.get("value")) or 0) for _, row in ordered],
        "text": [hover(row) for _, row in ordered],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": colours,
            "symbol": ["circle" if whole or own else "circle-open" for whole, own in zip(full, mine, strict=True)],
            "size": [11 if own else 8 for own in mine],
            "line": {"width": 1.4, "color": colours},
            "opacity": 1,
        },
    }


def _finalists(closing: Sequence[tuple[float, Mapping[str, Any]]], divisor: float) -> dict[str, Any]:
    ordered = sorted(closing, key=lambda one: one[1].get("chosen") is True)
    colours = [canvas.CHOSEN if one.get("chosen") is True else canvas.MUTED for _, one in ordered]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [cost / divisor for cost, _ in ordered],
        "y": [100 * (q.number(one.get("validation")) or 0) for _, one in ordered],
        "text": [_end_hover(one) for _, one in ordered],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": colours,
            "symbol": ["diamond-open" if one.get("within") is False else "diamond" for _, one in ordered],
            "size": 10,
            "line": {"width": 1.4, "color": colours},
        },
    }


def _staircase(points: Iterable[Point]) -> dict[str, Any]:
    """The best accuracy for each cost, as a line that rises where a dearer trial is better."""
    corners: list[Point] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not corners or y > corners[-1][1]:
            corners.append((x, y))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in corners],
        "y": [y for _, y in corners],
        "line": {"color": canvas.MUTED, "width": 1.3, "shape": "hv"},
        "hoverinfo": "skip",
    }


def _vertical(at: float) -> dict[str, Any]:
    """The bound, from the bottom of the panel to its top; on a logarithmic axis too."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [at, at],
        "y": [0, 1],
        "yaxis": "y2",
        "line": {"color": canvas.INK, "width": 1, "dash": "dot"},
        "hoverinfo": "skip",
    }


def judged(summary: Mapping[str, Any]) -> str:
    """What a trial's value is, for an axis."""
    return canvas.safe(summary.get("judged") or "accuracy")


def hover(row: Mapping[str, Any]) -> str:
    """A scored trial in words, for a figure."""
    lines = [f"<b>trial {q.whole(q.number(row.get('number')))}</b> {q.accuracy(q.number(row.get('value')))}"]
    return "<br>".join(lines + _costs(q.mapping(row.get("costs"))))


def _end_hover(one: Mapping[str, Any]) -> str:
    remark = "chosen" if one.get("chosen") is True else "over budget" if one.get("within") is False else "finalist"
    lines = [f"<b>{remark}</b> {q.accuracy(q.number(one.get('validation')))} on validation"]
    return "<br>".join(lines + _costs({name: value for name, (value, _) in finalists.costs(one).items()}))


def _costs(costs: Mapping[str, Any]) -> list[str]:
    return [
        f"{canvas.safe(q.cost_name(str(name)))} {q.cost(str(name), known)}"
        for name, value in costs.items()
        if (known := q.number(value)) is not None
    ]
