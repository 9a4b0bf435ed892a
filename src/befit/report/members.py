"""What a member of a nested model keeps: a strip with one box for every layer of the parent, and a bar for every width.

A box is filled as high as its layer is wide; a dropped layer is an empty outline. Plain HTML and SVG in percent of the page's
width, so that 22 layers and 120 fit a phone; no JavaScript.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from befit.report import canvas
from befit.report import quantities as q

AXES = {
    "hidden": "embedding",
    "ffn": "FFN",
    "kv_heads": "KV heads",
    "heads_per_kv": "heads per KV",
    "mamba_heads": "Mamba heads",
    "mamba_head_dim": "head channels",
    "state": "SSM state",
}
"""The widths of a member, and what a reader calls them."""
KINDS = {"mamba": "Mamba-2", "attention": "attention", "ffn": "FFN"}
"""The sub-blocks that a layer may be, in words; a layer of two is written `attention+ffn`."""
_LETTERS = {"mamba": "M", "attention": "A", "ffn": "F"}
_HUES = {"mamba": "mamba", "attention": "attn", "ffn": "ffn"}
_TALL = 30.0
"""Height of a box, pixels."""
_MOST_LETTERS = 32
"""Deeper networks have boxes too narrow for a letter on a phone; the colours say it alone."""


@dataclass(frozen=True, kw_only=True)
class Parent:
    """What every member is drawn against."""

    layers: tuple[str, ...]
    """The kind of every layer."""
    widths: Mapping[str, float] = field(default_factory=dict)
    """The parent's width of every axis that it has."""

    @staticmethod
    def of(summary: Mapping[str, Any]) -> "Parent":
        """Read the parent from a summary; what is missing is left out."""
        widths = q.mapping(summary.get("widths"))
        known = {axis: value for axis in AXES if (value := q.number(widths.get(axis))) is not None and value > 0}
        return Parent(layers=tuple(str(kind) for kind in q.sequence(summary.get("layers"))), widths=known)


def kept(member: Any) -> list[int]:
    """The parent's layers that a member keeps."""
    numbers = (q.number(layer) for layer in q.sequence(q.mapping(member).get("layers")))
    return [int(number) for number in numbers if number is not None]


def width(member: Any, axis: str) -> tuple[float, float] | None:
    """The narrowest and the widest of an axis (they differ only where layers have FFNs of their own); None if unknown."""
    value = q.mapping(member).get(axis)
    given = [number for entry in (q.sequence(value) or [value]) if (number := q.number(entry)) is not None]
    return (min(given), max(given)) if given else None


def describe(member: Any, parent: Parent) -> str:
    """What is kept, in one line of plain text."""
    words = [f"{len(kept(member))} of {len(parent.layers)} layers"] if parent.layers else []
    for axis, whole in parent.widths.items():
        span = width(member, axis)
        if span is not None and span[0] < whole:
            words.append(f"{AXES[axis]} {_share(span, whole)}")
    return (
        ", ".join(words) if len(words) > 1 or not parent.widths else ", ".join([*words, "every width as in the parent"])
    )


def sizes(members: Sequence[tuple[str, str, Any]], parent: Parent) -> str:
    """One row for each member: (its name, a remark, the member), its layers beside its widths; empty without layers."""
    rows = [
        f'<div class="size"><p class="name">{escape(name)}<small>{escape(remark)}</small></p>'
        f'<div class="strip">{letters(parent)}{strip(member, parent)}</div>{widths(member, parent)}</div>'
        for name, remark, member in members
        if q.mapping(member)
    ]
    return f'<div class="sizes">{"".join(rows)}</div>{key(parent)}' if rows and parent.layers else ""


def key(parent: Parent) -> str:
    """The legend of strips: the kinds of layer there are, and what an empty box is."""
    found = [kind for kind in KINDS if any(kind in _parts(layer) for layer in parent.layers)]
    marks = [(f"box {_HUES[kind]}", f"{KINDS[kind]} ({_LETTERS[kind]})") for kind in found]
    return canvas.key(*marks, ("box ghost", "width that only the parent has"), ("box gone", "layer dropped"))


