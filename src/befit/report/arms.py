"""The arms of a run against each other: the best so far against what it cost, means with their intervals, and tests."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import accumulate
from typing import Any

from befit.report import canvas, tables
from befit.report import quantities as q
from befit.report.tables import Column, Row, path
from befit.report.yields import name_of, names

MEASURES = {
    "intention": ("An attempt", "accuracy of an attempt; one without a new network counts as guessing"),
    "unique": ("New networks", "share of attempts that brought a new network"),
    "conditional": ("A trained network", "accuracy of the networks that were trained; of the others it says nothing"),
    "best": ("The best of a run", "accuracy of a run’s best network"),
}
"""What is compared: a name, and what it is."""

COLOURS = (canvas.BLUE, "var(--ffn)", "var(--mamba)", "var(--chosen)", canvas.MUTED, canvas.INK, "var(--good)")
"""One for each arm, as often as needed."""

_SURE = 0.05
"""A corrected p below this is set in bold."""


def curves(summary: Mapping[str, Any]) -> str:
    """The best accuracy so far against attempts, tokens and time: each arm's mean over its runs."""
    rows = q.entries(summary.get("rows"))
    arms = names(summary) or list(dict.fromkeys(name_of(row.get("arm")) for row in rows))
    seconds = sum(map(_seconds, rows)) / max(1, len(q.entries(summary.get("arms"))))
    time = ("minutes", 60.0) if seconds > 180 else ("seconds", 1.0)
    axes = (
        ("attempts", 1.0, lambda _row: 1.0),
        ("thousand tokens, read and written", 1e3, _tokens),
        (f"{time[0]} of calls, checks and training", time[1], _seconds),
    )
    chances = [value for one in q.entries(summary.get("arms")) if (value := q.number(one.get("chance"))) is not None]
    chance = sum(chances) / len(chances) if chances else None
    panels = [_curve_panel(title, divisor, read, rows, arms, chance) for title, divisor, read in axes]
    drawn = [panel for panel in panels if panel]
    if not drawn:
        return ""
    key = _key(arms) if len(arms) > 1 else ""
    return f'<div class="panels">{"".join(drawn)}</div>{key}'


def curves_in_words(summary: Mapping[str, Any]) -> str:
    """What the lines are."""
    runs = len(q.entries(summary.get("arms")))
    mean = (
        "Mean over the runs of an arm (datasets and seeds) after as many attempts. "
        if runs > len(names(summary))
        else ""
    )
    told = {name_of(one.get("arm")) for one in q.entries(summary.get("rows")) if _tokens(one) > 0}
    free = [arm for arm in names(summary) if arm not in told] if told else []
    none = f" Without tokens, and so without a line over them: {', '.join(free)}." if free else ""
    return mean + "On validation images; before the first trained network the line is at guessing (dotted)." + none


def _key(arms: Sequence[str]) -> str:
    words = [
        f'<span class="key"><i class="swatch" style="border-color:{COLOURS[place % len(COLOURS)]}"></i>{escape(arm)}</span>'
        for place, arm in enumerate(arms)
    ]
    return f'<p class="caption">{" ".join(words)}</p>'


def _sum(row: Mapping[str, Any], *keys: str) -> float:
    return sum(max(0, q.number(row.get(key)) or 0) for key in keys)


def _tokens(row: Mapping[str, Any]) -> float:
    return _sum(row, "prompt_tokens", "completion_tokens")


def _seconds(row: Mapping[str, Any]) -> float:
    return _sum(row, "call_seconds", "gate_seconds", "train_seconds")


