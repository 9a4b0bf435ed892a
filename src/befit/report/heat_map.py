"""The score heat map: what every variant of every layer costs in quality, and what the child uses."""

import math
from collections.abc import Mapping
from typing import Any

from befit.report import canvas
from befit.report import quantities as q
from befit.report.architecture import layers, variant_name

_DECADES = 5
"""Orders of magnitude that the colours span; smaller scores take the lowest colour."""


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
    bands = [(part, canvas.union(layer[part] for layer in table)) for part in ("attention", "ffn")]
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
                "marker": {"color": canvas.MUTED, "opacity": 0.6},
                "hovertemplate": "layer %{x}: block influence %{y:.3g}<extra></extra>",
            }
        )
        layout["yaxis"] = canvas.axis(domain=domains[0], title="influence", showticklabels=False, showgrid=False)
    for index, (part, names) in enumerate(bands, start=first + 1):
        axis = "y" + (str(index) if index > 1 else "")
        data += _band(part, names, table, chosen, (floor, axis))
        layout["yaxis" + axis[1:]] = canvas.axis(
            domain=domains[index - 1],
            tickmode="array",
            tickvals=list(range(len(names))),
            ticktext=[canvas.safe(name) for name in names],
            range=[len(names) - 0.5, -0.5],
            showgrid=False,
        )
    layout["xaxis"] = canvas.axis(
        anchor=f"y{len(domains)}" if len(domains) > 1 else "y",
        range=[-0.5, len(table) - 0.5],
        showgrid=False,
        dtick=_tick(len(table)),
    )
    # Left of the layer numbers, in line with the variants' names: below them it would run into the colour bar.
    corner = {"xref": "paper", "yref": "paper", "x": 0, "y": 0, "xanchor": "right", "yanchor": "top"}
    layout["annotations"] = [{**corner, "text": "layer", "showarrow": False, "xshift": -6, "yshift": -2}]
    layout["coloraxis"] = _colour_scale(floor, top)
    return canvas.plot(data, layout, height + 90, "Score of every variant in every layer")


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
    said = [[f"{canvas.safe(name)}: {q.significant(v)}" for v in row] for name, row in zip(names, values, strict=True)]
    picks = [(i, variant_name(block.get(part))) for i, block in enumerate(chosen[: len(table)])]
    dots = [(i, names.index(name)) for i, name in picks if name in names and table[i][part]]
    size = 8 if len(table) <= 24 else 5 if len(table) <= 48 else 3.5
    cells = {
        "type": "heatmap",
        "z": logs,
        "text": said,
        "xaxis": "x",
        "yaxis": axis,
        "coloraxis": "coloraxis",
        "xgap": 1 if len(table) <= 48 else 0,
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
        "marker": {"size": size, "color": "var(--page)", "line": {"color": canvas.INK, "width": 1.2}},
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
            "lenmode": "pixels",
            "len": 260,
            "tickvals": ticks,
            "ticktext": [f"{10.0**tick:.2g}" for tick in ticks],
            # The empty line keeps the words off the bar, which is thinner than Plotly expects.
            "title": {"text": "KL when only this sub-block is replaced<br> ", "side": "top", "font": {"size": 11}},
        },
    }


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
