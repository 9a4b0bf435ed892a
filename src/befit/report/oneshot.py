"""Searches that share weights: what the gradients made of each choice, and how the shared weights were trained."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from befit.report import canvas, finalists, trials
from befit.report import quantities as q

_LOOKS = (
    (canvas.BLUE, "solid"),
    ("var(--ffn)", "dash"),
    ("var(--mamba)", "dot"),
    (canvas.CHOSEN, "dash"),
    (canvas.MUTED, "solid"),
)
"""Colour and dash of each option's line, as the style sheet has them for keys."""

_MOST_PANELS = 12
"""Choices drawn; the rest are in summary.json."""


def gradient(summary: Mapping[str, Any]) -> str:
    """The probability of every option over the epochs, the entropy, and expected costs against their bounds."""
    facts = _extra(summary, "gradient")
    epochs = q.entries(facts.get("probabilities"))
    names = canvas.union(epochs)[:_MOST_PANELS]
    options = {name: _options(summary, name) for name in names}
    panels = [_choice(name, options[name], [q.sequence(epoch.get(name)) for epoch in epochs]) for name in names]
    drawn = "".join(panels)
    # One key for all panels, where all choices have the same options.
    same = drawn and len({tuple(named) for named in options.values()}) == 1
    key = _key(options[names[0]]) if same and names else ""
    more = _entropy(facts, options) + _expected(summary, facts)
    titles = f'<h3>Probabilities by epoch</h3><div class="panels narrow">{drawn}</div>{key}' if drawn else ""
    return titles + (f'<h3>How sure it was</h3><div class="panels few">{more}</div>' if more else "")


def gradient_in_words(summary: Mapping[str, Any]) -> str:
    """Whether the search fell into the empty arch, and what the budget cost, as plain text."""
    facts, words = _extra(summary, "gradient"), list[str]()
    if isinstance(facts.get("collapsed"), bool):
        words.append(
            "It collapsed: the arch that it ends in is the empty one (of cells: skips only) that such searches are known "
            "to fall into."
            if facts["collapsed"]
            else "It did not collapse into the empty arch (of cells: skips only) that such searches are known to fall into."
        )
    score, wished = q.number(facts.get("score")), q.number(facts.get("wished"))
    if score is not None and wished is not None and q.entries(summary.get("bounds")):
        words.append(
            "The most probable arch keeps the budget."
            if score >= wished - 1e-9
            else f"The most probable arch (log-probability {q.significant(wished)}) is over the budget; the most probable "
            f"one inside has {q.significant(score)}."
        )
    if (seconds := q.number(facts.get("seconds"))) is not None:
        words.append(f"The search itself took {q.duration(seconds)}; its network was thrown away.")
    return " ".join(words)


def shared(summary: Mapping[str, Any]) -> str:
    """The loss of the shared weights over their training."""
    losses = [q.number(value) for value in q.sequence(_extra(summary, "shared").get("losses"))]
    known = [value for value in losses if value is not None]
    if len(known) < 2:
        return ""
    facts = _extra(summary, "shared")
    # Of a long curve only one loss of so many is there.
    apart = max(1, math.ceil((q.number(facts.get("steps")) or 0) / len(losses)))
    steps = [1 + apart * place for place in range(len(losses))]
    data = [_line(steps, losses, 0, "step %{x}: %{y:.3g}<extra></extra>")]
    return canvas.plot(data, _layout("step", "loss"), 260, "Loss of the shared weights")


def shared_in_words(summary: Mapping[str, Any]) -> str:
    """How long the shared weights were trained and how many sub-nets were judged by them, as plain text."""
    facts = _extra(summary, "shared")
    steps, seconds = q.number(facts.get("steps")), q.number(facts.get("seconds"))
    epochs = q.number(facts.get("epochs"))
    count = len([row for row in q.entries(summary.get("trials")) if q.number(row.get("value")) is not None])
    words = [f"{q.whole(steps)} steps"] if steps is not None else []
    words += [f"{epochs:.3g} epochs"] if epochs is not None else []
    words += [q.duration(seconds)] if seconds is not None else []
    if not words:
        return ""
    told = f"One training of all sub-nets together: {', '.join(words)}. "
    told += f"{q.whole(count)} sub-nets were then judged, without any training of their own. " if count else ""
    return told + "Accuracy by shared weights ranks sub-nets; it is no promise of what one reaches when trained alone."


def compared(summary: Mapping[str, Any]) -> str:
    """Accuracy by shared weights beside that of the same finalists trained by themselves, where both are there."""
    if not _extra(summary, "shared"):
        return ""
    pairs = [
        (finalists.value_in_trial(summary, one), q.number(one.get("validation")))
        for one in q.entries(summary.get("finalists"))
        if (q.number(one.get("epochs")) or 0) > 0
    ]
    known = [(100 * seen, 100 * alone) for seen, alone in pairs if seen is not None and alone is not None]
    if len(known) < 2:
        return ""
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [seen for seen, _ in known],
            "y": [alone for _, alone in known],
            "hovertemplate": "by shared weights %{x:.1f} %, alone %{y:.1f} %<extra></extra>",
            "marker": {"color": canvas.BLUE, "size": 9},
        }
    ]
    return canvas.plot(
        data,
        _layout(f"{trials.judged(summary)}, %", "trained further, %"),
        260,
        "Accuracy by shared weights and after own training",
    )


