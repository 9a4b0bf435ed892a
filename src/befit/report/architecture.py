"""The architecture as a picture: one row for each layer, the child drawn over the ghost of its parent.

Left the mixer's heads (KV heads, or Mamba heads in another colour), one small bar for each; right the FFN, a bar as long as it
is wide; nothing where the parent has nothing, as in a hybrid. Plain SVG in percent of the page's width and pixels of height,
so that text keeps its size on a phone and 80 layers are as legible as 8; no JavaScript.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from befit.report.quantities import entries, mapping, number, whole

_ATTENTION = (8.0, 27.0)
"""Where the heads begin and how far they reach, percent of the width."""
_FFN = (53.0, 31.0)
"""The same for the FFN."""
_MOST_BARS = 32
"""More heads than this are drawn as one proportional bar: single bars would be thinner than a pixel on a phone."""
_ROWS_PER_COLUMN = 42
"""Deeper networks continue in a second column."""
_SIZES = {"attn": "kv_heads", "mamba": "mamba_heads", "ffn": "width"}
"""What the size of a sub-block is called in an architecture, by the colour that it is drawn in."""
_NOUNS = {"attn": "attention", "mamba": "Mamba", "ffn": "FFN"}
_COUNTED = {"attn": "KV heads", "mamba": "Mamba heads", "ffn": "FFN neurons"}


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One sub-block, ready to draw."""

    kind: str
    """size, linear, noop, absent (as in the parent) or unknown."""
    hue: str = "attn"
    """attn, mamba or ffn."""
    size: int = 0
    """Heads or FFN neurons; 0 unless kind is size."""
    window: int | None = None
    """Attention window in tokens."""

    @property
    def label(self) -> str:
        if self.kind != "size":
            return {"linear": "linear", "noop": "no-op", "absent": ""}.get(self.kind, "?")
        return f"{self.size}" + (f" w{self.window}" if self.window else "")


Row = tuple[_Cell, _Cell]
"""A layer: its mixer and its FFN."""


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """What a full bar stands for in this picture."""

    attn: int
    mamba: int
    ffn: int

    def of(self, cell: _Cell) -> int:
        """For a sub-block."""
        return {"attn": self.attn, "mamba": self.mamba, "ffn": self.ffn}[cell.hue]


def variant_name(sub_block: Any) -> str | None:
    """The name under which a sub-block is scored (`kv4`, `kv4w128`, `mamba8`, `ffn512`, `linear`, `noop`), None if unreadable."""
    cell = _cell(sub_block, "ffn" if "width" in mapping(sub_block) else "attn")
    if cell.kind != "size":
        return None if cell.kind == "unknown" else cell.kind
    name = {"attn": "kv", "mamba": "mamba", "ffn": "ffn"}[cell.hue]
    return f"{name}{cell.size}" + (f"w{cell.window}" if cell.window else "")


def layers(arch: Any) -> list[Mapping[str, Any]]:
    """The layers of an architecture as plain mappings; empty if there is none."""
    return entries(mapping(arch).get("blocks"))


def picture(child: Any, parent: Any) -> str:
    """The layer-by-layer picture as HTML, or an empty string if the child has no architecture yet."""
    rows, ghosts = _paired(child, parent)
    if not rows:
        return ""
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
    """The same rows at a glance: heads to the left of the spine, FFN width to the right."""
    rows, ghosts = _paired(arch, parent)
    if not rows:
        return ""
    scale = _scale(rows + ghosts)
    gap = 0.1 if len(rows) <= 28 else 0.0  # thinner rows with gaps would shimmer
    shapes = []
    for y, (attention, ffn) in enumerate(rows):
        for cell in (attention, ffn):
            length = 48.0 * (cell.size / scale.of(cell) if cell.kind == "size" else cell.kind == "linear")
            top, tall = (y + 0.42, 0.16) if cell.kind == "linear" else (y + gap, 1 - 2 * gap)
            x = 51.0 if cell is ffn else 49 - length
            if length:
                shapes.append(
                    f'<rect class="{cell.hue}" x="{x:.2f}" y="{top:.2f}" width="{length:.2f}" height="{tall:g}"/>'
                )
    return (
        f'<svg class="thumb" viewBox="0 0 100 {len(rows)}" preserveAspectRatio="none" role="img" '
        f'aria-label="{len(rows)} layers in miniature"><rect class="ghost" width="100" height="{len(rows)}"/>'
        f"{''.join(shapes)}</svg>"
    )


