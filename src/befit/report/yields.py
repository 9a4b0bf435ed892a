"""What became of the proposals of each arm: the funnel, why they went no further, and what a new network cost.

An arm is a way of making proposals. Its runs (datasets and seeds) are added up here.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from befit.report import quantities as q
from befit.report import tables
from befit.report.tables import Column, Row, path

STAGES = {
    "attempted": "attempted",
    "returned": "answered",
    "parsed": "holds a network",
    "allowed": "allowed by the policy",
    "new-tree": "new as a text",
    "built": "can be built and run",
    "in-budget": "within the budget",
    "new-graph": "a new network",
    "trained": "trained",
    "above-chance": "better than guessing",
}
"""The stages of the funnel, in words."""

LOST = {
    "returned": "no answer",
    "parsed": "no network in the answer",
    "allowed": "against the policy",
    "new-tree": "repeats an earlier text",
    "built": "cannot be built and run",
    "in-budget": "over the budget",
    "new-graph": "repeats an earlier network",
    "trained": "could not be trained",
    "above-chance": "no better than guessing",
}
"""What became of those that did not pass a stage."""

_TOLD = {"policy", "seen-tree", "seen-graph", "budget", "chance"}
"""Reasons that these words say already."""

FUNNEL_IN_WORDS = (
    "Percentages are of the attempts. What is missing between two lines did not pass the lower one; the line in bold is what "
    "is new and worth training."
)
REASONS_IN_WORDS = "Percentages are of what an arm lost."
SPENT_IN_WORDS = (
    "Tokens read and written, time and price include all that failed: what one new network took is all of it, divided by "
    "their number. Calling includes rests between calls and, of a proposer that learns, its learning. Everything here was "
    "measured or said by the server."
)
_MOST_REASONS = 14
"""Reasons that are shown at once; the rest can be unfolded."""


def name_of(arm: Any) -> str:
    """An arm's name; a run of one arm has none."""
    return str(arm or "all proposals")


def names(summary: Mapping[str, Any]) -> list[str]:
    """The arms in their order."""
    return list(dict.fromkeys(name_of(one.get("arm")) for one in q.entries(summary.get("arms"))))


def funnel(summary: Mapping[str, Any]) -> str:
    """How many proposals of each arm passed each stage, with bars."""
    counts = {arm: dict.fromkeys(STAGES, 0.0) for arm in names(summary)}
    for one in q.entries(summary.get("arms")):
        for stage in STAGES:
            counts[name_of(one.get("arm"))][stage] += max(0, q.dig(one, "funnel", stage) or 0)
    most = max((told["attempted"] for told in counts.values()), default=0)
    if not most:
        return ""
    lines = [(words, [told[stage] for told in counts.values()]) for stage, words in STAGES.items()]
    bold = (STAGES["new-graph"],)
    return _matrix(list(counts), lines, [told["attempted"] for told in counts.values()], bold=bold)


def reasons(summary: Mapping[str, Any]) -> str:
    """Why proposals went no further: stage and reason, the most frequent first."""
    arms = names(summary)
    found = dict[tuple[str, str], dict[str, float]]()
    for one in q.entries(summary.get("arms")):
        for stage, told in q.mapping(one.get("reasons")).items():
            for reason, count in q.mapping(told).items():
                line = found.setdefault((str(stage), str(reason)), dict.fromkeys(arms, 0.0))
                line[name_of(one.get("arm"))] += max(0, q.number(count) or 0)
    ordered = sorted(found.items(), key=lambda item: -sum(item[1].values()))
    lines = [(_lost(stage, reason), list(told.values())) for (stage, reason), told in ordered]
    if not lines:
        return ""
    wholes = [sum(told[arm] for told in found.values()) for arm in arms]
    shown, rest = lines[:_MOST_REASONS], lines[_MOST_REASONS:]
    more = _matrix(arms, rest, wholes, look="lost") if rest else ""
    folded = f"<details><summary>{len(rest)} more reasons</summary>{more}</details>" if rest else ""
    return _matrix(arms, shown, wholes, look="lost") + folded