def _extra(summary: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return q.mapping(q.mapping(summary.get("extra")).get(name))


def _options(summary: Mapping[str, Any], name: str) -> list[str]:
    told = q.mapping(q.mapping(summary.get("space")).get("choices")).get(name)
    return [str(option) for option in q.sequence(told)]


def _choice(name: str, options: Sequence[str], epochs: Sequence[Sequence[Any]]) -> str:
    count = max((len(row) for row in epochs), default=0)
    data = list[dict[str, Any]]()
    for place in range(min(count, 20)):
        points = [
            (epoch, 100 * share)
            for epoch, row in enumerate(epochs, start=1)
            if place < len(row) and (share := q.number(row[place])) is not None
        ]
        said = canvas.safe(options[place] if place < len(options) else f"option {place + 1}")
        data.append(
            _line(
                [x for x, _ in points],
                [y for _, y in points],
                place,
                f"{said}, epoch %{{x}}: %{{y:.0f}} %<extra></extra>",
            )
        )
    if not any(line["x"] for line in data):
        return ""
    layout = _layout("epoch", "") | {"title": _title(f"{canvas.safe(name)}, %")}
    layout["yaxis"] = canvas.axis(range=[-2, 102], dtick=25)
    return canvas.plot(data, layout, 190, f"Probabilities of {name} by epoch")


def _entropy(facts: Mapping[str, Any], options: Mapping[str, Sequence[str]]) -> str:
    values = [q.number(value) for value in q.sequence(facts.get("entropy"))]
    if sum(value is not None for value in values) < 2:
        return ""
    most = max((len(named) for named in options.values()), default=0)
    data = [_line(range(1, 1 + len(values)), values, 0, "epoch %{x}: %{y:.3g} nats<extra></extra>")]
    top = math.log(most) if most > 1 else None
    layout = _layout("epoch", "") | {"title": _title("entropy of a choice, nats; 0 is sure")}
    layout["yaxis"] = canvas.axis(range=[0, 1.05 * top] if top else None, rangemode="tozero")
    return canvas.plot(data, layout, 190, "Entropy by epoch")


def _expected(summary: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    epochs, panels = q.entries(facts.get("expected")), list[str]()
    limits = {str(bound.get("cost")): q.number(bound.get("value")) for bound in q.entries(summary.get("bounds"))}
    for name in canvas.union(epochs)[:3]:
        values = [q.number(epoch.get(name)) for epoch in epochs]
        known, limit = [abs(value) for value in values if value is not None], limits.get(name)
        if len(known) < 2:
            continue
        unit, divisor = q.unit_of(name, max(*known, limit or 0))
        scaled = [None if value is None else value / divisor for value in values]
        data = [_line(range(1, 1 + len(values)), scaled, 0, "epoch %{x}: %{y:.3g}<extra></extra>")]
        if limit is not None:
            line = {"color": canvas.INK, "width": 1, "dash": "dot"}
            ends = {"x": [1, len(values)], "y": [limit / divisor] * 2, "line": line, "hoverinfo": "skip"}
            data.append({"type": "scatter", "mode": "lines", **ends})
        said = canvas.safe(q.cost_name(name)) + (f", {unit}" if unit else "")
        layout = _layout("epoch", "") | {"title": _title(f"expected {said}" + ("; dotted: the bound" if limit else ""))}
        panels.append(canvas.plot(data, layout, 190, f"Expected {q.cost_name(name)} by epoch"))
    return "".join(panels)


def _line(x: Sequence[float], y: Sequence[float | None], place: int, hover: str) -> dict[str, Any]:
    colour, dash = _LOOKS[place % len(_LOOKS)]
    line = {"color": colour, "dash": dash, "width": 1.8}
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "line": line, "hovertemplate": hover}


def _layout(below: str, beside: str) -> dict[str, Any]:
    return {
        "showlegend": False,
        "margin": {"l": 58 if beside else 40, "r": 8, "t": 8 if beside else 26, "b": 46 if beside else 36},
        "xaxis": canvas.axis(title=below, showgrid=False, nticks=6),
        "yaxis": canvas.axis(title=beside),
    }


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 12}, "x": 0, "xanchor": "left", "y": 0.97, "yanchor": "top"}


def _key(names: Sequence[str]) -> str:
    return canvas.key(*((f"stroke b{place % len(_LOOKS)}", name) for place, name in enumerate(names)))


def told(words: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(words)}</p>" if words else ""
