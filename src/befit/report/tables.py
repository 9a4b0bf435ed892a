"""The parts of the report that are words and numbers: budget, comparison, stages, funnel. Plain HTML, no JavaScript.

A measured and a predicted number never share a column, and every bound says whether its value was counted, measured or
predicted. A column that no model fills is left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from befit.report import quantities as q

_BASELINES = {
    "depth": "whole layers dropped",
    "greedy": "one layer at a time",
    "random": "a random legal choice",
    "uniform": "every layer alike",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One quantity of a table that compares models."""

    group: str
    """Heading shared with its neighbours."""
    name: str
    """Its own heading; may be empty."""
    read: Callable[[Mapping[str, Any]], float | None]
    """The value of one model."""
    write: Callable[[float | None], str] = q.significant
    """The value as text."""
    share: bool = False
    """Whether the share of the parent's value is shown below."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model of such a table."""

    name: str
    remark: str = ""
    """A few words below the name."""
    values: Mapping[str, Any]
    """What the columns read."""
    look: str = "baseline"
    """Its class in the style sheet: parent, child or baseline."""
    best: bool = False
    """Whether the number in the column `final` is the best of its kind."""


def memory(model: Mapping[str, Any]) -> float | None:
    """Bytes of weights and cache together; None unless both are known or their sum is stated."""
    stated = q.dig(model, "memory_bytes")
    weights, cache = q.dig(model, "weight_bytes"), q.dig(model, "cache_bytes")
    return stated if stated is not None or weights is None or cache is None else weights + cache


