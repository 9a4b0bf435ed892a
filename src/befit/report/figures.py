"""The interactive figures, each a function from plain values to an HTML fragment (empty where there is nothing to draw).

A fragment is an empty `div.plot` followed by its Plotly data and layout as a JSON data block; `page.js` draws it.
Colours are names of the page's CSS variables (`var(--ink)`), resolved when drawn, so that one figure serves the light
and the dark page.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from befit.report import quantities as q
from befit.report.architecture import layers, variant_name

_INK, _MUTED, _LINE, _CHOSEN = "var(--ink)", "var(--muted)", "var(--line)", "var(--chosen)"
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
_MOST_PANELS = 3
"""Costs (or quantities) drawn side by side; the rest are in summary.json."""
_DECADES = 5
"""Orders of magnitude that the colours of the heat map span; smaller scores take the lowest colour."""


def heat_map(scores: Any, ranking: Any, child: Any) -> str:
    """Scores by layer and variant on a logarithmic colour scale, the child's choices dotted, block influence on top."""
    table = [_layer_scores(layer) for layer in q.entries(q.mapping(scores).get("layers"))]
    positive = [value for layer in table for part in layer.values() for value in part.values() if value > 0]
    if not positive:
        return ""
    top = math.log10(max(positive))
    floor = max(math.log10(min(positive)), top - _DECADES)
    chosen = layers(child)
    influence = [q.number(value) for value in q.sequence(q.mapping(ranking).get("block_influence"))]
    bands = [(part, _union(layer[part] for layer in table)) for part in ("attention", "ffn")]
    bands = [(part, names) for part, names in bands if names]
    heights = [60.0] * any(value is not None for value in influence) + [26.0 * len(names) for _, names in bands]
    domains, height = _stack(heights)
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"showlegend": False, "margin": {"l": 74, "r": 8, "t": 6, "b": 84}}
    first = len(domains) - len(bands)
    if first:
        data.append(
            {
                "type": "bar",
                "x": list(range(len(influence))),
                "y": influence,
                "xaxis": "x",
                "yaxis": "y",
                "marker": {"color": _MUTED},
                "hovertemplate": "layer %{x}: block influence %{y:.3g}<extra></extra>",
            }
        )
        layout["yaxis"] = _axis(domain=domains[0], title="influence", showticklabels=False, showgrid=False)
    for index, (part, names) in enumerate(bands, start=first + 1):
        axis = "y" + (str(index) if index > 1 else "")
        data += _band(part, names, table, chosen, (floor, axis))
        layout["yaxis" + axis[1:]] = _axis(
            domain=domains[index - 1],
            tickmode="array",
            tickvals=list(range(len(names))),
            ticktext=[_safe(name) for name in names],
            range=[len(names) - 0.5, -0.5],
            showgrid=False,
        )
    layout["xaxis"] = _axis(
        anchor="free", position=0, range=[-0.5, len(table) - 0.5], title="layer", showgrid=False, dtick=_tick(len(table))
    )
    layout["coloraxis"] = _colour_scale(floor, top)
    return _plot(data, layout, height + 90, "Score of every variant in every layer")


def front(points: Any, budget: Any) -> str:
    """Every solved budget: quality lost against each cost, the summed scores beside the true KL."""
    rows = q.entries(points)
    limits = {str(b.get("cost")): q.number(b.get("value")) for b in q.entries(q.mapping(budget).get("bounds"))}
    names = _union(q.mapping(row.get("costs")) for row in rows)
    # The bounded costs first: they are what the reader asked about.
    names = sorted((n for n in names if any(_at(row, n) is not None for row in rows)), key=lambda n: n not in limits)
    qualities = [value for row in rows for value in (q.number(row.get("kl")), q.number(row.get("kl_sum"))) if value]
    if not names or not qualities:
        return ""
    panels = [_front_panel(rows, name, limits.get(name), qualities) for name in names[:_MOST_PANELS]]
    return f'<div class="panels">{"".join(panels)}</div>'


def accuracy(values: Any) -> str:
    """Predicted against measured cost, one panel for each quantity, with the diagonal where they agree."""
    parts = {key: q.entries(q.mapping(values).get(key)) for key in ("fit", "held_out")}
    quantities = _union({str(row.get("quantity")): 0} for rows in parts.values() for row in rows if _pair(row))
    panels = [_accuracy_panel(parts, name) for name in quantities[:_MOST_PANELS]]
    return f'<div class="panels">{"".join(panels)}</div>' if panels else ""


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
            "line": {"color": _CHOSEN, "width": 1.8},
            "hovertemplate": "step %{x}: %{y:.4g}<extra></extra>",
        }
    ]
    layout = {
        "margin": {"l": 58, "r": 8, "t": 6, "b": 44},
        "xaxis": _axis(title="step", showgrid=False),
        "yaxis": _axis(title="healing loss", **_log(wide)),
    }
    return _plot(data, layout, 260, "Healing loss by step")