def _curve_panel(
    title: str,
    divisor: float,
    read: Callable[[Mapping[str, Any]], float],
    rows: Sequence[Mapping[str, Any]],
    arms: Sequence[str],
    chance: float | None,
) -> str:
    data: list[dict[str, Any]] = []
    for place, arm in enumerate(arms):
        xs, ys = _mean_curve([row for row in rows if name_of(row.get("arm")) == arm], read, chance or 0.0)
        if len(xs) < 2 or not any(xs):
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [x / divisor for x in xs],
                "y": [100 * y for y in ys],
                "name": canvas.safe(arm),
                "line": {"color": COLOURS[place % len(COLOURS)], "width": 1.9, "shape": "hv"},
                "marker": {"size": [0] * (len(xs) - 1) + [6]},  # where it ended
                "hovertemplate": f"{canvas.safe(arm)}<br>%{{y:.1f}} % after %{{x:.4g}}<extra></extra>",
            }
        )
    if not data:
        return ""
    reach = max(x for line in data for x in line["x"])
    if chance is not None:
        dotted = {"color": canvas.INK, "width": 1, "dash": "dot"}
        ends = {"x": [0, reach], "y": [100 * chance] * 2}
        data.append({"type": "scatter", "mode": "lines", **ends, "line": dotted, "hoverinfo": "skip"})
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 10, "t": 10, "b": 46},
        "xaxis": canvas.axis(title=title, range=[0, 1.02 * reach]),
        "yaxis": canvas.axis(title="best accuracy so far, %"),
    }
    return canvas.plot(data, layout, 320, f"Best accuracy so far against {title}")


def _mean_curve(
    rows: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], float], start: float
) -> tuple[list[float], list[float]]:
    """Mean cost and mean best after each attempt, as far as all runs of the arm have come."""
    runs = dict[tuple[str, str], list[Mapping[str, Any]]]()
    for row in rows:
        runs.setdefault((str(row.get("dataset")), str(row.get("seed"))), []).append(row)
    lines = []
    for group in runs.values():
        ordered = sorted(group, key=lambda row: q.number(row.get("number")) or 0)
        # A repeated network has the accuracy of the first one, which is in the line already, or in another run's.
        told = [q.number(row.get("accuracy")) if row.get("same_as") is None else None for row in ordered]
        best = list(accumulate((start if value is None else value for value in told), max))
        lines.append((list(accumulate(map(read, ordered))), best))
    shortest = min((len(best) for _, best in lines), default=0)
    xs = [sum(cost[at] for cost, _ in lines) / len(lines) for at in range(shortest)]
    ys = [sum(best[at] for _, best in lines) / len(lines) for at in range(shortest)]
    return [0.0, *xs], [start, *ys]


# The comparison


def comparison(summary: Mapping[str, Any]) -> str:
    """For each measure the arms' means with intervals, and the tests."""
    facts = q.mapping(summary.get("comparison"))
    measures = {name: q.mapping(told) for name, told in q.mapping(facts.get("measures")).items()}
    if max((len(q.entries(told.get("arms"))) for told in measures.values()), default=0) < 2:
        return ""
    panels = [_means_panel(str(name), told) for name, told in measures.items()]
    parts = [f'<div class="panels pairs">{"".join(panels)}</div>']
    for name, told in measures.items():
        lines = q.entries(told.get("pairs"))
        whole = _pairs([one for one in lines if one.get("dataset") is None])
        each = _pairs([one for one in lines if one.get("dataset") is not None])
        if whole or each:
            title, words = MEASURES.get(str(name), (str(name), ""))
            folded = f"<details><summary>On each dataset</summary>{each}</details>" if each else ""
            parts.append(f'<h3>{escape(title)}</h3><p class="caption">{escape(words)}</p>{whole}{folded}')
    return "".join(parts)


def comparison_in_words(summary: Mapping[str, Any]) -> str:
    """What the intervals and tests are of."""
    facts = q.mapping(summary.get("comparison"))
    attempts, units = q.mapping(facts.get("attempts")), facts.get("units")
    words = [f"Intervals hold {q.percent(q.number(facts.get('level')) or 0.95)}; every dataset counts the same."]
    words.append("p is of Welch’s test, corrected over all tests of its measure (Holm); g is Hedges’ effect size.")
    if units == "runs":
        words.append("Units are whole runs: one value for each seed.")
    if units == "attempts":
        words.append(
            "There is one seed only, so attempts are the units. Proposals that saw each other’s results are no independent "
            "sample: read these p as too small, and repeat with several seeds."
        )
    if attempts.get("equal") is False:
        words.append("The arms did not have equal numbers of attempts: the comparison is not fair.")
    return " ".join(words)