def path(*keys: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Read the number at the end of a path of keys."""
    return lambda model: q.dig(model, *keys)


_COLUMNS = (
    Column(group="KL to the parent", name="before healing", read=path("kl_before_heal")),
    Column(group="KL to the parent", name="final", read=path("kl")),
    Column(group="Loss", name="", read=path("loss")),
    Column(group="Latency", name="measured", read=path("latency_ms", "measured"), write=q.milliseconds, share=True),
    Column(group="Latency", name="predicted", read=path("latency_ms", "predicted"), write=q.milliseconds, share=True),
    Column(group="Memory", name="in all", read=memory, write=q.size, share=True),
    Column(group="Memory", name="KV cache", read=path("cache_bytes"), write=q.size),
    Column(group="Parameters", name="", read=path("params"), write=q.amount, share=True),
    Column(group="Prefill", name="measured", read=path("prefill_ms", "measured"), write=q.milliseconds, share=True),
    Column(group="Prefill", name="predicted", read=path("prefill_ms", "predicted"), write=q.milliseconds, share=True),
    Column(group="Decode per token", name="measured", read=path("decode_ms", "measured"), write=q.milliseconds, share=True),
    Column(group="Decode per token", name="predicted", read=path("decode_ms", "predicted"), write=q.milliseconds, share=True),
)  # fmt: skip


def budget(facts: Any) -> str:
    """The badge and, for every bound, value against limit, headroom, and where the value comes from."""
    facts = q.mapping(facts)
    bounds = q.entries(facts.get("bounds"))
    if not bounds and not facts.get("text"):
        return ""
    values = {str(entry.get("cost")): entry for entry in q.entries(facts.get("child"))}
    verdicts = {True: ("good", "met"), False: ("bad", "not met")}
    met = facts.get("met")
    look, verdict = verdicts[met] if isinstance(met, bool) else ("", "not checked yet")
    state = f'<span class="badge {look}">{verdict}</span>'
    lines = [_bound(bound, values.get(str(bound.get("cost")), {})) for bound in bounds]
    given = f"<code>{escape(str(facts['text']))}</code>" if facts.get("text") else ""
    return f'<div class="budget"><p class="verdict">Budget {given} {state}</p>{"".join(lines)}</div>'


def comparison(summary: Mapping[str, Any]) -> str:
    """Parent, child and baselines in one table; the lowest KL to the parent is marked."""
    models, parent = _models(summary), q.mapping(summary.get("parent"))
    known = {row.name: kl for row in models[bool(parent) :] if (kl := q.dig(row.values, "kl")) is not None}
    best = min(known, key=lambda name: known[name]) if known else None
    return grid([replace(row, best=row.name == best) for row in models], _COLUMNS, parent, "Comparison")


def grid(rows: Sequence[Row], columns: Sequence[Column], parent: Mapping[str, Any], label: str) -> str:
    """A table of models that scrolls by itself where it is too wide; columns that nobody fills are left out."""
    filled = [c for c in columns if any(c.read(row.values) is not None for row in rows)]
    groups = list(dict.fromkeys(c.group for c in filled))
    filled.sort(key=lambda c: groups.index(c.group))  # a heading stands over neighbours only
    if not rows or not filled:
        return ""
    body = "".join(_row(row, filled, parent) for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table class="compare">'
        f"<thead>{_heads(filled)}</thead><tbody>{body}</tbody></table></div>"
    )


def stages(rows: Any) -> str:
    """The stages with their seconds, a bar for each, and what was reused."""
    entries = q.entries(rows)
    seconds = [q.number(entry.get("seconds")) or 0.0 for entry in entries]
    longest, lines = max(seconds, default=0.0), []
    for entry, value in zip(entries, seconds, strict=True):
        share = 100 * value / longest if longest > 0 else 0
        reused = '<span class="tag">reused</span>' if entry.get("reused") is True else ""
        note = f'<span class="note">{escape(str(entry["note"]))}</span>' if entry.get("note") else ""
        lines.append(
            f'<tr><th scope="row">{escape(str(entry.get("name", "")))}</th>'
            f"<td>{q.duration(q.number(entry.get('seconds')))}</td>"
            f'<td class="rest"><span class="bar" style="width:{0.45 * share:.1f}%"></span>{reused}{note}</td></tr>'
        )
    if not lines:
        return ""
    spent = sum(value for entry, value in zip(entries, seconds, strict=True) if entry.get("reused") is not True)
    total = f'<tr class="total"><th scope="row">this run</th><td>{q.duration(spent)}</td><td></td></tr>'
    return f'<table class="stages"><tbody>{"".join(lines)}{total}</tbody></table>'


def funnel(rows: Any) -> str:
    """How many candidates each stage looked at."""
    lines = [
        f"<div><dt>{escape(str(entry.get('stage', '')))}</dt><dd>{_counted(entry.get('count'))}</dd></div>"
        for entry in q.entries(rows)
    ]
    return f'<dl class="funnel">{"".join(lines)}</dl>' if lines else ""


def _counted(value: Any) -> str:
    return q.whole(q.number(value)) if not isinstance(value, str) else escape(value)


def _bound(bound: Mapping[str, Any], child: Mapping[str, Any]) -> str:
    name, limit, value = str(bound.get("cost", "")), q.number(bound.get("value")), q.number(child.get("value"))
    at_least = str(bound.get("op", "<=")).startswith(">")
    used = q.ratio(limit, value) if at_least else q.ratio(value, limit)
    headroom = q.number(child.get("headroom"))
    if headroom is None and used is not None:
        headroom = 1 - used if not at_least else (q.ratio(value, limit) or 0) - 1
    over = headroom is not None and headroom < 0
    given = str(bound.get("given") or "")
    relative = q.factor(given) is not None
    of_parent = f" <small>({escape(given)} of the parent’s)</small>" if relative else ""
    sign = "at least" if at_least else "at most"
    kind = f'<span class="tag">{escape(str(child["kind"]))}</span>' if child.get("kind") else ""
    spare = f"{q.percent(abs(headroom))} {'over' if over else 'to spare'}" if headroom is not None else ""
    fill = min(used if used is not None else 0, 1.2) / 1.2 * 100
    return (
        f'<div class="bound{" over" if over else ""}"><span class="what">{escape(q.cost_name(name))}</span>'
        f'<span class="value">{q.cost(name, value)}</span><span class="limit">{sign} {q.cost(name, limit)}{of_parent}</span>'
        f'<span class="track"><span class="fill" style="width:{fill:.1f}%"></span></span>'
        f'<span class="spare">{spare}</span>{kind}</div>'
    )


def _models(summary: Mapping[str, Any]) -> list[Row]:
    """The models that exist, parent first."""
    parent, child = q.mapping(summary.get("parent")), q.mapping(summary.get("child"))
    models = [Row(name="parent", remark=str(parent.get("name") or ""), values=parent, look="parent"),
              Row(name="child", remark="befit’s choice", values=child, look="child")]  # fmt: skip
    for name, model in q.mapping(summary.get("baselines")).items():
        look = name if name in ("parent", "child") else "baseline"
        models.append(Row(name=str(name), remark=_BASELINES.get(str(name), ""), values=q.mapping(model), look=look))
    return [row for row in models if row.values]


def _heads(columns: list[Column]) -> str:
    groups: dict[str, list[Column]] = {}
    for column in columns:
        groups.setdefault(column.group, []).append(column)
    top, below = ['<th rowspan="2" scope="col"></th>'], []
    for group, members in groups.items():
        if len(members) == 1 and not members[0].name:
            top.append(f'<th class="open" rowspan="2" scope="col">{group}</th>')
            continue
        top.append(f'<th class="open" colspan="{len(members)}" scope="colgroup">{group}</th>')
        below += [
            f'<th{_open(members, member)} scope="col"><span class="unit">{member.name}</span></th>'
            for member in members
        ]
    return f"<tr>{''.join(top)}</tr><tr>{''.join(below)}</tr>"


def _open(members: list[Column], member: Column) -> str:
    """The first column of a group stands a little apart."""
    return ' class="open"' if member is members[0] else ""


def _row(row: Row, columns: list[Column], parent: Mapping[str, Any]) -> str:
    cells = []
    for i, column in enumerate(columns):
        value = column.read(row.values)
        text = column.write(value)
        share = q.ratio(value, column.read(parent)) if column.share and row.values is not parent else None
        below = f"<small>{q.percent(share)}</small>" if share is not None else ""
        if row.best and column.name == "final":
            text, below = f'<strong class="best">{text}</strong>', '<small class="best">best</small>'
        apart = ' class="open"' if i == 0 or columns[i - 1].group != column.group else ""
        cells.append(f"<td{apart}>{text}{below}</td>")
    said = f"<small>{escape(row.remark)}</small>" if row.remark else ""
    return f'<tr class="{row.look}"><th scope="row">{escape(row.name)}{said}</th>{"".join(cells)}</tr>'