def _layer_scores(layer: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    parts = {part: q.mapping(layer.get(part)) for part in ("attention", "ffn")}
    return {
        part: {str(name): known for name, value in values.items() if (known := q.number(value)) is not None}
        for part, values in parts.items()
    }


def _band(
    part: str,
    names: list[str],
    table: list[dict[str, dict[str, float]]],
    chosen: list[Mapping[str, Any]],
    place: tuple[float, str],
) -> list[dict[str, Any]]:
    """The cells of one kind of sub-block and the dots on what the child uses; `place` is colour floor and y axis."""
    floor, axis = place
    values = [[layer[part].get(name) for layer in table] for name in names]
    logs = [[None if v is None else max(floor, math.log10(v)) if v > 0 else floor for v in row] for row in values]
    said = [[f"{_safe(name)}: {q.significant(v)}" for v in row] for name, row in zip(names, values, strict=True)]
    picks = [(i, variant_name(block.get(part))) for i, block in enumerate(chosen[: len(table)])]
    dots = [(i, names.index(name)) for i, name in picks if name in names]
    size = 8 if len(table) <= 24 else 5 if len(table) <= 48 else 3.5
    cells = {
        "type": "heatmap",
        "z": logs,
        "text": said,
        "xaxis": "x",
        "yaxis": axis,
        "coloraxis": "coloraxis",
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": "layer %{x}, %{text}<extra></extra>",
    }
    marks = {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in dots],
        "y": [y for _, y in dots],
        "xaxis": "x",
        "yaxis": axis,
        "hoverinfo": "skip",
        "marker": {"size": size, "color": "var(--page)", "line": {"color": _INK, "width": 1.2}},
    }
    return [cells, marks]


def _colour_scale(floor: float, top: float) -> dict[str, Any]:
    ticks = list(range(math.ceil(floor), math.floor(top) + 1)) or [floor, top]
    return {
        "cmin": floor,
        "cmax": max(top, floor + 1e-9),
        "colorscale": [[i / 4, f"var(--heat-{i})"] for i in range(5)],
        "colorbar": {
            "orientation": "h",
            "thickness": 8,
            "outlinewidth": 0,
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "x": 0,
            "xanchor": "left",
            "len": 0.55,
            "tickvals": ticks,
            "ticktext": [q.significant(10.0**tick, 2) for tick in ticks],
            "title": {"text": "KL when only this sub-block is replaced", "side": "top", "font": {"size": 11}},
        },
    }


def _front_panel(rows: list[Mapping[str, Any]], name: str, limit: float | None, qualities: list[float]) -> str:
    values = [value for row in rows if (value := _at(row, name)) is not None]
    unit, divisor = q.unit_of(name, max(map(abs, values)))
    usable = [row for row in rows if _at(row, name) is not None]

    def at(row: Mapping[str, Any]) -> float:
        return (_at(row, name) or 0) / divisor

    kinds = list(dict.fromkeys(str(row.get("kind") or "solved") for row in usable))
    data: list[dict[str, Any]] = [_staircase(usable, at)]
    for key, style in (("kl_sum", {"suffix": "-open", "color": _MUTED}), ("kl", {"suffix": "", "color": "var(--attn)"})):
        known = [row for row in usable if q.number(row.get(key)) is not None]
        colours = [_CHOSEN if row.get("chosen") is True else style["color"] for row in known]
        symbols = [_SYMBOLS[kinds.index(str(row.get("kind") or "solved")) % len(_SYMBOLS)] for row in known]
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
                },
            }
        )
    wide = min(qualities) > 0 and max(qualities) / min(qualities) > 20
    layout: dict[str, Any] = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        "xaxis": _axis(title=_safe(q.cost_name(name)) + (f", {unit}" if unit else "")),
        "yaxis": _axis(title="KL to the parent", **_log(wide)),
    }
    if limit is not None:
        line = {"color": _INK, "width": 1, "dash": "dot"}
        layout["shapes"] = [
            {"type": "line", "x0": limit / divisor, "x1": limit / divisor, "yref": "paper", "y0": 0, "y1": 1, "line": line}
        ]
    return _plot(data, layout, 330, f"Quality lost against {q.cost_name(name)}")


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
        "line": {"color": _LINE, "width": 1.5},
        "hoverinfo": "skip",
    }


