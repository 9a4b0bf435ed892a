"""The panel where a reader moves the memory there is, and sees which member of the nested model fits it.

Every size is drawn here, once, and hidden; the script `panel.js` only shows the one that fits, so that without JavaScript, and
on paper, the largest stands there. Beside it a mixture of experts of the same total size, of which every expert must be in
memory however few work on a token. A size whose quality was not measured says so and names the nearest one that was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from befit.report import members, tables
from befit.report import quantities as q


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """Memory as the panel shows it, bytes."""

    low: float
    """The slider's left end: less than the smallest member needs."""
    high: float
    """Its right end and that of every bar: more than anything needs."""

    def at(self, size: float) -> float:
        """Where a size lies on the slider, percent."""
        return 100 * min(1.0, max(0.0, (size - self.low) / (self.high - self.low)))

    def of(self, size: float) -> float:
        """How long a bar of this size is, percent."""
        return 100 * min(1.0, max(0.0, size / self.high))


def panel(facts: Any, parent: members.Parent, wholes: Any) -> str:
    """The panel as HTML; empty if no size says how much memory it needs. `wholes` is the parent's costs."""
    facts = q.mapping(facts)
    sizes = _sizes(facts.get("members"))
    if not sizes:
        return ""
    moe = q.mapping(facts.get("moe"))
    rival = max(tables.memory(moe) or 0, 0)
    top = max(sizes[-1][0], rival)
    scale = _Scale(low=0.85 * sizes[0][0], high=1.06 * top)
    shown = [_member(i, sizes, parent, scale, q.mapping(wholes)) for i in range(len(sizes))]
    least = q.size(sizes[0][0])
    none = (
        f'<article class="state" data-need="0" data-said="Not even the smallest member fits: it needs {least}." hidden>'
        f"<h3>Nothing fits</h3><p>The smallest member needs {least}.</p></article>"
    )
    said = f"{_said(len(sizes) - 1, sizes, parent)} {_rival_said(rival, fits=True) if rival else ''}"
    return (
        f'<div class="memory" data-low="{scale.low:.0f}" data-high="{scale.high:.0f}" style="--room:{scale.of(top):.2f}%">'
        f"{_control(sizes, rival, scale, top)}"
        '<noscript><p class="caption">The slider needs JavaScript; shown is the largest size.</p></noscript>'
        f'<p class="said" role="status">{escape(said)}</p>'
        f'<div class="cards"><div>{none}{"".join(shown)}</div>{_rival(moe, rival, scale)}</div></div>'
    )


def _sizes(given: Any) -> list[tuple[float, Mapping[str, Any]]]:
    """(bytes, size) from small to large; of two that need the same memory the one whose quality was measured."""
    found: dict[float, Mapping[str, Any]] = {}
    for entry in q.entries(given):
        need = tables.memory(entry) or 0
        if need > 0 and (need not in found or q.dig(found[need], "kl") is None):
            found[need] = entry
    return sorted(found.items(), key=lambda pair: pair[0])


def _control(sizes: list[tuple[float, Mapping[str, Any]]], rival: float, scale: _Scale, top: float) -> str:
    """The slider under a row of ticks, one for each size; hidden until the script takes hold of it."""
    value = round(10 * scale.at(top))
    ticks = "".join(
        f'<line class="{"known" if q.dig(entry, "kl") is not None else "other"}" x1="{scale.at(need):.2f}%" '
        f'x2="{scale.at(need):.2f}%" y1="{2 if q.dig(entry, "kl") is not None else 7}" y2="14"/>'
        for need, entry in sizes
    )
    mark = ""
    if rival:
        side = "end" if scale.at(rival) > 50 else "start"
        mark = (
            f'<line class="rival" x1="{scale.at(rival):.2f}%" x2="{scale.at(rival):.2f}%" y1="2" y2="31"/>'
            f'<text class="rival" x="{scale.at(rival):.2f}%" dx="{-6 if side == "end" else 6}" y="28" text-anchor="{side}">'
            "the mixture of experts fits from here</text>"
        )
    return (
        '<div class="control" hidden><div class="asked"><label for="memory">Memory there is</label>'
        f'<output for="memory">{q.size(top)}</output>'
        '<button type="button" data-step="-1">smaller</button><button type="button" data-step="1">larger</button></div>'
        f'<input type="range" id="memory" min="0" max="1000" step="2" value="{value}">'
        f'<svg class="ticks" width="100%" height="33" aria-hidden="true">{ticks}{mark}</svg></div>'
    )


