"""The architecture as a picture: one row for each layer, the child drawn over the ghost of its parent.

Left the KV heads, one small bar for each; right the FFN, a bar as long as it is wide. Plain SVG in percent of the page's
width and pixels of height, so that text keeps its size on a phone and 80 layers are as legible as 8; no JavaScript.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from befit.report.quantities import entries, mapping, number, whole

_ATTENTION = (8.0, 27.0)
"""Where the heads begin and how far they reach, percent of the width."""
_FFN = (53.0, 31.0)
"""The same for the FFN."""
_MOST_BARS = 32
"""More KV heads than this are drawn as one proportional bar: single bars would be thinner than a pixel on a phone."""
_ROWS_PER_COLUMN = 42
"""Deeper networks continue in a second column."""


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One sub-block, ready to draw."""

    kind: str
    """size, linear, noop or unknown."""
    size: int = 0
    """KV heads or FFN neurons; 0 unless kind is size."""
    window: int | None = None
    """Attention window in tokens."""

    @property
    def label(self) -> str:
        if self.kind != "size":
            return {"linear": "linear", "noop": "no-op"}.get(self.kind, "?")
        return f"{self.size}" + (f" w{self.window}" if self.window else "")


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """What a full bar stands for in this picture."""

    heads: int
    width: int


def variant_name(sub_block: Any) -> str | None:
    """The name under which a sub-block is scored (`kv4`, `kv4w128`, `ffn512`, `linear`, `noop`), None if unreadable."""
    cell = _cell(sub_block, "kv_heads" if "kv_heads" in mapping(sub_block) else "width")
    if cell.kind == "size" and "kv_heads" in mapping(sub_block):
        return f"kv{cell.size}" + (f"w{cell.window}" if cell.window else "")
    return f"ffn{cell.size}" if cell.kind == "size" else cell.kind if cell.kind != "unknown" else None


def layers(arch: Any) -> list[Mapping[str, Any]]:
    """The layers of an architecture as plain mappings; empty if there is none."""
    return entries(mapping(arch).get("blocks"))


def picture(child: Any, parent: Any) -> str:
    """The layer-by-layer picture as HTML, or an empty string if the child has no architecture yet."""
    rows, ghosts = _cells(child), _cells(parent)
    if not rows:
        return ""
    ghosts += [(_Cell(kind="unknown"), _Cell(kind="unknown"))] * (len(rows) - len(ghosts))
    scale = _scale(rows + ghosts)
    columns = math.ceil(len(rows) / _ROWS_PER_COLUMN)
    per_column = math.ceil(len(rows) / columns)
    height = 30 if per_column <= 12 else 22 if per_column <= 24 else 16
    parts = [
        _column(start, rows[start : start + per_column], ghosts[start : start + per_column], scale, height)
        for start in range(0, len(rows), per_column)
    ]
    return f'<div class="layers">{"".join(parts)}</div>'


def thumbnail(arch: Any, parent: Any) -> str:
    """The same rows at a glance: KV heads to the left of the spine, FFN width to the right."""
    rows = _cells(arch)
    if not rows:
        return ""
    scale = _scale(rows + _cells(parent))
    gap = 0.1 if len(rows) <= 28 else 0.0  # thinner rows with gaps would shimmer
    shapes = []
    for y, (attention, ffn) in enumerate(rows):
        for cell, full, side in ((attention, scale.heads, "attn"), (ffn, scale.width, "ffn")):
            length = 48.0 * (cell.size / full if cell.kind == "size" else cell.kind == "linear")
            top, tall = (y + 0.42, 0.16) if cell.kind == "linear" else (y + gap, 1 - 2 * gap)
            x = 49 - length if side == "attn" else 51.0
            if length:
                shapes.append(
                    f'<rect class="{side}" x="{x:.2f}" y="{top:.2f}" width="{length:.2f}" height="{tall:g}"/>'
                )
    return (
        f'<svg class="thumb" viewBox="0 0 100 {len(rows)}" preserveAspectRatio="none" role="img" '
        f'aria-label="{len(rows)} layers in miniature"><rect class="ghost" width="100" height="{len(rows)}"/>'
        f"{''.join(shapes)}</svg>"
    )


def describe(child: Any, parent: Any) -> str:
    """What changed, in one sentence of plain text."""
    rows, ghosts = _cells(child), _cells(parent)
    if not rows:
        return ""
    words = []
    for index, noun in enumerate(("attention", "FFN")):
        for kind, verb in (("noop", "dropped"), ("linear", "made linear")):
            count = sum(row[index].kind == kind for row in rows)
            if count:
                words.append(f"{count} {noun} sub-block{'s' if count > 1 else ''} {verb}")
    for index, noun in enumerate(("KV heads", "FFN neurons")):
        now, before = (sum(row[index].size for row in table) for table in (rows, ghosts))
        if before and now != before:
            words.append(f"{noun} {whole(before)} → {whole(now)}")
    windows = sum(bool(row[0].window) for row in rows)
    if windows:
        words.append(f"{windows} sliding window{'s' if windows > 1 else ''}")
    return f"{len(rows)} layers: {', '.join(words) if words else 'all as in the parent'}."


