"""The budgets of a nested model: cost against limit, quality against cost, and what it takes on disk.

Costs say whether they were counted or measured. A member at a budget that was never trained on is marked wherever it is drawn.
"""

from collections.abc import Mapping
from html import escape
from typing import Any

from befit.report import canvas, frame, tables
from befit.report import quantities as q
from befit.report.tables import Column, Row, path

BASELINES = {
    "uniform": ("every width alike", "diamond", "◆"),
    "greedy": ("by importance, one step at a time", "square", "■"),
    "random": ("a random legal choice", "triangle-up", "▲"),
    "additive": ("solved from one score for each axis", "x", "✖"),
    "separate": ("distilled on its own with the same tokens", "star", "★"),
}
"""What each baseline is, its mark as Plotly calls it, and as text."""
_OTHER = ("", "cross", "✚")
_Point = tuple[float, float, str, bool]
"""Cost in percent of the parent's, quality, hover text, whether it was trained."""


def budget_name(entry: Mapping[str, Any]) -> str:
    """A budget as a share of the parent."""
    return q.percent(q.number(entry.get("budget")))


def cost_of(summary: Mapping[str, Any]) -> str:
    """The cost that the budgets bound."""
    return str(summary.get("cost") or "params")


def table(summary: Mapping[str, Any]) -> str:
    """The parent and every budget: cost against its limit, quality before training and after."""
    name, parent = cost_of(summary), q.mapping(summary.get("parent"))
    whole = dict(parent) | {"value": q.dig(parent, name)}
    rows = [Row(name="parent", remark=str(parent.get("name") or ""), values=whole, look="parent")] if parent else []
    for entry in q.entries(summary.get("members")):
        remark = "never trained on" if entry.get("trained") is False else ""
        rows.append(Row(name=budget_name(entry), remark=remark, values=entry, look="member"))
    return tables.grid(rows, _columns(name), whole, "Budgets")


def _columns(name: str) -> list[Column]:
    def amount(value: float | None) -> str:
        return q.cost(name, value)

    def used(values: Mapping[str, Any]) -> float | None:
        return q.ratio(q.number(values.get("value")), q.number(values.get("limit")))

    what = escape(q.cost_name(name)).capitalize()
    source = "measured" if name.endswith("_ms") else "counted"
    columns = [
        Column(group=what, name=source, read=path("value"), write=amount, share=True),
        Column(group=what, name="at most", read=path("limit"), write=amount),
        Column(group=what, name="of the limit", read=used, write=_used),
        Column(group="KL to the parent", name="trained", read=path("kl")),
        Column(group="KL to the parent", name="cut untrained", read=path("kl_untrained")),
        Column(group="Loss", name="trained", read=path("loss")),
        Column(group="Loss", name="cut untrained", read=path("loss_untrained")),
    ]
    others = {
        "params": Column(group="Parameters", name="", read=path("params"), write=q.amount, share=True),
        "memory_bytes": Column(group="Memory", name="in all", read=tables.memory, write=q.size, share=True),
        "cache_bytes": Column(group="Memory", name="caches", read=path("cache_bytes"), write=q.size),
        "flops": Column(group="FLOPs", name="", read=path("flops"), write=q.amount, share=True),
    }
    return columns + [column for cost, column in others.items() if cost != name]


def _used(value: float | None) -> str:
    """A share of a limit, with the decimals that show a budget missed by little."""
    return q.ABSENT if value is None else f"{100 * value:.2f}{q.GAP}%"


def quality(summary: Mapping[str, Any]) -> str:
    """KL and loss against cost: the nested members as a line, before training as another, baselines as marks."""
    panels = [_panel(summary, "kl", "KL to the parent"), _panel(summary, "loss", "loss")]
    if not any(panels):
        return ""
    members = q.entries(summary.get("members"))
    marks = [("stroke b0", "nested, trained")]
    marks += [("dot", "a budget never trained on")] * any(entry.get("trained") is False for entry in members)
    marks += [("stroke before", "the same cuts before training")]
    for name, points in q.mapping(summary.get("baselines")).items():
        remark, _, mark = BASELINES.get(str(name), _OTHER)
        if q.entries(points):
            words = f"{name}: {remark}" if remark else str(name)
            words += " (hollow: untrained)" * any(point.get("trained") is False for point in q.entries(points))
            marks.append(("star" if name == "separate" else mark, words))
    marks += [("down", "zero, which a logarithm cannot show")] * ('"triangle-down"' in panels[0])
    return f'<div class="panels wide">{"".join(panels)}</div>{canvas.key(*marks)}'


