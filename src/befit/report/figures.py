"""Interactive figures: quality against cost, predicted against measured cost, healing.

Each is a function from plain values to an HTML fragment, empty where there is nothing to draw.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from befit.report import canvas
from befit.report import quantities as q

_SYMBOLS = {"circle": "●", "diamond": "◆", "square": "■", "triangle-up": "▲", "cross": "✚", "x": "✖"}
"""A mark for each way in which a solution was found, as Plotly and as text call it."""
_MOST_PANELS = 3
"""Costs (or quantities) drawn side by side; the rest are in summary.json."""


def front(points: Any, budget: Any) -> str:
    """Every solved budget: quality lost against each cost, the summed scores beside the true KL."""
    rows = q.entries(points)
    limits = {str(b.get("cost")): q.number(b.get("value")) for b in q.entries(q.mapping(budget).get("bounds"))}
    names = canvas.union(q.mapping(row.get("costs")) for row in rows)
    # The bounded costs first: they are what the reader asked about.
    names = sorted((n for n in names if any(_at(row, n) is not None for row in rows)), key=lambda n: n not in limits)
    qualities = [v for row in rows for v in (q.number(row.get("kl")), q.number(row.get("kl_sum"))) if v is not None]
    if not names or not qualities:
        return ""
    panels = [_front_panel(rows, name, limits.get(name), qualities) for name in names[:_MOST_PANELS]]
    return f'<div class="panels">{"".join(panels)}</div>' + _front_key(rows, bool(limits))


def _front_key(rows: list[Mapping[str, Any]], bounded: bool) -> str:
    marks = [("dot full", "true KL"), ("dot", "scores of its parts added up")]
    marks += [("dot chosen", "chosen")] * any(row.get("chosen") is True for row in rows)
    kinds = _kinds(rows)
    marks += [(_SYMBOLS[_symbol(kinds, kind)], kind) for kind in kinds] * (len(kinds) > 1)
    return canvas.key(*marks, *[("dash", "the bound")] * bounded)


def accuracy(values: Any) -> str:
    """Predicted against measured cost, one panel for each quantity, with the diagonal where they agree."""
    parts = {key: q.entries(q.mapping(values).get(key)) for key in ("fit", "held_out")}
    quantities = canvas.union({str(row.get("quantity")): 0} for rows in parts.values() for row in rows if _pair(row))
    panels = [_accuracy_panel(parts, name) for name in quantities[:_MOST_PANELS]]
    if not panels:
        return ""
    marks = (("dot full", "not in the fit"), ("dot", "in the fit"), ("dash", "a perfect prediction"))
    return f'<div class="panels">{"".join(panels)}</div>' + canvas.key(*marks)


def accuracy_in_words(values: Any) -> str:
    """The error on models that were not in the fit, as one sentence of plain text."""
    facts = q.mapping(values)
    held_out = [(str(row.get("name")), pair) for row in q.entries(facts.get("held_out")) if (pair := _pair(row))]
    errors = [abs(predicted - measured) / measured for _, (predicted, measured) in held_out]
    typical = q.dig(facts, "median_error") if "median_error" in facts else median(errors) if errors else None
    worst = q.dig(facts, "worst_error") if "worst_error" in facts else max(errors, default=None)
    fitted = len({str(row.get("name")) for row in q.entries(facts.get("fit"))})
    if typical is None:
        return "No model outside the fit was measured, so the error of the prediction is unknown." if fitted else ""
    models = len({name for name, _ in held_out})
    where = f"{models} model{'s' if models != 1 else ''} that" if models else "models that"
    words = f"On {where} took no part in the fit, the prediction was off by {q.percent(typical)} at the median"
    words += f" and {q.percent(worst)} at worst." if worst is not None else "."
    return words + (f" It was calibrated on {fitted} other{'s' if fitted != 1 else ''}." if fitted else "")


def healing(values: Any) -> str:
    """The distillation loss over the healing steps."""
    facts = q.mapping(values)
    losses = [q.number(value) for value in q.sequence(facts.get("loss"))]
    steps = list(q.sequence(facts.get("steps"))) or list(range(1, len(losses) + 1))
    known = [value for value in losses if value is not None]
    if len(known) < 2:
        return ""
    wide = min(known) > 0 and max(known) / min(known) > 10
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [q.number(step) for step in steps],
            "y": losses,
            "line": {"color": canvas.BLUE, "width": 1.8},
            "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
        }
    ]
    layout = {
        "margin": {"l": 58, "r": 8, "t": 6, "b": 44},
        "xaxis": canvas.axis(title="step", showgrid=False),
        "yaxis": canvas.axis(title="healing loss", **canvas.log(wide)),
    }
    return canvas.plot(data, layout, 260, "Healing loss by step")


def _front_panel(rows: list[Mapping[str, Any]], name: str, limit: float | None, qualities: list[float]) -> str:
    values = [value for row in rows if (value := _at(row, name)) is not None]
    unit, divisor = q.unit_of(name, max(map(abs, values)))
    # The chosen one last, so that it lies on top.
    usable = sorted((row for row in rows if _at(row, name) is not None), key=lambda row: row.get("chosen") is True)

    def at(row: Mapping[str, Any]) -> float:
        return (_at(row, name) or 0) / divisor

    kinds = _kinds(rows)
    data: list[dict[str, Any]] = [_staircase(usable, at)]
    for key, style in (
        ("kl_sum", {"suffix": "-open", "color": canvas.MUTED}),
        ("kl", {"suffix": "", "color": canvas.BLUE}),
    ):
        known = [row for row in usable if q.number(row.get(key)) is not None]
        colours = [canvas.CHOSEN if row.get("chosen") is True else style["color"] for row in known]
        symbols = [_symbol(kinds, _kind(row)) for row in known]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [at(row) for row in known],
                "y": [q.number(row.get(key)) for row in known],
                "text": [_front_hover(row) for row in known],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {
                    "color": colours,
                    "symbol": [symbol + style["suffix"] for symbol in symbols],
                    "size": [13 if row.get("chosen") is True else 8 for row in known],
                    "line": {"width": 1.6, "color": colours},
                    "opacity": 1,
                },
            }
        )
    wide = min(qualities) > 0 and max(qualities) / min(qualities) > 20
    layout: dict[str, Any] = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        "xaxis": canvas.axis(title=canvas.safe(q.cost_name(name)) + (f", {unit}" if unit else "")),
        "yaxis": canvas.axis(title="KL to the parent", **canvas.log(wide)),
    }
    if limit is not None:
        line = {"color": canvas.INK, "width": 1, "dash": "dot"}
        layout["shapes"] = [
            {
                "type": "line",
                "x0": limit / divisor,
                "x1": limit / divisor,
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "line": line,
            }
        ]
    return canvas.plot(data, layout, 330, f"Quality lost against {q.cost_name(name)}")


def _kinds(rows: list[Mapping[str, Any]]) -> list[str]:
    """Ways in which solutions were found; the chosen one has a colour of its own and needs no mark."""
    return list(dict.fromkeys(_kind(row) for row in rows if row.get("chosen") is not True))


def _kind(row: Mapping[str, Any]) -> str:
    return str(row.get("kind") or "solved")


def _symbol(kinds: list[str], kind: str) -> str:
    return list(_SYMBOLS)[kinds.index(kind) % len(_SYMBOLS)] if kind in kinds else "circle"


def _staircase(rows: Sequence[Mapping[str, Any]], at: Any) -> dict[str, Any]:
    """A faint line through the solutions that no other beats in both this cost and the summed score."""
    best, corners = math.inf, []
    for row in sorted((row for row in rows if q.number(row.get("kl_sum")) is not None), key=at):
        value = q.number(row.get("kl_sum"))
        if value is not None and value < best:
            best = value
            corners.append((at(row), value))
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [x for x, _ in corners],
        "y": [y for _, y in corners],
        "line": {"color": canvas.LINE, "width": 1.5},
        "hoverinfo": "skip",
    }


def _front_hover(row: Mapping[str, Any]) -> str:
    lines = [
        f"<b>{canvas.safe(row.get('budget') or 'a solution')}</b>" + (" (chosen)" if row.get("chosen") is True else "")
    ]
    lines.append(f"sum of scores {q.significant(q.number(row.get('kl_sum')))}")
    lines.append(f"true KL {q.significant(q.number(row.get('kl')))}")
    for name, value in q.mapping(row.get("costs")).items():
        lines.append(f"{canvas.safe(q.cost_name(str(name)))} {q.cost(str(name), q.number(value))}")
    return "<br>".join(lines)


def _accuracy_panel(parts: Mapping[str, list[Mapping[str, Any]]], quantity: str) -> str:
    chosen = {key: [row for row in rows if str(row.get("quantity")) == quantity] for key, rows in parts.items()}
    pairs = [pair for rows in chosen.values() for row in rows if (pair := _pair(row))]
    low, high = min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)
    unit, divisor = q.unit_of(quantity, high)
    pad = 0.08 * (high - low or high)
    span = [(low - pad) / divisor, (high + pad) / divisor]
    diagonal = {"type": "scatter", "mode": "lines", "x": span, "y": span, "hoverinfo": "skip"}
    data = [{**diagonal, "line": {"color": canvas.MUTED, "width": 1, "dash": "dot"}}]
    for key, symbol, colour in (("fit", "circle-open", canvas.MUTED), ("held_out", "circle", canvas.BLUE)):
        points = [(row, pair) for row in chosen[key] if (pair := _pair(row))]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [measured / divisor for _, (_, measured) in points],
                "y": [predicted / divisor for _, (predicted, _) in points],
                "text": [_accuracy_hover(row, pair, quantity) for row, pair in points],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"symbol": symbol, "color": colour, "size": 8, "line": {"width": 1.5, "color": colour}},
            }
        )
    suffix = f", {unit}" if unit else ""
    name = canvas.safe(q.cost_name(quantity))
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        "xaxis": canvas.axis(title=f"{name}, measured{suffix}", range=span),
        "yaxis": canvas.axis(title=f"predicted{suffix}", range=span),
    }
    return canvas.plot(data, layout, 330, f"Predicted against measured {q.cost_name(quantity)}")


def _accuracy_hover(row: Mapping[str, Any], pair: tuple[float, float], quantity: str) -> str:
    predicted, measured = pair
    off = (predicted - measured) / measured
    return (
        f"<b>{canvas.safe(row.get('name') or 'a model')}</b><br>predicted {q.cost(quantity, predicted)}"
        f"<br>measured {q.cost(quantity, measured)}<br>{'+' if off > 0 else ''}{q.percent(off)}"
    )


def _pair(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """(predicted, measured) if both are known and the measurement can be divided by."""
    predicted, measured = q.number(row.get("predicted")), q.number(row.get("measured"))
    return None if predicted is None or not measured else (predicted, measured)


def _at(row: Mapping[str, Any], name: str) -> float | None:
    return q.dig(row, "costs", name)