def describe(child: Any, parent: Any) -> str:
    """What changed, in one sentence of plain text."""
    rows, ghosts = _paired(child, parent)
    if not rows:
        return ""
    words = []
    now, before = ([cell for row in table for cell in row] for table in (rows, ghosts))
    for hue, noun in _NOUNS.items():
        for kind, verb in (("noop", "dropped"), ("linear", "made linear")):
            count = sum(cell.kind == kind and cell.hue == hue for cell in now)
            if count:
                words.append(f"{count} {noun} sub-block{'s' if count > 1 else ''} {verb}")
    for hue, noun in _COUNTED.items():
        left, whole_size = (sum(cell.size for cell in cells if cell.hue == hue) for cells in (now, before))
        if whole_size and left != whole_size:
            words.append(f"{noun} {whole(whole_size)} → {whole(left)}")
    windows = sum(bool(row[0].window) for row in rows)
    if windows:
        words.append(f"{windows} sliding window{'s' if windows > 1 else ''}")
    return f"{len(rows)} layers: {', '.join(words) if words else 'all as in the parent'}."


def _column(start: int, rows: list[Row], ghosts: list, scale: _Scale, height: int) -> str:
    hues = {attention.hue for attention, _ in [*rows, *ghosts] if attention.kind == "size"}
    heads = " or ".join(_COUNTED[hue] for hue in ("attn", "mamba") if hue in hues) or "KV heads"
    body = [
        f'<text class="head" x="{_ATTENTION[0]}%" y="12">{heads.replace("KV heads or", "KV or")}</text>'
        f'<text class="head" x="{_FFN[0]}%" y="12">FFN width</text>'
    ]
    for i, (row, ghost) in enumerate(zip(rows, ghosts, strict=False)):
        body.append(_row(start + i, row, ghost, scale, 22 + i * height, height))
    total = 22 + len(rows) * height
    label = f"Layers {start} to {start + len(rows) - 1}, child over parent"
    return f'<svg class="arch" width="100%" height="{total}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def _row(layer: int, row: Row, ghost: Row, scale: _Scale, y: int, height: int) -> str:
    tall = height - (8 if height > 20 else 4)
    middle = y + tall / 2
    words = {"attn": "attention", "mamba": "Mamba-2", "ffn": "FFN"}
    units = {"attn": "KV heads", "mamba": "heads", "ffn": "neurons wide"}
    told = [
        f"{words[cell.hue]} {_told(cell, was, units[cell.hue])}"
        for cell, was in zip(row, ghost, strict=True)
        if cell.kind != "absent"
    ]
    title = f"Layer {layer}: {'; '.join(told)}"
    return (
        f'<g class="layer" data-layer="{layer}"><title>{escape(title)}</title>'
        f'<rect class="hit" x="0" y="{y}" width="100%" height="{height}"/>'
        f'<text class="index" x="5.5%" y="{middle}">{layer}</text>'
        + _attention(row[0], ghost[0], scale.of(row[0]), y, tall)
        + _label(row[0], ghost[0], _ATTENTION, middle)
        + _ffn(row[1], ghost[1], scale.ffn, y, tall)
        + _label(row[1], ghost[1], _FFN, middle)
        + "</g>"
    )


def _attention(cell: _Cell, ghost: _Cell, heads: int, y: int, tall: int) -> str:
    if cell.kind != "size":
        return _whole_bar(cell, ghost, heads, _ATTENTION, y, tall)
    left, span = _ATTENTION
    if heads > _MOST_BARS:
        return (
            _rect("ghost", left, span * ghost.size / heads, y, tall)
            + _rect(cell.hue, left, span * cell.size / heads, *_seen(cell, y, tall))
        )  # fmt: skip
    pitch = span / (heads - 0.24)
    bars = []
    for i in range(max(cell.size, ghost.size)):
        if i < ghost.size:
            bars.append(_rect("ghost", left + i * pitch, pitch * 0.76, y, tall))
        if i < cell.size:
            bars.append(_rect(cell.hue, left + i * pitch, pitch * 0.76, *_seen(cell, y, tall)))
    return "".join(bars)