def _member(
    index: int,
    sizes: list[tuple[float, Mapping[str, Any]]],
    parent: members.Parent,
    scale: _Scale,
    wholes: Mapping[str, Any],
) -> str:
    need, entry = sizes[index]
    last = index == len(sizes) - 1
    member = entry.get("member")
    share = q.ratio(need, tables.memory(wholes))
    title = (
        f"The member with {q.percent(share)} of the parent’s memory" if share is not None else "The member that fits"
    )
    facts = [
        ("memory", q.size(need), _memory_parts(entry)),
        ("parameters", q.amount(q.dig(entry, "params")), _of(q.dig(entry, "params"), q.dig(wholes, "params"))),
        ("FLOPs", q.amount(q.dig(entry, "flops")), _of(q.dig(entry, "flops"), q.dig(wholes, "flops"))),
        ("KL to the parent", *_kl(index, sizes)),
    ]
    return (
        f'<article class="state" data-need="{need:.0f}" data-said="{escape(_said(index, sizes, parent))}"'
        f"{'' if last else ' hidden'}>"
        f"<h3>{title}</h3>{_gauge(entry, need, scale)}{_facts(facts)}"
        f'<div class="strip">{members.letters(parent)}{members.strip(member, parent)}</div>'
        f"{members.widths(member, parent)}</article>"
    )


def _said(index: int, sizes: list[tuple[float, Mapping[str, Any]]], parent: members.Parent) -> str:
    need, entry = sizes[index]
    return f"A member of {q.size(need)} fits: {members.describe(entry.get('member'), parent)}."


def _kl(index: int, sizes: list[tuple[float, Mapping[str, Any]]]) -> tuple[str, str]:
    """The quality of a size if it was measured; else a dash and the nearest size that was."""
    need, entry = sizes[index]
    own = q.dig(entry, "kl")
    if own is not None:
        return q.significant(own), "measured"
    known = [(abs(other - need), other, kl) for other, row in sizes if (kl := q.dig(row, "kl")) is not None]
    if not known:
        return q.ABSENT, "not measured"
    _, nearest, kl = min(known)
    return q.ABSENT, f"not measured; {q.significant(kl)} at {q.size(nearest)}, the nearest that was"


def _rival(moe: Mapping[str, Any], need: float, scale: _Scale) -> str:
    """The mixture of experts of the same total size: all of it must be there, though few parameters work on a token."""
    if not need:
        return ""
    params, active = q.dig(moe, "params"), q.dig(moe, "active_params")
    facts = [
        ("memory", q.size(need), _memory_parts(moe)),
        ("parameters", q.amount(params), f"{q.amount(active)} work on a token" if active is not None else ""),
    ]
    verdicts = "".join(
        f'<p class="verdict"{"" if fits else " hidden"} data-fits="{"yes" if fits else "no"}" '
        f'data-said="{escape(_rival_said(need, fits=fits))}"><span class="badge {look}">{words}</span></p>'
        for fits, look, words in ((True, "good", "fits"), (False, "bad", "does not fit"))
    )
    name = escape(str(moe.get("name") or "A mixture of experts"))
    return (
        f'<article class="rival" data-need="{need:.0f}"><h3>{name[:1].upper()}{name[1:]}</h3>{_gauge(moe, need, scale)}{verdicts}'
        f"{_facts(facts)}<p class='caption'>Which experts a token needs is known only when it comes, so all of them "
        "must be loaded.</p></article>"
    )


def _rival_said(need: float, *, fits: bool) -> str:
    return (
        "The mixture of experts fits." if fits else f"The mixture of experts does not: it needs {q.size(need)}, whole."
    )


def _gauge(entry: Mapping[str, Any], need: float, scale: _Scale) -> str:
    """Weights and caches as one bar, with a line at the memory there is."""
    weights, cache = q.dig(entry, "weight_bytes"), q.dig(entry, "cache_bytes")
    parts = (
        [("weights", weights), ("caches", cache)] if weights is not None and cache is not None else [("weights", need)]
    )
    bars = "".join(f'<i class="{name}" style="width:{scale.of(size or 0):.2f}%"></i>' for name, size in parts)
    return f'<div class="gauge" role="img" aria-label="{q.size(need)}">{bars}<span class="room"></span></div>'


def _memory_parts(entry: Mapping[str, Any]) -> str:
    weights, cache = q.dig(entry, "weight_bytes"), q.dig(entry, "cache_bytes")
    return f"weights {q.size(weights)}, caches {q.size(cache)}" if weights is not None and cache is not None else ""


def _of(value: float | None, whole: float | None) -> str:
    share = q.ratio(value, whole)
    return f"{q.percent(share)} of the parent’s" if share is not None else ""


def _facts(facts: list[tuple[str, str, str]]) -> str:
    rows = (
        f"<div><dt>{name}</dt><dd>{value}<small>{escape(remark)}</small></dd></div>"
        for name, value, remark in facts
        if value != q.ABSENT or remark
    )
    return f'<dl class="facts">{"".join(rows)}</dl>'
