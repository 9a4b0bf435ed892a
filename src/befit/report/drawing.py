"""An image network's architecture as a picture: a cell's graph, the stages of a mobile network, or the choices taken."""

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from befit.report import quantities as q

_OPERATIONS = {
    "nor_conv_3x3": ("3×3 conv", "conv wide"),
    "nor_conv_1x1": ("1×1 conv", "conv"),
    "avg_pool_3x3": ("3×3 avg pool", "pool"),
    "skip_connect": ("skip", "skip"),
    "none": ("nothing", "none"),
}
"""What NAS-Bench-201's names mean, and the look of such an edge."""

_STEP, _RADIUS, _BULGE = 142.0, 17.0, 54.0
"""Pixels between two nodes, of a node, and by which an edge bends for each node that it passes."""
_MOST_NODES = 8
_MOST_BLOCKS = 400

Edge = tuple[int, int, str]


def picture(facts: Any) -> str:
    """The drawing that the summary asks for; nothing for a kind that is not known."""
    facts = q.mapping(facts)
    match facts.get("kind"):
        case "cell":
            return cell(facts.get("edges"))
        case "mobile":
            return mobile(facts.get("shape"))
        case "choices":
            return choices(facts.get("choices"))
    return ""


def cell(edges: Any) -> str:
    """The cell as a graph, its nodes in a row, and its text form."""
    known = _edges(edges)
    if not known:
        return ""
    count = 1 + max(to for _, to, _ in known)
    above = max([_BULGE * (to - source - 1) for source, to, _ in known if source % 2 == 0], default=0)
    below = max([_BULGE * (to - source - 1) for source, to, _ in known if source % 2], default=0)
    middle, width = above + 30, 2 * _RADIUS + 8 + _STEP * (count - 1)
    # What does nothing first, so that it lies below.
    drawn = sorted(known, key=lambda edge: edge[2] != "none")
    lines = "".join(_edge(edge, middle) for edge in drawn)
    nodes = "".join(_node(place, count, middle) for place in range(count))
    said = "; ".join(f"{source} to {to}: {_operation(name)[0]}" for source, to, name in known)
    return (
        f'<svg class="cell" viewBox="0 0 {width:g} {middle + below + 30:g}" role="img" '
        f'aria-label="{escape("The cell: " + said)}">{lines}{nodes}</svg>'
        f"<pre><code>{escape(_text_form(known, count))}</code></pre>"
    )


def mobile(shape: Any) -> str:
    """Stem, stages and head in rows; a block is a chip whose bar is as long as the block is wide."""
    shape = q.mapping(shape)
    stages = [q.entries(stage) for stage in q.sequence(shape.get("stages"))]
    blocks = [block for stage in stages for block in stage][:_MOST_BLOCKS]
    if not blocks:
        return ""
    widest = max([q.number(block.get("expanded")) or 0 for block in blocks] + [1])
    side = _halved(q.number(shape.get("resolution")), q.number(shape.get("stem_stride")))
    act = str(shape.get("activation") or "")
    rows = [
        _part("image", "", q.number(shape.get("resolution")), None, ""),
        _part("stem", "3×3 conv", side, q.number(shape.get("stem")), act),
    ]
    for number, stage in enumerate(stages, start=1):
        if not stage:
            continue
        for block in stage:
            side = _halved(side, q.number(block.get("stride")))
        chips = "".join(_block(block, widest) for block in stage[:_MOST_BLOCKS])
        own = str(stage[0].get("activation") or "")
        rows.append(
            _part(f"stage {number}", f'<span class="chips">{chips}</span>', side, q.number(stage[-1].get("out")), own)
        )
    hidden = q.number(shape.get("hidden"))
    head = "1×1 conv, mean over pixels" + (f", layer of {q.whole(hidden)}" if hidden else "") + ", classifier"
    rows.append(_part("head", head, side, q.number(shape.get("last")), act))
    gated = any(q.number(block.get("squeeze")) for block in blocks)
    gate = f", its gate a {escape(str(shape['gate']))}" if gated and shape.get("gate") else ""
    return (
        '<table class="mobile"><thead><tr><th scope="col"></th><th scope="col">pixels</th><th scope="col">channels</th>'
        f'<th scope="col">blocks</th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
        '<p class="caption">A block: kernel of its depthwise convolution, × how far it is widened; the bar is the width '
        f"inside. SE: squeeze and excite{gate}. ↓ halves the pixels. Pixels and channels are those at the end of a row.</p>"
    )


def choices(taken: Any) -> str:
    """The options taken, by name."""
    lines = [
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in q.mapping(taken).items()
        if isinstance(value, str | int | float)
    ]
    return f'<dl class="taken">{"".join(lines)}</dl>' if lines else ""


