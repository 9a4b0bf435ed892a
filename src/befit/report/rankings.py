"""What the parent can spare: the sorted importance of every width axis, and the order in which layers go by each method."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from befit.report import canvas, members
from befit.report import quantities as q

_AXES = {
    "hidden": ("embedding channel", ("hidden",)),
    "ffn": ("FFN neuron", ("ffn",)),
    "heads": ("query head", ("kv_heads", "heads_per_kv")),
    "mamba_heads": ("Mamba head", ("mamba_heads",)),
    "channels": ("Mamba head channel", ("mamba_head_dim",)),
    "state": ("SSM state", ("state",)),
}
"""Each ranking: what is ranked, and the widths of a member whose product says how many are kept."""
_HUES = {"hidden": canvas.MUTED, "ffn": "var(--ffn)", "heads": canvas.BLUE}
_METHODS = {
    "iterative": ("iterative nMSE", "nMSE"),
    "single": ("single nMSE", "nMSE"),
    "cosine": ("block influence", "1 − cosine"),
    "perplexity": ("perplexity", "perplexity"),
}
"""Each way of ordering layers: its heading, and what its score is."""
_MOST_POINTS = 96
"""A line of importance has at most this many points: a network of 15,000 neurons a layer must not make the page heavy."""
_MOST_ROWS = 64
"""More removals than this are in summary.json only."""


def importance(ranking: Any, parent: members.Parent, given: Any) -> str:
    """Sorted importance of every axis, one line for each layer, with the widths that the budgets keep.

    A summary may have thinned a ranking, or have it for several groups; lines are stretched to the parent's width.
    """
    panels = [_axis(axis, q.mapping(ranking).get(axis), parent, q.entries(given)) for axis in _AXES]
    return f'<div class="panels narrow">{"".join(panels)}</div>' if any(panels) else ""


def removals(ranking: Any, parent: members.Parent, given: Any) -> str:
    """The order in which layers go, method beside method, and what the error becomes."""
    depth = q.mapping(q.mapping(ranking).get("depth"))
    orders = {name: order for name in _METHODS if (order := _order(depth.get(name)))}
    if not orders:
        return ""
    return f'<div class="panels split">{_bumps(orders, parent, q.entries(given))}{_errors(orders)}</div>'


def _axis(axis: str, scores: Any, parent: members.Parent, given: list[Mapping[str, Any]]) -> str:
    lines = {str(layer): known for layer, values in q.mapping(scores).items() if (known := _sorted(values))}
    lines |= {"": known} if (known := _sorted(scores)) else {}
    if not lines:
        return ""
    noun, widths = _AXES[axis]
    values = [value for line in lines.values() for value in line]
    wide = min(values) > 0 and max(values) / min(values) > 20
    known = [parent.widths[name] for name in widths if name in parent.widths]
    most = math.prod(known) if len(known) == len(widths) else max(map(len, lines.values()))
    data = [_line(axis, layer, line, most, alone=len(lines) == 1) for layer, line in lines.items()]
    shapes, labels = _marks(given, widths, most)
    layout = {
        "showlegend": False,
        "margin": {"l": 52, "r": 8, "t": 26, "b": 30},
        "title": {"text": f"{noun}s", "font": {"size": 12}, "x": 0,
                  "xanchor": "left", "y": 0.97, "yanchor": "top"},
        "xaxis": canvas.axis(showgrid=False, range=[0.5 - 0.02 * most, most + 0.5 + 0.02 * most]),
        "yaxis": canvas.axis(**(canvas.decades(values) if wide else {"rangemode": "tozero", "nticks": 5})),
        "shapes": shapes,
        "annotations": labels,
    }  # fmt: skip
    return canvas.plot(data, layout, 210, f"Sorted importance of {noun}s")


def _sorted(values: Any) -> list[float]:
    return sorted((value for entry in q.sequence(values) if (value := q.number(entry)) is not None), reverse=True)


def _line(axis: str, layer: str, line: list[float], most: float, *, alone: bool) -> dict[str, Any]:
    ranks = _thinned(len(line))
    stretch = (most - 1) / (len(line) - 1) if len(line) > 1 else 1
    where = f"layer {canvas.safe(layer)}, " if layer else ""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [round(1 + rank * stretch, 2) for rank in ranks],
        "y": [line[rank] for rank in ranks],
        "line": {"color": _HUES.get(axis, "var(--mamba)"), "width": 1.8 if alone else 1.2},
        "opacity": 1 if alone else 0.6,
        "hovertemplate": f"{where}rank %{{x}}: %{{y:.3g}}<extra></extra>",
    }


def _thinned(count: int) -> list[int]:
    """The first, the last, and evenly spaced ones between."""
    if count <= _MOST_POINTS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_MOST_POINTS - 1)) for i in range(_MOST_POINTS)})


def _marks(
    given: list[Mapping[str, Any]], axes: Sequence[str], most: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Lines and labels at the widths that the budgets keep; a budget that keeps everything has none."""
    at: dict[float, list[str]] = {}
    for entry in given:
        spans = [members.width(entry.get("member"), axis) for axis in axes]
        if any(span is None or span[0] != span[1] for span in spans):
            continue
        kept = 1.0
        for span in spans:
            kept *= span[0] if span else 1
        if kept < most:
            at.setdefault(kept + 0.5, []).append(q.percent(q.number(entry.get("budget"))))
    line = {"color": canvas.INK, "width": 1, "dash": "dot"}
    shapes = [{"type": "line", "x0": x, "x1": x, "yref": "paper", "y0": 0, "y1": 1, "line": line} for x in at]
    labels = [
        {"x": x, "yref": "paper", "y": 1, "text": ", ".join(names), "showarrow": False, "textangle": -90, "xanchor": "right",
         "yanchor": "top", "font": {"size": 10}}
        for x, names in at.items()
    ]  # fmt: skip
    return shapes, labels


