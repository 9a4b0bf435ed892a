"""What a search saw of its space: how much each choice mattered, and how good the archs with each option were.

A description of the archs that were tried, which a searcher chose; no claim about archs drawn at random.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

from befit.report import quantities as q

_MOST_CHOICES = 12
"""Choices that are shown at once; the less important ones can be unfolded."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One choice."""

    name: str
    importance: float | None
    """Share of the values' variance that it explains, 0..1; None if too little was tried."""
    options: list[tuple[str, float, float]]
    """Option, mean value, number of trials."""


def choices(learned: Any, space: Any = None) -> str:
    """Every choice, the most important first: a bar, and its options with mean accuracy and trials.

    `space` names the options of each choice in their order.
    """
    told = q.mapping(q.mapping(space).get("choices"))
    seen = [
        one for name, facts in q.mapping(learned).items() if (one := _seen(str(name), facts, told.get(name))).options
    ]
    if all(len(one.options) < 2 for one in seen):
        return ""  # nothing to compare
    ranked = sorted(seen, key=lambda one: (one.importance is None, -(one.importance or 0)))
    means = [mean for one in seen for _, mean, _ in one.options]
    low, high = min(means), max(means)
    rows = [_row(one, low, high) for one in ranked]
    shown, rest = rows[:_MOST_CHOICES], rows[_MOST_CHOICES:]
    folded = (
        f'<details><summary>{len(rest)} more choices</summary><div class="effects">{"".join(rest)}</div></details>'
        if rest
        else ""
    )
    return f'<div class="effects">{"".join(shown)}</div>{folded}'


def _seen(name: str, facts: Any, order: Any) -> Seen:
    places = {str(option): place for place, option in enumerate(q.sequence(order))}
    options = [
        (str(option), mean, trials)
        for option, told in q.mapping(q.mapping(facts).get("options")).items()
        if (mean := q.dig(told, "mean")) is not None and (trials := q.dig(told, "trials")) is not None
    ]
    options.sort(key=lambda option: places.get(option[0], len(places)))
    return Seen(name=name, importance=q.dig(facts, "importance"), options=options)


def _row(one: Seen, low: float, high: float) -> str:
    best = max(mean for _, mean, _ in one.options)
    share = min(100.0, max(0.0, 100 * (one.importance or 0)))
    told = q.percent(one.importance) if one.importance is not None else "tried too little"
    bar = f'<span class="thin"><i style="width:{share:.1f}%"></i></span>' if one.importance is not None else ""
    options = "".join(
        _option(option, mean, trials, low, high, mean == best and len(one.options) > 1)
        for option, mean, trials in one.options
    )
    return (
        f'<div class="effect"><div class="what"><b>{escape(one.name)}</b>{bar}<small>{told}</small></div>'
        f'<div class="options">{options}</div></div>'
    )


def _option(option: str, mean: float, trials: float, low: float, high: float, best: bool) -> str:
    share = 100 * (mean - low) / (high - low) if high > low else 100.0
    return (
        f'<span class="option{" best" if best else ""}"><span class="axis">{escape(option)}</span>'
        f'<span class="thin"><i style="width:{min(100.0, max(0.0, share)):.1f}%"></i></span>'
        f"<b>{q.accuracy(mean)}</b> <small>{q.whole(trials)}</small></span>"
    )


def in_words(learned: Any) -> str:
    """How to read it, as plain text; with the span of the bars."""
    means = [
        mean
        for facts in q.mapping(learned).values()
        for told in q.mapping(q.mapping(facts).get("options")).values()
        if (mean := q.dig(told, "mean")) is not None
    ]
    span = f" Bars of options run from {q.accuracy(min(means))} to {q.accuracy(max(means))}." if means else ""
    return (
        "The percentage below a choice is the share of the differences between trials that this choice alone explains; "
        "an option has the mean value and the number of the trials with it."
        + span
        + " This describes the archs that were "
        "tried, which the searcher picked: an option that was seldom tried may be better or worse than it looks."
    )


def funnel(rows: Any) -> str:
    """How many proposals reached each stage, as bars; what was lost on the way stands apart."""
    known = [
        (str(entry.get("stage", "")), count, entry.get("lost") is True)
        for entry in q.entries(rows)
        if (count := q.number(entry.get("count"))) is not None and count >= 0
    ]
    if not known:
        return ""
    most = max(count for _, count, _ in known) or 1
    kept = "".join(_bar(stage, count, most, "kept") for stage, count, lost in known if not lost)
    lost = "".join(_bar(stage, count, most, "lost") for stage, count, lost in known if lost)
    apart = f'<h3>Lost on the way</h3><div class="bars">{lost}</div>' if lost else ""
    return f'<div class="bars">{kept}</div>{apart}'


def funnel_in_words(rows: Any) -> str:
    """The share of proposals that were refused before anything was built, as plain text."""
    counts = {str(entry.get("stage")): q.number(entry.get("count")) for entry in q.entries(rows)}
    refused, proposed = counts.get("refused before building"), counts.get("proposed")
    if not refused or not proposed:
        return ""
    return (
        f"{q.whole(refused)} of {q.whole(proposed)} proposals ({q.percent(refused / proposed)}) were over the budget by "
        "exact counts or predicted latency, and were never built."
    )


def _bar(stage: str, count: float, most: float, look: str) -> str:
    return (
        f'<div class="{look}"><span class="what">{escape(stage)}</span><span class="count">{q.whole(count)}</span>'
        f'<span class="thin"><i style="width:{min(100.0, 100 * count / most):.2f}%"></i></span></div>'
    )