def _edges(given: Any) -> list[Edge]:
    """From node, to node, operation: each pair of nodes once."""
    found = dict[tuple[int, int], str]()
    for row in q.sequence(given):
        ends = [value for value in q.sequence(row)[:2] if isinstance(value, int) and not isinstance(value, bool)]
        if len(ends) == 2 and len(row) == 3 and 0 <= ends[0] < ends[1] < _MOST_NODES:
            found[ends[0], ends[1]] = str(row[2])
    return [(source, to, name) for (source, to), name in found.items()]


def _operation(name: str) -> tuple[str, str]:
    return _OPERATIONS.get(name, (name, "conv"))


def _at(place: int) -> float:
    return _RADIUS + 4 + _STEP * place


def _node(place: int, count: int, middle: float) -> str:
    said = "in" if place == 0 else "out" if place == count - 1 else str(place)
    return (
        f'<circle class="node" cx="{_at(place):g}" cy="{middle:g}" r="{_RADIUS:g}"/>'
        f'<text x="{_at(place):g}" y="{middle:g}">{said}</text>'
    )


def _edge(edge: Edge, middle: float) -> str:
    """A line (straight between neighbours, else bent: from even nodes above, from odd ones below), its arrow and its name."""
    source, to, name = edge
    said, look = _operation(name)
    bulge = _BULGE * (to - source - 1) * (-1 if source % 2 == 0 else 1)
    start, end = (_at(source), middle), (_at(to), middle)
    control = ((start[0] + end[0]) / 2, middle + 2 * bulge)
    begin, tip = _towards(start, control, _RADIUS), _towards(end, control, _RADIUS + 1)
    stop = _towards(tip, control, 6)
    left, right = (_towards(tip, control, 9, turn) for turn in (0.42, -0.42))
    # The point half-way of the curve.
    place = [(first + 2 * second + third) / 4 for first, second, third in zip(begin, control, stop, strict=True)]
    arrow = " ".join(f"{x:.1f},{y:.1f}" for x, y in (tip, left, right))
    return (
        f'<g class="edge {look}"><path d="M{begin[0]:.1f},{begin[1]:.1f} Q{control[0]:.1f},{control[1]:.1f} '
        f'{stop[0]:.1f},{stop[1]:.1f}"/><polygon points="{arrow}"/>'
        f'<text x="{place[0]:.1f}" y="{place[1]:.1f}">{escape(said)}</text></g>'
    )


def _towards(
    start: tuple[float, float], to: tuple[float, float], distance: float, turn: float = 0.0
) -> tuple[float, float]:
    angle = math.atan2(to[1] - start[1], to[0] - start[0]) + turn
    return start[0] + distance * math.cos(angle), start[1] + distance * math.sin(angle)


def _text_form(edges: list[Edge], count: int) -> str:
    """NAS-Bench-201's: |op~0|+|op~0|op~1|+…"""
    nodes = ("".join(f"|{name}~{source}" for source, to, name in edges if to == node) for node in range(1, count))
    return "+".join(f"{terms}|" for terms in nodes)


def _halved(side: float | None, stride: float | None) -> float | None:
    """Pixels a side after a convolution that keeps the border."""
    return math.ceil(side / stride) if side is not None and stride and stride > 0 else side


def _part(name: str, body: str, side: float | None, channels: float | None, activation: str) -> str:
    small = f"<small>{escape(activation)}</small>" if activation else ""
    return (
        f'<tr><th scope="row">{name}{small}</th><td>{q.whole(side) if side is not None else ""}</td>'
        f"<td>{q.whole(channels) if channels is not None else ''}</td><td>{body}</td></tr>"
    )


def _block(block: Mapping[str, Any], widest: float) -> str:
    kernel, expanded = q.number(block.get("kernel")), q.number(block.get("expanded"))
    times = q.ratio(expanded, q.number(block.get("channels")))
    words = [f"<b>{q.whole(kernel)}×{q.whole(kernel)}</b>"] if kernel is not None else []
    words += [f"×{f'{times:.2g}'}"] if times is not None else []
    words += ["<em>SE</em>"] if q.number(block.get("squeeze")) else []
    words += ["↓"] if (q.number(block.get("stride")) or 1) > 1 else []
    share = min(100.0, max(0.0, 100 * (expanded or 0) / widest))
    look = f"k{kernel}" if kernel in (3, 5, 7) else "k3"
    inside = f"{q.whole(expanded)} channels inside" if expanded is not None else ""
    return (
        f'<span class="chip {look}" title="{inside}">{" ".join(words)}'
        f'<span class="thin"><i style="width:{share:.1f}%"></i></span></span>'
    )
