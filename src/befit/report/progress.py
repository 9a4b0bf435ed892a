"""The progress of a search as figures: the best so far and the hypervolume after each trial, and what became of the rest."""

from collections.abc import Mapping, Sequence
from typing import Any

from befit.report import canvas, trials
from befit.report import quantities as q

_MARKS = (
    ("x", "✖"),
    ("cross", "✚"),
    ("square-open", "□"),
    ("diamond-open", "◇"),
    ("triangle-up-open", "△"),
    ("star-open", "☆"),
)
"""A mark for each reason why a trial has no score, as Plotly and as text call it."""

_STOPPED = ("stopped early", "triangle-down-open", "▽")


def progress(summary: Mapping[str, Any]) -> str:
    """The best so far and the hypervolume after each trial; trials without a score are marked with their reason."""
    rows = [row for row in q.entries(summary.get("trials")) if q.number(row.get("number")) is not None]
    scored = [row for row in rows if q.number(row.get("value")) is not None]
    if not scored or len(rows) < 2:
        return ""
    kinds = list(dict.fromkeys(kind for row in rows if (kind := _ending(row)) is not None))
    panels = [_best_panel(summary, rows, scored, kinds), _hypervolume_panel(summary, rows)]
    marks = [("dot full", "a trial"), ("stroke", "best so far"), *((_mark(kinds, kind)[1], kind) for kind in kinds)]
    return f'<div class="panels split">{"".join(panels)}</div><div class="lost">{canvas.key(*marks)}</div>'


def in_words(summary: Mapping[str, Any]) -> str:
    """How many trials there were and how long they took, and how to read the figures; plain text."""
    rows = q.entries(summary.get("trials"))
    spent = sum(max(0.0, q.number(row.get("seconds")) or 0.0) for row in rows)
    told = f"{q.whole(len(rows))} trials" + (f", {q.duration(spent)} of evaluation in all. " if spent else ". ")
    return told + (
        "Hypervolume is the part of the square (accuracy from 0 to 1, cost from the dearest trial's down to nothing) that the "
        "trials so far dominate. Marks at the bottom are trials without a score, by reason."
    )


def _best_panel(
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    scored: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
) -> str:
    ordered = sorted(scored, key=lambda row: q.number(row.get("number")) or 0)
    numbers = [q.number(row.get("number")) for row in ordered]
    values = [100 * (q.number(row.get("value")) or 0) for row in ordered]
    highest = [max(values[: place + 1]) for place in range(len(values))]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": numbers,
            "y": highest,
            "line": {"color": canvas.INK, "width": 1.6, "shape": "hv"},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": numbers,
            "y": values,
            "text": [trials.hover(row) for row in ordered],
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {"color": canvas.BLUE, "size": 7},
        },
    ]
    for kind in kinds:
        lost = [row for row in rows if _ending(row) == kind]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [q.number(row.get("number")) for row in lost],
                "y": [0.035 for _ in lost],
                "yaxis": "y2",
                "text": [_lost_hover(row, kind) for row in lost],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": canvas.CHOSEN, "size": 7, "symbol": _mark(kinds, kind)[0]},
            }
        )
    low, high = min(values), max(values)
    pad = 0.1 * (high - low or 1)
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 26, "b": 46},
        "title": _title(f"{trials.judged(summary)}, %"),
        "xaxis": canvas.axis(title="trial", showgrid=False, range=_span(rows)),
        # Room below the lowest for the marks of trials without a score.
        "yaxis": canvas.axis(range=[low - (2 if kinds else 1) * pad, high + pad]),
        "yaxis2": trials.HIDDEN,
    }
    return canvas.plot(data, layout, 320, "Accuracy by trial")


def _hypervolume_panel(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    grown = [q.number(value) for value in q.sequence(summary.get("hypervolume"))]
    points = [
        (number, value)
        for row, value in zip(rows, grown, strict=False)
        if value is not None and (number := q.number(row.get("number"))) is not None
    ]
    if len(points) < 2 or not any(value > 0 for _, value in points):
        return ""
    axes = [q.cost_name(str(axis)) for axis in q.sequence(summary.get("axes"))]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [x for x, _ in points],
            "y": [y for _, y in points],
            "line": {"color": canvas.BLUE, "width": 1.8, "shape": "hv"},
            "hovertemplate": "after trial %{x}: %{y:.3f}<extra></extra>",
        }
    ]
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 26, "b": 46},
        "title": _title(canvas.safe(f"hypervolume: accuracy × spared {', '.join(axes)}" if axes else "hypervolume")),
        "xaxis": canvas.axis(title="trial", showgrid=False, range=_span(rows)),
        "yaxis": canvas.axis(),
    }
    return canvas.plot(data, layout, 320, "Hypervolume by trial")


def _span(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """All trials, with a little room."""
    numbers = [q.number(row.get("number")) or 0 for row in rows]
    room = 0.03 * (max(numbers) - min(numbers) or 1)
    return [min(numbers) - room, max(numbers) + room]


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 12}, "x": 0, "xanchor": "left", "y": 0.985, "yanchor": "top"}


def _ending(row: Mapping[str, Any]) -> str | None:
    """Why a trial has no score; None if it has one, or has not ended."""
    if q.number(row.get("value")) is not None:
        return None
    if row.get("state") == "pruned":
        return _STOPPED[0]
    return str(row.get("reason") or "failed") if row.get("state") == "failed" else None


def _mark(kinds: Sequence[str], kind: str) -> tuple[str, str]:
    if kind == _STOPPED[0]:
        return _STOPPED[1], _STOPPED[2]
    others = [one for one in kinds if one != _STOPPED[0]]
    return _MARKS[others.index(kind) % len(_MARKS)]


def _lost_hover(row: Mapping[str, Any], kind: str) -> str:
    said = canvas.safe(str(row.get("message") or ""))[:160]
    head = f"<b>trial {q.whole(q.number(row.get('number')))}</b> {canvas.safe(kind)}"
    return head + (f"<br>{said}" if said else "")