def letters(parent: Parent) -> str:
    """The line above a strip: the kind of every layer as a letter, or its number here and there where there is no room."""
    count = len(parent.layers)
    pitch = 100 / max(count, 1)
    few = count <= _MOST_LETTERS
    words = [
        f'<text x="{(i + 0.5) * pitch:.2f}%" y="11">{escape(_letter(kind)) if few else i}</text>'
        for i, kind in enumerate(parent.layers)
        if few or i % 10 == 0
    ]
    return f'<svg class="letters" width="100%" height="14" aria-hidden="true">{"".join(words)}</svg>'


def strip(member: Any, parent: Parent) -> str:
    """One box for each layer of the parent, filled as far as the member is wide there."""
    there, pitch = set(kept(member)), 100 / max(len(parent.layers), 1)
    boxes = []
    for layer, kind in enumerate(parent.layers):
        left, span = layer * pitch + pitch * 0.09, pitch * 0.82
        title = f"<title>Layer {layer}, {escape(_in_words(kind))}{'' if layer in there else ': dropped'}</title>"
        drawn = (
            _filled(member, parent, layer, (left, span)) if layer in there else _box("gone", left, span, 0.5, _TALL - 1)
        )
        boxes.append(f'<g class="layer" data-layer="{layer}">{title}{drawn}</g>')
    label = escape(f"Layers kept: {', '.join(map(str, sorted(there)))}")
    return f'<svg class="boxes" width="100%" height="{_TALL:g}" role="img" aria-label="{label}">{"".join(boxes)}</svg>'


def widths(member: Any, parent: Parent) -> str:
    """A small bar for each axis, in percent of the parent."""
    cells = []
    for axis, whole in parent.widths.items():
        span = width(member, axis)
        if span is None:
            continue
        low, high = (100 * min(1.0, max(0.0, value / whole)) for value in span)
        count = "–".join(dict.fromkeys(q.whole(value) for value in span))
        cells.append(
            f'<div class="width"><span class="axis">{AXES[axis]}</span><span class="thin">'
            f'<i class="most" style="width:{high:.1f}%"></i><i style="width:{low:.1f}%"></i></span>'
            f"<span><b>{count}</b> <small>{_share(span, whole)}</small></span></div>"
        )
    return f'<div class="widths">{"".join(cells)}</div>' if cells else ""


def _filled(member: Any, parent: Parent, layer: int, place: tuple[float, float]) -> str:
    left, span = place
    parts = _parts(parent.layers[layer]) or [""]
    each, drawn = span / len(parts), []
    for i, part in enumerate(parts):
        tall = max(2.0, round(_TALL * _part_share(member, parent, part, layer), 2))
        drawn.append(_box("ghost", left + i * each, each, 0, _TALL))
        drawn.append(_box(_HUES.get(part, "other"), left + i * each, each, _TALL - tall, tall))
    return "".join(drawn)


def _part_share(member: Any, parent: Parent, part: str, layer: int) -> float:
    """How wide a layer is, as a share of the parent's: heads times channels, query heads, or neurons."""
    if part == "ffn":
        given = q.sequence(q.mapping(member).get("ffn"))
        layers = kept(member)
        own = q.number(given[layers.index(layer)]) if len(given) == len(layers) else None
        share = q.ratio(own, parent.widths.get("ffn")) if own is not None else _axis_share(member, parent, "ffn")
    elif part == "mamba":
        share = _axis_share(member, parent, "mamba_heads") * _axis_share(member, parent, "mamba_head_dim")
    else:
        share = _axis_share(member, parent, "kv_heads") * _axis_share(member, parent, "heads_per_kv")
    return min(1.0, max(0.0, share if share is not None else 1.0))


def _axis_share(member: Any, parent: Parent, axis: str) -> float:
    span, whole = width(member, axis), parent.widths.get(axis)
    return span[1] / whole if span and whole else 1.0


def _share(span: tuple[float, float], whole: float) -> str:
    low, high = (q.percent(value / whole) for value in span)
    return low if low == high else f"{low.removesuffix(q.GAP + '%')}–{high}"


def _box(hue: str, left: float, span: float, y: float, tall: float) -> str:
    return f'<rect class="{hue}" x="{left:.2f}%" y="{y:g}" width="{span:.2f}%" height="{tall:g}"/>'


def _parts(kind: str) -> list[str]:
    return [part for part in kind.split("+") if part in KINDS]


def _letter(kind: str) -> str:
    return "".join(_LETTERS[part] for part in _parts(kind)) or "?"


def _in_words(kind: str) -> str:
    return " and ".join(KINDS[part] for part in _parts(kind)) or kind