def _lost(stage: str, reason: str) -> str:
    words = LOST.get(stage, stage)
    return words if reason in _TOLD else f"{words}: {reason}"


def _matrix(
    arms: Sequence[str],
    lines: Sequence[tuple[str, Sequence[float]]],
    wholes: Sequence[float],
    *,
    look: str = "",
    bold: Sequence[str] = (),
) -> str:
    """A line each with a count, its share of the arm's whole and a bar for each arm."""
    most = max(wholes, default=0) or 1
    far = ' class="far"' if len(arms) == 1 else ""
    head = "".join(f'<th scope="col">{escape(arm)}</th>' for arm in arms) if len(arms) > 1 else ""
    body = []
    for words, counts in lines:
        cells = [
            f"<td{far}>{q.whole(count)}<small>{q.percent(q.ratio(count, whole))}</small>"
            f'<span class="thin"><i style="width:{min(100.0, 100 * count / most):.2f}%"></i></span></td>'
            if count
            else f'<td class="empty"{far}>0</td>'
            for count, whole in zip(counts, wholes, strict=True)
        ]
        mark = ' class="key-stage"' if words in bold else ""
        body.append(f'<tr{mark}><th scope="row">{escape(words)}</th>{"".join(cells)}</tr>')
    top = f'<thead><tr><th scope="col"></th>{head}</tr></thead>' if head else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="counts by arm"><table class="matrix {look}">'
        f"{top}<tbody>{''.join(body)}</tbody></table></div>"
    )


def spent(summary: Mapping[str, Any]) -> str:
    """What the arms took, and what one new network cost; all of it was measured."""
    rows = []
    for arm in names(summary):
        told = [q.mapping(one.get("spent")) for one in q.entries(summary.get("arms")) if name_of(one.get("arm")) == arm]
        rows.append(Row(name=arm, values=_summed(told)))
    return tables.grid(rows, _SPENT, {}, "What was spent")


def _summed(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def total(*keys: str) -> float | None:
        values = [q.number(one.get(key)) for one in told for key in keys]
        return sum(value for value in values if value is not None) if any(v is not None for v in values) else None

    prices = [q.number(one.get("price")) for one in told]
    price = sum(p for p in prices if p is not None) if prices and None not in prices else None
    new = total("unique")
    tokens, seconds = (
        total("prompt_tokens", "completion_tokens"),
        total("call_seconds", "gate_seconds", "train_seconds"),
    )
    return {
        "calls": total("calls"),
        **{name: total(name) or None for name in ("prompt_tokens", "completion_tokens")},  # not told, or no model
        **{name: total(name) for name in ("call_seconds", "gate_seconds", "train_seconds")},
        **{
            "price": price or None,
            "unique": new,
            "one_tokens": q.ratio(tokens or None, new),
            "one_seconds": q.ratio(seconds, new),
        },
        "one_price": q.ratio(price or None, new),
    }


def _price(value: float | None) -> str:
    return q.significant(value)


_SPENT = (
    Column(group="New networks", name="", read=path("unique"), write=q.whole),
    Column(group="Each of them took", name="tokens", read=path("one_tokens"), write=q.amount),
    Column(group="Each of them took", name="time", read=path("one_seconds"), write=q.duration),
    Column(group="Each of them took", name="price", read=path("one_price"), write=_price),
    Column(group="In all", name="calls", read=path("calls"), write=q.whole),
    Column(group="In all", name="read", read=path("prompt_tokens"), write=q.amount),
    Column(group="In all", name="written", read=path("completion_tokens"), write=q.amount),
    Column(group="In all", name="calling", read=path("call_seconds"), write=q.duration),
    Column(group="In all", name="checking", read=path("gate_seconds"), write=q.duration),
    Column(group="In all", name="training", read=path("train_seconds"), write=q.duration),
    Column(group="In all", name="price", read=path("price"), write=_price),
)