def _panel(summary: Mapping[str, Any], name: str, title: str) -> str:
    whole = _whole(summary)
    members = q.entries(summary.get("members"))
    # The loss of untrained cuts would flatten all other differences; the table and the panel of KL have them.
    before = _points(members, "kl_untrained", whole, "nested, before training") if name == "kl" else []
    after = _points(members, name, whole, "nested")
    marks = {
        str(k): _points(
            [row for row in q.entries(v) if name == "kl" or row.get("trained") is not False], name, whole, str(k)
        )
        for k, v in q.mapping(summary.get("baselines")).items()
    }
    known = [point[1] for points in (before, after, *marks.values()) for point in points]
    positive = [value for value in known if value > 0]
    if not positive:
        return ""
    wide = name == "kl" and max(positive) / min(positive) > 20
    floor = min(positive) / 1.8 if wide else None
    data = [
        _trace(before, ("circle", canvas.MUTED, "dash"), floor),
        *(_trace(points, (BASELINES.get(key, _OTHER)[1], _colour(key), None), floor) for key, points in marks.items()),
        _trace(after, ("circle", canvas.BLUE, "solid"), floor),
    ]
    own = canvas.decades(positive) if wide else {"rangemode": "tozero"} if name == "kl" else {}
    layout = {
        "showlegend": False,
        "margin": {"l": 58, "r": 12, "t": 10, "b": 46},
        "xaxis": canvas.axis(title=f"{canvas.safe(q.cost_name(cost_of(summary)))}, % of the parent"),
        "yaxis": canvas.axis(title=title, **own),
    }
    parents = q.dig(summary, "parent", "loss")
    if name == "loss" and parents is not None:
        layout["shapes"] = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": parents, "y1": parents,
                             "line": {"color": canvas.INK, "width": 1, "dash": "dot"}}]  # fmt: skip
        layout["annotations"] = [{"xref": "paper", "x": 0, "y": parents, "text": "parent", "showarrow": False,
                                  "xanchor": "left", "yanchor": "top"}]  # fmt: skip
    return canvas.plot(data, layout, 340, f"{title} against {q.cost_name(cost_of(summary))}")


def _whole(summary: Mapping[str, Any]) -> float | None:
    """The parent's cost: as stated, or a limit undone."""
    stated = q.dig(summary, "parent", cost_of(summary))
    undone = (q.ratio(q.number(m.get("limit")), q.number(m.get("budget"))) for m in q.entries(summary.get("members")))
    return stated or next((value for value in undone if value), None)


def _points(rows: list[Mapping[str, Any]], key: str, whole: float | None, maker: str) -> list[_Point]:
    """Where to draw each row of one maker, cheapest first; rows without cost or quality are left out."""
    points = []
    for row in rows:
        cost, value = q.ratio(q.number(row.get("value")), whole), q.number(row.get(key))
        if cost is None or value is None:
            continue
        remark = "never trained on" if row.get("trained") is False else ""
        tokens = q.number(row.get("tokens"))
        lines = [f"<b>{canvas.safe(maker)}, budget {budget_name(row)}</b>",
                 f"{key.removesuffix('_untrained')} {q.significant(value)}",
                 f"cost {_used(cost)} of the parent", remark, f"{q.amount(tokens)} tokens" if tokens else ""]  # fmt: skip
        points.append(
            (round(100 * cost, 3), value, "<br>".join(line for line in lines if line), row.get("trained") is not False)
        )
    return sorted(points, key=lambda point: point[0])