def _order(pairs: Any) -> list[tuple[int, float | None]]:
    """(layer, score) in order of removal; a layer named twice or not at all is left out."""
    order: dict[int, float | None] = {}
    for pair in q.sequence(pairs):
        values = q.sequence(pair)
        layer = q.number(values[0]) if values else None
        if layer is not None:
            order.setdefault(int(layer), q.number(values[1]) if len(values) > 1 else None)
    return list(order.items())


def _bumps(
    orders: Mapping[str, list[tuple[int, float | None]]], parent: members.Parent, given: list[Mapping[str, Any]]
) -> str:
    """One column for each method, the first to go on top; a line follows each layer from column to column."""
    rows = min(_MOST_ROWS, max(map(len, orders.values())))
    tall = 20 if rows <= 40 else 14
    pitch = 94 / len(orders)
    heads = "".join(
        f'<text class="head" x="{6 + (i + 0.5) * pitch:.2f}%" y="12">{_METHODS[name][0]}</text>'
        for i, name in enumerate(orders)
    )
    ranks = "".join(
        f'<text class="rank" x="4%" y="{_middle(i, tall):g}">{i + 1}</text>'
        for i in range(rows)
        if tall > 14 or i % 2 == 0
    )
    layers = dict.fromkeys(layer for order in orders.values() for layer, _ in order[:rows])
    drawn = "".join(_bump(layer, orders, parent, rows, tall) for layer in layers)
    return (
        f'<div><svg class="bumps{"" if tall > 14 else " many"}" width="100%" height="{24 + rows * tall}" role="img" '
        f'aria-label="Order in which layers go, by method">{heads}{ranks}{_cuts(given, parent, rows, tall)}{drawn}</svg></div>'
    )