def _means_panel(name: str, told: Mapping[str, Any]) -> str:
    known = [
        (name_of(one.get("arm")), mean, one)
        for one in q.entries(told.get("arms"))
        if (mean := q.number(one.get("mean"))) is not None
    ]
    if not known:
        return ""
    ends = [(100 * _or(one.get("low"), mean), 100 * _or(one.get("high"), mean)) for _, mean, one in known]
    order = [name_of(one.get("arm")) for one in q.entries(told.get("arms"))]
    colours = [COLOURS[order.index(arm) % len(COLOURS)] for arm, _, _ in known]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": list(pair),
            "y": [canvas.safe(arm)] * 2,
            "line": {"color": colour, "width": 2},
            "hoverinfo": "skip",
        }
        for (arm, _, _), pair, colour in zip(known, ends, colours, strict=True)
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": [100 * mean for _, mean, _ in known],
            "y": [canvas.safe(arm) for arm, _, _ in known],
            "text": [f"{low:.1f} to {high:.1f} %" for low, high in ends],
            "hovertemplate": "%{y}: %{x:.1f} %<br>%{text}<extra></extra>",
            "marker": {"color": colours, "size": 10},
        }
    )
    title = MEASURES.get(name, (name, ""))[0]
    wide = max(len(arm) for arm, _, _ in known)
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    pad = max(0.04 * (most - least), 0.5)
    layout = {
        "showlegend": False,
        "margin": {"l": min(130, 18 + 7 * wide), "r": 14, "t": 30, "b": 44},
        "title": {
            "text": canvas.safe(title),
            "font": {"size": 12},
            "x": 0,
            "xanchor": "left",
            "y": 0.98,
            "yanchor": "top",
        },
        "xaxis": canvas.axis(title="%", range=[least - pad, most + pad]),
        "yaxis": canvas.axis(type="category", range=[len(known) - 0.5, -0.5], showgrid=False),
    }
    return canvas.plot(data, layout, 110 + 34 * len(known), f"{title} by arm")


def _or(value: Any, other: float) -> float:
    known = q.number(value)
    return other if known is None else known


def _pairs(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for one in lines:
        sure = (q.number(one.get("corrected")) or 1.0) < _SURE
        where = "" if one.get("dataset") is None else f"on {one.get('dataset')}"
        title = f"{name_of(one.get('b'))} –\u00a0{name_of(one.get('a'))}"
        rows.append(Row(name=title, remark=where, values=one, look="child" if sure else "baseline"))
    return tables.grid(rows, _TESTS, {}, "Tests")


def _points(value: float | None) -> str:
    return q.ABSENT if value is None else f"{100 * value:+.1f}".replace("-", "−")


def _probability(value: float | None) -> str:
    return q.ABSENT if value is None else "&lt; 0.001" if value < 1e-3 else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return q.ABSENT if value is None else f"{value:+.2f}".replace("-", "−")


_TESTS = (
    Column(group="Difference, points", name="mean", read=path("difference"), write=_points),
    Column(group="Difference, points", name="from", read=path("low"), write=_points),
    Column(group="Difference, points", name="to", read=path("high"), write=_points),
    Column(group="p", name="corrected", read=path("corrected"), write=_probability),
    Column(group="p", name="alone", read=path("p"), write=_probability),
    Column(group="Effect g", name="", read=path("g"), write=_signed),
    Column(group="Effect g", name="from", read=path("g_low"), write=_signed),
    Column(group="Effect g", name="to", read=path("g_high"), write=_signed),
)
