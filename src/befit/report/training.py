"""How a nested model was trained: quality of every budget over the steps, what the router chose, and the curriculum."""

from collections.abc import Mapping
from html import escape
from typing import Any

from befit.report import canvas, members
from befit.report import quantities as q

_LOOKS = (
    (canvas.BLUE, "solid"),
    ("var(--ffn)", "dash"),
    ("var(--mamba)", "dot"),
    (canvas.CHOSEN, "dashdot"),
    (canvas.MUTED, "solid"),
)
"""Colour and dash of each budget's line, largest budget first."""


def curves(training: Any) -> str:
    """The KL of every budget over the steps."""
    lines = _curves(training)
    values = [value for points in lines.values() for _, value in points]
    if not values:
        return ""
    positive = [value for value in values if value > 0]
    wide = len(positive) == len(values) and max(values) / min(values) > 20
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": [step for step, _ in points],
            "y": [value for _, value in points],
            "line": _line(i),
            "hovertemplate": f"{canvas.safe(name)}, step %{{x}}: %{{y:.3g}}<extra></extra>",
        }
        for i, (name, points) in enumerate(lines.items())
    ]
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 8, "t": 6, "b": 44},
        "xaxis": canvas.axis(title="step", showgrid=False),
        "yaxis": canvas.axis(title="KL to the parent", **(canvas.decades(values) if wide else canvas.log(False))),
    }
    return canvas.plot(data, layout, 320, "KL of every budget by step") + _key(list(lines))


def choices(training: Any, parent: members.Parent) -> str:
    """What the router chose for every budget over the steps: one panel for each axis that ever moved."""
    rows = [
        row for row in q.entries(q.mapping(training).get("members_over_time")) if q.number(row.get("step")) is not None
    ]
    budgets = sorted({budget for row in rows if (budget := q.number(row.get("budget"))) is not None}, reverse=True)
    panels = [_choice(rows, budgets, axis, parent) for axis in (*parent.widths, "depth")]
    drawn = "".join(panels)
    return f'<h3>What the router chose</h3><div class="panels narrow">{drawn}</div>' if drawn else ""


def curriculum(training: Any) -> str:
    """The stages: tokens, length of the sequences, how often each budget was drawn."""
    facts = q.mapping(training)
    lines = []
    for i, stage in enumerate(q.entries(facts.get("stages")), start=1):
        weights = [
            q.percent(weight) for value in q.sequence(stage.get("weights")) if (weight := q.number(value)) is not None
        ]
        words = [
            f"{q.amount(q.number(stage.get('tokens')))} tokens",
            f"sequences of {q.whole(q.number(stage.get('sequence')))} tokens",
        ]
        words += [f"budgets drawn {' : '.join(weights)}"] if weights else []
        lines.append(f"Stage {i}: {', '.join(words)}.")
    tokens, seconds = q.number(facts.get("tokens")), q.number(facts.get("seconds"))
    if tokens is not None:
        lines.append(
            f"In all {q.amount(tokens)} tokens" + (f" in {q.duration(seconds)}." if seconds is not None else ".")
        )
    return escape(" ".join(lines))


def _curves(training: Any) -> dict[str, list[tuple[float, float]]]:
    """(step, KL) by budget, the largest budget first."""
    found = []
    for key, points in q.mapping(q.mapping(training).get("curves")).items():
        share = _share(key)
        pairs = [(q.number(pair[0]), q.number(pair[1])) for pair in q.sequence(points) if len(q.sequence(pair)) == 2]
        known = [(step, value) for step, value in pairs if step is not None and value is not None]
        if known:
            found.append((-(share or 0), q.percent(share) if share is not None else str(key), known))
    return {name: known for _, name, known in sorted(found, key=lambda entry: entry[0])}


def _share(key: Any) -> float | None:
    try:
        return q.number(float(key))
    except (TypeError, ValueError):
        return None


def _choice(rows: list[Mapping[str, Any]], budgets: list[float], axis: str, parent: members.Parent) -> str:
    whole = float(len(parent.layers)) if axis == "depth" else parent.widths.get(axis)
    data, seen = [], set()
    for i, budget in enumerate(budgets):
        own = sorted(
            (row for row in rows if q.number(row.get("budget")) == budget),
            key=lambda row: q.number(row.get("step")) or 0,
        )
        known = [
            (q.number(row.get("step")), value) for row in own if (value := _chosen(row.get("member"), axis)) is not None
        ]
        shares = [100 * (q.ratio(value, whole) or 0) for _, value in known]
        seen |= set(shares)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [step for step, _ in known],
                "y": shares,
                "text": [q.whole(value) for _, value in known],
                "line": _line(i) | {"shape": "hv"},
                "hovertemplate": f"{q.percent(budget)}, step %{{x}}: %{{text}}<extra></extra>",
            }
        )
    if len(seen) < 2:
        return ""
    name = "layers" if axis == "depth" else members.AXES[axis]
    layout = {
        "showlegend": False,
        "margin": {"l": 40, "r": 8, "t": 26, "b": 34},
        "title": {
            "text": f"{name}, % of the parent",
            "font": {"size": 12},
            "x": 0,
            "xanchor": "left",
            "y": 0.97,
            "yanchor": "top",
        },
        "xaxis": canvas.axis(title="step", showgrid=False, nticks=5),
        "yaxis": canvas.axis(range=[0, 108], dtick=25),
    }
    return canvas.plot(data, layout, 180, f"The router's choice of {name} by step")


def _chosen(member: Any, axis: str) -> float | None:
    if axis == "depth":
        return float(len(members.kept(member))) or None
    span = members.width(member, axis)
    return sum(span) / 2 if span else None


def _line(index: int) -> dict[str, Any]:
    colour, dash = _LOOKS[index % len(_LOOKS)]
    return {"color": colour, "dash": dash, "width": 1.8}


def _key(names: list[str]) -> str:
    return canvas.key(*((f"stroke b{i % len(_LOOKS)}", name) for i, name in enumerate(names)))