def _bump(
    layer: int, orders: Mapping[str, list[tuple[int, float | None]]], parent: members.Parent, rows: int, tall: int
) -> str:
    pitch = 94 / len(orders)
    kind = parent.layers[layer] if 0 <= layer < len(parent.layers) else ""
    hue = {"mamba": "mamba", "attention": "attn", "ffn": "ffn"}.get(kind, "other")
    spots, titles = {}, []
    for column, (name, order) in enumerate(orders.items()):
        for rank, (found, score) in enumerate(order[:rows]):
            if found == layer:
                spots[column] = rank
                titles.append(
                    f"{_METHODS[name][0]}: {rank + 1}. of {len(order)}, {_METHODS[name][1]} {q.significant(score)}"
                )
    half = 0.2 * pitch
    lines, chips = [], []
    for column, rank in spots.items():
        x, y = 6 + (column + 0.5) * pitch, _middle(rank, tall)
        chips.append(f'<rect x="{x - half:.2f}%" y="{y - tall / 2 + 1:g}" width="{2 * half:.2f}%" height="{tall - 2}" rx="3"/>'
                     f'<text x="{x:.2f}%" y="{y:g}">{layer}</text>')  # fmt: skip
        if column + 1 in spots:
            lines.append(
                f'<line x1="{x + half:.2f}%" y1="{y:g}" x2="{x + pitch - half:.2f}%" y2="{_middle(spots[column + 1], tall):g}"/>'
            )
    title = escape(f"Layer {layer}" + (f", {kind}" if kind else "") + "\n" + "\n".join(titles))
    return f'<g class="bump {hue}"><title>{title}</title>{"".join(lines)}{"".join(chips)}</g>'


def _cuts(given: list[Mapping[str, Any]], parent: members.Parent, rows: int, tall: int) -> str:
    """A line below the last layer that each budget drops."""
    at: dict[int, list[str]] = {}
    for entry in given:
        dropped = len(parent.layers) - len(members.kept(entry.get("member")))
        if 0 < dropped <= rows and members.kept(entry.get("member")):
            at.setdefault(dropped, []).append(q.percent(q.number(entry.get("budget"))))
    return "".join(
        f'<line class="cut" x1="0" x2="100%" y1="{22 + dropped * tall}" y2="{22 + dropped * tall}"/>'
        f'<text class="cut" x="100%" y="{20 + dropped * tall}">{", ".join(names)}</text>'
        for dropped, names in at.items()
    )


def _middle(rank: int, tall: int) -> float:
    return 22 + (rank + 0.5) * tall


def _errors(orders: Mapping[str, list[tuple[int, float | None]]]) -> str:
    """Normalised error of the output after so many removals; and of each layer alone, in its order."""
    looks = {"iterative": (canvas.BLUE, "solid", "stroke b0", "all layers so far removed"),
             "single": ("var(--ffn)", "dash", "stroke b1", "one layer alone removed, smallest error first")}  # fmt: skip
    data, marks, known = [], [], []
    for name, (colour, dash, mark, meaning) in looks.items():
        order = orders.get(name, [])
        values = [score for _, score in order if score is not None]
        if len(values) < 2:
            continue
        known += values
        marks.append((mark, meaning))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": list(range(1, len(order) + 1)),
                "y": [score for _, score in order],
                "text": [f"layer {layer}" for layer, _ in order],
                "line": {"color": colour, "width": 1.6, "dash": dash},
                "marker": {"size": 6, "color": colour},
                "hovertemplate": "%{x}. removal, %{text}: %{y:.3g}<extra></extra>",
            }
        )
    if not data:
        return ""
    wide = min(known) > 0 and max(known) / min(known) > 20
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 8, "t": 10, "b": 44},
        "xaxis": canvas.axis(title="removal", showgrid=False),
        "yaxis": canvas.axis(
            title="normalised MSE of the output", **(canvas.decades(known) if wide else canvas.log(False))
        ),
    }
    return f"<div>{canvas.plot(data, layout, 360, 'Normalised error by layers removed')}{canvas.key(*marks)}</div>"