def _ffn(cell: _Cell, ghost: _Cell, width: int, y: int, tall: int) -> str:
    if cell.kind != "size":
        return _whole_bar(cell, ghost, width, _FFN, y, tall)
    left, span = _FFN
    return (
        _rect("ghost", left, span * ghost.size / width, y, tall) + _rect("ffn", left, span * cell.size / width, y, tall)
    )  # fmt: skip


def _whole_bar(cell: _Cell, ghost: _Cell, full: int, place: tuple[float, float], y: int, tall: int) -> str:
    """A linear map is a thin line through the parent's ghost; a no-op leaves only a dashed outline."""
    left, span = place
    if cell.kind == "absent":
        return ""
    if cell.kind == "linear":
        return _rect("ghost", left, span * ghost.size / full, y, tall) + _rect(
            cell.hue, left, span, y + tall / 2 - 1.5, 3
        )
    return _rect(cell.kind, left, span, y + 0.5, tall - 1)


def _seen(cell: _Cell, y: int, tall: int) -> tuple[float, float]:
    """A windowed head sees part of the past: a bar of half the height."""
    return (y + tall / 2, tall / 2) if cell.window else (y, tall)


def _rect(hue: str, left: float, span: float, y: float, tall: float) -> str:
    if span <= 0:
        return ""
    return f'<rect class="{hue}" x="{left:.2f}%" y="{y:g}" width="{span:.2f}%" height="{tall:g}" rx="1.5"/>'


def _label(cell: _Cell, ghost: _Cell, place: tuple[float, float], middle: float) -> str:
    if cell.kind == "absent":
        return ""
    state = "same" if cell == ghost else cell.kind
    return f'<text class="label {state}" x="{place[0] + place[1] + 2:g}%" y="{middle:g}">{escape(cell.label)}</text>'


def _told(cell: _Cell, ghost: _Cell, noun: str) -> str:
    now = f"{cell.size} {noun}" if cell.kind == "size" else cell.label
    window = f" with a window of {cell.window} tokens" if cell.window else ""
    before = "" if ghost.kind == "unknown" else ", as before" if cell == ghost else f", was {ghost.label}"
    return now + window + before


def _paired(child: Any, parent: Any) -> tuple[list[Row], list[Row]]:
    """The layers of both; what the parent does not have is absent in the child, and what is left of a mixer keeps its colour."""
    rows, ghosts = _cells(child), _cells(parent)[: len(layers(child))]
    unknown = (_Cell(kind="unknown"), _Cell(kind="unknown", hue="ffn"))
    ghosts += [unknown] * (len(rows) - len(ghosts))
    for place, (row, ghost) in enumerate(zip(rows, ghosts, strict=True)):
        rows[place] = (_beside(row[0], ghost[0]), _beside(row[1], ghost[1]))
        ghosts[place] = (_beside(ghost[0], ghost[0]), _beside(ghost[1], ghost[1]))
    return rows, ghosts


def _beside(cell: _Cell, ghost: _Cell) -> _Cell:
    if cell.kind == "noop" and ghost.kind == "noop":
        return _Cell(kind="absent", hue=cell.hue)
    return cell if cell.kind == "size" else replace(cell, hue=ghost.hue)


def _cells(arch: Any) -> list[Row]:
    return [(_cell(layer.get("attention"), "attn"), _cell(layer.get("ffn"), "ffn")) for layer in layers(arch)]


def _cell(sub_block: Any, hue: str) -> _Cell:
    if sub_block in ("linear", "noop"):
        return _Cell(kind=sub_block, hue=hue)
    told = mapping(sub_block)
    hue = "mamba" if "mamba_heads" in told else hue
    size, window = (number(told.get(name)) for name in (_SIZES[hue], "window"))
    if size is None or size < 1:
        return _Cell(kind="unknown", hue=hue)
    return _Cell(kind="size", hue=hue, size=int(size), window=int(window) if window else None)


def _scale(rows: list[Row]) -> _Scale:
    largest = {"attn": 1, "mamba": 1, "ffn": 1}
    for cell in (cell for row in rows for cell in row):
        largest[cell.hue] = max(largest[cell.hue], cell.size)
    return _Scale(**largest)