def _trace(points: list[_Point], look: tuple[str, str, str | None], floor: float | None) -> dict[str, Any]:
    """`look`: mark, colour, and the line's dash (None for marks alone). Values under `floor` lie on it, marked as such."""
    symbol, colour, dash = look
    sunk = [floor is not None and value <= 0 for _, value, _, _ in points]
    hollow = dash == "dash"
    symbols = [
        "triangle-down" if low else symbol + ("-open" if hollow or not point[3] else "")
        for low, point in zip(sunk, points, strict=True)
    ]
    return {
        "type": "scatter",
        "mode": "lines+markers" if dash else "markers",
        "x": [point[0] for point in points],
        "y": [floor if low else point[1] for low, point in zip(sunk, points, strict=True)],
        "text": [point[2] for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": colour, "width": 2 if dash == "solid" else 1.5, "dash": dash or "solid"},
        "marker": {"symbol": symbols, "color": colour, "size": 11 if symbol == "star" else 8,
                   "line": {"width": 1.6, "color": colour}},
    }  # fmt: skip


def _colour(baseline: str) -> str:
    return canvas.CHOSEN if baseline == "separate" else "var(--ffn)"


def numbers(summary: Mapping[str, Any]) -> str:
    """The KL of every way of choosing at every budget, as tables: what the figure shows, in words.

    Trained is compared with trained, and untrained with untrained.
    """
    parts = _numbers(summary, "kl", trained=True) + _numbers(summary, "kl_untrained", trained=False)
    said = '<p class="caption">Percentages are of the nested member’s KL: above 100 % is worse.</p>'
    return parts + said if parts else ""


def _numbers(summary: Mapping[str, Any], key: str, *, trained: bool) -> str:
    nested = {budget_name(entry): q.number(entry.get(key)) for entry in q.entries(summary.get("members"))}
    rows = [Row(name="nested", values=nested, look="child")]
    for name, points in q.mapping(summary.get("baselines")).items():
        own = [point for point in q.entries(points) if (point.get("trained") is not False) is trained]
        values = {budget_name(point): q.number(point.get("kl")) for point in own}
        if any(value is not None for value in values.values()):
            rows.append(Row(name=str(name), remark=BASELINES.get(str(name), _OTHER)[0], values=values, look="member"))
    group = "KL to the parent, trained" if trained else "KL to the parent, cut untrained"
    given = [name for name in nested if name != q.ABSENT]
    columns = [Column(group=group, name=budget, read=path(budget), share=True) for budget in given]
    return tables.grid(rows, columns, nested, group) if len(rows) > 1 else ""


def storage(summary: Mapping[str, Any]) -> str:
    """One nested checkpoint against a checkpoint for each budget, as bars of bytes."""
    facts = q.mapping(summary.get("storage"))
    own = {key: q.number(facts.get(f"{key}_bytes")) or 0 for key in ("nested", "router", "gains")}
    each = [(budget_name(entry), q.number(entry.get("bytes")) or 0) for entry in q.entries(facts.get("separate"))]
    one, many = sum(own.values()), sum(size for _, size in each)
    if own["nested"] <= 0:
        return ""
    scale = max(one, many)
    bars = [("one nested file", list(own.items()), one)] + [("a file for each budget", each, many)] * bool(each)
    rows = "".join(
        f'<div class="store"><span>{what}</span><span class="heap">{_segments(parts, scale)}</span><b>{q.size(total)}</b></div>'
        for what, parts, total in bars
    )
    return f"<p>{escape(_storage_in_words(own, [name for name, _ in each], many))}</p>{rows}"


def _segments(parts: list[tuple[str, float]], scale: float) -> str:
    return "".join(
        f'<i title="{escape(name)} {q.size(size)}" style="width:{100 * size / scale:.2f}%"><span>{escape(name)}</span></i>'
        for name, size in parts
        if size > 0
    )


def _storage_in_words(own: Mapping[str, float], budgets: list[str], many: float) -> str:
    one = sum(own.values())
    words = f"The nested file takes {q.size(one)} and holds every size"
    if budgets and many:
        words += f"; separate checkpoints for {frame.listed(budgets)} take {q.size(many)}"
        words += f", {q.significant(many / one)} times as much"
    extras = own["router"] + own["gains"]
    parts = [f"{noun} {q.size(own[noun])}" for noun in ("router", "gains") if own[noun]]
    return words + (
        f". In it: {' and '.join(parts)}, {_used(extras / own['nested'])} of the weights." if parts else "."
    )
