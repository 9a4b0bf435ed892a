"""What all interactive figures share: the fragment that `page.js` draws, axes, colours and safe text.

Colours are names of the page's CSS variables (`var(--ink)`), resolved when drawn, so that one figure serves the light
and the dark page.
"""

import json
import math
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

INK, MUTED, LINE, CHOSEN, BLUE = "var(--ink)", "var(--muted)", "var(--line)", "var(--chosen)", "var(--attn)"


def plot(data: list[dict[str, Any]], layout: dict[str, Any], height: float, label: str) -> str:
    """A figure as HTML: an empty `div.plot`, `height` pixels tall, followed by its data and layout as a JSON block."""
    font = {"family": "system-ui, sans-serif", "size": 12, "color": MUTED}
    hover = {"bgcolor": "var(--page)", "bordercolor": LINE, "font": {"color": INK, "size": 12}, "align": "left"}
    look = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": font, "hoverlabel": hover}
    spec = json.dumps({"data": data, "layout": {**look, "height": height, **layout}}, allow_nan=False)
    # Inside a script element only "<" could end the data early.
    block = spec.replace("<", "\\u003c")
    return (
        f'<div class="plot" role="img" aria-label="{escape(label)}" style="min-height:{height:g}px">'
        "<noscript>This figure needs JavaScript; its numbers are in summary.json.</noscript></div>"
        f'<script type="application/json">{block}</script>'
    )


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """An axis in the style of the page; `more` overrides."""
    look: dict[str, Any] = {"gridcolor": LINE, "zeroline": False, "linecolor": LINE, "tickcolor": LINE}
    look |= {"automargin": False, "fixedrange": False, "ticks": "", "title": {"text": title, "standoff": 8}}
    return look | more


def log(wide: bool) -> dict[str, Any]:
    """A logarithmic axis where the values span it; else one from zero."""
    return {"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}


def decades(values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis for positive values, labelled at 1, 2 and 5 of each decade where few decades are spanned."""
    known = list(values)
    low, high = min(known), max(known)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [f"{tick:.4g}" for tick in ticks]}


def safe(text: Any) -> str:
    """Text for a figure: Plotly reads a little HTML in labels, so what the user named must not be any."""
    return escape(str(text), quote=False)


def key(*items: tuple[str, str]) -> str:
    """A legend in HTML, outside the figures that share it: (class of the mark or the mark itself, meaning)."""
    marks = [f'<i class="{mark}"></i>' if mark.isascii() else f"<b>{mark}</b>" for mark, _ in items]
    words = [f'<span class="key">{mark}{escape(text)}</span>' for mark, (_, text) in zip(marks, items, strict=True)]
    return f'<p class="caption">{" ".join(words)}</p>'


def union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """All keys, in the order in which they are first seen."""
    return list(dict.fromkeys(str(key) for mapping in mappings for key in mapping))