def _column(start: int, rows: list[tuple[_Cell, _Cell]], ghosts: list, scale: _Scale, height: int) -> str:
    body = [
        f'<text class="head" x="{_ATTENTION[0]}%" y="12">KV heads</text>'
        f'<text class="head" x="{_FFN[0]}%" y="12">FFN width</text>'
    ]
    for i, (row, ghost) in enumerate(zip(rows, ghosts, strict=False)):
        body.append(_row(start + i, row, ghost, scale, 22 + i * height, height))
    total = 22 + len(rows) * height
    label = f"Layers {start} to {start + len(rows) - 1}, child over parent"
    return f'<svg class="arch" width="100%" height="{total}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def _row(layer: int, row: tuple[_Cell, _Cell], ghost: tuple[_Cell, _Cell], scale: _Scale, y: int, height: int) -> str:
    tall = height - (8 if height > 20 else 4)
    middle = y + tall / 2
    title = (
        f"Layer {layer}: attention {_told(row[0], ghost[0], 'KV heads')}; FFN {_told(row[1], ghost[1], 'neurons wide')}"
    )
    return (
        f'<g class="layer" data-layer="{layer}"><title>{escape(title)}</title>'
        f'<rect class="hit" x="0" y="{y}" width="100%" height="{height}"/>'
        f'<text class="index" x="5.5%" y="{middle}">{layer}</text>'
        + _attention(row[0], ghost[0], scale.heads, y, tall)
        + _label(row[0], ghost[0], _ATTENTION, middle)
        + _ffn(row[1], ghost[1], scale.width, y, tall)
        + _label(row[1], ghost[1], _FFN, middle)
        + "</g>"
    )


def _attention(cell: _Cell, ghost: _Cell, heads: int, y: int, tall: int) -> str:
    if cell.kind != "size":
        return _whole_bar(cell, ghost, heads, _ATTENTION, "attn", y, tall)
    left, span = _ATTENTION
    if heads > _MOST_BARS:
        return (
            _rect("ghost", left, span * ghost.size / heads, y, tall)
            + _rect("attn", left, span * cell.size / heads, *_seen(cell, y, tall))
        )  # fmt: skip
    pitch = span / (heads - 0.24)
    bars = []
    for i in range(max(cell.size, ghost.size)):
        if i < ghost.size:
            bars.append(_rect("ghost", left + i * pitch, pitch * 0.76, y, tall))
        if i < cell.size:
            bars.append(_rect("attn", left + i * pitch, pitch * 0.76, *_seen(cell, y, tall)))
    return "".join(bars)


def _ffn(cell: _Cell, ghost: _Cell, width: int, y: int, tall: int) -> str:
    if cell.kind != "size":
        return _whole_bar(cell, ghost, width, _FFN, "ffn", y, tall)
    left, span = _FFN
    return (
        _rect("ghost", left, span * ghost.size / width, y, tall) + _rect("ffn", left, span * cell.size / width, y, tall)
    )  # fmt: skip


def _whole_bar(cell: _Cell, ghost: _Cell, full: int, place: tuple[float, float], hue: str, y: int, tall: int) -> str:
    """A linear map is a thin line through the parent's ghost; a no-op leaves only a dashed outline."""
    left, span = place
    if cell.kind == "linear":
        return _rect("ghost", left, span * ghost.size / full, y, tall) + _rect(hue, left, span, y + tall / 2 - 1.5, 3)
    return _rect(cell.kind, left, span, y + 0.5, tall - 1)


def _seen(cell: _Cell, y: int, tall: int) -> tuple[float, float]:
    """A windowed head sees part of the past: a bar of half the height."""
    return (y + tall / 2, tall / 2) if cell.window else (y, tall)


def _rect(hue: str, left: float, span: float, y: float, tall: float) -> str:
    if span <= 0:
        return ""
    return f'<rect class="{hue}" x="{left:.2f}%" y="{y:g}" width="{span:.2f}%" height="{tall:g}" rx="1.5"/>'


def _label(cell: _Cell, ghost: _Cell, place: tuple[float, float], middle: float) -> str:
    state = "same" if cell == ghost else cell.kind
    return f'<text class="label {state}" x="{place[0] + place[1] + 2:g}%" y="{middle:g}">{escape(cell.label)}</text>'


def _told(cell: _Cell, ghost: _Cell, noun: str) -> str:
    now = f"{cell.size} {noun}" if cell.kind == "size" else cell.label
    window = f" with a window of {cell.window} tokens" if cell.window else ""
    before = "" if ghost.kind == "unknown" else ", as before" if cell == ghost else f", was {ghost.label}"
    return now + window + before


def _cells(arch: Any) -> list[tuple[_Cell, _Cell]]:
    return [(_cell(layer.get("attention"), "kv_heads"), _cell(layer.get("ffn"), "width")) for layer in layers(arch)]


def _cell(sub_block: Any, key: str) -> _Cell:
    if sub_block in ("linear", "noop"):
        return _Cell(kind=sub_block)
    size, window = (number(mapping(sub_block).get(name)) for name in (key, "window"))
    if size is None or size < 1:
        return _Cell(kind="unknown")
    return _Cell(kind="size", size=int(size), window=int(window) if window else None)


def _scale(rows: list[tuple[_Cell, _Cell]]) -> _Scale:
    return _Scale(heads=max(1, *(a.size for a, _ in rows)), width=max(1, *(f.size for _, f in rows)))