def _front_hover(row: Mapping[str, Any]) -> str:
    lines = [f"<b>{_safe(row.get('budget') or 'a solution')}</b>" + (" (chosen)" if row.get("chosen") is True else "")]
    lines.append(f"sum of scores {q.significant(q.number(row.get('kl_sum')))}")
    lines.append(f"true KL {q.significant(q.number(row.get('kl')))}")
    for name, value in q.mapping(row.get("costs")).items():
        lines.append(f"{_safe(q.cost_name(str(name)))} {q.cost(str(name), q.number(value))}")
    return "<br>".join(lines)


def _accuracy_panel(parts: Mapping[str, list[Mapping[str, Any]]], quantity: str) -> str:
    chosen = {key: [row for row in rows if str(row.get("quantity")) == quantity] for key, rows in parts.items()}
    pairs = [pair for rows in chosen.values() for row in rows if (pair := _pair(row))]
    low, high = min(min(pair) for pair in pairs), max(max(pair) for pair in pairs)
    unit, divisor = q.unit_of(quantity, high)
    pad = 0.08 * (high - low or high)
    span = [(low - pad) / divisor, (high + pad) / divisor]
    diagonal = {"type": "scatter", "mode": "lines", "x": span, "y": span, "hoverinfo": "skip"}
    data = [{**diagonal, "line": {"color": _MUTED, "width": 1, "dash": "dot"}}]
    for key, symbol, colour in (("fit", "circle-open", _MUTED), ("held_out", "circle", _CHOSEN)):
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
    name = _safe(q.cost_name(quantity))
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        "xaxis": _axis(title=f"{name}, measured{suffix}", range=span),
        "yaxis": _axis(title=f"predicted{suffix}", range=span),
    }
    return _plot(data, layout, 330, f"Predicted against measured {q.cost_name(quantity)}")


def _accuracy_hover(row: Mapping[str, Any], pair: tuple[float, float], quantity: str) -> str:
    predicted, measured = pair
    off = (predicted - measured) / measured
    return (
        f"<b>{_safe(row.get('name') or 'a model')}</b><br>predicted {q.cost(quantity, predicted)}"
        f"<br>measured {q.cost(quantity, measured)}<br>{'+' if off > 0 else ''}{q.percent(off)}"
    )


def _pair(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """(predicted, measured) if both are known and the measurement can be divided by."""
    predicted, measured = q.number(row.get("predicted")), q.number(row.get("measured"))
    return None if predicted is None or not measured else (predicted, measured)


def _at(row: Mapping[str, Any], name: str) -> float | None:
    return q.dig(row, "costs", name)


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys, in the order in which they are first seen."""
    return list(dict.fromkeys(str(key) for mapping in mappings for key in mapping))


def _stack(heights: list[float], gap: float = 10.0) -> tuple[list[list[float]], float]:
    """Where bands of these heights (pixels) lie from top to bottom, as fractions of the total, and the total."""
    total = sum(heights) + gap * (len(heights) - 1)
    domains, top = [], total
    for height in heights:
        domains.append([max(0.0, (top - height) / total), top / total])
        top -= height + gap
    return domains, total


def _tick(count: int) -> int:
    return 1 if count <= 16 else 2 if count <= 32 else 4 if count <= 64 else 8


def _log(wide: bool) -> dict[str, Any]:
    """A logarithmic axis where the values span it; else one from zero."""
    return {"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}


def _axis(title: str = "", **more: Any) -> dict[str, Any]:
    look: dict[str, Any] = {"gridcolor": _LINE, "zeroline": False, "linecolor": _LINE, "tickcolor": _LINE}
    look |= {"automargin": False, "fixedrange": False, "ticks": "", "title": {"text": title, "standoff": 8}}
    return look | more


def _safe(text: Any) -> str:
    """Text for a figure: Plotly reads a little HTML in labels, so what the user named must not be any."""
    return escape(str(text), quote=False)


def _plot(data: list[dict[str, Any]], layout: dict[str, Any], height: float, label: str) -> str:
    font = {"family": "system-ui, sans-serif", "size": 12, "color": _MUTED}
    hover = {"bgcolor": "var(--page)", "bordercolor": _LINE, "font": {"color": _INK, "size": 12}, "align": "left"}
    look = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": font, "hoverlabel": hover}
    spec = json.dumps({"data": data, "layout": {**look, "height": height, **layout}}, allow_nan=False)
    # Inside a script element only "<" could end the data early.
    block = spec.replace("<", "\\u003c")
    return (
        f'<div class="plot" role="img" aria-label="{escape(label)}" style="min-height:{height:g}px">'
        "<noscript>This figure needs JavaScript; its numbers are in summary.json.</noscript></div>"
        f'<script type="application/json">{block}</script>'
    )
